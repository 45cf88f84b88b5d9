# SPDX-License-Identifier: Apache-2.0
"""Elementwise functions that several losses share.

Arguments are arrays of one shape, or scalars, of one dtype. Each function is
also accurate close to the points where it is defined by a limit, such as a
parameter of 0. Derivatives are finite wherever the value is, also at a
parameter of 0 and at an infinite ``x``.
"""

import math

import jax
import jax.numpy as jnp

# Replaces an infinity that may be multiplied by 0; its square fits in float32.
HUGE = 1e18
# The smallest probability computed from a clipped score. With a probability of
# 0, a single incorrect prediction could make the log-likelihood infinite.
PROBABILITY_FLOOR = 1e-6
# If |a x| is below this value, the derivative in the parameter is computed by a
# series. Above it, the relative error of the closed form is below 100 ulp.
_SMALL = 0.05
# Coefficients of the power series of (y e^y - (e^y - 1)) / y^2 and of
# (y / (1 + y) - log(1 + y)) / y^2.
_EXPM1_SERIES = (
  1 / 2,
  1 / 3,
  1 / 8,
  1 / 30,
  1 / 144,
  1 / 840,
  1 / 5760,
  1 / 45360,
)
_LOG1P_SERIES = tuple((-1) ** (n + 1) * (1 - 1 / n) for n in range(2, 14))


def _polynomial(y: jax.Array, coefficients: tuple[float, ...]) -> jax.Array:
  total = jnp.full_like(y, coefficients[-1])
  for c in coefficients[-2::-1]:
    total = total * y + c
  return total


@jax.custom_jvp
def sigmoid(x: jax.Array) -> jax.Array:
  """Computes the logistic function, with an accurate derivative everywhere."""
  return jax.lax.logistic(x)


sigmoid.defjvps(lambda dx, _, x: dx * sigmoid(x) * sigmoid(-x))


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
  """Computes ``log(1 + exp(x))``, with gradient ``sigmoid(x)`` everywhere."""
  return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvps(lambda dx, _, x: dx * sigmoid(x))


def log(x: jax.Array) -> jax.Array:
  """Computes ``log(x)``, which at 0 is ``-inf`` with gradient 0."""
  positive = x != 0
  return jnp.where(
    positive, jnp.log(jnp.where(positive, x, jnp.ones_like(x))), -jnp.inf
  )


def rounding_error(a: jax.Array, b: jax.Array) -> jax.Array:
  """Computes the exact rounding error of ``a - b``, 0 if that is infinite."""
  difference = a - b
  other = difference - a
  lost = (a - (difference - other)) - (b + other)
  lost = jnp.where(jnp.isfinite(difference), lost, jnp.zeros_like(lost))
  return jax.lax.stop_gradient(lost)


@jax.custom_jvp
def weighted(weight: jax.Array | float, x: jax.Array) -> jax.Array:
  """Computes ``weight * x``, which is 0 for weight 0 and infinite ``x``."""
  missing = jnp.isinf(x) & (weight == 0)
  return weight * jnp.where(missing, jnp.zeros_like(x), x)


weighted.defjvps(
  # The bound exceeds HUGE, because only moderate numbers multiply the result.
  lambda dw, _, w, x: dw * jnp.clip(x, -1e30, 1e30),
  lambda dx, _, w, x: w * dx,
)


@jax.custom_jvp
def quotient(a: jax.Array, b: jax.Array) -> jax.Array:
  """Computes ``a / b``; its derivative does not square a small ``b``."""
  return a / b


quotient.defjvps(
  lambda da, _, a, b: da / b, lambda db, out, a, b: -out * (db / b)
)


def nan_if_infinite(x: jax.Array) -> jax.Array:
  """Returns ``x``, with value and gradient NaN where ``x`` is infinite."""
  return x * jnp.where(jnp.isinf(x), jnp.nan, 1.0).astype(x.dtype)


