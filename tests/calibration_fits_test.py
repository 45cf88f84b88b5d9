# SPDX-License-Identifier: Apache-2.0
"""Fits minimise their objective, and their edges are as documented."""

import functools
import math

import jax
import numpy as np
import pytest
import scipy.optimize
from support.calibration_recalibrators import (
  BINARY,
  FAST,
  FITS,
  apply,
  data,
  fit,
  fitted,
  log_softmax,
  mean_nll,
  rows,
)

from squentropy_jax import calibration


def _temperature_gradient(beta, z, y):
  """The derivative of the likelihood by the inverse temperature, in NumPy."""
  z = z.astype(np.float64)
  p = np.exp(log_softmax(np.float64(beta) * z)) - np.eye(z.shape[1])[y]
  return (p * z).sum() / len(y)


def _check_temperature(dtype, bound):
  z, y = data("temperature")
  (beta,) = fit("temperature", z.astype(dtype), y)
  assert beta.dtype == dtype
  assert abs(_temperature_gradient(beta, z, y)) < bound
  # The bound can fail: 0.1 % away from the minimum the gradient is larger.
  assert abs(_temperature_gradient(1.001 * beta, z, y)) > 10 * bound


def test_temperature_ends_where_the_gradient_is_zero():
  # The rounding error of a mean of numbers below 10.
  _check_temperature(np.float32, 4e-6)


@pytest.mark.x64
def test_temperature_ends_where_the_gradient_is_zero_in_float64():
  _check_temperature(np.float64, 1e-13)


def test_vector_scaling_of_inverted_logits_is_the_best():
  # No temperature helps here: the weights must change their signs.
  rng = np.random.default_rng(0)
  z = rng.normal(size=(4000, 3)).astype(np.float32) * 2
  y = (z * [-1.5, 1, -1] + rng.gumbel(size=z.shape)).argmax(-1)
  for logits in (z, -z):
    # From another start and by another method.
    best = scipy.optimize.minimize(
      lambda x, z: mean_nll(x[:3] * z + x[3:], y),
      np.zeros(6),
      args=(logits.astype(np.float64),),
      method="BFGS",
    )
    for penalty, slack in ((0.0, 1e-6), (4.0, 1e-2)):
      params = calibration.fit_vector_scaling(logits, y, penalty=penalty)
      weight, bias = (np.float64(x) for x in params)
      loss = mean_nll(weight * logits + bias, y)
      assert best.fun - 1e-6 < loss < best.fun + slack


def test_underconfident_logits_get_a_temperature_below_one():
  z, y = rows(4, 4000)
  z = z - np.float32(0.3) * np.arange(4, dtype=np.float32)
  temperature = float(calibration.fit_temperature(z, y).temperature)
  # Five standard errors: each row has a Fisher information of order 1.
  assert temperature == pytest.approx(0.4, rel=5 / math.sqrt(4000))
  confident = calibration.fit_temperature(10 * z, y)
  np.testing.assert_allclose(confident.temperature, 10 * temperature, rtol=1e-5)


def test_factors_of_beta_calibration_are_at_least_zero():
  z, y = data("beta")
  unpenalised = functools.partial(calibration.fit_beta_calibration, penalty=0.0)
  params = jax.jit(unpenalised, compiler_options=FAST)(z, 1 - y)
  assert params.a == 0
  assert params.b == 0
  # Only the frequency of the labels remains.
  np.testing.assert_allclose(
    jax.nn.sigmoid(params.c), np.mean(1 - y), rtol=1e-5
  )


def test_separable_data_have_a_finite_fit():
  z = np.float32([[2, 0], [3, -1], [-1, 2], [0, 1]])
  y = np.array([0, 0, 1, 1])
  params = fit("temperature", z, y)
  # The documented value: exp(-beta) underflows for the least margin, 1.
  least = np.finfo(np.float32).smallest_subnormal
  assert 80 < params.inverse_temperature <= -np.log(least)
  worst = fit("temperature", z, 1 - y)
  np.testing.assert_allclose(worst.inverse_temperature, 2**-100, rtol=1e-5)
  wide = np.concatenate([z, z - 5], -1)
  for name in FITS:
    if name in ("temperature", "histogram", "isotonic"):
      continue
    for labels in (y, 1 - y):
      logits = z if name in BINARY else wide
      params = fit(name, logits, labels)
      new = np.asarray(apply(params, logits))
      assert np.all(np.isfinite(new)), name
      # Structured scaling mixes with the uniform distribution, here by 1/5.
      limit = 0.2 if labels is y else mean_nll(logits, labels)
      assert mean_nll(new, labels) < limit, name


