# SPDX-License-Identifier: Apache-2.0
r"""Exponentials that do not overflow, and the softmax made from them.

A number :math:`m 2^n` is a pair of a mantissa and an exponent, both floats. The
exponent has the range of a float, not the eight bits of an exponent field. So
:math:`e^x` needs no maximum to be subtracted from :math:`x`, and sums of it are
merged without one.
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
_BLOCK = 2**16
# So many numbers are added one by one.
_GROUP = 4


def _power_of_2(exponent: jax.Array) -> jax.Array:
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
  return pair[0] * _power_of_2(pair[1] - jnp.maximum(exponent, lowest))


def _add(a: Pair, b: Pair) -> Pair:
  exponent = jnp.maximum(a[1], b[1])
  return _shrink(a, exponent) + _shrink(b, exponent), exponent


@jax.custom_jvp
def _exp(x: jax.Array) -> Pair:
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


@_exp.defjvp
def _exp_jvp(
  primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[Pair, Pair]:
  mantissa, exponent = _exp(*primals)
  # The exponent is constant between its jumps, where the mantissa jumps back.
  return (mantissa, exponent), (
    mantissa * tangents[0],
    jnp.zeros_like(exponent),
  )


def _sum_of(pairs: Pair, axis: int) -> Pair:
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
  mantissa, exponent = _exp(x)
  largest = jnp.max(exponent, axis=1, keepdims=True)
  return _tree_sum(_shrink((mantissa, exponent), largest)), largest


def _sum_in_blocks(x: jax.Array, axis: int, block: int) -> Pair:
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
        1, count, lambda k, pair: _add(pair, of(start, k * width, width)), pair
      )
    if rest := size - count * width:
      pair = _add(pair, of(start, count * width, rest))
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
    return _sum_of(_exp(x), axis)

  if x.size == 0:
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    zero = jnp.zeros(shape, x.dtype)
    return zero, jnp.full_like(zero, -jnp.inf)
  if checks.explicit_sharding(x) is not None:
    return whole(x)
  in_blocks = functools.partial(_sum_in_blocks, axis=axis, block=_BLOCK)
  return lax.platform_dependent(x, cpu=in_blocks, default=whole)


def _log(pair: Pair) -> jax.Array:
  """The logarithm of a pair, without its own rounding of ``n log(2)``."""
  mantissa, exponent = pair
  first, second, third = _LOG_2[exponent.dtype.name]
  return exponent * first + (jnp.log(mantissa) + exponent * (second + third))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax_and_log(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
  mantissa, exponent = total = _sum_exp(x, axis)
  # A row with +inf has no softmax.
  total_mantissa = jnp.where(mantissa == jnp.inf, jnp.nan, mantissa)
  # Pass 2 computes the exponentials again instead of reading them.
  part, own = _exp(x)
  # Divided first: a product with the power may be below the normal numbers.
  softmax = _shrink((part / total_mantissa, own), exponent)
  return softmax, _log(total).squeeze(axis)


@_softmax_and_log.defjvp
def _softmax_and_log_jvp(
  axis: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
  softmax, log_sum = _softmax_and_log(*primals, axis)
  mean = (softmax * tangents[0]).sum(axis=axis, keepdims=True)
  return (softmax, log_sum), (
    softmax * (tangents[0] - mean),
    mean.squeeze(axis),
  )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _logsumexp(x: jax.Array, axis: int) -> jax.Array:
  return _log(_sum_exp(x, axis)).squeeze(axis)


@_logsumexp.defjvp
def _logsumexp_jvp(
  axis: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
  # The analytic derivative, so that nothing differentiates the rounding.
  softmax, log_sum = _softmax_and_log(*primals, axis)
  return log_sum, (softmax * tangents[0]).sum(axis=axis)


def _prepare(
  x: jax.typing.ArrayLike, axis: int, where: jax.typing.ArrayLike | None
) -> tuple[jax.Array, int, jax.Array | None]:
  """Checks the arguments; numbers that are left out become ``-inf``."""
  array = checks.as_logits(x, "x")
  axis = checks.as_axis(axis, array, "x")
  keep = None
  if where is not None:
    mask = checks.as_array(where, "where")
    if mask.dtype != jnp.bool_:
      raise TypeError(
        f"where must be boolean, got dtype {mask.dtype}. Pass where != 0."
      )
    if mask.shape != array.shape:
      raise ValueError(
        f"where must have the shape of x {array.shape}, got {mask.shape}. Pass "
        "jnp.broadcast_to(where, x.shape) if that is what you mean."
      )
    keep = checks.shard_alike("where", jnp.asarray(mask), array)
  return _widen(array, keep), axis, keep


@functools.partial(jax.jit, inline=True)
def _widen(x: jax.Array, keep: jax.Array | None) -> jax.Array:
  x = x.astype(checks.compute_dtype(x.dtype))
  return x if keep is None else jnp.where(keep, x, -jnp.inf)


def scaled_exp(x: jax.typing.ArrayLike) -> Pair:
  r"""Computes ``exp(x)`` as a mantissa and an exponent, without overflow.

  Use it to sum exponentials of numbers of any size with :func:`scaled_add`,
  where their maximum is not known yet.

  .. math::
    e^x = m \, 2^n, \qquad n = \operatorname{round}(x / \log 2), \qquad
    m = e^{x - n \log 2} \in [2^{-1/2}, 2^{1/2}]

  The exponent is an integer, stored as a float. The pair of ``-inf`` is
  ``(0, -inf)``, which changes no sum. The mantissa of ``+inf`` is ``+inf``, and
  that of NaN is NaN. Above about :math:`10^7` in float32 not every integer is a
  float, and the mantissa may be outside the range above. Numbers above
  :math:`2.3 \cdot 10^{38}` in size count as that number in float32. The
  derivative of the mantissa is the mantissa, and that of the exponent is 0.

  Args:
    x: Numbers, any shape, any floating dtype.

  Returns:
    The mantissa and the exponent, of the shape of ``x``, float32 or wider.

  Raises:
    TypeError: If ``x`` is not floating.

  Examples:
    >>> mantissa, exponent = special.scaled_exp(jnp.array([100.0, -50.0]))
    >>> print(mantissa, exponent)
    [1.2054 0.9108] [144. -72.]

  References:
    Dukhan and Ablavatski, `The Two-Pass Softmax Algorithm
    <https://arxiv.org/abs/2001.04438>`_, 2020.
  """
  array = checks.as_floats(x, "x")
  return _exp(_widen(array, None))


def scaled_add(a: Pair, b: Pair) -> Pair:
  r"""Adds two numbers that are pairs of a mantissa and an exponent.

  Use it to merge the sums of blocks or devices in any order. It is commutative,
  and associative up to rounding of the mantissas.

  .. math::
    m_a 2^{n_a} + m_b 2^{n_b} =
      (m_a 2^{n_a - n} + m_b 2^{n_b - n}) \, 2^n, \qquad n = \max(n_a, n_b)

  Powers of 2 are exact, so that only the sum is rounded. The mantissa is not
  normalised: that of a sum of :math:`k` values of :func:`scaled_exp` is below
  :math:`1.42 k`.

  Args:
    a: Mantissa and exponent, such as :func:`scaled_exp` returns. The exponent
      holds integers or ``-inf``.
    b: The same, of the same shapes.

  Returns:
    Mantissa and exponent of the sum, float32 or wider.

  Raises:
    TypeError: If an array is not floating.
    ValueError: If the shapes differ, or an argument is not a pair.

  Examples:
    >>> a, b = (special.scaled_exp(jnp.float32(x)) for x in (1000.0, 1001.0))
    >>> mantissa, exponent = special.scaled_add(a, b)
    >>> print(f"{jnp.log(mantissa) + exponent * jnp.log(2.0):.3f}")
    1001.313

  References:
    Dukhan and Ablavatski, `The Two-Pass Softmax Algorithm
    <https://arxiv.org/abs/2001.04438>`_, 2020.
  """
  arrays = []
  for name, pair in (("a", a), ("b", b)):
    if not isinstance(pair, tuple | list) or len(pair) != 2:
      raise ValueError(
        f"{name} must be a pair of mantissa and exponent, got {type(pair)}. "
        "Pass the result of scaled_exp."
      )
    arrays += [checks.as_floats(x, f"{name}[{i}]") for i, x in enumerate(pair)]
  shapes = [x.shape for x in arrays]
  if len(set(shapes)) > 1:
    raise ValueError(
      "a and b must hold arrays of one shape, got shapes "
      f"{shapes[:2]} and {shapes[2:]}. Nothing is broadcast."
    )
  wide = checks.compute_dtype(*(x.dtype for x in arrays))
  m_a, n_a, m_b, n_b = (x.astype(wide) for x in arrays)
  # A number of 0 changes no sum, whatever its exponent.
  n_a, n_b = (
    lax.stop_gradient(jnp.where(m == 0, -jnp.inf, n))
    for m, n in ((m_a, n_a), (m_b, n_b))
  )
  return _add((m_a, n_a), (m_b, n_b))


def two_pass_logsumexp(
  x: jax.typing.ArrayLike,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the logarithm of the sum of exponentials, without a maximum.

  Use it where a pass for the maximum costs more than the exponentials.
  Otherwise use :func:`jax.nn.logsumexp`, which has the same values. See
  ``docs/two_pass.md`` for times.

  .. math::
    \log \sum_k e^{x_k} = \log m + n \log 2, \qquad
    m \, 2^n = \sum_k m_k 2^{n_k}, \quad e^{x_k} = m_k 2^{n_k}

  The error is at most 2 ulp of the larger of 1 and the result's size. ``-inf``
  adds nothing, a row of ``-inf`` gives ``-inf``, ``+inf`` gives ``+inf`` and
  NaN gives NaN. The derivative is the softmax.

  Args:
    x: Numbers, shape ``[..., num_classes]``, any floating dtype.
    axis: The axis to sum over, an int.
    where: Which numbers to include, booleans of the shape of ``x``. A row
      without any gives ``-inf``, with gradient 0.

  Returns:
    One number for each row, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape or ``axis`` does not fit.

  Examples:
    >>> x = jnp.array([100.0, 101.0, 99.0, -50.0])
    >>> print(f"{special.two_pass_logsumexp(x):.4f}")
    101.4076

  References:
    Dukhan and Ablavatski, `The Two-Pass Softmax Algorithm
    <https://arxiv.org/abs/2001.04438>`_, 2020.

  .. seealso:: :func:`two_pass_softmax`
  """
  array, axis, _ = _prepare(x, axis, where)
  return _logsumexp(array, axis)


