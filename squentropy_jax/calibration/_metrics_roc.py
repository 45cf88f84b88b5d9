# SPDX-License-Identifier: Apache-2.0
"""Receiver operating characteristic of binary scores, and the area below it."""

from collections.abc import Callable
import functools
from typing import NamedTuple, TypeVar

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.varying import without_explicit_axes
from squentropy_jax.calibration._confidence_order import (
  ConfidenceOrder,
  area_of_order,
  sort_by_confidence,
)
from squentropy_jax.calibration._row_functions import TopLabel
from squentropy_jax.calibration._scored_rows import (
  as_mask,
  widen,
)

_T = TypeVar("_T")


class RocCurve(NamedTuple):
  """Error rates at every threshold of a score.

  Attributes:
    false_positive_rate: The share of negatives with a score of the threshold or
      more, ``[n + 1]``, rising from 0 to 1.
    true_positive_rate: The same share of positives, ``[n + 1]``.
    thresholds: The thresholds, ``[n + 1]``, falling; the first is infinity.
  """

  false_positive_rate: Array
  true_positive_rate: Array
  thresholds: Array


def read_scores(
  scores: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> tuple[Array, Array, Array | None]:
  """Checks types and shapes, and the range of labels if all is concrete."""
  values = checks.as_floats(scores, "scores")
  ids = checks.as_array(labels, "labels")
  if ids.dtype == jnp.bool_:
    ids = ids.astype(jnp.int8)
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(
      "labels must be booleans, or integers that are 0 or 1, got dtype "
      f"{ids.dtype}. Pass labels > 0.5."
    )
  if ids.shape != values.shape:
    raise ValueError(
      f"labels must have the shape {values.shape} of scores, got {ids.shape}. "
      "For scores of several classes pass those of one class."
    )
  ids = prelude.widen_ids(ids)
  mask = None if where is None else as_mask(where, values.shape)
  readable = checks.is_concrete(where, used_with=(values,))
  ids = prelude.read_ids(ids, 2, where, readable=readable)
  return values, jnp.asarray(ids), mask


def _ordered(
  scores: Array, labels: Array, where: Array | None
) -> ConfidenceOrder:
  """The rows by rising score; a hit is a positive."""
  keep = jnp.ones(scores.shape, bool) if where is None else where
  valid = ~jnp.isnan(scores) & (labels >= 0) & (labels <= 1)
  use = keep & valid
  return sort_by_confidence(
    TopLabel(
      confidence=jnp.where(use, widen(scores), 0),
      hit=use & (labels == 1),
      use=use,
      invalid=keep & ~valid,
    )
  )


def _area_of_precision(order: ConfidenceOrder) -> Array:
  dtype = order.confidence.dtype
  # Each row has the precision at its score, and its group's share of positives.
  above = (order.num_hits - order.hits_below).astype(dtype)
  precision = above / jnp.maximum(order.size - order.start, 1).astype(dtype)
  share = order.hits.astype(dtype) / order.ties.astype(dtype)
  sum_ = jnp.sum(jnp.where(order.use, share * precision, 0))
  area = sum_ / order.num_hits.astype(dtype)
  return jnp.where(order.invalid, jnp.nan, area)


def _curve(order: ConfidenceOrder) -> RocCurve:
  dtype = order.confidence.dtype
  n = order.confidence.shape[0]
  # From the largest score on; the last point repeats for dropped rows.
  rank = jnp.arange(n, dtype=jnp.int32)
  row = jnp.maximum(order.size - 1 - rank, 0)
  # A point includes the whole group of ties of its row.
  hits = order.num_hits - order.hits_below[row]
  misses = order.size - order.start[row] - hits

  def rate(count: Array, total: Array) -> Array:
    share = count.astype(dtype) / total.astype(dtype)
    start = jnp.where(total > 0, jnp.zeros((1,), dtype), jnp.nan)
    return jnp.concatenate([start, share])

  curve = RocCurve(
    false_positive_rate=rate(misses, order.size - order.num_hits),
    true_positive_rate=rate(hits, order.num_hits),
    thresholds=jnp.append(
      jnp.full((1,), jnp.inf, dtype), order.confidence[row]
    ),
  )
  undefined = order.invalid | (order.size == 0)
  return jax.tree.map(lambda x: jnp.where(undefined, jnp.nan, x), curve)


@functools.partial(jax.jit, static_argnames="metric")
def _of_rows(
  scores: Array,
  labels: Array,
  where: Array | None,
  *,
  metric: Callable[[ConfidenceOrder], _T],
) -> _T:
  def of_examples(scores: Array, labels: Array, where: Array | None) -> _T:
    keep = None if where is None else where.ravel()
    order = _ordered(scores.ravel(), labels.ravel(), keep)
    return metric(order)

  return without_explicit_axes(
    of_examples, PartitionSpec(), scores, labels, where
  )


def auroc(
  scores: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
  r"""Computes how often a positive has a larger score than a negative (AUROC).

  Use it for a score of two classes that need not be a probability, such as one
  that detects outliers or unseen classes. It does not measure calibration: no
  rising map of the scores changes it. For the confidence of a classifier use
  :func:`confidence_auroc`.

  .. math::

    \frac{1}{|P| \, |N|} \sum_{i \in P} \sum_{j \in N}
    \bigl([s_i > s_j] + \tfrac{1}{2} [s_i = s_j]\bigr)

  with the positives :math:`P` and the negatives :math:`N`.

  Args:
    scores: One number for each example, large for a positive, any shape; they
      may be infinite.
    labels: Whether the example is a positive: booleans, or integers 0 and 1,
      of the same shape.
    where: Which examples to include, booleans of the same shape.

  Returns:
    A scalar, 0.5 for an uninformative score. NaN without any positive or any
    negative, or if an included score is NaN or a traced label is out of range.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> scores = jnp.array([0.1, 0.4, 0.35, 0.8])
    >>> float(calibration.auroc(scores, jnp.array([0, 0, 1, 1])))
    0.75

  References:
    Hanley and McNeil, `The Meaning and Use of the Area under a Receiver
    Operating Characteristic (ROC) Curve
    <https://doi.org/10.1148/radiology.143.1.7063747>`_, 1982.
  """
  found: Array = _of_rows(
    *read_scores(scores, labels, where), metric=area_of_order
  )
  return found


def average_precision(
  scores: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
  r"""Computes the mean precision at the scores of the positives (AP).

  Use it for a score of two classes where positives are rare: unlike
  :func:`auroc` it does not change much with the number of easy negatives.

  .. math::

    \frac{1}{|P|} \sum_{i \in P}
    \frac{|\{j \in P : s_j \ge s_i\}|}{|\{j : s_j \ge s_i\}|}

  with the positives :math:`P`. It is the area below the steps of the
  precision-recall curve, without interpolation.

  Args:
    scores: One number for each example, large for a positive, any shape; they
      may be infinite.
    labels: Whether the example is a positive: booleans, or integers 0 and 1,
      of the same shape.
    where: Which examples to include, booleans of the same shape.

  Returns:
    A scalar, the share of positives for an uninformative score. NaN without any
    positive, or if an included score is NaN or a traced label is out of range.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> scores = jnp.array([0.1, 0.4, 0.35, 0.8])
    >>> labels = jnp.array([0, 0, 1, 1])
    >>> print(f"{calibration.average_precision(scores, labels):.3f}")
    0.833

  References:
    Davis and Goadrich, `The Relationship between Precision-Recall and ROC
    Curves <https://doi.org/10.1145/1143844.1143874>`_, 2006.
  """
  found: Array = _of_rows(
    *read_scores(scores, labels, where), metric=_area_of_precision
  )
  return found


def roc_curve(
  scores: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> RocCurve:
  r"""Computes the rates of false and true positives at every threshold.

  Use it to choose the threshold of a score of two classes.

  .. math::

    \mathrm{FPR}(t) = \frac{|\{i \in N : s_i \ge t\}|}{|N|}, \qquad
    \mathrm{TPR}(t) = \frac{|\{i \in P : s_i \ge t\}|}{|P|}

  with the positives :math:`P`, the negatives :math:`N` and one threshold for
  each example, its score. Examples of equal scores repeat a point. The area
  below the straight lines between the points is :func:`auroc`.

  Args:
    scores: One number for each example, large for a positive, any shape; they
      may be infinite.
    labels: Whether the example is a positive: booleans, or integers 0 and 1,
      of the same shape.
    where: Which examples to include, booleans of the same shape. The last
      point of the curve is repeated for each dropped example.

  Returns:
    A :class:`RocCurve`. Its first point is 0, 0 at an infinite threshold. A
    rate of no examples is NaN. All is NaN without any example, or if an
    included score is NaN or a traced label is out of range.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> scores = jnp.array([0.1, 0.4, 0.35, 0.8])
    >>> curve = calibration.roc_curve(scores, jnp.array([0, 0, 1, 1]))
    >>> curve.false_positive_rate.tolist(), curve.true_positive_rate.tolist()
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])

  References:
    Fawcett, `An Introduction to ROC Analysis
    <https://doi.org/10.1016/j.patrec.2005.10.010>`_, 2006.
  """
  found: RocCurve = _of_rows(*read_scores(scores, labels, where), metric=_curve)
  return found
