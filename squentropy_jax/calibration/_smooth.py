# SPDX-License-Identifier: Apache-2.0
"""Smooth calibration error: a kernel in the place of bins."""

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax.calibration import _exact, _inputs

_CELLS = 4096


def _residual(top: _inputs.Top) -> Array:
  """The mean of hit less confidence ``[_CELLS]``, where the confidence lies.

  Each row is shared by the two cells whose centres are nearest; beyond the
  outer centres it is reflected into the same cell.
  """
  place = top.confidence * _CELLS - 0.5
  lower = jnp.floor(place)
  upper_share = place - lower
  digits, cells = [], []
  for step, share in ((0, 1 - upper_share), (1, upper_share)):
    cell = jnp.clip(lower.astype(jnp.int32) + step, 0, _CELLS - 1)
    cells.append(jnp.where(top.use, cell, _CELLS))
    hit = jnp.where(top.hit, share, 0)
    digits.append(
      _exact.to_digits(hit) - _exact.to_digits(share * top.confidence)
    )
  total = _exact.sum_digits(
    jnp.concatenate(digits), jnp.concatenate(cells), _CELLS
  )
  dtype = top.confidence.dtype
  count = jnp.sum(top.use, dtype=jnp.int32).astype(dtype)
  return _exact.to_float(total, dtype) / count


@_inputs.compiled()
def _smooth(rows: _inputs.Rows) -> Array:
  top = _inputs.top(rows)
  dtype = top.confidence.dtype
  # Reflected at 0 and 1, the Gaussian is diagonal in the cosine basis.
  waves = jax.scipy.fft.dct(_residual(top))
  decay = 0.5 * np.square(np.pi * np.arange(_CELLS)).astype(dtype)

  def error(width: Array) -> Array:
    smoothed = waves * jnp.exp(-jnp.square(width) * decay)
    return jnp.sum(jnp.abs(jax.scipy.fft.idct(smoothed)))

  def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds
    middle = (low + high) / 2
    wide = middle >= error(middle)
    return jnp.where(wide, low, middle), jnp.where(wide, middle, high)

  # The start is made of the data, so that it varies over its mesh axes.
  zero = 0 * error(jnp.zeros((), dtype))
  steps = jnp.finfo(dtype).nmant
  low, high = jax.lax.fori_loop(0, steps, halve, (zero, zero + 1))
  return jnp.where(jnp.any(top.invalid), jnp.nan, (low + high) / 2 + zero)


def smooth_calibration_error(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> Array:
  r"""Smooth calibration error of the top label (smECE): no bins to choose.

  .. math::

    \mathrm{smECE}_\sigma = \int_0^1 \Bigl|\frac{1}{n} \sum_i
    K_\sigma(t, c_i) (a_i - c_i)\Bigr| \, dt, \qquad
    \text{reported at } \sigma^* = \mathrm{smECE}_{\sigma^*}

  with :math:`K_\sigma` the Gaussian of width :math:`\sigma` reflected at 0 and
  1. The error falls as the width rises, so there is one such width, found by
  bisection. The integral is taken on 4096 cells: the relative error is of the
  order of :math:`(8 \cdot 4096^2 \sigma^2)^{-1}`, 1e-4 at :math:`\sigma` =
  0.01.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any row, or where a row is invalid (see
    :class:`BinStats`).

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]])
    >>> error = calibration.smooth_calibration_error(p, jnp.array([0, 1, 1, 0]))
    >>> print(f"{error:.3f}")
    0.400

  References:
    Błasiok and Nakkiran, `Smooth ECE: Principled Reliability Diagrams via
    Kernel Smoothing <https://arxiv.org/abs/2309.12236>`_, 2023.
  """
  rows = _inputs.read_rows("probabilities", probabilities, labels, where)
  return _smooth(rows)
