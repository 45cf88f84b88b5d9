# SPDX-License-Identifier: Apache-2.0
"""The ranking as a DataFrame and as a figure."""

import math
import textwrap
from typing import Any

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
import pandas as pd

from squentropy_study import _charts, _headline, _ranking
from squentropy_study._metric_samples import RankMetric
from squentropy_study._paired_errors import Difference
from squentropy_study._ranking import RankedEntry, Ranking
from squentropy_study._results import Results

_COLORS = {1: _charts.COLORS[2], 0: _charts.COLORS[0], -1: _charts.COLORS[3]}
_MEANINGS = {
  1: "significantly better (Holm)",
  0: "not significantly different, or not tested",
  -1: "significantly worse",
}
_NOTHING = Difference(*[math.nan] * len(Difference._fields))


def table(results: Results) -> pd.DataFrame:
  """Returns the ranking; see :meth:`Results.table`."""
  ranking = _ranking.rank(results)
  rows = []
  for entry in ranking.entries:
    row: dict[str, Any] = {
      "loss": entry.label,
      "is_baseline": entry.is_baseline,
      "epoch": entry.epoch,
    }
    for metric in ranking.metrics:
      name = metric.name
      value = entry.values[name]
      difference = entry.differences.get(name, _NOTHING)
      row |= {
        name: value.mean,
        f"{name}_seeds_error": value.seeds_error,
        f"{name}_rows_error": value.rows_error,
        f"{name}_difference": difference.mean,
        f"{name}_low": difference.low,
        f"{name}_high": difference.high,
        f"{name}_p": entry.adjusted.get(name, math.nan),
      }
    rows.append(row)
  frame = pd.DataFrame(rows)
  frame.attrs["reference"] = ranking.reference
  return frame


def _shown(entry: RankedEntry, name: str, ranking: Ranking) -> Difference:
  """Returns what is drawn: a difference, or a value if nothing is compared."""
  if len(ranking.entries) == 1:
    return entry.values[name]
  if entry.label == ranking.reference:
    return Difference(0.0, math.nan, math.nan, *[math.nan] * 3)
  return entry.differences.get(name, _NOTHING)


def _limits(shown: list[Difference]) -> tuple[float, float]:
  """Returns the ends of an axis that holds all intervals."""
  ends = [x for each in shown for x in (each.mean, each.low, each.high)]
  finite = [x for x in ends if math.isfinite(x)] or [0.0]
  low, high = min(finite), max(finite)
  margin = 0.08 * (high - low) or 0.1
  return low - margin, high + margin


def _draw(ax: Axes, ranking: Ranking, metric: RankMetric) -> None:
  """Draws a point and an interval per entry, in the unit of the metric."""
  shown = [
    Difference(*(metric.scale * x for x in _shown(e, metric.name, ranking)))
    for e in ranking.entries
  ]
  of_losses = [
    x
    for x, entry in zip(shown, ranking.entries, strict=True)
    if not entry.is_baseline
  ]
  # A baseline may be so far away that no difference of losses can be seen.
  low, high = _limits(of_losses)
  compared = len(ranking.entries) > 1
  if compared:
    ax.axvline(0, color=matplotlib.rcParams["text.color"], linewidth=1)
  pairs = zip(ranking.entries, shown, strict=True)
  for place, (entry, value) in enumerate(pairs):
    color = _COLORS[entry.significance(metric)]
    if low <= value.mean <= high:
      ax.plot([value.low, value.high], [place] * 2, color=color, linewidth=2.5)
      marker = "s" if entry.is_baseline else "o"
      ax.plot(value.mean, place, marker, color=color, markersize=7)
    elif math.isfinite(value.mean):
      is_low = value.mean < low
      difference = entry.differences[metric.name]
      ax.annotate(
        _headline.mean_text(difference, metric),
        (low if is_low else high, place),
        xytext=(8 if is_low else -8, 0),
        textcoords="offset points",
        ha="left" if is_low else "right",
        va="center",
        fontsize="small",
      )
      marker = "<" if is_low else ">"
      ax.plot(
        low if is_low else high, place, marker, color=color, clip_on=False
      )
  better = "larger" if metric.gain > 0 else "smaller"
  against = f"difference from {ranking.reference}"
  if metric.unit:
    against += f",{metric.unit}"
  ax.set(
    title=metric.title,
    xlabel=f"{against if compared else ''}\n({better} is better)".strip(),
    xlim=(low, high),
    ylim=(len(shown) - 0.5, -0.5),
  )
  ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
  ax.grid(axis="y", visible=False)


class _ShownFigure(Figure):
  """A figure that a notebook shows, also where nothing imported pyplot."""

  def _repr_png_(self) -> bytes:
    return _charts.figure_png(self)


def plot(results: Results, theme: str = "light") -> Figure:
  """Draws the ranking; see :meth:`Results.plot`."""
  ranking = _ranking.rank(results)
  names = [
    textwrap.fill(entry.label.replace(":", ": ").replace(",", ", "), 28)
    for entry in ranking.entries
  ]
  metrics = ranking.metrics
  with matplotlib.rc_context(_charts.figure_style(theme)):
    figure = _ShownFigure(
      figsize=(3.6 * len(metrics) + 1, 1.6 + 0.42 * len(names))
    )
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, metric in zip(axes, metrics, strict=True):
      _draw(ax, ranking, metric)
    axes[0].set_yticks(range(len(names)), names, fontsize="small")
    if len(names) > 1:
      figure.legend(
        handles=[
          Line2D([], [], color=_COLORS[k], marker="o", label=text)
          for k, text in _MEANINGS.items()
        ],
        loc="outside lower center",
        ncols=len(_MEANINGS),
        fontsize="small",
      )
    return figure
