# SPDX-License-Identifier: Apache-2.0
"""The prelude of retrieval losses: similarities, positives and masks.

`pair_loss` declares a loss by a formula over `Pairs`. The checks are done
before anything is traced, and the formula sees masked, finite arrays.
"""

from collections.abc import Callable, Hashable, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.hyperparameters import (
  Domain,
  Hyperparameters,
  Static,
  declared,
  expanded,
)

# ``formula(pairs, **hyperparameters)`` returns one number for each query. A
# hyper-parameter is a scalar, or has a document axis of length 1.
Formula = Callable[..., jax.Array]


class Pairs(NamedTuple):
  """Pairs of queries and documents, as a formula sees them.

  All arrays have the shape ``[..., Q, D]``.

  Attributes:
    similarities: Similarities, float32 or wider, 0 on dropped pairs. They are
      finite unless the loss of the query will be set to NaN.
    positives: Which pairs are kept and positive.
    negatives: Which pairs are kept and not positive.
    more: Other scores, masked like the similarities. They may be ``-inf``.
    is_diagonal: Whether the positives are the diagonal, a static bool.
  """

  similarities: jax.Array
  positives: jax.Array
  negatives: jax.Array
  more: tuple[jax.Array, ...]
  is_diagonal: bool

  @property
  def keep(self) -> jax.Array:
    """Which pairs are kept."""
    return self.positives | self.negatives

  def at_positives(self, values: jax.Array) -> jax.Array:
    """Returns ``[..., Q, 1]`` values of the diagonal, else all values.

    A formula applies what it computes of a positive to these, so that it
    computes one number and not D of them for a query with one positive.
    """
    if not self.is_diagonal:
      return values
    zero = jnp.zeros_like(values)
    # A sum of one term. A gather would be slower, as would its transpose.
    return jnp.where(self.positives, values, zero).sum(-1, keepdims=True)

  def mean_over_positives(self, values: jax.Array) -> jax.Array:
    """Computes means ``[..., Q]`` over the positives; 0 where there is none.

    The values have the shape of the pairs or that of `at_positives`.
    """
    if values.shape[-1] == 1:
      return prelude.drop(values[..., 0], any_of(self.positives))
    count = self.positives.sum(-1, dtype=jnp.int32)
    total = jnp.where(self.positives, values, jnp.zeros_like(values)).sum(-1)
    return total / jnp.maximum(count, 1).astype(values.dtype)


def any_of(mask: jax.Array) -> jax.Array:
  """Computes ``mask.any(-1)``; on a CPU, a sum of integers is faster."""
  return mask.sum(-1, dtype=jnp.int32) > 0


def masked_logsumexp(z: jax.Array, mask: jax.Array) -> jax.Array:
  """Computes ``log sum exp(z)`` over the marked entries of the last axis.

  Of no entry it is ``-inf``, with gradient 0. ``z`` may be anything elsewhere.
  """
  z = jnp.where(mask, z, -jnp.inf)
  top = jax.lax.stop_gradient(z.max(-1, keepdims=True))
  none = top == -jnp.inf
  top = jnp.where(none, jnp.zeros_like(top), top)
  total = jnp.exp(z - top).sum(-1, keepdims=True)
  value = top + jnp.log(jnp.where(none, jnp.ones_like(total), total))
  return jnp.where(none, -jnp.inf, value)[..., 0]


def negative_log_softmax(z: jax.Array, keep: jax.Array) -> jax.Array:
  """Computes ``-log softmax(z)`` over the kept entries of the last axis.

  It is accurate where the softmax is close to 1, and finite on dropped entries.
  """
  zero = jnp.zeros_like(z)
  largest = jnp.where(keep, z, -jnp.inf).max(-1, keepdims=True)
  is_top = keep & (z == jax.lax.stop_gradient(largest))
  count = is_top.sum(-1, keepdims=True, dtype=jnp.int32).astype(z.dtype)
  count = jnp.maximum(count, 1.0)
  top = jnp.where(is_top, z, zero).sum(-1, keepdims=True) / count
  # The sum leaves one of the largest entries out. A single one must not be
  # subtracted from itself, also in the gradient.
  gap = jnp.where(keep & ~(is_top & (count == 1.0)), z - top, zero)
  terms = jnp.where(is_top, jnp.expm1(gap), jnp.exp(gap))
  others = jnp.where(keep, terms, zero).sum(-1, keepdims=True) + (count - 1.0)
  return jnp.log1p(others) - gap


