# SPDX-License-Identifier: Apache-2.0
"""Finite logits of any size: values and gradients where squares overflow."""

import functools

from cases import BINARY_CASES, CLASS_CASES, PAIR_CASES
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from squentropy_jax import losses
from squentropy_jax._core import class_sums, dense_sums

F32 = np.float32
X64 = pytest.mark.x64


def rows(*sizes):
  """Rows with label 0 whose largest entries have the given sizes."""
  return np.array(
    [
      row
      for size in sizes
      for row in (
        [size, 0.5, -size / 2, 1.0],
        [0.5, size, 1.0, -size],
        [0.5, 1.0, -size, 2.0],
        [size, size, -1.0, size / 3],
        [-size, 0.25, 3.0, -1.0],
        [size / 1e3, 0.0, -size, 40.0],
      )
    ]
  )


SIZES = (1e19, 1e30, 3e38)
WIDE_SIZES = (1e150, 1e200, 1e300)
HARD = jnp.zeros(6 * len(SIZES), jnp.int32)


# Formulas in numbers of any size and their gradients.


def exp(x):
  """The exponential; what is below every float is 0."""
  return mpmath.exp(x) if x > -1e5 else mpmath.mpf(0)


def log_sum_exp(z):
  """The largest number, and by how much the log-sum-exp exceeds it."""
  top = max(z)
  return top, mpmath.log(mpmath.fsum(exp(x - top) for x in z))


def cross_entropy(z):
  # The target is alone where it has almost all of the probability.
  others = z[1:]
  top, more = log_sum_exp(others)
  log_odds = top - z[0] + more
  if log_odds > 1e5:
    return log_odds
  return mpmath.log1p(exp(log_odds))


def zscore(z, sharpness=1, location=0):
  mean = mpmath.fsum(z) / len(z)
  deviation = mpmath.sqrt(mpmath.fsum((x - mean) ** 2 for x in z) / len(z))
  score = (z[0] - mean) / deviation
  return mpmath.log1p(exp(sharpness * (location - score))) / sharpness


def taylor_softmax(z):
  numerators = [1 + x + x**2 / 2 for x in z]
  return mpmath.log1p(mpmath.fsum(numerators[1:]) / numerators[0])


def spherical_softmax(z, epsilon=0.01):
  numerators = [x**2 + mpmath.mpf(epsilon) for x in z]
  return mpmath.log1p(mpmath.fsum(numerators[1:]) / numerators[0])


def logit_norm_cross_entropy(z, temperature=1):
  norm = mpmath.sqrt(mpmath.fsum(x**2 for x in z))
  return cross_entropy([x / norm / temperature for x in z])


def confidence_penalty(z, beta=0.1):
  top, more = log_sum_exp(z)
  log_p = [x - top - more for x in z]
  entropy = -mpmath.fsum(exp(x) * x for x in log_p)
  return cross_entropy(z) - mpmath.mpf(beta) * entropy


def aldr_kl(z, alpha=2):
  log_classes = mpmath.log(len(z))
  temperature = mpmath.mpf(1)
  for _ in range(60):
    top, more = log_sum_exp([x / temperature for x in z])
    log_q = [x / temperature - top - more for x in z]
    divergence = mpmath.fsum(exp(x) * x for x in log_q) + log_classes
    temperature = 1 - divergence / (alpha * log_classes)
  top, more = log_sum_exp([x / temperature for x in z])
  lse = temperature * (more - log_classes) + (max(z) - z[0])
  return lse - alpha * log_classes / 2 * (temperature - 1) ** 2


FORMULAS = (
  aldr_kl,
  confidence_penalty,
  logit_norm_cross_entropy,
  spherical_softmax,
  taylor_softmax,
  zscore,
)


@functools.cache
def truth(formula, row):
  """The loss of a row and its gradient, by central differences."""
  # So many digits, that a change of 1e-40 in the largest logit is exact.
  with mpmath.workdps(120 + 2 * int(np.log10(np.abs(row).max()))):
    z = [mpmath.mpf(x) for x in row]
    step = mpmath.mpf(10) ** -40

    def at(k, change):
      return formula([x + (change if i == k else 0) for i, x in enumerate(z)])

    by_logit = [
      (at(k, step) - at(k, -step)) / (2 * step) for k in range(len(z))
    ]
    return float(formula(z)), [float(grad) for grad in by_logit]


def check(formula, z, dtype):
  """The loss in ``dtype`` against its formula, in value and gradient."""
  z = z.astype(dtype)
  labels = jnp.zeros(len(z), jnp.int32)
  loss = getattr(losses, formula.__name__)
  actual, pull = jax.vjp(jax.jit(lambda z: loss(z, labels)), z)
  gradient = np.asarray(pull(jnp.ones_like(actual))[0])
  eps, limits = np.finfo(dtype).eps, np.finfo(dtype)
  for row, value, by_logit in zip(z, actual, gradient, strict=True):
    expected, by_z = truth(formula, tuple(row.tolist()))
    if abs(expected) > limits.max:
      assert np.isinf(value)
    else:
      # 64 ulp, of the constant log C as well.
      np.testing.assert_allclose(
        value, expected, rtol=64 * eps, atol=8 * eps, err_msg=str(row)
      )
    # A derivative that cancels has terms of 1 over the logits. It may be below
    # the least normal number.
    size = np.abs(by_z).max() + 1 / np.abs(row).max()
    atol = 16 * eps * size + 2 * limits.tiny
    np.testing.assert_allclose(
      by_logit, by_z, rtol=256 * eps, atol=atol, err_msg=str(row)
    )


@pytest.mark.parametrize("formula", FORMULAS)
def test_values_and_gradients_of_float32(formula):
  check(formula, rows(*SIZES), F32)


