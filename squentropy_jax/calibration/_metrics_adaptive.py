# SPDX-License-Identifier: Apache-2.0
"""Calibration error over bins with equal numbers of examples."""

from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax.calibration import _digit_sums
from squentropy_jax.calibration._confidence_order import sort_by_confidence
from squentropy_jax.calibration._metrics_binned_errors import (
  check_norm,
  norm_of_gaps,
)
from squentropy_jax.calibration._row_functions import top_label
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  check_int,
  compiled_on_rows,
  read_examples,
)


@compiled_on_rows("num_bins", "norm")
def _adaptive(rows: ScoredRows, *, num_bins: int, norm: float) -> Array:
  ordered = sort_by_confidence(top_label(rows))
  dtype = ordered.confidence.dtype
  rank = jnp.arange(ordered.confidence.shape[0], dtype=jnp.int32)
  # The first `longer` bins have one row more than the others.
  length, longer = ordered.size // num_bins, ordered.size % num_bins
  border = longer * (length + 1)
  bins = jnp.where(
    rank < border,
    rank // (length + 1),
    longer + (rank - border) // jnp.maximum(length, 1),
  )
  bins = jnp.where(ordered.use, bins, num_bins)
  accuracy = ordered.hits.astype(dtype) / ordered.ties.astype(dtype)
  digits = _digit_sums.to_digits(accuracy)
  digits = digits - _digit_sums.to_digits(ordered.confidence)
  sums = _digit_sums.sum_digits(digits, bins, num_bins)
  sums = _digit_sums.to_float(sums, dtype)
  index = jnp.arange(num_bins, dtype=jnp.int32)
  counts = (length + (index < longer).astype(jnp.int32)).astype(dtype)
  share = counts / ordered.size.astype(dtype)
  error = norm_of_gaps(share, sums / jnp.maximum(counts, 1), norm)
  return jnp.where(ordered.invalid | (ordered.size == 0), jnp.nan, error)


def adaptive_calibration_error(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  num_bins: int = 15,
  norm: float = 1,
  where: ArrayLike | None = None,
) -> Array:
  r"""Computes the calibration error over bins with equal numbers of examples.

  Use it if most confidences are close to each other, such as near 1: bins of
  equal width would put most examples into one bin.

  .. math::

    \Bigl(\sum_b \frac{n_b}{n} \Bigl|\frac{1}{n_b} \sum_{i \in B_b}
    (a_i - c_i)\Bigr|^p\Bigr)^{1/p}

  The examples are sorted by confidence :math:`c_i` and cut into :math:`m` =
  ``num_bins`` bins. The first :math:`n \bmod m` bins have one example more.
  Examples of equal confidence share the mean of their hits :math:`a_i`, so the
  order of the data does not matter. With fewer examples than bins, each
  example is a bin.

  Other libraries use the name also for the mean of such errors over all
  classes (Nixon et al.), and for the unweighted mean of gaps over bins of
  equal width.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    num_bins: Number of bins, a Python int.
    norm: The power :math:`p`, a Python number of at least 1.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any example, or if an included one is invalid (see
    :class:`BinStats`).

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape or value is wrong, or a concrete label is out of
      range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> error = calibration.adaptive_calibration_error(
    ...   p, jnp.array([0, 1, 1, 1]), num_bins=2
    ... )
    >>> print(f"{error:.3f}")
    0.150

  References:
    Nguyen and O'Connor, `Posterior Calibration and Exploratory Analysis for
    Natural Language Processing Models <https://arxiv.org/abs/1508.05154>`_,
    2015.

    Nixon et al., `Measuring Calibration in Deep Learning
    <https://arxiv.org/abs/1904.01685>`_, 2019.
  """
  check_int("num_bins", num_bins, 1)
  check_norm(norm)
  examples = read_examples("probabilities", probabilities, labels, where)
  return _adaptive(examples, num_bins=num_bins, norm=norm)
