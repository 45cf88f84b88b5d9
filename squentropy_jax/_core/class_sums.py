# SPDX-License-Identifier: Apache-2.0
"""The record of sums over the classes other than the labelled one.

The sums of a row are made in blocks of classes: a tile of a linear head, the
classes of one device, the other targets of a sparse target distribution. Each
block gives a `ClassSums`, and `merge` adds two of them. The table `SUMS` says
how each sum is formed, so that every block, merge and derivative follows it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core.elementwise import log, rounding_error, softplus


class ClassSums(NamedTuple):
  """Sums over the other, possible classes of each row.

  All fields have the batch shape; ``target`` may have an axis of targets more.
  A class is possible if it is not masked and its logit is above ``-inf``.

  Attributes:
    target: The labelled logit.
    max: The reference of the exponentials. It is the largest other logit where
      a loss reads it, and ``-inf`` for no class.
    max_id: The class of the largest logit, the first among equals, int32.
    sum_exp: The sum of ``exp(logit - shift)``, see `shift_of`.
    sum_z_exp: The sum of ``logit * exp(logit - shift)``.
    sum: The sum of the logits.
    sum_sq: The sum of their squares.
    num_others: How many other classes are possible.
  """

  target: jax.Array
  max: jax.Array
  max_id: jax.Array
  sum_exp: jax.Array
  sum_z_exp: jax.Array
  sum: jax.Array
  sum_sq: jax.Array
  num_others: jax.Array


class Sum(NamedTuple):
  """How one field of `ClassSums` is formed.

  Attributes:
    term: The summand, from the logit ``z`` and ``e = exp(z - shift)``. The
      logit is finite, and ``e`` is 0 for a class that is left out. It is 0
      where both are 0.
    derivative: The derivative of the summand in ``z`` over ``factor``.
    factor: A constant that is multiplied last, so that nothing overflows.
    relative: Whether the sum is relative to ``exp(shift)``.
    constant: Whether the derivative is not 0 where ``z`` and ``e`` are, so that
      a class that is left out must be masked.
  """

  term: Callable[[jax.Array, jax.Array], jax.Array]
  derivative: Callable[[jax.Array, jax.Array], jax.Array]
  factor: float = 1.0
  relative: bool = False
  constant: bool = False


SUMS: dict[str, Sum] = {
  "sum_exp": Sum(lambda z, e: e, lambda z, e: e, relative=True),
  "sum_z_exp": Sum(lambda z, e: z * e, lambda z, e: e + z * e, relative=True),
  "sum": Sum(lambda z, e: z, lambda z, e: jnp.ones_like(z), constant=True),
  "sum_sq": Sum(lambda z, e: z * z, lambda z, e: z, factor=2.0),
}
RELATIVE = frozenset(name for name, rule in SUMS.items() if rule.relative)


class RowStats(NamedTuple):
  r"""The statistics of one row that a row loss is a formula of.

  They are the labelled logit and sums over the *other* classes: the possible
  classes :math:`k \ne y`, which are neither masked nor of logit ``-inf``. All
  fields have one shape and one dtype. If no other class is possible, the sums
  and the count of others are 0, and the logarithms and the maximum ``-inf``.

  Attributes:
    target: The labelled logit :math:`z_y`.
    log_odds: :math:`\log \sum_{k \ne y} e^{z_k} - z_y`, the log-odds of the
      other classes, :math:`\log \frac{1 - p_y}{p_y}`. It is more accurate than
      ``rest_lse - target``, which cancels where all logits are large.
    rest_lse: :math:`\log \sum_{k \ne y} e^{z_k}`.
    rest_sum: :math:`\sum_{k \ne y} z_k`.
    rest_sq: :math:`\sum_{k \ne y} z_k^2`.
    rest_max: :math:`\max_{k \ne y} z_k`.
    rest_expected: :math:`\sum_{k \ne y} z_k e^{z_k} / \sum_{k \ne y} e^{z_k}`,
      the mean of the other logits under their softmax.
    num_classes: The number of possible classes, with the target.
  """

  target: jax.Array
  log_odds: jax.Array
  rest_lse: jax.Array
  rest_sum: jax.Array
  rest_sq: jax.Array
  rest_max: jax.Array
  rest_expected: jax.Array
  num_classes: jax.Array

  @property
  def log_z(self) -> jax.Array:
    r""":math:`\log \sum_k e^{z_k}`, over all possible classes."""
    impossible = self.target == -jnp.inf
    zero = jnp.zeros_like(self.target)
    finite = jnp.where(impossible, zero, self.target)
    odds = jnp.where(impossible, zero, self.log_odds)
    return jnp.where(impossible, self.rest_lse, finite + softplus(odds))


# The sums that a field of `RowStats` is made of; other fields need none.
NEEDS: dict[str, frozenset[str]] = {
  "log_odds": frozenset({"sum_exp"}),
  "rest_lse": frozenset({"sum_exp"}),
  "rest_sum": frozenset({"sum"}),
  "rest_sq": frozenset({"sum_sq"}),
  # The sum carries NaN, in value and gradient, to all logits.
  "rest_max": frozenset({"max", "sum"}),
  "rest_expected": frozenset({"sum_exp", "sum_z_exp"}),
}
ALL_SUMS = frozenset().union(*NEEDS.values())


def sums_for(fields: frozenset[str]) -> frozenset[str]:
  """The fields of `ClassSums` that these fields of `RowStats` need."""
  return frozenset().union(*(NEEDS.get(name, ()) for name in fields))


def shift_of(largest: jax.Array) -> jax.Array:
  """What is subtracted before exp: a constant, 0 if there is no class."""
  largest = lax.stop_gradient(largest)
  # An infinity stays: inf - inf makes the row NaN.
  return jnp.where(largest == -jnp.inf, jnp.zeros_like(largest), largest)


def shrink_factor(largest: jax.Array, shift: jax.Array) -> jax.Array:
  """Turns sums relative to ``exp(largest)`` into sums relative to the shift."""
  return jnp.exp(lax.stop_gradient(largest) - shift)


def no_classes(target: jax.Array, like: jax.Array) -> ClassSums:
  """The sums over no class, for rows of the shape and dtype of ``like``."""
  zero = jnp.zeros_like(like)
  return ClassSums(
    target=target,
    max=jnp.full_like(like, -jnp.inf),
    max_id=jnp.zeros_like(like, dtype=jnp.int32),
    num_others=zero,
    **dict.fromkeys(SUMS, zero),
  )


def rescaled(sums: ClassSums, largest: jax.Array) -> ClassSums:
  """The same sums with ``largest`` as the reference of the exponentials."""
  factor = shrink_factor(sums.max, shift_of(largest))
  relative = {
    name: getattr(sums, name) * factor
    for name, rule in SUMS.items()
    if rule.relative
  }
  return sums._replace(max=largest, **relative)


def merge(a: ClassSums, b: ClassSums) -> ClassSums:
  """The sums over the classes of both; the target is that of ``a``."""
  largest = jnp.maximum(a.max, b.max)  # NaN if either is.
  x, y = rescaled(a, largest), rescaled(b, largest)
  # The blocks come in the order of their classes, so `a` has the first id.
  is_later = (b.max > a.max) | (jnp.isnan(b.max) & ~jnp.isnan(a.max))
  return x._replace(
    max_id=jnp.where(is_later, b.max_id, a.max_id),
    num_others=a.num_others + b.num_others,
    **{name: getattr(x, name) + getattr(y, name) for name in SUMS},
  )


def row_stats(sums: ClassSums) -> RowStats:
  """Row statistics from class sums; NaN where a row has no defined loss."""
  shift = shift_of(sums.max)
  log_sum = log(sums.sum_exp)
  empty = sums.sum_exp == 0
  # +inf has no softmax; neither has a row without a possible class.
  undefined = (
    (sums.target == jnp.inf)
    | (sums.max == jnp.inf)
    | ((sums.target == -jnp.inf) & (sums.num_others == 0))
  )
  stats = RowStats(
    target=sums.target,
    # A loss near exp(log_odds) turns a rounding error of log_odds into many
    # ulp of the loss, so the sum is rounded once.
    log_odds=(shift - sums.target)
    + (log_sum + rounding_error(shift, sums.target)),
    rest_lse=shift + log_sum,
    rest_sum=sums.sum,
    rest_sq=sums.sum_sq,
    # A maximum need not propagate NaN; the sum does.
    rest_max=jnp.where(jnp.isnan(sums.sum), jnp.nan, sums.max),
    rest_expected=sums.sum_z_exp
    / jnp.where(empty, jnp.ones_like(sums.sum_exp), sums.sum_exp),
    num_classes=sums.num_others + 1.0,
  )
  return set_nan(stats, undefined)


def set_nan(stats: RowStats, invalid: jax.Array) -> RowStats:
  """Makes the value and the gradient of invalid rows NaN."""
  factor = jnp.where(invalid, jnp.nan, 1.0).astype(stats.target.dtype)
  out = RowStats(*(field * factor for field in stats))
  # The gradient of a maximum reaches one logit; that of a sum all of them.
  return out._replace(rest_max=jnp.where(invalid, out.rest_sum, out.rest_max))


def uniform_cross_entropy(stats: RowStats) -> jax.Array:
  """The mean cross-entropy over all possible classes as the target."""
  mean = (stats.target + stats.rest_sum) / stats.num_classes
  return softplus(stats.log_odds) + (stats.target - mean)


def placeholder(stats: RowStats) -> RowStats:
  """Statistics for which every formula is finite, of the shape of ``stats``."""
  one = jnp.ones_like(stats.target)
  return RowStats(*(one,) * len(stats))._replace(
    log_odds=jnp.zeros_like(one), num_classes=stats.num_classes
  )
