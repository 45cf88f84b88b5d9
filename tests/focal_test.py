# SPDX-License-Identifier: Apache-2.0
"""Focal, dual focal and poly-1: worked values, limits and special cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import losses

F32 = np.float32
EPS = np.finfo(F32).eps
PROBE = np.array([1.2, -0.4, 0.3, 2.0])
RNG = np.random.default_rng(11)
LOGITS = (RNG.normal(size=(8, 5)) * 3).astype(F32)
LABELS = np.arange(8) % 5


@pytest.mark.x64
def test_worked_numbers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  close(losses.focal(PROBE, 0), 0.7342879297)
  close(losses.focal(PROBE, 0, gamma=3.0), 0.5427682196)
  close(losses.dual_focal(PROBE, 0), 0.9600838125)
  close(losses.poly1(PROBE, 0), 2.0830867770)
  close(losses.poly1(PROBE, 0, epsilon=2.0), 2.8222630560)


def test_an_exponent_or_weight_of_0_is_cross_entropy():
  entropy = losses.cross_entropy(LOGITS, LABELS)
  for loss in (
    functools.partial(losses.focal, gamma=0.0),
    functools.partial(losses.dual_focal, gamma=0.0),
    functools.partial(losses.poly1, epsilon=0.0),
  ):
    np.testing.assert_array_equal(loss(LOGITS, LABELS), entropy)
    # Also where the base of the power is 0.
    gradient = jax.grad(loss)(jnp.array([200.0, 0.0]), 0)
    np.testing.assert_allclose(gradient, [0, 0], atol=1e-30)


def test_poly1_is_cross_entropy_plus_the_mean_absolute_error():
  expected = losses.cross_entropy(
    LOGITS, LABELS
  ) - 0.5 * losses.mean_absolute_error(LOGITS, LABELS)
  np.testing.assert_allclose(
    losses.poly1(LOGITS, LABELS, epsilon=-0.5), expected, rtol=8 * EPS
  )


@pytest.mark.parametrize("loss", [losses.focal, losses.dual_focal])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 5.0])
def test_exponents_below_1_have_finite_derivatives_at_a_confident_label(
  loss, gamma
):
  z = jnp.array([[90.0, 0.0, -3.0], [400.0, 0.0, 0.0], [1e4, 0.0, 0.0]])
  for derivative in (jax.grad, jax.hessian):
    values = jax.vmap(lambda z, d=derivative: d(loss)(z, 0, gamma=gamma))(z)
    assert np.isfinite(values).all()


def test_losses_of_confident_examples_are_accurate():
  # Both factors of (1 - p)^2 (-log p) are exp(-20) there, to a relative 1e-9.
  loss = losses.focal(jnp.array([20.0, 0.0]), 0)
  np.testing.assert_allclose(loss, np.exp(-60.0), rtol=70 * EPS)


def test_dual_focal_looks_at_the_next_class_below_the_label():
  p = np.array([0.2, 0.5, 0.2, 0.1])
  z = np.log(p).astype(F32)
  values = losses.dual_focal(np.stack([z] * 4), np.arange(4))
  # Ties are not below; the last class has nothing below it.
  base = 1 - p + np.array([0.1, 0.2, 0.1, 0.0])
  np.testing.assert_allclose(values, -(base**2) * np.log(p), rtol=16 * EPS)


@pytest.mark.parametrize("name", ["focal", "dual_focal"])
@pytest.mark.parametrize("gamma", [-0.1, np.nan, np.inf])
def test_exponents_outside_their_domain_raise(name, gamma):
  loss = getattr(losses, name)
  with pytest.raises(ValueError, match=r"gamma must be in \[0, inf\)"):
    loss(LOGITS, LABELS, gamma=gamma)
  # A traced one cannot be read.
  shape = jax.eval_shape(lambda g: loss(LOGITS, LABELS, gamma=g), gamma).shape
  assert shape == (8,)
