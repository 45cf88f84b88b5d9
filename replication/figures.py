# SPDX-License-Identifier: Apache-2.0
"""Figures of the replication, made from its rows and curves alone."""

import matplotlib
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from replication import plan
from squentropy_jax.study import _figures, _summary
from squentropy_jax.study._summary import Method


def by_epoch(curves: pd.DataFrame) -> bytes:
  """Medians over data sets against the share of the training done."""
  curves = curves[curves["readout"] == "softmax"].copy()
  last = curves.groupby("data")["epoch"].transform("max")
  # Twenty points for each set, whatever its length.
  curves["share"] = np.ceil(20 * curves["epoch"] / last) / 20
  common = [
    loss
    for loss, chosen in curves.groupby("loss", sort=False)
    if chosen["data"].nunique() > 1
  ]
  titles = {"accuracy": "Accuracy", "nll": "NLL", "ece": "ECE"}
  with matplotlib.rc_context(_figures.THEMES["light"]):
    figure = Figure(figsize=(12, 3.8))
    for ax, name in zip(figure.subplots(1, 3), titles, strict=True):
      for loss in common:
        chosen = curves[curves["loss"] == loss].groupby("share")[name]
        middle = chosen.median()
        (line,) = ax.plot(middle.index, middle, label=loss)
        low, high = chosen.quantile(0.25), chosen.quantile(0.75)
        color = line.get_color()
        ax.fill_between(middle.index, low, high, color=color, alpha=0.1)
      ax.set(title=f"Test {titles[name]}", xlabel="share of the long training")
    figure.legend(
      *ax.get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    return _figures.png(figure)


def by_temperature(rows: pd.DataFrame) -> bytes:
  """A point per data set: what squentropy changes where the baseline stands."""
  means = _summary.means(rows)
  chosen = rows[rows["loss"] == _summary.BASELINE]
  with matplotlib.rc_context(_figures.THEMES["light"]):
    figure = Figure(figsize=(7, 4.2))
    ax = figure.subplots()
    zero = matplotlib.rcParams["text.color"]
    ax.axhline(0, color=zero, linewidth=1)
    ax.axvline(1, color=zero, linewidth=1)
    for regime, of_length in chosen.groupby("regime", sort=False):
      temperature = of_length.groupby("data")["temperature"].median()
      method = Method(plan.SQUENTROPY, "softmax", regime)
      change = _summary.pairs(means, method).differences["ece"]
      at = temperature.reindex(change.index)
      ax.plot(at, change, "o", markersize=5, alpha=0.7, label=f"{regime}")
    ax.set(
      xscale="log",
      xlabel="temperature fitted for cross_entropy (above 1: over-confident)",
      ylabel="ECE, squentropy minus cross_entropy",
    )
    ax.legend(title="training")
    return _figures.png(figure)
