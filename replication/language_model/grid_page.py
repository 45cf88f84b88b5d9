# SPDX-License-Identifier: Apache-2.0
"""Writes the tables and figures of the experiment from the committed rows."""

from collections.abc import Iterable
import pathlib

import numpy as np
import pandas as pd

from replication import records
from replication.language_model import grid, grid_plots, verdicts

DOCS = records.ROOT / "docs" / "language_model"
RESULTS = DOCS / "results.csv.gz"

_LIKELIHOOD = {
  "nll": "NLL",
  "nll_scaled": "NLL after temperature scaling",
  "ece": "ECE",
  "ece_scaled": "ECE after temperature scaling",
}
_LOGITS = {
  "mean_logit": "mean logit",
  "max_abs_logit": "largest absolute logit",
  "head_norm": "norm of the output layer",
  "final_norm": "norm of the last normalisation's gains",
}
# The columns of the table of all runs.
_ALL = {
  "nll": "NLL",
  "accuracy": "accuracy",
  "ece": "ECE",
  "temperature": "temperature",
  "nll_scaled": "NLL, scaled",
  "ece_scaled": "ECE, scaled",
  "mean_logit": "mean logit",
  "std_logit": "standard deviation",
  "max_abs_logit": "largest",
  "log_z": "log Z",
  "head_norm": "head",
  "mean_row_norm": "mean row",
  "final_norm": "last gains",
  "plateau_nll": "NLL before",
  "plateau_mean_logit": "mean logit before",
  "plateau_max_abs_logit": "largest before",
  "plateau_head_norm": "head before",
}


def read(path: pathlib.Path) -> pd.DataFrame:
  """Reads the rows of the finished runs.

  Args:
    path: The path of ``results.csv.gz``.

  Returns:
    One row per run. The learning rates equal those of the plan exactly.
  """
  # pandas may read a number that differs from the text in its last digit.
  rows = pd.read_csv(path, dtype={"learning_rate": str})
  return rows.assign(learning_rate=rows["learning_rate"].map(float))


