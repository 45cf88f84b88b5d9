# SPDX-License-Identifier: Apache-2.0
"""Calibration errors computed from binned statistics."""

import functools

import jax
from jax import Array
import jax.numpy as jnp

from squentropy_jax.calibration import _digit_sums
from squentropy_jax.calibration._metrics_bin_stats import (
  BinStats,
  check_stats,
  nan_if_invalid,
)


def check_norm(norm: float) -> None:
  """Raises unless ``norm`` is a Python number of at least 1."""
  if isinstance(norm, bool) or not isinstance(norm, int | float):
    raise TypeError(f"norm must be a Python number, got {norm!r}.")
  if not 1 <= norm < float("inf"):
    raise ValueError(
      f"norm must be at least 1 and finite, got {norm}. For the largest gap "
      "use maximum_calibration_error."
    )


@functools.partial(jax.jit, static_argnums=2)
def norm_of_gaps(share: Array, gap: Array, norm: float) -> Array:
  """``(sum_b share |gap|^norm)^(1/norm)`` over the last axis."""
  gap = jnp.abs(gap)
  if norm == 1:
    return jnp.sum(share * gap, axis=-1)
  # Dividing by the largest gap keeps the powers from underflowing.
  largest = jnp.max(gap, axis=-1, keepdims=True, initial=0)
  scale = jnp.where(largest == 0, 1, largest)
  mean = jnp.sum(share * (gap / scale) ** norm, axis=-1)
  return scale[..., 0] * mean ** (1 / norm)


@jax.jit
def _shares_and_gaps(stats: BinStats) -> tuple[Array, Array]:
  """The share of examples and accuracy minus confidence of each bin.

  An empty bin has share and gap 0. Without any example both are NaN.
  """
  check_stats("stats", stats)
  dtype = jnp.result_type(float)
  # Subtracted digit by digit: the integers cancel before anything rounds.
  digits = (-stats.confidence_digits).at[..., 0, :].add(stats.hits)
  gap = _digit_sums.to_float(_digit_sums.carry(digits), dtype)
  counts = stats.counts.astype(dtype)
  num_rows = counts.sum(-1, keepdims=True)
  share = jnp.where(num_rows > 0, counts / num_rows, jnp.nan)
  gap = jnp.where(num_rows > 0, gap / jnp.maximum(counts, 1), jnp.nan)
  return nan_if_invalid(stats, share), nan_if_invalid(stats, gap)


def expected_calibration_error(stats: BinStats, *, norm: float = 1) -> Array:
  r"""Computes the expected calibration error (ECE).

  It is the mean gap between accuracy and confidence over bins of equal width.
  Use it to compare with published results; state the number of bins and of
  examples with it.

  .. math::

    \mathrm{ECE}_p = \Bigl(\sum_b \frac{n_b}{n}
    \Bigl|\frac{h_b}{n_b} - \frac{s_b}{n_b}\Bigr|^p\Bigr)^{1/p}

  where bin :math:`b` has :math:`n_b` examples, :math:`h_b` hits and the summed
  confidence :math:`s_b`, and :math:`p` is ``norm``.

  Args:
    stats: Statistics from :func:`bin_stats`.
    norm: The power, a Python number of at least 1. 2 gives the root mean
      square calibration error.

  Returns:
    The error, a scalar (or the leading shape of ``stats``). NaN without any
    example, or if ``stats.invalid`` is not 0.

  Raises:
    TypeError: If ``stats`` is not a :class:`BinStats` or ``norm`` is not a
      Python number.
    ValueError: If ``norm`` is below 1 or infinite.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> stats = calibration.bin_stats(p, jnp.array([0, 1, 1]), num_bins=2)
    >>> print(f"{calibration.expected_calibration_error(stats):.3f}")
    0.100

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017.
  """
  check_norm(norm)
  return norm_of_gaps(*_shares_and_gaps(stats), norm)


def maximum_calibration_error(stats: BinStats) -> Array:
  r"""Computes the maximum calibration error (MCE).

  It is the largest gap between accuracy and confidence over bins of equal
  width. Use it if the worst case matters and every bin has many examples.

  .. math::

    \mathrm{MCE} = \max_{b : n_b > 0}
    \Bigl|\frac{h_b}{n_b} - \frac{s_b}{n_b}\Bigr|

  with the symbols of :func:`expected_calibration_error`.

  Args:
    stats: Statistics from :func:`bin_stats`.

  Returns:
    The error, a scalar (or the leading shape of ``stats``). NaN without any
    example, or if ``stats.invalid`` is not 0.

  Raises:
    TypeError: If ``stats`` is not a :class:`BinStats`.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> stats = calibration.bin_stats(p, jnp.array([0, 1, 1]))
    >>> print(f"{calibration.maximum_calibration_error(stats):.3f}")
    0.600

  References:
    Naeini et al., `Obtaining Well Calibrated Probabilities Using Bayesian
    Binning <https://doi.org/10.1609/aaai.v29i1.9602>`_, 2015.
  """
  return jnp.max(jnp.abs(_shares_and_gaps(stats)[1]), axis=-1)


def debiased_calibration_error(stats: BinStats) -> Array:
  r"""Computes the root mean square calibration error without its bias.

  A binned error is too large on average, because the labels in each bin are
  random. This one subtracts the expected excess. Use it with few examples, or
  to compare models on test sets of different sizes.

  .. math::

    \sqrt{\max\Bigl(0, \sum_{b : n_b \ge 2} \frac{n_b}{n} \Bigl[(A_b - C_b)^2
    - \frac{A_b (1 - A_b)}{n_b - 1}\Bigr]\Bigr)}

  with :math:`A_b = h_b / n_b` and :math:`C_b = s_b / n_b`, in the symbols of
  :func:`expected_calibration_error`.

  Args:
    stats: Statistics from :func:`bin_stats`.

  Returns:
    The error, a scalar (or the leading shape of ``stats``). NaN without any
    example, or if ``stats.invalid`` is not 0.

  Raises:
    TypeError: If ``stats`` is not a :class:`BinStats`.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]])
    >>> stats = calibration.bin_stats(p, jnp.array([1, 0, 1]), num_bins=1)
    >>> print(f"{calibration.debiased_calibration_error(stats):.3f}")
    0.867

  References:
    Kumar, Liang and Ma, `Verified Uncertainty Calibration
    <https://arxiv.org/abs/1909.10155>`_, 2019.
  """
  return _debiased(stats)


@jax.jit
def _debiased(stats: BinStats) -> Array:
  share, gap = _shares_and_gaps(stats)
  dtype = share.dtype
  counts, hits = stats.counts.astype(dtype), stats.hits.astype(dtype)
  # A_b (1 - A_b) from the integers: no cancellation next to 0 and 1.
  misses = (stats.counts - stats.hits).astype(dtype)
  pairs = jnp.maximum(counts, 1) ** 2 * jnp.maximum(counts - 1, 1)
  noise = hits * (misses / pairs)
  terms = jnp.where(counts >= 2, share * (jnp.square(gap) - noise), 0)
  # The second term is NaN where the shares are, also if no bin has two rows.
  square = jnp.sum(terms, axis=-1) + 0 * jnp.sum(share, axis=-1)
  return jnp.sqrt(jax.nn.relu(square))
