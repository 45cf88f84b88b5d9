# SPDX-License-Identifier: Apache-2.0
"""The tables of a report: the ranking, errors, all metrics, classes."""

from collections.abc import Mapping, Sequence
from html import escape
import math

import numpy as np

from squentropy_study import (
  _class_metrics,
  _headline,
  _number_text,
  _page_parts,
  _terminal_table,
)
from squentropy_study._metric_samples import RankMetric
from squentropy_study._ranking import RankedEntry, Ranking
from squentropy_study._result_rows import Measure
from squentropy_study._results import Results
from squentropy_study._settings import Settings
from squentropy_study._test_rows import Predictions

# A confusion matrix of more classes does not fit the page.
MOST_CLASSES = 12
# A longer list of classes is cut.
MOST_LISTED = 20


def wrapped(lines: Sequence[str], kind: str = "") -> str:
  """Returns a table that scrolls sideways where it is too wide."""
  body = "\n".join(lines)
  attribute = f' class="{kind}"' if kind else ""
  return f'<div class="wide"><table{attribute}>\n{body}\n</table></div>'


def head(columns: Sequence[str]) -> str:
  """Returns the first row of a table."""
  cells = "".join(f'<th scope="col">{escape(text)}</th>' for text in columns)
  return f"<tr>{cells}</tr>"


def _rank_cell(entry: RankedEntry, metric: RankMetric, best: str) -> str:
  value = escape(_terminal_table.value_text(entry.values[metric.name], metric))
  # A phone shows a line per metric, which needs its title.
  title = f'data-title="{escape(metric.title)}"'
  if entry.label == best:
    value = f'<strong class="best">{value}</strong>'
  if metric.name not in entry.differences:
    return f'<td {title}>{value}<span class="under"></span></td>'
  difference = entry.differences[metric.name]
  text = escape(_headline.difference_text(difference, metric))
  sign = entry.significance(metric)
  kind = {1: " better", 0: "", -1: " worse"}[sign]
  mark = "*" if sign else ""
  return (
    f'<td {title}>{value}<span class="under{kind}">{text}{mark}</span></td>'
  )


def ranked(ranking: Ranking) -> str:
  """Returns a row per loss and baseline, and a column per metric."""
  best = {
    metric.name: ranking.best(metric).label if ranking.losses else ""
    for metric in ranking.metrics
  }
  titles = [metric.title for metric in ranking.metrics]
  lines = [head(["Loss", "Epoch", *titles])]
  place = 0
  for entry in ranking.entries:
    if entry.is_baseline and not lines[-1].startswith('<tr class="base'):
      columns = len(ranking.metrics) + 2
      lines.append(
        f'<tr><th scope="rowgroup" colspan="{columns}">Baselines, on the same '
        "rows</th></tr>"
      )
    label = _page_parts.breakable(entry.label)
    if not (entry.is_baseline or entry.diverged):
      place += 1
      label = f'<span class="place">{place}</span> {label}'
    if entry.label == ranking.reference and len(ranking.losses) > 1:
      label += ' <span class="tag">reference</span>'
    if entry.is_untested:
      label += ' <span class="tag">not tested</span>'
    cells = "".join(
      _rank_cell(entry, metric, best[metric.name]) for metric in ranking.metrics
    )
    epoch = _terminal_table.epoch_text(entry)
    kind = ' class="baseline"' if entry.is_baseline else ""
    lines.append(
      f'<tr{kind}><th scope="row">{label}</th><td data-title="Epoch">{epoch}'
      f'<span class="under"></span></td>{cells}</tr>'
    )
  return wrapped(lines, "rank")


def _error_text(error: float, metric: RankMetric) -> str:
  if not math.isfinite(error):
    return "-"
  scaled = metric.scale * error
  if scaled < 1e-6:
    return "± 0"
  return f"± {_number_text.fixed(scaled, _number_text.decimals(scaled))}"


