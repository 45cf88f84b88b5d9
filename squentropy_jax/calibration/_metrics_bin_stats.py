# SPDX-License-Identifier: Apache-2.0
"""Sums over bins of confidence, which add exactly over batches and devices."""

import functools
from typing import Any, NamedTuple, TypeVar

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from squentropy_jax._core.varying import without_explicit_axes
from squentropy_jax.calibration import _digit_sums
from squentropy_jax.calibration._equal_width_bins import bin_of
from squentropy_jax.calibration._metrics_roc_stats import (
  RocStats,
  add_roc_stats,
)
from squentropy_jax.calibration._row_functions import (
  TopLabel,
  top_label,
  top_label_of_confidence,
)
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  check_int,
  compiled_on_rows,
  read_confidence,
  read_examples,
)


class BinStats(NamedTuple):
  """Counts, hits and summed confidence in bins of equal width.

  A hit is an example whose predicted class is its label. Bin ``b`` of ``m``
  holds the confidences in ``[b/m, (b+1)/m)``, the last bin also 1. Every field
  is int32, so sums over batches, devices (``jax.lax.psum``) and hosts have the
  same bits in any order. From ``2**31`` examples on, every error is NaN.

  Attributes:
    counts: Number of examples in each bin, ``[..., m]``.
    hits: Number of hits in each bin, ``[..., m]``.
    confidence_digits: The sum of confidence in each bin, in base 1024 with one
      digit before the point and four after it, ``[..., 5, m]``.
    size_digits: The number of examples in all bins, in base ``2**16`` with the
      low digit first, ``[..., 2]``. It does not overflow as ``counts`` may.
    invalid: Number of invalid examples, ``[...]``: the label is out of range,
      or the scores are not probabilities (a number outside [0, 1], a sum that
      differs from 1 by more than 0.01, or NaN). If it is not 0, every
      error is NaN.
  """

  counts: Array
  hits: Array
  confidence_digits: Array
  size_digits: Array
  invalid: Array

  @property
  def accuracy(self) -> Array:
    """The share of hits in each bin ``[..., m]``; NaN in an empty bin."""
    return _bin_means(self)[0]

  @property
  def confidence(self) -> Array:
    """The mean confidence in each bin ``[..., m]``; NaN in an empty bin."""
    return _bin_means(self)[1]


_Stats = TypeVar("_Stats", BinStats, RocStats)


def check_stats(name: str, stats: Any) -> None:
  """Raises unless ``stats`` is a `BinStats`."""
  if not isinstance(stats, BinStats):
    raise TypeError(
      f"{name} must be a BinStats, got {type(stats).__name__}. Pass "
      "bin_stats(probabilities, labels)."
    )


def nan_if_invalid(stats: BinStats, value: Array) -> Array:
  """``value`` ``[..., m]``; NaN if invalid examples or too many were added."""
  overflows = _digit_sums.count_overflows(stats.size_digits)
  invalid = (stats.invalid != 0) | overflows
  return jnp.where(invalid[..., None], jnp.nan, value)


@jax.jit
def _bin_means(stats: BinStats) -> tuple[Array, Array]:
  """The share of hits and the mean confidence of each bin."""
  dtype = jnp.result_type(float)
  counts = stats.counts.astype(dtype)
  digits = _digit_sums.carry(stats.confidence_digits)
  confidence = _digit_sums.to_float(digits, dtype) / counts
  accuracy = stats.hits.astype(dtype) / counts
  return nan_if_invalid(stats, accuracy), nan_if_invalid(stats, confidence)


def _add_up(top: TopLabel, num_bins: int) -> BinStats:
  """The statistics of rows whose predicted class is known."""
  # Rows of bin `num_bins` are ignored.
  bins = jnp.where(top.use, bin_of(top.confidence, num_bins), num_bins)
  flags = jnp.stack([top.use, top.hit], axis=-1).astype(jnp.int32)
  flags = _digit_sums.segment_sum(flags, bins, num_bins).sum(0)
  digits = _digit_sums.to_digits(top.confidence)
  return BinStats(
    counts=flags[0],
    hits=flags[1],
    confidence_digits=_digit_sums.sum_digits(digits, bins, num_bins),
    size_digits=_digit_sums.count_digits(jnp.sum(top.use, dtype=jnp.int32)),
    invalid=jnp.sum(top.invalid, dtype=jnp.int32),
  )


@compiled_on_rows("num_bins")
def _bin_stats(rows: ScoredRows, *, num_bins: int) -> BinStats:
  return _add_up(top_label(rows), num_bins)


@functools.partial(jax.jit, static_argnames="num_bins")
def _from_confidence(
  confidence: Array, correct: Array, where: Array | None, *, num_bins: int
) -> BinStats:
  def of_examples(
    confidence: Array, correct: Array, where: Array | None
  ) -> BinStats:
    keep = None if where is None else where.ravel()
    top = top_label_of_confidence(confidence.ravel(), correct.ravel(), keep)
    return _add_up(top, num_bins)

  return without_explicit_axes(
    of_examples, PartitionSpec(), confidence, correct, where
  )


