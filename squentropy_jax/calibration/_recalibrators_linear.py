# SPDX-License-Identifier: Apache-2.0
"""Linear maps of the logits: vector scaling and matrix (Dirichlet) scaling."""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import solvers
from squentropy_jax.calibration._recalibrators_apply import (
  apply_params,
  read_params,
)
from squentropy_jax.calibration._recalibrators_temperature import (
  best_inverse_temperature,
)
from squentropy_jax.calibration._row_functions import (
  class_index,
  largest,
  map_rows,
)
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  as_scalar,
  compiled_on_rows,
  read_examples,
  widen,
)


class VectorScaling(NamedTuple):
  """A weight and a bias for each class; see :func:`fit_vector_scaling`.

  Attributes:
    weight: The factor of each logit, ``[C]``.
    bias: The intercepts, ``[C]``, of mean 0.
  """

  weight: Array
  bias: Array


class MatrixScaling(NamedTuple):
  """A linear map of log-probabilities; see :func:`fit_matrix_scaling`.

  Attributes:
    weight: The matrix ``[C, C]``; row ``k`` gives the new logit of class ``k``.
    bias: The intercepts, ``[C]``, of mean 0.
  """

  weight: Array
  bias: Array


def _finite(x: Array) -> tuple[Array, Array]:
  """``x`` with 0 for ``-inf``, and which classes were so (impossible)."""
  impossible = x == -jnp.inf
  return jnp.where(impossible, 0, x), impossible


@apply_params.register
def _apply_vector(params: VectorScaling, logits: Array) -> Array:
  z, impossible = _finite(logits)
  size = z.shape[-1]
  fields = read_params(params, z.dtype, (size,), (size,))
  weight, bias = (jnp.broadcast_to(x, z.shape) for x in fields)
  return jnp.where(impossible, -jnp.inf, weight * z + bias)


@apply_params.register
def _apply_matrix(params: MatrixScaling, logits: Array) -> Array:
  z, impossible = _finite(jax.nn.log_softmax(logits, axis=-1))
  size = z.shape[-1]
  weight, bias = read_params(params, z.dtype, (size, size), (size,))
  # Probabilities that underflow become the least one that does not.
  z = jnp.maximum(z, float(np.log(jnp.finfo(z.dtype).tiny)))
  product = jnp.matmul(z, weight.T, precision=jax.lax.Precision.HIGHEST)
  product = product + jnp.broadcast_to(bias, z.shape)
  return jnp.where(impossible, -jnp.inf, product)


def _mean_cross_entropy(params: Any, rows: ScoredRows) -> Array:
  """Mean cross-entropy of recalibrated logits over the kept rows."""
  logits = widen(rows.fill_dropped(rows.scores))
  # Logits beyond this limit saturate, and products of them could overflow.
  limit = float(jnp.finfo(logits.dtype).max) ** 0.5
  bounded = jnp.clip(logits, -limit, limit)
  z = apply_params(params, jnp.where(logits == -jnp.inf, logits, bounded))
  # The plain formula compiles several times faster than losses.cross_entropy.
  is_label = class_index(z) == rows.labels[:, None]
  target = jnp.sum(jnp.where(is_label, z, 0), axis=-1)
  loss = jax.nn.logsumexp(z, axis=-1) - target
  count = jnp.sum(rows.keep, dtype=loss.dtype)
  return jnp.sum(jnp.where(rows.keep, loss, 0)) / count


def _finish(params: Any, beta: Array) -> Any:
  """Subtracts the mean of the bias; all NaN if ``beta`` is NaN."""
  params = params._replace(bias=params.bias - jnp.mean(params.bias))
  return jax.tree.map(lambda x: jnp.where(jnp.isnan(beta), jnp.nan, x), params)


