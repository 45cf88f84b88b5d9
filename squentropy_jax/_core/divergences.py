# SPDX-License-Identifier: Apache-2.0
"""Divergences of two distributions, as sums of positive terms.

The terms of the definition cancel where the distributions are close.
"""

import math

import jax
import jax.numpy as jnp

from squentropy_jax._core.elementwise import softplus

# Of (e^-r - 1 + r) / r^2 in powers of -r; exact in float64 for |r| < 1, and
# the first ones in float32.
_EXCESS = tuple(1.0 / math.factorial(n + 2) for n in range(18))
_FIRST = 11


def _excess(p: jax.Array, ratio: jax.Array, q: jax.Array) -> jax.Array:
  """``p (r - 1 + q / p)`` for the log ratio ``r`` of p to q; q for p of 0.

  Where p is 0, the ratio must be 0.
  """
  near = jnp.abs(ratio) < 1.0
  zero = jnp.zeros_like(p)
  r = jnp.where(near, ratio, zero)
  narrow = jnp.finfo(p.dtype).bits <= 32
  first, *others = reversed(_EXCESS[:_FIRST] if narrow else _EXCESS)
  series = jnp.full_like(r, first)
  for c in others:
    series = c - r * series
  far = p * jnp.where(near, zero, ratio) + (q - p)
  return jnp.where(near & (p != 0), p * (r * r * series), far)


def log_ratio(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """``log p - log q``, and 0 where p is 0."""
  is_zero = jnp.exp(log_p) == 0
  zero = jnp.zeros_like(log_p)
  return jnp.where(is_zero, zero, log_p) - jnp.where(is_zero, zero, log_q)


def kl_terms(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """The terms of the Kullback-Leibler divergence of q from p.

  With the log ratio r the terms are p (r - 1 + e^-r). They sum to the
  divergence because p and q both sum to 1.
  """
  return _excess(jnp.exp(log_p), log_ratio(log_p, log_q), jnp.exp(log_q))


def log_ratio_to_mixture(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """``log p - log((p + q) / 2)``, and 0 where p is 0."""
  is_zero = jnp.exp(log_p) == 0
  zero = jnp.zeros_like(log_p)
  # With the opposite sign of `log_ratio`, and not a difference of infinities.
  difference = jnp.where(is_zero, zero, log_q) - jnp.where(is_zero, zero, log_p)
  near = jnp.abs(difference) < 1.0
  small = jnp.where(near, difference, zero)
  ratio = jnp.where(
    near,
    -jnp.log1p(jnp.expm1(small) / 2.0),
    math.log(2.0) - softplus(jnp.where(near, zero, difference)),
  )
  return jnp.where(is_zero, zero, ratio)


def mixture_terms(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """The terms of the divergence of the mixture of p and q from p."""
  p = jnp.exp(log_p)
  ratio = log_ratio_to_mixture(log_p, log_q)
  return _excess(p, ratio, (p + jnp.exp(log_q)) / 2.0)
