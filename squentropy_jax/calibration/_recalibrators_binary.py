# SPDX-License-Identifier: Apache-2.0
"""Curved maps of the log-odds of two classes: quadratic and spline scaling."""

from typing import NamedTuple, TypeVar

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import solvers
from squentropy_jax.calibration._recalibrators_apply import (
  apply_params,
  read_params,
)
from squentropy_jax.calibration._recalibrators_temperature import (
  best_inverse_temperature,
  working_scale,
)
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  as_scalar,
  check_int,
  compiled_on_rows,
  read_examples,
  widen,
)

# The share of the examples beyond each end of a spline's knots.
_TAIL = 0.01


class QuadraticScaling(NamedTuple):
  """A parabola of the log-odds; see :func:`fit_quadratic_scaling`.

  Attributes:
    scale: The factor that gives ``x`` from the log-odds.
    a: The intercept.
    b: The factor of ``x``.
    c: The factor of the square of ``x``.
    low: The least ``x`` of the fit; smaller ones are replaced by it.
    high: The largest ``x`` of the fit; larger ones are replaced by it.
  """

  scale: Array
  a: Array
  b: Array
  c: Array
  low: Array
  high: Array


class SplineScaling(NamedTuple):
  """A cubic spline of the log-odds; see :func:`fit_spline_scaling`.

  Attributes:
    scale: The factor that gives ``x`` from the log-odds.
    coefficients: The coefficients of the cubic B-splines, ``[m + 2]`` for ``m``
      knots.
    low: The first knot; smaller ``x`` are replaced by it.
    high: The last knot; larger ``x`` are replaced by it.
  """

  scale: Array
  coefficients: Array
  low: Array
  high: Array


def check_two_classes(logits: Array) -> None:
  """Raises unless the logits are ``[..., 2]``."""
  if logits.shape[-1] != 2:
    raise ValueError(
      "logits must have two classes for this recalibrator, got shape "
      f"{logits.shape}. For more classes use fit_structured_matrix_scaling. "
      "For one logit z of class 1, pass jnp.stack([jnp.zeros_like(z), z], -1)."
    )


def logits_of_odds(odds: Array, certain: Array, logits: Array) -> Array:
  """Log-probabilities of log-odds; where ``certain``, those of the logits."""
  odds = jnp.where(certain, 0, odds)
  new = jnp.stack([jax.nn.log_sigmoid(-odds), jax.nn.log_sigmoid(odds)], -1)
  sure = jnp.where(logits == -jnp.inf, -jnp.inf, 0)
  return jnp.where(certain[..., None], sure, new)


def is_certain(logits: Array) -> Array:
  """Whether one of the two classes is impossible, ``[...]``."""
  return jnp.any(logits == -jnp.inf, axis=-1)


def mean_log_loss(odds: Array, use: Array, rows: ScoredRows) -> Array:
  """The mean loss of log-odds over the kept rows; 0 unless ``use``."""
  sign = jnp.where(rows.labels == 1, -1, 1).astype(odds.dtype)
  loss = jnp.where(use, jax.nn.softplus(sign * odds), 0)
  return jnp.sum(loss) / jnp.sum(rows.keep, dtype=odds.dtype)


def _scaled_odds(logits: Array, scale: Array, low: Array, high: Array) -> Array:
  """The factor ``scale`` times the log-odds, clipped; 0 where certain."""
  finite = jnp.where(is_certain(logits)[..., None], 0, logits)
  # The larger logit is subtracted first: a product may be -inf, but not inf.
  x = scale * (finite - finite.max(-1, keepdims=True))
  x = x[..., 1] - x[..., 0]
  return jnp.clip(x, low, high)


def _quadratic(x: Array, a: Array, b: Array, c: Array) -> Array:
  return a + x * (b + c * x)


def _spline(x: Array, coefficients: Array, low: Array, high: Array) -> Array:
  """The spline of ``x`` ``[...]`` from uniform cubic B-splines."""
  count = coefficients.shape[-1]
  width = high - low
  # The knots are 0 to count - 3, and the splines are centred at -1 and so on.
  t = (x - low) / jnp.where(width > 0, width, 1) * (count - 3)
  centre = jnp.arange(-1, count - 1, dtype=x.dtype)
  u = jnp.abs(t[..., None] - jnp.broadcast_to(centre, (*x.shape, count)))
  near = 2 / 3 - u**2 * (1 - u / 2)
  far = jnp.maximum(2 - u, 0) ** 3 / 6
  basis = jnp.where(u < 1, near, far)
  return jnp.sum(basis * jnp.broadcast_to(coefficients, basis.shape), axis=-1)


