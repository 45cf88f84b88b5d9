# SPDX-License-Identifier: Apache-2.0
"""The comparisons of the plan, and its rule for useful and harmful losses."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from replication.language_model import grid

# Differences in the NLL up to this one are ties.
TIE = 0.01


class Interval(NamedTuple):
  """A mean over seeds with the 95 % interval of Student's t."""

  mean: float
  low: float
  high: float


class Comparison(NamedTuple):
  """A loss and the one that it is compared with.

  Attributes:
    loss: The loss.
    against: The other one.
    seeds: The number of seeds with all learning rates of both losses.
    sensitivity: The difference in the learning-rate sensitivity.
    nll: The difference in the NLL at the best learning rate.
    diverged: At how many rates and seeds only the loss diverged.
    verdict: The rule of the plan.
  """

  loss: str
  against: str
  seeds: int
  sensitivity: Interval
  nll: Interval
  diverged: int
  verdict: str


def by_seed(rows: pd.DataFrame) -> pd.DataFrame:
  """Computes best NLL, sensitivity and regret of each loss and seed.

  Args:
    rows: One row per run. Rows of the large vocabulary are ignored.

  Returns:
    A table with the columns ``best_rate``, ``best_nll``, ``sensitivity``,
    ``regret`` and ``diverged``, by loss and seed, in the order of the plan.
    Losses that lack a learning rate of a seed are left out there. The regret is
    NaN if cross-entropy is left out.
  """
  found = {}
  rows = rows[rows["vocab"] == grid.VOCAB]
  for (loss, seed), each in rows.groupby(["loss", "seed"]):
    if set(each["learning_rate"]) != set(grid.RATES):
      continue
    finite = each["nll"].where(np.isfinite(each["nll"]), np.inf)
    bounded = np.minimum(finite, each["initial_nll"])
    best = int(np.argmin(bounded))
    least = float(bounded.iloc[best])
    found[loss, seed] = {
      "best_rate": float(each["learning_rate"].iloc[best]),
      "best_nll": least,
      "sensitivity": float(bounded.mean()) - least,
      "mean_nll": float(bounded.mean()),
      "diverged": int(each["diverged"].sum()),
    }
  names = ["best_rate", "best_nll", "sensitivity", "mean_nll", "diverged"]
  index = pd.MultiIndex.from_tuples(
    sorted(found, key=lambda key: (list(grid.LOSSES).index(key[0]), key[1])),
    names=["loss", "seed"],
  )
  table = pd.DataFrame([found[key] for key in index], index, columns=names)
  reference = {
    seed: values["best_nll"]
    for (loss, seed), values in found.items()
    if loss == grid.CROSS_ENTROPY
  }
  least = table.index.get_level_values("seed").map(reference)
  return table.assign(regret=table["mean_nll"] - least).drop(columns="mean_nll")


def interval(values: np.ndarray) -> Interval:
  """Computes the mean over seeds and its 95 % interval.

  Args:
    values: One number per seed. The interval of fewer than two is NaN.
  """
  mean = float(np.mean(values)) if values.size else np.nan
  if values.size < 2:
    return Interval(mean, np.nan, np.nan)
  error = np.std(values, ddof=1) / np.sqrt(values.size)
  half = float(stats.t.ppf(0.975, values.size - 1) * error)
  return Interval(mean, mean - half, mean + half)


def verdict(sensitivity: Interval, nll: Interval, diverged: int) -> str:
  """Applies the rule of the plan.

  Args:
    sensitivity: The difference in the learning-rate sensitivity.
    nll: The difference in the NLL at the best learning rate.
    diverged: At how many rates and seeds only the loss diverged.
  """
  if np.isnan(sensitivity.low):
    return "undecided"
  if diverged or sensitivity.low > 0 or (nll.low > 0 and nll.mean > TIE):
    return "harmful"
  if sensitivity.high < 0 and nll.mean <= TIE:
    return "useful"
  if nll.high < 0 and nll.mean < -TIE:
    return "useful"
  return "useless"


def _diverged_more(rows: pd.DataFrame, loss: str, against: str) -> int:
  rows = rows[rows["vocab"] == grid.VOCAB]
  table = rows.pivot_table(
    index=["seed", "learning_rate"],
    columns="loss",
    values="diverged",
    aggfunc="max",
  )
  # A run that is missing in one of the two is not compared.
  pair = table[[loss, against]].dropna().astype(bool)
  return int((pair[loss] & ~pair[against]).sum())


def compare(rows: pd.DataFrame, against: str) -> list[Comparison]:
  """Compares all other losses with one, or the square terms with the z-loss.

  Args:
    rows: One row per run.
    against: The loss to compare with.

  Returns:
    The comparisons, in the order of the plan.
  """
  table = by_seed(rows)
  trained = set(table.index.get_level_values("loss"))
  if against not in trained:
    return []
  theirs = table.loc[against]
  compared = []
  for loss, scales in grid.LOSSES.items():
    wanted = against == grid.CROSS_ENTROPY or scales.square
    if loss == against or loss not in trained or not wanted:
      continue
    ours = table.loc[loss]
    seeds = ours.index.intersection(theirs.index)
    change = ours.loc[seeds] - theirs.loc[seeds]
    sensitivity = interval(change["sensitivity"].to_numpy())
    nll = interval(change["best_nll"].to_numpy())
    diverged = _diverged_more(rows, loss, against)
    compared.append(
      Comparison(
        loss,
        against,
        len(seeds),
        sensitivity,
        nll,
        diverged,
        verdict(sensitivity, nll, diverged),
      )
    )
  return compared
