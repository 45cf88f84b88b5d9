# SPDX-License-Identifier: Apache-2.0
"""The Fourier head: values, invariances, limits and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import heads as support

from squentropy_jax import heads

RNG = np.random.default_rng(0)


def numbers(*shape):
  a = RNG.normal(size=shape) + 1j * RNG.normal(size=shape)
  return a.astype(np.complex64)


def density(a, z):
  """By the definition, in float64: |sum_k conj(a_k) e^{-i pi k z}|^2 / norm."""
  a = np.asarray(a, np.complex128)
  waves = np.exp(1j * np.pi * np.multiply.outer(np.arange(a.shape[-1]), z))
  return 0.5 * np.abs(a @ waves) ** 2 / (np.abs(a) ** 2).sum(-1, keepdims=True)


def logits_of(a, num_bins, **keywords):
  return heads.fourier_logits(
    heads.fourier_coefficients(a), num_bins, **keywords
  )


def test_worked_example():
  with jax.enable_x64(True):
    c = heads.fourier_coefficients(jnp.array([1.0, 0.5 - 0.25j]))
    np.testing.assert_allclose(c, [1.3125, 0.5 - 0.25j], rtol=1e-15)
    np.testing.assert_allclose(
      heads.fourier_logits(c, 4),
      [-3.0369816283, -1.1477389751, -0.7939834817, -1.7000932094],
      atol=1e-10,
    )
    np.testing.assert_allclose(
      heads.fourier_smoothness(c), 12.3370055014, atol=1e-10
    )


@pytest.mark.parametrize("num_bins", [1, 3, 20])
def test_probabilities_are_bins_of_the_density(num_bins):
  a = numbers(5, 4)
  centres = (2 * np.arange(num_bins) + 1) / num_bins - 1
  expected = density(a, centres)
  expected /= expected.sum(-1, keepdims=True)
  found = np.exp(logits_of(a, num_bins, epsilon=1e-5)) - 1e-5
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_limits():
  one = logits_of(numbers(3, 1), 5)
  np.testing.assert_allclose(one, np.log(0.2 + 1e-5), rtol=1e-6)
  zero = logits_of(np.zeros((2, 4), np.complex64), 5)
  np.testing.assert_allclose(zero, np.log(0.2 + 1e-5), rtol=1e-6)
  a = numbers(3, 4)
  turned = a * np.complex64(0.01 * np.exp(0.7j))
  np.testing.assert_allclose(
    logits_of(turned, 12), logits_of(a, 12), rtol=1e-4, atol=1e-4
  )
  assert (heads.fourier_coefficients(a)[:, 0].imag == 0).all()
  c = heads.fourier_coefficients(a)
  k = np.arange(4)
  expected = (4 * np.pi**2 * k**2 * np.abs(c) ** 2).sum(-1)
  np.testing.assert_allclose(heads.fourier_smoothness(c), expected, rtol=1e-5)


def test_a_density_that_is_0_in_all_bins():
  """With as many frequencies as bins; then the bins are equally probable."""

  def of_real(real, num_bins):
    return logits_of(jax.lax.complex(real, jnp.zeros_like(real)), num_bins)

  for a, num_bins in (([1.0, -1.0], 1), ([1.0, 0.0, 1.0], 2)):
    a = np.array(a, np.float32)
    expected = np.log(1 / num_bins + 1e-5)
    np.testing.assert_allclose(of_real(a, num_bins), expected, atol=1e-6)
    gradient = jax.grad(lambda a, m=num_bins: of_real(a, m).sum())(a)
    assert np.isfinite(gradient).all()


def test_traced_and_too_small_epsilon():
  a = numbers(3, 4)
  found = support.jit(lambda a, e: logits_of(a, 5, epsilon=e))(a, 1e-3)
  np.testing.assert_allclose(found, logits_of(a, 5, epsilon=1e-3), rtol=1e-5)
  with pytest.raises(ValueError, match=r"epsilon must be in .* as a float32"):
    logits_of(a, 5, epsilon=1e-60)
  with pytest.raises(ValueError, match="epsilon must be a scalar"):
    logits_of(a, 5, epsilon=np.ones(5))


def test_gradient():
  """Against finite differences, and finite for coefficients of 0."""

  def total(parts):
    a = jax.lax.complex(parts[0], parts[1])
    c = heads.fourier_coefficients(a)
    weights = jnp.arange(6.0).astype(parts.dtype)
    value = (heads.fourier_logits(c, 6) * weights[None]).sum()
    return value + 0.01 * heads.fourier_smoothness(c).sum()

  with jax.enable_x64(True):
    parts = jnp.asarray(RNG.normal(size=(2, 2, 3)))
    direction = jnp.asarray(RNG.normal(size=(2, 2, 3)))
    f = support.jit(total)
    step = 1e-5
    expected = (f(parts + step * direction) - f(parts - step * direction)) / (
      2 * step
    )
    gradient = support.jit(jax.grad(total))
    np.testing.assert_allclose(
      (gradient(parts) * direction).sum(), expected, rtol=1e-7
    )
    assert np.isfinite(gradient(jnp.zeros_like(parts))).all()


def test_transformations():
  a = numbers(3, 4)
  expected = logits_of(a, 7)
  assert expected.dtype == jnp.float32
  found = jax.vmap(lambda a: logits_of(a, 7))(a)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_allclose(
    support.jit(logits_of, static_argnums=1)(a, 7), expected, rtol=1e-5
  )


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (
      lambda: heads.fourier_coefficients(np.ones(3)),
      TypeError,
      "a must be complex, got dtype float",
    ),
    (
      lambda: heads.fourier_coefficients(np.ones((3, 0), complex)),
      ValueError,
      r"a must have the shape \[..., N \+ 1\]",
    ),
    (
      lambda: heads.fourier_logits(np.ones(3), 4),
      TypeError,
      "coefficients must be complex",
    ),
    (
      lambda: heads.fourier_logits(np.ones(3, complex), 0),
      ValueError,
      "num_bins",
    ),
    (
      lambda: heads.fourier_logits(np.ones(3, complex), 4, epsilon=0),
      ValueError,
      "epsilon must be in",
    ),
  ],
)
def test_arguments_that_do_not_fit(call, error, message):
  with pytest.raises(error, match=message):
    call()
