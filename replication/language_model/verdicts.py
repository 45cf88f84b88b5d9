# SPDX-License-Identifier: Apache-2.0
"""Compares losses, with the plan's rule for useful and harmful losses."""

from collections.abc import Sequence
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


def shared_seeds(rows: pd.DataFrame) -> pd.DataFrame:
  """Selects the seeds at which every loss has every learning rate.

  Means of two losses over different seeds cannot be compared.

  Args:
    rows: One row per run, all with the same number of classes.

  Returns:
    The rows of these seeds, or all rows if there is no such seed.
  """
  counts = rows.groupby("seed").size()
  full = counts.index[counts == len(grid.LOSSES) * len(grid.RATES)]
  return rows[rows["seed"].isin(full)] if len(full) else rows


def by_seed(
  rows: pd.DataFrame, rates: Sequence[float] = grid.RATES
) -> pd.DataFrame:
  """Computes best NLL, sensitivity and regret of each loss and seed.

  Args:
    rows: One row per run. Rows of the large vocabulary are ignored.
    rates: The learning rates to use. The others are ignored.

  Returns:
    A table with the columns ``best_rate``, ``best_nll``, ``sensitivity``,
    ``regret`` and ``diverged``, by loss and seed, in the order of the plan.
    Losses that lack a learning rate of a seed are left out there. The regret is
    NaN if cross-entropy is left out.
  """
  found = {}
  rows = rows[rows["vocab"] == grid.VOCAB]
  rows = rows[rows["learning_rate"].isin(rates)]
  for (loss, seed), each in rows.groupby(["loss", "seed"]):
    if set(each["learning_rate"]) != set(rates):
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


def differences(
  rows: pd.DataFrame, against: str, rates: Sequence[float] = grid.RATES
) -> pd.DataFrame:
  """Computes each loss minus another one, within each seed that both have.

  Args:
    rows: One row per run.
    against: The loss to compare with.
    rates: The learning rates to use.

  Returns:
    A table with the columns ``sensitivity`` and ``best_nll``, by loss and seed,
    in the order of the plan.
  """
  table = by_seed(rows, rates)[["sensitivity", "best_nll"]]
  theirs = table[table.index.get_level_values("loss") == against]
  change = table - theirs.droplevel("loss").reindex(table.index, level="seed")
  return change.drop(index=theirs.index).dropna()


def compare(
  rows: pd.DataFrame, against: str, rates: Sequence[float] = grid.RATES
) -> list[Comparison]:
  """Compares all other losses with one, or the square terms with the z-loss.

  Args:
    rows: One row per run.
    against: The loss to compare with.
    rates: The learning rates to use.

  Returns:
    The comparisons, in the order of the plan.
  """
  rows = rows[rows["learning_rate"].isin(rates)]
  compared = []
  for loss, each in differences(rows, against, rates).groupby(
    "loss", sort=False
  ):
    if against != grid.CROSS_ENTROPY and not grid.LOSSES[loss].square:
      continue
    sensitivity = interval(each["sensitivity"].to_numpy())
    nll = interval(each["best_nll"].to_numpy())
    diverged = _diverged_more(rows, loss, against)
    compared.append(
      Comparison(
        loss,
        against,
        len(each),
        sensitivity,
        nll,
        diverged,
        verdict(sensitivity, nll, diverged),
      )
    )
  return compared


def advice(
  table: pd.DataFrame,
  against_cross_entropy: Sequence[Comparison],
  against_z_loss: Sequence[Comparison],
) -> str:
  """Applies the plan's rule for the advice.

  Args:
    table: The result of :func:`by_seed`.
    against_cross_entropy: The comparisons with cross-entropy.
    against_z_loss: The comparisons of the square terms with the z-loss.

  Returns:
    A sentence.
  """
  useful = [
    found.loss
    for found in against_cross_entropy
    if found.verdict == "useful" and grid.LOSSES[found.loss].square
  ]
  if not useful:
    return "do not use the square term, because no scale is useful."
  best = table["regret"].groupby("loss").mean()[useful].idxmin()
  text = f"use the square term of scale {grid.LOSSES[best].square:g}"
  better = {x.loss for x in against_z_loss if x.verdict == "useful"}
  return text + (" instead of the z-loss." if best in better else ".")
