# SPDX-License-Identifier: Apache-2.0
"""Temperature scaling: one factor on all logits."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax.calibration import _inputs
from squentropy_jax.calibration._apply import read_params, recalibrated

# The inverse temperature is in [1/_LIMIT, _LIMIT], wherever the logits are.
_LIMIT = 2.0**100


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
  (beta,) = read_params(params, logits.dtype, ())
  return logits * beta


def best_inverse_temperature(rows: _inputs.Rows) -> Array:
  """The factor of least likelihood loss; NaN where there is none."""
  data = (rows.scores, rows.labels, rows.keep)

  def excess(logits: Array, labels: Array, keep: Array) -> Array:
    """Logits less that of the label; 0 in dropped rows."""
    logits = _inputs.widen(jnp.where(keep[:, None], logits, 0))
    return logits - _inputs.own_score(logits, labels)[:, None]

  def spread_of_block(*block: Array) -> Array:
    x = excess(*block)
    # Impossible classes have weight 0 at every temperature.
    return jnp.max(jnp.where(x == -jnp.inf, 0, jnp.abs(x)), axis=-1)

  spread = jnp.max(_inputs.map_rows(spread_of_block, *data), initial=0)
  count = jnp.sum(rows.keep, dtype=spread.dtype)

  def slope(beta: Array) -> Array:
    def of_block(*block: Array) -> Array:
      x = excess(*block)
      # The largest is taken away first: a product may be -inf, but not inf.
      weight = jax.nn.softmax(beta * (x - x.max(-1, keepdims=True)), axis=-1)
      return jnp.sum(weight * jnp.where(x == -jnp.inf, 0, x), axis=-1)

    return jnp.sum(_inputs.map_rows(of_block, *data) / count)

  def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds
    middle = jnp.sqrt(low) * jnp.sqrt(high)
    # Where every row is right the slope is negative until it underflows.
    enough = slope(middle) >= 0
    return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

  # Made of the data, so that they vary over the mesh axes of the rows.
  one = jnp.where(spread > 0, 1, 1).astype(spread.dtype)
  # Each step halves the logarithm of the bracket: 139 nats down to one unit
  # in the last place.
  steps = jnp.finfo(spread.dtype).nmant + 9
  bounds = (one / _LIMIT, one * _LIMIT)
  low, high = jax.lax.fori_loop(0, steps, halve, bounds)
  bad = jnp.any(rows.bad) | (count == 0) | ~jnp.isfinite(spread)
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
  (:math:`T < 1`) are as easy as others. Large negative logits that stand for
  masked classes change nothing. Where every row is right the likelihood rises
  for ever, and the answer is the least :math:`\beta` whose slope underflows to
  0: about 90 (in float64, 700) over the least :math:`z_{iy_i} - z_{ik}`. Where
  the logits do not help it is :math:`2^{-100}`, next to 0. Where all logits of
  each row are equal, any :math:`\beta` is best, and it is 1.

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
