# SPDX-License-Identifier: Apache-2.0
"""Ranks the losses over several data sets."""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from squentropy_study import _comparisons
from squentropy_study._comparisons import LEAST_SETS, MethodAtLength
from squentropy_study._study_error import StudyError


class AverageRanks(NamedTuple):
  """The losses in the order of their average rank, in one metric.

  On each data set the best loss has rank 1, and equal losses share their mean
  rank. A loss that diverged has the last rank.

  Attributes:
    metric: The metric.
    training_length: Name of the training length.
    sets: Number of data sets.
    losses: The losses, from the best average rank to the worst.
    ranks: ``[losses]``, average ranks over the data sets.
    win_rates: ``[losses]``, the share of data sets and other losses on which
      the loss is better; equal ones count one half.
    best: ``[losses]``, the number of data sets on which no loss is better.
    beats: ``[losses, losses]``, the share of data sets on which the loss of
      the row is better than the loss of the column, equal ones one half.
    p_value: Of the Friedman test that all losses have the same rank; NaN for
      fewer than three losses or six data sets.
    critical_difference: Of the Nemenyi test at 5 %: two losses are
      significantly different if their average ranks differ by as much. NaN
      where there is no test.
  """

  metric: str
  training_length: str
  sets: int
  losses: tuple[str, ...]
  ranks: np.ndarray
  win_rates: np.ndarray
  best: np.ndarray
  beats: np.ndarray
  p_value: float
  critical_difference: float


def main_methods(
  table: dict[MethodAtLength, pd.DataFrame], length: str
) -> list[MethodAtLength]:
  """Returns one method per loss: the first of its probability maps."""
  first: dict[str, MethodAtLength] = {}
  for method in table:
    if method.training_length == length:
      first.setdefault(method.loss, method)
  return list(first.values())


def _values(
  table: dict[MethodAtLength, pd.DataFrame],
  methods: Sequence[MethodAtLength],
  metric: str,
) -> np.ndarray:
  """Returns ``[data sets, losses]``, smaller is better, inf if diverged."""
  columns = pd.concat([table[m][metric] for m in methods], axis=1, sort=False)
  for method, column in zip(methods, columns.T.to_numpy(), strict=True):
    if len(table[method]) < len(column):
      raise StudyError(
        f"{method.loss} is missing on some data sets, so that the losses "
        "cannot be ranked; add it with --losses"
      )
  values = _comparisons.rounded(columns.to_numpy(), metric)
  if _comparisons.larger_is_better(metric):
    values = -values
  return np.where(np.isnan(values), math.inf, values)


def _critical_difference(losses: int, sets: int) -> float:
  """Returns the critical difference of the Nemenyi test at 5 %."""
  quantile = stats.studentized_range.ppf(0.95, losses, math.inf)
  return float(quantile * math.sqrt(losses * (losses + 1) / (12 * sets)))


def rank(
  table: dict[MethodAtLength, pd.DataFrame], length: str, metric: str
) -> AverageRanks:
  """Ranks the losses in one metric at one training length.

  Args:
    table: As returned by :func:`squentropy_study.dataset_means`.
    length: Name of the training length.
    metric: The metric.

  Returns:
    The ranking.

  Raises:
    StudyError: A loss is missing on some data sets.
  """
  methods = main_methods(table, length)
  values = _values(table, methods, metric)
  sets, count = values.shape
  ranks = stats.rankdata(values, axis=1)
  average = ranks.mean(axis=0)
  better = values[:, :, None] < values[:, None, :]
  equal = values[:, :, None] == values[:, None, :]
  beats = (better + 0.5 * equal).mean(axis=0)
  order = np.argsort(average, kind="stable")
  testable = count > 2 and sets >= LEAST_SETS
  # Without any difference the statistic is 0 / 0.
  differs = bool((ranks != ranks[:, :1]).any())
  p_value = math.nan if not testable else 1.0
  if testable and differs:
    p_value = float(stats.friedmanchisquare(*ranks.T).pvalue)
  return AverageRanks(
    metric,
    length,
    sets,
    tuple(methods[index].loss for index in order),
    average[order],
    (count - average[order]) / max(count - 1, 1),
    (values == values.min(axis=1, keepdims=True)).sum(axis=0)[order],
    beats[np.ix_(order, order)],
    p_value,
    _critical_difference(count, sets) if testable else math.nan,
  )


def rankings_csv(rankings: Sequence[AverageRanks]) -> bytes:
  """Returns the content of ``ranks.csv``: a row per ranking and loss."""
  frame = pd.DataFrame(
    [
      (r.training_length, r.metric, r.sets, *line)
      for r in rankings
      for line in zip(r.losses, r.ranks, r.win_rates, r.best, strict=True)
    ],
    columns=[
      "training_length",
      "metric",
      "sets",
      "loss",
      "average_rank",
      "win_rate",
      "best",
    ],
  )
  return frame.to_csv(index=False, float_format="%.6g").encode()