def test_equal_logits_give_temperature_one():
  params = fit("temperature", np.ones((3, 4), np.float32), np.arange(3))
  assert params.temperature == 1


@pytest.mark.parametrize(
  "low", [-1e4, -1e7, -1e9, np.finfo(np.float32).min, -np.inf]
)
def test_masked_classes_do_not_change_the_fit(low):
  z, y = data("temperature")
  masked = np.pad(z, ((0, 0), (0, 1)), constant_values=low)
  entry = z.copy()
  entry[0, (y[0] + 1) % 4] = low
  for logits in (masked, entry):
    same = np.where(logits == low, -np.inf, logits).astype(np.float32)
    got = fit("temperature", logits, y).inverse_temperature
    want = fit("temperature", same, y).inverse_temperature
    np.testing.assert_allclose(got, want, rtol=1e-6)
    if logits is masked:
      without = fit("temperature", z, y).inverse_temperature
      # Sums over another number of classes differ by a few ulp.
      np.testing.assert_allclose(got, without, rtol=2e-6)

    @functools.partial(jax.jit, compiler_options=FAST)
    @jax.grad
    def grad(z, beta=got):
      return calibration.negative_log_likelihood(
        calibration.apply(calibration.TemperatureScaling(beta), z), y
      )

    assert np.all(np.isfinite(grad(logits)))
    for name in ("vector", "matrix", "structured_matrix"):
      losses = [
        mean_nll(np.asarray(apply(fit(name, x, y), x), np.float64), y)
        for x in (logits, same)
      ]
      # A matrix may use the logarithm of the smallest probability.
      if name == "vector":
        np.testing.assert_allclose(*losses, rtol=1e-5)
      assert losses[0] < (1 + 1e-3) * losses[1], name


def test_histogram_binning_is_the_accuracy_of_each_bin():
  z, y = data("histogram")
  c = np.exp(log_softmax(z)).max(-1)
  bins = (c[:, None] >= np.float32([0.2, 0.4, 0.6, 0.8])).sum(-1)
  hit = z.argmax(-1) == y
  want = [
    hit[bins == b].mean() if b in bins else 0.2 * b + 0.1 for b in range(5)
  ]
  np.testing.assert_allclose(fitted("histogram").accuracy, want, rtol=1e-6)


def _pool(c, hit):
  """The isotonic fit by its max-min formula."""
  knots = np.unique(c)
  sums = np.cumsum([0, *(hit[c == k].sum() for k in knots)])
  counts = np.cumsum([0, *((c == k).sum() for k in knots)])

  def mean(i, j):
    return (sums[j] - sums[i]) / (counts[j] - counts[i])

  n = len(knots)
  return knots, np.array(
    [
      max(min(mean(i, j) for j in range(k + 1, n + 1)) for i in range(k + 1))
      for k in range(n)
    ]
  )


@pytest.mark.parametrize("ties", [False, True])
def test_isotonic_regression_is_the_best_nondecreasing_map(ties):
  z, y = data("isotonic")
  if ties:
    z = np.repeat(z[:10], 4, axis=0)
  params = fit("isotonic", z, y)
  c = np.exp(log_softmax(z)).max(-1)
  # Confidences that tie do so up to rounding here.
  knots, values = _pool(np.round(c, 6), z.argmax(-1) == y)
  at = np.searchsorted(knots, np.round(params.confidence, 6))
  np.testing.assert_allclose(params.accuracy, values[at], rtol=1e-6)
  new = np.exp(apply(params, z))
  at = np.searchsorted(knots, np.round(c, 6))
  top = np.take_along_axis(new, z.argmax(-1)[:, None], -1)[:, 0]
  np.testing.assert_allclose(top, values[at], atol=2e-5)
