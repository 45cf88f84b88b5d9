# SPDX-License-Identifier: Apache-2.0
"""The Brier score split into calibration, resolution and uncertainty."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax.calibration import _inputs
from squentropy_jax.calibration._classwise import any_invalid, class_sums


class BrierDecomposition(NamedTuple):
  """Parts of the Brier score; see :func:`brier_decomposition`.

  Attributes:
    reliability: What miscalibration costs, 0 at best.
    resolution: What telling rows apart gains.
    uncertainty: The score of the label frequencies.
    within_bin_variance: Variance of the forecasts inside bins.
    within_bin_covariance: Their covariance with the outcomes inside bins.
  """

  reliability: Array
  resolution: Array
  uncertainty: Array
  within_bin_variance: Array
  within_bin_covariance: Array

  @property
  def score(self) -> Array:
    """The sum of the parts: the Brier score."""
    return (
      self.reliability
      - self.resolution
      + self.uncertainty
      + self.within_bin_variance
      - 2 * self.within_bin_covariance
    )


@_inputs.compiled("num_bins")
def _decompose(rows: _inputs.Rows, *, num_bins: int) -> BrierDecomposition:
  sums = class_sums(rows, num_bins)
  n = jnp.sum(rows.keep, dtype=sums.counts.dtype)

  def of_block(scores: Array, labels: Array) -> tuple[Array, Array]:
    p = _inputs.widen(scores)
    return jnp.sum(jnp.square(p), axis=-1), _inputs.own_score(p, labels)

  squares, own = _inputs.map_rows(of_block, rows.scores, rows.labels)
  counts = jnp.maximum(sums.counts, 1)
  forecast = (sums.confidence + sums.confidence_low) / counts
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
    within_bin_variance=mean_of_rows(squares)
    - jnp.sum(share * jnp.square(forecast)),
    within_bin_covariance=mean_of_rows(own)
    - jnp.sum(share * forecast * outcome),
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
  r"""Splits the Brier score into calibration and the rest, exactly.

  Every class is a yes-or-no forecast, binned by its probability; parts are
  summed over classes:

  .. math::

    \mathrm{Brier} = \underbrace{\sum_{k,b} \tfrac{n_{bk}}{n}
    (\bar p_{bk} - \bar y_{bk})^2}_{\text{reliability}}
    - \underbrace{\sum_{k,b} \tfrac{n_{bk}}{n}
    (\bar y_{bk} - \bar y_k)^2}_{\text{resolution}}
    + \underbrace{\sum_k \bar y_k (1 - \bar y_k)}_{\text{uncertainty}}
    + \mathrm{WBV} - 2\, \mathrm{WBC}

  where WBV and WBC are the variance of the forecasts, and their covariance
  with the outcomes, inside the bins. Without these two the parts of binned
  forecasts do not add up to the score.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    num_bins: Number of bins :math:`m` of equal width, a Python int.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A :class:`BrierDecomposition`, whose ``score`` is :func:`brier_score`. NaN
    without any row, or where a row is invalid (see :class:`BinStats`).

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> parts = calibration.brier_decomposition(p, jnp.array([0, 1, 1, 1]))
    >>> print(f"{parts.reliability:.3f} {parts.score:.3f}")
    0.250 0.250

  References:
    Stephenson, Coelho and Jolliffe, `Two Extra Components in the Brier Score
    Decomposition <https://doi.org/10.1175/2007WAF2006116.1>`_, 2008.
  """
  _inputs.check_int("num_bins", num_bins, 1)
  rows = _inputs.read_rows("probabilities", probabilities, labels, where)
  return _decompose(rows, num_bins=num_bins)
