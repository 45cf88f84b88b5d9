# SPDX-License-Identifier: Apache-2.0
"""Figures of the replication, made from its rows and curves alone."""

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
import numpy as np
import pandas as pd

from replication import claims
from squentropy_study import _figures


def shares(curves: pd.DataFrame) -> pd.DataFrame:
  """With the share of the training done, in percent, for each of 20 points."""
  curves = curves[curves["readout"] == "softmax"]
  last = curves.groupby("data")["epoch"].transform("max")
  share = 5 * np.ceil(20 * curves["epoch"] / last)
  return curves.assign(share=share.astype(int))


def by_epoch(curves: pd.DataFrame) -> bytes:
  """Medians over data sets against the share of the training done."""
  curves = shares(curves)
  common = claims.on_several(curves)["loss"].unique()
  titles = {"accuracy": "Accuracy", "nll": "NLL", "ece": "ECE"}
  with matplotlib.rc_context(_figures.THEMES["light"]):
    figure = Figure(figsize=(12, 3.8))
    for ax, name in zip(figure.subplots(1, 3), titles, strict=True):
      for loss in common:
        chosen = curves[curves["loss"] == loss].groupby("share")[name]
        middle = chosen.median()
        ax.plot(middle.index, middle, label=loss)
      # The short training ends here.
      ink = matplotlib.rcParams["text.color"]
      ax.axvline(10, color=ink, linewidth=1, linestyle="--")
      ax.set(
        title=f"Test {titles[name]}, median over sets",
        xlabel="% of the long training",
        xlim=(0, 100),
      )
    figure.legend(
      *ax.get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    return _figures.png(figure)


def by_temperature(rows: pd.DataFrame) -> bytes:
  """A point per data set: what squentropy changes where the baseline stands."""
  with matplotlib.rc_context(_figures.THEMES["light"]):
    figure = Figure(figsize=(7, 4.2))
    ax = figure.subplots()
    ink = matplotlib.rcParams["text.color"]
    ax.axhline(0, color=ink, linewidth=1)
    ax.axvline(1, color=ink, linewidth=1)
    for regime, change in claims.by_temperature(rows).items():
      at = change["temperature"]
      ax.plot(at, change["ece"], "o", markersize=5, alpha=0.7, label=regime)
    ax.set(
      xscale="log",
      xticks=(1, 2, 5, 10),
      xlabel="temperature fitted for cross_entropy (above 1: over-confident)",
      ylabel="ECE, squentropy minus cross_entropy",
    )
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(title="training")
    return _figures.png(figure)