def diagonal(s: jax.Array) -> jax.Array:
  """Marks the pairs of a query and the document of the same number."""
  return prelude.class_ids(s) == prelude.class_ids(s, -2)


def as_similarities(values: ArrayLike, name: str = "similarities") -> jax.Array:
  """Checks that scores have an axis of queries and one of documents."""
  array = checks.as_floats(values, name)
  if array.ndim < 2:
    raise ValueError(
      f"{name} must have the shape [..., queries, documents], got shape "
      f"{array.shape}. For one query pass {name}[None]."
    )
  if array.shape[-1] == 0:
    raise ValueError(f"{name} must have at least one document, got none.")
  return array


def as_mask(values: ArrayLike, name: str, like: jax.Array) -> jax.Array:
  """Checks that a mask is boolean and has the similarities' shape."""
  array = checks.as_array(values, name)
  if array.dtype != jnp.bool_:
    raise TypeError(
      f"{name} must be boolean, got dtype {array.dtype}. Pass {name} != 0."
    )
  if array.shape != like.shape:
    raise ValueError(
      f"{name} must have the similarities' shape {like.shape}, got "
      f"{array.shape}. Nothing is broadcast."
    )
  return array


def as_positives(
  positives: ArrayLike | None, similarities: jax.Array
) -> jax.Array | None:
  """Checks the positives, of which None is the diagonal."""
  if positives is not None:
    mask = jnp.asarray(as_mask(positives, "positives", similarities))
    return checks.shard_alike("positives", mask, similarities)
  queries, documents = similarities.shape[-2:]
  if documents < queries:
    raise ValueError(
      "similarities must have at least as many documents as queries if the "
      f"positives are the diagonal, got shape {similarities.shape}. Pass "
      "positives=."
    )
  return None


class PairLoss:
  """A loss that is a formula over `Pairs`; made by `pair_loss`."""

  __name__: str

  def __init__(
    self,
    formula: Formula,
    hyperparameters: Hyperparameters,
    in_blocks: bool,
  ) -> None:
    functools.update_wrapper(self, formula)
    self.formula = formula
    self.hyperparameters = hyperparameters
    self.in_blocks = in_blocks

  def __call__(
    self,
    similarities: ArrayLike,
    positives: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
    more: Mapping[str, ArrayLike] | None = None,
    labelled: bool = True,
    settings: Mapping[str, Hashable] | None = None,
    domains: Mapping[str, Domain] | None = None,
    **values: Any,
  ) -> jax.Array:
    """Checks and prepares the arguments, and computes the loss of each query.

    Args:
      similarities: Similarities ``[..., Q, D]``.
      positives: Which pairs are positive; None is the diagonal.
      where: Which pairs to keep.
      more: Other scores of the similarities' shape, by their names.
      labelled: Whether the loss has positives. Without them, all kept pairs are
        negatives.
      settings: Static keyword arguments of the formula that are no numbers.
      domains: Narrower domains of hyper-parameters, such as those that depend
        on the number of documents.
      **values: Hyper-parameters.

    Returns:
      The loss of each query, ``[..., Q]``: 0 for a query without a positive, or
      without a pair if the loss has no positives.
    """
    array = as_similarities(similarities)
    others = []
    for name, x in (more or {}).items():
      score = checks.as_floats(x, name)
      if score.shape != array.shape:
        raise ValueError(
          f"{name} must have the similarities' shape {array.shape}, got "
          f"{score.shape}. Nothing is broadcast."
        )
      others.append(checks.shard_alike(name, score, array))
    mask = as_positives(positives, array) if labelled else None
    readable = checks.is_concrete(used_with=(array, *others))
    batch = array.shape[:-1]
    rows = None if readable else np.zeros(batch, bool)
    if where is not None:
      where = as_mask(where, "where", array)
      readable = readable and checks.is_concrete(where)
      rows = np.zeros(batch, bool)
      if readable:
        rows = np.any(np.asarray(where), axis=-1)
      where = checks.shard_alike("where", jnp.asarray(where), array)
    dtype = checks.compute_dtype(*(x.dtype for x in (array, *others)))
    known = self.hyperparameters
    known = known._replace(domains=known.domains | dict(domains or {}))
    numbers, static = known.split(known.complete(values, self.__name__))
    arrays = {
      n: checks.shard_alike(n, x, array, array.ndim - 1) if x.ndim else x
      for n, x in known.as_arrays(numbers, dtype, batch, rows).items()
    }
    static += tuple((settings or {}).items())
    return _evaluate(
      self, static, labelled, (array, *others), mask, where, arrays
    )


