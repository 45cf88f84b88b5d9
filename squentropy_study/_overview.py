# SPDX-License-Identifier: Apache-2.0
"""What several studies say together, as table, picture and page."""

import base64
from collections.abc import Iterable, Sequence
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
  _figures,
  _page,
  _results,
  _store,
  _summary,
)
from squentropy_study._summary import Comparison

_PICTURED = ("accuracy", "nll", "ece")
_HEAD = (
  "wins",
  "ties",
  "losses",
  "diverged",
  "mean difference",
  "median",
  "p (Wilcoxon)",
)


def _labels(
  methods: Iterable[Comparison | _summary.Method],
) -> dict[tuple[str, str], str]:
  """Names of losses and readouts; the first readout of a loss goes unsaid."""
  labels: dict[tuple[str, str], str] = {}
  for loss, readout, *_ in methods:
    again = loss in labels.values()
    labels.setdefault((loss, readout), f"{loss} ({readout})" if again else loss)
  return labels


def _cells(comparison: Comparison) -> tuple[str, ...]:
  mean = f"{comparison.mean:+.4f}"
  if not math.isnan(comparison.low):
    mean += f" [{comparison.low:+.4f}, {comparison.high:+.4f}]"
  counts = (
    comparison.wins,
    comparison.ties,
    comparison.losses,
    comparison.diverged,
  )
  median = f"{comparison.median:+.4f}"
  return (*map(str, counts), mean, median, f"{comparison.p_value:.2g}")


def _groups(
  comparisons: Sequence[Comparison],
) -> dict[tuple[str, _results.Column], list[Comparison]]:
  """By length and metric, in the order of the columns."""
  groups = {}
  for regime in dict.fromkeys(c.regime for c in comparisons):
    for column in _results.COLUMNS:
      chosen = [
        c for c in comparisons if c.regime == regime and c.metric == column.name
      ]
      if chosen:
        groups[regime, column] = chosen
  return groups


def table(comparisons: Sequence[Comparison]) -> Table:
  """The table in the terminal."""
  sets = max(c.sets for c in comparisons)
  result = Table(
    title=f"Against {_summary.BASELINE} on {sets} data sets",
    box=box.SIMPLE_HEAD,
    show_edge=False,
    pad_edge=False,
  )
  result.add_column("", overflow="fold")
  for name in _HEAD:
    result.add_column(name, justify="right")
  labels = _labels(comparisons)
  for (regime, column), chosen in _groups(comparisons).items():
    if not column.main:
      continue
    result.add_row(f"[bold]{regime}: {column.short}[/bold]")
    for comparison in chosen:
      name = labels[comparison.loss, comparison.readout]
      result.add_row(name, *_cells(comparison))
  return result


def picture(rows: pd.DataFrame, theme: str) -> bytes:
  """A point per data set: the difference to the baseline, by method."""
  means = _summary.means(rows)
  methods = [method for method in means if method.loss != _summary.BASELINE]
  columns = {c.name: c.title for c in _results.COLUMNS}
  with matplotlib.rc_context(_figures.THEMES[theme]):
    figure = Figure(figsize=(4 * len(_PICTURED), 1 + 0.5 * len(methods)))
    axes = figure.subplots(1, len(_PICTURED), sharey=True)
    for ax, name in zip(axes, _PICTURED, strict=True):
      ax.axvline(0, color=matplotlib.rcParams["text.color"], linewidth=1)
      for place, method in enumerate(methods):
        pairs = _summary.pairs(means, method)
        values = pairs.differences[name].to_numpy()
        if not values.size:
          continue
        # Spread over the height of the row, so that all can be seen.
        height = place + np.linspace(-0.3, 0.3, len(values))
        ax.plot(values, height, "o", markersize=3.5, alpha=0.6)
        ax.plot([np.median(values)] * 2, [place - 0.4, place + 0.4], "C1")
      if name == "nll":
        ax.set_xscale("symlog", linthresh=0.1)
      ax.set(title=f"{columns[name]},\ndifference to {_summary.BASELINE}")
    labels = _labels(methods)
    names = [f"{labels[m.loss, m.readout]}, {m.regime}" for m in methods]
    axes[0].set_yticks(range(len(methods)), names)
    axes[0].invert_yaxis()
    return _figures.png(figure)


