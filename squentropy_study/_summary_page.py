# SPDX-License-Identifier: Apache-2.0
"""Writes the comparison of several studies as table, figure and page."""

from collections.abc import Iterable, Sequence
import functools
from html import escape
import math
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from squentropy_study import (
  _charts,
  _comparisons,
  _page_parts,
  _page_template,
  _store,
)
from squentropy_study._comparisons import Comparison, MethodAtLength
from squentropy_study._results import BASELINE, MEASURES, Measure

# Metrics of the figure and of the sentences.
_HEADLINE = ("accuracy", "nll", "ece")
_HEAD = (
  "better",
  "equal",
  "worse",
  "diverged",
  "mean difference",
  "median",
  "p",
)


def _labels(
  methods: Iterable[Comparison | MethodAtLength],
) -> dict[tuple[str, str], str]:
  """Returns labels: the first probability map of a loss is left out."""
  labels: dict[tuple[str, str], str] = {}
  for loss, name, *_ in methods:
    again = loss in labels.values()
    labels.setdefault((loss, name), f"{loss} ({name})" if again else loss)
  return labels


def _mean(comparison: Comparison) -> str:
  """Returns the mean difference with its interval."""
  mean = f"{comparison.mean:+.4f}"
  if math.isnan(comparison.low):
    return mean
  return f"{mean} [{comparison.low:+.4f}, {comparison.high:+.4f}]"


def _cells(comparison: Comparison) -> tuple[str, ...]:
  """Returns the texts below ``_HEAD``."""
  counts = (
    comparison.better,
    comparison.equal,
    comparison.worse,
    comparison.diverged,
  )
  median = f"{comparison.median:+.4f}"
  p_value = f"{comparison.p_value:.2g}"
  return (*map(str, counts), _mean(comparison), median, p_value)


def _groups(
  comparisons: Sequence[Comparison],
) -> dict[tuple[str, Measure], list[Comparison]]:
  """Groups by training length and metric."""
  groups = {}
  for length in dict.fromkeys(c.training_length for c in comparisons):
    for measure in MEASURES:
      chosen = [
        c
        for c in comparisons
        if c.training_length == length and c.metric == measure.name
      ]
      if chosen:
        groups[length, measure] = chosen
  return groups


def table(comparisons: Sequence[Comparison]) -> Table:
  """Returns the table in the terminal."""
  sets = max(c.sets for c in comparisons)
  result = Table(
    title=f"Compared with {BASELINE} on {sets} data sets",
    caption="better, equal, worse, diverged: numbers of data sets. "
    "p: Wilcoxon signed-rank test.",
    box=box.SIMPLE_HEAD,
    show_edge=False,
    pad_edge=False,
  )
  result.add_column("", overflow="fold")
  for name in _HEAD:
    # A terminal of 80 columns has no room for "mean difference" in one line.
    result.add_column(name.replace(" ", "\n"), justify="right")
  labels = _labels(comparisons)
  for (length, measure), chosen in _groups(comparisons).items():
    if not measure.main:
      continue
    result.add_row(f"[bold]{length}: {measure.short}[/bold]")
    for comparison in chosen:
      name = labels[comparison.loss, comparison.probability_map]
      result.add_row(name, *_cells(comparison))
  return result


def differences_figure(rows: pd.DataFrame, theme: str = "light") -> bytes:
  """Draws the difference from cross-entropy on each data set.

  Args:
    rows: As returned by :func:`squentropy_study.read_results`.
    theme: ``light`` or ``dark``.

  Returns:
    A PNG with a row per method and a point per data set.

  Raises:
    StudyError: Cross-entropy is missing, or runs cannot be paired.
  """
  means = _comparisons.dataset_means(rows)
  methods = [method for method in means if method.loss != BASELINE]
  titles = {measure.name: measure.title for measure in MEASURES}
  with matplotlib.rc_context(_charts.figure_style(theme)):
    figure = Figure(figsize=(4 * len(_HEADLINE), 1 + 0.5 * len(methods)))
    axes = figure.subplots(1, len(_HEADLINE), sharey=True)
    for ax, name in zip(axes, _HEADLINE, strict=True):
      ax.axvline(0, color=matplotlib.rcParams["text.color"], linewidth=1)
      for place, method in enumerate(methods):
        pairs = _comparisons.pair(means, method)
        values = pairs.differences[name].to_numpy()
        if not values.size:
          continue
        # Spread over the height of the row, so that all points are visible.
        height = place + np.linspace(-0.3, 0.3, len(values))
        ax.plot(values, height, "o", markersize=3.5, alpha=0.6)
        ax.plot([np.median(values)] * 2, [place - 0.4, place + 0.4], "C1")
      if name == "nll":
        ax.set_xscale("symlog", linthresh=0.1)
      ax.set(title=f"{titles[name]},\ndifference from {BASELINE}")
    labels = _labels(methods)
    names = [
      f"{labels[m.loss, m.probability_map]}, {m.training_length}"
      for m in methods
    ]
    axes[0].set_yticks(range(len(methods)), names)
    axes[0].invert_yaxis()
    return _charts.figure_png(figure)