def errors(ranking: Ranking) -> str:
  """Returns values and differences with their errors over seeds and rows."""
  columns = ["Loss", "Mean", "± seeds", "± test rows"]
  compared = len(ranking.losses) > 1
  if compared:
    columns += ["Difference", "± seeds", "± test rows", "95 % interval", "p"]
  lines = [head(columns)]
  for metric in ranking.metrics:
    lines.append(
      f'<tr><th scope="rowgroup" colspan="{len(columns)}">'
      f"{escape(metric.title)}</th></tr>"
    )
    for entry in ranking.entries:
      value = entry.values[metric.name]
      cells = [
        _terminal_table.value_text(value, metric),
        _error_text(value.seeds_error, metric),
        _error_text(value.rows_error, metric),
      ]
      if compared:
        cells += _difference_cells(entry, metric)
      row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
      label = _page_parts.breakable(entry.label)
      lines.append(f'<tr><th scope="row">{label}</th>{row}</tr>')
  return wrapped(lines, "errors")


def _difference_cells(entry: RankedEntry, metric: RankMetric) -> list[str]:
  if metric.name not in entry.differences:
    return [""] * 5
  found = entry.differences[metric.name]
  mean, interval = _headline.difference_parts(found, metric)
  adjusted = entry.adjusted.get(metric.name, math.nan)
  return [
    mean,
    _error_text(found.seeds_error, metric),
    _error_text(found.rows_error, metric),
    interval or "-",
    p_text(adjusted),
  ]


def p_text(p_value: float) -> str:
  """Returns a p-value with two digits, ``< 0.001`` if it is small."""
  if not math.isfinite(p_value):
    return "-"
  return "< 0.001" if p_value < 0.001 else f"{p_value:.2g}"


def past(found: Sequence[_headline.PastBest]) -> str:
  """Returns the NLL at the best epoch and at the lengths that are past it."""
  fixed = sorted({item.epoch for item in found})
  by_label: dict[str, dict[int, _headline.PastBest]] = {}
  for item in found:
    by_label.setdefault(item.label, {})[item.epoch] = item
  lines = [
    head(
      [
        "Loss",
        "Best epoch",
        "NLL at the best epoch",
        *(f"NLL at epoch {e}" for e in fixed),
      ]
    )
  ]
  for label, items in by_label.items():
    first = next(iter(items.values()))
    cells = [f"{first.best_epoch:.3g}", f"{first.best_nll:.3f}"]
    cells += [f"{items[e].nll:.3f}" if e in items else "" for e in fixed]
    row = "".join(f"<td>{cell}</td>" for cell in cells)
    name = _page_parts.breakable(label)
    lines.append(f'<tr><th scope="row">{name}</th>{row}</tr>')
  return wrapped(lines)


def _length_title(settings: Settings, length: str) -> str:
  """Returns the name of a training length, with its epochs if it is fixed."""
  epochs = settings.training_lengths[length]
  if epochs is None:
    return length
  return f"{length}: {epochs} epoch{'s' if epochs > 1 else ''}"


def _mean_and_spread(values: np.ndarray, decimals: int) -> str:
  """Returns ``mean ± standard deviation``, with as many digits as it allows.

  Args:
    values: The values.
    decimals: Number of decimals without a standard deviation above 0.

  Returns:
    The text.
  """
  if values.size < 2:
    return _number_text.fixed(values.mean(), decimals)
  spread = float(values.std(ddof=1))
  places = _number_text.decimals(spread, decimals)
  mean, error = (_number_text.fixed(x, places) for x in (values.mean(), spread))
  return f"{mean} ± {error}"


def measures(results: Results, chosen: Sequence[Measure]) -> str:
  """Returns a group of rows per measure and a column per training length."""
  lengths = results.settings.training_lengths
  titles = [_length_title(results.settings, x) for x in lengths]
  lines = [head(["Loss", *titles])]
  for measure in chosen:
    lines.append(
      f'<tr><th scope="rowgroup" colspan="{len(titles) + 1}">'
      f"{escape(measure.title)}</th></tr>"
    )
    for method in results.methods:
      cells = []
      for length in lengths:
        values = results.per_seed(method, length, measure.name)
        mean, _, spread = _mean_and_spread(values, measure.decimals).partition(
          " "
        )
        text = f'{mean} <span class="spread">{escape(spread)}</span>'
        cells.append(f"<td>{text if spread else mean}</td>")
      name = _page_parts.name(results, method)
      lines.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
  return wrapped(lines)


