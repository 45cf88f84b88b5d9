# SPDX-License-Identifier: Apache-2.0
"""The ranking in the terminal."""

import math

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from squentropy_study import _headline, _number_text, _ranking
from squentropy_study._metric_samples import RankMetric
from squentropy_study._paired_errors import Difference
from squentropy_study._ranking import RankedEntry
from squentropy_study._results import Results


def value_text(value: Difference, metric: RankMetric) -> str:
  """Returns a value with as many digits as its errors allow."""
  if not math.isfinite(value.mean):
    return "diverged" if metric.name == "nll" else "-"
  # Of a standard error, the first two digits say something about the value.
  error = math.hypot(
    *(e for e in (value.seeds_error, value.rows_error) if math.isfinite(e))
  )
  default = 1 if metric.unit else 3
  places = _number_text.decimals(metric.scale * error / 2, default)
  # The error of a classifier that always predicts the same is nearly 0.
  places = min(places, default + 1)
  return _number_text.fixed(metric.scale * value.mean, places)


def epoch_text(entry: RankedEntry) -> str:
  """Returns the median epoch, or a dash."""
  return "-" if math.isnan(entry.epoch) else f"{entry.epoch:.3g}"


def _cell(entry: RankedEntry, metric: RankMetric, best: str) -> str:
  """Returns a value and below it the difference from the reference."""
  value = value_text(entry.values[metric.name], metric)
  if entry.label == best:
    value = f"[bold]{value}[/bold]"
  if metric.name not in entry.differences:
    return value
  text = _headline.difference_text(entry.differences[metric.name], metric)
  mark = "*" if entry.significance(metric) else ""
  return f"{value}\n[dim]{escape(text)}{mark}[/dim]"


def results_table(results: Results) -> Table:
  """Returns a row per loss and a column per metric of the ranking."""
  settings = results.settings
  ranking = _ranking.rank(results)
  result = Table(
    title=escape(f"{settings.data}, {settings.repeats}, {ranking.length}"),
    caption=escape(
      f"Second line: difference from {ranking.reference} [95 % interval]; "
      "*: significant after Holm's correction."
    )
    if len(ranking.losses) > 1
    else None,
    box=box.SIMPLE_HEAD,
    show_edge=False,
    pad_edge=False,
  )
  result.add_column("loss", overflow="fold")
  result.add_column("epoch", justify="right")
  # A terminal of 80 columns has no room for more columns.
  metrics = [m for m in ranking.metrics if m.is_tested or m.name == "ece"]
  for metric in metrics:
    # Nor has it room for a long title in one line.
    title = metric.title.replace(" after ", "\nafter ")
    result.add_column(title, justify="right")
  best = {
    metric.name: ranking.best(metric).label if ranking.losses else ""
    for metric in metrics
  }
  last_loss = [entry for entry in ranking.entries if not entry.is_baseline][-1]
  for entry in ranking.entries:
    cells = (_cell(entry, m, best[m.name]) for m in metrics)
    mark = "\n[dim]not tested[/dim]" if entry.is_untested else ""
    result.add_row(
      escape(entry.label) + mark,
      epoch_text(entry),
      *cells,
      end_section=entry is last_loss,
    )
  return result


def print_plain(text: str, console: Console) -> None:
  """Prints a line unchanged, because a path may look like markup."""
  console.print(text, markup=False, highlight=False, soft_wrap=True)
