# SPDX-License-Identifier: Apache-2.0
"""Draws ranks and differences over several data sets."""

from collections.abc import Sequence
import math
import textwrap

import matplotlib
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from squentropy_study import _charts, _comparisons, _summary_text
from squentropy_study._average_ranks import AverageRanks
from squentropy_study._result_rows import REFERENCE
from squentropy_study._summary_text import TITLES


def _draw_ranks(ax: Axes, ranking: AverageRanks) -> None:
  """Draws the average rank of each loss; its bar is a critical difference."""
  ink = matplotlib.rcParams["text.color"]
  reach = ranking.critical_difference / 2
  for place, rank in enumerate(ranking.ranks):
    color = "C2" if place == 0 else "C0"
    if not math.isnan(reach):
      ax.plot([rank - reach, rank + reach], [place] * 2, color, linewidth=3)
    ax.plot(rank, place, "o", color=color, markersize=7)
    ax.annotate(
      f"{rank:.2f}",
      (rank, place),
      xytext=(0, 7),
      textcoords="offset points",
      ha="center",
      fontsize="small",
      path_effects=[
        patheffects.withStroke(
          linewidth=3, foreground=matplotlib.rcParams["axes.facecolor"]
        )
      ],
    )
  if not math.isnan(reach):
    # A loss to the right of this line differs significantly from the best.
    ax.axvline(ranking.ranks[0] + reach, color=ink, linewidth=1, linestyle=":")
  count = len(ranking.losses)
  margin = max(0.3, 0 if math.isnan(reach) else reach)
  ax.set(
    title=TITLES[ranking.metric],
    xlabel="average rank (1 is best)",
    xlim=(1 - margin, count + margin),
    ylim=(count - 0.5, -0.7),
    xticks=range(1, count + 1, -(-count // 8)),
  )
  names = (x.replace(":", ": ").replace(",", ", ") for x in ranking.losses)
  ax.set_yticks(
    range(count), [textwrap.fill(x, 28) for x in names], fontsize="small"
  )
  ax.grid(axis="y", visible=False)


def ranks_figure(
  rankings: Sequence[AverageRanks], theme: str = "light"
) -> bytes:
  """Draws the average ranks of the losses, a panel per ranking.

  Args:
    rankings: The rankings.
    theme: ``light`` or ``dark``.

  Returns:
    A PNG.
  """
  height = 1.1 + 0.42 * max(len(ranking.losses) for ranking in rankings)
  with matplotlib.rc_context(_charts.figure_style(theme)):
    figure = Figure(figsize=(5.2 * len(rankings), height))
    axes = figure.subplots(1, len(rankings), squeeze=False)[0]
    for ax, ranking in zip(axes, rankings, strict=True):
      _draw_ranks(ax, ranking)
    return _charts.figure_png(figure)


def differences_figure(
  rows: pd.DataFrame,
  theme: str = "light",
  *,
  metrics: Sequence[str] = ("accuracy", "nll", "ece"),
  against: tuple[str, str] = (REFERENCE, "softmax"),
) -> bytes:
  """Draws the difference from one loss on each data set.

  Args:
    rows: As returned by :func:`squentropy_study.read_results`.
    theme: ``light`` or ``dark``.
    metrics: The metrics, a panel each.
    against: Loss and probability map to compare with.

  Returns:
    A PNG with a row per method and a point per data set.

  Raises:
    StudyError: The loss to compare with is missing, or runs cannot be paired.
  """
  means = _comparisons.dataset_means(rows)
  methods = [method for method in means if method.loss != against[0]]
  # A loss has the same colour at each training length.
  maps = list(dict.fromkeys((m.loss, m.probability_map) for m in methods))
  with matplotlib.rc_context(_charts.figure_style(theme)):
    figure = Figure(figsize=(4 * len(metrics), 1 + 0.5 * len(methods)))
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, metrics, strict=True):
      ink = matplotlib.rcParams["text.color"]
      ax.axvline(0, color=ink, linewidth=1)
      for place, method in enumerate(methods):
        pairs = _comparisons.pair(means, method, against)
        values = pairs.differences[name].dropna().to_numpy()
        if not values.size:
          continue
        # Spread over the height of the row, so that all points are visible.
        height = place + np.linspace(-0.3, 0.3, len(values))
        color = f"C{maps.index((method.loss, method.probability_map))}"
        ax.plot(values, height, "o", color=color, markersize=3.5, alpha=0.6)
        ax.plot([np.median(values)] * 2, [place - 0.4, place + 0.4], color=ink)
      if name.startswith("nll"):
        ax.set_xscale("symlog", linthresh=0.1)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
      ax.set(title=f"{TITLES[name]},\ndifference from {against[0]}")
    names = _summary_text.labels(methods)
    axes[0].set_yticks(
      range(len(methods)),
      [
        f"{names[m.loss, m.probability_map]}, {m.training_length}"
        for m in methods
      ],
    )
    axes[0].invert_yaxis()
    return _charts.figure_png(figure)
