# SPDX-License-Identifier: Apache-2.0
"""The bi-tempered logistic loss: worked values, limits, its normaliser."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import losses

F32 = np.float32
EPS = np.finfo(F32).eps
PROBE = np.array([1.2, -0.4, 0.3, 2.0])
RNG = np.random.default_rng(15)
LOGITS = (RNG.normal(size=(8, 5)) * 3).astype(F32)
LABELS = np.arange(8) % 5


def log_t(x, t):
  return (x ** (1 - t) - 1) / (1 - t)


def divergence_constant(labels, t1):
  """The divergence from soft labels minus the expected loss."""
  power = (labels ** (2 - t1)).sum(-1)
  return (labels * log_t(labels, t1)).sum(-1) - (power - 1) / (2 - t1)


@pytest.mark.x64
def test_worked_numbers():
  loss = losses.bi_tempered_logistic
  for (t1, t2), value in (
    ((0.8, 1.2), 0.9968076180),
    ((0.5, 1.5), 0.6577504632),
  ):
    np.testing.assert_allclose(
      loss(PROBE, 0, t1=t1, t2=t2), value, rtol=0, atol=1e-10
    )
  activations = np.array([[-0.5, 0.1, 2], [0.1, 1.5, -5], [4, -3, -6]])
  labels = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.2, 0.8, 0]])
  for (t1, t2), values in (
    ((0.5, 1.5), [0.0230191420757, 0.189729091236, 0.938749223738]),
    # From a normaliser in 40 digits; that of other code is 1e-6 off here.
    ((0.5, 0.8), [0.216463521276, 0.418365940253, 1.33997929587]),
  ):
    actual = loss(activations, labels, t1=t1, t2=t2)
    np.testing.assert_allclose(
      actual + divergence_constant(labels, t1), values, rtol=0, atol=1e-10
    )


def test_both_temperatures_of_1_are_cross_entropy():
  np.testing.assert_allclose(
    losses.bi_tempered_logistic(LOGITS, LABELS, t1=1.0, t2=1.0),
    losses.cross_entropy(LOGITS, LABELS),
    rtol=32 * EPS,
  )


@pytest.mark.parametrize("t2", [1 - 1e-5, 1.0, 1 + 1e-5])
def test_nothing_breaks_at_a_temperature_of_1(t2):
  def loss(t1, t2):
    return losses.bi_tempered_logistic(LOGITS, LABELS, t1=t1, t2=t2).sum()

  gradients = jax.grad(loss, (0, 1))(1.0, t2)
  expected = jax.grad(loss, (0, 1))(1.0 + 1e-3, 1.0 + 1e-3)
  np.testing.assert_allclose(gradients, expected, rtol=0.02)


@pytest.mark.parametrize("t2", [0.6, 1.0, 1.5, 3.0])
def test_the_loss_is_least_at_the_class_probabilities(t2):
  """Proper: the tempered softmax at the minimum is the label distribution."""
  p = np.array([0.5, 0.3, 0.15, 0.05])
  # exp_t2(z) = p, with a normaliser of 0.
  z = np.log(p) if t2 == 1 else log_t(p, t2)
  gradient = jax.grad(
    lambda z: losses.bi_tempered_logistic(z, jnp.float32(p), t1=0.7, t2=t2)
  )(F32(z))
  np.testing.assert_allclose(gradient, 0, atol=4e-6)


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("t2", [0.7, 1.2, 2.0, 4.0])
def test_five_steps_are_accurate(classes, t2):
  rows = np.random.default_rng(15).normal(size=(4, classes)) * np.array(
    [[0.1], [1.0], [5.0], [30.0]]
  )
  rows = rows.astype(F32)
  for row in rows:
    # Below a t2 of 1 small probabilities end in a kink: no value is accurate.
    label = int(row.argmax()) if t2 < 1 else 1
    expected = cases.bi_tempered_logistic(np.float64(row), label, 0.8, t2)
    actual = losses.bi_tempered_logistic(row, label, t1=0.8, t2=t2)
    size = np.log(classes) + np.abs(row).max()
    np.testing.assert_allclose(actual, expected, rtol=64 * EPS * size)


def test_a_contradicted_label_costs_at_most_its_bound():
  z = jnp.array([[0.0, 1e4], [0.0, 30.0]])
  loss = losses.bi_tempered_logistic(z, jnp.array([0, 0]), t1=0.5, t2=1.5)
  assert (loss <= 1 / (1 - 0.5)).all()
  assert (loss > 1).all()


@pytest.mark.parametrize(("t1", "t2"), [(1.0, 0.5), (1.5, 0.5), (1.5, 1.5)])
def test_an_infinite_loss_has_finite_gradients(t1, t2):
  """A `t2` below 1 makes small probabilities 0, whose logarithm is -inf."""
  z = np.array([[0.0, 30.0, 1.0], [30.0, 0.0, 1.0], [-np.inf, 1.0, 0.0]], F32)

  def loss(z, t1, t2):
    loss = losses.bi_tempered_logistic(z, np.zeros(3, int), t1=t1, t2=t2)
    return loss.sum(), loss

  gradients, values = jax.grad(loss, (0, 1, 2), has_aux=True)(z, t1, t2)
  assert not np.isnan(values).any()
  assert np.isinf(values[0]) == (t2 < 1)
  assert np.isinf(values[2])
  assert not any(np.isnan(gradient).any() for gradient in gradients)
  assert np.isfinite(gradients[0]).all()


def test_hyperparameters_outside_their_domain_raise():
  loss = functools.partial(losses.bi_tempered_logistic, LOGITS, LABELS)
  for t1 in (-0.1, 2.0):
    with pytest.raises(ValueError, match=r"t1 must be in \[0, 2\)"):
      loss(t1=t1, t2=1.2)
  with pytest.raises(ValueError, match=r"t2 must be in \(0, inf\)"):
    loss(t1=0.8, t2=0.0)
  with pytest.raises(ValueError, match=r"num_iters must be in \[1, inf\)"):
    loss(t1=0.8, t2=1.2, num_iters=0)
  with pytest.raises(TypeError, match="num_iters must be one int"):
    loss(t1=0.8, t2=1.2, num_iters=5.0)
