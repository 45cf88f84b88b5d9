# SPDX-License-Identifier: Apache-2.0
"""Structured vector and matrix scaling: a temperature, then a ridge fit."""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import solvers
from squentropy_jax.calibration._recalibrators_apply import (
  apply_params,
  finite_logits,
  mean_cross_entropy,
  read_params,
  scaled_log_probabilities,
)
from squentropy_jax.calibration._recalibrators_linear import linear_map
from squentropy_jax.calibration._recalibrators_temperature import (
  best_inverse_temperature,
)
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  as_scalar,
  compiled_on_rows,
  read_examples,
  widen,
)


class StructuredVectorScaling(NamedTuple):
  """A temperature, then a weight and a bias for each class.

  See :func:`fit_structured_vector_scaling`.

  Attributes:
    inverse_temperature: The factor on the logits, a scalar.
    smoothing: The share of the uniform distribution in the probabilities that
      follow, a scalar in [0, 1).
    weight: The factor of each log-probability, ``[C]``.
    bias: The intercepts, ``[C]``.
  """

  inverse_temperature: Array
  smoothing: Array
  weight: Array
  bias: Array


class StructuredMatrixScaling(NamedTuple):
  """A temperature, then a linear map of the log-probabilities.

  See :func:`fit_structured_matrix_scaling`.

  Attributes:
    inverse_temperature: The factor on the logits, a scalar.
    smoothing: The share of the uniform distribution in the probabilities that
      follow, a scalar in [0, 1).
    weight: The matrix ``[C, C]``; row ``k`` gives the new logit of class ``k``.
    bias: The intercepts, ``[C]``.
  """

  inverse_temperature: Array
  smoothing: Array
  weight: Array
  bias: Array


def _smoothed(
  logits: Array, beta: Array, smoothing: Array
) -> tuple[Array, Array]:
  """Log-probabilities at a temperature, mixed with the uniform distribution.

  Returns them with 0 for impossible classes, and which classes are so.
  """
  logp = scaled_log_probabilities(logits, beta)
  _, impossible = finite_logits(logits)
  possible = jnp.sum(~impossible, axis=-1, keepdims=True).astype(logp.dtype)
  kept = jnp.log1p(-smoothing) + jnp.where(impossible, 0, logp)
  # A probability that underflows has a derivative of 0 here.
  mixed = jnp.logaddexp(
    jnp.where(kept == -jnp.inf, jnp.finfo(kept.dtype).min, kept),
    jnp.log(smoothing / possible),
  )
  return jnp.where(impossible, 0, mixed), impossible


def _map(params: Any, x: Array, impossible: Array) -> Array:
  """New logits from the smoothed log-probabilities."""
  if params.weight.ndim == 1:
    new = jnp.broadcast_to(params.weight, x.shape) * x
    new = new + jnp.broadcast_to(params.bias, x.shape)
  else:
    new = linear_map(x, params.weight, params.bias)
  return jnp.where(impossible, -jnp.inf, new)


@apply_params.register(StructuredVectorScaling)
@apply_params.register(StructuredMatrixScaling)
def _apply_structured(params: Any, logits: Array) -> Array:
  size = logits.shape[-1]
  is_vector = isinstance(params, StructuredVectorScaling)
  weight = (size,) if is_vector else (size, size)
  read = read_params(params, logits.dtype, (), (), weight, (size,))
  params = type(params)(*read)
  x = _smoothed(logits, params.inverse_temperature, params.smoothing)
  return _map(params, *x)


@compiled_on_rows("kind")
def _fit(rows: ScoredRows, *, kind: Any, penalty: Array) -> Any:
  beta = best_inverse_temperature(rows)
  size, count = rows.scores.shape[-1], jnp.sum(rows.keep, dtype=beta.dtype)
  smoothing = 1 / (count + 1)
  logits = widen(rows.fill_dropped(rows.scores))
  x, impossible = _smoothed(logits, beta, smoothing)
  identity = jnp.eye(size, dtype=beta.dtype)
  if kind is StructuredVectorScaling:
    start = price = jnp.ones(size, beta.dtype)
  else:
    start, price = identity, identity + (size - 1) * (1 - identity)
  weight = penalty * size / count

  def objective(params: Any) -> Array:
    squares = jnp.sum(price * jnp.square(params.weight - start))
    squares += jnp.sum(jnp.square(params.bias))
    loss = mean_cross_entropy(_map(params, x, impossible), rows)
    return loss + weight * squares

  def fields(weight: Array, bias: Array) -> Any:
    return kind(beta, smoothing, weight, bias)

  none = jnp.zeros(size, beta.dtype)
  best = solvers.newton(lambda x: objective(fields(*x)), (start, none))
  return jax.tree.map(
    lambda x: jnp.where(jnp.isnan(beta), jnp.nan, x), fields(*best)
  )


