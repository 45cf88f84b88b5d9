# SPDX-License-Identifier: Apache-2.0
"""Binned statistics: exact sums, masks and invalid rows, and their errors."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from squentropy_jax import calibration


def _data(n=500, c=5, seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(n, c)).astype(np.float32) * 2
  labels = rng.integers(0, c, n).astype(np.int32)
  return np.array(jax.nn.softmax(logits)), labels


def _reference_error(p, y, m, norm):
  """Float64, bin by bin, from the definition."""
  c = p.max(-1)
  # The edge is rounded to the type of the computation.
  edges = (np.arange(1, m) / m).astype(c.dtype)
  b = (c[:, None] >= edges).sum(-1)
  c = c.astype(np.float64)
  hit = p.argmax(-1) == y
  parts = [
    (b == k).mean() * abs(hit[b == k].mean() - c[b == k].mean()) ** norm
    for k in range(m)
    if (b == k).any()
  ]
  return sum(parts) ** (1 / norm)


@pytest.mark.parametrize("norm", [1, 2, 3.5])
def test_expected_calibration_error_meets_its_definition(norm):
  p, y = _data()
  stats = calibration.bin_stats(p, y, num_bins=10)
  got = float(calibration.expected_calibration_error(stats, norm=norm))
  # Sums are exact. The powers and the last sum round a few times in float32.
  assert got == pytest.approx(_reference_error(p, y, 10, norm), rel=2e-6)


def test_narrow_confidences_are_widened_before_binning():
  # The numbers nearest to 0.7: on, below and above the edge 7/10.
  for dtype, want in ((np.float32, 7), (jnp.bfloat16, 6), (np.float16, 7)):
    p = jnp.array([[0.7, 0.3]], dtype)
    stats = calibration.bin_stats(p, np.array([0]), num_bins=10)
    assert int(jnp.argmax(stats.counts)) == want, dtype


def test_merged_batches_have_the_bits_of_one():
  p, y = _data()
  whole = calibration.bin_stats(p, y)
  parts = [
    calibration.bin_stats(p[i : i + 77], y[i : i + 77])
    for i in range(0, len(p), 77)
  ]
  for order in (parts, parts[::-1]):
    merged = order[0]
    for part in order[1:]:
      merged = calibration.merge(merged, part)
    jax.tree.map(np.testing.assert_array_equal, merged, whole)


def test_confidence_does_not_stall_past_the_integers_of_float32():
  p = np.array([[0.7, 0.3]], np.float32)
  stats = calibration.bin_stats(p, np.array([0]))
  for _ in range(25):  # 2^25 rows.
    stats = calibration.merge(stats, stats)
  assert int(stats.counts.sum()) == 2**25
  confidence = np.asarray(stats.confidence)
  assert confidence[10] == np.float32(0.7)


def test_too_many_rows_give_nan_for_good():
  ece = calibration.expected_calibration_error
  p = np.array([[0.7, 0.3], [0.4, 0.6]], np.float32)
  stats = calibration.bin_stats(p, np.array([0, 0]))
  for power in range(2, 36):
    double = jax.tree.map(lambda x: x + x, stats)  # As a psum, without a carry.
    stats = calibration.merge(stats, stats)
    for sums in (stats, double):
      # An int32 count is 0 again at 2^33 rows, of which each bin has half.
      assert np.isnan(ece(sums)) == (power >= 31), power
      assert np.isnan(sums.accuracy[10]) == (power >= 31), power


def test_a_label_out_of_range_raises_or_gives_nan_under_jit():
  p, y = _data(4)
  y[2] = 5
  with pytest.raises(ValueError, match=r"labels\[2\] = 5"):
    calibration.bin_stats(p, y)
  stats = jax.jit(calibration.bin_stats)(p, y)
  assert int(stats.invalid) == 1
  assert np.isnan(calibration.expected_calibration_error(stats))
  keep = np.arange(4) != 2
  p[2] = np.nan
  masked = calibration.bin_stats(p, y, where=keep)
  rows = calibration.bin_stats(p[keep], y[keep])
  jax.tree.map(np.testing.assert_array_equal, masked, rows)


def test_logits_instead_of_probabilities_give_nan():
  stats = calibration.bin_stats(jnp.array([[3.0, -1.0]]), jnp.array([0]))
  assert np.isnan(calibration.expected_calibration_error(stats))


# Statistics from confidences.


def _assert_equal(found, want):
  jax.tree.map(np.testing.assert_array_equal, found, want)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_confidences_give_the_bits_of_probabilities(dtype):
  p, y = _data(240)
  p[0], p[1] = np.eye(5)[y[0]], 0.2  # A confidence of 1, and a tie.
  p = np.asarray(p).astype(dtype)
  confidence, hit = p.max(-1), p.argmax(-1) == y
  where = np.arange(240) % 3 > 0
  from_confidence = calibration.bin_stats_from_confidence
  for keep in (None, where):
    want = calibration.bin_stats(p, y, where=keep)
    _assert_equal(from_confidence(confidence, hit, where=keep), want)
  # Of any batch shape, with garbage in dropped examples, under jit.
  confidence = np.where(where, confidence, np.array(np.nan, dtype))
  arrays = (x.reshape(4, 60) for x in (confidence, hit, where))
  compiled = jax.jit(lambda c, h, w: from_confidence(c, h, where=w))
  _assert_equal(compiled(*arrays), want)


def test_confidences_that_are_none_are_counted_as_invalid():
  confidence = np.float32(
    [np.nan, np.inf, -0.1, 1.5, 1 + 2**-22, -(2.0**-22), 0.5]
  )
  stats = calibration.bin_stats_from_confidence(
    confidence, np.ones(7, bool), num_bins=2
  )
  assert int(stats.invalid) == 4
  # Within rounding errors, a number counts as the end of the interval.
  assert stats.counts.tolist() == [1, 2]
  assert np.isnan(calibration.expected_calibration_error(stats))
  stats = calibration.bin_stats_from_confidence(np.float32(0.5), np.True_)
  assert int(stats.counts.sum()) == 1


def test_confidences_on_devices():
  p, y = _data(64)
  confidence, hit = p.max(-1), p.argmax(-1) == y
  want = calibration.bin_stats(p, y)
  from_confidence = calibration.bin_stats_from_confidence
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
  with jax.set_mesh(mesh):
    sharded = jax.device_put((confidence, hit), P("data"))
    _assert_equal(from_confidence(*sharded), want)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  spec = P("data")

  def total(confidence, hit):
    return jax.lax.psum(from_confidence(confidence, hit), "data")

  total = jax.shard_map(total, mesh=mesh, in_specs=(spec, spec), out_specs=P())
  found = jax.jit(total)(confidence, hit)
  _assert_equal(calibration.merge(found, found), calibration.merge(want, want))


@pytest.mark.parametrize(
  ("arguments", "keywords", "error", "message"),
  [
    (([1, 0], [True, True]), {}, TypeError, "confidence must be floating"),
    (([0.5], [1]), {}, TypeError, "correct must be boolean.*predictions =="),
    (([0.5], [True, False]), {}, ValueError, r"shape \(1,\) of confidence"),
    (([0.5], [True]), {"where": [1]}, TypeError, "where must be boolean"),
    (([0.5], [True]), {"where": True}, ValueError, "where must have the batch"),
    (([0.5], [True]), {"num_bins": 0}, ValueError, "num_bins must be at least"),
  ],
)
def test_confidences_that_do_not_fit(arguments, keywords, error, message):
  with pytest.raises(error, match=message):
    calibration.bin_stats_from_confidence(*arguments, **keywords)
