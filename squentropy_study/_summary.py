# SPDX-License-Identifier: Apache-2.0
"""Several studies together: wins, ties and losses over data sets."""

from collections.abc import Sequence
import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from squentropy_study import _results, _store
from squentropy_study._errors import StudyError

BASELINE = "cross_entropy"
_RESAMPLES = 10_000
# What a difference is rounded to before it is called one; others: 6.
_DECIMALS = {"accuracy": 5}


class Method(NamedTuple):
  """A loss, how its logits are read, and the training length."""

  loss: str
  readout: str
  regime: str


class Comparison(NamedTuple):
  """A row of ``summary.csv``: a method against another over data sets.

  A loss has diverged on a data set if any number of any of its runs there is
  not finite. Such a set is a win of the other loss in every metric, and takes
  no part in mean, median, interval and test.

  Attributes:
    loss: The loss.
    readout: How probabilities are read from its logits.
    regime: The training length.
    metric: What is compared.
    sets: How many data sets.
    wins: Data sets on which its mean over runs is the better one.
    ties: Data sets on which both are equal, rounded as in :data:`_DECIMALS`.
    losses: Data sets on which its mean is the worse one.
    diverged: Data sets on which this loss diverged.
    other_diverged: Data sets on which the other one did.
    finite: Data sets on which neither did; what follows is over these.
    mean: Mean of "this minus the other".
    median: Median of the same.
    low: Lower end of the mean's 95 % interval, a bootstrap (BCa) over data
      sets; NaN where there are fewer than three, or all differ alike.
    high: Upper end.
    p_value: Of Wilcoxon's signed-rank test, two-sided.
    against: The other loss.
    against_readout: How its logits are read.
  """

  loss: str
  readout: str
  regime: str
  metric: str
  sets: int
  wins: int
  ties: int
  losses: int
  diverged: int
  other_diverged: int
  finite: int
  mean: float
  median: float
  low: float
  high: float
  p_value: float
  against: str = BASELINE
  against_readout: str = "softmax"


def _table(folder: Path) -> pd.DataFrame:
  """The rows of ``results.csv`` of a finished study."""
  path = folder / "results.csv"
  if not path.exists():
    raise StudyError(
      f"{folder} holds no finished study; make one with squentropy-study run"
    )
  try:
    table = pd.read_csv(path)
  except (pd.errors.EmptyDataError, pd.errors.ParserError):
    table = pd.DataFrame()
  missing = set(_results.Row._fields) - set(table.columns)
  if missing or table.empty:
    raise StudyError(
      f"{path} is no table of results (no {min(missing or ['row'])}); write "
      f"it anew with: squentropy-study report {folder}"
    )
  return table


def read(folders: Sequence[Path]) -> pd.DataFrame:
  """The rows of ``results.csv`` of several studies.

  Raises:
    StudyError: A folder holds no finished study, or two hold the same data, or
      differ in a setting other than the data.
  """
  tables: dict[str, pd.DataFrame] = {}
  digests: set[str] = set()
  first: dict[str, Any] = {}
  for folder in folders:
    table, config = _table(folder), _store.read_config(folder)
    if config is None:
      raise StudyError(f"{folder} holds no study: its config.json is missing")
    settings = dataclasses.asdict(_store.read_settings(folder, config))
    settings.pop("label")
    data = settings.pop("data")
    digest = config.get("data_sha256") or data
    if data in tables or digest in digests:
      raise StudyError(f"{folder} has the data {data} a second time")
    first = first or settings
    for key, theirs in first.items():
      ours = settings[key]
      if ours != theirs:
        raise StudyError(
          f"{folder} differs from {folders[0]} in {key} ({ours}, there "
          f"{theirs}); compare studies that differ in their data alone"
        )
    tables[data] = table
    digests.add(digest)
  return pd.concat(tables.values(), ignore_index=True)


def _check_pairs(rows: pd.DataFrame) -> None:
  """Refuses losses of one data set that were not run alike."""
  keys = [*Method._fields, "data"]
  runs = rows.groupby(keys, sort=False)[["fold", "seed"]].apply(
    lambda chosen: tuple(sorted(map(tuple, chosen.to_numpy().tolist())))
  )
  for (data, regime), each in runs.groupby(["data", "regime"], sort=False):
    if each.nunique() > 1 or len(set(each.iloc[0])) < len(each.iloc[0]):
      raise StudyError(
        f"the runs of {data} ({regime}) cannot be paired: every loss needs "
        "each fold and seed once"
      )


