# SPDX-License-Identifier: Apache-2.0
"""Draws reliability diagrams and training curves."""

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
from squentropy_study import _results
from squentropy_study._results import Method, Results

CURVES = {
  "train_loss": "Training loss (different scales)",
  "accuracy": "Test accuracy",
  "nll": "Test NLL",
  "ece": "Test ECE",
}

# Readable on a light and on a dark background. C0 and C3 are also the bars of a
# reliability diagram.
_COLORS = ("#3f7fd9", "#e07a2f", "#2fa37c", "#d1495b", "#b565c9", "#c9a227")


def _theme(background: str, ink: str) -> dict[Any, Any]:
  inks = (
    "axes.edgecolor",
    "axes.labelcolor",
    "grid.color",
    "text.color",
    "xtick.color",
    "ytick.color",
  )
  backgrounds = ("axes.facecolor", "figure.facecolor", "savefig.facecolor")
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
    **dict.fromkeys(backgrounds, background),
  }


# The colors of the page.
_THEMES = {
  "light": _theme("#ffffff", "#1f2430"),
  "dark": _theme("#171a21", "#e4e7ee"),
}


def figure_style(theme: str = "light") -> dict[str, Any]:
  """Returns the style of the study's figures.

  Args:
    theme: ``light`` or ``dark``.

  Returns:
    Settings for :func:`matplotlib.rc_context`.
  """
  return dict(_THEMES[theme])


def figure_png(figure: Figure) -> bytes:
  """Returns a figure as PNG; the same figure gives the same bytes."""
  buffer = io.BytesIO()
  # matplotlib writes its version into the file unless told not to.
  figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
  return buffer.getvalue()


def _draw_curve(ax: Axes, results: Results, name: str) -> None:
  """Draws a line per method: the mean over runs, with a band of the range."""
  once = name == "train_loss"
  seen = set()
  for method in results.methods:
    # The training loss does not depend on the probability map.
    again = method.loss in seen
    if once and again:
      continue
    seen.add(method.loss)
    epochs = results.curve_epochs(method.loss)
    # A curve ends with the first run that ended.
    values = results.curve(method, name)
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
  for epoch in results.settings.epochs:
    ax.axvline(epoch, color="0.5", linewidth=1, linestyle=":")
  # A logarithmic axis cannot show a training that diverged.
  drawn = np.concatenate([line.get_ydata() for line in ax.lines])
  if name != "accuracy" and np.isfinite(drawn).all() and drawn.max() > 0:
    ax.set_yscale("log")
  ax.set(title=CURVES[name], xlabel="epoch")


def training(results: Results, theme: str, name: str | None = None) -> bytes:
  """Draws training loss and test accuracy, NLL and ECE over epochs.

  Args:
    results: The numbers.
    theme: ``light`` or ``dark``.
    name: One of :data:`CURVES`; None draws all of them side by side.

  Returns:
    A PNG.
  """
  names = list(CURVES) if name is None else [name]
  with matplotlib.rc_context(figure_style(theme)):
    figure = Figure(figsize=(3.9 * len(names), 3.6))
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for ax, each in zip(axes, names, strict=True):
      _draw_curve(ax, results, each)
    # The last panel shows every method.
    figure.legend(
      *axes[-1].get_legend_handles_labels(),
      loc="outside lower center",
      ncols=1 if name else 4,
      fontsize="small",
    )
    return figure_png(figure)


def _draw_bins(ax: Axes, results: Results, method: Method, length: str) -> None:
  """Draws a reliability diagram; its title has the mean ECE over runs."""
  bins = results.evaluations[method, length].bins
  plots.reliability_diagram(bins, ax=ax)
  for line in ax.lines:
    line.set_color(matplotlib.rcParams["text.color"])
  ax.get_legend().remove()
  ece = results.per_seed(method, length, "ece").mean()
  title = _results.length_title(results.settings, length)
  ax.set_title(f"{title}: ECE {ece:.3f}")


def reliability(
  results: Results, theme: str, method: Method | None = None
) -> bytes:
  """Draws reliability diagrams, with the bins summed over runs.

  Args:
    results: The numbers.
    theme: ``light`` or ``dark``.
    method: Draws one method, its training lengths side by side. None draws a
      column per method and a row per training length.

  Returns:
    A PNG.
  """
  lengths = list(results.settings.training_lengths)
  if method is None:
    grid = [[(each, length) for each in results.methods] for length in lengths]
  else:
    grid = [[(method, length) for length in lengths]]
  with matplotlib.rc_context(figure_style(theme)):
    figure = Figure(figsize=(3 * len(grid[0]), 3.1 * len(grid)))
    axes = figure.subplots(len(grid), len(grid[0]), squeeze=False)
    for ax, panel in zip(axes.flat, itertools.chain(*grid), strict=True):
      _draw_bins(ax, results, *panel)
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
    return figure_png(figure)
