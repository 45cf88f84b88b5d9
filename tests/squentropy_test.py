# SPDX-License-Identifier: Apache-2.0
"""Squentropy: the paper's formula, and errors of other implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from squentropy_jax import losses, squentropy, squentropy_with_integer_labels

LOGITS = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
LABELS = jnp.array([0, 2])


def log_softmax(row):
  return row - np.log(np.exp(row).sum())


def test_by_hand():
  first = -log_softmax(np.array([2.0, 0, -1]))[0] + (0**2 + 1**2) / 2
  second = -log_softmax(np.array([0.5, 1, 0]))[2] + (0.5**2 + 1**2) / 2
  np.testing.assert_allclose(
    squentropy(LOGITS, LABELS), [first, second], rtol=1e-6
  )


def test_the_true_class_has_no_square():
  # If all incorrect logits are 0, the square term is 0 for any labelled one.
  for target in (-7.0, 0.0, 7.0):
    row = jnp.array([target, 0.0, 0.0])
    np.testing.assert_array_equal(
      squentropy(row, 0), losses.cross_entropy(row, 0)
    )


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
def test_the_square_is_divided_by_the_number_of_incorrect_classes(num_classes):
  row = jnp.full(num_classes, 3.0).at[0].set(-1.0)
  square = squentropy(row, 0) - losses.cross_entropy(row, 0)
  np.testing.assert_allclose(square, 9.0, rtol=1e-6)


def test_logits_are_squared_not_probabilities():
  shifted = squentropy(LOGITS + 1.0, LABELS) - squentropy(LOGITS, LABELS)
  # Mean of (z + 1)^2 - z^2 over the incorrect logits; the softmax is the same.
  np.testing.assert_allclose(shifted, [0.0, 2.5], atol=1e-5)


def test_cross_entropy_is_not_divided_by_anything():
  np.testing.assert_allclose(
    squentropy(LOGITS, LABELS, scale=0.0),
    optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS),
    rtol=1e-6,
  )


def test_squares_are_masked_before_they_are_summed():
  # The sum of all squares minus the target's is 0 here.
  row = jnp.array([12345.678, 0.1, 0.1])
  np.testing.assert_allclose(squentropy(row, 0), 0.01, rtol=1e-6)


def test_a_confident_example_has_an_accurate_loss_and_gradient():
  row = jnp.array([30.0, 0.0, 0.0])
  truth = np.log1p(2 * np.exp(-30.0))
  np.testing.assert_allclose(losses.cross_entropy(row, 0), truth, rtol=1e-5)
  gradient = jax.grad(squentropy)(row, 0)
  np.testing.assert_allclose(gradient[0], -truth, rtol=1e-5)


def test_the_loss_of_a_single_possible_class_is_zero():
  row = jnp.array([3.0, -jnp.inf])
  assert squentropy(row, 0) == 0
  np.testing.assert_array_equal(jax.grad(squentropy)(row, 0), [0.0, 0.0])


def test_at_zero_the_gradient_is_that_of_cross_entropy():
  row = jnp.zeros(7)
  np.testing.assert_array_equal(
    jax.grad(squentropy)(row, 3), jax.grad(losses.cross_entropy)(row, 3)
  )


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_hessian(num_classes):
  row = jnp.asarray(np.random.default_rng(0).normal(size=num_classes), "f4")
  p = jax.nn.softmax(row)
  incorrect = jnp.ones(num_classes).at[0].set(0.0)
  expected = (
    jnp.diag(p) - jnp.outer(p, p) + jnp.diag(2 * incorrect / (num_classes - 1))
  )
  actual = jax.hessian(squentropy)(row, 0)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
  assert np.linalg.eigvalsh(actual).min() > 0  # Strictly convex.


@pytest.mark.parametrize("top", [0.6, 0.9, 0.99])
def test_argmax_consistent_but_not_proper(top):
  """At the optimum the softmax is less confident than the classes are."""
  eta = jnp.array([top, *[(1 - top) / 9] * 9])
  logits = jnp.zeros(10)
  step = jax.jit(lambda z: z - jax.grad(squentropy)(z, eta))
  for _ in range(3000):
    logits = step(logits)
  p = jax.nn.softmax(logits)
  residual = p + 2 * (1 - eta) * logits / 9 - eta  # Of the stationarity.
  np.testing.assert_allclose(residual, 0.0, atol=1e-5)
  assert p.argmax() == 0
  expected = {0.6: 0.435, 0.9: 0.819, 0.99: 0.977}[top]
  np.testing.assert_allclose(p[0], expected, atol=1e-3)


def test_the_drop_in_replacement_of_the_optax_function():
  np.testing.assert_array_equal(
    squentropy_with_integer_labels(LOGITS, LABELS),
    squentropy(LOGITS, LABELS),
  )
  keep = jnp.array([True, False])
  np.testing.assert_array_equal(
    squentropy_with_integer_labels(LOGITS.T, LABELS, 0, keep),
    squentropy(LOGITS, LABELS, where=keep),
  )
  with pytest.raises(TypeError, match="labels must be integer class ids"):
    squentropy_with_integer_labels(LOGITS, jax.nn.softmax(LOGITS))


def test_label_smoothing_is_a_soft_label():
  smooth = optax.smooth_labels(jax.nn.one_hot(LABELS, 3), 0.1)
  each = jnp.stack([squentropy(LOGITS, jnp.full(2, k)) for k in range(3)], -1)
  np.testing.assert_allclose(
    squentropy(LOGITS, smooth), (smooth * each).sum(-1), rtol=1e-6
  )


def test_a_training_step_learns():
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(64, 5)), "f4")
  y = jnp.asarray(rng.integers(0, 3, 64))
  x = x.at[jnp.arange(64), y].add(4.0)
  optimizer = optax.sgd(0.03)
  w = jnp.zeros((5, 3))
  state = optimizer.init(w)

  @jax.jit
  def step(w, state):
    value, gradient = jax.value_and_grad(lambda w: squentropy(x @ w, y).mean())(
      w
    )
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(w, updates), state, value

  for _ in range(300):
    w, state, value = step(w, state)
  assert value < 0.6
  assert ((x @ w).argmax(-1) == y).mean() > 0.9


def test_the_drop_in_replacement_names_a_label_above_int32():
  logits = jnp.zeros((3, 2))
  with pytest.raises(ValueError, match=r"labels\[2\]"):
    squentropy_with_integer_labels(logits, [0, 1, 2**40])
  with pytest.raises(TypeError, match="integer class ids"):
    squentropy_with_integer_labels(logits, [0.0, 1.0, 0.0])


def test_negative_factors_raise():
  logits, labels = jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32)
  with pytest.raises(ValueError, match=r"scale must be in \[0, inf\)"):
    squentropy(logits, labels, scale=-1.0)
  with pytest.raises(ValueError, match=r"target_weight must be in \[0, inf\)"):
    losses.rescaled_square(logits, labels, target_weight=-1.0)


@pytest.mark.parametrize("large", [1e19, 3e19, 3e38])
def test_squares_that_overflow(large):
  """The loss is infinite by its formula; its gradient is finite."""
  logits = jnp.array([[0.5, large, 1.0], [0.5, -large, 1.0], [large, 0.5, 1.0]])
  loss, gradient = jax.jit(jax.vmap(jax.value_and_grad(squentropy), (0, None)))(
    logits, 0
  )
  np.testing.assert_array_equal(np.isinf(loss), [large > 2e19] * 2 + [False])
  assert np.isfinite(gradient[:, 0]).all()
  assert not np.isnan(gradient).any()
  # A factor of 0 is cross-entropy, also there.
  np.testing.assert_array_equal(
    squentropy(logits, jnp.zeros(3, int), scale=0.0),
    losses.cross_entropy(logits, jnp.zeros(3, int)),
  )
