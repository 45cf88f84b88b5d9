# SPDX-License-Identifier: Apache-2.0
"""The part of a proper score that recalibration removes, and the remainder."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax.calibration._metrics_scores import (
  brier_score,
  negative_log_likelihood,
)
from squentropy_jax.calibration._recalibrators_apply import apply
from squentropy_jax.calibration._recalibrators_temperature import (
  fit_temperature,
)
from squentropy_jax.calibration._scored_rows import read_examples, widen


class RefinementDecomposition(NamedTuple):
  """A mean loss as a sum of two errors; see :func:`nll_refinement`.

  Attributes:
    loss: The mean loss of the predicted probabilities, a scalar.
    refinement: The mean loss after recalibration, a scalar.
    calibration: What recalibration removes, ``loss - refinement``.
  """

  loss: Array
  refinement: Array
  calibration: Array

  @property
  def post_hoc_improvement(self) -> Array:
    """The share of the loss that recalibration removes; NaN at a loss of 0."""
    is_zero = self.loss == 0
    share = self.calibration / jnp.where(is_zero, 1, self.loss)
    return jnp.where(is_zero, jnp.nan, share)


def _brier_score_of_logits(
  logits: Array, labels: Array, *, where: Array | None
) -> Array:
  return brier_score(jax.nn.softmax(logits, axis=-1), labels, where=where)


@functools.partial(jax.jit, static_argnames="score")
def _decompose(
  logits: Array,
  labels: Array,
  where: Array | None,
  params: Any,
  *,
  score: Callable[..., Array],
) -> RefinementDecomposition:
  logits = widen(logits)
  if where is not None:
    logits = jnp.where(where[..., None], logits, 0)
  if params is None:
    params = fit_temperature(logits, labels, where=where)
  loss = score(logits, labels, where=where)
  refinement = score(apply(params, logits), labels, where=where)
  return RefinementDecomposition(loss, refinement, loss - refinement)


def _of_arguments(
  logits: ArrayLike,
  labels: ArrayLike,
  params: Any,
  where: ArrayLike | None,
  score: Callable[..., Array],
) -> RefinementDecomposition:
  # Outside jit, this checks the range of the labels.
  arguments = read_examples("logits", logits, labels, where)
  return _decompose(*arguments, params, score=score)


def nll_refinement(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  params: Any = None,
  where: ArrayLike | None = None,
) -> RefinementDecomposition:
  r"""Computes which part of the NLL recalibration removes.

  Use it to compare models that will be recalibrated, to stop training where the
  refinement error of validation examples is least, and to see how much a
  recalibrator would help.

  .. math::

    \underbrace{\mathrm{NLL}(z)}_{\text{loss}} =
    \underbrace{\mathrm{NLL}(g(z))}_{\text{refinement}} +
    \underbrace{\mathrm{NLL}(z) - \mathrm{NLL}(g(z))}_{\text{calibration}}

  with :math:`g` the recalibrator. By default :math:`g` is the temperature of
  :func:`fit_temperature` on the same examples: with one parameter, the
  refinement error is only slightly too small. For an unbiased estimate, or for
  a recalibrator of more parameters, pass ``params`` that were fitted on other
  examples. The calibration error may then be negative.
  If every prediction is right, the temperature makes the refinement error 0, so
  it is equal for all such models.

  Args:
    logits: Logits, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    params: The result of a ``fit_*`` function. None fits a temperature.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`RefinementDecomposition`. NaN in the cases of
    :func:`fit_temperature`.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> z = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    >>> parts = calibration.nll_refinement(z, jnp.array([0, 0, 0, 1]))
    >>> print(f"{parts.loss:.3f} {parts.refinement:.3f}")
    1.018 0.562

  References:
    Berta et al., `Rethinking Early Stopping: Refine, Then Calibrate
    <https://arxiv.org/abs/2501.19195>`_, 2025.

  .. seealso:: :func:`brier_refinement`
  """
  return _of_arguments(logits, labels, params, where, negative_log_likelihood)


def brier_refinement(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  params: Any = None,
  where: ArrayLike | None = None,
) -> RefinementDecomposition:
  r"""Computes which part of the Brier score recalibration removes.

  Use it as :func:`nll_refinement`, if labels are noisy or examples few. For an
  estimate without a recalibrator, from bins, use :func:`brier_decomposition`.

  .. math::

    \mathrm{Brier}(z) = \mathrm{Brier}(g(z)) +
    \bigl(\mathrm{Brier}(z) - \mathrm{Brier}(g(z))\bigr)

  with the terms of :func:`nll_refinement`. The default temperature minimises
  the negative log-likelihood, so the calibration error may be slightly
  negative.

  Args:
    logits: Logits, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    params: The result of a ``fit_*`` function. None fits a temperature.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`RefinementDecomposition`. NaN in the cases of
    :func:`fit_temperature`.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> z = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    >>> parts = calibration.brier_refinement(z, jnp.array([0, 0, 0, 1]))
    >>> print(f"{parts.loss:.3f} {parts.refinement:.3f}")
    0.483 0.375

  References:
    Berta et al., `Rethinking Early Stopping: Refine, Then Calibrate
    <https://arxiv.org/abs/2501.19195>`_, 2025.

  .. seealso:: :func:`nll_refinement`
  """
  return _of_arguments(logits, labels, params, where, _brier_score_of_logits)
