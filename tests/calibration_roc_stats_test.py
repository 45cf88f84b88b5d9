# SPDX-License-Identifier: Apache-2.0
"""ROC metrics of counts in bins, against scikit-learn on the bins."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from sklearn import metrics
from support import contract

from squentropy_jax import calibration

NUM_BINS = 8


def _rows(n=60):
  rng = np.random.default_rng(2)
  labels = rng.integers(0, 2, n)
  scores = rng.beta(2 + labels, 2, n).astype(np.float32)
  scores[:3] = [0, 0.5, 1]  # On the edges.
  return scores, labels


def of_rows(scores, labels, where=None):
  return calibration.roc_stats(scores, labels, num_bins=NUM_BINS, where=where)


count = contract.jit(of_rows)


@contract.jit
def every(stats):
  return (
    calibration.binned_auroc(stats),
    calibration.binned_average_precision(stats),
    calibration.binned_roc_curve(stats),
  )


def _bins(scores):
  return np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)


def test_metrics_are_those_of_the_bins():
  scores, labels = _rows()
  bins = _bins(scores)
  area, precision, curve = every(count(scores, labels))
  want = metrics.roc_auc_score(labels, bins)
  np.testing.assert_allclose(area, want, rtol=1e-6)
  want = metrics.average_precision_score(labels, bins)
  np.testing.assert_allclose(precision, want, rtol=1e-6)
  rates = np.stack(curve[:2])
  np.testing.assert_allclose(np.trapezoid(rates[1], rates[0]), area, rtol=1e-6)
  thresholds = np.append(np.inf, np.arange(NUM_BINS)[::-1] / NUM_BINS)
  np.testing.assert_array_equal(curve.thresholds, thresholds)
  for rate, kind in zip(rates, (0, 1), strict=True):
    want = [np.mean(scores[labels == kind] >= t) for t in thresholds]
    np.testing.assert_allclose(rate, want, rtol=1e-6)


def test_many_bins_give_the_exact_metrics():
  scores, labels = _rows()
  stats = calibration.roc_stats(scores, labels)
  area, precision, _ = every(stats)
  # No positive shares a bin with a negative.
  np.testing.assert_array_equal(
    np.minimum(stats.positives, stats.negatives).sum(), 0
  )
  np.testing.assert_allclose(area, calibration.auroc(scores, labels), rtol=1e-6)
  want = calibration.average_precision(scores, labels)
  np.testing.assert_allclose(precision, want, rtol=1e-6)


def test_statistics_add_over_batches_and_devices():
  scores, labels = _rows(64)
  whole = count(scores, labels)
  parts = [count(scores[i::2], labels[i::2]) for i in range(2)]
  merged = calibration.merge(*parts[::-1])
  jax.tree.map(np.testing.assert_array_equal, merged, whole)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

  @contract.jit
  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P()
  )
  def summed(scores, labels):
    return jax.lax.psum(of_rows(scores, labels), "data")

  jax.tree.map(np.testing.assert_array_equal, summed(scores, labels), whole)
  stacked = contract.jit(jax.vmap(of_rows))(
    np.stack([scores] * 2), np.stack([labels] * 2)
  )
  got = every(jax.tree.map(lambda x: x[1], stacked))
  jax.tree.map(np.testing.assert_array_equal, got, every(whole))
  both = every(stacked)
  np.testing.assert_array_equal(both[0], np.stack([got[0]] * 2))


def test_dropped_and_invalid_rows():
  scores, labels = _rows()
  keep = np.arange(60) % 3 > 0
  holed, ids = scores.copy(), labels.copy()
  holed[~keep], ids[~keep] = np.nan, -5
  want = calibration.roc_stats(scores[keep], labels[keep], num_bins=NUM_BINS)
  jax.tree.map(np.testing.assert_array_equal, count(holed, ids, keep), want)
  for bad in (np.nan, -0.1, 1.5):
    wrong = scores.copy()
    wrong[7] = bad
    stats = count(wrong, labels)
    assert stats.invalid == 1
    assert all(np.isnan(x).all() for x in jax.tree.leaves(every(stats)))
  wrong = labels.copy()
  wrong[7] = 2
  assert count(scores, wrong).invalid == 1


def test_limits():
  scores, _ = _rows()
  ones = count(scores, np.ones(60, np.int64))
  area, precision, curve = every(ones)
  assert np.isnan(area)
  assert precision == 1
  assert np.isnan(curve.false_positive_rate).all()
  assert np.isnan(every(count(scores, np.zeros(60, np.int64)))[1])
  stats = count(*_rows())
  for power in range(6, 36):
    nan = every(stats)
    assert np.isnan(nan[0]) == (60 * 2 ** (power - 6) >= 2**31)
    stats = calibration.merge(stats, stats)


def test_arguments_are_checked():
  scores, labels = _rows()
  stats = count(scores, labels)
  bins = calibration.bin_stats(np.float32([[0.5, 0.5]]), np.array([0]))
  with pytest.raises(TypeError, match="b must be a RocStats"):
    calibration.merge(stats, bins)
  with pytest.raises(ValueError, match="as many bins"):
    calibration.merge(stats, calibration.roc_stats(scores, labels, num_bins=4))
  for f in (
    calibration.binned_auroc,
    calibration.binned_average_precision,
    calibration.binned_roc_curve,
  ):
    with pytest.raises(TypeError, match="stats must be a RocStats"):
      f(bins)
  with pytest.raises(TypeError, match="num_bins must be a Python int"):
    calibration.roc_stats(scores, labels, num_bins=jnp.int32(3))
