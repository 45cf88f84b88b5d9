# SPDX-License-Identifier: Apache-2.0
"""Distribution losses: formulas of all logits of a row and its target.

They are for losses that are no formula over `RowStats`: either the loss is not
the expectation over classes drawn from the target distribution, or the loss of
one class needs each of the other logits.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, Generic, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import class_sums, dense_sums
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.declared import LogScores, Loss, P
from squentropy_jax._core.hyperparameters import (
  Domain,
  Hyperparameters,
  Static,
  declared,
  expanded,
  with_defaults_of,
)

Q = ParamSpec("Q")
# ``formula(logits, target, **hyperparameters)``: the class axis is the last one
# and holds ``-inf`` on impossible classes; a hyper-parameter is a scalar or has
# a class axis of length 1.
Formula = Callable[..., jax.Array]


def first_largest(x: jax.Array) -> jax.Array:
  """Where the first of the largest entries of the last axis is."""
  largest = jnp.argmax(x, axis=-1)
  ids = prelude.class_ids(x)
  return ids == largest[..., None].astype(ids.dtype)


def possible_logits(z: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Which classes are possible, and the logits with 0 for the others."""
  possible = z != -jnp.inf
  return possible, jnp.where(possible, z, jnp.zeros_like(z))


def row_unit(z: jax.Array) -> jax.Array:
  """What to divide each row by so that no square overflows, ``[..., 1]``.

  It is a constant, and 1 unless a finite logit is above 2^40, about 1e12.
  """
  size = jnp.where(jnp.isfinite(z), jnp.abs(z), jnp.zeros_like(z))
  largest = size.max(-1, keepdims=True) * 2.0**-40
  return jax.lax.stop_gradient(jnp.maximum(largest, 1.0))


def per_row(number: jax.Array) -> jax.Array:
  """A hyper-parameter without its class axis of length 1."""
  return number[..., 0] if number.ndim else number


class Target(NamedTuple):
  """The labels of rows: class ids, or distributions over the classes.

  The functions take the logits of the rows, ``[..., C]``. What has a value for
  each class that may be the target has the shape ``[..., T]``: T is 1 for
  class ids and C for distributions.

  Attributes:
    ids: Class ids ``[...]``, or None.
    probabilities: Target distributions ``[..., C]``, or None.
  """

  ids: jax.Array | None
  probabilities: jax.Array | None

  def distribution(self, z: jax.Array) -> jax.Array:
    """The target distributions ``[..., C]``, one-hot for class ids."""
    if self.ids is None:
      assert self.probabilities is not None
      return self.probabilities
    return (prelude.class_ids(z) == self.ids[..., None]).astype(z.dtype)

  def classes(self, z: jax.Array) -> jax.Array:
    """The class ids ``[..., T]`` that may be the target."""
    return prelude.class_ids(z) if self.ids is None else self.ids[..., None]

  def expected(
    self, z: jax.Array, loss: Callable[[RowStats], jax.Array]
  ) -> jax.Array:
    """The expectation of ``loss(stats)`` over the classes of the target.

    Args:
      z: Logits ``[..., C]``.
      loss: The loss ``[..., T]`` of statistics ``[..., T]``, one set for each
        class taken as the target.

    Returns:
      The expected loss ``[...]``: for class ids that of the labelled class.
    """
    if self.ids is not None:
      sums = dense_sums.class_sums(
        z, self.ids, axis=z.ndim - 1, keep=None, reads=class_sums.ALL_SUMS
      )
      stats = class_sums.row_stats(sums)
      return loss(RowStats(*(field[..., None] for field in stats)))[..., 0]
    p = self.probabilities
    assert p is not None
    stats = class_sums.row_stats(all_class_sums(z))
    # Probability 0 adds exactly 0 where the class is impossible or its loss
    # infinite: it is evaluated on placeholders there, or 0 * inf would be NaN.
    infinite = jnp.isinf(jax.lax.stop_gradient(loss(stats)))
    skip = (p == 0) & ((z == -jnp.inf) | infinite)
    placeholder = class_sums.placeholder(stats)
    stats = RowStats(
      *(jnp.where(skip, a, b) for a, b in zip(placeholder, stats, strict=True))
    )
    return jnp.where(skip, jnp.zeros_like(z), p * loss(stats)).sum(-1)

  def sum_others(
    self, z: jax.Array, terms: jax.Array, is_largest: jax.Array
  ) -> jax.Array:
    """The sums ``[..., T]`` of the other, possible classes' ``terms``.

    ``is_largest`` marks one largest term of each row, which is never
    subtracted.
    """
    terms = jnp.where(z == -jnp.inf, jnp.zeros_like(terms), terms)
    if self.ids is None:
      return leave_one_out(terms, is_largest)
    is_target = prelude.class_ids(terms) == self.ids[..., None]
    zero = jnp.zeros_like(terms)
    return jnp.where(is_target, zero, terms).sum(-1, keepdims=True)

  def map_classes(
    self,
    z: jax.Array,
    stats: RowStats,
    loss: Callable[[RowStats, jax.Array], jax.Array],
  ) -> jax.Array:
    """``loss(stats, others)`` of one class of the target after the other.

    ``others`` ``[..., C]`` says which classes are possible and not the target.
    No array has an entry for each pair of classes.
    """

    def of_class(one: tuple[RowStats, jax.Array]) -> jax.Array:
      stats, ids = one
      is_target = prelude.class_ids(z) == ids[..., None]
      return loss(stats, (z != -jnp.inf) & ~is_target)

    arguments = (stats, self.classes(z))
    if self.ids is not None:
      return of_class(jax.tree.map(lambda x: x[..., 0], arguments))[..., None]
    each = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), arguments)
    return jnp.moveaxis(jax.lax.map(jax.checkpoint(of_class), each), 0, -1)


