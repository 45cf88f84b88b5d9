# SPDX-License-Identifier: Apache-2.0
"""Plots of calibration. They need matplotlib, which is imported on use."""

from typing import TYPE_CHECKING

import numpy as np

from squentropy_jax.calibration import _metrics_bin_stats
from squentropy_jax.calibration._metrics_bin_stats import BinStats
from squentropy_jax.calibration._metrics_binned_errors import (
  expected_calibration_error,
)
from squentropy_jax.calibration._metrics_selective import RiskCoverage

if TYPE_CHECKING:
  from matplotlib.axes import Axes


def reliability_diagram(stats: BinStats, ax: "Axes | None" = None) -> "Axes":
  r"""Draws accuracy against confidence, bin by bin.

  Use it to see where a model is overconfident (bars below the diagonal) or
  underconfident (above).

  .. math:: \mathrm{gap}_b = h_b / n_b - s_b / n_b

  Bars show the accuracy of each bin, hatched bars its gap to the mean
  confidence. The dashed diagonal is perfect calibration. The strip at the
  bottom shows the share of examples in each bin. The title states the expected
  calibration error.

  Args:
    stats: Statistics from :func:`squentropy_jax.calibration.bin_stats`.
    ax: Axes to draw on. None creates new ones.

  Returns:
    The axes.

  Raises:
    ImportError: If matplotlib is not installed.
    TypeError: If ``stats`` is not a :class:`BinStats`.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> stats = calibration.bin_stats(p, jnp.array([0, 1, 1]))
    >>> ax = calibration.plots.reliability_diagram(stats)
    >>> ax.get_title()
    'ECE 0.300, n = 3'

  References:
    DeGroot and Fienberg, `The Comparison and Evaluation of Forecasters
    <https://doi.org/10.2307/2987588>`_, 1983.
  """
  import matplotlib.pyplot as plt

  _metrics_bin_stats.check_stats("stats", stats)
  if ax is None:
    _, ax = plt.subplots(figsize=(4, 4), layout="constrained")
  counts = np.asarray(stats.counts)
  accuracy = np.asarray(stats.accuracy)
  confidence = np.asarray(stats.confidence)
  width = 1 / len(counts)
  left = np.arange(len(counts)) * width
  has_rows = counts > 0
  bar = {
    "width": width,
    "align": "edge",
    "edgecolor": "white",
    "linewidth": 0.5,
  }
  ax.bar(
    left[has_rows], accuracy[has_rows], color="C0", label="accuracy", **bar
  )
  gap = (confidence - accuracy)[has_rows]
  ax.bar(
    left[has_rows],
    gap,
    bottom=accuracy[has_rows],
    width=width,
    align="edge",
    facecolor="none",
    edgecolor="C3",
    hatch="////",
    linewidth=0.8,
    label="gap to confidence",
  )
  ax.plot([0, 1], [0, 1], "k--", linewidth=1, label="perfect")
  ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
  ax.legend(loc="upper left", edgecolor="none", fontsize="small")
  error = float(expected_calibration_error(stats))
  ax.set_title(f"ECE {error:.3f}, n = {counts.sum()}")
  strip = ax.inset_axes((0, 0, 1, 0.12), sharex=ax)
  strip.bar(left, counts / max(counts.sum(), 1), color="0.4", **bar)
  strip.axis("off")
  strip.patch.set_alpha(0)
  return ax


def risk_coverage(curve: RiskCoverage, ax: "Axes | None" = None) -> "Axes":
  r"""Draws the error rate against the share of examples that are answered.

  Use it to choose a rejection rate, and to see how far the order of confidences
  is from the best one.

  .. math:: (k / n, r_k)

  The dashed line is the same errors in the best order: all hits before all
  errors. The title states the area under the curve.

  Args:
    curve: The result of
      :func:`squentropy_jax.calibration.risk_coverage_curve`.
    ax: Axes to draw on. None creates new ones.

  Returns:
    The axes.

  Raises:
    ImportError: If matplotlib is not installed.
    TypeError: If ``curve`` is not a :class:`RiskCoverage`.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> curve = calibration.risk_coverage_curve(p, jnp.array([0, 1, 1, 1]))
    >>> calibration.plots.risk_coverage(curve).get_title()
    'AURC 0.0625, error 0.250'

  References:
    Geifman and El-Yaniv, `Selective Classification for Deep Neural Networks
    <https://arxiv.org/abs/1705.08500>`_, 2017.
  """
  import matplotlib.pyplot as plt

  if not isinstance(curve, RiskCoverage):
    raise TypeError(
      f"curve must be a RiskCoverage, got {type(curve).__name__}. Pass "
      "risk_coverage_curve(probabilities, labels)."
    )
  if ax is None:
    _, ax = plt.subplots(figsize=(4, 4), layout="constrained")
  points = np.stack([np.asarray(x, np.float64) for x in curve])
  if points.size == 0:
    points = np.full((2, 1), np.nan)
  # The last point is repeated for each dropped example.
  coverage, risk = points[:, np.append(True, points[0, :-1] < 1)]
  error = risk[-1]
  best = np.maximum(0, coverage - (1 - error)) / coverage
  ax.plot(coverage, best, "k--", linewidth=1, label="best order")
  ax.plot(coverage, risk, color="C0", label="by confidence")
  ax.fill_between(coverage, best, risk, color="C0", alpha=0.15, linewidth=0)
  ax.set(xlim=(0, 1), xlabel="coverage", ylabel="risk")
  ax.set_ylim(bottom=0)
  ax.legend(loc="upper left", frameon=False, fontsize="small")
  ax.set_title(f"AURC {risk.mean():.4f}, error {error:.3f}")
  return ax
