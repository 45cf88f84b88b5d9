# SPDX-License-Identifier: Apache-2.0
"""Vectors scaled to length 1."""

import jax
import jax.numpy as jnp


def unit(x: jax.Array) -> jax.Array:
  """Scales vectors along the last axis to length 1.

  A vector of zeros stays as it is, with gradient 0. The squares of large and
  small vectors do not overflow or underflow.
  """
  size = jax.lax.stop_gradient(jnp.abs(x).max(-1, keepdims=True))
  is_zero = size == 0
  one = jnp.ones_like(size)
  # The result does not depend on the size, so its derivative is left out.
  x = x / jnp.where(is_zero, one, size)
  square = jnp.where(is_zero, one, jnp.square(x).sum(-1, keepdims=True))
  return jnp.where(is_zero, jnp.zeros_like(x), x / jnp.sqrt(square))
