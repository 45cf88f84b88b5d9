# SPDX-License-Identifier: Apache-2.0
"""Distribution losses: formulas of all logits of a row and its target.

They are for losses that cannot be computed from `RowStats`. Either the loss of
a target distribution is not the expected loss of a class drawn from it, or the
loss of one class needs each of the other logits.
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
# ``formula(logits, target, **hyperparameters)``: the class axis of the logits
# is the last one, and impossible classes have the logit ``-inf``. A
# hyper-parameter is a scalar, or has a class axis of length 1.
Formula = Callable[..., jax.Array]


def first_largest(x: jax.Array) -> jax.Array:
  """Marks the first of the largest entries of the last axis."""
  largest = jnp.argmax(x, axis=-1)
  ids = prelude.class_ids(x)
  return ids == largest[..., None].astype(ids.dtype)


def possible_logits(z: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns which classes are possible, and logits that are 0 elsewhere."""
  possible = z != -jnp.inf
  return possible, jnp.where(possible, z, jnp.zeros_like(z))


def row_unit(z: jax.Array) -> jax.Array:
  """Returns divisors ``[..., 1]`` of rows, so that no square overflows.

  A divisor is a constant. It is 1 unless the absolute value of a finite logit
  is above 2^40, about 1e12.
  """
  size = jnp.where(jnp.isfinite(z), jnp.abs(z), jnp.zeros_like(z))
  largest = size.max(-1, keepdims=True) * 2.0**-40
  return jax.lax.stop_gradient(jnp.maximum(largest, 1.0))


def per_row(number: jax.Array) -> jax.Array:
  """Removes the class axis of length 1 of a hyper-parameter."""
  return number[..., 0] if number.ndim else number


class Target(NamedTuple):
  """The labels of rows: class ids, or distributions over the classes.

  The methods take the logits of the rows, ``[..., C]``. Arrays of shape
  ``[..., T]`` have one value for each class that may be the target: T is 1 for
  class ids and C for distributions.

  Attributes:
    ids: Class ids ``[...]``, or None.
    probabilities: Target distributions ``[..., C]``, or None.
  """

  ids: jax.Array | None
  probabilities: jax.Array | None

  def distribution(self, z: jax.Array) -> jax.Array:
    """Returns target distributions ``[..., C]``, one-hot for class ids."""
    if self.ids is None:
      assert self.probabilities is not None
      return self.probabilities
    return (prelude.class_ids(z) == self.ids[..., None]).astype(z.dtype)

  def classes(self, z: jax.Array) -> jax.Array:
    """Returns the class ids ``[..., T]`` that may be the target."""
    return prelude.class_ids(z) if self.ids is None else self.ids[..., None]

  def expected(
    self, z: jax.Array, loss: Callable[[RowStats], jax.Array]
  ) -> jax.Array:
    """Computes the expectation of ``loss(stats)`` under the target.

    Args:
      z: Logits ``[..., C]``.
      loss: Computes a loss ``[..., T]`` from statistics ``[..., T]``, which are
        the row statistics with each class as the target.

    Returns:
      The expected loss ``[...]``. For class ids it is the loss of that class.
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
    # A class of probability 0 adds exactly 0, even if it is impossible or its
    # loss infinite. There the loss of placeholders avoids 0 * inf = NaN.
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
    """Computes sums ``[..., T]`` of ``terms`` over other, possible classes.

    ``is_largest`` marks one largest term of each row. It is never subtracted
    from a sum, which avoids cancellation.
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
    """Computes ``loss(stats, others)`` for each class that may be the target.

    ``others`` ``[..., C]`` marks the possible classes other than the target.
    The classes are processed in a loop, so that no array has an entry for each
    pair of classes.
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
  """Computes for every entry the sum of the other entries of the last axis.

  The largest entry is never subtracted, which avoids cancellation.
  """
  zero = jnp.zeros_like(x)
  others = jnp.where(is_largest, zero, x).sum(-1, keepdims=True)
  return jnp.where(is_largest, others, x.sum(-1, keepdims=True) - x)


def all_class_sums(z: jax.Array) -> class_sums.ClassSums:
  """Computes the class sums with each class as the target.

  It takes one pass over the row, not one for each class.
  """
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
  # Exponentials are relative to the largest other logit. For the top class that
  # is the second largest, so the top class needs its own sum. The other classes
  # share a sum, which contains the top class and is therefore at least 1.
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
    """Returns the loss with the signature and docstring of ``function``.

    The hyper-parameters get the defaults in that signature.
    """
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
    """Checks and prepares the arguments and computes the loss of each example.

    Args:
      logits: Scores, called ``name`` in errors.
      labels: Class ids, target distributions, or None for no labels.
      axis: The class axis.
      where: Which examples or classes to keep.
      more: Other scores by their names. Their trailing axes are those of the
        logits, and they are masked and widened like the logits.
      constants: Arrays that the formula gets unchanged.
      name: The name of the argument ``logits`` in error messages.
      **values: Hyper-parameters.

    Returns:
      ``formula(logits, target, *more, *constants, **values)``. Dropped rows
      are 0 and invalid rows NaN.
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


# Compiled, so that a call outside jit is one dispatch. Inlined inside a trace.
@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _evaluate(
  loss: DistributionLoss[Any],
  axis: int,
  static: Static,
  arguments: prelude.Arguments,
  constants: tuple[jax.Array, ...],
) -> jax.Array:
  ready = prelude.prepare(arguments, axis, loss.hyperparameters)
  # Neither +inf nor NaN has a softmax.
  invalid = ready.invalid | jnp.any(~(ready.logits < jnp.inf), axis=-1)
  # The factor is applied to logits and loss, so that all gradients are NaN too.
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
    log_probs: ``log_probs(logits, **hyperparameters)`` takes logits with the
      class axis last. It returns scores, and their softmax is the distribution
      that a model trained with the loss predicts. By default these scores are
      the logits.

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