def leave_one_out(x: jax.Array, is_largest: jax.Array) -> jax.Array:
  """For every entry the sum of the others; never subtracts the largest."""
  zero = jnp.zeros_like(x)
  others = jnp.where(is_largest, zero, x).sum(-1, keepdims=True)
  return jnp.where(is_largest, others, x.sum(-1, keepdims=True) - x)


def all_class_sums(z: jax.Array) -> class_sums.ClassSums:
  """The sums with every class taken as the target, in one pass over the row."""
  zero = jnp.zeros_like(z)
  possible, finite = possible_logits(z)

  is_top = first_largest(z)
  top = jnp.where(is_top & possible, z, zero).sum(-1, keepdims=True)
  others = jnp.where(is_top, -jnp.inf, z)
  is_second = first_largest(others)
  second = jnp.where(is_second & possible & ~is_top, z, zero)
  second = second.sum(-1, keepdims=True)
  num_others = possible.sum(-1, keepdims=True, dtype=jnp.int32).astype(z.dtype)
  num_others = num_others - possible.astype(z.dtype)
  largest = jnp.where(is_top, second, jnp.broadcast_to(top, z.shape))
  # Relative to the largest other logit: the top class needs a sum of its own,
  # the other classes share one that holds the top and is therefore at least 1.
  shared = jnp.exp(z - jax.lax.stop_gradient(top))
  alone = jnp.exp(others - jax.lax.stop_gradient(second))
  is_widest = first_largest(jnp.abs(finite))
  sums = {}
  for name, rule in class_sums.SUMS.items():
    if rule.relative:
      of_top = rule.term(finite, alone).sum(-1, keepdims=True)
      of_others = leave_one_out(rule.term(finite, shared), is_top)
      sums[name] = jnp.where(is_top, of_top, of_others)
    else:
      terms = jnp.where(possible, rule.term(finite, shared), zero)
      sums[name] = leave_one_out(terms, is_widest)
  return class_sums.ClassSums(
    target=z,
    max=jnp.where(num_others > 0, largest, -jnp.inf),
    max_id=jnp.zeros(z.shape, jnp.int32),
    num_others=num_others,
    **sums,
  )


