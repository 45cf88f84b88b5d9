# SPDX-License-Identifier: Apache-2.0
"""Class sums of dense logits on a CPU, in strips of classes.

On a CPU, a mask inside a reduction, or a masked copy of the logits, takes as
much time as the other work together. So the classes are divided into *strips*
of equal width, which are added entry by entry. Where an entry is the target, a
select keeps the previous sum. Only the resulting strip is reduced.

The exponentials of moderate logits need no shift, so the first attempt does not
compute the maximum. The sum of the exponentials shows whether this was valid.
If it is out of range or NaN in any row, all sums are computed again with a
shift.
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

# Up to this number of classes, each class is a separate strip.
_FEW = 32
# The number of strips for fewer and for more than _MANY classes. Fewer strips
# are faster, more strips take less memory.
_STRIPS, _STRIPS_OF_MANY, _MANY = 8, 40, 16384
# The exponentials are multiplied by 2**_POWER. Without it an exponential could
# underflow although its share of the sum is a normal number.
_POWER = 32
# A sum of exponentials needs no shift if it is between these powers of 2.
_LOWEST, _HIGHEST = -32, 64


def exp_times_power(z: jax.Array) -> jax.Array:
  """Computes ``exp(z) * 2**_POWER`` to 1 ulp; NaN at ``-inf`` and at NaN.

  Outside the range that `class_sums` accepts, the result may be NaN, any number
  that is out of range too, or 0 for a very negative logit. The exponential of
  XLA is correct there, but takes twice the time.
  """
  if z.dtype != jnp.float32:
    return jnp.exp(z) * 2.0**_POWER + 0.0 * z
  # Adding 1.5 * 2^23 rounds to an integer, which is then in the lowest bits.
  magic = np.float32(1.5 * 2**23)
  shifted = z * np.float32(1 / math.log(2)) + magic
  n = lax.bitcast_convert_type(shifted, jnp.int32) - magic.view(np.int32)
  n = jnp.clip(n, -127 - _POWER, 128 - _POWER)
  multiple = n.astype(jnp.float32)
  # log 2 is the sum of these two constants. The first one has few bits, so its
  # multiples are exact.
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
    width: The number of classes in a strip.
    starts: The first class of each strip. All strips have the same width, so
      the last one overlaps the one before.
    repeated: The number of classes in this overlap.
  """

  def __init__(self, z: jax.Array, ids: jax.Array) -> None:
    self.z, self.ids = z, ids
    self.dtype = checks.compute_dtype(z.dtype)
    size = z.shape[1]
    if size <= _FEW:
      self.width, self.starts, self.repeated = 1, list(range(size)), 0
      return
    wanted = -(-size // (_STRIPS if size < _MANY else _STRIPS_OF_MANY))
    # The width is an odd number of vectors of 16 numbers. With a power of 2,
    # all strips would be mapped to the same few lines of the cache.
    self.width = 16 * (wanted // 32 * 2 + 1)
    last = (size - 1) // self.width
    self.starts = [k * self.width for k in range(last)] + [size - self.width]
    self.repeated = last * self.width - self.starts[-1]

  def _strip_of_target(self) -> jax.Array:
    """Returns, for each place in a strip, the strip whose target is there.

    It is -1 where no strip has the target.
    """
    if self.width == 1:
      return self.ids
    last = len(self.starts) - 1
    strip = jnp.minimum(self.ids // self.width, last)
    first = jnp.where(strip == last, self.starts[-1], strip * self.width)
    shape = (self.z.shape[0], self.width, *self.z.shape[2:])
    # XLA compares an iota in 64 bits, which is slow, so this is done only once.
    is_place = lax.broadcasted_iota(jnp.int32, shape, 1) == self.ids - first
    return jnp.where(is_place, strip, -1)

  def join(
    self,
    term: Callable[..., jax.Array],
    arrays: tuple[jax.Array, ...] = (),
    operation: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add,
    empty: float = 0.0,
  ) -> jax.Array:
    """Reduces the terms of all classes except the target, for each row.

    ``term(z, *slices, start)`` gets a strip of the widened logits, the same
    strip of each of ``arrays``, and the first class of the strip.
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
      # The select is applied to the sum, because one of the terms is slower.
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
    # With few classes, it is faster to compute exponentials again than to store
    # them.
    self.save = save and z.shape[1] > _FEW
    self.strips = _Strips(z, ids)
    self.names = [name for name in SUMS if name in reads]
    self.relative = bool(reads & RELATIVE)
    target = jnp.take_along_axis(z, ids, axis=1, mode="promise_in_bounds")
    self.target = target.astype(self.strips.dtype)
    # Computed from the target, so that it varies over the same mesh axes.
    self.zero = jnp.where(self.target == self.target, 0.0, 0.0).astype(
      self.strips.dtype
    )

  def every(self, condition: jax.Array) -> jax.Array:
    """Returns whether a condition holds in all kept rows."""
    return jnp.all(condition if self.keep is None else condition | ~self.keep)

  def masked(self, exps: jax.Array) -> jax.Array:
    """Sets the exponentials of targets and of dropped rows to 0."""
    is_out = lax.broadcasted_iota(jnp.int32, self.z.shape, 1) == self.ids
    if self.keep is not None:
      is_out |= ~self.keep
    return jnp.where(is_out, jnp.zeros_like(exps), exps)

  def largest(self) -> jax.Array:
    return self.strips.join(
      lambda z, _: z, operation=jnp.maximum, empty=-jnp.inf
    )

  def ordinary(
    self, exps: jax.Array | None = None, total: jax.Array | None = None
  ) -> Any:
    """Computes the sums of finite logits whose exponentials need no shift.

    ``exps`` are the exponentials times ``2**_POWER``, or None if they are not
    saved. ``total`` is the sum of the exponentials.
    """
    sums = no_classes(self.target, self.zero)._replace(
      num_others=self.zero + (self.z.shape[1] - 1)
    )
    scale = self.zero
    if "max" in self.reads:
      sums = sums._replace(max=self.largest())
    if total is not None:
      if "max" not in self.reads:
        # Any shift close to the maximum is good enough.
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
    """Computes the sums of any logits, with a shift.

    ``exps`` are those of `ordinary`, but their values are not used.
    """
    shift = self.zero

    def others(term: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
      def term_or_zero(z: jax.Array, _: int) -> jax.Array:
        possible = z != -jnp.inf
        value = term(jnp.where(possible, z, jnp.zeros_like(z)))
        return jnp.where(possible, value, jnp.zeros_like(value))

      return term_or_zero

    # Even if no formula reads the maximum: +inf makes the row NaN.
    sums = no_classes(self.target, self.zero)._replace(
      num_others=self.strips.join(others(jnp.ones_like)), max=self.largest()
    )
    if self.relative:
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
        # Without the barrier, XLA computes the exponentials again for each use.
        exps = lax.optimization_barrier(exps)
        total = _sum_all(exps)
      else:
        total = self.strips.join(lambda z, _: exp_times_power(z))
      # XLA computes a chain of additions again for each use of its result, but
      # not a division. The ids are never negative, but XLA does not know this,
      # so it cannot simplify the division.
      power = jnp.where(self.ids < 0, 1.0, 2.0**_POWER)
      total = total / power.astype(self.strips.dtype)
      in_range = (total >= 2.0**_LOWEST) & (total <= 2.0**_HIGHEST)
      is_ordinary = self.every(in_range)
      out = self.ordinary(exps, total)
    elif self.names:
      out = self.ordinary()
      # An infinite or NaN logit makes every sum infinite or NaN.
      field = getattr(out[0], self.names[-1])
      is_ordinary = self.every(jnp.isfinite(field))
    else:
      return self.careful()
    # The loop runs at most once. XLA can run it in place, unlike a `lax.cond`.
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
) -> tuple[ClassSums, tuple[Any, Any]]:
  """Computes the class sums, and the arrays that the derivative needs.

  These arrays are the fields of `dense_sums.Saved`. They are only meaningful
  with ``save``. The sums of rows outside ``keep`` are arbitrary, and their
  exponentials are 0.
  """
  batch = ids.shape
  before, after = math.prod(batch[:axis]), math.prod(batch[axis:])
  row = (before, 1) if after == 1 else (before, 1, after)
  # This reshape moves no data, and makes the inner loops as long as possible.
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
  sums = jax.tree.map(lambda field: field.reshape(batch), sums)
  if exps is None:
    return sums, (None, None)
  return sums, (exps.reshape(logits.shape), scale.reshape(batch))