def _table(head: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
  head = tuple(head)
  cells = [head, ("---",) * len(head), *lines]
  return "".join(f"| {' | '.join(map(str, line))} |\n" for line in cells)


def _number(value: float) -> str:
  if not np.isfinite(value):
    return "-"
  # The best temperature of a model that is worse than equal probabilities.
  return f"{value:.4g}" if abs(value) < 1e6 else "unbounded"


def _mean(values: pd.DataFrame) -> pd.Series:
  """Computes means, with NaN where a run has no number."""
  return values.mean(skipna=False)


def _change(found: verdicts.Interval) -> str:
  text = f"{found.mean:+.4f}"
  if not np.isnan(found.low):
    text += f" [{found.low:+.4f}, {found.high:+.4f}]"
  return text


def _comparisons(
  compared: list[verdicts.Comparison], verdict: bool = True
) -> str:
  """Formats a table of comparisons."""
  head = ("loss", "seeds", "sensitivity", "NLL at the best rate", "diverged")
  lines = (
    (
      f"`{c.loss}`",
      c.seeds,
      _change(c.sensitivity),
      _change(c.nll),
      c.diverged,
      *([c.verdict] if verdict else []),
    )
    for c in compared
  )
  return _table((*head, *(["verdict"] if verdict else [])), lines)


def _each_loss(rows: pd.DataFrame) -> str:
  """Formats the means over seeds."""
  lines = []
  for loss, each in verdicts.by_seed(rows).groupby("loss", sort=False):
    rates = ", ".join(f"{x:g}" for x in sorted(set(each["best_rate"])))
    means = each[["best_nll", "sensitivity", "regret"]].mean()
    numbers = (f"{x:.4f}" for x in means)
    diverged = each["diverged"].sum()
    lines.append((f"`{loss}`", len(each), rates, *numbers, diverged))
  head = ("loss", "seeds", "best rates", "NLL at the best rate", "sensitivity")
  return _table((*head, "regret", "diverged"), lines)


def _by_rate(rows: pd.DataFrame) -> str:
  """Formats the NLL of each loss at each learning rate."""
  keys = ["loss", "learning_rate"]
  means = rows.groupby(keys)[["nll"]].apply(_mean)["nll"].unstack()
  lines = (
    (f"`{loss}`", *(_number(x) for x in means.loc[loss]))
    for loss in grid.LOSSES
    if loss in means.index
  )
  return _table(("loss", *(f"{x:g}" for x in means.columns)), lines)


def _all_measures(rows: pd.DataFrame) -> str:
  """Formats means over seeds of all measures."""
  if not len(rows):
    return ""
  keys = ["loss", "learning_rate"]
  means = rows.groupby(keys)[list(_ALL)].apply(_mean)
  counts = rows.groupby(keys).size()
  lines = (
    (
      f"`{loss}`",
      f"{rate:g}",
      counts[loss, rate],
      *(_number(x) for x in means.loc[(loss, rate)]),
    )
    for loss in grid.LOSSES
    for rate in grid.RATES
    if (loss, rate) in means.index
  )
  return _table(("loss", "rate", "seeds", *_ALL.values()), lines)


def _introduction(rows: pd.DataFrame) -> str:
  hours = rows["cpu_seconds"].sum() / 3600
  code = ", ".join(sorted(set(rows["code"])))
  return f"""# All numbers of the language model experiment

The conclusions are in [README.md](README.md). `make replicate-lm` writes this
page from results.csv.gz, which has {len(rows)} of the {len(grid.RUNS)} runs of
[the plan](plan.md). They took {hours:.1f} hours of processor time.

- **NLL** is in nats per token, without the terms that are added to the
  cross-entropy. **Scaled** is after temperature scaling.
- **Sensitivity** is the learning-rate sensitivity, and **regret** the same
  against the best cross-entropy ([definitions](plan.md#measures)).
- **Differences** are the loss minus the other one, with the 95 % interval over
  all seeds that both have. A negative difference is better. **Means** are those
  over the seeds that all losses have. **Diverged** counts the rates and
  seeds at which only the loss diverged. **Verdict** applies the rule of
  [the plan](plan.md#what-counts).
- The **standard deviation** of the logits is that over the classes of a token.
  The **largest** logit is the largest absolute value over all tokens and
  classes.
- **NLL** and other means are "-" if a run has no number. The **temperature** is
  unbounded if equal probabilities are better than those of the model.
- **Head** is the norm of the output layer, **mean row** that of the mean of its
  rows, and **last gains** that of the last normalisation. **Before** is at the
  last step before the cooldown.

The code that made the rows: {code}.
"""


def tables(rows: pd.DataFrame) -> str:
  """Formats the page with all numbers.

  Args:
    rows: One row per run, as in ``results.csv.gz``.

  Returns:
    The text of ``tables.md``.
  """
  main = verdicts.shared_seeds(rows[rows["vocab"] == grid.VOCAB])
  large = rows[rows["vocab"] == grid.LARGE_VOCAB]
  against = verdicts.compare(rows, grid.CROSS_ENTROPY)
  against_z = verdicts.compare(rows, grid.Z_LOSS)
  without = verdicts.compare(rows, grid.CROSS_ENTROPY, grid.RATES[:-1])
  parts = [
    _introduction(rows),
    "## Against cross-entropy\n",
    _comparisons(against),
    "## Square terms against the z-loss\n",
    _comparisons(against_z),
    "## Advice\n\nBy the rule of the plan: "
    + verdicts.advice(verdicts.by_seed(rows), against, against_z)
    + "\n",
    f"## Without the learning rate {grid.RATES[-1]:g}\n\n"
    "This comparison with cross-entropy is not in the plan. It does not\n"
    "affect the verdicts.\n",
    _comparisons(without, verdict=False),
    "## Each loss\n\nMeans over seeds.\n",
    _each_loss(main),
    "## NLL at each learning rate\n\nMeans over seeds.\n",
    _by_rate(main),
    "## All measures\n\nMeans over seeds.\n",
    _all_measures(main),
    f"## {grid.LARGE_VOCAB:,} classes\n\n"
    + ("" if len(large) else "These runs are not finished yet.\n"),
    _all_measures(large),
  ]
  return "\n".join(parts)


def write(docs: pathlib.Path, rows: pd.DataFrame) -> None:
  """Writes ``tables.md`` and the figures.

  Args:
    docs: The folder to write to.
    rows: One row per run, as in ``results.csv.gz``.
  """
  records.write(docs / "tables.md", tables(rows).encode())
  changes = verdicts.differences(rows, grid.CROSS_ENTROPY)
  records.write(docs / "differences.png", grid_plots.differences(changes))
  main = verdicts.shared_seeds(rows[rows["vocab"] == grid.VOCAB])
  for name, measures in (
    ("nll_by_rate.png", _LIKELIHOOD),
    ("logits_by_rate.png", _LOGITS),
  ):
    records.write(docs / name, grid_plots.by_rate(main, measures))
