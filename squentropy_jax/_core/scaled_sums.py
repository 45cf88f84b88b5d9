# SPDX-License-Identifier: Apache-2.0
"""Sums of exponentials as pairs of a mantissa and an exponent.

`squentropy_jax.special` has the public functions. Arrays here are float32 or
float64. An exponent is an integer, or ``-inf`` for the number 0.
"""

import functools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core import checks, varying

Pair = tuple[jax.Array, jax.Array]

# log(2) in three parts: the first two have so few bits that their products with
# half of the bits of an exponent are exact.
_LOG_2 = {
  "float32": (0.693115234375, 3.1948089599609375e-05, -1.904654299957768e-09),
  "float64": (
    0.6931471824645996,
    -1.904654323148236e-09,
    2.3190468138462996e-17,
  ),
}
# The upper half of the bits of an exponent.
_UPPER = {"float32": -(2**12), "float64": -(2**27)}
# The largest block of pass 1 on a CPU: 256 KiB of float32, which a cache holds.
BLOCK = 2**16
# So many numbers are added one by one.
_GROUP = 4


def power_of_2(exponent: jax.Array) -> jax.Array:
  """Computes ``2**exponent`` exactly, for integers up to 0.

  Below the smallest normal number, which XLA may flush to 0, it is 0.
  """
  dtype = exponent.dtype
  info = jnp.finfo(dtype)
  bits = jnp.int64 if dtype == jnp.float64 else jnp.int32
  bias = -info.minexp + 1
  # The exponent field of a float. XLA's exp2 of an integer is not exact.
  field = (jnp.maximum(exponent, -bias) + bias).astype(bits)
  return lax.bitcast_convert_type(field << info.nmant, dtype)


def _shrink(pair: Pair, exponent: jax.Array) -> jax.Array:
  """The mantissa for an exponent that is at least the one of the pair."""
  # -inf minus -inf would be NaN.
  lowest = jnp.finfo(exponent.dtype).min
  return pair[0] * power_of_2(pair[1] - jnp.maximum(exponent, lowest))


def add(a: Pair, b: Pair) -> Pair:
  exponent = jnp.maximum(a[1], b[1])
  return _shrink(a, exponent) + _shrink(b, exponent), exponent


@jax.custom_jvp
def exp(x: jax.Array) -> Pair:
  info = jnp.finfo(x.dtype)
  name = x.dtype.name
  first, second, third = _LOG_2[name]
  bits = jnp.int64 if name == "float64" else jnp.int32
  n = jnp.round(x * (1 / 0.6931471805599453))
  n = jnp.clip(n, info.min, info.max)
  # Each product of halves is exact, and so is what remains of x after it.
  upper = lax.bitcast_convert_type(
    lax.bitcast_convert_type(n, bits) & _UPPER[name], x.dtype
  )
  lower = n - upper
  t = ((x - upper * first) - lower * first) - upper * second
  t = (t - lower * second) - n * third
  # Exponents above 2^24 are not all floats, so t may be large. Logits that
  # large are so far from each other that the bound changes nothing.
  bound = 0.5 * info.maxexp * 0.69
  t = jnp.where(jnp.isfinite(x), jnp.clip(t, -bound, bound), x)
  n = jnp.where(x == -jnp.inf, -jnp.inf, n)
  return jnp.exp(t), n


