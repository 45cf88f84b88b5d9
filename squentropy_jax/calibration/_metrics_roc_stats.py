# SPDX-License-Identifier: Apache-2.0
"""ROC metrics from counts in bins, which add exactly over batches."""

import functools
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from squentropy_jax._core.varying import without_explicit_axes
from squentropy_jax.calibration import _digit_sums
from squentropy_jax.calibration._equal_width_bins import bin_of, edges
from squentropy_jax.calibration._metrics_roc import RocCurve, read_scores
from squentropy_jax.calibration._row_functions import top_label_of_confidence
from squentropy_jax.calibration._scored_rows import check_int


class RocStats(NamedTuple):
  """Positives and negatives in bins of a score; see :func:`roc_stats`.

  Every field is int32, so sums over batches (:func:`merge`), devices
  (``jax.lax.psum``) and hosts have the same bits in any order. From ``2**31``
  examples on, every metric is NaN.

  Attributes:
    positives: Number of positives in each bin, ``[..., m]``.
    negatives: Number of negatives in each bin, ``[..., m]``.
    size_digits: The number of examples in all bins, in base ``2**16`` with the
      low digit first, ``[..., 2]``.
    invalid: Number of invalid examples, ``[...]``: the label is out of range,
      or the score is outside [0, 1] or NaN. If it is not 0, every metric is
      NaN.
  """

  positives: Array
  negatives: Array
  size_digits: Array
  invalid: Array


@functools.partial(jax.jit, static_argnames="num_bins")
def _count(
  scores: Array, labels: Array, where: Array | None, *, num_bins: int
) -> RocStats:
  def of_examples(
    scores: Array, labels: Array, where: Array | None
  ) -> RocStats:
    keep = jnp.ones(scores.size, bool) if where is None else where.ravel()
    ids = labels.ravel()
    known = (ids >= 0) & (ids <= 1)
    rows = top_label_of_confidence(scores.ravel(), ids == 1, keep & known)
    bins = jnp.where(rows.use, bin_of(rows.confidence, num_bins), num_bins)
    flags = jnp.stack([rows.hit, rows.use & ~rows.hit], axis=-1)
    counts = _digit_sums.segment_sum(flags.astype(jnp.int32), bins, num_bins)
    counts = counts.sum(0)
    invalid = rows.invalid | (keep & ~known)
    return RocStats(
      positives=counts[0],
      negatives=counts[1],
      size_digits=_digit_sums.count_digits(jnp.sum(rows.use, dtype=jnp.int32)),
      invalid=jnp.sum(invalid, dtype=jnp.int32),
    )

  return without_explicit_axes(
    of_examples, PartitionSpec(), scores, labels, where
  )


def roc_stats(
  scores: ArrayLike,
  labels: ArrayLike,
  *,
  num_bins: int = 1024,
  where: ArrayLike | None = None,
) -> RocStats:
  r"""Counts positives and negatives in bins of a score in [0, 1].

  Use it for ROC metrics of a data set that arrives in batches or is spread over
  devices: the counts of two batches add exactly (:func:`merge`,
  ``jax.lax.psum``).

  .. math:: B_b = \{i : b/m \le s_i < (b+1)/m\}

  where :math:`m` is ``num_bins``; the last bin includes 1. The metrics treat
  scores of one bin as equal. So the error of the AUROC is at most half of the
  share of pairs, of a positive and a negative, that are in one bin. Scores that
  are crowded near 0 or 1 need an increasing map first, such as
  ``jax.nn.sigmoid`` of logits that are divided by a temperature.

  Args:
    scores: One number in [0, 1] for each example, large for a positive, any
      shape.
    labels: Whether the example is a positive: booleans, or integers 0 and 1,
      of the same shape.
    num_bins: Number of bins, a Python int.
    where: Which examples to include, booleans of the same shape.

  Returns:
    The counts, a :class:`RocStats`.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> scores = jnp.array([0.1, 0.4, 0.35, 0.8])
    >>> y = jnp.array([0, 0, 1, 1])
    >>> stats = calibration.roc_stats(scores, y, num_bins=4)
    >>> stats.positives.tolist(), stats.negatives.tolist()
    ([0, 1, 0, 1], [1, 1, 0, 0])

  References:
    Fawcett, `An Introduction to ROC Analysis
    <https://doi.org/10.1016/j.patrec.2005.10.010>`_, 2006.
  """
  check_int("num_bins", num_bins, 1)
  return _count(*read_scores(scores, labels, where), num_bins=num_bins)


