# SPDX-License-Identifier: Apache-2.0
"""A head whose class probabilities are the bins of a smooth density."""

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks


def num_outputs(num_frequencies: int) -> int:
  """The number of outputs of the linear layer of a Fourier head."""
  return 2 * checks.as_count("num_frequencies + 1", num_frequencies + 1)


def fourier_coefficients(a: jax.typing.ArrayLike) -> jax.Array:
  r"""Computes Fourier coefficients of a function that is never negative.

  Use it between a linear layer with :math:`2 (N + 1)` outputs, the real and
  imaginary parts of ``a``, and `fourier_logits`. The coefficients are the
  autocorrelation

  .. math::
    c_k = \sum_{l=0}^{N-k} \overline{a_l} \, a_{l+k}, \qquad k = 0, \ldots, N.

  A series with such coefficients has no negative value. The logits do not
  change if ``a`` is multiplied by a complex number other than 0. The squares of
  ``a`` must not overflow or underflow: in float32, the largest absolute value
  must be between 1e-18 and 1e18.

  Args:
    a: Complex numbers, shape ``[..., N + 1]``.

  Returns:
    The coefficients, complex, shape ``[..., N + 1]``. The first one is real and
    not negative.

  Raises:
    TypeError: If ``a`` is not complex.
    ValueError: If ``a`` has no axis, or no element in it.

  Examples:
    >>> c = heads.fourier_coefficients(jnp.array([1.0, 0.5 - 0.25j]))
    >>> print(c)
    [1.3125+0.j   0.5   -0.25j]

  References:
    Gillman et al., `Fourier Head: Helping Large Language Models Learn Complex
    Probability Distributions <https://arxiv.org/abs/2410.22269>`_, ICLR 2025.
  """
  array = checks.as_jax(checks.as_array(a, "a"))
  if not jnp.issubdtype(array.dtype, jnp.complexfloating):
    raise TypeError(
      f"a must be complex, got dtype {array.dtype}. Pass real + 1j * imag of "
      "the outputs of a linear layer."
    )
  if not array.ndim or not array.shape[-1]:
    raise ValueError(
      f"a must have the shape [..., N + 1], got {array.shape}. Pass one number "
      "or more for each example."
    )
  size = array.shape[-1]
  padded = jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, size)])
  places = np.add.outer(np.arange(size), np.arange(size))
  shifted = padded[..., places]  # [..., k, l] is a_{l + k}.
  c = (jnp.conj(array)[..., None, :] * shifted).sum(-1)
  # Rounding leaves an imaginary part of the first one, which is real.
  first = (jnp.square(array.real) + jnp.square(array.imag)).sum(-1)
  return c.at[..., 0].set(jax.lax.complex(first, jnp.zeros_like(first)))


