# SPDX-License-Identifier: Apache-2.0
"""Losses of one logit for each label: values, limits and accuracy."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
from support.formulas import binary_cross_entropy, binary_squentropy

from squentropy_jax import losses

F32 = np.float32
RNG = np.random.default_rng(1958)
LOGITS = (RNG.normal(size=(2, 6)) * 3).astype(F32)
IDS = RNG.integers(0, 2, size=(2, 6))
SOFT = RNG.random((2, 6)).astype(F32)
WEIGHTS = RNG.random((2, 6)).astype(F32) + F32(0.5)
EPS = np.finfo(F32).eps
LOSSES = pytest.mark.parametrize(
  "loss", [losses.binary_cross_entropy, losses.binary_squentropy]
)


def two_logits(z):
  z = jnp.asarray(z)
  return jnp.stack([jnp.zeros_like(z), z], axis=-1)


@pytest.mark.parametrize(
  ("of_one", "of_two"),
  [
    (losses.binary_cross_entropy, losses.cross_entropy),
    (losses.binary_squentropy, losses.squentropy),
    (
      functools.partial(losses.binary_squentropy, scale=0.3),
      functools.partial(losses.squentropy, scale=0.3),
    ),
    (
      functools.partial(losses.binary_cross_entropy, gamma=2.0),
      losses.focal,
    ),
  ],
  ids=["cross_entropy", "squentropy", "scale", "focal"],
)
def test_is_the_loss_of_the_logits_0_and_z(of_one, of_two):
  z = np.append(LOGITS.ravel(), F32([0, 60, -60, -np.inf, -np.inf]))
  labels = np.append(IDS.ravel(), [1, 1, 0, 0, 1])

  def pair(z):
    return of_two(two_logits(z), labels)

  actual, pull = jax.vjp(lambda z: of_one(z, labels), z)
  expected, pull_two = jax.vjp(pair, z)
  np.testing.assert_allclose(actual, expected, rtol=16 * EPS)
  gradient = pull(jnp.ones_like(actual))[0]
  np.testing.assert_allclose(
    gradient[:-2], pull_two(jnp.ones_like(actual))[0][:-2], rtol=64 * EPS
  )
  assert np.isfinite(gradient).all()
  soft = np.append(SOFT.ravel(), F32([0, 0.5, 0.25, 0, 0]))
  actual = of_one(z, soft)
  expected = of_two(two_logits(z), jnp.stack([1 - soft, soft], axis=-1))
  np.testing.assert_allclose(actual, expected, rtol=16 * EPS)


def test_values_by_hand():
  # log 2 and its share; the logarithm of 1 + e^-2.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
  close(losses.binary_cross_entropy(0.0, 1), 0.6931472)
  close(losses.binary_cross_entropy(0.0, 0, gamma=2.0), 0.1732868)
  close(losses.binary_cross_entropy(2.0, True), 0.126928)
  close(losses.binary_squentropy(2.0, True), 0.126928)
  close(losses.binary_squentropy(-2.0, 0), 4.126928)
  close(losses.binary_squentropy(-2.0, 0, scale=0.0), 0.126928)


def test_against_optax():
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
  close(
    losses.binary_cross_entropy(LOGITS, SOFT),
    optax.sigmoid_binary_cross_entropy(LOGITS, SOFT),
  )
  # Its focal loss weights positives by alpha and negatives by 1 - alpha.
  close(
    0.75
    * losses.binary_cross_entropy(
      LOGITS, IDS, gamma=2.0, positive_weight=0.25 / 0.75
    ),
    optax.sigmoid_focal_loss(LOGITS, F32(IDS), alpha=0.25, gamma=2.0),
  )


@LOSSES
def test_weights_of_positives(loss):
  plain = np.asarray(loss(LOGITS, IDS))
  actual = loss(LOGITS, IDS, positive_weight=WEIGHTS)
  expected = np.where(IDS == 1, WEIGHTS, 1) * plain
  np.testing.assert_allclose(actual, expected, rtol=4 * EPS)
  np.testing.assert_array_equal(
    loss(LOGITS, IDS, positive_weight=0.0), np.where(IDS == 1, 0, plain)
  )
  of_labels = WEIGHTS[0]
  with pytest.raises(ValueError, match=r"Pass jnp.broadcast_to\(positive_weig"):
    loss(LOGITS, IDS, positive_weight=of_labels)
  repeated = jnp.broadcast_to(of_labels, LOGITS.shape)
  actual = loss(LOGITS, IDS, positive_weight=repeated)
  expected = np.where(IDS == 1, of_labels, 1) * plain
  np.testing.assert_allclose(actual, expected, rtol=4 * EPS)
  # The value in a dropped entry may be anything.
  keep = np.arange(12).reshape(2, 6) % 5 > 0
  weights = np.where(keep, WEIGHTS, -np.inf)
  actual = loss(LOGITS, IDS, positive_weight=weights, where=keep)
  np.testing.assert_allclose(
    actual, np.where(keep, loss(LOGITS, IDS, positive_weight=WEIGHTS), 0)
  )


@LOSSES
def test_hyperparameters_outside_their_domains_raise(loss):
  name = "scale" if loss is losses.binary_squentropy else "gamma"
  for key in (name, "positive_weight"):
    with pytest.raises(ValueError, match=rf"{key} must be in \[0, inf\)"):
      loss(LOGITS, IDS, **{key: -1.0})
    with pytest.raises(ValueError, match=rf"{key} must be a scalar or have"):
      loss(LOGITS, IDS, **{key: np.ones(5, F32)})


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
def test_derivatives_in_everything(gamma):
  """A traced gamma of 0 has a derivative, and the same value as a known one."""

  def total(z, y, gamma, weight):
    each = losses.binary_cross_entropy(
      z, y, gamma=gamma, positive_weight=weight
    )
    return each.sum(), each

  arguments = LOGITS, SOFT, F32(gamma), WEIGHTS
  gradients, each = jax.jit(
    jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)
  )(*arguments)
  known = losses.binary_cross_entropy(
    LOGITS, SOFT, gamma=gamma, positive_weight=WEIGHTS
  )
  np.testing.assert_allclose(each, known, rtol=64 * EPS)
  step = 1e-6
  wide = [np.float64(x) for x in arguments]
  for k, gradient in enumerate(gradients):
    up, down = list(wide), list(wide)
    up[k], down[k] = wide[k] + step, wide[k] - step
    derivative = binary_cross_entropy(*up) - binary_cross_entropy(*down)
    expected = derivative / (2 * step)
    expected = expected.sum() if gradient.ndim == 0 else expected
    np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=1e-6)


def test_values_of_squentropy():
  actual = losses.binary_squentropy(
    LOGITS, SOFT, scale=0.3, positive_weight=WEIGHTS
  )
  expected = binary_squentropy(np.float64(LOGITS), SOFT, 0.3, WEIGHTS)
  np.testing.assert_allclose(actual, expected, rtol=16 * EPS)


def truth(z, label, squared):
  with mpmath.workdps(80):
    x = mpmath.mpf(float(z))
    value = mpmath.log1p(mpmath.exp(-x if label else x))
    derivative = 1 / (1 + mpmath.exp(-x)) - label
    if squared and not label:
      value, derivative = value + x**2, derivative + 2 * x
    return float(value), float(derivative)


@LOSSES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_few_ulp_also_for_confident_examples(loss, dtype):
  z = np.linspace(-85, 85, 171)
  z = jnp.asarray(np.concatenate([z, z / 1e3, z / 1e9]), dtype)
  for label in (0, 1):
    value, pull = jax.vjp(lambda z, y=label: loss(z, jnp.full(z.shape, y)), z)
    gradient = pull(jnp.ones_like(value))[0]
    exact = [truth(x, label, loss is losses.binary_squentropy) for x in z]
    expected, derivative = np.transpose(exact)
    np.testing.assert_allclose(value, expected, rtol=4 * EPS)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
      np.float64(gradient),
      derivative,
      rtol=8 * EPS if dtype == "float32" else eps,
    )


@LOSSES
def test_infinite_logits_have_the_limit(loss):
  z = F32([np.inf, np.inf, -np.inf, -np.inf])
  labels = np.array([1, 0, 0, 1])
  value, pull = jax.vjp(lambda z: loss(z, labels), z)
  np.testing.assert_array_equal(value, [0, np.inf, 0, np.inf])
  assert np.isfinite(pull(jnp.ones_like(value))[0]).all()
