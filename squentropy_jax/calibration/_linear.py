# SPDX-License-Identifier: Apache-2.0
"""Vector and matrix (Dirichlet) scaling."""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core.solvers import minimize
from squentropy_jax.calibration import _inputs
from squentropy_jax.calibration._apply import read_params, recalibrated
from squentropy_jax.calibration._temperature import best_inverse_temperature


class VectorScaling(NamedTuple):
  """A weight and a bias for each class; see :func:`fit_vector_scaling`.

  Attributes:
    weight: Factors on the logits, ``[C]``.
    bias: What is added to them, ``[C]``, of mean 0.
  """

  weight: Array
  bias: Array


class MatrixScaling(NamedTuple):
  """A linear map of log-probabilities; see :func:`fit_matrix_scaling`.

  Attributes:
    weight: The matrix ``[C, C]``; row ``k`` makes the new logit of class ``k``.
    bias: What is added, ``[C]``, of mean 0.
  """

  weight: Array
  bias: Array


def _finite(x: Array) -> tuple[Array, Array]:
  """``x`` with 0 for ``-inf``, and where that was: the impossible classes."""
  impossible = x == -jnp.inf
  return jnp.where(impossible, 0, x), impossible


@recalibrated.register
def _apply_vector(params: VectorScaling, logits: Array) -> Array:
  z, impossible = _finite(logits)
  size = z.shape[-1]
  fields = read_params(params, z.dtype, (size,), (size,))
  weight, bias = (jnp.broadcast_to(x, z.shape) for x in fields)
  return jnp.where(impossible, -jnp.inf, weight * z + bias)


@recalibrated.register
def _apply_matrix(params: MatrixScaling, logits: Array) -> Array:
  z, impossible = _finite(jax.nn.log_softmax(logits, axis=-1))
  size = z.shape[-1]
  weight, bias = read_params(params, z.dtype, (size, size), (size,))
  # A probability that underflows is as good as the least that does not.
  z = jnp.maximum(z, float(np.log(jnp.finfo(z.dtype).tiny)))
  product = jnp.matmul(z, weight.T, precision=jax.lax.Precision.HIGHEST)
  product = product + jnp.broadcast_to(bias, z.shape)
  return jnp.where(impossible, -jnp.inf, product)


def _mean_loss(params: Any, rows: _inputs.Rows) -> Array:
  """Mean cross-entropy of recalibrated logits over the kept rows."""
  logits = _inputs.widen(jnp.where(rows.keep[:, None], rows.scores, 0))
  # Nothing this far off has a probability, and no product of it overflows.
  limit = float(jnp.finfo(logits.dtype).max) ** 0.5
  bounded = jnp.clip(logits, -limit, limit)
  z = recalibrated(params, jnp.where(logits == -jnp.inf, logits, bounded))
  # The plain form: its second derivatives compile in a fraction of the time.
  is_label = _inputs.class_ids(z) == rows.labels[:, None]
  target = jnp.sum(jnp.where(is_label, z, 0), axis=-1)
  loss = jax.nn.logsumexp(z, axis=-1) - target
  count = jnp.sum(rows.keep, dtype=loss.dtype)
  return jnp.sum(jnp.where(rows.keep, loss, 0)) / count


def _finish(params: Any, beta: Array) -> Any:
  """Takes the mean of the bias away; all NaN where ``beta`` is."""
  params = params._replace(bias=params.bias - jnp.mean(params.bias))
  return jax.tree.map(lambda x: jnp.where(jnp.isnan(beta), jnp.nan, x), params)