def fourier_logits(
  coefficients: jax.typing.ArrayLike,
  num_bins: int,
  *,
  epsilon: jax.typing.ArrayLike = 1e-5,
) -> jax.Array:
  r"""Computes logits of ordered bins from the coefficients of a density.

  Use it if the classes are bins of a number, such as a quantised value or an
  angle, and neighbouring bins should have similar probabilities. With
  :math:`z_j = -1 + (2 j + 1) / m` the centre of bin :math:`j` of :math:`m`,

  .. math::
    f(z) = \tfrac12 + \operatorname{Re} \sum_{k=1}^N \frac{c_k}{c_0} \,
      e^{i \pi k z}, \qquad
    \text{logits}_j = \log \Bigl(\frac{f(z_j)}{\sum_l f(z_l)} +
      \text{epsilon}\Bigr).

  Choose :math:`N` below half of ``num_bins``. Because of ``epsilon``, the
  softmax of the logits differs from the probabilities of the bins by less than
  ``num_bins * epsilon``, and the cross-entropy is always above 0.

  Args:
    coefficients: From `fourier_coefficients`, complex, shape ``[..., N + 1]``.
      If the first one is 0, or the density is 0 in all bins, all bins are
      equally probable.
    num_bins: The number of bins :math:`m`, a Python int.
    epsilon: Added to the probability of each bin, a number above 0.

  Returns:
    The logits, shape ``[..., num_bins]``, float32 or wider.

  Raises:
    TypeError: If ``coefficients`` are not complex.
    ValueError: If ``num_bins`` is below 1, or a concrete ``epsilon`` is not
      above 0.

  Examples:
    >>> c = heads.fourier_coefficients(jnp.array([1.0, 0.5 - 0.25j]))
    >>> print(heads.fourier_logits(c, 4))
    [-3.037  -1.1477 -0.794  -1.7001]

  References:
    Gillman et al., `Fourier Head: Helping Large Language Models Learn Complex
    Probability Distributions <https://arxiv.org/abs/2410.22269>`_, ICLR 2025.
  """
  c = _as_coefficients(coefficients)
  num_bins = checks.as_count("num_bins", num_bins)
  first = c[..., :1].real
  added = checks.as_scalar("epsilon", epsilon, first.dtype, "(0, inf)")
  is_zero = first == 0
  # Divided first, so that no product of small coefficients underflows.
  divisor = jnp.where(is_zero, jnp.ones_like(first), first)
  others = jnp.where(is_zero, jnp.zeros_like(c[..., 1:]), c[..., 1:])
  centres = (2 * np.arange(num_bins) + 1) / num_bins - 1
  angles = np.pi * np.outer(np.arange(1, c.shape[-1]), centres)

  def waves(amplitude: jax.Array, wave: np.ndarray) -> jax.Array:
    return jnp.matmul(
      amplitude / divisor,
      wave.astype(first.dtype),
      precision=jax.lax.Precision.HIGHEST,
    )

  density = waves(others.real, np.cos(angles))
  density = density - waves(others.imag, np.sin(angles)) + 0.5
  # Rounding may carry a bin below 0.
  density = jnp.maximum(density, 0.0)
  total = density.sum(-1, keepdims=True)
  # With as many frequencies as bins, the density may be 0 in all of them.
  is_zero = total == 0
  share = density / jnp.where(is_zero, 1.0, total)
  return jnp.log(jnp.where(is_zero, 1.0 / num_bins, share) + added)


def fourier_smoothness(coefficients: jax.typing.ArrayLike) -> jax.Array:
  r"""Computes a penalty of each example on high frequencies.

  Use it for a smoother density: add the mean penalty times a small number, such
  as 1e-6, to the loss.

  .. math::
    2 \sum_{k=1}^N 2 \pi^2 k^2 \lvert c_k \rvert^2

  The coefficients are not divided by :math:`c_0`, so the penalty also depends
  on the scale of the argument of `fourier_coefficients`.

  Args:
    coefficients: From `fourier_coefficients`, complex, shape ``[..., N + 1]``.

  Returns:
    The penalty, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``coefficients`` are not complex.
    ValueError: If ``coefficients`` have no axis, or no element in it.

  Examples:
    >>> c = heads.fourier_coefficients(jnp.array([1.0, 0.5 - 0.25j]))
    >>> print(f"{heads.fourier_smoothness(c):.3f}")
    12.337

  References:
    Gillman et al., `Fourier Head: Helping Large Language Models Learn Complex
    Probability Distributions <https://arxiv.org/abs/2410.22269>`_, ICLR 2025.
  """
  c = _as_coefficients(coefficients)
  square = jnp.square(c.real) + jnp.square(c.imag)
  weights = 4 * np.square(np.pi * np.arange(c.shape[-1]))
  weights = jnp.broadcast_to(weights.astype(square.dtype), square.shape)
  return (square * weights).sum(-1)


def _as_coefficients(coefficients: jax.typing.ArrayLike) -> jax.Array:
  c = checks.as_jax(checks.as_array(coefficients, "coefficients"))
  if not jnp.issubdtype(c.dtype, jnp.complexfloating):
    raise TypeError(
      f"coefficients must be complex, got dtype {c.dtype}. Pass the result of "
      "fourier_coefficients."
    )
  if not c.ndim or not c.shape[-1]:
    raise ValueError(
      f"coefficients must have the shape [..., N + 1], got {c.shape}. Pass the "
      "result of fourier_coefficients."
    )
  return c
