# SPDX-License-Identifier: Apache-2.0
"""How well confidence ranks right before wrong: risk, coverage and AUROC."""

from typing import NamedTuple

from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax.calibration import _inputs
from squentropy_jax.calibration._order import Ordered, order


class RiskCoverage(NamedTuple):
  """The error among the most confident examples.

  Attributes:
    coverage: The share of examples answered, ``[n]``, rising.
    risk: The share of errors among them, ``[n]``.
  """

  coverage: Array
  risk: Array


def _answered(rows: Ordered) -> Array:
  """How many rows each point of the curve answers; the last one repeats."""
  n = rows.confidence.shape[0]
  return jnp.minimum(jnp.arange(n, dtype=jnp.int32) + 1, rows.size)


def _curve(rows: Ordered) -> RiskCoverage:
  dtype = rows.confidence.dtype
  answered = _answered(rows)
  # The most confident rows are the last ones of the order.
  first = rows.size - answered
  start, ties, hits, hits_below = (
    x[first] for x in (rows.start, rows.ties, rows.hits, rows.hits_below)
  )
  # Whole groups are counted in integers, the group that is cut by its share.
  rows_above = rows.size - start - ties
  misses_above = rows_above - (rows.num_hits - hits_below - hits)
  share = (start + ties - first).astype(dtype) / ties.astype(dtype)
  misses = misses_above.astype(dtype) + share * (ties - hits).astype(dtype)
  coverage = answered.astype(dtype) / rows.size.astype(dtype)
  risk = misses / answered.astype(dtype)
  bad = rows.invalid | (rows.size == 0)
  return RiskCoverage(*(jnp.where(bad, jnp.nan, x) for x in (coverage, risk)))


def _mean_of_curve(rows: Ordered, value: Array) -> Array:
  """The mean over the points of the curve, without the repeated ones."""
  total = jnp.sum(jnp.where(rows.use, value, 0))
  mean = total / rows.size.astype(value.dtype)
  return jnp.where(rows.invalid, jnp.nan, mean)


@_inputs.compiled()
def _risk_coverage_curve(rows: _inputs.Rows) -> RiskCoverage:
  return _curve(order(_inputs.top(rows)))


@_inputs.compiled()
def _area(rows: _inputs.Rows) -> Array:
  ordered = order(_inputs.top(rows))
  return _mean_of_curve(ordered, _curve(ordered).risk)


@_inputs.compiled()
def _excess_area(rows: _inputs.Rows) -> Array:
  ordered = order(_inputs.top(rows))
  risk = _curve(ordered).risk
  # The best order has every hit before every miss.
  answered = _answered(ordered)
  misses = jnp.maximum(answered - ordered.num_hits, 0).astype(risk.dtype)
  best = misses / answered.astype(risk.dtype)
  return _mean_of_curve(ordered, risk - best)


@_inputs.compiled()
def _auroc(rows: _inputs.Rows) -> Array:
  ordered = order(_inputs.top(rows))
  dtype = ordered.confidence.dtype
  num_misses = (ordered.size - ordered.num_hits).astype(dtype)
  # Each hit of a group beats the misses below it, and half of those in it.
  below = (ordered.start - ordered.hits_below).astype(dtype)
  level = (ordered.ties - ordered.hits).astype(dtype)
  beaten = (below + level / 2) / num_misses
  share = ordered.hits.astype(dtype) / ordered.ties.astype(dtype)
  total = jnp.sum(jnp.where(ordered.use, share * beaten, 0))
  area = total / ordered.num_hits.astype(dtype)
  return jnp.where(ordered.invalid, jnp.nan, area)


def risk_coverage_curve(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> RiskCoverage:
  r"""The error when only the most confident examples are answered.

  .. math::

    r_k = \frac{1}{k} \sum_{i \le k} (1 - a_{(i)}), \qquad
    \text{coverage}_k = k / n

  with the rows sorted by falling confidence and :math:`a` the hits. Rows of
  one confidence share the mean of their hits.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples count, booleans of shape ``[...]``. The last point of
      the curve is repeated in the place of dropped ones.

  Returns:
    A :class:`RiskCoverage` with one point per example. NaN without any row to
    count, or where a row is invalid (see :class:`BinStats`).

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> curve = calibration.risk_coverage_curve(p, jnp.array([0, 1, 1, 1]))
    >>> curve.coverage.tolist(), curve.risk.tolist()
    ([0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.0, 0.25])

  References:
    Geifman and El-Yaniv, `Selective Classification for Deep Neural Networks
    <https://arxiv.org/abs/1705.08500>`_, 2017.
  """
  rows = _inputs.read_rows("probabilities", probabilities, labels, where)
  return _risk_coverage_curve(rows)


def area_under_risk_coverage(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> Array:
  r"""Mean risk over all coverages (AURC).

  .. math:: \mathrm{AURC} = \frac{1}{n} \sum_k r_k

  with :math:`r_k` of :func:`risk_coverage_curve`. It falls with fewer errors
  and with errors of less confidence. Libraries that integrate by trapezoids
  differ in the fourth digit at a thousand rows.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any row, or where a row is invalid (see
    :class:`BinStats`).

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> area = calibration.area_under_risk_coverage(p, jnp.array([0, 1, 1, 1]))
    >>> float(area)
    0.0625

  References:
    Geifman, Uziel and El-Yaniv, `Bias-Reduced Uncertainty Estimation for Deep
    Neural Classifiers <https://arxiv.org/abs/1805.08206>`_, 2019.
  """
  return _area(_inputs.read_rows("probabilities", probabilities, labels, where))


def excess_area_under_risk_coverage(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> Array:
  r"""AURC above that of the best order of the same errors (E-AURC).

  .. math::

    \mathrm{AURC} - \frac{1}{n} \sum_k \frac{\max(0, k - h)}{k}

  with :math:`h` the number of hits. It is 0 where every hit is more confident
  than every miss: the ranking alone is judged, not the accuracy.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any row, or where a row is invalid (see
    :class:`BinStats`).

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> y = jnp.array([0, 1, 1, 1])
    >>> float(calibration.excess_area_under_risk_coverage(p, y))
    0.0

  References:
    Geifman, Uziel and El-Yaniv, `Bias-Reduced Uncertainty Estimation for Deep
    Neural Classifiers <https://arxiv.org/abs/1805.08206>`_, 2019.
  """
  rows = _inputs.read_rows("probabilities", probabilities, labels, where)
  return _excess_area(rows)


def confidence_auroc(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> Array:
  r"""Chance that a hit has more confidence than a miss (AUROC).

  .. math::

    \frac{1}{h (n - h)} \sum_{i : a_i = 1} \sum_{j : a_j = 0}
    \bigl([c_i > c_j] + \tfrac{1}{2} [c_i = c_j]\bigr)

  with :math:`h` the number of hits.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar; 0.5 for a confidence that tells nothing. NaN where all rows are
    hits or none is, or where a row is invalid (see :class:`BinStats`).

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> float(calibration.confidence_auroc(p, jnp.array([0, 1, 1, 1])))
    1.0

  References:
    Hendrycks and Gimpel, `A Baseline for Detecting Misclassified and
    Out-of-Distribution Examples <https://arxiv.org/abs/1610.02136>`_, 2017.
  """
  return _auroc(
    _inputs.read_rows("probabilities", probabilities, labels, where)
  )
