# SPDX-License-Identifier: Apache-2.0
"""The comparisons of the plan, and its rule for calling a loss better."""

import math

import numpy as np
import pandas as pd

from replication import plan
import squentropy_study as study
from squentropy_study import REFERENCE, Comparison, MethodAtLength

# Mean accuracy on the training rows from which on a data set is fitted.
FITTED = 0.99
# Cross-entropy and its probability map.
CROSS_ENTROPY = (REFERENCE, "softmax")
NOT_SIGNIFICANT = "not significantly different"


def on_several(rows: pd.DataFrame) -> pd.DataFrame:
  """Returns the rows of losses that were trained on several data sets."""
  sets = rows.groupby("loss")["data"].nunique()
  return rows[rows["loss"].isin(sets.index[sets > 1])]


def _spreads(rows: pd.DataFrame) -> dict[MethodAtLength, pd.DataFrame]:
  """Computes the spread over seeds by method: one row per data set.

  The spread is the standard deviation of the accuracy over the seeds of a fold,
  averaged over folds.
  """
  keys = list(MethodAtLength._fields)
  means = study.dataset_means(rows)
  spread = rows.groupby([*keys, "data", "fold"], sort=False)["accuracy"].std()
  table = spread.groupby([*keys, "data"], sort=False).mean().reset_index()
  result = {}
  for names, chosen in table.groupby(keys, sort=False):
    method = MethodAtLength(*names)
    values = chosen.set_index("data")[["accuracy"]]
    # A data set on which a run diverged has no mean, and no spread either.
    diverged = means[method]["accuracy"].isna()
    values[diverged.reindex(values.index)] = np.nan
    result[method] = values
  return result


def compare(
  rows: pd.DataFrame, against: tuple[str, str] = CROSS_ENTROPY
) -> list[Comparison]:
  """Compares every other loss with one, in every measure of the plan."""
  comparisons = study.compare_studies(rows, against)
  spreads = _spreads(rows)
  for method in spreads:
    if method.loss != against[0]:
      pair = study.pair(spreads, method, against)
      ours, theirs = (table["accuracy"].to_numpy() for table in pair)
      comparisons.append(
        study.compare_values(method, "spread", ours, theirs, against)
      )
  return comparisons


def squentropy_against(
  rows: pd.DataFrame, loss: str, probability_map: str = "softmax"
) -> list[Comparison]:
  """Compares squentropy with a loss, on the data sets that have both."""
  chosen = rows[rows["loss"].isin([plan.SQUENTROPY, loss])]
  having = chosen["data"][chosen["loss"] == loss].unique()
  if not having.size:
    return []
  return compare(chosen[chosen["data"].isin(having)], (loss, probability_map))


def scaled_cross_entropy(rows: pd.DataFrame) -> list[Comparison]:
  """Compares temperature-scaled cross-entropy with unscaled squentropy."""
  means = study.dataset_means(rows)
  result = []
  for length in dict.fromkeys(rows["training_length"]):
    theirs = means[MethodAtLength(plan.SQUENTROPY, "softmax", length)]
    ours = means[MethodAtLength(*CROSS_ENTROPY, length)].loc[theirs.index]
    name = f"{REFERENCE}, temperature-scaled"
    method = MethodAtLength(name, "softmax", length)
    for metric in ("ece", "nll"):
      scaled, plain = ours[f"{metric}_scaled"], theirs[metric]
      result.append(
        study.compare_values(
          method,
          metric,
          scaled.to_numpy(),
          plain.to_numpy(),
          (plan.SQUENTROPY, "softmax"),
        )
      )
  return result


def fitted(rows: pd.DataFrame) -> dict[tuple[str, str], set[str]]:
  """Finds the data sets whose training rows a loss fits.

  Args:
    rows: One row per run.

  Returns:
    The names of the data sets, by loss and training length.
  """
  # Another probability map of the same logits is no second training.
  rows = rows[rows["probability_map"] == "softmax"]
  means = rows.groupby(["loss", "training_length", "data"], sort=False)[
    "train_accuracy"
  ].mean()
  return {
    (loss, length): set(each.index.get_level_values("data")[each >= FITTED])
    for (loss, length), each in means.groupby(
      ["loss", "training_length"], sort=False
    )
  }


def _temperatures(rows: pd.DataFrame) -> dict[str, pd.Series]:
  """Median temperature of cross-entropy by data set, for each length."""
  chosen = rows[rows["loss"] == REFERENCE]
  return {
    str(length): each.groupby("data", sort=False)["temperature"].median()
    for length, each in chosen.groupby("training_length", sort=False)
  }


def over_confident(rows: pd.DataFrame, above: float) -> dict[str, set[str]]:
  """Finds the data sets on which cross-entropy is over-confident.

  Args:
    rows: One row per run.
    above: The temperature above which it counts as over-confident.

  Returns:
    The names of the data sets, by training length.
  """
  return {
    length: set(each.index[each > above])
    for length, each in _temperatures(rows).items()
  }


def by_temperature(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
  """Squentropy minus cross-entropy, with the temperature of cross-entropy.

  Args:
    rows: One row per run.

  Returns:
    One row per data set, by training length.
  """
  means = study.dataset_means(rows)
  result = {}
  for length, each in _temperatures(rows).items():
    method = MethodAtLength(plan.SQUENTROPY, "softmax", length)
    change = study.pair(means, method).differences
    result[length] = change.assign(temperature=each.reindex(change.index))
  return result


def decision(comparison: Comparison) -> str:
  """Applies the rule of the plan.

  Args:
    comparison: A loss and another one.

  Returns:
    Whether the loss is ``better``, ``worse`` or ``not significantly
    different``.
  """
  c = comparison
  sign = 1 if c.metric == "accuracy" else -1
  low, high = sorted((sign * c.low, sign * c.high))
  # A comparison of few data sets has neither an interval nor a p-value.
  if not c.p_value < 0.05 or math.isnan(low) or low <= 0 <= high:
    return NOT_SIGNIFICANT
  # A loss that diverged on some data set is not called better.
  if (c.diverged if low > 0 else c.other_diverged) > 0:
    return NOT_SIGNIFICANT
  return "better" if low > 0 else "worse"
