# SPDX-License-Identifier: Apache-2.0
"""Temperature scaling: one factor for all logits."""

from typing import NamedTuple

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
from squentropy_jax.calibration._row_functions import (
  class_index,
  label_score,
  largest,
  map_rows,
)
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  compiled_on_rows,
  read_examples,
  widen,
)

# The inverse temperature is in [1/_LIMIT, _LIMIT] for all logits.
_LIMIT = 2.0**100


class TemperatureScaling(NamedTuple):
  """Divides logits by a temperature; see :func:`fit_temperature`.

  Attributes:
    inverse_temperature: The factor on the logits, a scalar.
  """

  inverse_temperature: Array

  @property
  def temperature(self) -> Array:
    """The temperature, above 1 for an overconfident model."""
    return 1 / self.inverse_temperature


@apply_params.register
def _apply_temperature(params: TemperatureScaling, logits: Array) -> Array:
  (beta,) = read_params(params, logits.dtype, ())
  return logits * beta


def best_inverse_temperature(rows: ScoredRows) -> Array:
  """The factor of least negative log-likelihood; NaN if there is none."""

  def excess(logits: Array, labels: Array) -> Array:
    """Logits minus that of the label."""
    logits = widen(logits)
    return logits - label_score(logits, labels)[:, None]

  def spread_of_block(logits: Array, labels: Array) -> Array:
    x = excess(logits, labels)
    # Impossible classes have weight 0 at every temperature.
    return jnp.max(jnp.where(x == -jnp.inf, 0, jnp.abs(x)), axis=-1)

  spread = jnp.max(map_rows(spread_of_block, rows), initial=0)
  count = jnp.sum(rows.keep, dtype=spread.dtype)

  def derivative(beta: Array) -> Array:
    def of_block(logits: Array, labels: Array) -> Array:
      x = excess(logits, labels)
      # The largest is subtracted first: a product may be -inf, but not inf.
      weight = jax.nn.softmax(beta * (x - x.max(-1, keepdims=True)), axis=-1)
      return jnp.sum(weight * jnp.where(x == -jnp.inf, 0, x), axis=-1)

    # A dropped row adds 0, because its scores are 0.
    return jnp.sum(map_rows(of_block, rows) / count)

  one = jnp.ones((), spread.dtype)
  # Each step halves the logarithm of the interval: from 139 down to one ulp.
  steps = jnp.finfo(spread.dtype).nmant + 9
  # If every prediction is right, the derivative is negative up to underflow.
  beta = solvers.bisect(
    lambda beta: derivative(beta) >= 0,
    one / _LIMIT,
    one * _LIMIT,
    steps,
    middle=solvers.geometric_mean,
  )
  undefined = jnp.any(rows.label_invalid) | (count == 0) | ~jnp.isfinite(spread)
  beta = jnp.where(spread > 0, beta, 1)
  return jnp.where(undefined, jnp.nan, beta)


def median_gap(rows: ScoredRows) -> Array:
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


def working_scale(rows: ScoredRows, beta: Array) -> tuple[Array, Array]:
  """A factor that brings logits to order 1, and a limit of such numbers.

  The factor is ``beta`` unless that would make the logits vanish. Probabilities
  of logits below minus the limit underflow at the temperature ``1 / beta``.
  """
  scale = jnp.maximum(beta, 1 / median_gap(rows))
  finfo = jnp.finfo(beta.dtype)
  least = -float(np.log(finfo.tiny))
  # Squares of these numbers must not overflow.
  return scale, jnp.minimum(least * (scale / beta), float(finfo.max) ** 0.25)


@compiled_on_rows()
def _fit_temperature(rows: ScoredRows) -> TemperatureScaling:
  return TemperatureScaling(best_inverse_temperature(rows))


def fit_temperature(
  logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> TemperatureScaling:
  r"""Fits the temperature that minimises the negative log-likelihood.

  Use it first: one parameter needs only a few hundred held-out examples, and
  the predicted classes stay the same.

  .. math::

    \min_{\beta > 0} \; -\frac{1}{n} \sum_i
    \log \mathrm{softmax}(\beta z_i)_{y_i}, \qquad \beta = 1/T

  This is convex in :math:`\beta`, and the zero of its derivative is found by
  bisection. There is no learning rate, and underconfident models
  (:math:`T < 1`) need nothing special. Classes that are masked by a large
  negative logit do not change the result. Three cases have no finite minimum
  or more than one:

  - If every prediction is right, the likelihood has no maximum. The result is
    the least :math:`\beta` at which the derivative underflows to 0: about 90
    (700 in float64) over the least :math:`z_{iy_i} - z_{ik}`.
  - If the logits carry no information on the labels, it is :math:`2^{-100}`.
  - If all logits of each example are equal, it is 1.

  Args:
    logits: Logits of held-out examples, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`TemperatureScaling` for :func:`apply`. NaN without any example, or
    if an included one has a traced label out of range, a NaN or ``inf`` logit,
    or a label of logit ``-inf``.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> z = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    >>> params = calibration.fit_temperature(z, jnp.array([0, 0, 0, 1]))
    >>> print(f"{params.temperature:.3f}")  # 4 / log(3)
    3.641

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017.
  """
  return _fit_temperature(read_examples("logits", logits, labels, where))
