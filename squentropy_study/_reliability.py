# SPDX-License-Identifier: Apache-2.0
"""Draws reliability diagrams, with the share of rows on an axis of its own."""

import math
import textwrap
from typing import Any, NamedTuple

import matplotlib
from matplotlib import patches, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from squentropy_study import _charts, _evaluation, _test_rows
from squentropy_study._charts import COLORS
from squentropy_study._result_rows import Method
from squentropy_study._results import Results
from squentropy_study._settings import STOPPED

# A bin with fewer test rows is drawn pale: its accuracy is mostly chance.
FEW = 5
_OVER, _UNDER = COLORS[3], COLORS[2]
_PALE = 0.3
_MOST_COLUMNS = 4

# What the legend explains: color, hatch, opacity, text.
LEGEND = (
  (COLORS[0], "", 1.0, "accuracy of the bin"),
  (_OVER, "////", 1.0, "over-confident by this much"),
  (
    _UNDER,
    "\\\\\\\\",
    1.0,
    "under-confident by this much",
  ),
  (COLORS[0], "", _PALE, f"fewer than {FEW} test rows"),
)


class _Panel(NamedTuple):
  """A reliability diagram: its title and its bins."""

  title: str
  rows: np.ndarray
  accuracy: np.ndarray
  confidence: np.ndarray

  @property
  def share(self) -> np.ndarray:
    return self.rows / self.rows.sum()


def _panel(results: Results, method: Method, *, scaled: bool) -> _Panel:
  bins = _test_rows.bin_stats(
    results.test_predictions(method, STOPPED, scaled=scaled)
  )
  name = "ece_scaled" if scaled else "ece"
  ece = results.per_seed(method, STOPPED, name).mean()
  when = "After temperature" if scaled else "As trained"
  return _Panel(f"{when}: ECE {ece:.3f}", *bins)


def _panels(results: Results) -> dict[tuple[Method, bool], _Panel]:
  """Returns the panels of every method, as trained and after temperature."""
  # Every figure needs them all, for the axis that they share.
  known = results.cache.setdefault("panels", {})
  if not known:
    for method in results.methods:
      for scaled in (False, True):
        known[method, scaled] = _panel(results, method, scaled=scaled)
  return known


def _draw(ax: Axes, shares: Axes, panel: _Panel, top: float) -> None:
  """Draws the bins of a method, and the share of rows below them."""
  width = 1 / _evaluation.NUM_BINS
  for k in np.flatnonzero(panel.rows > 0):
    left, accuracy = k * width, panel.accuracy[k]
    gap = panel.confidence[k] - accuracy
    opacity = 1.0 if panel.rows[k] >= FEW else _PALE
    bar: dict[str, Any] = {"width": width, "align": "edge", "alpha": opacity}
    ax.bar(left, accuracy, color=COLORS[0], **bar)
    is_over = gap > 0
    # A gap above the accuracy, or below its top, where confidence ends.
    ax.bar(
      left,
      gap,
      bottom=accuracy,
      facecolor="none" if is_over else matplotlib.rcParams["axes.facecolor"],
      edgecolor=_OVER if is_over else _UNDER,
      hatch="////" if is_over else "\\\\\\\\",
      linewidth=0.8,
      **bar,
    )
  ink = matplotlib.rcParams["text.color"]
  ax.plot([0, 1], [0, 1], "--", color=ink, linewidth=1)
  ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=panel.title)
  lefts = np.arange(_evaluation.NUM_BINS) * width
  shares.bar(lefts, panel.share, width, align="edge", color="0.55")
  shares.set(xlim=(0, 1), ylim=(0, top), xlabel="confidence", ylabel="rows")
  shares.yaxis.set_major_locator(ticker.MaxNLocator(2))
  shares.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
  for each in (ax, shares):
    each.xaxis.set_major_locator(ticker.MultipleLocator(0.2))
    each.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
  ax.tick_params(labelbottom=False)


def _top(panels: list[_Panel]) -> float:
  """Returns the end of the axis that all diagrams share."""
  highest = max(float(panel.share.max()) for panel in panels)
  return min(1.0, math.ceil(highest * 10) / 10)


def reliability(
  results: Results, theme: str, method: Method | None = None
) -> bytes:
  """Draws reliability diagrams of the main training length.

  Every diagram of a study has the same axis for the share of rows.

  Args:
    results: The numbers.
    theme: ``light`` or ``dark``.
    method: Draws one method before and after temperature scaling, without a
      legend. None draws every method before temperature scaling.

  Returns:
    A PNG.
  """
  every = _panels(results)
  top = _top(list(every.values()))
  if method is not None:
    panels = [every[method, False], every[method, True]]
  else:
    panels = [
      every[each, False]._replace(
        title=_wrapped(results.label(each))
        + every[each, False].title.removeprefix("As trained: ")
      )
      for each in results.methods
    ]
  columns = min(len(panels), _MOST_COLUMNS)
  blocks = -(-len(panels) // columns)
  with matplotlib.rc_context(_charts.figure_style(theme)):
    figure = Figure(figsize=(3 * columns, 3.5 * blocks))
    grid = figure.add_gridspec(
      2 * blocks, columns, height_ratios=[3.2, 1] * blocks
    )
    for index, panel in enumerate(panels):
      block, column = divmod(index, columns)
      ax = figure.add_subplot(grid[2 * block, column])
      shares = figure.add_subplot(grid[2 * block + 1, column])
      _draw(ax, shares, panel, top)
      if column:
        ax.set_ylabel("")
        shares.set_ylabel("")
    if method is None:
      _add_legend(figure, columns)
    return _charts.figure_png(figure)


def _wrapped(name: str) -> str:
  """Returns the name of a method in lines of a panel's width."""
  text = name.replace(":", ": ").replace(",", ", ")
  return f"{textwrap.fill(text, 30)}\n"


def _add_legend(figure: Figure, columns: int) -> None:
  handles = [
    patches.Patch(
      facecolor="none" if hatch else color,
      edgecolor=color if hatch else "none",
      hatch=hatch,
      alpha=opacity,
      label=text,
    )
    for color, hatch, opacity, text in LEGEND
  ]
  figure.legend(
    handles=handles,
    loc="outside lower center",
    ncols=2 if columns > 1 else 1,
    fontsize="small",
  )
