# SPDX-License-Identifier: Apache-2.0
"""How well confidence separates hits from misses: risk, coverage and AUROC."""

from typing import NamedTuple

from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax.calibration._confidence_order import (
  ConfidenceOrder,
  area_of_order,
  sort_by_confidence,
)
from squentropy_jax.calibration._row_functions import top_label
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  compiled_on_rows,
  read_examples,
)


class RiskCoverage(NamedTuple):
  """The error rate among the most confident examples.

  Attributes:
    coverage: The share of examples that are answered, ``[n]``, rising.
    risk: The error rate among them, ``[n]``.
  """

  coverage: Array
  risk: Array


def _answered(rows: ConfidenceOrder) -> Array:
  """How many rows each point of the curve answers; the last point repeats."""
  n = rows.confidence.shape[0]
  return jnp.minimum(jnp.arange(n, dtype=jnp.int32) + 1, rows.size)


def _curve(rows: ConfidenceOrder) -> RiskCoverage:
  dtype = rows.confidence.dtype
  answered = _answered(rows)
  # The most confident rows are the last ones of the order.
  first = rows.size - answered
  start, ties, hits, hits_below = (
    x[first] for x in (rows.start, rows.ties, rows.hits, rows.hits_below)
  )
  # Groups of ties are counted in integers; the cut group adds its share.
  rows_above = rows.size - start - ties
  misses_above = rows_above - (rows.num_hits - hits_below - hits)
  share = (start + ties - first).astype(dtype) / ties.astype(dtype)
  misses = misses_above.astype(dtype) + share * (ties - hits).astype(dtype)
  coverage = answered.astype(dtype) / rows.size.astype(dtype)
  risk = misses / answered.astype(dtype)
  undefined = rows.invalid | (rows.size == 0)
  return RiskCoverage(
    jnp.where(undefined, jnp.nan, coverage), jnp.where(undefined, jnp.nan, risk)
  )


def _mean_of_curve(rows: ConfidenceOrder, value: Array) -> Array:
  """The mean over the points of the curve, without the repeated ones."""
  sum_ = jnp.sum(jnp.where(rows.use, value, 0))
  mean = sum_ / rows.size.astype(value.dtype)
  return jnp.where(rows.invalid, jnp.nan, mean)


@compiled_on_rows()
def _risk_coverage_curve(rows: ScoredRows) -> RiskCoverage:
  return _curve(sort_by_confidence(top_label(rows)))


@compiled_on_rows()
def _area(rows: ScoredRows) -> Array:
  ordered = sort_by_confidence(top_label(rows))
  return _mean_of_curve(ordered, _curve(ordered).risk)


@compiled_on_rows()
def _excess_area(rows: ScoredRows) -> Array:
  ordered = sort_by_confidence(top_label(rows))
  risk = _curve(ordered).risk
  # The best order puts every hit before every miss.
  answered = _answered(ordered)
  misses = jnp.maximum(answered - ordered.num_hits, 0).astype(risk.dtype)
  best = misses / answered.astype(risk.dtype)
  return _mean_of_curve(ordered, risk - best)


@compiled_on_rows()
def _auroc(rows: ScoredRows) -> Array:
  return area_of_order(sort_by_confidence(top_label(rows)))


def risk_coverage_curve(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> RiskCoverage:
  r"""Computes the error rate when only confident examples are answered.

  Use it to choose how many predictions to answer automatically for a given
  error budget. Its first points are means of few examples.

  .. math::

    r_k = \frac{1}{k} \sum_{i \le k} (1 - a_{(i)}), \qquad
    \text{coverage}_k = k / n

  with the examples sorted by falling confidence and :math:`a` the hits.
  Examples of equal confidence share the mean of their hits.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples to include, booleans of shape ``[...]``. The last
      point of the curve is repeated for each dropped example.

  Returns:
    A :class:`RiskCoverage` with one point per example. NaN without any
    example, or if an included one is invalid (see :class:`BinStats`).

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> curve = calibration.risk_coverage_curve(p, jnp.array([0, 1, 1, 1]))
    >>> curve.coverage.tolist(), curve.risk.tolist()
    ([0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.0, 0.25])

  References:
    Geifman and El-Yaniv, `Selective Classification for Deep Neural Networks
    <https://arxiv.org/abs/1705.08500>`_, 2017.
  """
  examples = read_examples("probabilities", probabilities, labels, where)
  return _risk_coverage_curve(examples)


def area_under_risk_coverage(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> Array:
  r"""Computes the area under the risk-coverage curve (AURC).

  Use it to compare models whose uncertain predictions will be rejected. It
  falls with fewer errors, and with less confidence in the errors.

  .. math:: \mathrm{AURC} = \frac{1}{n} \sum_k r_k

  with :math:`r_k` of :func:`risk_coverage_curve`. Libraries that integrate by
  trapezoids differ in the fourth digit at a thousand examples.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any example, or if an included one is invalid (see
    :class:`BinStats`).

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> area = calibration.area_under_risk_coverage(p, jnp.array([0, 1, 1, 1]))
    >>> float(area)
    0.0625

  References:
    Geifman, Uziel and El-Yaniv, `Bias-Reduced Uncertainty Estimation for Deep
    Neural Classifiers <https://arxiv.org/abs/1805.08206>`_, 2019.
  """
  examples = read_examples("probabilities", probabilities, labels, where)
  return _area(examples)


def excess_area_under_risk_coverage(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> Array:
  r"""Computes how far the AURC is above its minimum (E-AURC).

  The minimum is the AURC of the same errors in the best order. Use it to
  compare how well confidence ranks examples, at similar accuracy.

  .. math::

    \mathrm{AURC} - \frac{1}{n} \sum_k \frac{\max(0, k - h)}{k}

  with :math:`h` the number of hits. It is 0 if every hit has more confidence
  than every miss.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any example, or if an included one is invalid (see
    :class:`BinStats`).

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> y = jnp.array([0, 1, 1, 1])
    >>> float(calibration.excess_area_under_risk_coverage(p, y))
    0.0

  References:
    Geifman, Uziel and El-Yaniv, `Bias-Reduced Uncertainty Estimation for Deep
    Neural Classifiers <https://arxiv.org/abs/1805.08206>`_, 2019.
  """
  examples = read_examples("probabilities", probabilities, labels, where)
  return _excess_area(examples)


def confidence_auroc(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> Array:
  r"""Computes how often a hit has more confidence than a miss (AUROC).

  Use it to see whether confidence can detect errors. It does not measure
  calibration: no rising map of the confidence changes it.

  .. math::

    \frac{1}{h (n - h)} \sum_{i : a_i = 1} \sum_{j : a_j = 0}
    \bigl([c_i > c_j] + \tfrac{1}{2} [c_i = c_j]\bigr)

  with :math:`h` the number of hits.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar, 0.5 for an uninformative confidence. NaN if all examples are hits
    or none is, or if an included one is invalid (see :class:`BinStats`).

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> float(calibration.confidence_auroc(p, jnp.array([0, 1, 1, 1])))
    1.0

  References:
    Hendrycks and Gimpel, `A Baseline for Detecting Misclassified and
    Out-of-Distribution Examples <https://arxiv.org/abs/1610.02136>`_, 2017.
  """
  examples = read_examples("probabilities", probabilities, labels, where)
  return _auroc(examples)
