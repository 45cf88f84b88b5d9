# SPDX-License-Identifier: Apache-2.0
"""Temperature scaling, and ``apply``, which every recalibrator registers."""

import functools
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax.calibration import _inputs
from squentropy_jax.calibration._inputs import Rows, as_scores, read_rows, widen

_LOG2_RANGE = 20


class TemperatureScaling(NamedTuple):
  """Divides logits by a temperature.

  Attributes:
    inverse_temperature: The factor on the logits, a scalar.
  """

  inverse_temperature: Array

  @property
  def temperature(self) -> Array:
    """The temperature, above 1 for a model that is too confident."""
    return 1 / self.inverse_temperature


@functools.singledispatch
def apply(params: Any, logits: ArrayLike) -> Array:
  r"""Recalibrates logits with what a ``fit_*`` function returned.

  For temperature scaling, for one,

  .. math:: z \mapsto \beta z

  Args:
    params: The NamedTuple of a ``fit_*`` function of this module. Its type
      chooses the map.
    logits: Logits (log-probabilities are logits) ``[..., C]``.

  Returns:
    Recalibrated logits ``[..., C]``, in float32 or wider.

  Raises:
    TypeError: If ``params`` is of no such type.

  Examples:
    >>> import jax.numpy as jnp
    >>> from squentropy_jax import calibration
    >>> params = calibration.TemperatureScaling(jnp.float32(0.5))
    >>> calibration.apply(params, jnp.array([2.0, 0.0])).tolist()
    [1.0, 0.0]

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017
  """
  raise TypeError(
    "params must be what a calibration.fit_* function returned, got "
    f"{type(params).__name__}."
  )


@apply.register
def _(params: TemperatureScaling, logits: ArrayLike) -> Array:
  logits = widen(as_scores("logits", logits))
  return logits * params.inverse_temperature.astype(logits.dtype)


@_inputs.compiled()
def _fit_temperature(rows: Rows) -> TemperatureScaling:
  logits = widen(jnp.where(rows.keep[:, None], rows.scores, 0))
  target = jnp.take_along_axis(logits, rows.labels[:, None], -1)
  # Impossible classes have weight 0 at every temperature.
  excess = jnp.where(logits == -jnp.inf, 0, logits - target)
  possible = logits > -jnp.inf

  def slope(beta: Array) -> Array:
    scaled = jnp.where(possible, beta * excess, -jnp.inf)
    return jnp.sum(jax.nn.softmax(scaled, axis=-1) * excess)

  spread = jnp.max(jnp.abs(excess), initial=0)
  spread = jnp.where(spread > 0, spread, 1)

  def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds
    middle = jnp.sqrt(low) * jnp.sqrt(high)
    right = slope(middle) > 0
    return jnp.where(right, low, middle), jnp.where(right, middle, high)

  # Each step halves the logarithm of the bracket: 28 nats down to one unit
  # in the last place.
  steps = jnp.finfo(logits.dtype).nmant + 7
  bounds = (2.0**-_LOG2_RANGE / spread, 2.0**_LOG2_RANGE / spread)
  low, high = jax.lax.fori_loop(0, steps, halve, bounds)
  beta = jnp.sqrt(low) * jnp.sqrt(high)
  bad = jnp.any(rows.bad) | ~jnp.any(rows.keep) | ~jnp.isfinite(spread)
  return TemperatureScaling(jnp.where(bad, jnp.nan, beta))


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
  do not help.

  Args:
    logits: Logits ``[..., C]`` of held-out examples.
    labels: Integer class ids ``[...]``.
    where: Boolean ``[...]``, which examples count.

  Returns:
    A :class:`TemperatureScaling` for :func:`apply`. NaN without any row, with
    a label out of range under ``jit``, or with a NaN logit in a kept row.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from squentropy_jax import calibration
    >>> z = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    >>> params = calibration.fit_temperature(z, jnp.array([0, 0, 0, 1]))
    >>> print(f"{params.temperature:.3f}")  # 4 / log(3)
    3.641

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017
  """
  return _fit_temperature(read_rows("logits", logits, labels, where))
