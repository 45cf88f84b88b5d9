# SPDX-License-Identifier: Apache-2.0
"""The comparisons of the plan and the rule by which a claim holds."""

import math

import numpy as np
import pandas as pd

from replication import plan
from squentropy_study import _summary
from squentropy_study._summary import Comparison, Method

# A set is fitted from this mean accuracy on the training rows on.
FITTED = 0.99
BASELINE = (_summary.BASELINE, "softmax")


def on_several(rows: pd.DataFrame) -> pd.DataFrame:
  """The rows of losses that were trained on more than one data set."""
  sets = rows.groupby("loss")["data"].nunique()
  return rows[rows["loss"].isin(sets.index[sets > 1])]


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
  rows: pd.DataFrame, against: tuple[str, str] = BASELINE
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


def against(
  rows: pd.DataFrame, loss: str, readout: str = "softmax"
) -> list[Comparison]:
  """Squentropy against another loss, on the sets that have both."""
  chosen = rows[rows["loss"].isin([plan.SQUENTROPY, loss])]
  having = chosen["data"][chosen["loss"] == loss].unique()
  if not having.size:
    return []
  return compare(chosen[chosen["data"].isin(having)], (loss, readout))


def scaled_baseline(rows: pd.DataFrame) -> list[Comparison]:
  """The baseline after its temperature against squentropy as it is."""
  means = _summary.means(rows)
  result = []
  for regime in dict.fromkeys(rows["regime"]):
    theirs = means[Method(plan.SQUENTROPY, "softmax", regime)]
    ours = means[Method(*BASELINE, regime)].loc[theirs.index]
    method = Method(f"{_summary.BASELINE}, scaled", "softmax", regime)
    for metric in ("ece", "nll"):
      scaled, plain = ours[f"{metric}_scaled"], theirs[metric]
      result.append(
        _summary.comparison(
          method,
          metric,
          scaled.to_numpy(),
          plain.to_numpy(),
          (plan.SQUENTROPY, "softmax"),
        )
      )
  return result


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


def _temperatures(rows: pd.DataFrame) -> dict[str, pd.Series]:
  """Fitted for the baseline, the median of its runs, by length and data set."""
  chosen = rows[rows["loss"] == _summary.BASELINE]
  return {
    str(regime): each.groupby("data", sort=False)["temperature"].median()
    for regime, each in chosen.groupby("regime", sort=False)
  }


def over_confident(rows: pd.DataFrame, above: float) -> dict[str, set[str]]:
  """Data sets with a temperature of the baseline above one, by length."""
  return {
    regime: set(each.index[each > above])
    for regime, each in _temperatures(rows).items()
  }


def by_temperature(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
  """Squentropy's differences beside the baseline's temperature, by length."""
  means = _summary.means(rows)
  result = {}
  for regime, each in _temperatures(rows).items():
    method = Method(plan.SQUENTROPY, "softmax", regime)
    change = _summary.pairs(means, method).differences
    result[regime] = change.assign(temperature=each.reindex(change.index))
  return result


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