@apply_params.register
def _apply_quadratic(params: QuadraticScaling, logits: Array) -> Array:
  check_two_classes(logits)
  scale, a, b, c, low, high = read_params(params, logits.dtype, *[()] * 6)
  x = _scaled_odds(logits, scale, low, high)
  return logits_of_odds(_quadratic(x, a, b, c), is_certain(logits), logits)


@apply_params.register
def _apply_spline(params: SplineScaling, logits: Array) -> Array:
  check_two_classes(logits)
  scale, coefficients, low, high = read_params(
    params, logits.dtype, (), (None,), (), ()
  )
  x = _scaled_odds(logits, scale, low, high)
  odds = _spline(x, coefficients, low, high)
  return logits_of_odds(odds, is_certain(logits), logits)


_Params = TypeVar("_Params", QuadraticScaling, SplineScaling)


class _Inputs(NamedTuple):
  x: Array  # [n], scaled log-odds.
  use: Array  # [n], kept and not certain.
  beta: Array  # NaN if the fit is undefined.
  scale: Array
  ratio: Array  # The factor of x that is the best temperature.


def _inputs(rows: ScoredRows) -> _Inputs:
  logits = widen(rows.fill_dropped(rows.scores))
  beta = best_inverse_temperature(rows)
  scale, limit = working_scale(rows, beta)
  x = _scaled_odds(logits, scale, -limit, limit)
  use = rows.keep & ~is_certain(logits)
  return _Inputs(x, use, beta, scale, beta / scale)


def _quantiles(inputs: _Inputs, tail: float) -> tuple[Array, Array]:
  """The values of ``x`` with a share ``tail`` of the rows beyond them."""
  # Other rows sort last.
  x = jnp.sort(jnp.where(inputs.use, inputs.x, jnp.inf))
  last = jnp.maximum(jnp.sum(inputs.use, dtype=jnp.int32) - 1, 0)
  index = jnp.floor(tail * last.astype(x.dtype)).astype(jnp.int32)
  x = jnp.append(x, jnp.zeros((1,), x.dtype))  # In case there is no row.
  low, high = x[index], x[last - index]
  any_row = jnp.any(inputs.use)
  return jnp.where(any_row, low, -1), jnp.where(any_row, high, 1)


def _nan_if_undefined(params: _Params, inputs: _Inputs) -> _Params:
  return jax.tree.map(
    lambda x: jnp.where(jnp.isnan(inputs.beta), jnp.nan, x), params
  )


@compiled_on_rows()
def _fit_quadratic(rows: ScoredRows, *, penalty: Array) -> QuadraticScaling:
  inputs = _inputs(rows)
  low, high = _quantiles(inputs, 0)
  count = jnp.sum(rows.keep, dtype=inputs.x.dtype)

  def objective(change: Array) -> Array:
    odds = _quadratic(inputs.x, change[0], inputs.ratio + change[1], change[2])
    squares = jnp.sum(jnp.square(change))
    return mean_log_loss(odds, inputs.use, rows) + penalty / count * squares

  change = solvers.newton(objective, jnp.zeros(3, inputs.x.dtype))
  b = inputs.ratio + change[1]
  found = QuadraticScaling(inputs.scale, change[0], b, change[2], low, high)
  return _nan_if_undefined(found, inputs)


@compiled_on_rows("num_knots")
def _fit_spline(
  rows: ScoredRows, *, penalty: Array, num_knots: int
) -> SplineScaling:
  inputs = _inputs(rows)
  low, high = _quantiles(inputs, _TAIL)
  x = jnp.clip(inputs.x, low, high)
  dtype = x.dtype
  count = jnp.sum(rows.keep, dtype=dtype)
  # These coefficients give the map of the best temperature.
  centre = jnp.arange(-1, num_knots + 1, dtype=dtype) / (num_knots - 1)
  straight = inputs.ratio * (low + (high - low) * centre)

  def objective(change: Array) -> Array:
    odds = _spline(x, straight + change, low, high)
    bends = jnp.sum(jnp.square(jnp.diff(change, 2)))
    squares = bends + jnp.mean(jnp.square(change))
    return mean_log_loss(odds, inputs.use, rows) + penalty / count * squares

  change = solvers.newton(objective, jnp.zeros(num_knots + 2, dtype))
  found = SplineScaling(inputs.scale, straight + change, low, high)
  return _nan_if_undefined(found, inputs)


