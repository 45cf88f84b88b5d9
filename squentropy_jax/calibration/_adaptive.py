# SPDX-License-Identifier: Apache-2.0
"""Calibration error over bins of equal mass."""

from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax.calibration import _exact, _inputs
from squentropy_jax.calibration._errors import check_norm, norm_of_gaps
from squentropy_jax.calibration._order import order


@_inputs.compiled("num_bins", "norm")
def _adaptive(rows: _inputs.Rows, *, num_bins: int, norm: float) -> Array:
  ordered = order(_inputs.top(rows))
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
  digits = _exact.to_digits(accuracy) - _exact.to_digits(ordered.confidence)
  total = _exact.to_float(_exact.sum_digits(digits, bins, num_bins), dtype)
  index = jnp.arange(num_bins, dtype=jnp.int32)
  counts = (length + (index < longer).astype(jnp.int32)).astype(dtype)
  share = counts / ordered.size.astype(dtype)
  error = norm_of_gaps(share, total / jnp.maximum(counts, 1), norm)
  return jnp.where(ordered.invalid | (ordered.size == 0), jnp.nan, error)


def adaptive_calibration_error(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  num_bins: int = 15,
  norm: float = 1,
  where: ArrayLike | None = None,
) -> Array:
  r"""Calibration error of the top label over bins of equal mass.

  .. math::

    \Bigl(\sum_b \frac{n_b}{n} \Bigl|\frac{1}{n_b} \sum_{i \in B_b}
    (a_i - c_i)\Bigr|^p\Bigr)^{1/p}

  where the rows, sorted by confidence :math:`c_i`, are cut into ``num_bins``
  runs, the first :math:`n \bmod m` of them one row longer. Rows of one
  confidence share the mean of their hits :math:`a_i`, so the order of rows
  does not matter even if ties straddle a border. With fewer rows than bins
  each row is a bin.

  The name stands for three things elsewhere: this one; the mean of equal-mass
  errors over all classes (Nixon et al.); and the unweighted mean of gaps over
  bins of equal width.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    num_bins: Number of bins, a Python int.
    norm: The power :math:`p`, a Python number of at least 1.
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
  _inputs.check_int("num_bins", num_bins, 1)
  check_norm(norm)
  rows = _inputs.read_rows("probabilities", probabilities, labels, where)
  return _adaptive(rows, num_bins=num_bins, norm=norm)
