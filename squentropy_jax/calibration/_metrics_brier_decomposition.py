# SPDX-License-Identifier: Apache-2.0
"""The Brier score split into reliability, resolution and uncertainty."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax.calibration._metrics_classwise import (
  any_invalid,
  classwise_bins,
)
from squentropy_jax.calibration._row_functions import label_score, map_rows
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  check_int,
  compiled_on_rows,
  read_examples,
  widen,
)


class BrierDecomposition(NamedTuple):
  """Parts of the Brier score; see :func:`brier_decomposition`.

  Attributes:
    reliability: The cost of miscalibration, 0 at best.
    resolution: The gain from predictions that differ between examples.
    uncertainty: The score of predicting the label frequencies.
    within_bin_variance: Variance of the probabilities inside bins.
    within_bin_covariance: Covariance of the probabilities with the outcomes
      inside bins.
  """

  reliability: Array
  resolution: Array
  uncertainty: Array
  within_bin_variance: Array
  within_bin_covariance: Array

  @property
  def score(self) -> Array:
    """The Brier score: the sum of the parts."""
    return (
      self.reliability
      - self.resolution
      + self.uncertainty
      + self.within_bin_variance
      - 2 * self.within_bin_covariance
    )


@compiled_on_rows("num_bins")
def _decompose(rows: ScoredRows, *, num_bins: int) -> BrierDecomposition:
  sums = classwise_bins(rows, num_bins)
  n = jnp.sum(rows.keep, dtype=sums.counts.dtype)

  def of_block(scores: Array, labels: Array) -> tuple[Array, Array]:
    p = widen(scores)
    return jnp.sum(jnp.square(p), axis=-1), label_score(p, labels)

  sum_sq, target = map_rows(of_block, rows)
  counts = jnp.maximum(sums.counts, 1)
  mean_p = (sums.confidence + sums.confidence_low) / counts
  outcome = sums.hits / counts
  gap = ((sums.hits - sums.confidence) - sums.confidence_low) / counts
  frequency = jnp.sum(sums.hits, axis=0) / n
  share = sums.counts / n

  def mean_of_rows(x: Array) -> Array:
    return jnp.sum(jnp.where(rows.keep, x, 0)) / n

  parts = BrierDecomposition(
    reliability=jnp.sum(share * jnp.square(gap)),
    resolution=jnp.sum(share * jnp.square(outcome - frequency[None])),
    uncertainty=jnp.sum(frequency * (1 - frequency)),
    within_bin_variance=mean_of_rows(sum_sq)
    - jnp.sum(share * jnp.square(mean_p)),
    within_bin_covariance=mean_of_rows(target)
    - jnp.sum(share * mean_p * outcome),
  )
  invalid = any_invalid(rows)
  return jax.tree.map(lambda x: jnp.where(invalid, jnp.nan, x), parts)


def brier_decomposition(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  num_bins: int = 15,
  where: ArrayLike | None = None,
) -> BrierDecomposition:
  r"""Computes the parts of the Brier score: reliability, resolution and others.

  Use it to see whether a bad score comes from miscalibration (reliability) or
  from predictions that do not separate the classes (resolution).

  The probability of every class is put into bins, and the parts are summed
  over classes:

  .. math::

    \mathrm{Brier} = \underbrace{\sum_{k,b} \tfrac{n_{bk}}{n}
    (\bar p_{bk} - \bar y_{bk})^2}_{\text{reliability}}
    - \underbrace{\sum_{k,b} \tfrac{n_{bk}}{n}
    (\bar y_{bk} - \bar y_k)^2}_{\text{resolution}}
    + \underbrace{\sum_k \bar y_k (1 - \bar y_k)}_{\text{uncertainty}}
    + \mathrm{WBV} - 2\, \mathrm{WBC}

  with :math:`y_{ik} = [y_i = k]` and bars for means over a bin. WBV and WBC are
  the variance of the probabilities, and their covariance with the outcomes,
  inside the bins. Without these two the parts do not add up to the score.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    num_bins: Number of bins of equal width, a Python int.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`BrierDecomposition`, whose ``score`` is :func:`brier_score`. NaN
    without any example, or if an included one is invalid (see
    :class:`BinStats`).

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> parts = calibration.brier_decomposition(p, jnp.array([0, 1, 1, 1]))
    >>> print(f"{parts.reliability:.3f} {parts.score:.3f}")
    0.250 0.250

  References:
    Stephenson, Coelho and Jolliffe, `Two Extra Components in the Brier Score
    Decomposition <https://doi.org/10.1175/2007WAF2006116.1>`_, 2008.
  """
  check_int("num_bins", num_bins, 1)
  examples = read_examples("probabilities", probabilities, labels, where)
  return _decompose(examples, num_bins=num_bins)
