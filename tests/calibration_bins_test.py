# SPDX-License-Identifier: Apache-2.0
"""Binned statistics: exact sums, masks and invalid rows, and their errors."""

import jax
import jax.numpy as jnp
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
