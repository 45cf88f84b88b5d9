# SPDX-License-Identifier: Apache-2.0
"""Plots show the numbers of their arguments."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from squentropy_jax import calibration


@pytest.fixture(autouse=True)
def _close():
  yield
  plt.close("all")


def _data():
  rng = np.random.default_rng(4)
  p = rng.dirichlet(np.full(3, 0.4), 200).astype(np.float32)
  y = np.where(rng.random(200) < 0.7, p.argmax(-1), rng.integers(0, 3, 200))
  return p, y


def test_reliability_diagram():
  stats = calibration.bin_stats(*_data(), num_bins=8)
  _, ax = plt.subplots()
  assert calibration.plots.reliability_diagram(stats, ax) is ax
  full = np.asarray(stats.counts) > 0
  bars, gaps = (list(c) for c in ax.containers)
  np.testing.assert_allclose(
    [bar.get_height() for bar in bars], stats.accuracy[full]
  )
  np.testing.assert_allclose(
    [bar.get_y() + bar.get_height() for bar in gaps],
    stats.confidence[full],
    rtol=1e-6,
  )
  error = calibration.expected_calibration_error(stats)
  assert ax.get_title() == f"ECE {float(error):.3f}, n = 200"
  ax.figure.canvas.draw()


def test_plots_without_examples():
  p, y = _data()
  stats = calibration.bin_stats(p[:0], y[:0])
  calibration.plots.reliability_diagram(stats).figure.canvas.draw()
  curve = calibration.risk_coverage_curve(p[:0], y[:0])
  calibration.plots.risk_coverage(curve).figure.canvas.draw()


def test_risk_coverage():
  p, y = _data()
  keep = np.arange(200) < 150
  curve = calibration.risk_coverage_curve(p, y, where=keep)
  ax = calibration.plots.risk_coverage(curve)
  best, line = (a.get_xydata().T for a in ax.lines)
  np.testing.assert_allclose(line, np.stack(curve)[:, :150], rtol=1e-6)
  # Between the curves lies what the excess measures.
  excess = calibration.excess_area_under_risk_coverage(p, y, where=keep)
  np.testing.assert_allclose((line - best)[1].mean(), excess, atol=1e-6)
  area = float(calibration.area_under_risk_coverage(p, y, where=keep))
  error = 1 - np.mean(p.argmax(-1)[keep] == y[keep])
  assert ax.get_title() == f"AURC {area:.4f}, error {error:.3f}"
  ax.figure.canvas.draw()
