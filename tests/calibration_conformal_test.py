# SPDX-License-Identifier: Apache-2.0
"""Conformal sets: the rank, the guarantee and the scores."""

import functools
import math

import jax
import jax.numpy as jnp
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
def test_every_row_in_turn_is_covered_exactly_as_promised(score):
  # With each row held out once, a score of rank r or below is covered: by
  # counting, and not only on average.
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


def test_too_few_rows_promise_nothing_but_all_classes():
  params = calibration.fit_conformal(P, np.array([0, 2, 1]), alpha=0.1)
  assert params.threshold == np.inf
  assert np.all(calibration.prediction_set(params, P))


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


def test_random_scores_make_smaller_sets():
  p, y = _data(2000)

  @jax.jit
  def coverage_and_size(key=None):
    score = functools.partial(calibration.aps_score, key=key)
    params = calibration.fit_conformal(p, y, alpha=0.2, score=score)
    sets = calibration.prediction_set(params, p, score=score)
    return calibration.set_coverage(sets, y), calibration.mean_set_size(sets)

  coverage, size = coverage_and_size()
  random_coverage, random_size = coverage_and_size(jax.random.key(2))
  # Ties at the threshold come in all together: near a mass of 1 in float32.
  assert 0.8 <= coverage < 0.83
  assert 0.8 <= random_coverage < 0.802
  assert random_size < size


def test_dropped_and_bad_rows():
  p, y = _data()
  keep = np.arange(len(y)) % 2 == 0
  holed, labels = np.array(p), y.copy()
  holed[~keep], labels[~keep] = np.nan, -100
  fit = jax.jit(functools.partial(calibration.fit_conformal, alpha=0.2))
  got = fit(holed, labels, where=keep)
  want = fit(p[keep], y[keep])
  np.testing.assert_array_equal(got.threshold, want.threshold)
  for arguments in ((holed, y), (p, labels)):
    bad = fit(*arguments, where=np.ones_like(keep))
    assert np.isnan(bad.threshold)
    assert not np.any(calibration.prediction_set(bad, p))
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
  with pytest.raises(ValueError, match="score must keep the shape"):
    calibration.fit_conformal(P, y, alpha=0.1, score=lambda p: p[:, 0])
  with pytest.raises(TypeError, match="sets must be booleans"):
    calibration.set_coverage(P, y)
  with pytest.raises(ValueError, match=r"labels\[0\] = 3"):
    calibration.set_coverage(P > 0.5, y + 3)
