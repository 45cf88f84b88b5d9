# SPDX-License-Identifier: Apache-2.0
"""Several studies together: wins, ties and losses over data sets."""

from collections.abc import Sequence
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from squentropy_jax.study import _results
from squentropy_jax.study._errors import StudyError

BASELINE = "cross_entropy"
_RESAMPLES = 10_000


class Method(NamedTuple):
  """A loss, how its logits are read, and the training length."""

  loss: str
  readout: str
  regime: str


class Comparison(NamedTuple):
  """A row of ``summary.csv``: a method against the baseline over data sets.

  Attributes:
    loss: The loss.
    readout: How probabilities are read from its logits.
    regime: The training length.
    metric: What is compared.
    sets: How many data sets.
    wins: Data sets on which its mean over runs is the better one.
    ties: Data sets on which both are equal.
    losses: Data sets on which its mean is the worse one.
    mean: Mean over data sets of "this minus the baseline".
    low: Lower end of its 95 % interval, a bootstrap (BCa) over data sets.
    high: Upper end.
    p_value: Of Wilcoxon's signed-rank test, two-sided.
  """

  loss: str
  readout: str
  regime: str
  metric: str
  sets: int
  wins: int
  ties: int
  losses: int
  mean: float
  low: float
  high: float
  p_value: float


def read(folders: Sequence[Path]) -> pd.DataFrame:
  """The rows of ``results.csv`` of several studies.

  Raises:
    StudyError: A folder holds no finished study, or two hold the same data.
  """
  tables: dict[str, pd.DataFrame] = {}
  for folder in folders:
    path = folder / "results.csv"
    if not path.exists():
      raise StudyError(
        f"{folder} holds no finished study; make one with squentropy-study run"
      )
    table = pd.read_csv(path)
    missing = set(_results.Row._fields) - set(table.columns)
    if missing or table.empty:
      raise StudyError(
        f"{path} is no table of results (no {min(missing or ['row'])}); write "
        f"it anew with: squentropy-study report {folder}"
      )
    data = table["data"].iloc[0]
    if data in tables:
      raise StudyError(f"{folder} has the data {data} a second time")
    tables[data] = table
  return pd.concat(tables.values(), ignore_index=True)


def means(rows: pd.DataFrame) -> dict[Method, pd.DataFrame]:
  """Means over runs by method: a row per data set, a column per metric."""
  columns = [column.name for column in _results.COLUMNS]
  return {
    Method(*method): chosen.groupby("data", sort=False)[columns].mean()
    for method, chosen in rows.groupby(list(Method._fields), sort=False)
  }


def _interval(differences: np.ndarray) -> tuple[float, float]:
  """Of the mean; NaN where there is nothing to resample."""
  if np.ptp(differences) == 0:
    return (math.nan, math.nan)
  ends = stats.bootstrap(
    (differences,),
    np.mean,
    n_resamples=_RESAMPLES,
    method="BCa",
    rng=np.random.default_rng(0),
  ).confidence_interval
  return float(ends.low), float(ends.high)


def differences(
  table: dict[Method, pd.DataFrame], method: Method
) -> pd.DataFrame:
  """A method minus the baseline at its length, a row per data set of both."""
  baseline = Method(BASELINE, "softmax", method.regime)
  if baseline not in table:
    raise StudyError(f"no study has {BASELINE}, which is compared against")
  return (table[method] - table[baseline]).dropna(how="all")


def comparison(method: Method, metric: str, values: np.ndarray) -> Comparison:
  """What differences to the baseline, one per data set, say of a metric."""
  # All but the accuracy are better when they are small.
  better = values if metric == "accuracy" else -values
  differs = np.any(values != 0)
  low, high = _interval(values)
  return Comparison(
    *method,
    metric=metric,
    sets=len(values),
    wins=int((better > 0).sum()),
    ties=int((better == 0).sum()),
    losses=int((better < 0).sum()),
    mean=float(values.mean()),
    low=low,
    high=high,
    p_value=float(stats.wilcoxon(values).pvalue) if differs else 1.0,
  )


def compare(rows: pd.DataFrame) -> list[Comparison]:
  """Every method against cross-entropy, at every length, in every metric.

  Args:
    rows: Of :func:`read`.

  Returns:
    The comparisons.

  Raises:
    StudyError: Cross-entropy is missing.
  """
  table = means(rows)
  metrics = [c.name for c in _results.COLUMNS if c.name != "temperature"]
  comparisons = []
  for method in table:
    if method.loss != BASELINE:
      difference = differences(table, method)
      comparisons += [
        comparison(method, metric, difference[metric].to_numpy())
        for metric in metrics
      ]
  return comparisons


def to_csv(comparisons: Sequence[Comparison]) -> bytes:
  """The text of ``summary.csv``."""
  frame = pd.DataFrame(comparisons, columns=Comparison._fields)
  return frame.to_csv(index=False, float_format="%.6g").encode()
