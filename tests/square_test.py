# SPDX-License-Identifier: Apache-2.0
"""The rescaled square loss: values by hand, limits, minimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax.losses import rescaled_square

ROW = jnp.array([2.0, 0.5, -1.0])


def test_by_hand():
  np.testing.assert_allclose(
    rescaled_square(ROW, 0), ((2 - 1) ** 2 + 0.5**2 + 1**2) / 3, rtol=1e-6
  )
  np.testing.assert_allclose(
    rescaled_square(ROW, 1, target_weight=15.0, target_value=30.0),
    (15 * (0.5 - 30) ** 2 + 2**2 + 1**2) / 3,
    rtol=1e-6,
  )


def test_plain_square_is_the_distance_to_one_hot():
  target = jax.nn.one_hot(2, 3)
  np.testing.assert_allclose(
    rescaled_square(ROW, 2), jnp.square(ROW - target).mean(), rtol=1e-6
  )


def test_soft_labels_differ_from_the_distance_by_a_constant_of_the_logits():
  p = jnp.array([0.5, 0.3, 0.2])

  def distance(z):
    return jnp.square(z - p).mean()

  np.testing.assert_allclose(
    jax.grad(rescaled_square)(ROW, p), jax.grad(distance)(ROW), rtol=1e-5
  )


@pytest.mark.parametrize(("k", "m"), [(1.0, 10.0), (15.0, 30.0)])
def test_minimiser(k, m):
  # f_i = k M eta_i / (k eta_i + 1 - eta_i): the logits over M when k is 1.
  eta = jnp.array([0.7, 0.2, 0.1])
  best = k * m * eta / (k * eta + 1 - eta)
  gradient = jax.grad(rescaled_square)(
    best, eta, target_weight=k, target_value=m
  )
  np.testing.assert_allclose(gradient, 0.0, atol=1e-5 * k * m)
