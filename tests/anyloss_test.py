# SPDX-License-Identifier: Apache-2.0
"""AnyLoss: metrics of the soft confusion matrix, and their limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import confusion, losses

F32 = np.finfo(np.float32).eps
P = np.array([0.9, 0.6, 0.4, 0.2, 0.55])
Y = np.array([1, 1, 0, 0, 0])
METRICS = (
  confusion.accuracy,
  confusion.f_beta,
  confusion.balanced_accuracy,
  confusion.geometric_mean,
)


def logit(p):
  return np.log(p / (1 - p))


@pytest.mark.x64
@pytest.mark.parametrize(
  ("amplification", "expected"),
  [
    (
      10.0,
      (0.2451508514, 0.2634954582, 0.2282030121, 0.2328690731, 0.1958840534),
    ),
    (
      73.0,
      (0.1952034925, 0.1961975353, 0.1627258340, 0.1786242812, 0.0891182105),
    ),
  ],
)
def test_worked_numbers(amplification, expected):
  loss = functools.partial(
    losses.anyloss, logit(P), Y, amplification=amplification
  )
  actual = [loss(metric=metric) for metric in METRICS]
  actual.append(loss(metric=confusion.f_beta, beta=2.0))
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.x64
def test_gradients_of_the_metrics():
  for metric in METRICS:
    loss = jax.jit(
      functools.partial(losses.anyloss, metric=metric, amplification=9.0)
    )
    grads = jax.grad(loss)(logit(P), Y)
    for k in range(5):
      step = 1e-6 * np.eye(5)[k]
      centred = loss(logit(P) + step, Y) - loss(logit(P) - step, Y)
      np.testing.assert_allclose(grads[k], centred / 2e-6, rtol=1e-7, atol=1e-9)


def test_steep_steps_give_the_hard_metric():
  rng = np.random.default_rng(0)
  z = rng.normal(size=50).astype(np.float32)
  z += 0.1 * np.sign(z)
  y, hard = rng.integers(0, 2, 50), z > 0
  tp, fn = (y * hard).sum(), (y * ~hard).sum()
  fp, tn = ((1 - y) * hard).sum(), ((1 - y) * ~hard).sum()
  recall, other = tp / (tp + fn), tn / (tn + fp)
  for metric, expected in zip(
    METRICS,
    (
      (tp + tn) / 50,
      2 * tp / (2 * tp + fn + fp),
      (recall + other) / 2,
      np.sqrt(recall * other),
    ),
    strict=True,
  ):
    loss = losses.anyloss(z, y, metric=metric, amplification=1e4)
    np.testing.assert_allclose(loss, 1 - expected, rtol=0, atol=8 * F32)


def test_f1_is_the_dice_loss_of_the_soft_predictions():
  z = np.float32(logit(P))
  score = 73.0 * np.float32(P - 0.5)
  np.testing.assert_allclose(
    losses.anyloss(z, Y, metric=confusion.f_beta),
    losses.dice(score, Y, smoothing=0.0, axis=None),
    # The rounding error of the score, times the amplification.
    rtol=73 * 4 * F32,
  )


def test_balanced_accuracy_of_a_balanced_set_is_accuracy():
  z = np.float32(logit(P))[:4]
  np.testing.assert_allclose(
    losses.anyloss(z, Y[:4], metric=confusion.balanced_accuracy),
    losses.anyloss(z, Y[:4], metric=confusion.accuracy),
    rtol=8 * F32,
  )


def test_counts_add_up_and_add_over_batches():
  z = np.float32(logit(P))
  of_all = confusion.soft_confusion_matrix(z, Y)
  np.testing.assert_allclose(sum(of_all), 5, rtol=4 * F32)
  first, second = (
    confusion.soft_confusion_matrix(z[part], Y[part])
    for part in (slice(2), slice(2, 5))
  )
  for a, b, c in zip(first, second, of_all, strict=True):
    np.testing.assert_allclose(a + b, c, rtol=4 * F32)


def test_confident_examples_have_a_gradient():
  # From p = 0.728 on the amplified prediction is 1 in float32, but its
  # derivative is not 0.
  z = np.array([2.0, -1.0, -3.0], np.float32)
  y = np.array([1, 0, 0])
  grads = jax.grad(
    lambda z: confusion.soft_confusion_matrix(z, y).true_positive
  )(z)
  p = 1 / (1 + np.exp(-2.0))
  one = 1 / (1 + np.exp(-73 * (p - 0.5)))
  expected = 73 * p * (1 - p) * one * np.exp(-73 * (p - 0.5)) * one
  np.testing.assert_allclose(grads[0], expected, rtol=73 * 4 * F32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone(metric, label):
  z = np.array([0.3, -0.2, 1e4, -1e4], np.float32)
  y = np.full(4, label)
  loss, grads = jax.value_and_grad(
    lambda z: losses.anyloss(z, y, metric=metric)
  )(z)
  assert 0 <= loss <= 1
  assert np.isfinite(grads).all()
  if metric is confusion.f_beta and label == 0:
    assert loss == 1  # Nothing can be found.
  else:
    assert (grads[:2] < 0 if label else grads[:2] > 0).all()
  z = np.where(y, 1e4, -1e4).astype(np.float32)
  perfect = losses.anyloss(z, y, metric=metric)
  assert perfect == float(metric is confusion.f_beta and label == 0)
  wrong, grads = jax.value_and_grad(
    lambda z: losses.anyloss(z, y, metric=metric, amplification=1e4)
  )(-z)
  assert wrong == {confusion.balanced_accuracy: 0.5}.get(metric, 1)
  np.testing.assert_array_equal(grads, 0)


def test_bad_arguments_are_named():
  z, y = jnp.zeros(3), jnp.zeros(3, jnp.int32)
  with pytest.raises(
    ValueError, match=r"amplification must be in \(0, inf\), got 0"
  ):
    losses.anyloss(z, y, metric=confusion.accuracy, amplification=0)
  with pytest.raises(ValueError, match=r"beta must be in \(0, inf\), got -1"):
    losses.anyloss(z, y, metric=confusion.f_beta, beta=-1)
  with pytest.raises(TypeError, match="beta"):
    losses.anyloss(z, y, metric=confusion.accuracy, beta=2.0)
  with pytest.raises(TypeError, match="metric must be a function of a Soft"):
    losses.anyloss(z, y, metric="f_beta")
  for metric in METRICS:
    with pytest.raises(TypeError, match="confusion must be a SoftConfusionM"):
      metric((3.0, 1.0, 2.0, 4.0))


def test_whole_numbers_are_counts():
  for metric in METRICS:
    floats = metric(confusion.SoftConfusionMatrix(*jnp.array([3.0, 1, 2, 4])))
    for counts in ((3, 1, 2, 4), jnp.array([3, 1, 2, 4])):
      assert metric(confusion.SoftConfusionMatrix(*counts)) == floats
