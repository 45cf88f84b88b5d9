# SPDX-License-Identifier: Apache-2.0
"""Hinge losses: worked values, kinks, and how they differ."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from squentropy_jax import losses

F32 = np.float32
EPS = np.finfo(F32).eps
PROBE = np.array([1.2, -0.4, 0.3, 2.0])
RNG = np.random.default_rng(16)
LOGITS = (RNG.normal(size=(8, 5)) * 3).astype(F32)
LABELS = np.arange(8) % 5
HINGES = (
  losses.one_vs_rest_hinge,
  losses.crammer_singer,
  losses.weston_watkins,
)


@pytest.mark.x64
def test_worked_numbers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  z, labels = np.array([[1.2, -0.3, 0.4], [-0.5, 0.2, -2]]), np.array([0, 1])
  hinge = losses.one_vs_rest_hinge
  close(hinge(z, labels, squared=False), [2.1, 1.3])
  close(hinge(z, labels), [2.45, 0.89])
  close(hinge(z, labels).sum() / 6, 0.556666666667, atol=1e-12)
  gradients = jax.grad(lambda z: hinge(z, labels).sum())(z)
  close(gradients, [[0, 1.4, 2.8], [1, -1.6, 0]])
  # Complete objectives, with a penalty on the weights.
  square = np.square([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4]])
  total = hinge(z, labels).sum()
  close(square.mean() + total / 6, 0.755)
  close(square.sum() / 2 + total / 2, 2.265)
  close(square.sum() / 2 + total, 3.935)
  close(losses.crammer_singer(PROBE, 0), 1.8)
  close(losses.weston_watkins(PROBE, 0), 1.9)


def test_optax_has_the_same_multiclass_hinge():
  expected = optax.losses.multiclass_hinge_loss(LOGITS, LABELS)
  np.testing.assert_allclose(
    losses.crammer_singer(LOGITS, LABELS), expected, atol=20 * EPS
  )


def test_two_classes_are_one_binary_hinge():
  score = np.linspace(-3, 3, 9, dtype=F32)
  z, labels = np.stack([score, -score], -1), np.zeros(9, int)
  hinge = np.maximum(0, 1 - score)
  np.testing.assert_allclose(
    losses.one_vs_rest_hinge(z, labels), 2 * hinge**2, rtol=4 * EPS
  )
  # The margins of the other two are differences: twice the score.
  double = np.maximum(0, 1 - 2 * score)
  for loss in (losses.crammer_singer, losses.weston_watkins):
    np.testing.assert_allclose(loss(z, labels), double, rtol=4 * EPS)


@pytest.mark.parametrize("loss", HINGES)
def test_no_loss_and_no_gradient_once_all_margins_are_met(loss):
  z = jnp.array([[2.0, -1.0, -1.5], [1.0, -1.0, -1.0]])
  value, gradient = jax.value_and_grad(
    lambda z: loss(z, jnp.array([0, 0])).sum()
  )(z)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)
  # On the kink itself too, that of the linear hinge.
  kink = jnp.array([1.0, -1.0, 0.0])
  gradient = jax.grad(losses.one_vs_rest_hinge)(kink, 0, squared=False)
  np.testing.assert_array_equal(gradient, [0, 0, 1])
  gradient = jax.grad(losses.crammer_singer)(jnp.array([1.0, 0.0, 0.0]), 0)
  np.testing.assert_array_equal(gradient, 0)


def test_the_squared_hinge_is_least_at_the_class_probabilities():
  p = np.array([0.6, 0.3, 0.1], F32)
  gradient = jax.grad(losses.one_vs_rest_hinge)(2 * p - 1, p)
  np.testing.assert_allclose(gradient, 0, atol=4 * EPS)


def test_crammer_singer_is_the_largest_term_of_weston_watkins():
  largest = losses.crammer_singer(LOGITS, LABELS, margin=0.5)
  total = losses.weston_watkins(LOGITS, LABELS, margin=0.5)
  assert (largest <= total * (1 + 4 * EPS)).all()
  assert (total <= 4 * largest * (1 + 4 * EPS)).all()
  # A row with one incorrect class has one term.
  np.testing.assert_array_equal(
    losses.crammer_singer(LOGITS[:, :2], LABELS % 2),
    losses.weston_watkins(LOGITS[:, :2], LABELS % 2),
  )


def test_ties_send_the_gradient_to_one_class():
  gradient = jax.grad(losses.crammer_singer)(jnp.array([0.0, 2.0, 2.0]), 0)
  np.testing.assert_array_equal(gradient, [-1, 1, 0])


@pytest.mark.parametrize("loss", HINGES)
@pytest.mark.parametrize("margin", [-0.5, np.nan])
def test_margins_outside_their_domain_raise(loss, margin):
  with pytest.raises(ValueError, match=r"margin must be in \[0, inf\)"):
    loss(LOGITS, LABELS, margin=margin)