def sentences(comparisons: Sequence[Comparison]) -> list[str]:
  """Returns a sentence per loss, training length and headline metric."""
  result = []
  labels = _labels(comparisons)
  shorts = {measure.name: measure.short for measure in MEASURES}
  for c in comparisons:
    label = labels[c.loss, c.probability_map]
    if c.metric not in _HEADLINE or label != c.loss:
      continue
    diverged = f" It diverged on {c.diverged}." if c.diverged else ""
    result.append(
      f"{shorts[c.metric]} of {c.loss}, {c.training_length} training: better "
      f"than {BASELINE} on {c.better}, equal on {c.equal} and worse on "
      f"{c.worse} of {c.sets} data sets.{diverged} Mean difference {_mean(c)} "
      f"over {c.finite} data sets (Wilcoxon signed-rank, p = {c.p_value:.2g})."
    )
  return [text[0].upper() + text[1:] for text in result]


def html(
  rows: pd.DataFrame, comparisons: Sequence[Comparison], command: str
) -> bytes:
  """Writes the page."""
  head = "".join(f'<th scope="col">{name}</th>' for name in _HEAD)
  lines = [f'<tr><th scope="col"><span hidden>Loss</span></th>{head}</tr>']
  labels = _labels(comparisons)
  for (length, measure), chosen in _groups(comparisons).items():
    lines.append(
      f'<tr><th scope="rowgroup" colspan="{len(_HEAD) + 1}">'
      f"{escape(f'{length} training: {measure.title}')}</th></tr>"
    )
    for c in chosen:
      cells = "".join(f"<td>{escape(text)}</td>" for text in _cells(c))
      name = escape(labels[c.loss, c.probability_map])
      lines.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
  items = "\n".join(
    f"<li>{escape(text)}</li>" for text in sentences(comparisons)
  )
  body = "\n".join(lines)
  sets = ", ".join(dict.fromkeys(rows["data"]))
  figure = _page_parts.picture(
    functools.partial(differences_figure, rows),
    "Difference from the baseline on each data set",
    "Each point is a data set. Vertical line: median over data sets.",
  )
  page = _page_template.PAGE.substitute(
    title="Losses compared over several data sets",
    subtitle=escape(
      f"Each loss is compared with {BASELINE} by its mean over folds and seeds"
    ),
    body=f"""<section class="verdict" aria-label="Verdict">
<ul>
{items}
</ul>
</section>
<h2>All metrics</h2>
<div class="wide"><table>
{body}
</table></div>
<p class="quiet">Better, equal, worse and diverged are numbers of data sets. The
difference is this loss minus {BASELINE}: higher is better for accuracy, lower
for all other metrics. Brackets are 95 % confidence intervals of the mean (BCa
bootstrap over data sets). A loss has diverged on a data set if a metric is not
finite. Such a data set counts as worse and is left out of mean, median and
test. p is of the Wilcoxon signed-rank test, without a correction for multiple
testing.</p>
<h2>Each data set</h2>
{figure}
<h2>Setup</h2>
<pre>{escape(command)}</pre>
<p>Data sets: {escape(sets)}</p>
""",
  )
  return page.encode()


def write(folders: Sequence[Path], out: Path, command: str) -> list[Comparison]:
  """Compares finished studies and writes table, figure and page.

  Args:
    folders: Folders of studies.
    out: Folder for ``summary.csv``, ``summary.png`` and ``summary.html``.
    command: The command line to record.

  Returns:
    The comparisons.

  Raises:
    StudyError: A folder holds no study, or ``out`` holds files of another kind
      or cannot be written.
  """
  rows = _comparisons.read_results(folders)
  comparisons = _comparisons.compare(rows)
  _store.make_summary_folder(out)
  _store.write(out / "summary.csv", _comparisons.comparisons_csv(comparisons))
  _store.write(out / "summary.png", differences_figure(rows))
  _store.write(out / "summary.html", html(rows, comparisons, command))
  return comparisons
