# SPDX-License-Identifier: Apache-2.0
"""Beta calibration of two classes."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core.solvers import minimize
from squentropy_jax.calibration import _inputs
from squentropy_jax.calibration._apply import read_params, recalibrated


class BetaCalibration(NamedTuple):
  """Three numbers for two classes; see :func:`fit_beta_calibration`.

  Attributes:
    a: The factor on the log-probability of class 1, at least 0.
    b: The factor on that of class 0, at least 0.
    c: What is added.
  """

  a: Array
  b: Array
  c: Array


def _check_two_classes(logits: Array) -> None:
  if logits.shape[-1] != 2:
    raise ValueError(
      "logits must have two classes for beta calibration, got shape "
      f"{logits.shape}; for more use fit_vector_scaling or fit_matrix_scaling."
    )


def _log_probabilities(logits: Array) -> Array:
  return jax.nn.log_softmax(_inputs.widen(logits), axis=-1)


def _log_odds(params: BetaCalibration, logp: Array) -> Array:
  """New log-odds ``[...]`` of class 1 from log-probabilities ``[..., 2]``."""

  def times(factor: Array, x: Array) -> Array:
    return jnp.where(factor == 0, 0, factor * x)  # Of -inf too.

  a, b, c = read_params(params, logp.dtype, (), (), ())
  return times(a, logp[..., 1]) - times(b, logp[..., 0]) + c


@recalibrated.register
def _apply_beta(params: BetaCalibration, logits: Array) -> Array:
  _check_two_classes(logits)
  logp = _log_probabilities(logits)
  odds = _log_odds(params, logp)
  # Not 0 and the odds: these may be infinite.
  return jnp.stack([jax.nn.log_sigmoid(-odds), jax.nn.log_sigmoid(odds)], -1)


@_inputs.compiled()
def _fit(rows: _inputs.Rows, *, penalty: Array) -> BetaCalibration:
  logp = _log_probabilities(jnp.where(rows.keep[:, None], rows.scores, 0))
  dtype = logp.dtype
  # Where one class is impossible, no choice of the numbers matters.
  certain = jnp.any(logp == -jnp.inf, axis=-1)
  impossible = _inputs.own_score(logp, rows.labels) == -jnp.inf
  logp = jnp.where(certain[:, None], 0, logp)
  sign = jnp.where(rows.labels == 1, -1, 1).astype(dtype)
  count = jnp.sum(rows.keep, dtype=dtype)

  def objective(params: BetaCalibration) -> Array:
    loss = jax.nn.softplus(sign * _log_odds(params, logp))
    mean = jnp.sum(jnp.where(rows.keep & ~certain, loss, 0)) / count
    pull = (params.a - 1) ** 2 + (params.b - 1) ** 2 + params.c**2
    return mean + penalty * pull

  def best_on(face: Array) -> BetaCalibration:
    def project(p: BetaCalibration) -> BetaCalibration:
      return BetaCalibration(p.a * face[0], p.b * face[1], p.c)

    one, zero = jnp.ones((), dtype), jnp.zeros((), dtype)
    start = BetaCalibration(one, one, zero)
    return project(minimize(lambda p: objective(project(p)), start))

  # The best of a convex function under a >= 0 and b >= 0 is the best of the
  # four faces among those that keep to the limits.
  faces = jnp.asarray([[1, 1], [1, 0], [0, 1], [0, 0]], dtype)
  found = jax.vmap(best_on)(faces)
  allowed = (found.a >= 0) & (found.b >= 0)
  value = jnp.where(allowed, jax.vmap(objective)(found), jnp.inf)
  best = jax.tree.map(lambda x: x[jnp.argmin(value)], found)
  bad = jnp.any(rows.bad | (rows.keep & impossible)) | (count == 0)
  bad |= ~jnp.isfinite(jnp.min(value))
  return jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), best)


def fit_beta_calibration(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  penalty: float = 1e-3,
  where: ArrayLike | None = None,
) -> BetaCalibration:
  r"""Fits a beta calibration map to a problem of two classes.

  .. math::

    \log \frac{q}{1 - q} = a \log p - b \log (1 - p) + c,
    \qquad a, b \ge 0

  with :math:`p` the probability of class 1 before and :math:`q` after. The
  three numbers minimise the negative log-likelihood plus :math:`\lambda
  ((a - 1)^2 + (b - 1)^2 + c^2)`, which pulls towards no change: without it,
  data that the map can separate have no finite answer. Equal :math:`a` and
  :math:`b` are Platt's map of the log-odds.

  Args:
    logits: Logits of held-out examples, shape ``[..., 2]``.
    labels: Class ids, integers of shape ``[...]``.
    penalty: The weight :math:`\lambda` of the penalty, at least 0.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A :class:`BetaCalibration` for :func:`apply`. NaN without any row, with a
    label out of range under ``jit``, with a NaN logit in a kept row, or where
    a label has logit ``-inf``.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If there are not two classes, a shape or ``penalty`` does not
      fit, or a label known at call time is out of range.

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
  given = _inputs.read_rows("logits", logits, labels, where)
  _check_two_classes(given.scores)
  weight = _inputs.as_scalar("penalty", penalty, "[0, inf)", given)
  return _fit(given, penalty=weight)
