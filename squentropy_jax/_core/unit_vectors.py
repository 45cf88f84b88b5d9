# SPDX-License-Identifier: Apache-2.0
"""Vectors scaled to length 1."""

import jax
import jax.numpy as jnp


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
  """Scales vectors along an axis to length 1.

  A vector of zeros stays as it is, with gradient 0. The squares of large and
  small vectors do not overflow or underflow.
  """
  size = jax.lax.stop_gradient(jnp.abs(x).max(axis, keepdims=True))
  is_zero = size == 0
  # The result does not depend on this divisor, so it is a constant. The
  # reciprocal of a larger one would be subnormal, which a CPU takes for 0.
  size = jnp.minimum(size, float(jnp.finfo(x.dtype).max) / 8.0)
  scaled = x / jnp.where(is_zero, jnp.ones_like(size), size)
  square = jnp.square(scaled).sum(axis, keepdims=True)
  square = jnp.where(is_zero, jnp.ones_like(square), square)
  unit = scaled * jax.lax.rsqrt(square)
  return jnp.where(is_zero, jnp.zeros_like(unit), unit)
