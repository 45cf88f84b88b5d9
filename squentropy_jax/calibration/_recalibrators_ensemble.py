# SPDX-License-Identifier: Apache-2.0
"""Ensemble temperature scaling: a mixture of three distributions."""

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
  scaled_log_probabilities,
)
from squentropy_jax.calibration._recalibrators_temperature import (
  best_inverse_temperature,
)
from squentropy_jax.calibration._row_functions import label_score
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  compiled_on_rows,
  read_examples,
  widen,
)

# The faces of the simplex: a point of each, and two directions along it.
_POINTS = np.array(
  [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
  + [[1 / 2, 1 / 2, 0], [1 / 2, 0, 1 / 2], [0, 1 / 2, 1 / 2], [1 / 3] * 3]
)
_NONE = [0, 0, 0]
_DIRECTIONS = np.array(
  [[_NONE, _NONE]] * 3
  + [[[1, -1, 0], _NONE], [[1, 0, -1], _NONE], [[0, 1, -1], _NONE]]
  + [[[1, -1, 0], [0, 1, -1]]]
)


class EnsembleTemperatureScaling(NamedTuple):
  """A mixture of probabilities; see :func:`fit_ensemble_temperature`.

  Attributes:
    inverse_temperature: The factor on the logits, a scalar.
    weights: The shares of the probabilities at that temperature, the
      probabilities as they are, and the uniform distribution, ``[3]``.
  """

  inverse_temperature: Array
  weights: Array


def _parts(logits: Array, beta: Array) -> Array:
  """The logarithms of the three distributions, ``[..., C, 3]``."""
  impossible = logits == -jnp.inf
  possible = jnp.sum(~impossible, axis=-1, keepdims=True).astype(logits.dtype)
  uniform = jnp.broadcast_to(-jnp.log(possible), logits.shape)
  one = jnp.ones((), logits.dtype)
  parts = [scaled_log_probabilities(logits, x) for x in (beta, one)]
  return jnp.stack([*parts, uniform], axis=-1)


@apply_params.register
def _apply_ensemble(params: EnsembleTemperatureScaling, logits: Array) -> Array:
  beta, weights = read_params(params, logits.dtype, (), (3,))
  parts = _parts(logits, beta)
  # Probabilities that underflow, and those of impossible classes, have no part
  # in the sum and a derivative of 0.
  used = (parts > -jnp.inf) & jnp.broadcast_to(weights > 0, parts.shape)
  log_weights = jnp.log(jnp.where(weights == 0, 1, weights))
  terms = jnp.where(used, parts, 0) + jnp.broadcast_to(log_weights, parts.shape)
  low = jnp.finfo(terms.dtype).min
  mixed = jax.nn.logsumexp(jnp.where(used, terms, low), axis=-1)
  none = (logits == -jnp.inf) | ~jnp.any(used, axis=-1)
  mixed = jnp.where(none, -jnp.inf, mixed)
  return jnp.where(jnp.isnan(beta), jnp.nan, mixed)


@compiled_on_rows()
def _fit_ensemble(rows: ScoredRows) -> EnsembleTemperatureScaling:
  beta = best_inverse_temperature(rows)
  logits = widen(rows.fill_dropped(rows.scores))
  parts = _parts(logits, beta)
  of_label = jax.vmap(label_score, (-1, None), -1)(parts, rows.labels)
  # The factor of a row does not change where the minimum is.
  q = jnp.exp(of_label - of_label.max(-1, keepdims=True))
  count = jnp.sum(rows.keep, dtype=q.dtype)

  def on_face(face: tuple[Array, Array], shift: Array) -> Array:
    point, directions = face
    return point + shift[0] * directions[0] + shift[1] * directions[1]

  def objective(weights: Array) -> Array:
    # A product of matrices would have less precision on an accelerator.
    mixed = jnp.sum(q * jnp.broadcast_to(weights, q.shape), axis=-1)
    positive = mixed > 0
    loss = jnp.where(positive, -jnp.log(jnp.where(positive, mixed, 1)), jnp.inf)
    return jnp.sum(jnp.where(rows.keep, loss, 0)) / count

  def best_on(face: tuple[Array, Array]) -> Array:
    found = solvers.newton(
      lambda shift: objective(on_face(face, shift)), jnp.zeros(2, q.dtype)
    )
    return on_face(face, found)

  # The minimum of a convex function over the simplex is the least of the minima
  # on its faces that lie in the simplex.
  faces = jnp.asarray(_POINTS, q.dtype), jnp.asarray(_DIRECTIONS, q.dtype)
  found = jax.vmap(best_on)(faces)
  allowed = jnp.all(found >= 0, axis=-1)
  value = jnp.where(allowed, jax.vmap(objective)(found), jnp.inf)
  weights = found[jnp.argmin(value)]
  undefined = jnp.isnan(beta)
  return EnsembleTemperatureScaling(
    beta, jnp.where(undefined, jnp.nan, weights)
  )


def fit_ensemble_temperature(
  logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> EnsembleTemperatureScaling:
  r"""Fits a temperature and the weights of a mixture (ETS).

  Use it if the predicted classes must stay the same and one temperature is not
  enough, such as for a model with a few confident mistakes.

  .. math::

    q_i = w_1\, \mathrm{softmax}(\beta z_i) + w_2\, \mathrm{softmax}(z_i)
    + w_3 / C, \qquad w \ge 0, \quad w_1 + w_2 + w_3 = 1

  with :math:`\beta` the inverse temperature of :func:`fit_temperature`. The
  weights minimise the negative log-likelihood, which is convex in them. The
  uniform distribution has the classes whose logit is not ``-inf``.

  Args:
    logits: Logits of held-out examples, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    An :class:`EnsembleTemperatureScaling` for :func:`apply`. NaN in the cases
    of :func:`fit_temperature`.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> z = jnp.array([[400.0, 0.0]] * 4)
    >>> y = jnp.array([0, 0, 0, 1])
    >>> params = calibration.fit_ensemble_temperature(z, y)
    >>> print(jax.nn.softmax(calibration.apply(params, z[0])).round(3))
    [0.75 0.25]

  References:
    Zhang, Kailkhura and Han, `Mix-n-Match: Ensemble and Compositional Methods
    for Uncertainty Calibration in Deep Learning
    <https://arxiv.org/abs/2003.07329>`_, 2020.
  """
  return _fit_ensemble(read_examples("logits", logits, labels, where))
