# SPDX-License-Identifier: Apache-2.0
"""Writes tables and figures from the committed rows."""

from collections.abc import Iterable, Sequence
import math
import pathlib

import pandas as pd

from replication import claims, plan, plotting, records
import squentropy_study as study
from squentropy_study import REFERENCE, Comparison, MethodAtLength

# The measures of the claims first, in their order.
_METRICS = {
  "accuracy": "accuracy",
  "ece": "ECE",
  "spread": "spread of the accuracy over seeds",
  "nll": "NLL",
  "brier": "Brier score",
  "ace": "ECE with equal-mass bins",
  "aurc": "AURC",
  "nll_scaled": "NLL after temperature scaling",
  "ece_scaled": "ECE after temperature scaling",
}
# The measures that are listed for each data set.
_SHOWN = ("accuracy", "ece", "nll", "ece_scaled", "nll_scaled")
# Three batches of 64 rows in the training half.
_SMALL = 384
# Percentages of the long training.
_PERCENT = (5, 10, 20, 50, 100)
_COMPARED = (
  "loss",
  "training",
  "data sets",
  "better",
  "equal",
  "worse",
  "diverged",
  "other diverged",
  "mean difference [95 % interval]",
  "median",
  "p",
  "result",
)


def _table(head: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
  """Formats a Markdown table."""
  head = tuple(head)
  cells = [head, ("---",) * len(head), *lines]
  return "".join(f"| {' | '.join(map(str, line))} |\n" for line in cells)


def _name(method: Comparison | MethodAtLength) -> str:
  if method.probability_map == "softmax":
    return f"`{method.loss}`"
  return f"`{method.loss}` ({method.probability_map})"


def _line(c: Comparison, name: str) -> tuple[object, ...]:
  mean = f"{c.mean:+.4f}"
  if not math.isnan(c.low):
    mean += f" [{c.low:+.4f}, {c.high:+.4f}]"
  if c.finite < c.sets:
    mean += f" over {c.finite}"
  counts = (c.sets, c.better, c.equal, c.worse, c.diverged, c.other_diverged)
  p_value = "-" if math.isnan(c.p_value) else f"{c.p_value:.2g}"
  rest = (mean, f"{c.median:+.4f}", p_value, claims.decision(c))
  return (name, c.training_length, *counts, *rest)


def comparisons(compared: Sequence[Comparison]) -> str:
  """Formats a table for each measure."""
  parts = []
  for metric, title in _METRICS.items():
    chosen = [c for c in compared if c.metric == metric]
    chosen.sort(key=lambda c: plan.LENGTHS.index(c.training_length))
    lines = (_line(c, _name(c)) for c in chosen)
    parts += [f"### {title[0].upper()}{title[1:]}\n", _table(_COMPARED, lines)]
  return "\n".join(parts)


def _by_group(
  rows: pd.DataFrame, chosen: dict[str, set[str]], groups: tuple[str, str]
) -> str:
  """Compares accuracy and ECE separately on two groups of data sets.

  Args:
    rows: One row per run.
    chosen: The data sets of the first group, by training length.
    groups: The names of the two groups.

  Returns:
    A table of squentropy against cross-entropy.
  """
  lines = []
  both = rows[rows["loss"].isin([plan.SQUENTROPY, REFERENCE])]
  for length, names in chosen.items():
    of_length = both[both["training_length"] == length]
    inside = of_length["data"].isin(names)
    for group, keep in zip(groups, (inside, ~inside), strict=True):
      part = of_length[keep]
      if part.empty:
        continue
      for c in study.compare_studies(part):
        if c.metric in ("accuracy", "ece"):
          lines.append(_line(c, f"`{c.loss}`, {_METRICS[c.metric]}, {group}"))
  return _table(_COMPARED, lines)


def by_fit(rows: pd.DataFrame) -> str:
  """Counts fitted data sets, and compares on fitted and on other ones."""
  sets = claims.fitted(rows)
  lines = []
  for (loss, length), names in sets.items():
    chosen = rows[(rows["loss"] == loss) & (rows["training_length"] == length)]
    lines.append((f"`{loss}`", length, chosen["data"].nunique(), len(names)))
  by_both = {
    length: sets[plan.SQUENTROPY, length] & sets[REFERENCE, length]
    for length in dict.fromkeys(rows["training_length"])
  }
  counted = _table(("loss", "training", "data sets", "fitted"), lines)
  return f"{counted}\n{_by_group(rows, by_both, ('fitted', 'not fitted'))}"


def by_confidence(rows: pd.DataFrame) -> str:
  """Compares by the confidence of cross-entropy, and lists temperatures."""
  keys = list(MethodAtLength._fields)
  medians = rows.groupby([*keys, "data"], sort=False)["temperature"].median()
  lines = []
  for names, each in medians.groupby(keys, sort=False):
    method = MethodAtLength(*names)
    quartiles = (f"{x:.2f}" for x in each.quantile([0.25, 0.5, 0.75]))
    lines.append((_name(method), method.training_length, *quartiles))
  head = ("loss", "training", "lower quartile", "median", "upper quartile")
  groups = ("over-confident", "not over-confident")
  at_two = ("temperature above 2", "temperature of 2 or less")
  return "\n".join(
    (
      _by_group(rows, claims.over_confident(rows, 1.0), groups),
      "The same with a threshold of 2 instead of 1 (not in the plan):\n",
      _by_group(rows, claims.over_confident(rows, 2.0), at_two),
      "The fitted temperature of each loss: quartiles over data sets of the "
      "median over runs (not in the plan):\n",
      _table(head, lines),
    )
  )


def by_size(rows: pd.DataFrame, sets: pd.DataFrame) -> str:
  """Compares on small data sets, which get few updates, and on the others."""
  small = set(sets.index[sets["rows"] < _SMALL])
  chosen = dict.fromkeys(dict.fromkeys(rows["training_length"]), small)
  groups = (f"under {_SMALL} rows", f"{_SMALL} rows or more")
  return _by_group(rows, chosen, groups)


def during_training(curves: pd.DataFrame) -> str:
  """Compares squentropy with cross-entropy at some points of the training."""
  curves = plotting.progress(curves)
  lines = []
  for metric in ("accuracy", "ece", "nll"):
    table = curves.pivot(
      index=["percent", "data"], columns="loss", values=metric
    )
    for percent in _PERCENT:
      ours = table.loc[percent][plan.SQUENTROPY].to_numpy()
      theirs = table.loc[percent][REFERENCE].to_numpy()
      method = MethodAtLength(plan.SQUENTROPY, "softmax", f"{percent} %")
      c = study.compare_values(method, metric, ours, theirs)
      lines.append(_line(c, f"`{c.loss}`, {_METRICS[metric]}"))
  return _table(_COMPARED, lines)


def on_one_set(rows: pd.DataFrame) -> str:
  """Lists the losses of the data set that has losses of its own."""
  common = set(claims.on_several(rows)["loss"])
  names = rows["data"][~rows["loss"].isin(common)].unique()
  keys = ["data", "training_length", "loss", "probability_map"]
  means = (
    rows[rows["data"].isin(names)]
    .groupby(keys, sort=False)[list(_SHOWN)]
    .mean()
  )
  lines = [
    (
      data,
      length,
      _name(MethodAtLength(loss, probability_map, length)),
      *(f"{value:.4f}" for value in values),
    )
    for (data, length, loss, probability_map), values in means.iterrows()
  ]
  lines.sort(key=lambda line: plan.LENGTHS.index(line[1]))
  head = ("data set", "training", "loss", *(_METRICS[m] for m in _SHOWN))
  return _table(head, lines)


def each_set(rows: pd.DataFrame, sets: pd.DataFrame) -> str:
  """Lists both losses by data set, sorted by how much the ECE changes."""
  parts = []
  sizes = sets[["rows", "features", "classes"]]
  means = study.dataset_means(rows)
  for length in dict.fromkeys(rows["training_length"]):
    ours = means[MethodAtLength(plan.SQUENTROPY, "softmax", length)]
    theirs = means[MethodAtLength(*claims.CROSS_ENTROPY, length)]
    theirs = theirs.loc[ours.index]
    lines = []
    for name in (ours["ece"] - theirs["ece"]).sort_values().index:
      numbers = [
        f"{theirs[metric][name]:.4f}, {ours[metric][name]:.4f}"
        for metric in _SHOWN
      ]
      lines.append((name, *sizes.loc[name], *numbers))
    head = ("data set", *sizes.columns, *(_METRICS[name] for name in _SHOWN))
    parts += [f"### {length.capitalize()} training\n", _table(head, lines)]
  return "\n".join(parts)


def _introduction(sets: pd.DataFrame) -> str:
  fixed = "; ".join(sorted(set(sets["code"])))
  code = f"{fixed} (short and long)"
  if "stopped_code" in sets:
    stopped = "; ".join(sorted(set(sets["stopped_code"].dropna())))
    code += f", {stopped} (stopped)"
  return f"""# All comparisons of the replication

The conclusions are in [README.md](README.md). `make replicate` writes this page
from results.csv.gz, which has the runs on {len(sets)} data sets. summary.csv
has more measures after temperature scaling.

How to read the tables:

- **Mean difference** is the loss of the line minus the other loss. Each of the
  two is a mean over folds and seeds. A positive difference is better for
  accuracy, and worse for all other measures.
- **95 % interval** is a bootstrap interval (BCa) of the mean over data sets.
- **p** is the p-value of the two-sided Wilcoxon signed-rank test. Fewer than
  six data sets have neither an interval nor a test.
- **Result** applies the rule of [the plan](plan.md#what-counts): the loss is
  better or worse than the other one if the interval excludes 0 and p < 0.05.
- **Better, equal, worse** count data sets. On **diverged** ones, a run of the
  loss gave a number that is not finite.
- **(log_probs)** marks the square loss with the probabilities that it
  estimates (`rescaled_square.log_probs`), not with the softmax of its logits.
- ECE is the expected calibration error, NLL the negative log-likelihood, and
  AURC the area under the risk-coverage curve ([definitions](
  ../calibration.md)).
- **Stopped** training ends at the epoch that is best on the validation rows
  ([plan](plan.md#changes)). **Short** and **long** training have fixed lengths.

The code that made the rows: {code}.
"""


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
  """Sorts by loss, then by training length: the stopped training first."""
  maps = rows["loss"] + " " + rows["probability_map"]
  keys = {
    "loss": maps.map({name: k for k, name in enumerate(maps.unique())}),
    "length": rows["training_length"].map(plan.LENGTHS.index),
  }
  order = pd.DataFrame(keys).sort_values(["loss", "length"], kind="stable")
  return rows.loc[order.index].reset_index(drop=True)


def write(
  docs: pathlib.Path,
  rows: pd.DataFrame,
  curves: pd.DataFrame,
  sets: pd.DataFrame,
) -> None:
  """Writes ``summary.csv``, ``tables.md`` and three figures.

  Args:
    docs: The folder to write to.
    rows: One row per run, as in ``results.csv.gz``.
    curves: One row per curve point, as in ``curves.csv.gz``.
    sets: One row per data set, as in ``sets.csv``.
  """
  sets = sets.set_index("data")
  rows = _ordered(rows)
  several = claims.on_several(rows)
  compared = claims.compare(several)
  parts = [
    _introduction(sets),
    "## All losses against cross-entropy\n",
    comparisons(compared),
  ]
  for probability_map in ("softmax", "log_probs"):
    chosen = claims.squentropy_against(rows, plan.SQUARE, probability_map)
    compared += chosen
    parts += [
      f"## Squentropy against `{plan.SQUARE}` ({probability_map})\n",
      comparisons(chosen),
    ]
  parts += [
    "## Data sets whose training rows are fitted\n\nA loss fits a data set if "
    "its mean accuracy on the training rows is "
    f"{claims.FITTED:g} or more. The second table has a group of the data sets "
    "that both squentropy and cross-entropy fit, and a group of all others.\n",
    by_fit(several),
    "## Data sets on which cross-entropy is over-confident\n\nCross-entropy is "
    "over-confident on a data set if the temperature fitted for it, the median "
    "over runs, is above 1.\n",
    by_confidence(several),
    f"## Squentropy against `{plan.SMOOTHED}` (not in the plan)\n",
    comparisons(claims.squentropy_against(rows, plan.SMOOTHED)),
    "## Temperature-scaled cross-entropy against unscaled squentropy (not in "
    "the plan)\n",
    _table(
      _COMPARED,
      (
        _line(c, f"`{c.loss}`, {_METRICS[c.metric]}")
        for c in claims.scaled_cross_entropy(rows)
      ),
    ),
    "## During training (not in the plan)\n\nThe short training ends at 10 % "
    "of the long one.\n",
    during_training(curves),
    f"## Small data sets (not in the plan)\n\nData sets with under {_SMALL} "
    "rows have fewer than three batches of 64 in an epoch. Their short "
    "training is 60 updates or fewer.\n",
    by_size(several, sets),
    "## Constants of the rescaled square loss, on wordnet\n",
    on_one_set(rows),
    "## Each data set\n\nThe first number is cross-entropy, the second one "
    "squentropy. The number of features counts one column per category.\n",
    each_set(rows, sets),
  ]
  records.write(docs / "summary.csv", study.comparisons_csv(compared))
  records.write(docs / "tables.md", "\n".join(parts).encode())
  records.write(docs / "differences.png", study.differences_figure(several))
  records.write(docs / "by_epoch.png", plotting.by_epoch(curves))
  records.write(docs / "over_confidence.png", plotting.by_temperature(rows))


def main() -> None:
  """Writes the page's tables and figures from the stored results."""
  tables = (records.RESULTS, records.CURVES, records.SETS)
  write(records.DOCS, *map(records.read, tables))


if __name__ == "__main__":
  main()
