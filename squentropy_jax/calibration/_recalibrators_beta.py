# SPDX-License-Identifier: Apache-2.0
"""Beta calibration, for two classes."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import solvers
from squentropy_jax.calibration._recalibrators_apply import (
  apply_params,
  read_params,
)
from squentropy_jax.calibration._row_functions import label_score
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  as_scalar,
  compiled_on_rows,
  read_examples,
  widen,
)


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


def _check_two_classes(logits: Array) -> None:
  if logits.shape[-1] != 2:
    raise ValueError(
      "logits must have two classes for beta calibration, got shape "
      f"{logits.shape}. For more classes use fit_vector_scaling or "
      "fit_matrix_scaling."
    )


def _log_probabilities(logits: Array) -> Array:
  return jax.nn.log_softmax(widen(logits), axis=-1)


def _log_odds(params: BetaCalibration, logp: Array) -> Array:
  """Recalibrated log-odds ``[...]`` of class 1, of ``logp`` ``[..., 2]``."""

  def times(factor: Array, x: Array) -> Array:
    return jnp.where(factor == 0, 0, factor * x)  # Also if x is -inf.

  a, b, c = read_params(params, logp.dtype, (), (), ())
  return times(a, logp[..., 1]) - times(b, logp[..., 0]) + c


@apply_params.register
def _apply_beta(params: BetaCalibration, logits: Array) -> Array:
  _check_two_classes(logits)
  logp = _log_probabilities(logits)
  odds = _log_odds(params, logp)
  # The pair (0, odds) would not do: the odds may be infinite.
  return jnp.stack([jax.nn.log_sigmoid(-odds), jax.nn.log_sigmoid(odds)], -1)


@compiled_on_rows()
def _fit_beta(rows: ScoredRows, *, penalty: Array) -> BetaCalibration:
  logp = _log_probabilities(rows.fill_dropped(rows.scores))
  dtype = logp.dtype
  # If one class is impossible, the parameters do not matter.
  certain = jnp.any(logp == -jnp.inf, axis=-1)
  impossible = label_score(logp, rows.labels) == -jnp.inf
  logp = jnp.where(certain[:, None], 0, logp)
  sign = jnp.where(rows.labels == 1, -1, 1).astype(dtype)
  keep = rows.keep
  count = jnp.sum(keep, dtype=dtype)

  def objective(params: BetaCalibration) -> Array:
    loss = jax.nn.softplus(sign * _log_odds(params, logp))
    mean = jnp.sum(jnp.where(keep & ~certain, loss, 0)) / count
    change = (params.a - 1) ** 2 + (params.b - 1) ** 2 + params.c**2
    return mean + penalty * change

  def best_on(face: Array) -> BetaCalibration:
    def project(p: BetaCalibration) -> BetaCalibration:
      return BetaCalibration(p.a * face[0], p.b * face[1], p.c)

    one, zero = jnp.ones((), dtype), jnp.zeros((), dtype)
    start = BetaCalibration(one, one, zero)
    return project(solvers.newton(lambda p: objective(project(p)), start))

  # The minimum of a convex function under a >= 0 and b >= 0 is the least of the
  # minima on the four faces that satisfy both.
  faces = jnp.asarray([[1, 1], [1, 0], [0, 1], [0, 0]], dtype)
  found = jax.vmap(best_on)(faces)
  allowed = (found.a >= 0) & (found.b >= 0)
  value = jnp.where(allowed, jax.vmap(objective)(found), jnp.inf)
  best = jax.tree.map(lambda x: x[jnp.argmin(value)], found)
  undefined = jnp.any(rows.label_invalid | (keep & impossible)) | (count == 0)
  undefined |= ~jnp.isfinite(jnp.min(value))
  return jax.tree.map(lambda x: jnp.where(undefined, jnp.nan, x), best)


def fit_beta_calibration(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  penalty: float = 1e-3,
  where: ArrayLike | None = None,
) -> BetaCalibration:
  r"""Fits the three parameters of beta calibration, for two classes.

  Use it for two classes if one temperature is not enough, such as for a model
  that is overconfident in one class only.

  .. math::

    \log \frac{q}{1 - q} = a \log p - b \log (1 - p) + c,
    \qquad a, b \ge 0

  with :math:`p` the probability of class 1 before and :math:`q` after. The
  parameters minimise the negative log-likelihood plus :math:`\lambda
  ((a - 1)^2 + (b - 1)^2 + c^2)`. The penalty makes the result finite for data
  that the map can separate. Equal :math:`a` and :math:`b` give Platt scaling of
  the log-odds.

  Args:
    logits: Logits of held-out examples, shape ``[..., 2]``.
    labels: Class ids, integers of shape ``[...]``.
    penalty: The weight :math:`\lambda` of the penalty, at least 0.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`BetaCalibration` for :func:`apply`. NaN without any example, or if
    an included one has a traced label out of range, a NaN logit, or a label of
    logit ``-inf``.

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
  _check_two_classes(examples.scores)
  weight = as_scalar("penalty", penalty, "[0, inf)", examples)
  return _fit_beta(examples, penalty=weight)
