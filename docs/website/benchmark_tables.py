# SPDX-License-Identifier: Apache-2.0
"""The tables of the page on benchmarks, from benchmarks/results/*.csv."""

import csv
import pathlib
import statistics
from typing import NamedTuple

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results"


class Report(NamedTuple):
  """A section of the page, which shows a file of results.

  Attributes:
    title: The heading.
    text: What the numbers mean.
    groups: Columns whose values are one table each.
    columns: The other columns that are shown, with their titles.
  """

  title: str
  text: str
  groups: tuple[str, ...]
  columns: dict[str, str]


REPORTS = {
  "fused": Report(
    "Fused heads",
    "Value and gradients of a linear head with a loss. Each time is divided by "
    "that of one, two or three plain matrix products, which also write all "
    "logits. A ratio can be below 1, because a fused head does not write them.",
    ("rows", "width", "classes", "dtype"),
    {
      "loss": "loss",
      "mode": "mode",
      "milliseconds": "ms",
      "floor": "compared with",
      "ratio_to_floor": "ratio",
      "temporary_mib": "temporary MiB",
    },
  ),
  "training_step": Report(
    "A training step of a language model",
    "The decoder of `examples/pods`: a step with the fused head, and the same "
    "step with stored logits. Both compute the same loss and metrics.",
    ("classes", "width", "layers", "tokens"),
    {
      "head": "head",
      "tokens_per_second": "tokens/s",
      "ratio_to_full_logits": "time / full logits",
      "temporary_mib": "temporary MiB",
    },
  ),
  "angular": Report(
    "Losses of cosines",
    "Value and gradient, compared with optax's softmax cross-entropy of the "
    "same cosines.",
    ("rows", "classes"),
    {
      "function": "function",
      "milliseconds": "ms",
      "ratio_to_softmax": "ratio to the softmax",
      "temporary_share_of_cosines": "temporary memory / cosines",
    },
  ),
  "retrieval": Report(
    "Retrieval losses",
    "Value and gradient, compared with InfoNCE in plain JAX.",
    ("queries", "documents"),
    {
      "function": "function",
      "milliseconds": "ms",
      "ratio_to_plain": "ratio to plain InfoNCE",
      "temporary_share_of_array": "temporary memory / similarities",
    },
  ),
  "calibration": Report(
    "Calibration metrics",
    "Each metric under `jit`, compared with the softmax of the same logits.",
    ("rows", "classes"),
    {
      "function": "function",
      "milliseconds": "ms",
      "ratio_to_softmax": "ratio to the softmax",
      "temporary_share_of_array": "temporary memory / logits",
    },
  ),
  "factored": Report(
    "Factored output layer",
    "One step of exact SGD, compared with the same step of a dense layer.",
    ("width", "rows"),
    {
      "classes": "classes",
      "step": "layer",
      "milliseconds": "ms",
      "ratio_to_dense": "ratio to dense",
      "temporary_mib": "temporary MiB",
    },
  ),
  "two_pass": Report(
    "Two-pass softmax",
    "Forward pass, compared with `jax.nn`.",
    ("rows", "classes"),
    {
      "result": "result",
      "function": "function",
      "milliseconds": "ms",
      "ratio_to_jax_nn": "ratio to jax.nn",
    },
  ),
  "two_pass_heads": Report(
    "Two-pass sums in a head",
    "A linear head with a loss, compared with sums that are shifted by their "
    "maximum.",
    ("rows", "classes"),
    {
      "result": "result",
      "function": "sums",
      "milliseconds": "ms",
      "ratio_to_max_shift": "ratio to max-shift",
    },
  ),
}


def _rows(name: str) -> list[dict[str, str]]:
  with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
    return list(csv.DictReader(file))


def table(titles: list[str], rows: list[list[str]]) -> str:
  """Returns a Markdown table, with columns of numbers aligned right."""

  def is_number(column: int) -> bool:
    values = [row[column] for row in rows if row[column]]
    return bool(values) and all(
      value.replace(".", "", 1).isdigit() for value in values
    )

  rules = ["---:" if is_number(i) else "---" for i in range(len(titles))]
  lines = [titles, rules, *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(row: dict[str, str]) -> str:
  """Returns a sentence that says when and where a row was measured."""
  return (
    f"Measured on {row['date']} with {row['cores']} cores of one "
    f"{row['device'].upper()}, jax {row['jax_version']} and optax "
    f"{row['optax_version']}."
  )


def dense() -> str:
  """Returns a section with a line for each shape and a column for each loss."""
  rows = [row for row in _rows("dense") if row["loss"] != "optax cross-entropy"]
  parts = [
    "## Losses of logits",
    "Time divided by the time of optax's cross-entropy with integer labels on "
    "the same logits, the median of interleaved repeats. Lower is faster. The "
    "class axis is the last one, except where the shape says otherwise.",
    machine(rows[0]),
  ]
  names = ("cross_entropy", "squentropy", "rescaled_square")
  more = ("squentropy, batch mask", "squentropy, class mask")
  for mode in ("value and gradient", "value"):
    found: dict[str, dict[str, str]] = {}
    for row in rows:
      if row["mode"] == mode:
        shape = row["shape"] + (", axis 1" if row["axis"] == "1" else "")
        ratio = f"{float(row['ratio_to_optax']):.2f}"
        found.setdefault(shape, {})[row["loss"]] = ratio
    lines = [
      [shape, *(values.get(name, "") for name in names + more)]
      for shape, values in found.items()
    ]
    titles = ["shape", *names, *more]
    parts += [f"### {mode.capitalize()}", table(titles, lines)]
  return "\n\n".join(parts)


def recalibration() -> str:
  """Returns a section with the mean scores of each recalibrator."""
  rows = _rows("recalibration")
  names = list(dict.fromkeys(row["recalibrator"] for row in rows))
  lines = []
  for name in names:
    own = [row for row in rows if row["recalibrator"] == name]
    means = [
      f"{statistics.fmean(float(row[key]) for row in own):.4f}"
      for key in ("nll", "brier")
    ]
    lines.append([name, str(len(own)), *means])
  return "\n\n".join(
    [
      "## Recalibrators",
      "Means over data sets. Recalibrators of two classes run on the binary "
      "data sets only, so their means are not comparable with those of all "
      "data sets. [Which recalibrator is better than a temperature?]"
      "(recalibration.md) has the comparison by data set.",
      table(["recalibrator", "data sets", "NLL", "Brier"], lines),
    ]
  )


def tables() -> str:
  """Returns all tables, as sections of Markdown."""
  parts = [dense()]
  for name, report in REPORTS.items():
    rows = _rows(name)
    parts += [f"## {report.title}", report.text, machine(rows[0])]
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for row in rows:
      key = tuple(row[column] for column in report.groups)
      groups.setdefault(key, []).append([row[c] for c in report.columns])
    for key, lines in groups.items():
      pairs = zip(report.groups, key, strict=True)
      words = (v if k == "dtype" else f"{v} {k}" for k, v in pairs)
      # A width has no plural.
      title = ", ".join(words).replace(" width", " wide")
      parts += [f"### {title}", table(list(report.columns.values()), lines)]
  return "\n\n" + "\n\n".join([*parts, recalibration()]) + "\n"
