# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of the replication, made from its rows alone."""

from collections.abc import Sequence
import math
import pathlib

import numpy as np
import pandas as pd

from replication import figures, plan
from squentropy_jax.study import _overview, _store, _summary
from squentropy_jax.study._summary import Comparison, Method

# What the plan names, in the order of its claims; then what stands beside.
_METRICS = {
  "accuracy": "accuracy",
  "ece": "ECE",
  "spread": "spread of the accuracy over seeds",
  "nll": "NLL",
  "brier": "Brier score",
  "ace": "equal-mass ECE",
  "aurc": "AURC",
  "nll_scaled": "NLL after temperature scaling",
  "ece_scaled": "ECE after temperature scaling",
}


# A set is fitted from this mean accuracy on the training rows on.
FITTED = 0.99
_BASELINE = (_summary.BASELINE, "softmax")


def _spreads(rows: pd.DataFrame) -> dict[Method, pd.DataFrame]:
  """Standard deviation of the accuracy over seeds, the mean of the folds."""
  keys = list(Method._fields)
  diverged = _summary.means(rows)
  spread = rows.groupby([*keys, "data", "fold"], sort=False)["accuracy"].std()
  table = spread.groupby([*keys, "data"], sort=False).mean().reset_index()
  result = {}
  for names, chosen in table.groupby(keys, sort=False):
    method = Method(*names)
    values = chosen.set_index("data")[["accuracy"]]
    # Where a run diverged there is no spread either.
    gone = diverged[method]["accuracy"].isna()
    values[gone.reindex(values.index)] = np.nan
    result[method] = values
  return result


def compare(
  rows: pd.DataFrame, against: tuple[str, str] = _BASELINE
) -> list[Comparison]:
  """Every other loss against one, in every measure of the plan."""
  comparisons = _summary.compare(rows, against)
  spreads = _spreads(rows)
  for method in spreads:
    if method.loss != against[0]:
      pairs = _summary.pairs(spreads, method, against)
      ours, theirs = (table["accuracy"].to_numpy() for table in pairs)
      comparisons.append(
        _summary.comparison(method, "spread", ours, theirs, against)
      )
  return comparisons


def against_square(rows: pd.DataFrame, readout: str) -> list[Comparison]:
  """Squentropy against the rescaled square loss, on the sets that have both."""
  chosen = rows[rows["loss"].isin([plan.SQUENTROPY, plan.SQUARE])]
  having = chosen["data"][chosen["loss"] == plan.SQUARE].unique()
  if not having.size:
    return []
  chosen = chosen[chosen["data"].isin(having)]
  return compare(chosen, (plan.SQUARE, readout))


def fitted(rows: pd.DataFrame) -> dict[tuple[str, str], set[str]]:
  """Data sets whose training rows are fitted, by loss and length."""
  # One readout: a second one of the same logits is no second training.
  rows = rows[rows["readout"] == "softmax"]
  means = rows.groupby(["loss", "regime", "data"], sort=False)[
    "train_accuracy"
  ].mean()
  return {
    (loss, regime): set(each.index.get_level_values("data")[each >= FITTED])
    for (loss, regime), each in means.groupby(["loss", "regime"], sort=False)
  }


def judgement(comparison: Comparison) -> str:
  """Of "better than the other loss", by the rule of the plan."""
  c = comparison
  sign = 1 if c.metric == "accuracy" else -1
  low, high = sorted((sign * c.low, sign * c.high))
  if math.isnan(low) or c.p_value >= 0.05 or low <= 0 <= high:
    return "not told apart"
  # Of a loss that diverged no claim holds, whatever the other sets say.
  if (c.diverged if low > 0 else c.other_diverged) > 0:
    return "not told apart"
  return "holds" if low > 0 else "fails"


def _name(method: Comparison | Method) -> str:
  if method.readout == "softmax":
    return method.loss
  return f"{method.loss} ({method.readout})"


def _line(c: Comparison, name: str) -> str:
  mean = f"{c.mean:+.4f}"
  if not math.isnan(c.low):
    mean += f" [{c.low:+.4f}, {c.high:+.4f}]"
  if c.finite < c.sets:
    mean += f" over {c.finite}"
  counts = (c.sets, c.wins, c.ties, c.losses, c.diverged, c.other_diverged)
  said = (f"`{name}`", c.regime, *counts, mean, f"{c.median:+.4f}")
  return f"| {' | '.join(map(str, said))} | {c.p_value:.1g} | {judgement(c)} |"


_COLUMNS = (
  "| loss | training | sets | wins | ties | losses | diverged | other diverged "
  '| mean difference | median | p | "better" |\n'
  f"|{'---|' * 12}"
)


def tables(comparisons: Sequence[Comparison]) -> str:
  """Markdown: a table for each metric."""
  lines = []
  for metric, title in _METRICS.items():
    chosen = [c for c in comparisons if c.metric == metric]
    lines += [f"### {title[0].upper()}{title[1:]}", "", _COLUMNS]
    for c in sorted(chosen, key=lambda c: c.regime == "long"):
      lines.append(_line(c, _name(c)))
    lines.append("")
  return "\n".join(lines)


