# SPDX-License-Identifier: Apache-2.0
"""The two figures that only the replication has."""

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
import numpy as np
import pandas as pd

from replication import claims, plan
import squentropy_study as study


def progress(curves: pd.DataFrame) -> pd.DataFrame:
  """Adds a column with the progress of the training, in steps of 5 %."""
  curves = curves[curves["probability_map"] == "softmax"]
  last = curves.groupby("data")["epoch"].transform("max")
  percent = 5 * np.ceil(20 * curves["epoch"] / last)
  return curves.assign(percent=percent.astype(int))


def by_epoch(curves: pd.DataFrame) -> bytes:
  """Draws medians over data sets against the progress of the training."""
  curves = progress(curves)
  common = claims.on_several(curves)["loss"].unique()
  titles = {"accuracy": "Accuracy", "nll": "NLL", "ece": "ECE"}
  with matplotlib.rc_context(study.figure_style()):
    figure = Figure(figsize=(12, 3.8))
    for ax, name in zip(figure.subplots(1, 3), titles, strict=True):
      for loss in common:
        chosen = curves[curves["loss"] == loss].groupby("percent")[name]
        median = chosen.median()
        ax.plot(median.index, median, label=loss)
      # The end of the short training.
      ink = matplotlib.rcParams["text.color"]
      ax.axvline(10, color=ink, linewidth=1, linestyle="--")
      ax.set(
        title=f"Test {titles[name]}, median over data sets",
        xlabel="% of the long training",
        xlim=(0, 100),
      )
    figure.legend(
      *ax.get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    return study.figure_png(figure)


def by_temperature(rows: pd.DataFrame) -> bytes:
  """Draws the change of the ECE by data set, against the temperature."""
  with matplotlib.rc_context(study.figure_style()):
    figure = Figure(figsize=(7, 4.2))
    ax = figure.subplots()
    ink = matplotlib.rcParams["text.color"]
    ax.axhline(0, color=ink, linewidth=1)
    ax.axvline(1, color=ink, linewidth=1)
    found = claims.by_temperature(rows)
    for length in (x for x in plan.LENGTHS if x in found):
      change = found[length]
      at = change["temperature"]
      ax.plot(at, change["ece"], "o", markersize=5, alpha=0.7, label=length)
    ax.set(
      xscale="log",
      xticks=(1, 2, 5, 10),
      xlabel="temperature fitted for cross_entropy (above 1: over-confident)",
      ylabel="ECE, squentropy minus cross_entropy",
    )
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(title="training")
    return study.figure_png(figure)
