# SPDX-License-Identifier: Apache-2.0
"""The style of the study's figures, and its training curves."""

import io
from typing import Any
import warnings

import matplotlib
from matplotlib import cycler, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from squentropy_study._result_rows import Method
from squentropy_study._results import Results
from squentropy_study._settings import STOPPED

CURVES = {
  "train_loss": "Training loss (different scales)",
  "nll": "Test NLL",
  "accuracy": "Test accuracy",
  "ece": "Test ECE",
}

# Readable on a light and on a dark background.
COLORS = (
  "#3f7fd9",
  "#e07a2f",
  "#2fa37c",
  "#d1495b",
  "#b565c9",
  "#c9a227",
  "#4fb3c4",
  "#a0724a",
)
# An axis that spans this factor is logarithmic.
_WIDE = 20


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
    "axes.prop_cycle": cycler(color=COLORS),
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


def line_style(results: Results, method: Method) -> tuple[str, str]:
  """Returns the color of a loss, and dashes for its second map."""
  index = results.settings.losses.index(method.loss)
  first = next(m for m in results.methods if m.loss == method.loss)
  return COLORS[index % len(COLORS)], "-" if method == first else "--"


def _plain_ticks(ax: Axes, which: str, low: float, high: float) -> None:
  """Writes ticks as plain numbers, on a logarithmic axis if it is wide."""
  axis = ax.xaxis if which == "x" else ax.yaxis
  if low > 0 and high > _WIDE * low:
    ax.set(**{f"{which}scale": "log"})
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_minor_locator(ticker.NullLocator())
  elif which == "x" and high > 5:
    axis.set_major_locator(ticker.MaxNLocator(7, integer=True))
  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))


def _draw_curve(ax: Axes, results: Results, name: str) -> None:
  """Draws a line per method: the mean over runs, with a band of the range."""
  seen = set()
  for method in results.methods:
    # The training loss does not depend on the probability map.
    if name == "train_loss" and method.loss in seen:
      continue
    seen.add(method.loss)
    epochs = results.curve_epochs(method.loss)
    values = results.curve(method, name)
    color, dashes = line_style(results, method)
    with warnings.catch_warnings():
      # A training that diverged may have no value.
      warnings.simplefilter("ignore", RuntimeWarning)
      # Of the runs that have not ended.
      mean, low, high = (
        reduce(values, axis=1) for reduce in (np.nanmean, np.nanmin, np.nanmax)
      )
    ax.plot(
      epochs,
      mean,
      dashes,
      color=color,
      label=results.label(method),
      linewidth=1.6,
    )
    ax.fill_between(epochs, low, high, color=color, alpha=0.15)
    epoch = float(np.median(results.epochs(method, STOPPED)))
    ax.plot(
      epoch,
      np.interp(epoch, epochs, mean),
      "o",
      color=color,
      markeredgecolor=matplotlib.rcParams["axes.facecolor"],
      markersize=7,
      zorder=3,
    )
  for fixed in results.settings.epochs:
    ax.axvline(fixed, color="0.5", linewidth=1, linestyle=":")
  drawn = np.concatenate([line.get_ydata() for line in ax.lines])
  ends = np.concatenate([line.get_xdata() for line in ax.lines])
  _plain_ticks(ax, "x", ends.min(), ends.max())
  # A logarithmic axis cannot show a training that diverged.
  if np.isfinite(drawn).all():
    _plain_ticks(ax, "y", drawn.min(), drawn.max())
  ax.set(title=CURVES[name], xlabel="epoch")


def training(results: Results, theme: str, name: str | None = None) -> bytes:
  """Draws training loss, test NLL, accuracy and ECE over epochs.

  Args:
    results: The numbers.
    theme: ``light`` or ``dark``.
    name: One of :data:`CURVES`, without a legend; None draws all of them side
      by side, with one legend.

  Returns:
    A PNG.
  """
  names = list(CURVES) if name is None else [name]
  with matplotlib.rc_context(figure_style(theme)):
    figure = Figure(figsize=(4.2 * len(names), 3.4))
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for ax, each in zip(axes, names, strict=True):
      _draw_curve(ax, results, each)
    if name is None:
      # The last panel shows every method.
      figure.legend(
        *axes[-1].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize="small",
      )
    return figure_png(figure)