def over_confident(rows: pd.DataFrame) -> dict[str, set[str]]:
  """Data sets on which the baseline is over-confident, by length.

  The median over its runs of the temperature fitted for it is above 1.
  """
  chosen = rows[rows["loss"] == _summary.BASELINE]
  medians = chosen.groupby(["regime", "data"], sort=False)[
    "temperature"
  ].median()
  return {
    regime: set(each.index.get_level_values("data")[each > 1.0])
    for regime, each in medians.groupby("regime", sort=False)
  }


def _apart(
  rows: pd.DataFrame, chosen: dict[str, set[str]], kinds: tuple[str, str]
) -> str:
  """Markdown: claims 1 and 2 on the chosen sets of a length and the others."""
  lines = [_COLUMNS]
  both = rows[rows["loss"].isin([plan.SQUENTROPY, _summary.BASELINE])]
  for regime, names in chosen.items():
    of_length = both[both["regime"] == regime]
    inside = of_length["data"].isin(names)
    for kind, keep in zip(kinds, (inside, ~inside), strict=True):
      part = of_length[keep]
      if part.empty:
        continue
      for c in _summary.compare(part):
        if c.metric in ("accuracy", "ece"):
          lines.append(_line(c, f"{c.loss}, {c.metric}, {kind}"))
  return "\n".join(lines) + "\n"


def by_fit(rows: pd.DataFrame) -> str:
  """Markdown: how many sets are fitted, and the claims on both kinds apart."""
  sets = fitted(rows)
  lines = [
    "| loss | training | sets | fitted |",
    "|---|---|---|---|",
  ]
  for (loss, regime), names in sets.items():
    chosen = rows[(rows["loss"] == loss) & (rows["regime"] == regime)]
    total = chosen["data"].nunique()
    lines.append(f"| `{loss}` | {regime} | {total} | {len(names)} |")
  by_both = {
    regime: sets[plan.SQUENTROPY, regime] & sets[_summary.BASELINE, regime]
    for regime in dict.fromkeys(rows["regime"])
  }
  lines += ["", _apart(rows, by_both, ("fitted", "not fitted"))]
  return "\n".join(lines)


def by_confidence(rows: pd.DataFrame) -> str:
  """Markdown: temperatures, and the claims by the baseline's confidence."""
  lines = [
    "| loss | training | fitted temperature, quartiles over sets |",
    "|---|---|---|",
  ]
  medians = rows.groupby([*Method._fields, "data"], sort=False)[
    "temperature"
  ].median()
  for names, each in medians.groupby(list(Method._fields), sort=False):
    method = Method(*names)
    low, middle, high = each.quantile([0.25, 0.5, 0.75])
    name = _name(method)
    said = f"{low:.2f}, {middle:.2f}, {high:.2f}"
    lines.append(f"| `{name}` | {method.regime} | {said} |")
  kinds = ("over-confident", "not over-confident")
  lines += ["", _apart(rows, over_confident(rows), kinds)]
  return "\n".join(lines)


def _head(results: pd.DataFrame) -> str:
  said = (
    "# Every comparison of the replication\n\n"
    "Made by `make replicate` from results.csv, the rows of "
    f"{results['data'].nunique()} data sets. "
    "The difference is the loss minus the other one, each the mean over folds "
    "and seeds: above 0 is better for accuracy and worse for all others. "
    "Brackets: 95 % interval of the mean, a bootstrap over data sets; p: "
    "Wilcoxon's signed-rank test. The last column is the rule of "
    "[the plan](plan.md).\n"
  )
  if "source" in results:
    states = ", ".join(f"`{x}`" for x in sorted(results["source"].unique()))
    said += f"\nDigest of the code that made the rows: {states}.\n"
  return said


def write(
  docs: pathlib.Path, results: pd.DataFrame, curves: pd.DataFrame
) -> None:
  """Writes ``summary.csv``, ``tables.md`` and three figures."""
  comparisons = compare(results)
  sections = [_head(results), "## Against cross-entropy\n", tables(comparisons)]
  for readout in ("softmax", "linear"):
    chosen = against_square(results, readout)
    comparisons += chosen
    if chosen:
      heading = f"## Squentropy against `{plan.SQUARE}`, read as {readout}\n"
      sections += [heading, tables(chosen)]
  if "train_accuracy" in results:
    sections += [
      "## Fitted training rows\n\nFitted: a mean accuracy of "
      f"{FITTED:g} or more on the training rows; below, of squentropy and of "
      "cross-entropy.\n",
      by_fit(results),
    ]
  sections += [
    "## Over-confidence\n\nCross-entropy is over-confident on a set if the "
    "median over its runs of the temperature fitted for it is above 1.\n",
    by_confidence(results),
  ]
  _store.write(docs / "summary.csv", _summary.to_csv(comparisons))
  _store.write(docs / "tables.md", "\n".join(sections).encode())
  picture = _overview.picture(results, "light")
  _store.write(docs / "differences.png", picture)
  _store.write(docs / "by_epoch.png", figures.by_epoch(curves))
  _store.write(docs / "over_confidence.png", figures.by_temperature(results))