@exp.defjvp
def _exp_jvp(
  primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[Pair, Pair]:
  mantissa, exponent = exp(*primals)
  # The exponent is constant between its jumps, where the mantissa jumps back.
  return (mantissa, exponent), (
    mantissa * tangents[0],
    jnp.zeros_like(exponent),
  )


def sum_of(pairs: Pair, axis: int) -> Pair:
  exponent = jnp.max(pairs[1], axis=axis, keepdims=True)
  return _shrink(pairs, exponent).sum(axis=axis, keepdims=True), exponent


def _tree_sum(x: jax.Array) -> jax.Array:
  """The sum over axis 1, as a tree; XLA adds one by one on a CPU."""
  outer, size, *after = x.shape
  groups = size // _GROUP
  if groups < 2:
    return x.sum(axis=1, keepdims=True)
  even = x[:, : groups * _GROUP].reshape(outer, groups, _GROUP, *after)
  # A reduction first: XLA does not vectorise exponentials inside additions of
  # slices. Then slices, because XLA would merge two reductions.
  total = even.sum(axis=2)
  while (length := total.shape[1]) > 1:
    half = length // 2
    pairs = total[:, :half] + total[:, half : 2 * half]
    if length % 2:
      pairs = jnp.concatenate([pairs, total[:, 2 * half :]], axis=1)
    total = pairs
  if size % _GROUP:
    total += x[:, groups * _GROUP :].sum(axis=1, keepdims=True)
  return total


def _block_sum(x: jax.Array) -> Pair:
  mantissa, exponent = exp(x)
  largest = jnp.max(exponent, axis=1, keepdims=True)
  return _tree_sum(_shrink((mantissa, exponent), largest)), largest


def sum_in_blocks(x: jax.Array, axis: int, block: int) -> Pair:
  """The sum of the exponentials in blocks that a cache holds.

  XLA for CPUs runs the maximum of the exponents and the sum as two loops. In
  blocks, only the first of them reads the memory.
  """
  shape, size = x.shape, x.shape[axis]
  kept = (*shape[:axis], 1, *shape[axis + 1 :])
  inner = math.prod(shape[axis + 1 :])
  outer = math.prod(shape[:axis])
  # Two axes where they are enough: XLA copies a reshaped argument of a loop.
  after = () if inner == 1 else (inner,)
  zeros = (0,) * len(after)
  x = x.reshape(outer, size, *after)
  count = -(-size // max(block // inner, 1))
  width = size // count
  rows = min(max(block // (width * inner), 1), outer)

  def of(start: Any, first: Any, width: int) -> Pair:
    sizes = (rows, width, *after)
    return _block_sum(lax.dynamic_slice(x, (start, first, *zeros), sizes))

  def of_rows(start: Any) -> Pair:
    pair = of(start, 0, width)
    if count > 1:
      pair = lax.fori_loop(
        1, count, lambda k, pair: add(pair, of(start, k * width, width)), pair
      )
    if rest := size - count * width:
      pair = add(pair, of(start, count * width, rest))
    return pair

  def step(k: jax.Array, sums: Pair) -> Pair:
    # The last block overlaps the one before, and writes the same numbers.
    start = jnp.minimum(k * rows, outer - rows)
    mantissa, exponent = (
      lax.dynamic_update_slice(total, part, (start, 0, *zeros))
      for total, part in zip(sums, of_rows(start), strict=True)
    )
    return mantissa, exponent

  if rows == outer:
    sums = of_rows(0)
  else:
    empty = varying.vary_like(jnp.zeros((outer, 1, *after), x.dtype), x)
    sums = lax.fori_loop(0, -(-outer // rows), step, (empty, empty))
  return sums[0].reshape(kept), sums[1].reshape(kept)


def _sum_exp(x: jax.Array, axis: int) -> Pair:
  """Pass 1: the sum of the exponentials, with an axis of length 1."""

  def whole(x: jax.Array) -> Pair:
    return sum_of(exp(x), axis)

  if x.size == 0:
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    zero = jnp.zeros(shape, x.dtype)
    return zero, jnp.full_like(zero, -jnp.inf)
  if checks.explicit_sharding(x) is not None:
    return whole(x)
  in_blocks = functools.partial(sum_in_blocks, axis=axis, block=BLOCK)
  return lax.platform_dependent(x, cpu=in_blocks, default=whole)


def log(pair: Pair) -> jax.Array:
  """The logarithm of a number that is a pair."""
  mantissa, exponent = pair
  first, second, third = _LOG_2[exponent.dtype.name]
  return exponent * first + (jnp.log(mantissa) + exponent * (second + third))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax_and_log(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
  mantissa, exponent = total = _sum_exp(x, axis)
  # A row with +inf has no softmax.
  total_mantissa = jnp.where(mantissa == jnp.inf, jnp.nan, mantissa)
  # Pass 2 computes the exponentials again instead of reading them.
  part, own = exp(x)
  # Divided first: a product with the power may be below the normal numbers.
  softmax = _shrink((part / total_mantissa, own), exponent)
  return softmax, log(total).squeeze(axis)


@softmax_and_log.defjvp
def _softmax_and_log_jvp(
  axis: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
  softmax, log_sum = softmax_and_log(*primals, axis)
  mean = (softmax * tangents[0]).sum(axis=axis, keepdims=True)
  return (softmax, log_sum), (
    softmax * (tangents[0] - mean),
    mean.squeeze(axis),
  )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def logsumexp(x: jax.Array, axis: int) -> jax.Array:
  return log(_sum_exp(x, axis)).squeeze(axis)


@logsumexp.defjvp
def _logsumexp_jvp(
  axis: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
  # The analytic derivative, so that nothing differentiates the rounding.
  softmax, log_sum = softmax_and_log(*primals, axis)
  return log_sum, (softmax * tangents[0]).sum(axis=axis)