def means(rows: pd.DataFrame) -> dict[Method, pd.DataFrame]:
  """Means over runs by method: a row per data set, a column per metric.

  The row of a data set on which the loss diverged is NaN.
  """
  _check_pairs(rows)
  columns = [column.name for column in _results.COLUMNS]
  result = {}
  for method, chosen in rows.groupby(list(Method._fields), sort=False):
    finite = np.isfinite(chosen[columns]).all(axis=1)
    diverged = chosen["data"][~finite].unique()
    mean = chosen.groupby("data", sort=False)[columns].mean()
    mean.loc[mean.index.isin(diverged)] = np.nan
    result[Method(*method)] = mean
  return result


def _interval(differences: np.ndarray) -> tuple[float, float]:
  """Of the mean; NaN where there is nothing to resample."""
  if differences.size < 3 or np.ptp(differences) == 0:
    return (math.nan, math.nan)
  # Sorted, so that the order of the data sets plays no part.
  ends = stats.bootstrap(
    (np.sort(differences),),
    np.mean,
    n_resamples=_RESAMPLES,
    method="BCa",
    rng=np.random.default_rng(0),
  ).confidence_interval
  return float(ends.low), float(ends.high)


class Pairs(NamedTuple):
  """Two methods on the data sets of the first, a row each.

  Attributes:
    ours: Means over runs, NaN where the loss diverged.
    theirs: The same of the other method.
  """

  ours: pd.DataFrame
  theirs: pd.DataFrame

  @property
  def differences(self) -> pd.DataFrame:
    """Ours minus theirs, where both are finite."""
    return (self.ours - self.theirs).dropna()


def pairs(
  table: dict[Method, pd.DataFrame],
  method: Method,
  against: tuple[str, str] = (BASELINE, "softmax"),
) -> Pairs:
  """A method beside another at the same training length.

  Raises:
    StudyError: The other one is missing, everywhere or on a data set.
  """
  other = Method(*against, method.regime)
  if other not in table:
    raise StudyError(f"no study has {other.loss}, which is compared against")
  lacking = table[method].index.difference(table[other].index)
  if lacking.size:
    raise StudyError(
      f"{lacking[0]} has {method.loss} but not {other.loss}, which it is "
      "compared against"
    )
  return Pairs(table[method], table[other].loc[table[method].index])


def comparison(
  method: Method,
  metric: str,
  ours: np.ndarray,
  theirs: np.ndarray,
  against: tuple[str, str] = (BASELINE, "softmax"),
) -> Comparison:
  """What two methods, a number per data set each, say of a metric."""
  no, nor = np.isnan(ours), np.isnan(theirs)
  # Sums in another order differ in the last digits, which is no difference.
  values = np.round((ours - theirs)[~no & ~nor], _DECIMALS.get(metric, 6))
  # All but the accuracy are better when they are small.
  better = values if metric == "accuracy" else -values
  low, high = _interval(values)
  differs = np.any(values != 0)
  return Comparison(
    *method,
    metric=metric,
    sets=ours.size,
    wins=int((better > 0).sum() + (nor & ~no).sum()),
    ties=int((better == 0).sum() + (nor & no).sum()),
    losses=int((better < 0).sum() + (no & ~nor).sum()),
    diverged=int(no.sum()),
    other_diverged=int(nor.sum()),
    finite=values.size,
    mean=float(values.mean()) if values.size else math.nan,
    median=float(np.median(values)) if values.size else math.nan,
    low=low,
    high=high,
    p_value=float(stats.wilcoxon(values).pvalue) if differs else 1.0,
    against=against[0],
    against_readout=against[1],
  )


def compare(
  rows: pd.DataFrame, against: tuple[str, str] = (BASELINE, "softmax")
) -> list[Comparison]:
  """Every other loss against one, at every length, in every metric.

  Args:
    rows: Of :func:`read`.
    against: Loss and readout to compare with.

  Returns:
    The comparisons.

  Raises:
    StudyError: That loss is missing, everywhere or on a data set, or is alone,
      or the runs of two losses cannot be paired.
  """
  table = means(rows)
  metrics = [c.name for c in _results.COLUMNS if c.name != "temperature"]
  comparisons = []
  for method in table:
    if method.loss != against[0]:
      ours, theirs = pairs(table, method, against)
      comparisons += [
        comparison(
          method, name, ours[name].to_numpy(), theirs[name].to_numpy(), against
        )
        for name in metrics
      ]
  if not comparisons:
    raise StudyError(
      f"only {against[0]} was run, which leaves nothing to compare it with"
    )
  return comparisons


def to_csv(comparisons: Sequence[Comparison]) -> bytes:
  """The text of ``summary.csv``."""
  frame = pd.DataFrame(comparisons, columns=Comparison._fields)
  return frame.to_csv(index=False, float_format="%.6g").encode()
