# SPDX-License-Identifier: Apache-2.0
"""Class sums of dense logits on a CPU, in strips of classes.

A mask inside a reduction, or a masked copy of the logits, costs a CPU as much
as all the rest. So the classes are cut into slices of one width, which are
added entry by entry; a select of the running sum leaves the target out, and
only the slice that remains is reduced.

The exponentials of ordinary logits need no shift, so there is no pass for the
maximum. The sum of the exponentials tells whether that was right: if it is out
of range or NaN in any row, a second branch computes everything again.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core.class_sums import (
  RELATIVE,
  SUMS,
  ClassSums,
  no_classes,
  shift_of,
)

# Up to so many classes every class is a strip of its own.
_FEW = 32
# Fewer strips are faster, more of them take less memory.
_STRIPS, _STRIPS_OF_MANY, _MANY = 8, 40, 16384
# The exponentials are multiplied by this power of 2, so that none underflows
# whose share of the sum is a normal number.
_POWER = 32
# The powers of 2 between which a sum of exponentials needs no shift.
_LOWEST, _HIGHEST = -32, 64


def exp_times_power(z: jax.Array) -> jax.Array:
  """``exp(z) * 2**_POWER`` to 1 ulp; NaN at ``-inf`` and at NaN.

  Far outside the range that `class_sums` accepts it may be any number that is
  out of range, or NaN, or 0 for a very negative logit. The exponential of XLA
  is exact at both ends and takes twice the time.
  """
  if z.dtype != jnp.float32:
    return jnp.exp(z) * 2.0**_POWER + 0.0 * z
  # Adding 1.5 * 2^23 rounds to an integer, which the lowest bits hold.
  magic = np.float32(1.5 * 2**23)
  shifted = z * np.float32(1 / math.log(2)) + magic
  n = lax.bitcast_convert_type(shifted, jnp.int32) - magic.view(np.int32)
  n = jnp.clip(n, -127 - _POWER, 128 - _POWER)
  multiple = n.astype(jnp.float32)
  # log 2 in two parts. The first has few bits, so its multiples are exact.
  r = z - multiple * np.float32(0.693359375)
  r = r - multiple * np.float32(-2.12194440e-4)
  # exp(r) = 1 + r + r^2 p(r) for |r| <= log(2) / 2.
  p = jnp.full_like(r, 1.9875691500e-4)
  for coefficient in (
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
  ):
    p = p * r + np.float32(coefficient)
  power = lax.bitcast_convert_type((n + (127 + _POWER)) << 23, jnp.float32)
  return (p * (r * r) + r + np.float32(1)) * power


class _Strips:
  """The strips of ``z``, rows ``[P, C]`` or ``[P, C, S]``.

  Attributes:
    width: Classes in a strip.
    starts: The first class of each. The last strip starts early instead of
      running over, so its first ``repeated`` classes are in the one before.
  """

  def __init__(self, z: jax.Array, ids: jax.Array) -> None:
    self.z, self.ids = z, ids
    self.dtype = checks.compute_dtype(z.dtype)
    size = z.shape[1]
    if size <= _FEW:
      self.width, self.starts, self.repeated = 1, list(range(size)), 0
      return
    wanted = -(-size // (_STRIPS if size < _MANY else _STRIPS_OF_MANY))
    # Whole vectors. An odd number of them, or else all strips of a power of 2
    # would share a few lines of the cache.
    self.width = 16 * (wanted // 32 * 2 + 1)
    last = (size - 1) // self.width
    self.starts = [k * self.width for k in range(last)] + [size - self.width]
    self.repeated = last * self.width - self.starts[-1]

  def _strip_of_target(self) -> jax.Array:
    """The number of the strip where the target stands in it, else -1."""
    if self.width == 1:
      return self.ids
    last = len(self.starts) - 1
    strip = jnp.minimum(self.ids // self.width, last)
    first = jnp.where(strip == last, self.starts[-1], strip * self.width)
    shape = (self.z.shape[0], self.width, *self.z.shape[2:])
    # A compare with an iota is done in 64 bits, so there is only this one.
    is_place = lax.broadcasted_iota(jnp.int32, shape, 1) == self.ids - first
    return jnp.where(is_place, strip, -1)

  def join(
    self,
    term: Callable[..., jax.Array],
    arrays: tuple[jax.Array, ...] = (),
    operation: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add,
    empty: float = 0.0,
  ) -> jax.Array:
    """Joins the terms of all classes except the target, by rows.

    ``term`` takes a slice of the logits, widened, one of each of ``arrays``,
    and the first class of the slice.
    """
    total: Any = empty
    target = self._strip_of_target()
    for k, start in enumerate(self.starts):
      z, *others = (
        lax.slice_in_dim(a, start, start + self.width, axis=1)
        for a in (self.z, *arrays)
      )
      value = term(z.astype(self.dtype), *others, start)
      is_out = target == k
      if self.repeated and k == len(self.starts) - 1:
        places = lax.broadcasted_iota(jnp.int32, value.shape, 1)
        is_out |= places < self.repeated
      # A select of the terms instead of the sums is slower.
      joined = value if k == 0 else operation(total, value)
      total = jnp.where(is_out, total, joined)
    if self.width == 1:
      return total
    reduction: dict[Any, Callable[..., jax.Array]] = {
      jnp.add: jnp.sum,
      jnp.maximum: jnp.max,
      jnp.minimum: jnp.min,
    }
    return reduction[operation](total, axis=1, keepdims=True)


def _sum_all(array: jax.Array) -> jax.Array:
  if array.shape[1] > _FEW:
    return array.sum(1, keepdims=True)
  total = array[:, :1]
  for k in range(1, array.shape[1]):
    total += array[:, k : k + 1]
  return total


class _Rows:
  """The class sums of rows ``[P, C]`` or ``[P, C, S]``."""

  def __init__(
    self,
    z: jax.Array,
    ids: jax.Array,
    keep: jax.Array | None,
    reads: frozenset[str],
    save: bool,
  ) -> None:
    self.z, self.ids, self.keep = z, ids, keep
    self.reads = reads
    # Where classes are few, computing them again is faster than storing them.
    self.save = save and z.shape[1] > _FEW
    self.strips = _Strips(z, ids)
    self.names = [name for name in SUMS if name in reads]
    self.relative = bool(reads & RELATIVE)
    target = jnp.take_along_axis(z, ids, axis=1, mode="promise_in_bounds")
    self.target = target.astype(self.strips.dtype)
    # Of the target's type, so that it varies over the same mesh axes.
    self.zero = jnp.where(self.target == self.target, 0.0, 0.0).astype(
      self.strips.dtype
    )

  def every(self, condition: jax.Array) -> jax.Array:
    """Whether a condition holds in all kept rows."""
    return jnp.all(condition if self.keep is None else condition | ~self.keep)

  def masked(self, exps: jax.Array) -> jax.Array:
    """0 at targets and in dropped rows."""
    is_out = lax.broadcasted_iota(jnp.int32, self.z.shape, 1) == self.ids
    if self.keep is not None:
      is_out |= ~self.keep
    return jnp.where(is_out, jnp.zeros_like(exps), exps)

  def largest(self) -> jax.Array:
    return self.strips.join(
      lambda z, _: z, operation=jnp.maximum, empty=-jnp.inf
    )

  def first(self, largest: jax.Array) -> jax.Array:
    """The first other class whose logit is the largest."""
    size = self.z.shape[1]

    def class_at(z: jax.Array, start: int) -> jax.Array:
      ids = lax.broadcasted_iota(jnp.int32, z.shape, 1) + start
      return jnp.where(z == largest, ids, size)

    return self.strips.join(class_at, operation=jnp.minimum, empty=size)

  def ordinary(
    self, exps: jax.Array | None = None, total: jax.Array | None = None
  ) -> Any:
    """The sums of finite logits whose exponentials need no shift.

    ``exps`` are the exponentials times ``2**_POWER`` if they are saved,
    ``total`` is the sum of the exponentials.
    """
    sums = no_classes(self.target, self.zero)._replace(
      num_others=self.zero + (self.z.shape[1] - 1)
    )
    scale = self.zero
    if "max" in self.reads:
      sums = sums._replace(max=self.largest())
    if total is not None:
      if "max" not in self.reads:
        # Any shift near it will do.
        sums = sums._replace(max=jnp.log(total))
      scale = jnp.exp(-sums.max) * 2.0**-_POWER

    def term(rule: Any) -> Callable[..., jax.Array]:
      if not rule.relative:
        return lambda z, _: rule.term(z, z)
      if exps is None:
        return lambda z, _: rule.term(z, exp_times_power(z))
      return lambda z, e, _: rule.term(z, e)

    for name in self.names:
      rule = SUMS[name]
      if name == "sum_exp":
        assert total is not None
        field = total * jnp.exp(-sums.max)
      else:
        arrays = (exps,) if rule.relative and exps is not None else ()
        field = self.strips.join(term(rule), arrays)
        field = field * scale if rule.relative else field
      sums = sums._replace(**{name: field})
    return sums, exps, scale

  def careful(self, exps: jax.Array | None = None) -> Any:
    """The sums of any logits; ``exps`` as for `ordinary`, of any values."""
    shift = self.zero

    def others(term: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
      def term_or_zero(z: jax.Array, _: int) -> jax.Array:
        possible = z != -jnp.inf
        value = term(jnp.where(possible, z, jnp.zeros_like(z)))
        return jnp.where(possible, value, jnp.zeros_like(value))

      return term_or_zero

    sums = no_classes(self.target, self.zero)._replace(
      num_others=self.strips.join(others(jnp.ones_like))
    )
    if self.relative or "max" in self.reads:
      sums = sums._replace(max=self.largest())
      shift = shift_of(sums.max)
    for name in self.names:
      rule = SUMS[name]
      if rule.relative:

        def term(z: jax.Array, rule: Any = rule) -> jax.Array:
          return rule.term(z, jnp.exp(z - shift))
      else:

        def term(z: jax.Array, rule: Any = rule) -> jax.Array:
          return rule.term(z, z)

      sums = sums._replace(**{name: self.strips.join(others(term))})
    if exps is not None:
      exps = self.masked(jnp.exp(self.z.astype(self.strips.dtype) - shift))
    return sums, exps, self.zero + 1.0

  def evaluate(self) -> Any:
    if self.relative:
      exps = None
      if self.save:
        exps = self.masked(exp_times_power(self.z.astype(self.strips.dtype)))
        # Else the exponentials are computed for each use.
        exps = lax.optimization_barrier(exps)
        total = _sum_all(exps)
      else:
        total = self.strips.join(lambda z, _: exp_times_power(z))
      # XLA repeats a chain of additions for each use of its result, but not a
      # division. The ids are never negative, which XLA does not know.
      power = jnp.where(self.ids < 0, 1.0, 2.0**_POWER)
      total = total / power.astype(self.strips.dtype)
      in_range = (total >= 2.0**_LOWEST) & (total <= 2.0**_HIGHEST)
      is_ordinary = self.every(in_range)
      out = self.ordinary(exps, total)
    elif self.names:
      out = self.ordinary()
      # An infinite or NaN logit is in every sum.
      field = getattr(out[0], self.names[-1])
      is_ordinary = self.every(jnp.isfinite(field))
    else:
      return self.careful()
    # A loop of one round at most: unlike a branch it works in place.
    return lax.while_loop(
      lambda carry: ~carry[0],
      lambda carry: (jnp.ones_like(carry[0]), self.careful(carry[1][1])),
      (is_ordinary, out),
    )[1]


def class_sums(
  logits: jax.Array,
  ids: jax.Array,
  keep: jax.Array | None,
  *,
  axis: int,
  reads: frozenset[str],
  save: bool,
) -> tuple[ClassSums, tuple[Any, Any, Any]]:
  """The class sums, and if ``save`` what the derivative needs.

  That is `dense_sums.Saved`. Rows outside ``keep`` give any sums, and 0 for
  their exponentials.
  """
  batch = ids.shape
  before, after = math.prod(batch[:axis]), math.prod(batch[axis:])
  row = (before, 1) if after == 1 else (before, 1, after)
  # A reshape that moves nothing, for loops as long as they can be.
  rows = _Rows(
    logits.reshape(before, logits.shape[axis], *row[2:]),
    ids.reshape(row),
    None if keep is None else keep.reshape(row),
    reads,
    save,
  )
  sums, exps, scale = rows.evaluate()
  if save and not rows.save and rows.relative:
    z = rows.z.astype(sums.max.dtype)
    exps = rows.masked(jnp.exp(z - shift_of(sums.max)))
    scale = jnp.ones_like(sums.max)
  max_id = None
  if save and "max" in reads:
    max_id = rows.first(sums.max).reshape(batch)
  sums = jax.tree.map(lambda field: field.reshape(batch), sums)
  if exps is None:
    return sums, (None, None, max_id)
  return sums, (exps.reshape(logits.shape), scale.reshape(batch), max_id)