def sentences(comparisons: Sequence[Comparison]) -> list[str]:
  """What may be said, with length, counts and interval in one breath."""
  said = []
  labels = _labels(comparisons)
  for comparison in comparisons:
    label = labels[comparison.loss, comparison.readout]
    if comparison.metric not in _PICTURED or label != comparison.loss:
      continue
    title = {c.name: c.short for c in _results.COLUMNS}[comparison.metric]
    mean = _cells(comparison)[4]
    diverged = (
      f", having diverged on {comparison.diverged}"
      if comparison.diverged
      else ""
    )
    said.append(
      f"{comparison.loss}, {comparison.regime} training, {title}: better than "
      f"{_summary.BASELINE} on {comparison.wins}, equal on {comparison.ties}, "
      f"worse on {comparison.losses} of {comparison.sets} data sets{diverged}; "
      f"over {comparison.finite} of them, mean difference {mean}, Wilcoxon p "
      f"{comparison.p_value:.2g}."
    )
  return said


def html(
  rows: pd.DataFrame, comparisons: Sequence[Comparison], command: str
) -> bytes:
  """Writes the page."""
  sources = (
    "data:image/png;base64," + base64.b64encode(picture(rows, theme)).decode()
    for theme in ("light", "dark")
  )
  light, dark = sources
  head = "".join(f'<th scope="col">{name}</th>' for name in _HEAD)
  lines = [f'<tr><th scope="col"><span hidden>Loss</span></th>{head}</tr>']
  labels = _labels(comparisons)
  for (regime, column), chosen in _groups(comparisons).items():
    lines.append(
      f'<tr><th scope="rowgroup" colspan="{len(_HEAD) + 1}">'
      f"{escape(f'{regime} training: {column.title}')}</th></tr>"
    )
    for c in chosen:
      cells = "".join(f"<td>{escape(text)}</td>" for text in _cells(c))
      name = escape(labels[c.loss, c.readout])
      lines.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
  said = "\n".join(
    f"<li>{escape(text)}</li>" for text in sentences(comparisons)
  )
  body = "\n".join(lines)
  sets = ", ".join(dict.fromkeys(rows["data"]))
  page = _page.PAGE.substitute(
    title="Which loss, over several data sets?",
    subtitle=escape(
      f"Compared with {_summary.BASELINE}, each by its mean over "
      "folds and seeds"
    ),
    body=f"""<section class="verdict" aria-label="Verdict">
<ul>
{said}
</ul>
</section>
<h2>Wins, ties and losses</h2>
<div class="wide"><table>
{body}
</table></div>
<p class="quiet">The difference is this loss minus {_summary.BASELINE}: above 0
is better for accuracy and worse for all others. Brackets: 95 % interval of the
mean, a bootstrap over data sets. A set on which a loss gave numbers that are
not finite is counted as its loss and takes no part in mean, median and test.
Many numbers are tested here: a single small p says little.</p>
<h2>Each data set</h2>
<figure><picture>
<source media="(prefers-color-scheme: dark)" srcset="{dark}">
<img src="{light}" alt="Difference to the baseline by data set">
</picture>
<figcaption>A point is a data set, the line their median.</figcaption></figure>
<h2>How it was made</h2>
<pre>{escape(command)}</pre>
<p>Data: {escape(sets)}</p>
""",
  )
  return page.encode()


def write(folders: Sequence[Path], out: Path, command: str) -> list[Comparison]:
  """Compares finished studies and writes what they say together.

  Args:
    folders: Folders of studies.
    out: Folder for ``summary.csv``, ``summary.png`` and ``summary.html``.
    command: The command line to record.

  Returns:
    The comparisons.

  Raises:
    StudyError: A folder holds no study, or ``out`` holds something else or
      cannot be written.
  """
  rows = _summary.read(folders)
  comparisons = _summary.compare(rows)
  _store.make_summary_folder(out)
  _store.write(out / "summary.csv", _summary.to_csv(comparisons))
  _store.write(out / "summary.png", picture(rows, "light"))
  _store.write(out / "summary.html", html(rows, comparisons, command))
  return comparisons