def fit_structured_vector_scaling(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  penalty: float = 1.0,
  where: ArrayLike | None = None,
) -> StructuredVectorScaling:
  r"""Fits a temperature, then a factor and an intercept for each class (SVS).

  Use it for more than two classes if there are too few held-out examples for
  :func:`fit_structured_matrix_scaling`, or too many classes. It may change the
  predicted class.

  .. math::

    x_i = \log\Bigl(\frac{n}{n + 1} \mathrm{softmax}(\beta z_i)
    + \frac{1}{n + 1} \cdot \frac{1}{C}\Bigr), \qquad
    \min_{w, b} \; -\frac{1}{n} \sum_i
    \log \mathrm{softmax}(w \odot x_i + b)_{y_i}
    + \lambda \frac{C}{n} \sum_k \bigl((w_k - 1)^2 + b_k^2\bigr)

  with :math:`\beta` the inverse temperature of :func:`fit_temperature`. The
  uniform distribution, over the classes whose logit is not ``-inf``, bounds the
  loss of a confident mistake. The result does not depend on the scale of the
  logits. The problem is convex, and is solved by Newton's method.

  Args:
    logits: Logits of held-out examples, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    penalty: The weight :math:`\lambda` of the penalty, at least 0.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`StructuredVectorScaling` for :func:`apply`. NaN in the cases of
    :func:`fit_temperature`.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape or ``penalty`` is wrong, or a concrete label is out
      of range.

  Examples:
    >>> z = jnp.zeros((4, 2))
    >>> params = calibration.fit_structured_vector_scaling(
    ...   z, jnp.array([0, 0, 0, 1]), penalty=0.0
    ... )
    >>> print(jax.nn.softmax(calibration.apply(params, z[0])).round(3))
    [0.75 0.25]

  References:
    Berta et al., `Structured Matrix Scaling for Multi-Class Calibration
    <https://arxiv.org/abs/2511.03685>`_, 2026.
  """
  examples = read_examples("logits", logits, labels, where)
  weight = as_scalar("penalty", penalty, "[0, inf)", examples)
  found: StructuredVectorScaling = _fit(
    examples, kind=StructuredVectorScaling, penalty=weight
  )
  return found


def fit_structured_matrix_scaling(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  penalty: float = 1.0,
  where: ArrayLike | None = None,
) -> StructuredMatrixScaling:
  r"""Fits a temperature, then a linear map of log-probabilities (SMS).

  Use it for more than two classes. The penalty keeps it near the temperature
  where examples are few, so it rarely does worse than that. It may change the
  predicted class.

  .. math::

    \min_{W, b} \; -\frac{1}{n} \sum_i
    \log \mathrm{softmax}(W x_i + b)_{y_i}
    + \lambda \frac{C}{n} \Bigl(\sum_k \bigl((W_{kk} - 1)^2 + b_k^2\bigr)
    + (C - 1) \sum_{j \ne k} W_{jk}^2\Bigr)

  with the log-probabilities :math:`x_i` of
  :func:`fit_structured_vector_scaling`. The result does not depend on the scale
  of the logits. The problem is convex, and is solved by Newton's method. The
  matrix has :math:`C^2` numbers, so for a thousand classes or more use
  :func:`fit_structured_vector_scaling`.

  Args:
    logits: Logits of held-out examples, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    penalty: The weight :math:`\lambda` of the penalty, at least 0.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`StructuredMatrixScaling` for :func:`apply`. NaN in the cases of
    :func:`fit_temperature`.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape or ``penalty`` is wrong, or a concrete label is out
      of range.

  Examples:
    >>> z = jnp.zeros((4, 2))
    >>> params = calibration.fit_structured_matrix_scaling(
    ...   z, jnp.array([0, 0, 0, 1]), penalty=0.0
    ... )
    >>> print(jax.nn.softmax(calibration.apply(params, z[0])).round(3))
    [0.75 0.25]

  References:
    Berta et al., `Structured Matrix Scaling for Multi-Class Calibration
    <https://arxiv.org/abs/2511.03685>`_, 2026.
  """
  examples = read_examples("logits", logits, labels, where)
  weight = as_scalar("penalty", penalty, "[0, inf)", examples)
  found: StructuredMatrixScaling = _fit(
    examples, kind=StructuredMatrixScaling, penalty=weight
  )
  return found
