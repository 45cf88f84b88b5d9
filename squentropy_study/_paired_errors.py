# SPDX-License-Identifier: Apache-2.0
"""Standard errors over test rows and seeds, intervals and p-values."""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np
from scipy import special

# Fewer seeds say too little about the spread over seeds.
LEAST_SEEDS = 3
_COVERAGE = 0.95
# Bounds the work of the bootstrap, resamples times rows, and its memory.
_MOST_WORK = 4e7
_RESAMPLES = (200, 1000)
_MOST_COUNTS = 2**24


class Sample(NamedTuple):
  """One metric of one method, with what its errors are computed from.

  Attributes:
    per_seed: ``[seeds]``, means over the folds.
    strata: Values of the test rows, averaged over seeds, in strata of equal
      weight; None if the metric is not a mean over rows.
    draws: ``[resamples]``, the metric on bootstrap resamples of the test rows,
      if it is not a mean over rows.
    rows: Number of test rows that limit the precision.
    is_share: Whether the values are shares in strata that may be small.
  """

  per_seed: np.ndarray
  strata: tuple[np.ndarray, ...] | None
  draws: np.ndarray | None
  rows: int
  is_share: bool = False

  @property
  def mean(self) -> float:
    """Mean over seeds and folds."""
    return float(self.per_seed.mean())

  def __sub__(self, other: "Sample") -> "Sample":
    """Returns the paired difference: the same rows, the same seeds."""
    strata = draws = None
    if self.strata is not None and other.strata is not None:
      pairs = zip(self.strata, other.strata, strict=True)
      strata = tuple(ours - theirs for ours, theirs in pairs)
    if self.draws is not None and other.draws is not None:
      draws = self.draws - other.draws
    return self._replace(
      per_seed=self.per_seed - other.per_seed, strata=strata, draws=draws
    )


class Difference(NamedTuple):
  """A mean, usually of a paired difference, with its uncertainty.

  Attributes:
    mean: The mean.
    low: Lower end of the 95 % confidence interval; NaN without one.
    high: Upper end of the interval.
    p_value: Of the two-sided test that the mean is 0; NaN without one.
    seeds_error: Standard error over seeds; NaN with fewer than three.
    rows_error: Standard error over test rows; NaN with a single row.
  """

  mean: float
  low: float
  high: float
  p_value: float
  seeds_error: float
  rows_error: float

  @property
  def sign(self) -> int:
    """1 or -1 if the interval excludes 0, otherwise 0."""
    return int(self.low > 0) - int(self.high < 0)


def _rows_error(sample: Sample) -> tuple[float, float]:
  """Returns the standard error over test rows and its degrees of freedom."""
  if sample.draws is not None:
    error = float(sample.draws.std(ddof=1)) if sample.rows > 1 else math.nan
    return error, sample.rows - 1
  if sample.strata is None:
    raise ValueError("sample must have strata or draws, got neither")
  if min(map(len, sample.strata)) < 2:
    return math.nan, math.nan
  strata = sample.strata
  if sample.is_share:
    # Two rows of opposite values, as Agresti and Min add them: a few rows on
    # which two methods agree do not show that they always do.
    more = np.sqrt([0.5, 0.5]) * [1, -1]
    strata = tuple(np.append(values, values.mean() + more) for values in strata)
  sizes = np.array([len(values) for values in strata])
  variances = np.array([values.var(ddof=1) for values in strata])
  parts = variances / sizes / len(sizes) ** 2
  total = parts.sum()
  spread = (parts**2 / (sizes - 1)).sum()
  return math.sqrt(total), float(total**2 / spread if spread else sizes.sum())


def _seeds_error(sample: Sample) -> float:
  """Returns the standard error over seeds; NaN with fewer than three."""
  seeds = sample.per_seed.size
  if seeds < LEAST_SEEDS:
    return math.nan
  return float(sample.per_seed.std(ddof=1)) / math.sqrt(seeds)


def estimate(sample: Sample) -> Difference:
  """Computes the mean of a sample with its 95 % confidence interval.

  The squared standard errors over test rows and over seeds are added, and the
  degrees of freedom of Student's t follow from them (Welch and Satterthwaite).
  With one or two seeds, the error over test rows is used alone. There is no
  interval if the sample does not vary.

  Args:
    sample: A metric, or a difference of two samples.

  Returns:
    The estimate.
  """
  rows_error, rows_freedom = _rows_error(sample)
  seeds_error = _seeds_error(sample)
  pairs = [(rows_error, rows_freedom), (seeds_error, sample.per_seed.size - 1)]
  if math.isnan(seeds_error):
    pairs = pairs[:1]
  variance = sum(error**2 for error, _ in pairs)
  # Below the precision of float32, there is no variation.
  if not variance > 1e-14:
    nothing = (math.nan,) * 3
    return Difference(sample.mean, *nothing, seeds_error, rows_error)
  freedom = variance**2 / sum(error**4 / free for error, free in pairs)
  error = math.sqrt(variance)
  reach = float(special.stdtrit(freedom, (1 + _COVERAGE) / 2)) * error
  p_value = 2 * float(special.stdtr(freedom, -abs(sample.mean) / error))
  return Difference(
    sample.mean,
    sample.mean - reach,
    sample.mean + reach,
    p_value,
    seeds_error,
    rows_error,
  )


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
  """Corrects p-values for their number, as Holm does.

  Args:
    p_values: The p-values; NaN where nothing was tested.

  Returns:
    The adjusted p-values, of the same order. The probability of any false
    discovery below 0.05 is at most 5 %.
  """
  values = np.asarray(p_values, np.float64)
  tested = np.flatnonzero(np.isfinite(values))
  order = tested[np.argsort(values[tested], kind="stable")]
  factors = np.arange(order.size, 0, -1)
  adjusted = np.full(values.shape, math.nan)
  steps = np.maximum.accumulate(values[order] * factors)
  adjusted[order] = np.minimum(steps, 1)
  return adjusted


def resample_blocks(rows: int) -> list[int]:
  """Returns the numbers of bootstrap resamples to draw at a time.

  Args:
    rows: Number of rows of all folds.

  Returns:
    The size of each block. The sum is 200 to 1000.
  """
  number = int(np.clip(_MOST_WORK / max(rows, 1), *_RESAMPLES))
  size = max(min(_MOST_COUNTS // max(rows, 1), number), 1)
  whole, rest = divmod(number, size)
  return [size] * whole + [rest] * (rest > 0)


def resamples(
  rows: int, number: int, generator: np.random.Generator
) -> np.ndarray:
  """Returns how often each row is drawn, ``[number, rows]``, float32."""
  # Faster than multinomial counts, and of the same distribution.
  drawn = generator.integers(rows, size=(number, rows))
  drawn += rows * np.arange(number)[:, None]
  counts = np.bincount(drawn.ravel(), minlength=number * rows)
  return counts.reshape(number, rows).astype(np.float32)
