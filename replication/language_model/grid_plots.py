# SPDX-License-Identifier: Apache-2.0
"""The figures of the experiment: measures against the learning rate."""

from typing import Any

import matplotlib
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from replication.language_model import grid, verdicts
import squentropy_study as study

# Drawn as differences, because a rate at which training fails would hide them
# otherwise. Differences up to a hundredth are on a linear scale.
_DIFFERENCES = ("nll", "nll_scaled")
_LINEAR = 0.01


def _lines(names: list[str]) -> dict[str, dict[str, Any]]:
  """Returns the style of the line of each loss.

  The square terms have shades of one colour map, from small to large scales.
  """
  ink = matplotlib.rcParams["text.color"]
  plain = {
    grid.CROSS_ENTROPY: {"color": ink, "linestyle": "-"},
    grid.Z_LOSS: {"color": ink, "linestyle": "--"},
    "mean_logit": {"color": ink, "linestyle": ":"},
  }
  squares = sorted(
    (name for name in names if name not in plain),
    key=lambda name: grid.LOSSES[name].square,
  )
  shades = matplotlib.colormaps["plasma"](np.linspace(0, 0.85, len(squares)))
  styles = plain | {
    name: {"color": shade} for name, shade in zip(squares, shades, strict=True)
  }
  return {name: style for name, style in styles.items() if name in names}


def _means(rows: pd.DataFrame, column: str) -> pd.DataFrame:
  """Returns means over seeds, with a row for each rate, a column for each loss.

  Where a run has no finite value, there is no mean. Differences are taken
  within a seed.
  """
  table = rows.pivot_table(
    index=["learning_rate", "seed"], columns="loss", values=column
  )
  # A loss without any number has a column, too.
  table = table.where(np.isfinite(table)).reindex(columns=list(grid.LOSSES))
  if column in _DIFFERENCES:
    table = table.sub(table[grid.CROSS_ENTROPY], axis="index")
  return table.groupby("learning_rate").agg(lambda x: x.mean(skipna=False))


def by_rate(rows: pd.DataFrame, measures: dict[str, str]) -> bytes:
  """Draws means over seeds against the learning rate, one panel a measure.

  Args:
    rows: One row per run, all with the same number of classes.
    measures: The titles of the panels, by column.

  Returns:
    The PNG file. Of the NLL it shows the difference to cross-entropy.
  """
  styles = _lines([x for x in grid.LOSSES if (rows["loss"] == x).any()])
  with matplotlib.rc_context(study.figure_style()):
    columns = 2
    lines = -(-len(measures) // columns)
    figure = Figure(figsize=(10, 0.8 + 3.6 * lines))
    panels = np.ravel(figure.subplots(lines, columns, squeeze=False))
    for ax, (column, title) in zip(panels, measures.items(), strict=False):
      table = _means(rows, column)
      for name, style in styles.items():
        ax.plot(table.index, table[name], marker=".", label=name, **style)
      ax.set(title=title, xscale="log", xlabel="learning rate")
      if column in _DIFFERENCES:
        ax.set_title(f"{title}, minus that of cross_entropy")
        ax.set_yscale("symlog", linthresh=_LINEAR)
      if column == "head_norm":
        ax.set_yscale("log")
    for ax in panels[len(measures) :]:
      ax.remove()
    figure.legend(
      *panels[0].get_legend_handles_labels(),
      loc="outside lower center",
      ncols=5,
    )
    return study.figure_png(figure)


def differences(changes: pd.DataFrame) -> bytes:
  """Draws each loss minus cross-entropy: a dot for each seed, and intervals.

  Args:
    changes: The result of :func:`verdicts.differences`.

  Returns:
    The PNG file. Arrows mark intervals that leave the panel, and a band the
    differences that are ties.
  """
  names = sorted(
    changes.index.unique("loss"), key=lambda name: grid.LOSSES[name].square
  )
  titles = {
    "best_nll": "NLL at the best learning rate",
    "sensitivity": "learning-rate sensitivity",
  }
  with matplotlib.rc_context(study.figure_style()):
    figure = Figure(figsize=(10, 0.9 + 0.36 * len(names)))
    panels = figure.subplots(1, 2, sharey=True)
    for ax, (column, title) in zip(panels, titles.items(), strict=True):
      edge = 1.5 * changes[column].abs().max()
      for row, name in enumerate(names):
        values = changes.loc[name, column].to_numpy()
        found = verdicts.interval(values)
        ends = np.clip([found.low, found.high], -edge, edge)
        ax.plot(ends, [row, row], color="0.6", linewidth=3)
        ax.plot(values, np.full(values.size, row), "o", color="C0")
        for end, marker in zip(ends, "<>", strict=True):
          if abs(end) == edge:
            ax.plot(end, row, marker, color="0.6", markersize=9, clip_on=False)
      ax.axvline(0.0, color="0.5", linewidth=0.8)
      ax.set_title(f"{title}, minus that of cross_entropy")
      ax.set(xlabel="nats per token", xlim=(-edge, edge))
    panels[0].axvspan(-verdicts.TIE, verdicts.TIE, color="C0", alpha=0.15)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return study.figure_png(figure)
