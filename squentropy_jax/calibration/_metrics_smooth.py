# SPDX-License-Identifier: Apache-2.0
"""Smooth calibration error: a kernel instead of bins."""

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import solvers
from squentropy_jax.calibration import _digit_sums
from squentropy_jax.calibration._row_functions import TopLabel, top_label
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  compiled_on_rows,
  read_examples,
)

# Points of the grid over [0, 1] on which the kernel is applied.
_GRID_SIZE = 4096


def _gridded_residual(top: TopLabel) -> Array:
  """The mean of hit minus confidence ``[_GRID_SIZE]``, at the confidences.

  Each row is shared by the two grid intervals whose centres are nearest.
  Beyond the outer centres it belongs to the outer interval.
  """
  place = top.confidence * _GRID_SIZE - 0.5
  lower = jnp.floor(place)
  upper_share = place - lower
  digits, intervals = [], []
  for step, share in ((0, 1 - upper_share), (1, upper_share)):
    interval = jnp.clip(lower.astype(jnp.int32) + step, 0, _GRID_SIZE - 1)
    intervals.append(jnp.where(top.use, interval, _GRID_SIZE))
    hit = jnp.where(top.hit, share, 0)
    digits.append(
      _digit_sums.to_digits(hit) - _digit_sums.to_digits(share * top.confidence)
    )
  sums = _digit_sums.sum_digits(
    jnp.concatenate(digits), jnp.concatenate(intervals), _GRID_SIZE
  )
  dtype = top.confidence.dtype
  count = jnp.sum(top.use, dtype=jnp.int32).astype(dtype)
  return _digit_sums.to_float(sums, dtype) / count


@compiled_on_rows()
def _smooth(rows: ScoredRows) -> Array:
  top = top_label(rows)
  dtype = top.confidence.dtype
  # Reflected at 0 and 1, the Gaussian is diagonal in the cosine basis.
  waves = jax.scipy.fft.dct(_gridded_residual(top))
  decay = 0.5 * np.square(np.pi * np.arange(_GRID_SIZE)).astype(dtype)

  def error(width: Array) -> Array:
    smoothed = waves * jnp.exp(-jnp.square(width) * decay)
    return jnp.sum(jnp.abs(jax.scipy.fft.idct(smoothed)))

  zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
  width = solvers.bisect(
    lambda width: width >= error(width), zero, one, jnp.finfo(dtype).nmant
  )
  undefined = jnp.any(top.invalid) | ~jnp.any(top.use)
  return jnp.where(undefined, jnp.nan, width)


def smooth_calibration_error(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> Array:
  r"""Computes the smooth calibration error of the top label (smECE).

  It has no bins to choose, and it changes little if the data change little.
  Use it to rank models and to follow a training run.

  .. math::

    \mathrm{smECE}_\sigma = \int_0^1 \Bigl|\frac{1}{n} \sum_i
    K_\sigma(t, c_i) (a_i - c_i)\Bigr| \, dt, \qquad
    \text{reported at } \sigma^* = \mathrm{smECE}_{\sigma^*}

  with the confidences :math:`c_i`, the hits :math:`a_i` and :math:`K_\sigma`
  the Gaussian of width :math:`\sigma`, reflected at 0 and 1. The error falls
  as the width rises, so there is exactly one such width. It is found by
  bisection. The integral is computed on a grid of 4096 intervals: the relative
  error is of the order of :math:`(8 \cdot 4096^2 \sigma^2)^{-1}`, which is
  1e-4 at :math:`\sigma` = 0.01.

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
    >>> p = jnp.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]])
    >>> error = calibration.smooth_calibration_error(p, jnp.array([0, 1, 1, 0]))
    >>> print(f"{error:.3f}")
    0.400

  References:
    Błasiok and Nakkiran, `Smooth ECE: Principled Reliability Diagrams via
    Kernel Smoothing <https://arxiv.org/abs/2309.12236>`_, 2023.
  """
  examples = read_examples("probabilities", probabilities, labels, where)
  return _smooth(examples)