def _median_gap(rows: _inputs.Rows) -> Array:
  """The median gap between the two largest logits; 1 if it tells nothing.

  Neither masked classes nor a few wild rows move it.
  """

  def of_block(scores: Array, keep: Array) -> Array:
    z = _inputs.widen(jnp.where(keep[:, None], scores, 0))
    largest, first = _inputs.largest(z)
    others = jnp.where(_inputs.class_ids(z) == first[:, None], -jnp.inf, z)
    return jnp.where(keep, largest - jnp.max(others, axis=-1), jnp.inf)

  gap = _inputs.map_rows(of_block, rows.scores, rows.keep)
  count = jnp.sum(rows.keep, dtype=jnp.int32)
  # Dropped rows come last, with one more of them if there are no others.
  gap = jnp.sort(jnp.append(gap, jnp.inf))[jnp.maximum(count - 1, 0) // 2]
  return jnp.where((gap > 0) & (gap < jnp.inf), gap, 1)


@_inputs.compiled()
def _fit_vector(rows: _inputs.Rows, *, penalty: Array) -> VectorScaling:
  beta, scale = best_inverse_temperature(rows), _median_gap(rows)
  size = rows.scores.shape[-1]

  def of_change(change: VectorScaling) -> VectorScaling:
    return VectorScaling(beta + change.weight / scale, change.bias)

  def objective(change: VectorScaling) -> Array:
    squares = jnp.square(change.weight) + jnp.square(change.bias)
    return _mean_loss(of_change(change), rows) + penalty * jnp.mean(squares)

  none = jnp.zeros(size, beta.dtype)
  best = minimize(objective, VectorScaling(none, none))
  return _finish(of_change(best), beta)


@_inputs.compiled()
def _fit_matrix(
  rows: _inputs.Rows, *, off_diagonal: Array, intercept: Array
) -> MatrixScaling:
  beta = best_inverse_temperature(rows)
  size = rows.scores.shape[-1]
  identity = jnp.eye(size, dtype=beta.dtype)
  pairs = max(size * (size - 1), 1)

  def objective(params: MatrixScaling) -> Array:
    off = jnp.sum(jnp.square(params.weight * (1 - identity))) / pairs
    bias = jnp.mean(jnp.square(params.bias))
    return _mean_loss(params, rows) + off_diagonal * off + intercept * bias

  start = MatrixScaling(beta * identity, jnp.zeros(size, beta.dtype))
  return _finish(minimize(objective, start), beta)


def fit_vector_scaling(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  penalty: float = 1e-3,
  where: ArrayLike | None = None,
) -> VectorScaling:
  r"""Fits a factor and a shift for each class.

  .. math::

    \min_{w, b} \; -\frac{1}{n} \sum_i
    \log \mathrm{softmax}(w \odot z_i + b)_{y_i} + \frac{\lambda}{C}
    \sum_k s^2 (w_k - \beta)^2 + b_k^2

  with :math:`\beta` of temperature scaling, towards which the penalty
  :math:`\lambda` pulls: without it, data that the map can separate have no
  finite answer. The scale :math:`s` of the logits is the median over the rows
  of the gap between the two largest of them (the lower of two medians). The
  problem is convex and solved by Newton's method. The prediction may change.

  Args:
    logits: Logits of held-out examples, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    penalty: The weight :math:`\lambda` of the penalty, at least 0.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A :class:`VectorScaling` for :func:`apply`. NaN as :func:`fit_temperature`.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape or ``penalty`` does not fit, or a label known at
      call time is out of range.

  Examples:
    >>> z = jnp.zeros((4, 2))
    >>> params = calibration.fit_vector_scaling(
    ...   z, jnp.array([0, 0, 0, 1]), penalty=0.0
    ... )
    >>> print(jax.nn.softmax(calibration.apply(params, z[0])).round(3))
    [0.75 0.25]

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017.
  """
  rows = _inputs.read_rows("logits", logits, labels, where)
  weight = _inputs.as_scalar("penalty", penalty, "[0, inf)", rows)
  return _fit_vector(rows, penalty=weight)


def fit_matrix_scaling(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  off_diagonal_penalty: float = 100.0,
  intercept_penalty: float = 1e-2,
  where: ArrayLike | None = None,
) -> MatrixScaling:
  r"""Fits a linear map of the log-probabilities (Dirichlet calibration).

  .. math::

    \min_{W, b} \; -\frac{1}{n} \sum_i
    \log \mathrm{softmax}(W \log p_i + b)_{y_i}
    + \frac{\lambda}{C (C - 1)} \sum_{j \ne k} W_{jk}^2
    + \frac{\mu}{C} \sum_k b_k^2

  with :math:`p` the softmax of the logits, and at least the least normal number
  of the type. It has :math:`C^2 + C` parameters:
  with few held-out rows for each of them choose larger penalties, or
  :func:`fit_vector_scaling`. The problem is convex and solved by Newton's
  method, started from temperature scaling. The prediction may change.

  Args:
    logits: Logits of held-out examples, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    off_diagonal_penalty: The weight :math:`\lambda`, at least 0.
    intercept_penalty: The weight :math:`\mu`, at least 0.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A :class:`MatrixScaling` for :func:`apply`. NaN as :func:`fit_temperature`.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape or a penalty does not fit, or a label known at call
      time is out of range.

  Examples:
    >>> z = jnp.zeros((4, 2))
    >>> params = calibration.fit_matrix_scaling(
    ...   z, jnp.array([0, 0, 0, 1]), intercept_penalty=0.0
    ... )
    >>> print(jax.nn.softmax(calibration.apply(params, z[0])).round(3))
    [0.75 0.25]

  References:
    Kull et al., `Beyond Temperature Scaling: Obtaining Well-Calibrated
    Multiclass Probabilities with Dirichlet Calibration
    <https://arxiv.org/abs/1910.12656>`_, 2019.
  """
  rows = _inputs.read_rows("logits", logits, labels, where)
  limits = "[0, inf)"
  off_diagonal = _inputs.as_scalar(
    "off_diagonal_penalty", off_diagonal_penalty, limits, rows
  )
  intercept = _inputs.as_scalar(
    "intercept_penalty", intercept_penalty, limits, rows
  )
  return _fit_matrix(rows, off_diagonal=off_diagonal, intercept=intercept)
