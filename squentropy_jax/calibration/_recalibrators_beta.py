# SPDX-License-Identifier: Apache-2.0
"""Beta calibration, for two classes."""

import math
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import solvers
from squentropy_jax.calibration._recalibrators_apply import (
  apply_params,
  bounded_logits,
  read_params,
)
from squentropy_jax.calibration._recalibrators_binary import (
  check_two_classes,
  is_certain,
  logits_of_odds,
  mean_log_loss,
)
from squentropy_jax.calibration._recalibrators_temperature import (
  best_inverse_temperature,
  median_gap,
)
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  as_scalar,
  compiled_on_rows,
  read_examples,
)

_LOG_2 = math.log(2)


class BetaCalibration(NamedTuple):
  """Three numbers for two classes; see :func:`fit_beta_calibration`.

  Attributes:
    a: The factor of the log-probability of class 1, at least 0.
    b: The factor of the log-probability of class 0, at least 0.
    c: The intercept.
  """

  a: Array
  b: Array
  c: Array


def _log_odds(params: BetaCalibration, logits: Array) -> Array:
  """Recalibrated log-odds ``[...]`` of class 1, 0 where it is certain."""
  a, b, c = params
  finite = jnp.where(is_certain(logits)[..., None], 0, logits)
  logp = jax.nn.log_softmax(finite, axis=-1)
  x = finite[..., 1] - finite[..., 0]

  def times(factor: Array, x: Array) -> Array:
    return jnp.where(factor == 0, 0, factor * x)  # Also if x is -inf.

  far = times(a, logp[..., 1]) - times(b, logp[..., 0])
  # Near p = 1/2 the difference of the two logarithms would cancel.
  is_near = jnp.abs(x) < 1
  x = jnp.where(is_near, x, 0)
  near = (a + b) / 2 * x - (a - b) * (_log_cosh_half(x) + _LOG_2)
  return jnp.where(is_near, near, far) + c


def _log_cosh_half(x: Array) -> Array:
  """``log(cosh(x / 2))``, accurate also near 0 and for large ``x``."""
  is_small = jnp.abs(x) < 1
  small = jnp.log1p(2 * jnp.square(jnp.sinh(jnp.where(is_small, x, 0) / 4)))
  large = jnp.abs(x) / 2 + jnp.log1p(jnp.exp(-jnp.abs(x))) - _LOG_2
  return jnp.where(is_small, small, large)


@apply_params.register
def _apply_beta(params: BetaCalibration, logits: Array) -> Array:
  check_two_classes(logits)
  fields = read_params(params, logits.dtype, (), (), ())
  odds = _log_odds(BetaCalibration(*fields), logits)
  return logits_of_odds(odds, is_certain(logits), logits)


@compiled_on_rows()
def _fit_beta(rows: ScoredRows, *, penalty: Array) -> BetaCalibration:
  beta, scale = best_inverse_temperature(rows), median_gap(rows)
  logits, use = (
    bounded_logits(rows),
    rows.keep & ~is_certain(bounded_logits(rows)),
  )
  # If one class is impossible, the parameters do not matter.
  logits = jnp.where(use[:, None], logits, 0)
  x = logits[:, 1] - logits[:, 0]
  even = _log_cosh_half(x)
  weight = penalty / jnp.sum(rows.keep, dtype=x.dtype)

  # The penalty is on factors of log-odds of order 1, and on the new log-odds at
  # p = 1/2, which the factors do not change: both hold at any scale of logits.
  def factors(change: Array, face: Array) -> Array:
    return (beta + change[:2] / scale) * face

  def objective(change: Array, face: Array) -> Array:
    a, b = factors(change, face)
    odds = (a + b) / 2 * x - (a - b) * even + change[2]
    squares = jnp.square(scale * (a - beta)) + jnp.square(scale * (b - beta))
    squares += jnp.square(change[2])
    return mean_log_loss(odds, use, rows) + weight * squares

  def best_on(face: Array) -> Array:
    return solvers.newton(lambda p: objective(p, face), jnp.zeros(3, x.dtype))

  # The minimum of a convex function under a >= 0 and b >= 0 is the least of the
  # minima on the four faces that satisfy both.
  faces = jnp.asarray([[1, 1], [1, 0], [0, 1], [0, 0]], x.dtype)
  found = jax.vmap(best_on)(faces)
  a, b = jax.vmap(factors)(found, faces).T
  value = jax.vmap(objective)(found, faces)
  value = jnp.where((a >= 0) & (b >= 0), value, jnp.inf)
  best = jnp.argmin(value)
  # From the factors as they are rounded.
  intercept = found[best, 2] + (a[best] - b[best]) * _LOG_2
  params = BetaCalibration(a[best], b[best], intercept)
  return jax.tree.map(lambda x: jnp.where(jnp.isnan(beta), jnp.nan, x), params)


def fit_beta_calibration(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  penalty: float = 1.0,
  where: ArrayLike | None = None,
) -> BetaCalibration:
  r"""Fits the three parameters of beta calibration, for two classes.

  Use it for two classes if one temperature is not enough, such as for a model
  that is overconfident in one class only.

  .. math::

    \log \frac{q}{1 - q} = a \log p - b \log (1 - p) + c,
    \qquad a, b \ge 0

  with :math:`p` the probability of class 1 before and :math:`q` after. The
  parameters minimise the mean negative log-likelihood plus

  .. math::

    \frac{\lambda}{n} \bigl(s^2 (a - \beta)^2 + s^2 (b - \beta)^2
    + (c - (a - b) \log 2)^2\bigr)

  with :math:`\beta` the inverse temperature of :func:`fit_temperature` and
  :math:`s` the median absolute log-odds. The last square is of the new log-odds
  at :math:`p = 1/2`. Newton's method starts at :math:`a = b = \beta`, so it is
  accurate for saturated probabilities too. The penalty makes the result finite
  for data that the map can separate. Equal :math:`a` and :math:`b` give Platt
  scaling of the log-odds.

  Args:
    logits: Logits of held-out examples, shape ``[..., 2]``.
    labels: Class ids, integers of shape ``[...]``.
    penalty: The weight :math:`\lambda` of the penalty, at least 0.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`BetaCalibration` for :func:`apply`. NaN in the cases of
    :func:`fit_temperature`.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If there are not two classes, a shape or ``penalty`` is wrong,
      or a concrete label is out of range.

  Examples:
    >>> z = jnp.zeros((4, 2))
    >>> params = calibration.fit_beta_calibration(
    ...   z, jnp.array([0, 0, 0, 1]), penalty=0.0
    ... )
    >>> print(jax.nn.softmax(calibration.apply(params, z[0])).round(3))
    [0.75 0.25]

  References:
    Kull, Silva Filho and Flach, `Beta Calibration: A Well-Founded and Easily
    Implemented Improvement on Logistic Calibration for Binary Classifiers
    <https://proceedings.mlr.press/v54/kull17a.html>`_, 2017.
  """
  examples = read_examples("logits", logits, labels, where)
  check_two_classes(examples.scores)
  weight = as_scalar("penalty", penalty, "[0, inf)", examples)
  return _fit_beta(examples, penalty=weight)
