# SPDX-License-Identifier: Apache-2.0
"""Sums over the classes of a row, other than the labelled one.

The sums of a row are computed in blocks of classes. A block is a tile of a
linear head, the classes of one device, or the other targets of a sparse target
distribution. Each block gives a `ClassSums`, and `merge` adds two of them. The
table `SUMS` defines the term of each sum. The code for blocks, merges and
derivatives follows this table.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core.elementwise import log, rounding_error, softplus


class ClassSums(NamedTuple):
  """Sums over the other, possible classes of each row.

  All fields have the batch shape. ``target`` may have an additional axis of
  targets. A class is possible if it is not masked and its logit is above
  ``-inf``.

  Attributes:
    target: The logit of the labelled class.
    max: The logit from which ``shift`` is computed, see `shift_of`. If a loss
      reads this field, it is the largest other logit. It is ``-inf`` if there
      is no other class.
    max_id: The class of the largest other logit, the first among equals, int32.
    sum_exp: The sum of ``exp(logit - shift)``, see `shift_of`.
    sum_z_exp: The sum of ``logit * exp(logit - shift)``.
    sum: The sum of the logits.
    sum_sq: The sum of the squares of the logits.
    num_others: The number of other classes that are possible.
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
    term: The summand, a function of the logit ``z`` and ``e = exp(z - shift)``.
      ``z`` is finite, and ``e`` is 0 for a class that is left out. The summand
      is 0 if both are 0.
    derivative: The derivative of the summand in ``z``, divided by ``factor``.
    factor: A constant that is multiplied last, so that nothing overflows.
    relative: Whether the sum must be multiplied by ``exp(shift)`` to get the
      sum without a shift.
    constant: Whether the derivative is not 0 for ``z`` and ``e`` of 0. If so, a
      class that is left out must be masked.
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

  They are the logit of the labelled class and sums over the *other* classes:
  the classes :math:`k \ne y` that are possible. A class is possible if it is
  neither masked nor has a logit of ``-inf``. All fields have the same shape and
  dtype. If no other class is possible, the sums are 0, the logarithms and the
  maximum are ``-inf``, and ``num_classes`` is 1.

  Attributes:
    target: The logit :math:`z_y` of the labelled class.
    log_odds: :math:`\log \sum_{k \ne y} e^{z_k} - z_y`, the log-odds of the
      other classes, :math:`\log \frac{1 - p_y}{p_y}`. It is more accurate than
      ``rest_lse - target``, which cancels where all logits are large.
    rest_lse: :math:`\log \sum_{k \ne y} e^{z_k}`.
    rest_sum: :math:`\sum_{k \ne y} z_k`.
    rest_sq: :math:`\sum_{k \ne y} z_k^2`.
    rest_max: :math:`\max_{k \ne y} z_k`.
    rest_expected: :math:`\sum_{k \ne y} z_k e^{z_k} / \sum_{k \ne y} e^{z_k}`,
      the mean of the other logits, weighted by their softmax.
    num_classes: The number of possible classes, including the target.
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
    # From the larger of both parts: a sum of -40 and 41.4 would cancel.
    below = self.log_odds > 0
    first = jnp.where(below, self.rest_lse, self.target)
    return first + softplus(jnp.where(below, -self.log_odds, self.log_odds))


# The sums from which a field of `RowStats` is computed. Other fields need none.
NEEDS: dict[str, frozenset[str]] = {
  "log_odds": frozenset({"sum_exp"}),
  "rest_lse": frozenset({"sum_exp"}),
  "rest_sum": frozenset({"sum"}),
  "rest_sq": frozenset({"sum_sq"}),
  # A maximum need not propagate a NaN. The sum does, to all gradients too.
  "rest_max": frozenset({"max", "sum"}),
  "rest_expected": frozenset({"sum_exp", "sum_z_exp"}),
}
ALL_SUMS = frozenset().union(*NEEDS.values())


def sums_for(fields: frozenset[str]) -> frozenset[str]:
  """Returns the fields of `ClassSums` that fields of `RowStats` need."""
  return frozenset().union(*(NEEDS.get(name, ()) for name in fields))


def shift_of(largest: jax.Array) -> jax.Array:
  """Returns the constant that is subtracted before exp; 0 if no class is."""
  largest = lax.stop_gradient(largest)
  # +inf is not replaced, because inf - inf makes the row NaN, as it should be.
  return jnp.where(largest == -jnp.inf, jnp.zeros_like(largest), largest)