def add_roc_stats(a: RocStats, b: RocStats) -> RocStats:
  """The counts of two batches together."""
  sums = jax.tree.map(jnp.add, a, b)
  return sums._replace(size_digits=_digit_sums.carry_count(sums.size_digits))


class _Above(NamedTuple):
  """Counts from each bin on, from the last bin to the first, ``[..., m]``."""

  positives: Array
  negatives: Array
  in_bin: Array  # The positives in the bin itself.


def _above(stats: RocStats) -> tuple[_Above, Array]:
  """The counts, and whether any metric of them is undefined ``[...]``."""

  def cumulated(x: Array) -> Array:
    axis = x.ndim - 1
    return jnp.cumsum(jnp.flip(x, axis), axis=axis, dtype=jnp.int32)

  in_bin = jnp.flip(stats.positives, -1)
  above = _Above(cumulated(stats.positives), cumulated(stats.negatives), in_bin)
  overflows = _digit_sums.count_overflows(stats.size_digits)
  return above, (stats.invalid != 0) | overflows


def _check_stats(stats: Any) -> None:
  if not isinstance(stats, RocStats):
    raise TypeError(
      f"stats must be a RocStats, got {type(stats).__name__}. Pass "
      "roc_stats(scores, labels)."
    )


@jax.jit
def _auroc(stats: RocStats) -> Array:
  above, undefined = _above(stats)
  dtype = jnp.result_type(float)
  negatives = above.negatives.astype(dtype)
  before = negatives - jnp.flip(stats.negatives, -1).astype(dtype)
  below = negatives[..., -1:] - (negatives + before) / 2
  share = above.in_bin.astype(dtype) / above.positives[..., -1:].astype(dtype)
  area = jnp.sum(share * (below / negatives[..., -1:]), axis=-1)
  return jnp.where(undefined, jnp.nan, area)


@jax.jit
def _roc_curve(stats: RocStats) -> RocCurve:
  above, undefined = _above(stats)
  dtype, num_bins = jnp.result_type(float), stats.positives.shape[-1]

  def rate(count: Array) -> Array:
    share = count.astype(dtype) / count[..., -1:].astype(dtype)
    start = jnp.where(count[..., -1:] > 0, jnp.zeros((), dtype), jnp.nan)
    return jnp.concatenate([start, share], axis=-1)

  falling = edges(num_bins, dtype)[:-1][::-1]
  thresholds = jnp.append(jnp.full((1,), jnp.inf, dtype), falling)
  rates = rate(above.negatives), rate(above.positives)
  curve = RocCurve(*rates, jnp.broadcast_to(thresholds, rates[0].shape))
  return jax.tree.map(
    lambda x: jnp.where(undefined[..., None], jnp.nan, x), curve
  )


@jax.jit
def _average_precision(stats: RocStats) -> Array:
  above, undefined = _above(stats)
  dtype = jnp.result_type(float)
  positives = above.positives.astype(dtype)
  size = positives + above.negatives.astype(dtype)
  precision = positives / jnp.maximum(size, 1)
  share = above.in_bin.astype(dtype) / positives[..., -1:]
  area = jnp.sum(share * precision, axis=-1)
  return jnp.where(undefined, jnp.nan, area)