def _median_gap(rows: ScoredRows) -> Array:
  """The median gap between the two largest logits; 1 if it is 0 or infinite.

  Masked classes do not change it, and a few outliers hardly do.
  """

  def of_block(scores: Array, _: Array) -> Array:
    z = widen(scores)
    first, prediction = largest(z)
    others = jnp.where(class_index(z) == prediction[:, None], -jnp.inf, z)
    return first - jnp.max(others, axis=-1)

  gap = rows.fill_dropped(map_rows(of_block, rows), jnp.inf)
  count = jnp.sum(rows.keep, dtype=jnp.int32)
  # Dropped rows sort last; one more entry in case there is no row.
  gap = jnp.sort(jnp.append(gap, jnp.inf))[jnp.maximum(count - 1, 0) // 2]
  return jnp.where((gap > 0) & (gap < jnp.inf), gap, 1)


@compiled_on_rows()
def _fit_vector(rows: ScoredRows, *, penalty: Array) -> VectorScaling:
  beta, scale = best_inverse_temperature(rows), _median_gap(rows)
  size = rows.scores.shape[-1]

  def of_change(change: VectorScaling) -> VectorScaling:
    return VectorScaling(beta + change.weight / scale, change.bias)

  def objective(change: VectorScaling) -> Array:
    squares = jnp.square(change.weight) + jnp.square(change.bias)
    loss = _mean_cross_entropy(of_change(change), rows)
    return loss + penalty * jnp.mean(squares)

  none = jnp.zeros(size, beta.dtype)
  best = solvers.newton(objective, VectorScaling(none, none))
  return _finish(of_change(best), beta)


@compiled_on_rows()
def _fit_matrix(
  rows: ScoredRows, *, off_diagonal: Array, intercept: Array
) -> MatrixScaling:
  beta = best_inverse_temperature(rows)
  size = rows.scores.shape[-1]
  identity = jnp.eye(size, dtype=beta.dtype)
  pairs = max(size * (size - 1), 1)

  def objective(params: MatrixScaling) -> Array:
    off = jnp.sum(jnp.square(params.weight * (1 - identity))) / pairs
    bias = jnp.mean(jnp.square(params.bias))
    loss = _mean_cross_entropy(params, rows)
    return loss + off_diagonal * off + intercept * bias

  start = MatrixScaling(beta * identity, jnp.zeros(size, beta.dtype))
  return _finish(solvers.newton(objective, start), beta)


def fit_vector_scaling(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  penalty: float = 1e-3,
  where: ArrayLike | None = None,
) -> VectorScaling:
  r"""Fits a factor and an intercept for each class (vector scaling).

  Use it if some classes are predicted too often: unlike a temperature it can
  correct each class, and it may change the predicted class.

  .. math::

    \min_{w, b} \; -\frac{1}{n} \sum_i
    \log \mathrm{softmax}(w \odot z_i + b)_{y_i} + \frac{\lambda}{C}
    \sum_k \bigl(s^2 (w_k - \beta)^2 + b_k^2\bigr)

  with :math:`\beta` the inverse temperature of :func:`fit_temperature` and
  :math:`s` the scale of the logits: the median over the examples of the gap
  between the two largest logits (the lower of two medians). The penalty
  :math:`\lambda` makes the result finite for data that the map can separate.
  The problem is convex, and is solved by Newton's method.

  Args:
    logits: Logits of held-out examples, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    penalty: The weight :math:`\lambda` of the penalty, at least 0.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`VectorScaling` for :func:`apply`. NaN in the
    cases of :func:`fit_temperature`.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape or ``penalty`` is wrong, or a concrete label is out
      of range.

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
  examples = read_examples("logits", logits, labels, where)
  weight = as_scalar("penalty", penalty, "[0, inf)", examples)
  return _fit_vector(examples, penalty=weight)


def fit_matrix_scaling(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  off_diagonal_penalty: float = 100.0,
  intercept_penalty: float = 1e-2,
  where: ArrayLike | None = None,
) -> MatrixScaling:
  r"""Fits a linear map of the log-probabilities (Dirichlet calibration).

  Use it with few classes and many held-out examples, if the confusion between
  particular pairs of classes needs correcting. It may change the predicted
  class.

  .. math::

    \min_{W, b} \; -\frac{1}{n} \sum_i
    \log \mathrm{softmax}(W \log p_i + b)_{y_i}
    + \frac{\lambda}{C (C - 1)} \sum_{j \ne k} W_{jk}^2
    + \frac{\mu}{C} \sum_k b_k^2

  with :math:`p` the softmax of the logits, at least the smallest normal number
  of the type. It has :math:`C^2 + C` parameters. With few held-out examples for
  each of them, raise the penalties or use :func:`fit_vector_scaling`. The
  problem is convex, and is solved by Newton's method from the solution of
  :func:`fit_temperature`.

  Args:
    logits: Logits of held-out examples, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    off_diagonal_penalty: The weight :math:`\lambda`, at least 0.
    intercept_penalty: The weight :math:`\mu`, at least 0.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`MatrixScaling` for :func:`apply`. NaN in the
    cases of :func:`fit_temperature`.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape or a penalty is wrong, or a concrete label is out of
      range.

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
  examples = read_examples("logits", logits, labels, where)
  off_diagonal = as_scalar(
    "off_diagonal_penalty", off_diagonal_penalty, "[0, inf)", examples
  )
  intercept = as_scalar(
    "intercept_penalty", intercept_penalty, "[0, inf)", examples
  )
  return _fit_matrix(examples, off_diagonal=off_diagonal, intercept=intercept)
