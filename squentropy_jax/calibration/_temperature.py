# SPDX-License-Identifier: Apache-2.0
"""Temperature scaling: one factor on all logits."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax.calibration import _inputs
from squentropy_jax.calibration._apply import recalibrated

_LOG2_RANGE = 20


class TemperatureScaling(NamedTuple):
  """Divides logits by a temperature; see :func:`fit_temperature`.

  Attributes:
    inverse_temperature: The factor on the logits, a scalar.
  """

  inverse_temperature: Array

  @property
  def temperature(self) -> Array:
    """The temperature, above 1 for a model that is too confident."""
    return 1 / self.inverse_temperature


@recalibrated.register
def _apply(params: TemperatureScaling, logits: Array) -> Array:
  return logits * params.inverse_temperature.astype(logits.dtype)


def _excess(logits: Array, labels: Array, keep: Array) -> Array:
  """Logits less that of the label; 0 in dropped rows."""
  logits = _inputs.widen(jnp.where(keep[:, None], logits, 0))
  return logits - _inputs.own_score(logits, labels)[:, None]


def best_inverse_temperature(rows: _inputs.Rows) -> Array:
  """The factor of least likelihood loss; NaN where there is none."""

  def spread_of_block(*block: Array) -> Array:
    excess = _excess(*block)
    # Impossible classes have weight 0 at every temperature.
    return jnp.max(jnp.where(excess == -jnp.inf, 0, jnp.abs(excess)), axis=-1)

  data = (rows.scores, rows.labels, rows.keep)
  spread = jnp.max(_inputs.map_rows(spread_of_block, *data), initial=0)

  def slope(beta: Array) -> Array:
    def of_block(*block: Array) -> Array:
      excess = _excess(*block)
      weight = jax.nn.softmax(beta * excess, axis=-1)
      excess = jnp.where(excess == -jnp.inf, 0, excess)
      return jnp.sum(weight * excess, axis=-1)

    return jnp.sum(_inputs.map_rows(of_block, *data))

  def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds
    middle = jnp.sqrt(low) * jnp.sqrt(high)
    right = slope(middle) > 0
    return jnp.where(right, low, middle), jnp.where(right, middle, high)

  scale = jnp.where(spread > 0, spread, 1)
  bounds = (2.0**-_LOG2_RANGE / scale, 2.0**_LOG2_RANGE / scale)
  # Each step halves the logarithm of the bracket: 28 nats down to one unit
  # in the last place.
  steps = jnp.finfo(spread.dtype).nmant + 7
  low, high = jax.lax.fori_loop(0, steps, halve, bounds)
  bad = jnp.any(rows.bad) | ~jnp.any(rows.keep) | ~jnp.isfinite(spread)
  beta = jnp.where(spread > 0, jnp.sqrt(low) * jnp.sqrt(high), 1)
  return jnp.where(bad, jnp.nan, beta)


@_inputs.compiled()
def _fit(rows: _inputs.Rows) -> TemperatureScaling:
  return TemperatureScaling(best_inverse_temperature(rows))


def fit_temperature(
  logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> TemperatureScaling:
  r"""Finds the temperature of least negative log-likelihood.

  .. math::

    \min_{\beta > 0} \; -\frac{1}{n} \sum_i
    \log \mathrm{softmax}(\beta z_i)_{y_i}, \qquad \beta = 1/T

  This is convex in :math:`\beta`, so its slope is found zero by bisection:
  there is no learning rate, and models that are not confident enough
  (:math:`T < 1`) are as easy as others. With :math:`s` the largest
  :math:`|z_{ik} - z_{iy_i}|`, :math:`\beta s` is held in
  :math:`[2^{-20}, 2^{20}]`. The upper bound is the answer where every row is
  right, as the likelihood then rises for ever; the lower one where the logits
  do not help. Where all logits of each row are equal, any :math:`\beta` is
  best, and it is 1.

  Args:
    logits: Logits of held-out examples, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A :class:`TemperatureScaling` for :func:`apply`. NaN without any row, with
    a label out of range under ``jit``, and where a kept row has a NaN or
    infinite logit or a label of logit ``-inf``.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> z = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    >>> params = calibration.fit_temperature(z, jnp.array([0, 0, 0, 1]))
    >>> print(f"{params.temperature:.3f}")  # 4 / log(3)
    3.641

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017.
  """
  return _fit(_inputs.read_rows("logits", logits, labels, where))