def bin_stats(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  num_bins: int = 15,
  where: ArrayLike | None = None,
) -> BinStats:
  r"""Computes counts, hits and summed confidence in bins of equal width.

  Use it for the calibration errors that are read from bins, and wherever a
  data set arrives in batches or is spread over devices: the statistics of two
  batches add exactly (:func:`merge`, ``jax.lax.psum``).

  .. math::

    B_b = \{i : b/m \le c_i < (b+1)/m\}, \quad c_i = \max_k p_{ik}, \quad
    a_i = [\arg\max_k p_{ik} = y_i]

  where :math:`m` is ``num_bins``. The last bin includes 1, and the prediction
  is the first of tied classes. Edges are float32 numbers, or float64 for
  float64 probabilities; narrower types are converted first.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    num_bins: Number of bins, a Python int.
    where: Which examples to include, booleans of shape ``[...]``. Dropped
      examples may hold anything, NaN included.

  Returns:
    The statistics, a :class:`BinStats`.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.
      Under ``jit`` such an example is counted in ``invalid``.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> stats = calibration.bin_stats(p, jnp.array([0, 1, 1]), num_bins=2)
    >>> stats.counts.tolist(), stats.hits.tolist()
    ([0, 3], [0, 2])

  References:
    Naeini et al., `Obtaining Well Calibrated Probabilities Using Bayesian
    Binning <https://doi.org/10.1609/aaai.v29i1.9602>`_, 2015.
  """
  check_int("num_bins", num_bins, 1)
  examples = read_examples("probabilities", probabilities, labels, where)
  return _bin_stats(examples, num_bins=num_bins)


def bin_stats_from_confidence(
  confidence: ArrayLike,
  correct: ArrayLike,
  *,
  num_bins: int = 15,
  where: ArrayLike | None = None,
) -> BinStats:
  r"""Computes the statistics of :func:`bin_stats` from confidences.

  Use it where the probabilities of all classes do not fit into memory, or if
  only the confidence was stored. From the same confidences, the result has the
  same bits as that of :func:`bin_stats`.

  .. math::

    B_b = \{i : b/m \le c_i < (b+1)/m\}

  where :math:`m` is ``num_bins``. The last bin includes 1. Edges are float32
  numbers, or float64 for float64 confidences; narrower types are converted
  first.

  Args:
    confidence: The probability of the predicted class, shape ``[...]``.
    correct: Whether the predicted class is the label, booleans of shape
      ``[...]``.
    num_bins: Number of bins, a Python int.
    where: Which examples to include, booleans of shape ``[...]``. Dropped
      examples may hold anything, NaN included.

  Returns:
    The statistics, a :class:`BinStats`. An example whose confidence is NaN or
    outside [0, 1] is counted in ``invalid``.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match.

  Examples:
    >>> stats = calibration.bin_stats_from_confidence(
    ...   jnp.array([0.9, 0.8, 0.6]), jnp.array([True, True, False]), num_bins=2
    ... )
    >>> stats.counts.tolist(), stats.hits.tolist()
    ([0, 3], [0, 2])

  References:
    Naeini et al., `Obtaining Well Calibrated Probabilities Using Bayesian
    Binning <https://doi.org/10.1609/aaai.v29i1.9602>`_, 2015.
  """
  check_int("num_bins", num_bins, 1)
  arrays = read_confidence(confidence, correct, where)
  return _from_confidence(*arrays, num_bins=num_bins)


def merge(a: _Stats, b: _Stats) -> _Stats:
  r"""Computes the statistics of two batches together.

  Use it to accumulate :func:`bin_stats` or :func:`roc_stats` over batches. The
  sum is exact: it has the bits of the statistics of both batches at once, in
  any order.

  .. math:: n_b = n^{(1)}_b + n^{(2)}_b

  and likewise for the other fields.

  Args:
    a: Statistics of one batch.
    b: Statistics of another, with the same number of bins.

  Returns:
    The statistics of both batches.

  Raises:
    TypeError: If ``a`` and ``b`` are not two :class:`BinStats` or two
      :class:`RocStats`.
    ValueError: If their shapes differ.

  Examples:
    >>> stats = calibration.bin_stats(jnp.array([[0.9, 0.1]]), jnp.array([0]))
    >>> int(calibration.merge(stats, stats).counts.sum())
    2

  References:
    Chan, Golub and LeVeque, `Algorithms for Computing the Sample Variance
    <https://doi.org/10.2307/2683386>`_, 1983.
  """
  if not isinstance(a, RocStats):
    check_stats("a", a)
  if type(a) is not type(b):
    raise TypeError(
      f"b must be a {type(a).__name__} like a, got {type(b).__name__}."
    )
  if a[0].shape != b[0].shape:
    raise ValueError(
      "a and b must have as many bins and the same leading shape, got "
      f"{a[0].shape} and {b[0].shape}. Pass the same num_bins for both, and "
      "use jax.vmap for stacked statistics."
    )
  return _add(a, b)


@jax.jit
def _add(a: Any, b: Any) -> Any:
  if isinstance(a, RocStats):
    return add_roc_stats(a, b)
  digits = a.confidence_digits + b.confidence_digits
  return BinStats(
    counts=a.counts + b.counts,
    hits=a.hits + b.hits,
    confidence_digits=_digit_sums.carry(digits),
    size_digits=_digit_sums.carry_count(a.size_digits + b.size_digits),
    invalid=a.invalid + b.invalid,
  )
