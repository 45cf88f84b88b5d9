# SPDX-License-Identifier: Apache-2.0
"""Linear maps of the logits: vector scaling and matrix (Dirichlet) scaling."""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import solvers
from squentropy_jax.calibration._recalibrators_apply import (
  apply_params,
  bounded_logits,
  finite_logits,
  mean_cross_entropy,
  read_params,
  scaled_log_probabilities,
)
from squentropy_jax.calibration._recalibrators_temperature import (
  best_inverse_temperature,
  median_gap,
  working_scale,
)
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  as_scalar,
  compiled_on_rows,
  read_examples,
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
    scale: The factor on the logits before their softmax.
    floor: The least log-probability; smaller ones are replaced by it.
    weight: The matrix ``[C, C]``; row ``k`` gives the new logit of class ``k``.
    bias: The intercepts, ``[C]``, of mean 0.
  """

  scale: Array
  floor: Array
  weight: Array
  bias: Array


def linear_map(x: Array, weight: Array, bias: Array) -> Array:
  """``weight x + bias`` in each row of finite numbers ``[..., C]``."""
  product = jnp.matmul(x, weight.T, precision=jax.lax.Precision.HIGHEST)
  return product + jnp.broadcast_to(bias, x.shape)


@apply_params.register
def _apply_vector(params: VectorScaling, logits: Array) -> Array:
  z, impossible = finite_logits(logits)
  size = z.shape[-1]
  fields = read_params(params, z.dtype, (size,), (size,))
  weight, bias = (jnp.broadcast_to(x, z.shape) for x in fields)
  return jnp.where(impossible, -jnp.inf, weight * z + bias)


def _matrix_inputs(logits: Array, beta: Array, floor: Array) -> Array:
  """The log-probabilities that the matrix multiplies; 0 if impossible."""
  x = jnp.maximum(scaled_log_probabilities(logits, beta), floor)
  return jnp.where(logits == -jnp.inf, 0, x)


@apply_params.register
def _apply_matrix(params: MatrixScaling, logits: Array) -> Array:
  size, dtype = logits.shape[-1], logits.dtype
  beta, floor, weight, bias = read_params(
    params, dtype, (), (), (size, size), (size,)
  )
  new = linear_map(_matrix_inputs(logits, beta, floor), weight, bias)
  return jnp.where(logits == -jnp.inf, -jnp.inf, new)


def _finish(params: Any, beta: Array) -> Any:
  """Subtracts the mean of the bias; all NaN if ``beta`` is NaN."""
  params = params._replace(bias=params.bias - jnp.mean(params.bias))
  return jax.tree.map(lambda x: jnp.where(jnp.isnan(beta), jnp.nan, x), params)


@compiled_on_rows()
def _fit_vector(rows: ScoredRows, *, penalty: Array) -> VectorScaling:
  beta, scale = best_inverse_temperature(rows), median_gap(rows)
  logits, size = bounded_logits(rows), rows.scores.shape[-1]
  penalty = penalty / jnp.sum(rows.keep, dtype=beta.dtype)

  def of_change(change: VectorScaling) -> VectorScaling:
    return VectorScaling(beta + change.weight / scale, change.bias)

  def objective(change: VectorScaling) -> Array:
    squares = jnp.square(change.weight) + jnp.square(change.bias)
    loss = mean_cross_entropy(apply_params(of_change(change), logits), rows)
    return loss + penalty * jnp.mean(squares)

  none = jnp.zeros(size, beta.dtype)
  best = solvers.newton(objective, VectorScaling(none, none))
  return _finish(of_change(best), beta)


@compiled_on_rows()
def _fit_matrix(
  rows: ScoredRows, *, off_diagonal: Array, intercept: Array
) -> MatrixScaling:
  beta, logits = best_inverse_temperature(rows), bounded_logits(rows)
  size, count = rows.scores.shape[-1], jnp.sum(rows.keep, dtype=beta.dtype)
  identity = jnp.eye(size, dtype=beta.dtype)
  scale, limit = working_scale(rows, beta)
  x = _matrix_inputs(logits, scale, -limit)
  impossible = logits == -jnp.inf

  def objective(map_: tuple[Array, Array]) -> Array:
    weight, bias = map_
    new = jnp.where(impossible, -jnp.inf, linear_map(x, weight, bias))
    off = jnp.sum(jnp.square(weight * (1 - identity)))
    squares = (size - 1) * off_diagonal * off
    squares += intercept * jnp.sum(jnp.square(bias))
    return mean_cross_entropy(new, rows) + size / count * squares

  start = beta / scale * identity, jnp.zeros(size, beta.dtype)
  weight, bias = solvers.newton(objective, start)
  return _finish(MatrixScaling(scale, -limit, weight, bias), beta)


def fit_vector_scaling(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  penalty: float = 1.0,
  where: ArrayLike | None = None,
) -> VectorScaling:
  r"""Fits a factor and an intercept for each class (vector scaling).

  Use it if some classes are predicted too often: unlike a temperature it can
  correct each class, and it may change the predicted class.

  .. math::

    \min_{w, b} \; -\frac{1}{n} \sum_i
    \log \mathrm{softmax}(w \odot z_i + b)_{y_i} + \frac{\lambda}{n C}
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
  off_diagonal_penalty: float = 1.0,
  intercept_penalty: float = 1.0,
  where: ArrayLike | None = None,
) -> MatrixScaling:
  r"""Fits a linear map of the log-probabilities (Dirichlet calibration).

  Use it with few classes and many held-out examples, if the confusion between
  particular pairs of classes needs correcting. It may change the predicted
  class.

  .. math::

    \min_{W, b} \; -\frac{1}{n} \sum_i
    \log \mathrm{softmax}(W \log p_i + b)_{y_i}
    + \lambda \frac{C (C - 1)}{n} \sum_{j \ne k} W_{jk}^2
    + \mu \frac{C}{n} \sum_k b_k^2

  with :math:`p_i = \mathrm{softmax}(\gamma z_i)`. The scale :math:`\gamma` is
  the inverse temperature :math:`\beta` of :func:`fit_temperature`, or the
  reciprocal of the median gap between the two largest logits if that is larger.
  Values of :math:`\log p` whose probability at :math:`\beta` would underflow
  are replaced by the least that does not.

  The map has :math:`C^2 + C` parameters. With few held-out examples for each of
  them use :func:`fit_structured_matrix_scaling`, which has a penalty on the
  diagonal too. The problem is convex, and is solved by Newton's method from the
  solution of :func:`fit_temperature`, so the penalised objective is never worse
  than with a temperature alone.

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