def shrink_factor(largest: jax.Array, shift: jax.Array) -> jax.Array:
  """Returns the factor that converts a sum to another shift.

  The sum is relative to ``exp(largest)``, the product to ``exp(shift)``.
  """
  return jnp.exp(lax.stop_gradient(largest) - shift)


def no_classes(target: jax.Array, like: jax.Array) -> ClassSums:
  """Returns the sums over no class, in the shape and dtype of ``like``."""
  zero = jnp.zeros_like(like)
  return ClassSums(
    target=target,
    max=jnp.full_like(like, -jnp.inf),
    max_id=jnp.zeros_like(like, dtype=jnp.int32),
    num_others=zero,
    **dict.fromkeys(SUMS, zero),
  )


def rescaled(sums: ClassSums, largest: jax.Array) -> ClassSums:
  """Returns the same sums, with the shift of ``largest``."""
  factor = shrink_factor(sums.max, shift_of(largest))
  relative = {
    name: getattr(sums, name) * factor
    for name, rule in SUMS.items()
    if rule.relative
  }
  return sums._replace(max=largest, **relative)


def merge(a: ClassSums, b: ClassSums) -> ClassSums:
  """Adds the sums of two blocks of classes; the target is that of ``a``."""
  largest = jnp.maximum(a.max, b.max)  # NaN if either is.
  x, y = rescaled(a, largest), rescaled(b, largest)
  # `a` has the smaller class ids, so its id is the first among equal logits.
  is_later = (b.max > a.max) | (jnp.isnan(b.max) & ~jnp.isnan(a.max))
  return x._replace(
    max_id=jnp.where(is_later, b.max_id, a.max_id),
    num_others=a.num_others + b.num_others,
    **{name: getattr(x, name) + getattr(y, name) for name in SUMS},
  )


def row_stats(sums: ClassSums) -> RowStats:
  """Computes row statistics; NaN for rows without a defined loss."""
  shift = shift_of(sums.max)
  log_sum = log(sums.sum_exp)
  empty = sums.sum_exp == 0
  # A row with a logit of +inf, or without a possible class, has no softmax.
  undefined = (
    (sums.target == jnp.inf)
    | (sums.max == jnp.inf)
    | ((sums.target == -jnp.inf) & (sums.num_others == 0))
  )
  stats = RowStats(
    target=sums.target,
    # If the loss is about exp(log_odds), an error of 1 ulp in log_odds is an
    # error of many ulp in the loss. So the rounding error is added back.
    log_odds=(shift - sums.target)
    + (log_sum + rounding_error(shift, sums.target)),
    rest_lse=shift + log_sum,
    rest_sum=sums.sum,
    rest_sq=sums.sum_sq,
    # A maximum need not propagate a NaN, but a sum does.
    rest_max=jnp.where(jnp.isnan(sums.sum), jnp.nan, sums.max),
    rest_expected=sums.sum_z_exp
    / jnp.where(empty, jnp.ones_like(sums.sum_exp), sums.sum_exp),
    num_classes=sums.num_others + 1.0,
  )
  return set_nan(stats, undefined)


def set_nan(stats: RowStats, invalid: jax.Array) -> RowStats:
  """Sets the value and the gradient of invalid rows to NaN."""
  factor = jnp.where(invalid, jnp.nan, 1.0).astype(stats.target.dtype)
  out = RowStats(*(field * factor for field in stats))
  # The gradient of a maximum is NaN for one logit only, that of a sum for all.
  return out._replace(rest_max=jnp.where(invalid, out.rest_sum, out.rest_max))


def uniform_cross_entropy(stats: RowStats) -> jax.Array:
  """Computes the mean cross-entropy over all possible classes as target."""
  mean = (stats.target + stats.rest_sum) / stats.num_classes
  return softplus(stats.log_odds) + (stats.target - mean)


def placeholder(stats: RowStats) -> RowStats:
  """Statistics for which every formula is finite, of the shape of ``stats``."""
  one = jnp.ones_like(stats.target)
  return RowStats(*(one,) * len(stats))._replace(
    log_odds=jnp.zeros_like(one), num_classes=stats.num_classes
  )
