# SPDX-License-Identifier: Apache-2.0
"""Conformal sets: the rank, the guarantee and the scores."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec
import numpy as np
import pytest

from squentropy_jax import calibration

P = np.float32([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6], [0.1, 0.5, 0.4]])


def _data(n=40, c=5):
  rng = np.random.default_rng(5)
  z = rng.normal(size=(n, c)).astype(np.float32) * 2
  y = (z + rng.gumbel(size=z.shape)).argmax(-1)
  return jax.nn.softmax(z), y


@pytest.mark.parametrize(
  "score",
  [
    calibration.lac_score,
    calibration.aps_score,
    functools.partial(calibration.aps_score, key=jax.random.key(0)),
  ],
)
def test_every_row_in_turn_is_covered_at_the_exact_rate(score):
  # With each row held out once, exactly the scores of rank r or below are
  # covered.
  p, y = _data()
  n = len(y) - 1
  # Scores once for all rows: each keeps its random number.
  own = np.sort(np.take_along_axis(np.asarray(score(p)), y[:, None], -1)[:, 0])
  assert np.all(np.diff(own) > 0)

  def held_out(i):
    keep = jnp.arange(n + 1, dtype=jnp.int32) != i
    params = calibration.fit_conformal(
      p, y, alpha=0.25, score=score, where=keep
    )
    sets = calibration.prediction_set(params, p, score=score)
    return calibration.set_coverage(sets, y, where=~keep)

  covered = jax.jit(jax.vmap(held_out))(jnp.arange(n + 1, dtype=jnp.int32))
  assert int(covered.sum()) == math.ceil((n + 1) * 0.75)


def test_rank_does_not_round():
  # 20 * (1 - 0.1) is 18 exactly; in floating point its ceiling may be 19.
  for n, alpha in ((9, 0.1), (19, 0.1), (29, 0.3), (99, 0.01), (999, 0.05)):
    p = np.linspace(0.9, 0.1, n, dtype=np.float32)
    p, y = np.stack([p, 1 - p], -1), np.zeros(n, int)
    params = calibration.fit_conformal(p, y, alpha=np.float64(alpha))
    places = round(1 / alpha) if alpha != 0.3 else 10
    rank = -(-(n + 1) * (places - round(alpha * places)) // places)
    np.testing.assert_array_equal(params.threshold, 1 - p[rank - 1, 0])


def test_sets_of_too_few_rows_contain_all_classes():
  params = calibration.fit_conformal(P, np.array([0, 2, 1]), alpha=0.1)
  assert params.threshold == np.inf
  for score in (calibration.lac_score, calibration.aps_score):
    for p in (P, np.where(np.eye(3) > 0, np.nan, P).astype(np.float32)):
      assert np.all(calibration.prediction_set(params, p, score=score))


@pytest.mark.parametrize(
  "score", [calibration.lac_score, calibration.aps_score]
)
def test_logits_instead_of_probabilities_give_nan(score):
  logits = np.log(P) + 1
  assert np.all(np.isnan(score(logits)))
  y = np.array([0, 2, 1])
  params = calibration.fit_conformal(logits, y, alpha=0.5, score=score)
  assert np.isnan(params.threshold)
  # A user's score may take them.
  params = calibration.fit_conformal(
    logits, y, alpha=0.5, score=lambda z: score(jax.nn.softmax(z))
  )
  np.testing.assert_allclose(
    params.threshold,
    calibration.fit_conformal(P, y, alpha=0.5, score=score).threshold,
    rtol=1e-5,
  )


SCORES = {
  "lac": calibration.lac_score,
  "aps": calibration.aps_score,
  "random": functools.partial(calibration.aps_score, key=jax.random.key(0)),
}


def _conformal(p, y):
  """The sets of every score, and threshold, coverage and size in a row."""
  out = {}
  for name, score in SCORES.items():
    params = calibration.fit_conformal(p, y, alpha=0.25, score=score)
    sets = calibration.prediction_set(params, p, score=score)
    coverage = calibration.set_coverage(sets, y)
    size = calibration.mean_set_size(sets)
    out[name] = sets, jnp.stack([params.threshold, coverage, size])[None]
  return out


@pytest.mark.parametrize("kind", ["Auto", "Explicit", "shard_map"])
def test_sharded_rows_and_classes(kind):
  jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
  )
  p, y = _data(40, 4)
  want = jit(_conformal)(p, y)
  axis_type = AxisType.Explicit if kind == "Explicit" else AxisType.Auto
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
  program = _conformal
  if kind == "shard_map":  # Each device fits the same rows by itself.
    p, y = np.tile(p, (4, 1)), np.tile(y, 4)
    program = jax.shard_map(
      program, mesh=mesh, in_specs=Spec("data"), out_specs=Spec("data")
    )
  with jax.set_mesh(mesh):
    got = jit(program)(
      jax.device_put(p, NamedSharding(mesh, Spec("data", "model"))),
      jax.device_put(y, NamedSharding(mesh, Spec("data"))),
    )
  for name in SCORES:
    sets, numbers = got[name]
    np.testing.assert_array_equal(sets[:40], want[name][0])
    np.testing.assert_allclose(numbers[:1], want[name][1], rtol=1e-6)
    np.testing.assert_array_equal(numbers[-1], numbers[0])


def test_scores():
  np.testing.assert_allclose(calibration.lac_score(P), 1 - P)
  want = np.array([[0.7, 0.9, 1.0], [0.8, 1.0, 0.6], [1.0, 0.5, 0.9]])
  np.testing.assert_allclose(calibration.aps_score(P), want, rtol=1e-6)
  key = jax.random.key(1)
  score = calibration.aps_score(P, key=key)
  u = (want - score) / P
  # One number in [0, 1) for each row.
  np.testing.assert_allclose(u, np.tile(u[:, :1], 3), atol=1e-5)
  assert np.all((u > -1e-6) & (u < 1))
  assert np.ptp(u[:, 0]) > 0.01


def test_saturated_rows_do_not_get_every_class():
  # Float32 rounds the sum with the second class of the last row to 1.
  p = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 0]]
  p[5, 2] = 1e-9
  scores = np.asarray(calibration.aps_score(p))
  np.testing.assert_array_equal(scores[0], [1, 1.25, 1.5, 1.75])
  np.testing.assert_array_equal(scores[5], [1, 1.5, 1.25, 1.75])
  score = calibration.aps_score
  # Every label is the certain class, or one is not.
  for labels, size in ((p.argmax(-1), 1), (np.append(p.argmax(-1)[:5], 2), 2)):
    params = calibration.fit_conformal(p, labels, alpha=0.15, score=score)
    sets = calibration.prediction_set(params, p, score=score)
    np.testing.assert_array_equal(sets.sum(-1), size)
    assert calibration.set_coverage(sets, labels) == 1


def test_random_scores_make_smaller_sets_of_new_rows():
  n = 2000
  p, y = _data(2 * n)

  @jax.jit
  def coverage_and_size(*keys):
    fit, new = (functools.partial(calibration.aps_score, key=k) for k in keys)
    params = calibration.fit_conformal(p[:n], y[:n], alpha=0.2, score=fit)
    sets = calibration.prediction_set(params, p[n:], score=new)
    return calibration.set_coverage(sets, y[n:]), calibration.mean_set_size(
      sets
    )

  coverage, size = coverage_and_size(None, None)
  random_coverage, random_size = coverage_and_size(
    *jax.random.split(jax.random.key(2))
  )
  # Four standard deviations of the threshold's rank and of the new coverage.
  slack = 4 * math.sqrt(2 * 0.2 * 0.8 / n)
  assert coverage > 0.8 - slack
  assert abs(random_coverage - 0.8) < slack
  assert random_size < 0.97 * size


def test_dropped_and_invalid_rows():
  p, y = _data()
  keep = np.arange(len(y)) % 2 == 0
  holed, labels = np.array(p), y.copy()
  holed[~keep], labels[~keep] = np.nan, -100
  fit = jax.jit(functools.partial(calibration.fit_conformal, alpha=0.2))
  got = fit(holed, labels, where=keep)
  want = fit(p[keep], y[keep])
  np.testing.assert_array_equal(got.threshold, want.threshold)
  for arguments in ((holed, y), (p, labels)):
    invalid = fit(*arguments, where=np.ones_like(keep))
    assert np.isnan(invalid.threshold)
    # A set of unknown extent contains every class.
    assert np.all(calibration.prediction_set(invalid, p))
  sets = calibration.prediction_set(got, p)
  size = calibration.mean_set_size(sets, where=keep)
  assert size == pytest.approx(np.asarray(sets)[keep].sum(-1).mean())
  inside = np.asarray(sets)[np.arange(len(y)), y]
  coverage = calibration.set_coverage(sets, labels, where=keep)
  assert coverage == pytest.approx(inside[keep].mean())
  nobody = np.zeros_like(keep)
  assert np.isnan(calibration.set_coverage(sets, y, where=nobody))
  assert np.isnan(calibration.mean_set_size(sets, where=nobody))


def test_arguments_are_checked():
  y = np.array([0, 2, 1])
  for alpha in (0.0, 1.0, 1e-5, math.nan):
    with pytest.raises(ValueError, match="alpha must be in"):
      calibration.fit_conformal(P, y, alpha=alpha)
  with pytest.raises(TypeError, match="alpha must be a Python float"):
    calibration.fit_conformal(P, y, alpha=jnp.float32(0.1))
  with pytest.raises(TypeError, match="score must be a function"):
    calibration.fit_conformal(P, y, alpha=0.1, score="lac")
  with pytest.raises(TypeError, match="key must be one random key"):
    calibration.aps_score(P, key=3)
  with pytest.raises(
    TypeError, match="params must be the result of fit_conformal"
  ):
    calibration.prediction_set(calibration.TemperatureScaling(1.0), P)
  with pytest.raises(ValueError, match=r"params\.threshold must have shape"):
    calibration.prediction_set(calibration.ConformalThreshold(P[0]), P)
  with pytest.raises(ValueError, match="score must return the shape"):
    calibration.fit_conformal(P, y, alpha=0.1, score=lambda p: p[:, 0])
  with pytest.raises(TypeError, match="sets must be booleans"):
    calibration.set_coverage(P, y)
  with pytest.raises(ValueError, match=r"labels\[0\] = 3"):
    calibration.set_coverage(P > 0.5, y + 3)
