# SPDX-License-Identifier: Apache-2.0
"""Recalibrators: each reaches its minimum, and its edges are as documented."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import calibration

FITS = {
  "temperature": calibration.fit_temperature,
  "vector": calibration.fit_vector_scaling,
  "matrix": calibration.fit_matrix_scaling,
  "beta": calibration.fit_beta_calibration,
  "histogram": functools.partial(calibration.fit_histogram_binning, num_bins=5),
  "isotonic": calibration.fit_isotonic_regression,
}
EVERY = pytest.mark.parametrize("name", FITS)


@functools.cache
def _compiled(name):
  return jax.jit(FITS[name])


@functools.cache
def _data(name, n=60):
  """Logits that are too small, with labels of a distribution of their own."""
  c = 2 if name == "beta" else 4
  rng = np.random.default_rng(3)
  z = rng.normal(size=(n, c)) * 2
  y = (z + rng.gumbel(size=z.shape)).argmax(-1)
  return (z * 0.4 + 0.3 * np.arange(c)).astype(np.float32), y.astype(np.int32)


@functools.cache
def _fitted(name):
  """The parameters, in one program with those of dropped rows below."""
  z, y = _data(name)
  return _compiled(name)(z, y, where=np.ones(y.shape, bool))


def _log_softmax(z):
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _slope(name, params, z, y, beta):
  """The slopes of the documented objective, in NumPy."""
  n, c = z.shape
  logp, hit = _log_softmax(z), np.eye(c)[y]

  def residual(logits):
    return (np.exp(_log_softmax(logits)) - hit) / n

  if name == "temperature":
    return (residual(params.inverse_temperature * z) * z).sum()
  if name == "vector":
    error = residual(params.weight * z + params.bias)
    weight = (error * z).sum(0) * beta
    weight = weight + 2e-3 / c * (params.weight / beta - 1)
    return np.append(weight, error.sum(0) + 2e-3 / c * params.bias)
  if name == "matrix":
    error = residual(logp @ params.weight.T + params.bias)
    off = params.weight * (1 - np.eye(c))
    weight = error.T @ logp + 200 / (c * (c - 1)) * off
    return np.append(weight, error.sum(0) + 2e-2 / c * params.bias)
  odds = params.a * logp[:, 1] - params.b * logp[:, 0] + params.c
  error = (1 / (1 + np.exp(-odds)) - hit[:, 1]) / n
  pull = 2e-3 * np.array([params.a - 1, params.b - 1, params.c])
  return np.array([error @ logp[:, 1], -error @ logp[:, 0], error.sum()]) + pull


def _check_slope(name, dtype, bound):
  z, y = _data(name)
  z = z.astype(dtype)
  beta = calibration.fit_temperature(z, y).inverse_temperature
  params = _compiled(name)(z, y, where=np.ones(y.shape, bool))
  assert all(x.dtype == dtype for x in params)
  exact = type(params)(*(np.asarray(x, np.float64) for x in params))
  data = z.astype(np.float64), y, np.float64(beta)
  assert np.max(np.abs(_slope(name, exact, *data))) < bound
  # A thousandth beside the minimum the slope is seen.
  moved = type(params)(1.001 * exact[0], *exact[1:])
  assert np.max(np.abs(_slope(name, moved, *data))) > 10 * bound


@pytest.mark.parametrize("name", ["temperature", "vector", "matrix", "beta"])
def test_fits_end_where_the_slope_is_zero(name):
  # A mean of numbers below 10 is rounded to a few units of 2^-24.
  _check_slope(name, np.float32, 4e-6)


@pytest.mark.x64
@pytest.mark.parametrize("name", ["temperature", "vector", "matrix", "beta"])
def test_fits_end_where_the_slope_is_zero_in_float64(name):
  _check_slope(name, np.float64, 1e-13)


def test_under_confident_logits_get_a_temperature_below_one():
  z, y = _data("temperature", 4000)
  z = z - np.float32(0.3) * np.arange(4, dtype=np.float32)
  temperature = float(calibration.fit_temperature(z, y).temperature)
  # Of 4000 rows, each with an information of order 1.
  assert temperature == pytest.approx(0.4, rel=5 / math.sqrt(4000))
  confident = calibration.fit_temperature(10 * z, y)
  np.testing.assert_allclose(confident.temperature, 10 * temperature, rtol=1e-5)


def test_beta_calibration_keeps_its_factors_from_falling_below_zero():
  z, y = _data("beta")
  params = calibration.fit_beta_calibration(z, 1 - y, penalty=0.0)
  assert params.a == 0
  assert params.b == 0
  # Nothing but the frequency of the labels is left.
  np.testing.assert_allclose(
    jax.nn.sigmoid(params.c), np.mean(1 - y), rtol=1e-5
  )


def test_separable_data_have_a_finite_fit():
  z = np.float32([[2, 0], [3, -1], [-1, 2], [0, 1]])
  y = np.array([0, 0, 1, 1])
  params = calibration.fit_temperature(z, y)
  # The documented bound, with the largest difference 4 of two logits.
  np.testing.assert_allclose(params.inverse_temperature, 2**20 / 4, rtol=1e-5)
  worst = calibration.fit_temperature(z, 1 - y)
  np.testing.assert_allclose(worst.inverse_temperature, 2**-20 / 4, rtol=1e-5)
  for name in ("vector", "matrix", "beta"):
    for labels in (y, 1 - y):
      params = FITS[name](z, labels)
      new = calibration.apply(params, z)
      assert np.all(np.isfinite(new)), name
      nll = calibration.negative_log_likelihood(new, labels)
      assert nll < math.log(2) + 1e-6, name


def test_equal_logits_leave_the_temperature_as_it_is():
  params = calibration.fit_temperature(jnp.ones((3, 4)), jnp.array([0, 1, 2]))
  assert params.temperature == 1


@pytest.mark.parametrize("name", ["temperature", "vector", "matrix"])
def test_impossible_classes_stay_so_and_count_for_nothing(name):
  z, y = _data(name)
  holed = np.concatenate([z, np.full((len(z), 1), -np.inf, np.float32)], -1)
  params = FITS[name](holed, y)
  assert all(np.all(np.isfinite(x)) for x in params)
  new = calibration.apply(params, holed)
  assert np.all(new[:, -1] == -np.inf)
  if name == "temperature":
    np.testing.assert_allclose(params, _fitted(name), rtol=1e-6)


def test_histogram_binning_is_the_accuracy_of_each_bin():
  z, y = _data("histogram")
  c = np.exp(_log_softmax(z)).max(-1)
  bins = (c[:, None] >= np.float32([0.2, 0.4, 0.6, 0.8])).sum(-1)
  hit = z.argmax(-1) == y
  want = [
    hit[bins == b].mean() if b in bins else 0.2 * b + 0.1 for b in range(5)
  ]
  np.testing.assert_allclose(_fitted("histogram").accuracy, want, rtol=1e-6)


def _pool(c, hit):
  """Means of blocks of rising confidence, by the least max-min formula."""
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
def test_isotonic_regression_is_the_best_rising_map(ties):
  z, y = _data("isotonic")
  if ties:
    z = np.repeat(z[:15], 4, axis=0)
  params = _compiled("isotonic")(z, y, where=np.ones(y.shape, bool))
  c = np.exp(_log_softmax(z)).max(-1)
  # Confidences that tie do so up to rounding here.
  knots, values = _pool(np.round(c, 6), z.argmax(-1) == y)
  at = np.searchsorted(knots, np.round(params.confidence, 6))
  np.testing.assert_allclose(params.accuracy, values[at], rtol=1e-6)
  new = jax.nn.softmax(calibration.apply(params, z))
  at = np.searchsorted(knots, np.round(c, 6))
  top = np.take_along_axis(np.array(new), z.argmax(-1)[:, None], -1)[:, 0]
  np.testing.assert_allclose(top, values[at], atol=2e-5)


@pytest.mark.parametrize("name", ["histogram", "isotonic"])
def test_the_rest_of_the_mass_keeps_its_proportions(name):
  z, _ = _data(name)
  new = np.exp(calibration.apply(_fitted(name), z), dtype=np.float64)
  np.testing.assert_allclose(new.sum(-1), 1, rtol=2e-6)
  old, k = np.exp(_log_softmax(z)), z.argmax(-1)[:, None]
  np.put_along_axis(old, k, 0, -1)
  top = np.take_along_axis(new, k, -1)
  np.put_along_axis(new, k, 0, -1)
  share = old / old.sum(-1, keepdims=True)
  np.testing.assert_allclose(new, share * (1 - top), atol=1e-6)
  # One possible class has nowhere to put the rest.
  alone = calibration.apply(_fitted(name), jnp.array([-jnp.inf, 2.0]))
  assert alone.tolist() == [-jnp.inf, 0]


@EVERY
def test_dropped_rows_leave_no_trace(name):
  z, y = _data(name)
  keep = np.arange(len(y)) % 3 > 0
  holed, labels = z.copy(), y.copy()
  holed[~keep], labels[~keep] = np.nan, -100
  got = _compiled(name)(holed, labels, where=keep)
  want = FITS[name](z[keep], y[keep])
  probe = np.linspace(-3, 3, 24, dtype=np.float32).reshape(-1, z.shape[-1])
  new = [np.exp(calibration.apply(params, probe)) for params in (got, want)]
  np.testing.assert_allclose(*new, rtol=1e-4)
  # A NaN or a bad label that counts is loud, and so is no row at all.
  for logits, y_bad, where in (
    (holed, np.where(keep, y, 0), ~keep),
    (z, labels, np.ones_like(keep)),
    (z, y, np.zeros_like(keep)),
  ):
    params = _compiled(name)(logits, y_bad, where=where)
    assert all(np.all(np.isnan(x)) for x in params)
    new = jax.nn.softmax(calibration.apply(params, z))
    assert np.all(np.isnan(new))


@EVERY
def test_apply_takes_any_batch_any_type_and_transformations(name):
  z, _ = _data(name)
  z = z[:24]
  params = _fitted(name)
  new = calibration.apply(params, z)
  assert new.dtype == jnp.float32
  shaped = jax.jit(calibration.apply)(params, z.reshape(2, 12, -1))
  np.testing.assert_allclose(shaped.reshape(z.shape), new, atol=2e-6)
  row = calibration.apply(params, z[0])
  np.testing.assert_allclose(row, new[0], atol=2e-6)
  seeds = jax.tree.map(lambda x: jnp.stack([x, x]), params)
  both = jax.vmap(calibration.apply, in_axes=(0, None))(seeds, z)
  np.testing.assert_allclose(both[1], new, atol=2e-6)
  narrow = calibration.apply(params, jnp.asarray(z, jnp.bfloat16))
  assert narrow.dtype == jnp.float32
  grad = jax.grad(lambda z: jax.nn.softmax(calibration.apply(params, z))[0, 0])
  assert np.all(np.isfinite(grad(jnp.asarray(z[:1]))))


@pytest.mark.parametrize("name", ["temperature", "vector", "isotonic"])
def test_fits_over_seeds_at_once(name):
  z, y = _data(name)
  where = np.ones((2, len(y)), bool)
  seeds = np.stack([z, 2 * z]), np.stack([y, y])
  got = jax.vmap(lambda z, y, w: FITS[name](z, y, where=w))(*seeds, where)
  one = jax.tree.map(lambda x: x[0], got)
  probe = z[:8]
  np.testing.assert_allclose(
    calibration.apply(one, probe),
    calibration.apply(_fitted(name), probe),
    atol=2e-5,
  )


def test_recalibration_lowers_the_error_on_other_rows():
  # Well below the error before, which the data were made to have.
  rng = np.random.default_rng(0)
  z = rng.normal(size=(3000, 2)).astype(np.float32) * 2
  y = (z + rng.gumbel(size=z.shape)).argmax(-1)
  z = 3 * z
  fit, test = (z[:1500], y[:1500]), (z[1500:], y[1500:])

  def error(logits):
    stats = calibration.bin_stats(jax.nn.softmax(logits), test[1])
    return float(calibration.expected_calibration_error(stats))

  before = error(test[0])
  for name, f in FITS.items():
    assert error(calibration.apply(f(*fit), test[0])) < before / 2, name


def test_arguments_are_checked():
  z, y = _data("temperature")
  with pytest.raises(TypeError, match=r"calibration\.fit_\* .* got tuple"):
    calibration.apply((1.0,), z)
  with pytest.raises(ValueError, match="two classes"):
    calibration.fit_beta_calibration(z, y)
  with pytest.raises(ValueError, match="penalty must be at least 0"):
    calibration.fit_vector_scaling(z, y, penalty=-1.0)
  with pytest.raises(ValueError, match="off_diagonal_penalty must be a scalar"):
    calibration.fit_matrix_scaling(z, y, off_diagonal_penalty=np.ones(2))
  with pytest.raises(ValueError, match=r"labels\[1\] = 9"):
    calibration.fit_temperature(z[:2], np.array([0, 9]))
  with pytest.raises(TypeError, match="num_bins"):
    calibration.fit_histogram_binning(z, y, num_bins=2.0)
