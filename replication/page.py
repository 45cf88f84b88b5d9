# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of the replication, made from its rows alone."""

from collections.abc import Iterable, Sequence
import math
import pathlib

import pandas as pd

from replication import claims, figures, plan
from squentropy_study import _overview, _store, _summary
from squentropy_study._summary import Comparison, Method

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
# Of these there is a number for each data set.
_SHOWN = ("accuracy", "ece", "nll", "ece_scaled", "nll_scaled")
# Three batches of 64 rows in a training half.
_SMALL = 384
# Of the long training, in percent.
_SHARES = (5, 10, 20, 50, 100)
_COMPARED = (
  "loss",
  "training",
  "sets",
  "wins",
  "ties",
  "losses",
  "diverged",
  "other diverged",
  "mean difference",
  "median",
  "p",
  '"better"',
)


def _table(head: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
  """Markdown."""
  head = tuple(head)
  cells = [head, ("---",) * len(head), *lines]
  return "".join(f"| {' | '.join(map(str, line))} |\n" for line in cells)


def _name(method: Comparison | Method) -> str:
  if method.readout == "softmax":
    return f"`{method.loss}`"
  return f"`{method.loss}` ({method.readout})"


def _line(c: Comparison, name: str) -> tuple[object, ...]:
  mean = f"{c.mean:+.4f}"
  if not math.isnan(c.low):
    mean += f" [{c.low:+.4f}, {c.high:+.4f}]"
  if c.finite < c.sets:
    mean += f" over {c.finite}"
  counts = (c.sets, c.wins, c.ties, c.losses, c.diverged, c.other_diverged)
  said = (mean, f"{c.median:+.4f}", f"{c.p_value:.2g}", claims.judgement(c))
  return (name, c.regime, *counts, *said)


def comparisons(compared: Sequence[Comparison]) -> str:
  """A table for each metric."""
  parts = []
  for metric, title in _METRICS.items():
    chosen = [c for c in compared if c.metric == metric]
    chosen.sort(key=lambda c: c.regime == "long")
    lines = (_line(c, _name(c)) for c in chosen)
    parts += [f"### {title[0].upper()}{title[1:]}\n", _table(_COMPARED, lines)]
  return "\n".join(parts)


def _apart(
  rows: pd.DataFrame, chosen: dict[str, set[str]], kinds: tuple[str, str]
) -> str:
  """Claims 1 and 2 on the chosen sets of a length and on the others."""
  lines = []
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
          lines.append(_line(c, f"`{c.loss}`, {_METRICS[c.metric]}, {kind}"))
  return _table(_COMPARED, lines)


def by_fit(rows: pd.DataFrame) -> str:
  """How many sets are fitted, and the claims on both kinds apart."""
  sets = claims.fitted(rows)
  lines = []
  for (loss, regime), names in sets.items():
    chosen = rows[(rows["loss"] == loss) & (rows["regime"] == regime)]
    lines.append((f"`{loss}`", regime, chosen["data"].nunique(), len(names)))
  by_both = {
    regime: sets[plan.SQUENTROPY, regime] & sets[_summary.BASELINE, regime]
    for regime in dict.fromkeys(rows["regime"])
  }
  counted = _table(("loss", "training", "sets", "fitted"), lines)
  return f"{counted}\n{_apart(rows, by_both, ('fitted', 'not fitted'))}"


def by_confidence(rows: pd.DataFrame) -> str:
  """Temperatures, and the claims by the baseline's confidence."""
  medians = rows.groupby([*Method._fields, "data"], sort=False)[
    "temperature"
  ].median()
  lines = []
  for names, each in medians.groupby(list(Method._fields), sort=False):
    method = Method(*names)
    quartiles = (f"{x:.2f}" for x in each.quantile([0.25, 0.5, 0.75]))
    lines.append((_name(method), method.regime, *quartiles))
  head = ("loss", "training", "lower quartile", "median", "upper quartile")
  kinds = ("over-confident", "not over-confident")
  twice = ("temperature above 2", "temperature of 2 or less")
  return "\n".join(
    (
      _apart(rows, claims.over_confident(rows, 1.0), kinds),
      "Apart at another temperature (not in the plan):\n",
      _apart(rows, claims.over_confident(rows, 2.0), twice),
      "The temperatures fitted for each loss, medians of its runs, over data "
      "sets (not in the plan):\n",
      _table(head, lines),
    )
  )


def by_size(rows: pd.DataFrame, sets: pd.DataFrame) -> str:
  """The claims on small sets, which see few updates, and on the others."""
  small = set(sets.index[sets["rows"] < _SMALL])
  chosen = dict.fromkeys(dict.fromkeys(rows["regime"]), small)
  return _apart(rows, chosen, (f"under {_SMALL} rows", f"{_SMALL} or more"))


def along(curves: pd.DataFrame) -> str:
  """Squentropy against cross-entropy at some points of the training."""
  curves = figures.shares(curves)
  lines = []
  for metric in ("accuracy", "ece", "nll"):
    table = curves.pivot(index=["share", "data"], columns="loss", values=metric)
    for share in _SHARES:
      ours = table.loc[share][plan.SQUENTROPY].to_numpy()
      theirs = table.loc[share][_summary.BASELINE].to_numpy()
      method = Method(plan.SQUENTROPY, "softmax", f"{share} %")
      c = _summary.comparison(method, metric, ours, theirs)
      lines.append(_line(c, f"`{c.loss}`, {_METRICS[metric]}"))
  return _table(_COMPARED, lines)


def alone(rows: pd.DataFrame) -> str:
  """The losses of data sets that have some which no other has."""
  common = set(claims.on_several(rows)["loss"])
  names = rows["data"][~rows["loss"].isin(common)].unique()
  keys = ["data", "regime", "loss", "readout"]
  means = (
    rows[rows["data"].isin(names)]
    .groupby(keys, sort=False)[list(_SHOWN)]
    .mean()
  )
  lines = [
    (data, regime, _name(Method(loss, readout, regime)), *_digits(values))
    for (data, regime, loss, readout), values in means.iterrows()
  ]
  lines.sort(key=lambda line: line[1] == "long")
  head = ("set", "training", "loss", *(_METRICS[name] for name in _SHOWN))
  return _table(head, lines)


def _digits(values: Iterable[float]) -> list[str]:
  return [f"{value:.4f}" for value in values]


def each_set(rows: pd.DataFrame, sets: pd.DataFrame) -> str:
  """Both losses side by side; first where squentropy lowers the ECE most."""
  parts = []
  sizes = sets[["rows", "features", "classes"]]
  means = _summary.means(rows)
  for regime in dict.fromkeys(rows["regime"]):
    ours = means[Method(plan.SQUENTROPY, "softmax", regime)]
    theirs = means[Method(*claims.BASELINE, regime)].loc[ours.index]
    order = (ours["ece"] - theirs["ece"]).sort_values().index
    lines = []
    for name in order:
      numbers = [
        f"{theirs[metric][name]:.4f}, {ours[metric][name]:.4f}"
        for metric in _SHOWN
      ]
      lines.append((name, *sizes.loc[name], *numbers))
    head = ("set", *sizes.columns, *(_METRICS[name] for name in _SHOWN))
    parts += [f"### {regime.capitalize()} training\n", _table(head, lines)]
  return "\n".join(parts)


def _head(sets: pd.DataFrame) -> str:
  states = ", ".join(f"`{x}`" for x in sorted(sets["source"].unique()))
  return (
    "# Every comparison of the replication\n\n"
    "Made by `make replicate` from results.csv, the rows of "
    f"{len(sets)} data sets. "
    "What it all comes to: [README.md](README.md).\n\n"
    "The difference is the loss minus the other one, each the mean over folds "
    "and seeds: above 0 is better for accuracy and worse for all others. "
    "Brackets: 95 % interval of the mean, a bootstrap (BCa) over data sets; p: "
    "Wilcoxon's signed-rank test. The last column is the rule of "
    "[the plan](plan.md): whether the loss of the line is better than the "
    'other one. "Linear": the square loss read as the probabilities it '
    "estimates. ECE: calibration error; NLL: likelihood loss; AURC: area under "
    "the curve of risk against coverage ([what they mean](../calibration.md))."
    "\n\n"
    f"Digest of the code that made the rows: {states}.\n"
  )


def write(
  docs: pathlib.Path,
  rows: pd.DataFrame,
  curves: pd.DataFrame,
  sets: pd.DataFrame,
) -> None:
  """Writes ``summary.csv``, ``tables.md`` and three figures.

  Args:
    docs: The folder to write to.
    rows: A row per run, as in ``results.csv``.
    curves: As in ``curves.csv``.
    sets: As in ``sets.csv``.
  """
  sets = sets.set_index("data")
  several = claims.on_several(rows)
  compared = claims.compare(several)
  parts = [_head(sets), "## Against cross-entropy\n", comparisons(compared)]
  for readout in ("softmax", "linear"):
    chosen = claims.against(rows, plan.SQUARE, readout)
    compared += chosen
    parts += [
      f"## Squentropy against `{plan.SQUARE}`, read as {readout}\n",
      comparisons(chosen),
    ]
  parts += [
    "## Fitted training rows\n\nFitted: a mean accuracy of "
    f"{claims.FITTED:g} or more on the training rows; below, of squentropy and "
    "of cross-entropy.\n",
    by_fit(several),
    "## Over-confidence\n\nCross-entropy is over-confident on a set if the "
    "median over its runs of the temperature fitted for it is above 1.\n",
    by_confidence(several),
    f"## Squentropy against `{plan.SMOOTHED}` (not in the plan)\n",
    comparisons(claims.against(rows, plan.SMOOTHED)),
    "## Cross-entropy after its temperature against squentropy as it is (not "
    "in the plan)\n",
    _table(
      _COMPARED,
      (
        _line(c, f"`{c.loss}`, {_METRICS[c.metric]}")
        for c in claims.scaled_baseline(rows)
      ),
    ),
    "## Along the training (not in the plan)\n\nOf one and the same run; the "
    "short training ends at 10 %.\n",
    along(curves),
    "## Small sets (not in the plan)\n\nSets under "
    f"{_SMALL} rows train on fewer than three batches of 64 in an epoch, so "
    "that the short training is 60 updates or fewer.\n",
    by_size(several, sets),
    "## With the grid of the rescaled square loss\n",
    alone(rows),
    "## Each data set\n\nCross-entropy first, squentropy second. Features are "
    "counted after categories have become columns.\n",
    each_set(rows, sets),
  ]
  _store.write(docs / "summary.csv", _summary.to_csv(compared))
  _store.write(docs / "tables.md", "\n".join(parts).encode())
  _store.write(docs / "differences.png", _overview.picture(several, "light"))
  _store.write(docs / "by_epoch.png", figures.by_epoch(curves))
  _store.write(docs / "over_confidence.png", figures.by_temperature(rows))