class DistributionLoss(Loss[P], Generic[P]):
  """A loss that is a formula of all logits of a row and its target."""

  def __init__(
    self,
    function: Callable[P, jax.Array],
    formula: Formula,
    hyperparameters: Hyperparameters,
    log_scores: LogScores | None,
  ) -> None:
    super().__init__(function, hyperparameters, log_scores)
    self.formula = formula

  def public(self, function: Callable[Q, jax.Array]) -> "DistributionLoss[Q]":
    """The loss with the signature, docstring and defaults of ``function``."""
    return DistributionLoss(
      function,
      self.formula,
      with_defaults_of(self.hyperparameters, function),
      self._log_scores,
    )

  def evaluate(
    self,
    logits: ArrayLike,
    labels: ArrayLike | None,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    more: Mapping[str, ArrayLike] | None = None,
    constants: tuple[jax.Array, ...] = (),
    name: str = "logits",
    **values: Any,
  ) -> jax.Array:
    """The loss of each example, through the prelude.

    Args:
      logits: Scores, called ``name`` in errors.
      labels: Class ids, target distributions, or None for no labels.
      axis: The class axis.
      where: Which examples or classes to keep.
      more: Other scores by their names, whose trailing axes are those of the
        logits; they are masked and widened alike.
      constants: Arrays that the formula gets as they are.
      name: The name of the argument ``logits``.
      **values: Hyper-parameters.

    Returns:
      ``formula(logits, target, *more, *constants, **values)``, 0 for dropped
      and NaN for invalid rows.
    """
    arguments, axis, static = prelude.checked(
      logits,
      labels,
      axis=axis,
      where=where,
      hyperparameters=self.hyperparameters,
      values=self.hyperparameters.complete(values, self.__name__),
      more=more,
      name=name,
    )
    return _evaluate(self, axis, static, arguments, constants)


# Compiled here, so that a call outside jit is one dispatch; inlined in a trace.
@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _evaluate(
  loss: DistributionLoss[Any],
  axis: int,
  static: Static,
  arguments: prelude.Arguments,
  constants: tuple[jax.Array, ...],
) -> jax.Array:
  ready = prelude.prepare(arguments, axis, loss.hyperparameters)
  invalid = ready.invalid | jnp.any(ready.logits == jnp.inf, axis=-1)
  # Invalid rows are NaN before and after: all of their gradients are NaN too.
  factor = prelude.nan_factor(invalid, ready.logits.dtype)
  impossible = ready.logits == -jnp.inf
  z = jnp.where(impossible, ready.logits, ready.logits * factor[..., None])
  target = Target(ready.ids, ready.probabilities)
  value = loss.formula(
    z,
    target,
    *ready.more,
    *constants,
    **expanded(ready.numbers),
    **dict(static),
  )
  return prelude.drop(value * factor, ready.keep)


def distribution_loss(
  *,
  domains: Mapping[str, Domain] | None = None,
  log_probs: LogScores | None = None,
) -> Callable[[Formula], DistributionLoss[Any]]:
  """Declares a distribution loss; a decorator of its formula.

  Args:
    domains: The interval of each hyper-parameter, or ``bool`` or ``int`` for a
      static setting.
    log_probs: ``log_probs(logits, **hyperparameters)``, the class axis last,
      gives scores whose softmax is what a model trained so predicts. By
      default that is the softmax of the logits.

  Returns:
    The decorator.
  """

  def decorate(formula: Formula) -> DistributionLoss[Any]:
    def call(
      logits: ArrayLike,
      labels: ArrayLike,
      *,
      axis: int = -1,
      where: ArrayLike | None = None,
      **values: Any,
    ) -> jax.Array:
      return loss.evaluate(logits, labels, axis=axis, where=where, **values)

    functools.update_wrapper(call, formula)
    loss: DistributionLoss[Any] = DistributionLoss(
      call, formula, declared(formula, domains), log_probs
    )
    return loss

  return decorate
