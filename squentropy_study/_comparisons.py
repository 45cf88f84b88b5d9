# SPDX-License-Identifier: Apache-2.0
"""Compares losses over several studies, one data set each."""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from squentropy_study import _evaluation, _result_rows
from squentropy_study._result_rows import REFERENCE
from squentropy_study._study_error import StudyError

# With 5 differences, the least p-value of the signed-rank test is 0.06.
LEAST_SETS = 6
_RESAMPLES = 10_000
# Decimals to which a difference is rounded; all other metrics have 6.
_DECIMALS = {"accuracy": 5}
# A loss diverged where one of these is not finite. Others may have no value
# for another reason, such as a class without a test row.
_FINITE = tuple(
  measure.name
  for measure in _result_rows.MEASURES
  if measure.name.removesuffix("_scaled")
  in (*_evaluation.METRICS, "temperature")
)
# A smaller value of these is not a better one.
_NOT_COMPARED = ("temperature", "post_hoc_improvement")
# 1 where larger is better; -1 for every other metric.
_GAINS = {measure.name: measure.gain for measure in _result_rows.MEASURES}


class MethodAtLength(NamedTuple):
  """A loss, a probability map and a training length."""

  loss: str
  probability_map: str
  training_length: str


class Comparison(NamedTuple):
  """A row of ``summary.csv``: one method compared with another.

  A loss has diverged on a data set if the accuracy, a score or a calibration
  error of any of its runs there is not finite. The other loss is then the
  better one in every metric, and the data set is left out of mean, median,
  interval and test.

  Attributes:
    loss: The loss.
    probability_map: The map from its logits to probabilities.
    training_length: Name of the training length.
    metric: The metric.
    sets: Number of data sets.
    better: Number of data sets on which the mean of this loss is better.
    equal: Number on which both means are equal after rounding to six decimals
      (accuracy: five).
    worse: Number on which the mean of this loss is worse.
    diverged: Number on which this loss diverged.
    other_diverged: Number on which the other loss diverged.
    finite: Number on which neither diverged; the statistics below are of
      these.
    mean: Mean of "this loss minus the other".
    median: Median of "this loss minus the other".
    low: Lower end of the 95 % confidence interval of the mean (BCa bootstrap
      over data sets); NaN for fewer than six or equal differences.
    high: Upper end of the interval.
    p_value: Of the two-sided Wilcoxon signed-rank test; NaN for fewer than
      six differences other than 0, which cannot give a p-value below 0.05.
    against: The other loss.
    against_probability_map: The map from its logits to probabilities.
  """

  loss: str
  probability_map: str
  training_length: str
  metric: str
  sets: int
  better: int
  equal: int
  worse: int
  diverged: int
  other_diverged: int
  finite: int
  mean: float
  median: float
  low: float
  high: float
  p_value: float
  against: str = REFERENCE
  against_probability_map: str = "softmax"


def _check_pairs(rows: pd.DataFrame) -> None:
  """Raises if the losses of a data set have different runs."""
  keys = [*MethodAtLength._fields, "data"]
  runs = rows.groupby(keys, sort=False)[["fold", "seed"]].apply(
    lambda chosen: tuple(sorted(map(tuple, chosen.to_numpy().tolist())))
  )
  by_set = runs.groupby(["data", "training_length"], sort=False)
  for (data, length), each in by_set:
    if each.nunique() > 1 or len(set(each.iloc[0])) < len(each.iloc[0]):
      raise StudyError(
        f"the runs of {data} ({length}) cannot be paired: every loss needs "
        "each fold and seed exactly once; rewrite results.csv with "
        "squentropy-study report"
      )


def dataset_means(rows: pd.DataFrame) -> dict[MethodAtLength, pd.DataFrame]:
  """Averages the metrics over the runs of each data set.

  Args:
    rows: Rows of ``results.csv`` of several studies.

  Returns:
    For each method a table with a row per data set and a column per metric.
    The row of a data set on which the loss diverged is NaN.

  Raises:
    StudyError: The losses of a data set have different runs.
  """
  _check_pairs(rows)
  lacking = sorted(set(_FINITE) - set(rows.columns))
  if lacking:
    raise StudyError(
      f"the results have no column {lacking[0]}; rewrite results.csv with "
      "squentropy-study report"
    )
  # A later version of the study may have more metrics.
  columns = [x.name for x in _result_rows.MEASURES if x.name in rows.columns]
  result = {}
  for method, chosen in rows.groupby(list(MethodAtLength._fields), sort=False):
    finite = np.isfinite(chosen[list(_FINITE)]).all(axis=1)
    diverged = chosen["data"][~finite].unique()
    mean = chosen.groupby("data", sort=False)[columns].mean()
    mean.loc[mean.index.isin(diverged)] = np.nan
    result[MethodAtLength(*method)] = mean
  return result


def rounded(values: np.ndarray, metric: str) -> np.ndarray:
  """Rounds values, because the order of a sum changes their last digits."""
  return np.round(values, _DECIMALS.get(metric, 6))


def larger_is_better(metric: str) -> bool:
  """Returns whether a larger value of a metric is the better one."""
  return _GAINS.get(metric, -1) > 0


