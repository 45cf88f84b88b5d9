# SPDX-License-Identifier: Apache-2.0
"""Writes the comparison of several studies as table, figures and page."""

from collections.abc import Sequence
import functools
from html import escape
from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table

from squentropy_study import (
  _average_ranks,
  _comparisons,
  _number_text,
  _page_parts,
  _page_template,
  _several_studies,
  _store,
  _summary_charts,
  _summary_text,
)
from squentropy_study._average_ranks import AverageRanks
from squentropy_study._comparisons import Comparison
from squentropy_study._result_rows import MEASURES, Measure
from squentropy_study._summary_text import HEADLINE, Summary

_HEAD = (
  "better",
  "equal",
  "worse",
  "diverged",
  "mean difference",
  "median",
  "p",
)


def _cells(comparison: Comparison) -> tuple[str, ...]:
  """Returns the texts below ``_HEAD``."""
  counts = (
    comparison.better,
    comparison.equal,
    comparison.worse,
    comparison.diverged,
  )
  mean, median = _summary_text.differences(comparison)
  p_value = _summary_text.p_value(comparison.p_value)
  return (*map(str, counts), mean, median, p_value)


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


def table(summary: Summary) -> Table:
  """Returns the table in the terminal, of the first training length."""
  comparisons = summary.comparisons
  first = comparisons[0].training_length
  sets = max(c.sets for c in comparisons)
  result = Table(
    title=f"Compared with {summary.reference[0]} on {sets} data sets, {first} "
    "training",
    caption="better, equal, worse and diverged are numbers of data sets. "
    "p is of the Wilcoxon signed-rank test, without a correction.",
    box=box.SIMPLE_HEAD,
    show_edge=False,
    pad_edge=False,
  )
  result.add_column("", overflow="fold")
  for name in _HEAD:
    # A terminal of 80 columns has no room for "mean difference" in one line.
    result.add_column(name.replace(" ", "\n"), justify="right")
  labels = _summary_text.labels(comparisons)
  for (length, measure), chosen in _groups(comparisons).items():
    if length != first or not measure.main:
      continue
    result.add_row(f"[bold]{measure.short}[/bold]")
    for comparison in chosen:
      name = labels[comparison.loss, comparison.probability_map]
      result.add_row(name, *_cells(comparison))
  return result


def _html_table(head: Sequence[str], lines: Sequence[str]) -> str:
  cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
  body = "\n".join(
    (f'<tr><th scope="col"><span hidden>Loss</span></th>{cells}</tr>', *lines)
  )
  return f'<div class="wide"><table>\n{body}\n</table></div>'


def _line(name: str, cells: Sequence[str]) -> str:
  texts = "".join(f"<td>{escape(text)}</td>" for text in cells)
  return f'<tr><th scope="row">{escape(name)}</th>{texts}</tr>'


def _group(title: str, columns: int) -> str:
  return (
    f'<tr><th scope="rowgroup" colspan="{columns + 1}">{escape(title)}'
    "</th></tr>"
  )


def _ranks_table(rankings: Sequence[AverageRanks]) -> str:
  """Returns ranks and win rates of the losses in each metric."""
  head = ("average rank", "win rate", "best on")
  lines = []
  for ranking in rankings:
    lines.append(_group(_summary_text.TITLES[ranking.metric], len(head)))
    for loss, rank, rate, best in zip(
      ranking.losses,
      ranking.ranks,
      ranking.win_rates,
      ranking.best,
      strict=True,
    ):
      cells = (f"{rank:.2f}", f"{100 * rate:.0f} %", str(best))
      lines.append(_line(loss, cells))
  return _html_table(head, lines)


def _wins_table(ranking: AverageRanks) -> str:
  """Returns the share of data sets on which a loss beats each other one."""
  head = [str(k + 1) for k in range(len(ranking.losses))]
  lines = []
  for k, (loss, shares) in enumerate(
    zip(ranking.losses, ranking.beats, strict=True)
  ):
    cells = [f"{100 * share:.0f} %" for share in shares]
    cells[k] = "-"
    lines.append(_line(f"{k + 1}. {loss}", cells))
  return _html_table(head, lines)


def _ranks_caption(rankings: Sequence[AverageRanks]) -> str:
  difference = rankings[0].critical_difference
  if difference != difference:
    return (
      "Ranks are averages over data sets. There are too few data sets for a "
      "test."
    )
  return (
    "Ranks are averages over data sets. A bar is as long as the critical "
    f"difference ({difference:.2f}, Nemenyi test at 5 %). Losses whose bars do "
    "not overlap are significantly different. The dotted line is the end of "
    "the bar of the best loss."
  )


