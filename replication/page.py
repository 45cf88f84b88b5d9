# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of the replication, made from its rows alone."""

from collections.abc import Sequence
import math
import pathlib

import matplotlib
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from squentropy_jax.study import _figures, _overview, _store, _summary
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


def _spreads(rows: pd.DataFrame) -> dict[Method, pd.DataFrame]:
  """Standard deviation of the accuracy over seeds, the mean of the folds."""
  keys = list(Method._fields)
  spread = rows.groupby([*keys, "data", "fold"], sort=False)["accuracy"].std()
  table = spread.groupby([*keys, "data"], sort=False).mean().reset_index()
  return {
    Method(*method): chosen.set_index("data")[["accuracy"]]
    for method, chosen in table.groupby(keys, sort=False)
  }


def compare(rows: pd.DataFrame) -> list[Comparison]:
  """Every comparison of the plan."""
  comparisons = _summary.compare(rows)
  spreads = _spreads(rows)
  for method in spreads:
    if method.loss != _summary.BASELINE:
      values = _summary.differences(spreads, method)["accuracy"].to_numpy()
      comparisons.append(_summary.comparison(method, "spread", values))
  return comparisons


def judgement(comparison: Comparison) -> str:
  """Of "better than the baseline", by the rule of the plan."""
  sign = 1 if comparison.metric == "accuracy" else -1
  low, high = sorted((sign * comparison.low, sign * comparison.high))
  if math.isnan(low) or comparison.p_value >= 0.05 or low <= 0 <= high:
    return "not told apart"
  return "holds" if low > 0 else "fails"


def tables(comparisons: Sequence[Comparison]) -> str:
  """Markdown: a table for each metric."""
  lines = []
  for metric, title in _METRICS.items():
    chosen = [c for c in comparisons if c.metric == metric]
    lines += [
      f"### {title[0].upper()}{title[1:]}",
      "",
      "| loss | training | sets | wins | ties | losses | mean difference | p | "
      '"better than cross-entropy" |',
      "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in sorted(chosen, key=lambda c: c.regime == "long"):
      name = c.loss if c.readout == "softmax" else f"{c.loss} ({c.readout})"
      mean = f"{c.mean:+.4f} [{c.low:+.4f}, {c.high:+.4f}]"
      lines.append(
        f"| `{name}` | {c.regime} | {c.sets} | {c.wins} | {c.ties} | "
        f"{c.losses} | {mean} | {c.p_value:.1g} | {judgement(c)} |"
      )
    lines.append("")
  return "\n".join(lines)


def _by_epoch(curves: pd.DataFrame) -> bytes:
  """Medians over data sets against the share of the training done."""
  curves = curves[curves["readout"] == "softmax"].copy()
  last = curves.groupby("data")["epoch"].transform("max")
  # Twenty points for each set, whatever its length.
  curves["share"] = np.ceil(20 * curves["epoch"] / last) / 20
  common = [
    loss
    for loss, chosen in curves.groupby("loss", sort=False)
    if chosen["data"].nunique() > 1
  ]
  titles = {"accuracy": "Accuracy", "nll": "NLL", "ece": "ECE"}
  with matplotlib.rc_context(_figures.THEMES["light"]):
    figure = Figure(figsize=(12, 3.8))
    for ax, name in zip(figure.subplots(1, 3), titles, strict=True):
      for loss in common:
        chosen = curves[curves["loss"] == loss].groupby("share")[name]
        middle = chosen.median()
        (line,) = ax.plot(middle.index, middle, label=loss)
        low, high = chosen.quantile(0.25), chosen.quantile(0.75)
        color = line.get_color()
        ax.fill_between(middle.index, low, high, color=color, alpha=0.1)
      ax.set(title=f"Test {titles[name]}", xlabel="share of the long training")
    figure.legend(
      *ax.get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    return _figures.png(figure)


def write(
  docs: pathlib.Path, results: pd.DataFrame, curves: pd.DataFrame
) -> None:
  """Writes ``summary.csv``, ``tables.md`` and two figures."""
  comparisons = compare(results)
  sets = results["data"].nunique()
  head = (
    "# Every comparison of the replication\n\n"
    f"Made by `make replicate` from results.csv, the rows of {sets} data sets. "
    "The difference is the loss minus cross-entropy, each the mean over folds "
    "and seeds: above 0 is better for accuracy and worse for all others. "
    "Brackets: 95 % interval of the mean, a bootstrap over data sets; p: "
    "Wilcoxon's signed-rank test. The last column is the rule of "
    "[the plan](plan.md).\n\n"
  )
  _store.write(docs / "summary.csv", _summary.to_csv(comparisons))
  _store.write(docs / "tables.md", (head + tables(comparisons)).encode())
  picture = _overview.picture(results, "light")
  _store.write(docs / "differences.png", picture)
  _store.write(docs / "by_epoch.png", _by_epoch(curves))