def _interval(differences: np.ndarray) -> tuple[float, float]:
  """Returns the interval of the mean; NaN where there is no variation."""
  if differences.size < LEAST_SETS or np.ptp(differences) == 0:
    return (math.nan, math.nan)
  # Sorted, so that the result does not depend on the order of the data sets.
  ends = stats.bootstrap(
    (np.sort(differences),),
    np.mean,
    n_resamples=_RESAMPLES,
    method="BCa",
    rng=np.random.default_rng(0),
  ).confidence_interval
  return float(ends.low), float(ends.high)


class Pairs(NamedTuple):
  """Two methods on the same data sets, a row each.

  Attributes:
    ours: Means over runs, NaN where the loss diverged.
    theirs: The means of the other method.
  """

  ours: pd.DataFrame
  theirs: pd.DataFrame

  @property
  def differences(self) -> pd.DataFrame:
    """Ours minus theirs, where both are finite."""
    return (self.ours - self.theirs).dropna(how="all")


def pair(
  table: dict[MethodAtLength, pd.DataFrame],
  method: MethodAtLength,
  against: tuple[str, str] = (REFERENCE, "softmax"),
) -> Pairs:
  """Pairs a method with another one of the same training length.

  Args:
    table: As returned by :func:`dataset_means`.
    method: The method.
    against: Loss and probability map of the other method.

  Returns:
    Both methods on the data sets of the first.

  Raises:
    StudyError: The other method is missing, at all or on a data set.
  """
  other = MethodAtLength(*against, method.training_length)
  if other not in table:
    raise StudyError(
      f"no study has {other.loss}, the loss to compare with; add it with "
      "--losses"
    )
  lacking = table[method].index.difference(table[other].index)
  if lacking.size:
    raise StudyError(
      f"{lacking[0]} has {method.loss} but not {other.loss}, the loss to "
      "compare with; add it with --losses"
    )
  return Pairs(table[method], table[other].loc[table[method].index])


def compare_values(
  method: MethodAtLength,
  metric: str,
  ours: np.ndarray,
  theirs: np.ndarray,
  against: tuple[str, str] = (REFERENCE, "softmax"),
) -> Comparison:
  """Compares two methods in one metric.

  Args:
    method: The method.
    metric: The metric; smaller is better unless it is a metric of the study of
      which larger is better, such as ``accuracy``.
    ours: One value per data set; NaN where the loss diverged.
    theirs: The values of the other method on the same data sets.
    against: Loss and probability map of the other method.

  Returns:
    The comparison.
  """
  gone, other_gone = np.isnan(ours), np.isnan(theirs)
  values = rounded((ours - theirs)[~gone & ~other_gone], metric)
  gains = values if larger_is_better(metric) else -values
  low, high = _interval(values)
  testable = np.count_nonzero(values) >= LEAST_SETS
  return Comparison(
    *method,
    metric=metric,
    sets=ours.size,
    better=int((gains > 0).sum() + (other_gone & ~gone).sum()),
    equal=int((gains == 0).sum() + (other_gone & gone).sum()),
    worse=int((gains < 0).sum() + (gone & ~other_gone).sum()),
    diverged=int(gone.sum()),
    other_diverged=int(other_gone.sum()),
    finite=values.size,
    mean=float(values.mean()) if values.size else math.nan,
    median=float(np.median(values)) if values.size else math.nan,
    low=low,
    high=high,
    p_value=float(stats.wilcoxon(values).pvalue) if testable else math.nan,
    against=against[0],
    against_probability_map=against[1],
  )


def compare_studies(
  rows: pd.DataFrame, against: tuple[str, str] = (REFERENCE, "softmax")
) -> list[Comparison]:
  """Compares every loss with one, at every training length, in every metric.

  Args:
    rows: As returned by :func:`squentropy_study.read_results`.
    against: Loss and probability map to compare with.

  Returns:
    The comparisons.

  Raises:
    StudyError: The loss to compare with is missing, at all or on a data set,
      or is the only one, or the losses of a data set have different runs.
  """
  table = dataset_means(rows)
  metrics = [
    measure.name
    for measure in _result_rows.MEASURES
    if measure.name in rows.columns and measure.name not in _NOT_COMPARED
  ]
  comparisons = []
  for method in table:
    if method.loss != against[0]:
      ours, theirs = pair(table, method, against)
      for name in metrics:
        values = (ours[name].to_numpy(), theirs[name].to_numpy())
        if name not in _FINITE:
          defined = ~np.isnan(values).all(axis=0)
          if not defined.any():
            continue
          values = (values[0][defined], values[1][defined])
        comparisons.append(compare_values(method, name, *values, against))
  if not comparisons:
    raise StudyError(
      f"the studies have no loss except {against[0]}, so there is nothing to "
      "compare; add another one with --losses"
    )
  return comparisons


def comparisons_csv(comparisons: Sequence[Comparison]) -> bytes:
  """Returns the content of ``summary.csv``."""
  frame = pd.DataFrame(comparisons, columns=Comparison._fields)
  return frame.to_csv(index=False, float_format="%.6g").encode()
