# SPDX-License-Identifier: Apache-2.0
"""Binned statistics of the top-label confidence, and errors read from them."""

import functools
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax.calibration import _exact
from squentropy_jax.calibration._rows import Rows, read_rows, top


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
    invalid: How many rows were kept but had a label out of range or a
      confidence outside [0, 1], ``[...]``. Above 0, every error is NaN.
  """

  counts: Array
  hits: Array
  confidence_digits: Array
  invalid: Array

  @property
  def accuracy(self) -> Array:
    """The share of hits in each bin ``[..., m]``; NaN in an empty bin."""
    dtype = jnp.result_type(float)
    counts = self.counts.astype(dtype)
    return _poison(self, self.hits.astype(dtype) / counts)

  @property
  def confidence(self) -> Array:
    """The mean confidence in each bin ``[..., m]``; NaN in an empty bin."""
    dtype = jnp.result_type(float)
    digits = _exact.carry(self.confidence_digits)
    total = digits[..., 0, :].astype(dtype) + _exact.fraction(digits, dtype)
    return _poison(self, total / self.counts.astype(dtype))


def _poison(stats: BinStats, value: Array) -> Array:
  """``value`` ``[..., m]``, NaN where the statistics cannot be trusted."""
  bad = (stats.invalid > 0) | jnp.any(stats.counts < 0, axis=-1)
  return jnp.where(bad[..., None], jnp.nan, value)


def check_num_bins(num_bins: int) -> None:
  """Raises unless ``num_bins`` is a positive Python integer."""
  if not isinstance(num_bins, int) or isinstance(num_bins, bool):
    raise TypeError(f"num_bins must be an int, got {num_bins!r}.")
  if num_bins < 1:
    raise ValueError(f"num_bins must be at least 1, got {num_bins}.")


def equal_width_bins(x: Array, num_bins: int) -> Array:
  """The bin of each ``x`` in [0, 1], left-closed, the last one closed."""
  # Edges are rounded to the type of x, so the nearest number to an edge lies
  # on it and opens its bin.
  edges = jnp.asarray(np.arange(1, num_bins) / num_bins, x.dtype)
  bins = jnp.searchsorted(edges, x, side="right", method="compare_all")
  return bins.astype(jnp.int32)


def sum_by_bin(
  confidence: Array, hit: Array, valid: Array, bins: Array, num_bins: int
) -> BinStats:
  """Adds rows ``[n]``; rows whose bin is ``num_bins`` are left out."""
  integers = jnp.concatenate(
    [
      jnp.ones_like(bins)[:, None],
      hit.astype(jnp.int32)[:, None],
      _exact.to_digits(confidence),
    ],
    axis=-1,
  )
  sums = _exact.segment_sum(integers, bins, num_bins)
  return BinStats(
    counts=sums[:, 0].sum(0),
    hits=sums[:, 1].sum(0),
    # Chunks are brought below 1024 a digit before they are added.
    confidence_digits=_exact.carry(_exact.carry(sums[:, 2:]).sum(0)),
    invalid=jnp.sum(~valid, dtype=jnp.int32),
  )


@functools.partial(jax.jit, static_argnames="num_bins")
def _bin_stats(rows: Rows, *, num_bins: int) -> BinStats:
  confidence, hit, valid = top(rows)
  bins = equal_width_bins(confidence, num_bins)
  bins = jnp.where(rows.keep & valid, bins, num_bins)
  return sum_by_bin(confidence, hit, valid, bins, num_bins)


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
  tied classes is the prediction.

  Args:
    probabilities: Predicted probabilities ``[..., C]``.
    labels: Integer class ids ``[...]``.
    num_bins: Number of bins, a Python integer.
    where: Boolean ``[...]``, which examples count. Dropped ones may hold
      anything, NaN included.

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
    >>> import jax.numpy as jnp
    >>> from squentropy_jax import calibration
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> stats = calibration.bin_stats(p, jnp.array([0, 1, 1]), num_bins=2)
    >>> stats.counts.tolist(), stats.hits.tolist()
    ([0, 3], [0, 2])

  References:
    Naeini et al., `Obtaining Well Calibrated Probabilities Using Bayesian
    Binning <https://doi.org/10.1609/aaai.v29i1.9602>`_, 2015
  """
  check_num_bins(num_bins)
  rows = read_rows("probabilities", probabilities, labels, where)
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
    ValueError: If the numbers of bins differ.

  Examples:
    >>> import jax.numpy as jnp
    >>> from squentropy_jax import calibration
    >>> stats = calibration.bin_stats(jnp.array([[0.9, 0.1]]), jnp.array([0]))
    >>> int(calibration.merge(stats, stats).counts.sum())
    2

  References:
    Chan, Golub and LeVeque, `Algorithms for Computing the Sample Variance
    <https://doi.org/10.2307/2683386>`_, 1983
  """
  if a.counts.shape[-1] != b.counts.shape[-1]:
    raise ValueError(
      f"a and b must have as many bins, got {a.counts.shape[-1]} and "
      f"{b.counts.shape[-1]}; give bin_stats the same num_bins."
    )
  return BinStats(
    counts=a.counts + b.counts,
    hits=a.hits + b.hits,
    confidence_digits=_exact.carry(a.confidence_digits + b.confidence_digits),
    invalid=a.invalid + b.invalid,
  )


def gaps(stats: BinStats) -> tuple[Array, Array]:
  """Returns share and gap, accuracy less confidence, of each bin.

  An empty bin has share and gap 0; with no row at all both are NaN.
  """
  dtype = jnp.result_type(float)
  digits = _exact.carry(stats.confidence_digits)
  # The whole parts cancel in int32, before anything rounds.
  whole = (stats.hits - digits[..., 0, :]).astype(dtype)
  counts = stats.counts.astype(dtype)
  gap = (whole - _exact.fraction(digits, dtype)) / jnp.maximum(counts, 1)
  total = counts.sum(-1, keepdims=True)
  share = counts / total
  gap = jnp.where(total > 0, gap, jnp.nan)
  return _poison(stats, share), _poison(stats, gap)


def norm_of_gaps(share: Array, gap: Array, norm: float) -> Array:
  """``(sum_b share |gap|^norm)^(1/norm)`` over the last axis."""
  if norm == 1:
    return jnp.sum(share * jnp.abs(gap), axis=-1)
  # The largest gap is taken out, so that small powers do not underflow.
  largest = jnp.max(jnp.abs(gap), axis=-1, keepdims=True)
  scale = jnp.where(largest > 0, largest, 1)
  mean = jnp.sum(share * jnp.abs(gap / scale) ** norm, axis=-1)
  return largest[..., 0] * mean ** (1 / norm)


def check_norm(norm: float) -> None:
  """Raises unless ``norm`` is a Python number of at least 1."""
  if isinstance(norm, bool) or not isinstance(norm, int | float):
    raise TypeError(f"norm must be a Python number, got {norm!r}.")
  if not 1 <= norm < float("inf"):
    raise ValueError(
      f"norm must be at least 1 and finite, got {norm}; the limit of large "
      "norms is maximum_calibration_error."
    )


def expected_calibration_error(stats: BinStats, *, norm: float = 1) -> Array:
  r"""Mean gap between accuracy and confidence over bins (ECE).

  .. math::

    \mathrm{ECE}_p = \Big(\sum_b \frac{n_b}{n}
    \Big|\frac{h_b}{n_b} - \frac{s_b}{n_b}\Big|^p\Big)^{1/p}

  where bin :math:`b` has :math:`n_b` rows, :math:`h_b` hits and the sum of
  confidence :math:`s_b`, and :math:`p` is ``norm``.

  Args:
    stats: Statistics of :func:`bin_stats`.
    norm: The power, a Python number of at least 1; 2 gives the root mean
      square calibration error.

  Returns:
    The error, a scalar (or the leading shape of ``stats``). NaN without any
    row, or where ``stats.invalid`` is above 0.

  Raises:
    TypeError: If ``norm`` is not a Python number.
    ValueError: If ``norm`` is below 1 or infinite.

  Examples:
    >>> import jax.numpy as jnp
    >>> from squentropy_jax import calibration
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> stats = calibration.bin_stats(p, jnp.array([0, 1, 1]), num_bins=2)
    >>> print(f"{calibration.expected_calibration_error(stats):.3f}")
    0.100

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017
  """
  check_norm(norm)
  return norm_of_gaps(*gaps(stats), norm)