def nan_if_large(x: jax.Array) -> jax.Array:
  """Returns ``x``, with value and gradient NaN near the largest float.

  The limit is 2^112 in float32. The reciprocal of a larger number is so close
  to the least normal number that a gradient computed from it may vanish.
  """
  limit = float(jnp.finfo(x.dtype).max) * 2.0**-16
  return x * jnp.where(x > limit, jnp.nan, 1.0).astype(x.dtype)


def power(log_base: jax.Array, exponent: jax.Array | float) -> jax.Array:
  """Computes ``exp(log_base) ** exponent``, where ``0 ** 0`` is 1."""
  return jnp.exp(exponent * jnp.maximum(log_base, -HUGE))


def expm1_over(x: jax.Array, a: jax.Array | float) -> jax.Array:
  """Computes ``expm1(a x) / a``, which is ``x`` at ``a = 0``."""
  return _expm1_over(x, jnp.asarray(a).astype(x.dtype))


@jax.custom_jvp
def _expm1_over(x: jax.Array, a: jax.Array) -> jax.Array:
  divisor = jnp.where(a == 0, jnp.ones_like(a), a)
  return jnp.where(a == 0, x, jnp.expm1(weighted(a, x)) / divisor)


@_expm1_over.defjvp
def _expm1_over_jvp(
  primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  x, a = primals
  dx, da = tangents
  bounded = jnp.clip(x, -HUGE, HUGE)
  y = a * bounded
  small = jnp.abs(y) < _SMALL
  near = _polynomial(jnp.where(small, y, jnp.zeros_like(y)), _EXPM1_SERIES)
  # Derivatives stay finite where the value overflows. The chain rule may
  # multiply them by a derivative of 0, and 0 times infinity would be NaN.
  top = float(jnp.finfo(x.dtype).max)
  y = jnp.minimum(y, 0.999 * math.log(top))
  y_far = jnp.where(small, jnp.ones_like(y), y)
  a_far = jnp.where(small, jnp.ones_like(y), a)
  far = (y_far * jnp.exp(y_far) - jnp.expm1(y_far)) / (a_far * a_far)
  by_a = jnp.where(small, bounded * bounded * near, jnp.minimum(far, top))
  return _expm1_over(x, a), jnp.exp(y) * dx + by_a * da


def log1p_over(x: jax.Array, a: jax.Array | float) -> jax.Array:
  """Computes ``log(1 + a x) / a``, which is ``x`` at ``a = 0``.

  If ``a > 0`` and ``1 + a x <= 0``, the value is ``-inf`` with derivatives 0.
  """
  return _log1p_over(x, jnp.asarray(a).astype(x.dtype))


@jax.custom_jvp
def _log1p_over(x: jax.Array, a: jax.Array) -> jax.Array:
  ax = weighted(a, x)
  positive = ax > -1.0
  divisor = jnp.where(a == 0, jnp.ones_like(a), a)
  value = jnp.log1p(jnp.where(positive, ax, jnp.zeros_like(ax))) / divisor
  value = jnp.where(positive | jnp.isnan(ax), value, -jnp.inf)
  return jnp.where(a == 0, x, value)


@_log1p_over.defjvp
def _log1p_over_jvp(
  primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  x, a = primals
  dx, da = tangents
  bounded = jnp.clip(x, -HUGE, HUGE)
  y = a * bounded
  small = jnp.abs(y) < _SMALL
  near = _polynomial(jnp.where(small, y, jnp.zeros_like(y)), _LOG1P_SERIES)
  inside = y > -1.0
  y_far = jnp.where(small | ~inside, jnp.ones_like(y), y)
  a_far = jnp.where(small, jnp.ones_like(y), a)
  far = (y_far / (1.0 + y_far) - jnp.log1p(y_far)) / (a_far * a_far)
  by_a = jnp.where(small, bounded * bounded * near, far)
  zero = jnp.zeros_like(y)
  by_x = 1.0 / (1.0 + jnp.where(inside, y, zero))
  by_x, by_a = (jnp.where(inside, d, zero) for d in (by_x, by_a))
  return _log1p_over(x, a), by_x * dx + by_a * da
