# SPDX-License-Identifier: Apache-2.0
"""The prelude of retrieval losses: similarities, positives and masks.

`pair_loss` declares a loss by a formula over `Pairs`. The checks are done before
anything is traced, and the formula sees arrays that are finite and masked.
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
    similarities: Similarities, float32 or wider, 0 on dropped pairs. All pairs
      of a query with an invalid similarity are NaN.
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

  def mean_over_positives(self, values: jax.Array) -> jax.Array:
    """Computes means ``[..., Q]`` over the positives; 0 where there is none."""
    count = self.positives.sum(-1, dtype=jnp.int32)
    total = jnp.where(self.positives, values, jnp.zeros_like(values)).sum(-1)
    return total / jnp.maximum(count, 1).astype(values.dtype)


def masked_logsumexp(z: jax.Array, mask: jax.Array) -> jax.Array:
  """Computes ``log sum exp(z)`` over the marked entries of the last axis.

  Of no entry it is ``-inf``, with gradient 0. ``z`` may be anything elsewhere.
  """
  some = mask.any(-1)
  z = jnp.where(mask, z, -jnp.inf)
  top = jax.lax.stop_gradient(jnp.where(some, z.max(-1), 0.0))
  total = jnp.exp(z - top[..., None]).sum(-1)
  one = jnp.ones_like(total)
  return jnp.where(some, top + jnp.log(jnp.where(some, total, one)), -jnp.inf)


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


class PairLoss:
  """A loss that is a formula over `Pairs`; made by `pair_loss`."""

  def __init__(
    self, formula: Formula, hyperparameters: Hyperparameters
  ) -> None:
    functools.update_wrapper(self, formula)
    self.formula = formula
    self.hyperparameters = hyperparameters

  def __call__(
    self,
    similarities: ArrayLike,
    positives: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
    more: Mapping[str, ArrayLike] | None = None,
    labelled: bool = True,
    settings: Mapping[str, Hashable] | None = None,
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
    if positives is not None:
      mask = as_mask(positives, "positives", array)
      positives = checks.shard_alike("positives", jnp.asarray(mask), array)
    elif labelled and array.shape[-1] < array.shape[-2]:
      raise ValueError(
        "similarities must have at least as many documents as queries where "
        f"positives are the diagonal, got shape {array.shape}. Pass positives=."
      )
    readable = checks.is_concrete(used_with=(array, *others))
    batch = array.shape[:-1]
    rows = None if readable else np.zeros(batch, bool)
    if where is not None:
      mask = as_mask(where, "where", array)
      known = readable and checks.is_concrete(mask)
      rows = np.asarray(mask).any(-1) if known else np.zeros(batch, bool)
      where = checks.shard_alike("where", jnp.asarray(mask), array)
    dtype = checks.compute_dtype(*(x.dtype for x in (array, *others)))
    numbers, static = self.hyperparameters.split(
      self.hyperparameters.complete(values, self.__name__)
    )
    arrays = {
      n: checks.shard_alike(n, x, array, array.ndim - 1) if x.ndim else x
      for n, x in self.hyperparameters.as_arrays(
        numbers, dtype, batch, rows
      ).items()
    }
    static += tuple((settings or {}).items())
    return _evaluate(
      self, static, labelled, (array, *others), positives, where, arrays
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
    positives = prelude.class_ids(s) == prelude.class_ids(s, -2)
  elif positives is None:
    positives = jnp.zeros_like(s, bool)
  # A negative of -inf cannot be retrieved, like one that is dropped.
  keep = positives | (s != -jnp.inf)
  if where is not None:
    keep &= where
    numbers = loss.hyperparameters.placeholders(numbers, where.any(-1))
  zero = jnp.zeros_like(s)
  invalid = keep & ~jnp.isfinite(s)
  for x in others:
    invalid |= keep & ~(x < jnp.inf)
  invalid = invalid.any(-1)
  # The factor is applied to scores and loss, so that all gradients are NaN too.
  factor = prelude.nan_factor(invalid, wide)
  finite = jnp.where(keep & jnp.isfinite(s), s, zero)
  pairs = Pairs(
    jnp.where(keep, finite * factor[..., None], zero),
    positives & keep,
    keep & ~positives,
    tuple(jnp.where(keep, x, zero) for x in others),
    is_diagonal,
  )
  value = loss.formula(pairs, **expanded(numbers), **dict(static))
  counted = pairs.positives if labelled else pairs.keep
  return prelude.drop(value * factor, counted.any(-1) | invalid)


def pair_loss(
  *, domains: Mapping[str, Domain], settings: tuple[str, ...] = ()
) -> Callable[[Formula], PairLoss]:
  """Declares a loss of similarities and positives; a decorator of its formula.

  The loss of a query must be finite and have finite derivatives if the query
  has no positive or no negative, because only its value is then set to 0.

  Args:
    domains: The interval of each hyper-parameter, or ``bool`` or ``int`` for a
      static setting.
    settings: The names of the formula's other static arguments, which the
      public function checks.

  Returns:
    The decorator.
  """

  def decorate(formula: Formula) -> PairLoss:
    found = declared(formula, domains)
    for name in settings:
      found.domains.pop(name)
      found.defaults.pop(name, None)
    return PairLoss(formula, found)

  return decorate