def class_summary(counts: Mapping[str, int]) -> str:
  """Returns the classes and their numbers of rows in a sentence."""
  total = sum(counts.values())
  if len(counts) <= MOST_CLASSES:
    return ", ".join(
      f"{name}: {count} ({share_text(count / total)})"
      for name, count in counts.items()
    )
  if min(counts.values()) == max(counts.values()):
    rows = _number_text.counted(min(counts.values()), "row")
    return f"{len(counts)} classes, {rows} each"
  largest, smallest = (
    choose(counts, key=lambda name: counts[name]) for choose in (max, min)
  )
  return (
    f"{len(counts)} classes, from {largest} "
    f"({_number_text.counted(counts[largest], 'row')}) to {smallest} "
    f"({_number_text.counted(counts[smallest], 'row')})"
  )


def share_text(share: float) -> str:
  """Returns a share in per cent, with a digit more where it is small."""
  percent = 100 * share
  edge = min(percent, 100 - percent)
  return f"{percent:.{0 if edge >= 10 else 1 if edge >= 0.1 else 2}f} %"


def classes(predictions: Predictions, names: Sequence[str]) -> str:
  """Returns recall, precision and calibration of each class."""
  found = _class_metrics.per_class(predictions)
  order = np.arange(len(names))
  if len(names) > MOST_LISTED:
    order = np.argsort(found.recall, kind="stable")[:MOST_LISTED]
  lines = [
    head(
      [
        "Class",
        "Test rows",
        "Recall, %",
        "Precision, %",
        "Share of rows, %",
        "Mean probability, %",
        "ECE",
      ]
    )
  ]
  for k in map(int, order):
    numbers = [
      f"{found.rows[k]}",
      *(
        "-" if math.isnan(value) else f"{100 * value:.{places}f}"
        for value, places in (
          (found.recall[k], 1),
          (found.precision[k], 1),
          (found.share[k], 1 if found.share[k] > 0.01 else 2),
          (found.probability[k], 1 if found.probability[k] > 0.01 else 2),
        )
      ),
      _number_text.fixed(found.ece[k], _number_text.decimals(found.ece[k])),
    ]
    cells = "".join(f"<td>{number}</td>" for number in numbers)
    lines.append(f'<tr><th scope="row">{escape(names[k])}</th>{cells}</tr>')
  return wrapped(lines)


def confusions(predictions: Predictions, names: Sequence[str]) -> str:
  """Returns the confusion matrix, or the most frequent confusions."""
  matrix = _class_metrics.confusion_matrix(predictions)
  if len(names) <= MOST_CLASSES:
    return _matrix(matrix, names)
  errors_only = matrix * (1 - np.eye(len(names)))
  order = np.argsort(-errors_only, axis=None, kind="stable")[:MOST_LISTED]
  lines = [head(["Class", "Predicted as", "Rows", "Share of the class, %"])]
  for cell in order:
    label, other = divmod(int(cell), len(names))
    count = errors_only[label, other]
    if not count:
      break
    share = 100 * count / matrix[label].sum()
    lines.append(
      f'<tr><th scope="row">{escape(names[label])}</th>'
      f"<td>{escape(names[other])}</td><td>{count:.1f}</td>"
      f"<td>{share:.0f}</td></tr>"
    )
  return wrapped(lines)


def _matrix(matrix: np.ndarray, names: Sequence[str]) -> str:
  shares = matrix / matrix.sum(axis=1, keepdims=True)
  places = 0 if np.allclose(matrix, matrix.round()) else 1
  lines = [head(["Class \\ predicted as", *names])]
  for name, counts, row in zip(names, matrix, shares, strict=True):
    texts = [f"{count:.{places}f}" if count else "" for count in counts]
    cells = "".join(
      f'<td class="heat" style="--share:{55 * share:.0f}%">{text}</td>'
      for text, share in zip(texts, row, strict=True)
    )
    lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
  return wrapped(lines, "matrix")
