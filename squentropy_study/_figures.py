# SPDX-License-Identifier: Apache-2.0
"""The figures: reliability diagrams and training curves."""

import io
import itertools
import textwrap
from typing import Any

import matplotlib
from matplotlib import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from squentropy_jax.calibration import plots
from squentropy_study._results import Method, Results

CURVES = {
  "train_loss": "Training loss, each its own",
  "accuracy": "Test accuracy",
  "nll": "Test NLL",
  "ece": "Test ECE",
}

# The first three and the others of the curves; C0 and C3 are also the bars of
# a reliability diagram. All are readable on both grounds.
_COLORS = ("#3f7fd9", "#e07a2f", "#2fa37c", "#d1495b", "#b565c9", "#c9a227")


def _theme(ground: str, ink: str) -> dict[Any, Any]:
  inks = (
    "axes.edgecolor",
    "axes.labelcolor",
    "grid.color",
    "text.color",
    "xtick.color",
    "ytick.color",
  )
  grounds = ("axes.facecolor", "figure.facecolor", "savefig.facecolor")
  return {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=_COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "grid.alpha": 0.25,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    **dict.fromkeys(inks, ink),
    **dict.fromkeys(grounds, ground),
  }


# The grounds and inks of the page.
THEMES = {
  "light": _theme("#ffffff", "#1f2430"),
  "dark": _theme("#171a21", "#e4e7ee"),
}


def png(figure: Figure) -> bytes:
  """The bytes of a figure."""
  buffer = io.BytesIO()
  # Without the name of the program, the same numbers give the same bytes.
  figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
  return buffer.getvalue()


def _curve(ax: Axes, results: Results, column: str) -> None:
  """A curve per method: mean over runs, with the band they span."""
  once = column in ("train_loss", "accuracy")
  seen = set()
  for method in results.methods:
    # The loss and the accuracy do not depend on a second readout.
    again = method.loss in seen
    if once and again:
      continue
    seen.add(method.loss)
    epochs = results.cells[method.loss].curve_epochs
    values = results.curve(method, column)
    index = results.settings.losses.index(method.loss)
    color = _COLORS[index % len(_COLORS)]
    ax.plot(
      epochs,
      values.mean(axis=1),
      "--" if again else "-",
      color=color,
      label=method.loss if once else results.label(method),
      linewidth=1.6,
    )
    ax.fill_between(
      epochs, values.min(axis=1), values.max(axis=1), color=color, alpha=0.18
    )
  for epoch in results.settings.epochs[:-1]:
    ax.axvline(epoch, color="0.5", linewidth=1, linestyle=":")
  # A training that diverged has nothing to show on a logarithmic axis.
  drawn = np.concatenate([line.get_ydata() for line in ax.lines])
  if column != "accuracy" and np.isfinite(drawn).all() and drawn.max() > 0:
    ax.set_yscale("log")
  ax.set(title=CURVES[column], xlabel="epoch")


def training(results: Results, theme: str, column: str | None = None) -> bytes:
  """Draws training loss and test accuracy, NLL and ECE against epochs.

  Args:
    results: The numbers.
    theme: Name in :data:`THEMES`.
    column: Which of :data:`CURVES`; all side by side without.

  Returns:
    A PNG.
  """
  columns = list(CURVES) if column is None else [column]
  with matplotlib.rc_context(THEMES[theme]):
    figure = Figure(figsize=(3.9 * len(columns), 3.6))
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for ax, each in zip(axes, columns, strict=True):
      _curve(ax, results, each)
    # The last panel has every method.
    figure.legend(
      *axes[-1].get_legend_handles_labels(),
      loc="outside lower center",
      ncols=1 if column else 4,
      fontsize="small",
    )
    return png(figure)


def _bins(ax: Axes, results: Results, method: Method, regime: str) -> None:
  """A reliability diagram; its title has the mean over seeds of the ECE."""
  bins = results.evaluations[method, regime].bins
  plots.reliability_diagram(bins, ax=ax)
  for line in ax.lines:
    line.set_color(matplotlib.rcParams["text.color"])
  ax.get_legend().remove()
  epochs = results.settings.regimes[regime]
  ece = results.per_seed(method, regime, "ece").mean()
  ax.set_title(f"{epochs} epochs: ECE {ece:.3f}")


def reliability(
  results: Results, theme: str, method: Method | None = None
) -> bytes:
  """Draws reliability diagrams, the bins of all seeds added up.

  Args:
    results: The numbers.
    theme: Name in :data:`THEMES`.
    method: One method, its regimes side by side; without, a column for every
      method and a row for every regime.

  Returns:
    A PNG.
  """
  regimes = list(results.settings.regimes)
  if method is None:
    grid = [[(each, regime) for each in results.methods] for regime in regimes]
  else:
    grid = [[(method, regime) for regime in regimes]]
  with matplotlib.rc_context(THEMES[theme]):
    figure = Figure(figsize=(3 * len(grid[0]), 3.1 * len(grid)))
    axes = figure.subplots(len(grid), len(grid[0]), squeeze=False)
    for ax, panel in zip(axes.flat, itertools.chain(*grid), strict=True):
      _bins(ax, results, *panel)
      if method is None:
        name = results.label(panel[0]).replace(":", ": ").replace(",", ", ")
        ax.set_title(f"{textwrap.fill(name, 30)}\n{ax.get_title()}")
    if method is None:
      figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize="small",
      )
    return png(figure)
