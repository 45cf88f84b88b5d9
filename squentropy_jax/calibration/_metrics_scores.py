# SPDX-License-Identifier: Apache-2.0
"""Means over examples: log-likelihood, Brier score and accuracy."""

from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import checks
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.elementwise import softplus
from squentropy_jax._core.rows import row_loss
from squentropy_jax.calibration._row_functions import (
  are_probabilities,
  class_index,
  largest,
  map_rows,
  mean_over_rows,
  rank_of_label,
)
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  check_int,
  compiled_on_rows,
  read_examples,
  widen,
)


@row_loss
def _cross_entropy(stats: RowStats) -> Array:
  return softplus(stats.log_odds)


@compiled_on_rows()
def _mean_loss(rows: ScoredRows) -> Array:
  # Not in blocks as the other metrics: its sums work in place already.
  loss = _cross_entropy(rows.scores, rows.labels, where=rows.where)
  return mean_over_rows(loss, rows.keep, rows.label_invalid)


def negative_log_likelihood(
  logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
  r"""Computes the mean cross-entropy of the labels, without clipping.

  Use it to compare models by one number that is best for the true
  probabilities. A single confident mistake may dominate it; for a bounded score
  use :func:`brier_score`.

  .. math::

    \mathrm{NLL} = -\frac{1}{n} \sum_i \log \mathrm{softmax}(z_i)_{y_i}

  Args:
    logits: Logits (log-probabilities are logits), shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any example, or if a traced label is out of range.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> z = jnp.zeros((3, 4))
    >>> nll = calibration.negative_log_likelihood(z, jnp.array([0, 1, 3]))
    >>> print(f"{nll:.3f}")
    1.386

  References:
    Gneiting and Raftery, `Strictly Proper Scoring Rules, Prediction, and
    Estimation <https://doi.org/10.1198/016214506000001437>`_, 2007.

  .. seealso:: :func:`squentropy_jax.losses.cross_entropy`, one loss per example
  """
  return _mean_loss(read_examples("logits", logits, labels, where))


@compiled_on_rows()
def _brier_score(rows: ScoredRows) -> Array:
  def of_block(scores: Array, labels: Array) -> tuple[Array, Array]:
    p = widen(scores)
    is_label = class_index(p) == labels[:, None]
    error = jnp.where(is_label, 1 - p, p)
    valid = are_probabilities(scores)
    return jnp.sum(jnp.square(error), axis=-1), valid

  error, valid = map_rows(of_block, rows)
  invalid = rows.label_invalid | (rows.keep & ~valid)
  return mean_over_rows(error, rows.keep, invalid)


def brier_score(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> Array:
  r"""Computes the mean squared error of the probabilities (Brier score).

  Use it to compare models by one number that is best for the true
  probabilities and that no single example dominates.

  .. math::

    \mathrm{Brier} = \frac{1}{n} \sum_i \sum_k (p_{ik} - [y_i = k])^2

  It lies in [0, 2]. Some libraries halve it or divide it by the number of
  classes. For two classes it is twice the score of the positive class alone.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any example, or if an included one is invalid (see
    :class:`BinStats`).

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

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
  examples = read_examples("probabilities", probabilities, labels, where)
  return _brier_score(examples)


def _share_of_hits(rows: ScoredRows, hit: Array, isnan: Array) -> Array:
  dtype = checks.compute_dtype(rows.scores.dtype)
  invalid = rows.label_invalid | (isnan & rows.keep)
  return mean_over_rows(hit.astype(dtype), rows.keep, invalid)


@compiled_on_rows()
def _accuracy(rows: ScoredRows) -> Array:
  def of_block(scores: Array, labels: Array) -> tuple[Array, Array]:
    score, prediction = largest(scores)
    return prediction == labels, jnp.isnan(score)

  return _share_of_hits(rows, *map_rows(of_block, rows))


@compiled_on_rows("k")
def _top_k_accuracy(rows: ScoredRows, *, k: int) -> Array:
  def of_block(scores: Array, labels: Array) -> tuple[Array, Array]:
    hit = rank_of_label(scores, labels) < k
    return hit, jnp.isnan(jnp.max(scores, axis=-1))

  return _share_of_hits(rows, *map_rows(of_block, rows))


def accuracy(
  scores: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
  r"""Computes the share of examples whose largest score is the label's.

  Use it next to a calibration metric, which a model with useless predictions
  can have at its best value.

  .. math:: \frac{1}{n} \sum_i [\arg\max_k p_{ik} = y_i]

  The first of tied classes is the prediction.

  Args:
    scores: Probabilities or logits, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any example, or if an included one has a NaN score or
    a traced label out of range.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> float(calibration.accuracy(p, jnp.array([0, 1, 1, 1])))
    0.75

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017.
  """
  examples = read_examples("scores", scores, labels, where)
  return _accuracy(examples)


def top_k_accuracy(
  scores: ArrayLike,
  labels: ArrayLike,
  *,
  k: int = 5,
  where: ArrayLike | None = None,
) -> Array:
  r"""Computes the share of examples whose label has one of the top k scores.

  Use it if several predictions are shown, or if classes overlap. Of tied
  classes the first ranks first.

  .. math::

    \frac{1}{n} \sum_i \bigl[\,|\{j : p_{ij} > p_{iy_i}\}| +
    |\{j < y_i : p_{ij} = p_{iy_i}\}| < k\,\bigr]

  Args:
    scores: Probabilities or logits, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    k: How many classes to look at, a Python int of at most ``C``.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any example, or if an included one has a NaN score or
    a traced label out of range.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape or ``k`` is wrong, or a concrete label is out of
      range.

  Examples:
    >>> p = jnp.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    >>> float(calibration.top_k_accuracy(p, jnp.array([1, 2]), k=2))
    0.5

  References:
    Russakovsky et al., `ImageNet Large Scale Visual Recognition Challenge
    <https://arxiv.org/abs/1409.0575>`_, 2015.
  """
  examples = read_examples("scores", scores, labels, where)
  check_int("k", k, 1, examples.scores.shape[-1])
  return _top_k_accuracy(examples, k=k)
