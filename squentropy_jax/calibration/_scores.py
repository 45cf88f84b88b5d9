# SPDX-License-Identifier: Apache-2.0
"""Means over rows: likelihood, Brier score and accuracy."""

from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax import losses
from squentropy_jax._core import checks as _checks
from squentropy_jax.calibration import _inputs


@_inputs.compiled()
def _mean_loss(rows: _inputs.Rows) -> Array:
  def of_block(scores: Array, labels: Array, keep: Array) -> Array:
    return losses.cross_entropy(scores, labels, where=keep)

  loss = _inputs.map_rows(of_block, rows.scores, rows.labels, rows.keep)
  return _inputs.mean_of_rows(loss, rows.keep, rows.bad)


def negative_log_likelihood(
  logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
  r"""Mean cross-entropy of the labels, from logits and never clipped.

  .. math::

    \mathrm{NLL} = -\frac{1}{n} \sum_i \log \mathrm{softmax}(z_i)_{y_i}

  Args:
    logits: Logits (log-probabilities are logits), shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any row, or with a label out of range under ``jit``.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> z = jnp.zeros((3, 4))
    >>> nll = calibration.negative_log_likelihood(z, jnp.array([0, 1, 3]))
    >>> print(f"{nll:.3f}")
    1.386

  References:
    Gneiting and Raftery, `Strictly Proper Scoring Rules, Prediction, and
    Estimation <https://doi.org/10.1198/016214506000001437>`_, 2007.

  .. seealso:: :func:`squentropy_jax.losses.cross_entropy`, example by example
  """
  return _mean_loss(_inputs.read_rows("logits", logits, labels, where))


@_inputs.compiled()
def _brier_score(rows: _inputs.Rows) -> Array:
  def of_block(scores: Array, labels: Array) -> tuple[Array, Array]:
    p = _inputs.widen(scores)
    own = _inputs.class_ids(p) == labels[:, None]
    error = jnp.where(own, 1 - p, p)
    valid = _inputs.are_probabilities(scores)
    return jnp.sum(jnp.square(error), axis=-1), valid

  error, valid = _inputs.map_rows(of_block, rows.scores, rows.labels)
  return _inputs.mean_of_rows(error, rows.keep, rows.bad | (rows.keep & ~valid))


def brier_score(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> Array:
  r"""Mean squared error of the probabilities, summed over classes.

  .. math::

    \mathrm{Brier} = \frac{1}{n} \sum_i \sum_k (p_{ik} - [y_i = k])^2

  It lies in [0, 2]. Some libraries halve it or divide it by the number of
  classes; for two classes it is twice the score of the positive class alone.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any row, or where a row is invalid (see
    :class:`BinStats`).

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8]])
    >>> print(f"{calibration.brier_score(p, jnp.array([0, 0])):.3f}")
    0.650

  References:
    Brier, `Verification of Forecasts Expressed in Terms of Probability
    <https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2>`_,
    1950.

  .. seealso:: :func:`brier_decomposition`
  """
  rows = _inputs.read_rows("probabilities", probabilities, labels, where)
  return _brier_score(rows)


def _mean_hit(rows: _inputs.Rows, hit: Array, isnan: Array) -> Array:
  dtype = _checks.compute_dtype(rows.scores.dtype)
  bad = rows.bad | (isnan & rows.keep)
  return _inputs.mean_of_rows(hit.astype(dtype), rows.keep, bad)


@_inputs.compiled()
def _accuracy(rows: _inputs.Rows) -> Array:
  def of_block(scores: Array, labels: Array) -> tuple[Array, Array]:
    score, prediction = _inputs.largest(scores)
    return prediction == labels, jnp.isnan(score)

  return _mean_hit(rows, *_inputs.map_rows(of_block, rows.scores, rows.labels))


@_inputs.compiled("k")
def _top_k_accuracy(rows: _inputs.Rows, *, k: int) -> Array:
  def of_block(scores: Array, labels: Array) -> tuple[Array, Array]:
    hit = _inputs.rank_of_label(scores, labels) < k
    return hit, jnp.isnan(jnp.max(scores, axis=-1))

  return _mean_hit(rows, *_inputs.map_rows(of_block, rows.scores, rows.labels))


def accuracy(
  scores: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
  r"""Share of rows whose largest score is the label's.

  .. math:: \frac{1}{n} \sum_i [\arg\max_k p_{ik} = y_i]

  The first of tied classes is the prediction.

  Args:
    scores: Probabilities or logits, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any row, with a NaN score in a kept row, or with a
    label out of range under ``jit``.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> float(calibration.accuracy(p, jnp.array([0, 1, 1, 1])))
    0.75

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017.
  """
  rows = _inputs.read_rows("scores", scores, labels, where)
  return _accuracy(rows)


def top_k_accuracy(
  scores: ArrayLike,
  labels: ArrayLike,
  *,
  k: int = 5,
  where: ArrayLike | None = None,
) -> Array:
  r"""Share of rows whose label is among the ``k`` largest scores.

  .. math::

    \frac{1}{n} \sum_i \bigl[\,|\{j : p_{ij} > p_{iy_i}\}| +
    |\{j < y_i : p_{ij} = p_{iy_i}\}| < k\,\bigr]

  Args:
    scores: Probabilities or logits, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    k: How many classes are looked at, a Python int of at most ``C``.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any row, with a NaN score in a kept row, or with a
    label out of range under ``jit``.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape or ``k`` does not fit, or a label known at call time
      is out of range.

  Examples:
    >>> p = jnp.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    >>> float(calibration.top_k_accuracy(p, jnp.array([1, 2]), k=2))
    0.5

  References:
    Russakovsky et al., `ImageNet Large Scale Visual Recognition Challenge
    <https://arxiv.org/abs/1409.0575>`_, 2015.
  """
  rows = _inputs.read_rows("scores", scores, labels, where)
  _inputs.check_int("k", k, 1, rows.scores.shape[-1])
  return _top_k_accuracy(rows, k=k)
