# SPDX-License-Identifier: Apache-2.0
"""Recalibrators: each reaches its minimum, and its edges are as documented."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
import scipy.optimize

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


# Programs this small take longer to optimise than to run.
_FAST = {"xla_backend_optimization_level": 0}
_apply = jax.jit(calibration.apply, compiler_options=_FAST)


@functools.cache
def _compiled(name):
  return jax.jit(FITS[name], compiler_options=_FAST)


def _rows(c, n=40):
  """Logits that are too small, with labels of a distribution of their own."""
  rng = np.random.default_rng(3)
  z = rng.normal(size=(n, c)) * 2
  y = (z + rng.gumbel(size=z.shape)).argmax(-1)
  return (z * 0.4 + 0.3 * np.arange(c)).astype(np.float32), y.astype(np.int32)


def _data(name):
  return _rows(2 if name == "beta" else 4)


def _fit(name, z, y):
  """Fits among dropped rows that hold what cannot be used."""
  n, drop = len(z), 60 - len(z)
  place = np.random.default_rng(1).permutation(60)
  z = np.concatenate([z, np.full((drop, z.shape[-1]), np.nan, z.dtype)])
  y = np.concatenate([y, np.full(drop, -100, y.dtype)])
  return _compiled(name)(z[place], y[place], where=(np.arange(60) < n)[place])


@functools.cache
def _fitted(name):
  return _fit(name, *_data(name))


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
    gap = np.diff(np.sort(z)[:, -2:])
    scale = np.sort(gap, axis=None)[(n - 1) // 2]
    weight = (error * z).sum(0) / scale
    weight = weight + 2e-3 / c * scale * (params.weight - beta)
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
  beta = _fit("temperature", z, y).inverse_temperature
  params = _fit(name, z, y)
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


def _nll(z, y):
  return -_log_softmax(z)[np.arange(len(y)), y].mean()


def test_vector_scaling_of_inverted_logits_is_the_best():
  # No temperature helps here: the weights must change their signs.
  rng = np.random.default_rng(0)
  z = rng.normal(size=(4000, 3)).astype(np.float32) * 2
  y = (z * [-1.5, 1, -1] + rng.gumbel(size=z.shape)).argmax(-1)
  for logits in (z, -z):
    # From another start and by another method.
    best = scipy.optimize.minimize(
      lambda x, z: _nll(x[:3] * z + x[3:], y),
      np.zeros(6),
      args=(logits.astype(np.float64),),
      method="BFGS",
    )
    for penalty, slack in ((0.0, 1e-6), (1e-3, 1e-2)):
      params = calibration.fit_vector_scaling(logits, y, penalty=penalty)
      weight, bias = (np.float64(x) for x in params)
      loss = _nll(weight * logits + bias, y)
      assert best.fun - 1e-6 < loss < best.fun + slack


def test_under_confident_logits_get_a_temperature_below_one():
  z, y = _rows(4, 4000)
  z = z - np.float32(0.3) * np.arange(4, dtype=np.float32)
  temperature = float(calibration.fit_temperature(z, y).temperature)
  # Of 4000 rows, each with an information of order 1.
  assert temperature == pytest.approx(0.4, rel=5 / math.sqrt(4000))
  confident = calibration.fit_temperature(10 * z, y)
  np.testing.assert_allclose(confident.temperature, 10 * temperature, rtol=1e-5)


def test_beta_calibration_keeps_its_factors_from_falling_below_zero():
  z, y = _data("beta")
  fit = functools.partial(calibration.fit_beta_calibration, penalty=0.0)
  params = jax.jit(fit, compiler_options=_FAST)(z, 1 - y)
  assert params.a == 0
  assert params.b == 0
  # Nothing but the frequency of the labels is left.
  np.testing.assert_allclose(
    jax.nn.sigmoid(params.c), np.mean(1 - y), rtol=1e-5
  )


def test_separable_data_have_a_finite_fit():
  z = np.float32([[2, 0], [3, -1], [-1, 2], [0, 1]])
  y = np.array([0, 0, 1, 1])
  params = _fit("temperature", z, y)
  # The documented value: exp(-beta) underflows for the least margin, 1.
  least = np.finfo(np.float32).smallest_subnormal
  assert 80 < params.inverse_temperature <= -np.log(least)
  worst = _fit("temperature", z, 1 - y)
  np.testing.assert_allclose(worst.inverse_temperature, 2**-100, rtol=1e-5)
  wide = np.concatenate([z, z - 5], -1)
  for name in ("vector", "matrix", "beta"):
    for labels in (y, 1 - y):
      logits = z if name == "beta" else wide
      params = _fit(name, logits, labels)
      new = np.asarray(_apply(params, logits))
      assert np.all(np.isfinite(new)), name
      assert _nll(new, labels) < _nll(logits, labels), name


def test_equal_logits_leave_the_temperature_as_it_is():
  params = _fit("temperature", np.ones((3, 4), np.float32), np.arange(3))
  assert params.temperature == 1


@pytest.mark.parametrize(
  "low", [-1e4, -1e7, -1e9, np.finfo(np.float32).min, -np.inf]
)
def test_masked_classes_do_not_move_the_fit(low):
  z, y = _data("temperature")
  masked = np.pad(z, ((0, 0), (0, 1)), constant_values=low)
  entry = z.copy()
  entry[0, (y[0] + 1) % 4] = low
  for logits in (masked, entry):
    same = np.where(logits == low, -np.inf, logits).astype(np.float32)
    got = _fit("temperature", logits, y).inverse_temperature
    want = _fit("temperature", same, y).inverse_temperature
    np.testing.assert_allclose(got, want, rtol=1e-6)
    if logits is masked:
      without = _fit("temperature", z, y).inverse_temperature
      # Sums over other numbers of classes round otherwise.
      np.testing.assert_allclose(got, without, rtol=2e-6)

    @functools.partial(jax.jit, compiler_options=_FAST)
    @jax.grad
    def grad(z, beta=got):
      return calibration.negative_log_likelihood(
        calibration.apply(calibration.TemperatureScaling(beta), z), y
      )

    assert np.all(np.isfinite(grad(logits)))
    for name in ("vector", "matrix"):
      losses = [
        _nll(np.asarray(_apply(_fit(name, x, y), x), np.float64), y)
        for x in (logits, same)
      ]
      # A matrix may make use of the logarithm of a least probability.
      if name == "vector":
        np.testing.assert_allclose(*losses, rtol=1e-5)
      assert losses[0] < (1 + 1e-3) * losses[1], name


@EVERY
def test_impossible_classes_stay_so_and_count_for_nothing(name):
  z, y = _data(name)
  holed = z.copy()
  rows = np.arange(len(y)) % 3
  for k in (0, z.shape[-1] - 1):
    holed[(rows == (k > 0)) & (y != k), k] = -np.inf
  params = _fit(name, holed, y)
  assert all(np.all(np.isfinite(x)) for x in params)
  new = np.asarray(_apply(params, holed))
  assert np.all(new[holed == -np.inf] == -np.inf)
  # Probabilities of exactly 0 and 1 are documented of two of them.
  if name not in ("histogram", "isotonic"):
    assert np.all(np.isfinite(new[holed > -np.inf]))
  np.testing.assert_allclose(
    np.exp(_log_softmax(new)).sum(-1), 1, rtol=1e-6, err_msg=name
  )


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
    z = np.repeat(z[:10], 4, axis=0)
  params = _fit("isotonic", z, y)
  c = np.exp(_log_softmax(z)).max(-1)
  # Confidences that tie do so up to rounding here.
  knots, values = _pool(np.round(c, 6), z.argmax(-1) == y)
  at = np.searchsorted(knots, np.round(params.confidence, 6))
  np.testing.assert_allclose(params.accuracy, values[at], rtol=1e-6)
  new = np.exp(_apply(params, z))
  at = np.searchsorted(knots, np.round(c, 6))
  top = np.take_along_axis(new, z.argmax(-1)[:, None], -1)[:, 0]
  np.testing.assert_allclose(top, values[at], atol=2e-5)


@pytest.mark.parametrize("name", ["histogram", "isotonic"])
def test_the_rest_of_the_mass_keeps_its_proportions(name):
  z, _ = _data(name)
  new = np.exp(_apply(_fitted(name), z), dtype=np.float64)
  np.testing.assert_allclose(new.sum(-1), 1, rtol=2e-6)
  old, k = np.exp(_log_softmax(z)), z.argmax(-1)[:, None]
  np.put_along_axis(old, k, 0, -1)
  top = np.take_along_axis(new, k, -1)
  np.put_along_axis(new, k, 0, -1)
  share = old / old.sum(-1, keepdims=True)
  np.testing.assert_allclose(new, share * (1 - top), atol=1e-6)
  # One possible class has nowhere to put the rest.
  z[:, 1:] = -np.inf
  np.testing.assert_array_equal(_apply(_fitted(name), z)[:, 0], 0)


@EVERY
def test_what_cannot_be_used_is_loud(name):
  # Dropped rows that hold it are in every fit of this file.
  z, y = _data(name)
  holed, labels = z.copy(), y.copy()
  holed[3, 1], labels[3] = np.nan, 9
  for logits, ids in ((holed, y), (z, labels), (z[:0], y[:0])):
    params = _fit(name, logits, ids)
    assert all(np.all(np.isnan(x)) for x in params)
    assert np.all(np.isnan(_log_softmax(np.asarray(_apply(params, z)))))


@EVERY
def test_apply_takes_any_batch_any_type_and_transformations(name):
  z, _ = _data(name)
  params = _fitted(name)
  new = _apply(params, z)
  assert new.dtype == jnp.float32
  shaped = _apply(params, z.reshape(2, 20, -1))
  np.testing.assert_allclose(shaped.reshape(z.shape), new, atol=2e-6)
  # One row at a time, and parameters of two seeds.
  seeds = jax.tree.map(lambda x: jnp.stack([x, x]), params)
  rows = jax.vmap(calibration.apply, in_axes=(None, 0))
  both = jax.jit(jax.vmap(rows, in_axes=(0, None)), compiler_options=_FAST)
  np.testing.assert_allclose(both(seeds, z)[1], new, atol=2e-6)
  narrow = jax.eval_shape(_apply, params, jnp.asarray(z, jnp.bfloat16))
  assert narrow.dtype == jnp.float32

  @functools.partial(jax.jit, compiler_options=_FAST)
  @jax.grad
  def grad(z):
    return jnp.square(jax.nn.softmax(calibration.apply(params, z))).sum()

  assert np.all(np.isfinite(grad(z)))


@pytest.mark.parametrize("name", ["temperature", "vector", "isotonic"])
def test_fits_over_seeds_at_once(name):
  z, y = _data(name)
  seeds = np.stack([z, 2 * z]), np.stack([y, y])
  got = jax.jit(jax.vmap(FITS[name]), compiler_options=_FAST)(*seeds)
  one = jax.tree.map(lambda x: x[0], got)
  want = _apply(_fitted(name), z)
  np.testing.assert_allclose(_apply(one, z), want, rtol=2e-5, atol=2e-5)


_SHARDED = ("vector", "isotonic")


def _recalibrated(z, y):
  return {name: calibration.apply(FITS[name](z, y), z) for name in _SHARDED}


@pytest.mark.parametrize("kind", ["Explicit", "shard_map"])
def test_sharded_rows(kind):
  z, y = _data("vector")
  axis_type = AxisType.Explicit if kind == "Explicit" else AxisType.Auto
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
  program = _recalibrated
  if kind == "shard_map":  # Each device fits the same rows by itself.
    z, y = np.tile(z, (4, 1)), np.tile(y, 4)
    program = jax.shard_map(
      program, mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
  with jax.set_mesh(mesh):
    got = jax.jit(program, compiler_options=_FAST)(
      jax.device_put(z, NamedSharding(mesh, P("data", "model"))),
      jax.device_put(y, NamedSharding(mesh, P("data"))),
    )
  for name in _SHARDED:
    want = _apply(_fitted(name), z[:40])
    # Sums in another grouping: a fit moves by some units in the last place.
    np.testing.assert_allclose(got[name][:40], want, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(got[name][-40:], got[name][:40])


def test_arguments_are_checked():
  z, y = _data("temperature")
  with pytest.raises(TypeError, match=r"calibration\.fit_\* .* got tuple"):
    calibration.apply((1.0,), z)
  # Nothing broadcasts: not the parameters of four seeds over four classes.
  for name in FITS:
    params, logits = _fitted(name), _data(name)[0]
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 4), params)
    with pytest.raises(ValueError, match=r"params\.\w+ must .*jax\.vmap"):
      calibration.apply(stacked, logits)
  one = calibration.VectorScaling(jnp.ones(1), jnp.ones(1))
  for params, logits in (
    (one, z),
    (_fitted("vector"), z[:, :3]),
    (_fitted("matrix"), z[:, :1]),
  ):
    with pytest.raises(ValueError, match=r"params\.weight must have shape"):
      calibration.apply(params, logits)
  with pytest.raises(ValueError, match="two classes"):
    calibration.fit_beta_calibration(z, y)
  with pytest.raises(ValueError, match="penalty must be in"):
    calibration.fit_vector_scaling(z, y, penalty=-1.0)
  with pytest.raises(ValueError, match="off_diagonal_penalty must be a scalar"):
    calibration.fit_matrix_scaling(z, y, off_diagonal_penalty=np.ones(2))
  with pytest.raises(ValueError, match=r"labels\[1\] = 9"):
    calibration.fit_temperature(z[:2], np.array([0, 9]))
  with pytest.raises(TypeError, match="num_bins"):
    calibration.fit_histogram_binning(z, y, num_bins=2.0)