# Compiled, so that a call outside jit is one dispatch. Inlined inside a trace.
@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _evaluate(
  loss: PairLoss,
  static: Static,
  labelled: bool,
  scores: tuple[jax.Array, ...],
  positives: jax.Array | None,
  where: jax.Array | None,
  numbers: dict[str, jax.Array],
) -> jax.Array:
  wide = checks.compute_dtype(*(x.dtype for x in scores))
  s, *others = (x.astype(wide) for x in scores)
  is_diagonal = labelled and positives is None
  if is_diagonal:
    positives = diagonal(s)
  elif positives is None:
    positives = jnp.zeros_like(s, bool)
  # A negative of -inf cannot be retrieved, like one that is dropped.
  keep = positives | (s != -jnp.inf)
  if where is not None:
    keep &= where
    numbers = loss.hyperparameters.placeholders(numbers, any_of(where))
  if labelled and not loss.in_blocks:
    # A query without a positive has no loss, and so nothing of it is read.
    keep &= any_of(positives & keep)[..., None]
  zero = jnp.zeros_like(s)
  # 1, and NaN for a query with an invalid number: 0 times that is NaN.
  bad = jnp.where(keep, 0.0 * s, zero)
  for x in others:
    bad += jnp.where(keep & (x != -jnp.inf), 0.0 * x, zero)
  factor = jax.lax.stop_gradient(1.0 + bad.sum(-1))
  if loss.in_blocks:
    # The sum above ends before the loss begins, and so does its memory.
    s = s * factor[..., None]
  pairs = Pairs(
    jnp.where(keep, s, zero),
    positives & keep,
    keep & ~positives,
    tuple(jnp.where(keep, x, zero) for x in others),
    is_diagonal,
  )
  value = loss.formula(pairs, **expanded(numbers), **dict(static))
  if loss.in_blocks:
    return value
  value *= factor
  if is_diagonal and where is None:
    return value
  counted = pairs.positives if labelled else pairs.keep
  return prelude.drop(value, any_of(counted))


def pair_loss(
  *,
  domains: Mapping[str, Domain],
  settings: tuple[str, ...] = (),
  in_blocks: bool = False,
) -> Callable[[Formula], PairLoss]:
  """Declares a loss of similarities and positives; a decorator of its formula.

  The loss of a query must be finite and have finite derivatives if the query
  has no positive or no negative, because only its value is then set to 0.

  Args:
    domains: The interval of each hyper-parameter, or ``bool`` or ``int`` for a
      static setting.
    settings: The names of the formula's other static arguments, which the
      public function checks.
    in_blocks: Whether the formula saves memory by computing in blocks. All
      similarities of a query with an invalid one are then NaN, and the formula
      itself gives 0 for a query without a positive.

  Returns:
    The decorator.
  """

  def decorate(formula: Formula) -> PairLoss:
    found = declared(formula, domains)
    for name in settings:
      found.domains.pop(name)
      found.defaults.pop(name, None)
    return PairLoss(formula, found, in_blocks)

  return decorate