def two_pass_softmax(
  x: jax.typing.ArrayLike,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the softmax in two passes, without a maximum.

  Use it where a pass for the maximum costs more than the exponentials.
  Otherwise use :func:`jax.nn.softmax`, which has the same values. See
  ``docs/two_pass.md`` for times.

  .. math::
    \frac{e^{x_k}}{\sum_j e^{x_j}} = \frac{m_k}{m} 2^{n_k - n}, \qquad
    m \, 2^n = \sum_k m_k 2^{n_k}, \quad e^{x_k} = m_k 2^{n_k}

  The error is at most 4 ulp. Probabilities below the smallest normal number may
  be 0. A row with NaN or ``+inf``, or of ``-inf`` only, is NaN.

  Args:
    x: Numbers, shape ``[..., num_classes]``, any floating dtype.
    axis: The axis to sum over, an int.
    where: Which numbers to include, booleans of the shape of ``x``. The others
      have probability 0 and gradient 0, whatever they hold.

  Returns:
    Probabilities of the shape of ``x``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape or ``axis`` does not fit.

  Examples:
    >>> print(special.two_pass_softmax(jnp.array([100.0, 101.0, 99.0, -50.0])))
    [0.2447 0.6652 0.09   0.    ]

  References:
    Dukhan and Ablavatski, `The Two-Pass Softmax Algorithm
    <https://arxiv.org/abs/2001.04438>`_, 2020.

  .. seealso:: :func:`two_pass_logsumexp`
  """
  array, axis, keep = _prepare(x, axis, where)
  softmax = _softmax_and_log(array, axis)[0]
  return softmax if keep is None else jnp.where(keep, softmax, 0.0)