@X64
@pytest.mark.parametrize("formula", FORMULAS)
def test_values_and_gradients_of_float64(formula):
  check(formula, rows(*WIDE_SIZES), np.float64)


# Sums over the classes of numbers near the largest float overflow here.
SUMS_OVERFLOW = (
  "normalized_cross_entropy",
  "smooth_adversarial_comp_sum",
  "unhinged",
)
# Squares of these overflow, so the loss does.
SQUARES = ("one_vs_rest_hinge", "rescaled_square", "squentropy")


@pytest.mark.parametrize("case", CLASS_CASES, ids=repr)
def test_every_loss_is_right_or_not_finite(case):
  z = rows(*SIZES).astype(F32)
  actual, pull = jax.vjp(lambda z: case.loss(z, HARD), z)
  gradient = np.asarray(pull(jnp.ones_like(actual))[0])
  for row, value, by_logit in zip(z, actual, gradient, strict=True):
    if case.name == "continuous_categorical" and len(set(row.tolist())) < 4:
      continue  # The reference divides by the differences.
    expected = case.reference(np.float64(row), 0)
    largest = np.abs(row).max()
    if not np.isfinite(value):
      overflow = largest > 1e38 and case.name in SUMS_OVERFLOW
      assert overflow or abs(expected) > np.finfo(F32).max / 16, row
      continue
    size = abs(expected)
    if case.size is not None:
      size = max(size, abs(case.size(np.float64(row), 0)))
    ulps = 128
    if case.name == "bi_tempered_logistic":
      ulps = 2**14  # The reference subtracts the other probabilities from 1.
    atol = ulps * np.finfo(F32).eps * size + 1e-37
    np.testing.assert_allclose(
      value, expected, rtol=0, atol=atol, err_msg=str(row)
    )
    if case.name not in SQUARES:
      assert np.isfinite(by_logit).all(), row


@X64
@pytest.mark.parametrize("case", CLASS_CASES, ids=repr)
def test_gradients_of_float32_are_those_of_float64(case):
  if case.name in SQUARES:
    pytest.skip("The gradient grows like the logits.")
  sizes = SIZES[:2] if case.name in SUMS_OVERFLOW else SIZES
  z = rows(*sizes).astype(F32)

  def gradient(z):
    return jax.grad(lambda z: case.loss(z, HARD[: len(z)]).sum())(z)

  actual, expected = np.float64(gradient(z)), gradient(np.float64(z))
  expected = np.asarray(expected)
  size = np.abs(expected).max(-1, keepdims=True)
  if case.name == "continuous_categorical":
    size = size + 1  # The gradient is a difference of mean and target.
  tolerance = 1e-5 * np.abs(expected) + 2e-6 * size + 1e-27
  np.testing.assert_array_less(np.abs(actual - expected), tolerance)


@pytest.mark.parametrize(
  "name", ["zscore", "taylor_softmax", "spherical_softmax"]
)
def test_statistics_that_overflow_give_nan(name):
  """Such statistics come from a fused head, which does not rescale logits."""

  def loss(z):
    sums = dense_sums.class_sums(
      z, HARD[:6], axis=1, keep=None, reads=class_sums.ALL_SUMS
    )
    return getattr(losses, name).row(class_sums.row_stats(sums))

  value, pull = jax.vjp(loss, jnp.asarray(rows(1e20), F32))
  assert np.isnan(value).all()
  assert np.isnan(pull(jnp.ones_like(value))[0]).any(-1).all()


@pytest.mark.parametrize(
  "case", [c for c in CLASS_CASES if c.predicts], ids=repr
)
def test_predicted_probabilities_sum_to_one(case):
  loss = getattr(losses, case.name)
  hyper = case.hyperparameters if case.name == "bi_tempered_logistic" else {}
  log_probs = loss.log_probs(rows(*SIZES).astype(F32), **hyper)
  np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize(
  "case", [c for c in BINARY_CASES if c.reference], ids=repr
)
def test_binary_losses(case):
  z = np.repeat(SIZES, 4).astype(F32) * F32([1, 1, -1, -1] * 3)
  labels, wide = np.array([0, 1] * 6), np.float64(z)
  # The references overflow. The largest terms are left.
  linear = np.where(z > 0, 1 - labels, -labels) * wide
  expected = {
    "binary_cross_entropy": linear,
    "binary_squentropy": linear + (1 - labels) * wide**2,
    "continuous_bernoulli": linear - np.log(np.abs(wide)),
  }.get(case.name)
  if expected is None:
    expected = case.reference(np.clip(wide, -700, 700), labels)
  expected = np.where(expected > np.finfo(F32).max, np.inf, expected)
  value, pull = jax.vjp(lambda z: case.loss(z, labels), z)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  gradient = np.asarray(pull(jnp.ones_like(value))[0])
  assert np.isfinite(gradient[np.isfinite(expected)]).all()


@pytest.mark.parametrize("case", PAIR_CASES, ids=repr)
def test_losses_of_pairs(case):
  largest = F32(SIZES)[:, None]
  first = largest * F32([1, 0.3, -1, 0, 0.5][: case.num_scores]) + F32(0.5)
  for second in (first, first[:, ::-1], np.full_like(first, 0.3)):
    for a, b in ((first, second), (second, first)):
      expected = [
        case.reference(np.float64(x), np.float64(y))
        for x, y in zip(a, b, strict=True)
      ]
      expected = np.array(expected)
      value, pull = jax.vjp(case.loss, a, b)
      overflow = np.isinf(value)
      assert (expected[overflow] > np.finfo(F32).max / 4).all()
      np.testing.assert_allclose(
        value[~overflow], expected[~overflow], rtol=1e-5
      )
      by_first, _ = pull(jnp.ones_like(value))
      assert np.isfinite(by_first).all()
