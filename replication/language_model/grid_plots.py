# SPDX-License-Identifier: Apache-2.0
"""The figures of the experiment: measures against the learning rate."""

from typing import Any

import matplotlib
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from replication.language_model import grid
import squentropy_study as study


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
  return plain | {
    name: {"color": shade} for name, shade in zip(squares, shades, strict=True)
  }


def by_rate(rows: pd.DataFrame, measures: dict[str, str]) -> bytes:
  """Draws means over seeds against the learning rate, one panel a measure.

  Args:
    rows: One row per run, all with the same number of classes.
    measures: The titles of the panels, by column.

  Returns:
    The PNG file. A value that is not finite is not drawn.
  """
  names = [name for name in grid.LOSSES if (rows["loss"] == name).any()]
  with matplotlib.rc_context(study.figure_style()):
    columns = 2
    lines = -(-len(measures) // columns)
    figure = Figure(figsize=(10, 0.8 + 3.6 * lines))
    panels = np.ravel(figure.subplots(lines, columns, squeeze=False))
    styles = _lines(names)
    for ax, (column, title) in zip(panels, measures.items(), strict=False):
      for name in names:
        chosen = rows[rows["loss"] == name]
        mean = chosen.groupby("learning_rate")[column].mean()
        mean = mean.where(np.isfinite(mean))
        ax.plot(mean.index, mean, marker=".", label=name, **styles[name])
      ax.set(title=title, xscale="log", xlabel="learning rate")
      if column in ("max_abs_logit", "head_norm", "temperature"):
        ax.set_yscale("log")
    for ax in panels[len(measures) :]:
      ax.remove()
    figure.legend(
      *panels[0].get_legend_handles_labels(),
      loc="outside lower center",
      ncols=5,
    )
    return study.figure_png(figure)
