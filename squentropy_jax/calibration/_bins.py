# SPDX-License-Identifier: Apache-2.0
"""Binned statistics of the top-label confidence; they add exactly."""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax.calibration import _exact, _inputs


class BinStats(NamedTuple):
  """Counts, hits and confidence per bin of equal width; adds exactly.

  Bin ``b`` of ``m`` holds the confidences in ``[b/m, (b+1)/m)``, the last one
  also 1. Every field is int32, so sums over batches, devices (``psum``) and
  hosts have the same bits in any order. Counts may not pass ``2**31 - 1``;
  a sum that wrapped below zero gives NaN errors.

  Attributes:
    counts: Rows in each bin, ``[..., m]``.
    hits: Rows in each bin whose label is the predicted class, ``[..., m]``.
    confidence_digits: The sum of confidence in each bin, in base 1024 with
      one whole digit and four behind the point, ``[..., 5, m]``.
    invalid: How many rows were kept but had a label out of range, or numbers
      that are no probabilities: outside [0, 1], or with a sum that is not 1
      within a hundredth, ``[...]``. Above 0, every error is NaN.
  """

  counts: Array
  hits: Array
  confidence_digits: Array
  invalid: Array

  @property
  def accuracy(self) -> Array:
    """The share of hits in each bin ``[..., m]``; NaN in an empty bin."""
    return _means(self)[0]

  @property
  def confidence(self) -> Array:
    """The mean confidence in each bin ``[..., m]``; NaN in an empty bin."""
    return _means(self)[1]


def check_stats(name: str, stats: Any) -> None:
  """Raises unless ``stats`` are those of `bin_stats`."""
  if not isinstance(stats, BinStats):
    raise TypeError(
      f"{name} must be a BinStats, got {type(stats).__name__}; pass "
      "bin_stats(probabilities, labels)."
    )


def poison(stats: BinStats, value: Array) -> Array:
  """``value`` ``[..., m]``, NaN where the statistics cannot be trusted."""
  bad = (stats.invalid > 0) | jnp.any(stats.counts < 0, axis=-1)
  return jnp.where(bad[..., None], jnp.nan, value)


@jax.jit
def _means(stats: BinStats) -> tuple[Array, Array]:
  """Mean hit and mean confidence of each bin."""
  dtype = jnp.result_type(float)
  counts = stats.counts.astype(dtype)
  total = _exact.to_float(_exact.carry(stats.confidence_digits), dtype)
  hits = stats.hits.astype(dtype)
  return poison(stats, hits / counts), poison(stats, total / counts)


def edges(num_bins: int, dtype: np.dtype) -> np.ndarray:
  """The edges ``b / num_bins`` of the bins, ``[num_bins + 1]``.

  They are rounded to the type of the computation, float32 or wider, so that
  its number nearest to an edge lies on it and opens its bin. Narrower data are
  widened before, and may lie beside it.
  """
  return (np.arange(num_bins + 1) / num_bins).astype(dtype)


def bin_of(x: Array, num_bins: int) -> Array:
  """The bin of each ``x`` in [0, 1], an int32: left-closed, the last closed."""
  edge = jnp.asarray(edges(num_bins, x.dtype))
  # The product may round across an edge, so it is compared with them.
  index = jnp.minimum(jnp.floor(x * num_bins).astype(jnp.int32), num_bins - 1)
  index = index - (x < edge[index]).astype(jnp.int32)
  index = index + (x >= edge[index + 1]).astype(jnp.int32)
  return jnp.minimum(index, num_bins - 1)


@_inputs.compiled("num_bins")
def _bin_stats(rows: _inputs.Rows, *, num_bins: int) -> BinStats:
  top = _inputs.top(rows)
  # A row of bin `num_bins` is left out.
  bins = jnp.where(top.use, bin_of(top.confidence, num_bins), num_bins)
  flags = jnp.stack([top.use, top.hit], axis=-1).astype(jnp.int32)
  flags = _exact.segment_sum(flags, bins, num_bins).sum(0)
  digits = _exact.to_digits(top.confidence)
  return BinStats(
    counts=flags[0],
    hits=flags[1],
    confidence_digits=_exact.sum_digits(digits, bins, num_bins),
    invalid=jnp.sum(top.invalid, dtype=jnp.int32),
  )


def bin_stats(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  num_bins: int = 15,
  where: ArrayLike | None = None,
) -> BinStats:
  r"""Sums the top-label confidence and its hits over bins of equal width.

  .. math::

    B_b = \{i : b/m \le c_i < (b+1)/m\}, \quad c_i = \max_k p_{ik}, \quad
    a_i = [\arg\max_k p_{ik} = y_i]

  where :math:`m` is ``num_bins``, the last bin is closed, and the first of
  tied classes is the prediction. Edges are float32 numbers, or float64 for
  such data; narrower data are widened first.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    num_bins: Number of bins, a Python int.
    where: Which examples count, booleans of shape ``[...]``. Dropped ones may
      hold anything, NaN included.

  Returns:
    The sums, a :class:`BinStats`, to give to
    :func:`expected_calibration_error` and its relatives, or to add to those
    of another batch (:func:`merge`, ``jax.lax.psum``).

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range. Under ``jit`` such a row counts in ``invalid`` and turns
      every error into NaN.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> stats = calibration.bin_stats(p, jnp.array([0, 1, 1]), num_bins=2)
    >>> stats.counts.tolist(), stats.hits.tolist()
    ([0, 3], [0, 2])

  References:
    Naeini et al., `Obtaining Well Calibrated Probabilities Using Bayesian
    Binning <https://doi.org/10.1609/aaai.v29i1.9602>`_, 2015.
  """
  _inputs.check_int("num_bins", num_bins, 1)
  rows = _inputs.read_rows("probabilities", probabilities, labels, where)
  return _bin_stats(rows, num_bins=num_bins)


def merge(a: BinStats, b: BinStats) -> BinStats:
  r"""Adds the statistics of two batches, exactly.

  .. math:: n_b = n^{(1)}_b + n^{(2)}_b

  and likewise for hits and sums of confidence.

  Args:
    a: Statistics of one batch.
    b: Statistics of another, with as many bins.

  Returns:
    The statistics of both together: the same bits as :func:`bin_stats` of
    the two batches in one.

  Raises:
    TypeError: If ``a`` or ``b`` are no such statistics.
    ValueError: If their shapes differ, as with other numbers of bins.

  Examples:
    >>> stats = calibration.bin_stats(jnp.array([[0.9, 0.1]]), jnp.array([0]))
    >>> int(calibration.merge(stats, stats).counts.sum())
    2

  References:
    Chan, Golub and LeVeque, `Algorithms for Computing the Sample Variance
    <https://doi.org/10.2307/2683386>`_, 1983.
  """
  check_stats("a", a)
  check_stats("b", b)
  if a.counts.shape != b.counts.shape:
    raise ValueError(
      "a and b must have as many bins and the same leading shape, got "
      f"{a.counts.shape} and {b.counts.shape}; give bin_stats the same "
      "num_bins, and map over stacked statistics with jax.vmap."
    )
  return _add(a, b)


@jax.jit
def _add(a: BinStats, b: BinStats) -> BinStats:
  return BinStats(
    counts=a.counts + b.counts,
    hits=a.hits + b.hits,
    confidence_digits=_exact.carry(a.confidence_digits + b.confidence_digits),
    invalid=a.invalid + b.invalid,
  )