def _comparison_table(comparisons: Sequence[Comparison]) -> str:
  labels = _summary_text.labels(comparisons)
  lines = []
  for (length, measure), chosen in _groups(comparisons).items():
    lines.append(_group(f"{length} training: {measure.title}", len(_HEAD)))
    lines += [
      _line(labels[c.loss, c.probability_map], _cells(c)) for c in chosen
    ]
  return _html_table(_HEAD, lines)


def _larger_is_better() -> str:
  names = [measure.short for measure in MEASURES if measure.gain > 0]
  return _number_text.listed(names, len(names))


def html(rows: pd.DataFrame, summary: Summary, command: str) -> bytes:
  """Writes the page."""
  reference = summary.reference[0]
  items = "\n".join(f"<li>{escape(text)}</li>" for text in summary.statements)
  names = list(dict.fromkeys(rows["data"]))
  first = summary.rankings[: len(HEADLINE)]
  length = first[0].training_length
  ranks = "\n".join(
    _page_parts.picture(
      functools.partial(_summary_charts.ranks_figure, [ranking]),
      f"Average ranks, {_summary_text.TITLES[ranking.metric]}",
      "",
    )
    for ranking in first
  )
  each_set = _page_parts.picture(
    functools.partial(
      _summary_charts.differences_figure,
      rows,
      metrics=HEADLINE,
      against=summary.reference,
    ),
    f"Difference from {reference} on each data set",
    "Each point is a data set. The vertical line is the median over data sets.",
  )
  lead = _summary_text.TITLES[HEADLINE[0]]
  page = _page_template.PAGE.substitute(
    title=f"Losses compared over {len(names)} data sets",
    subtitle=escape(", ".join(names)),
    body=f"""<section class="verdict" aria-label="Conclusion">
<p><strong>{escape(summary.conclusion)}</strong></p>
<ul>
{items}
</ul>
</section>
<h2>Ranks and win rates, {escape(length)} training</h2>
<div class="grid pairs">
{ranks}
</div>
<p class="quiet">{escape(_ranks_caption(first))}</p>
{_ranks_table(first)}
<p class="quiet">The win rate is the share of data sets and other losses on
which a loss is better, and equal losses count one half. The column "best on" is
the number of data sets on which no loss is better. A loss that diverged has the
last rank.</p>
<details><summary>Win rates of pairs of losses</summary>
{_wins_table(first[0])}
<p class="quiet">{escape(lead)}: the share of data sets on which the loss of the
line is better than the loss of the column.</p>
</details>
<h2>Difference from {escape(reference)}</h2>
{_comparison_table(summary.comparisons)}
<p class="quiet">Better, equal, worse and diverged are numbers of data sets. The
difference is the mean of this loss over folds and seeds, minus that of
{escape(reference)}. Higher is better for {escape(_larger_is_better())}, and
lower is better for all other metrics. With {_comparisons.LEAST_SETS} data sets
or more, brackets are 95 % confidence intervals of the mean (BCa bootstrap over
data sets). A loss has diverged on a data set if a metric is not finite. Such a
data set counts as worse and is left out of mean, median and test. p is of the
Wilcoxon signed-rank test, without a correction for multiple testing. The test
needs at least {_comparisons.LEAST_SETS} differences other than 0.</p>
<h2>Each data set</h2>
{each_set}
<h2>Setup</h2>
<pre>{escape(command)}</pre>
""",
  )
  return page.encode()


def write(folders: Sequence[Path], out: Path, command: str) -> Summary:
  """Compares finished studies and writes tables, figures and page.

  Args:
    folders: Folders of studies.
    out: Folder for ``summary.csv``, ``ranks.csv``, ``summary.png``,
      ``ranks.png`` and ``summary.html``.
    command: The command line to record.

  Returns:
    The summary.

  Raises:
    StudyError: A folder holds no study, or ``out`` holds files of another kind
      or cannot be written.
  """
  rows = _several_studies.read_results(folders)
  reference = _several_studies.common_reference(folders)
  summary = _summary_text.summarize(rows, reference)
  first = summary.rankings[: len(HEADLINE)]
  _store.make_summary_folder(out)
  files = {
    "summary.csv": _comparisons.comparisons_csv(summary.comparisons),
    "ranks.csv": _average_ranks.rankings_csv(summary.rankings),
    "ranks.png": _summary_charts.ranks_figure(first),
    "summary.png": _summary_charts.differences_figure(
      rows, metrics=HEADLINE, against=summary.reference
    ),
    "summary.html": html(rows, summary, command),
  }
  for name, content in files.items():
    _store.write(out / name, content)
  return summary
