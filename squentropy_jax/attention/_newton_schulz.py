# SPDX-License-Identifier: Apache-2.0
"""The inverse of small matrices by matrix products."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import checks

# The start of the iteration as a part of the largest one that converges. At 1
# it stands still for a matrix whose rows have equal sums.
_START = 0.9


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _inverse(a: jax.Array, num_iters: int) -> jax.Array:
  multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
  # Of a symmetric matrix both norms are equal, and the start is a multiple of
  # the matrix. Scaled to norm 1, their product does not overflow.
  scale = jnp.abs(a).sum(-2, keepdims=True).max(-1, keepdims=True)
  scale = jnp.where(scale == 0, 1.0, scale)
  a = a / scale
  other = jnp.abs(a).sum(-1, keepdims=True).max(-2, keepdims=True)
  other = jnp.where(other == 0, 1.0, other)
  start = _START * 2.0 * jnp.swapaxes(a, -1, -2) / other

  def step(_: int, v: jax.Array) -> jax.Array:
    return 2.0 * v - multiply(multiply(v, a), v)

  return jax.lax.fori_loop(0, num_iters, step, start) / scale


@_inverse.defjvp
def _inverse_jvp(
  num_iters: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
  inverse = _inverse(*primals, num_iters)
  multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
  return inverse, -multiply(multiply(inverse, *tangents), inverse)


def newton_schulz_inverse(a: ArrayLike, *, num_iters: int = 20) -> jax.Array:
  r"""Computes the inverse of matrices by Newton-Schulz iteration.

  Use when small matrices are to be inverted on an accelerator, because the
  iteration consists of matrix products. Avoid when a matrix may be
  ill-conditioned: about :math:`2 \log_2 \kappa` iterations are needed for the
  condition number :math:`\kappa`, and five more for full accuracy.

  .. math::
    V_0 = 0.9 \cdot \frac{2}{\lVert A \rVert_1 \lVert A \rVert_\infty} A^T,
    \quad V_{j+1} = 2 V_j - V_j A V_j

  Of a singular matrix the iteration computes the pseudo-inverse; parts of the
  matrix that are too small for the number of iterations are left out too. The
  derivative is :math:`-B \, dA \, B` with the result :math:`B`. It does not go
  through the iteration.

  Args:
    a: Matrices ``[..., m, m]``, any floating dtype.
    num_iters: The number of iterations, static.

  Returns:
    The inverses, of the same shape, float32 or wider.

  Raises:
    TypeError: If ``a`` is not floating.
    ValueError: If the matrices are not square or ``num_iters`` is below 1.

  Examples:
    >>> a = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> print(attention.newton_schulz_inverse(a))
    [[ 0.6667 -0.3333]
     [-0.3333  0.6667]]

  References:
    Lu et al., `Softmax-free Linear Transformers
    <https://arxiv.org/abs/2207.03341>`_, IJCV 2024.
  """
  array = checks.as_floats(a, "a")
  if (
    array.ndim < 2 or array.shape[-1] != array.shape[-2] or not array.shape[-1]
  ):
    raise ValueError(
      "a must have the shape [..., m, m], as square matrices have, with m of 1 "
      f"or more, got {array.shape}."
    )
  array = array.astype(checks.compute_dtype(array.dtype))
  return _inverse(array, checks.as_count("num_iters", num_iters))
