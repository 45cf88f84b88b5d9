# SPDX-License-Identifier: Apache-2.0
"""Calibration errors read from binned statistics."""

import functools

import jax
from jax import Array
import jax.numpy as jnp

from squentropy_jax.calibration import _exact
from squentropy_jax.calibration._bins import BinStats, check_stats, poison


def check_norm(norm: float) -> None:
  """Raises unless ``norm`` is a Python number of at least 1."""
  if isinstance(norm, bool) or not isinstance(norm, int | float):
    raise TypeError(f"norm must be a Python number, got {norm!r}.")
  if not 1 <= norm < float("inf"):
    raise ValueError(
      f"norm must be at least 1 and finite, got {norm}; for the largest gap "
      "use maximum_calibration_error."
    )


@functools.partial(jax.jit, static_argnums=2)
def norm_of_gaps(share: Array, gap: Array, norm: float) -> Array:
  """``(sum_b share |gap|^norm)^(1/norm)`` over the last axis."""
  gap = jnp.abs(gap)
  if norm == 1:
    return jnp.sum(share * gap, axis=-1)
  # The largest gap is taken out, so that no power underflows.
  largest = jnp.max(gap, axis=-1, keepdims=True, initial=0)
  scale = jnp.where(largest == 0, 1, largest)
  mean = jnp.sum(share * (gap / scale) ** norm, axis=-1)
  return scale[..., 0] * mean ** (1 / norm)


@jax.jit
def gaps(stats: BinStats) -> tuple[Array, Array]:
  """Returns share and gap, accuracy less confidence, of each bin.

  An empty bin has share and gap 0; without any row both are NaN.
  """
  check_stats("stats", stats)
  dtype = jnp.result_type(float)
  # Subtracted digit by digit: the whole parts cancel before anything rounds.
  digits = (-stats.confidence_digits).at[..., 0, :].add(stats.hits)
  gap = _exact.to_float(_exact.carry(digits), dtype)
  counts = stats.counts.astype(dtype)
  total = counts.sum(-1, keepdims=True)
  share = jnp.where(total > 0, counts / total, jnp.nan)
  gap = jnp.where(total > 0, gap / jnp.maximum(counts, 1), jnp.nan)
  return poison(stats, share), poison(stats, gap)


def expected_calibration_error(stats: BinStats, *, norm: float = 1) -> Array:
  r"""Mean gap between accuracy and confidence over bins (ECE).

  .. math::

    \mathrm{ECE}_p = \Bigl(\sum_b \frac{n_b}{n}
    \Bigl|\frac{h_b}{n_b} - \frac{s_b}{n_b}\Bigr|^p\Bigr)^{1/p}

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
    TypeError: If ``stats`` is no such thing or ``norm`` no Python number.
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
  return norm_of_gaps(*gaps(stats), norm)


def maximum_calibration_error(stats: BinStats) -> Array:
  r"""Largest gap between accuracy and confidence over bins (MCE).

  .. math::

    \mathrm{MCE} = \max_{b : n_b > 0}
    \Bigl|\frac{h_b}{n_b} - \frac{s_b}{n_b}\Bigr|

  Args:
    stats: Statistics of :func:`bin_stats`.

  Returns:
    The error, a scalar (or the leading shape of ``stats``). NaN without any
    row, or where ``stats.invalid`` is above 0.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> stats = calibration.bin_stats(p, jnp.array([0, 1, 1]))
    >>> print(f"{calibration.maximum_calibration_error(stats):.3f}")
    0.600

  References:
    Naeini et al., `Obtaining Well Calibrated Probabilities Using Bayesian
    Binning <https://doi.org/10.1609/aaai.v29i1.9602>`_, 2015.
  """
  return jnp.max(jnp.abs(gaps(stats)[1]), axis=-1)


def debiased_calibration_error(stats: BinStats) -> Array:
  r"""Root mean square calibration error without the bias of small bins.

  .. math::

    \sqrt{\max\Bigl(0, \sum_{b : n_b \ge 2} \frac{n_b}{n} \Bigl[(A_b - C_b)^2
    - \frac{A_b (1 - A_b)}{n_b - 1}\Bigr]\Bigr)}

  with :math:`A_b = h_b / n_b` and :math:`C_b = s_b / n_b`. The term taken away
  is what the noise of the labels alone would add, so models may be compared
  across test sets of different sizes.

  Args:
    stats: Statistics of :func:`bin_stats`.

  Returns:
    The error, a scalar (or the leading shape of ``stats``). NaN without any
    row, or where ``stats.invalid`` is above 0.

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
  share, gap = gaps(stats)
  dtype = share.dtype
  counts, hits = stats.counts.astype(dtype), stats.hits.astype(dtype)
  # A_b (1 - A_b) from the integers: no digit is lost next to 0 and 1.
  misses = (stats.counts - stats.hits).astype(dtype)
  pairs = jnp.maximum(counts, 1) ** 2 * jnp.maximum(counts - 1, 1)
  noise = hits * (misses / pairs)
  terms = jnp.where(counts >= 2, share * (jnp.square(gap) - noise), 0)
  # NaN shares must show where every bin has less than two rows.
  total = jnp.sum(terms, axis=-1) + 0 * jnp.sum(share, axis=-1)
  return jnp.sqrt(jax.nn.relu(total))