def fit_quadratic_scaling(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  penalty: float = 1.0,
  where: ArrayLike | None = None,
) -> QuadraticScaling:
  r"""Fits a parabola of the log-odds, for two classes (quadratic scaling).

  Use it for two classes and a few hundred examples, if a temperature and an
  intercept leave a bent reliability diagram.

  .. math::

    \log \frac{q}{1 - q} = a + b x + c x^2, \qquad
    x = \gamma (z_1 - z_0)

  with :math:`\gamma` as in :func:`fit_matrix_scaling`. The parameters minimise
  the mean negative log-likelihood plus :math:`\frac{\lambda}{n} (a^2 + (b -
  \beta / \gamma)^2 + c^2)`, with :math:`\beta` the inverse temperature of
  :func:`fit_temperature`. Newton's method starts there. A parabola falls on one
  side, so :math:`x` is clipped to the range of the held-out examples.

  Args:
    logits: Logits of held-out examples, shape ``[..., 2]``.
    labels: Class ids, integers of shape ``[...]``.
    penalty: The weight :math:`\lambda` of the penalty, at least 0.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`QuadraticScaling` for :func:`apply`. NaN in the cases of
    :func:`fit_temperature`.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If there are not two classes, a shape or ``penalty`` is wrong,
      or a concrete label is out of range.

  Examples:
    >>> z = jnp.zeros((4, 2))
    >>> params = calibration.fit_quadratic_scaling(
    ...   z, jnp.array([0, 0, 0, 1]), penalty=0.0
    ... )
    >>> print(jax.nn.softmax(calibration.apply(params, z[0])).round(3))
    [0.75 0.25]

  References:
    Berta et al., `Structured Matrix Scaling for Multi-Class Calibration
    <https://arxiv.org/abs/2511.03685>`_, 2026.
  """
  examples = read_examples("logits", logits, labels, where)
  check_two_classes(examples.scores)
  weight = as_scalar("penalty", penalty, "[0, inf)", examples)
  return _fit_quadratic(examples, penalty=weight)


def fit_spline_scaling(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  penalty: float = 1.0,
  num_knots: int = 8,
  where: ArrayLike | None = None,
) -> SplineScaling:
  r"""Fits a penalised cubic spline of the log-odds, for two classes.

  Use it for two classes and a thousand examples or more, if the map need not be
  a line or a parabola.

  .. math::

    \log \frac{q}{1 - q} = \sum_j \theta_j B_j(x), \qquad
    x = \gamma (z_1 - z_0)

  with :math:`\gamma` as in :func:`fit_matrix_scaling` and cubic B-splines
  :math:`B_j` of equally spaced knots. The knots reach from the 1 % to the 99 %
  quantile of :math:`x`, and the map is constant beyond. The coefficients
  minimise the mean negative log-likelihood plus :math:`\frac{\lambda}{n}
  \bigl(\sum_j (\Delta^2 u_j)^2 + \frac{1}{m + 2} \sum_j u_j^2\bigr)`, with
  :math:`u` the difference from those of the best temperature,
  :math:`\Delta^2` second differences and :math:`m` knots. The map need not be
  increasing.

  Args:
    logits: Logits of held-out examples, shape ``[..., 2]``.
    labels: Class ids, integers of shape ``[...]``.
    penalty: The weight :math:`\lambda` of the penalty, at least 0.
    num_knots: The number of knots :math:`m`, a Python int of at least 2.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`SplineScaling` for :func:`apply`. NaN in the cases of
    :func:`fit_temperature`.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If there are not two classes, a shape, ``penalty`` or
      ``num_knots`` is wrong, or a concrete label is out of range.

  Examples:
    >>> z = jnp.zeros((4, 2))
    >>> params = calibration.fit_spline_scaling(
    ...   z, jnp.array([0, 0, 0, 1]), penalty=1e-4
    ... )
    >>> print(jax.nn.softmax(calibration.apply(params, z[0])).round(3))
    [0.75 0.25]

  References:
    Eilers and Marx, `Flexible Smoothing with B-splines and Penalties
    <https://doi.org/10.1214/ss/1038425655>`_, 1996; Lucena, `Spline-Based
    Probability Calibration <https://arxiv.org/abs/1809.07751>`_, 2018.
  """
  check_int("num_knots", num_knots, 2)
  examples = read_examples("logits", logits, labels, where)
  check_two_classes(examples.scores)
  weight = as_scalar("penalty", penalty, "[0, inf)", examples)
  return _fit_spline(examples, penalty=weight, num_knots=num_knots)