def binned_auroc(stats: RocStats) -> Array:
  r"""Computes the AUROC from counts in bins.

  Use it in place of :func:`auroc` for batches that are merged.

  .. math::

    \frac{1}{|P| \, |N|} \sum_b P_b \bigl(\sum_{c < b} N_c + \tfrac{1}{2} N_b
    \bigr)

  with :math:`P_b` positives and :math:`N_b` negatives in bin :math:`b`.

  Args:
    stats: Counts from :func:`roc_stats`.

  Returns:
    A scalar, or one for each leading index. NaN without any positive or any
    negative, with an invalid example, or from ``2**31`` examples on.

  Raises:
    TypeError: If ``stats`` is not a :class:`RocStats`.

  Examples:
    >>> scores = jnp.array([0.1, 0.4, 0.35, 0.8])
    >>> stats = calibration.roc_stats(scores, jnp.array([0, 0, 1, 1]))
    >>> float(calibration.binned_auroc(stats))
    0.75

  References:
    Hanley and McNeil, `The Meaning and Use of the Area under a Receiver
    Operating Characteristic (ROC) Curve
    <https://doi.org/10.1148/radiology.143.1.7063747>`_, 1982.
  """
  _check_stats(stats)
  return _auroc(stats)


def binned_roc_curve(stats: RocStats) -> RocCurve:
  r"""Computes the rates of false and true positives from counts in bins.

  Use it in place of :func:`roc_curve` for batches that are merged.

  .. math::

    \mathrm{FPR}_b = \frac{1}{|N|} \sum_{c \ge b} N_c, \qquad
    \mathrm{TPR}_b = \frac{1}{|P|} \sum_{c \ge b} P_c

  at the threshold :math:`b / m`, the lower edge of bin :math:`b` of :math:`m`.

  Args:
    stats: Counts from :func:`roc_stats`.

  Returns:
    A :class:`RocCurve` of ``m + 1`` points, the first at an infinite threshold.
    A rate of no examples is NaN. All is NaN with an invalid example, or from
    ``2**31`` examples on.

  Raises:
    TypeError: If ``stats`` is not a :class:`RocStats`.

  Examples:
    >>> scores = jnp.array([0.1, 0.4, 0.35, 0.8])
    >>> y = jnp.array([0, 0, 1, 1])
    >>> stats = calibration.roc_stats(scores, y, num_bins=2)
    >>> calibration.binned_roc_curve(stats).true_positive_rate.tolist()
    [0.0, 0.5, 1.0]

  References:
    Fawcett, `An Introduction to ROC Analysis
    <https://doi.org/10.1016/j.patrec.2005.10.010>`_, 2006.
  """
  _check_stats(stats)
  return _roc_curve(stats)


def binned_average_precision(stats: RocStats) -> Array:
  r"""Computes the average precision from counts in bins.

  Use it in place of :func:`average_precision` for batches that are merged.

  .. math::

    \sum_b \frac{P_b}{|P|} \cdot
    \frac{\sum_{c \ge b} P_c}{\sum_{c \ge b} (P_c + N_c)}

  with :math:`P_b` positives and :math:`N_b` negatives in bin :math:`b`.

  Args:
    stats: Counts from :func:`roc_stats`.

  Returns:
    A scalar, or one for each leading index. NaN without any positive, with an
    invalid example, or from ``2**31`` examples on.

  Raises:
    TypeError: If ``stats`` is not a :class:`RocStats`.

  Examples:
    >>> scores = jnp.array([0.1, 0.4, 0.35, 0.8])
    >>> stats = calibration.roc_stats(scores, jnp.array([0, 0, 1, 1]))
    >>> print(f"{calibration.binned_average_precision(stats):.3f}")
    0.833

  References:
    Davis and Goadrich, `The Relationship between Precision-Recall and ROC
    Curves <https://doi.org/10.1145/1143844.1143874>`_, 2006.
  """
  _check_stats(stats)
  return _average_precision(stats)
