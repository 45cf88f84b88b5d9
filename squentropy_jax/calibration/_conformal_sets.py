# SPDX-License-Identifier: Apache-2.0
"""Conformal prediction sets: their threshold, members, coverage and size."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core.varying import without_explicit_axes
from squentropy_jax.calibration._conformal_scores import lac_score
from squentropy_jax.calibration._recalibrators_apply import read_params
from squentropy_jax.calibration._row_functions import (
  label_score,
  map_rows,
  mean_over_rows,
)
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  as_scores,
  compiled_on_rows,
  read_examples,
  widen,
)

_ClassScore = Callable[[Any], Array]
# Fractions of small denominator are too coarse nearer to 0 and 1.
_MARGIN = 1e-4


class ConformalThreshold(NamedTuple):
  """The largest score of a class in a set; see :func:`fit_conformal`.

  Attributes:
    threshold: A scalar; infinite if there were too few examples to leave out
      any class, NaN if an example was invalid.
  """

  threshold: Array


def _rank(count: Array, alpha: Fraction) -> Array:
  """``ceil((count + 1) (1 - alpha))`` in int32, without rounding."""
  a, b = alpha.numerator, alpha.denominator  # Below 2^15: no overflow.
  whole, part = (count + 1) // b, (count + 1) % b
  return count + 1 - (whole * a + part * a // b)


def fit_conformal(
  predictions: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: float,
  score: _ClassScore = lac_score,
  where: ArrayLike | None = None,
) -> ConformalThreshold:
  r"""Fits the score threshold of conformal prediction sets.

  Use it to predict sets of classes that contain the label with a given
  probability, however wrong the predicted probabilities are.

  .. math::

    q = s_{(r)}, \qquad r = \lceil (n + 1) (1 - \alpha) \rceil

  the :math:`r`-th smallest of the scores of the labels of :math:`n` held-out
  examples. If these and a new example are exchangeable, the set
  :math:`\{k : s_k \le q\}` of the new one contains its label with probability
  at least :math:`1 - \alpha`. If :math:`r > n`, the threshold is infinite and
  sets contain every class.

  Args:
    predictions: The argument of ``score``, shape ``[..., C]``: probabilities
      for :func:`lac_score` and :func:`aps_score`.
    labels: Class ids, integers of shape ``[...]``.
    alpha: The probability of a set without the label, a Python float in
      [1e-4, 1 - 1e-4]. It is rounded to a fraction of denominator below 2**15.
    score: A function from ``predictions`` to a score of every class, ``[...,
      C]``, smaller for classes that fit better. It treats each example by
      itself.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`ConformalThreshold` for :func:`prediction_set`. NaN if an included
    example has a traced label out of range or a label of score NaN.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape or ``alpha`` is wrong, or a concrete label is out of
      range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3]])
    >>> y = jnp.array([0, 0, 1, 1])
    >>> params = calibration.fit_conformal(p, y, alpha=0.4)
    >>> print(f"{params.threshold:.3f}")
    0.400

  References:
    Vovk, Gammerman and Shafer, `Algorithmic Learning in a Random World
    <https://doi.org/10.1007/978-3-031-06649-8>`_, 2022.

  .. seealso:: :func:`set_coverage`, :func:`mean_set_size`
  """
  if not isinstance(alpha, float):
    raise TypeError(f"alpha must be a Python float, got {alpha!r}.")
  if not _MARGIN <= alpha <= 1 - _MARGIN:
    raise ValueError(
      f"alpha must be in [{_MARGIN}, {1 - _MARGIN}], got {alpha}."
    )
  # The decimal number that was written: 0.1, not the float next to it.
  fraction = Fraction(str(float(alpha))).limit_denominator(2**15 - 1)
  examples = read_examples("predictions", predictions, labels, where)
  scores = _class_scores(score, examples.scores, examples.where)
  return _fit_conformal(examples._replace(scores=scores), alpha=fraction)


def _class_scores(
  score: _ClassScore, predictions: Array, where: Array | None = None
) -> Array:
  if not callable(score):
    raise TypeError(
      f"score must be a function such as calibration.lac_score, got {score!r}."
    )

  def of_examples(predictions: Array, where: Array | None) -> Array:
    if where is not None:
      # Both equal probabilities and equal logits.
      placeholder = 1 / predictions.shape[-1]
      predictions = jnp.where(where[..., None], predictions, placeholder)
    return score(predictions)

  spec = jax.typeof(predictions).sharding.spec
  scores = without_explicit_axes(of_examples, spec, predictions, where)
  if scores.shape != predictions.shape:
    raise ValueError(
      f"score must return the shape {predictions.shape} of its argument, got "
      f"{scores.shape}."
    )
  return scores


@compiled_on_rows("alpha")
def _fit_conformal(rows: ScoredRows, *, alpha: Fraction) -> ConformalThreshold:
  of_label = widen(map_rows(label_score, rows))
  keep = rows.keep
  invalid = jnp.any(rows.label_invalid | (keep & jnp.isnan(of_label)))
  count = jnp.sum(keep, dtype=jnp.int32)
  # Dropped rows sort last; one more entry is the answer to a rank above n.
  of_label = jnp.append(jnp.where(keep, of_label, jnp.inf), jnp.inf)
  of_label = jnp.sort(of_label)
  rank = jnp.minimum(_rank(count, alpha), of_label.size)
  return ConformalThreshold(jnp.where(invalid, jnp.nan, of_label[rank - 1]))


def prediction_set(
  params: ConformalThreshold,
  predictions: ArrayLike,
  *,
  score: _ClassScore = lac_score,
) -> Array:
  r"""Computes which classes are in the prediction set of each example.

  Use it on test and production predictions, after :func:`fit_conformal`.

  .. math:: \{k : s_k \le q\}

  Args:
    params: The result of :func:`fit_conformal`.
    predictions: The argument of ``score``, shape ``[..., C]``.
    score: The score that the threshold was fitted with.

  Returns:
    Booleans of shape ``[..., C]``. A set may be empty. It contains every class
    if the threshold is infinite or NaN, and wherever a score is NaN.

  Raises:
    TypeError: If ``params`` or ``score`` has a wrong type.
    ValueError: If the threshold is not a scalar. Use ``jax.vmap`` for stacked
      thresholds.

  Examples:
    >>> params = calibration.ConformalThreshold(jnp.float32(0.75))
    >>> p = jnp.array([[0.6, 0.3, 0.1], [0.9, 0.1, 0.0]])
    >>> calibration.prediction_set(params, p).tolist()
    [[True, True, False], [True, False, False]]

  References:
    Sadinle, Lei and Wasserman, `Least Ambiguous Set-Valued Classifiers with
    Bounded Error Levels <https://arxiv.org/abs/1609.00451>`_, 2019.
  """
  if not isinstance(params, ConformalThreshold):
    raise TypeError(
      "params must be the result of fit_conformal, got "
      f"{type(params).__name__}. For recalibrated logits use apply."
    )
  predictions = as_scores("predictions", predictions)
  scores = _class_scores(score, predictions)
  (threshold,) = read_params(params, scores.dtype, ())
  return ~(scores > threshold)


def _check_sets(sets: ArrayLike) -> Array:
  sets = jnp.asarray(sets)
  if sets.dtype != jnp.bool_ or sets.ndim == 0:
    raise TypeError(
      f"sets must be booleans of shape [..., C], got {sets.dtype} of shape "
      f"{sets.shape}. Pass the result of prediction_set."
    )
  return sets


def set_coverage(
  sets: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
  r"""Computes the share of examples whose set contains the label.

  Use it to check the coverage of prediction sets on test examples.

  .. math:: \frac{1}{n} \sum_i [y_i \in S_i]

  Args:
    sets: Prediction sets, booleans of shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any example, or if a traced label is out of range.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> sets = jnp.array([[True, False], [True, True]])
    >>> float(calibration.set_coverage(sets, jnp.array([1, 1])))
    0.5

  References:
    Romano, Sesia and Candès, `Classification with Valid and Adaptive Coverage
    <https://arxiv.org/abs/2006.02544>`_, 2020.
  """
  scores = _check_sets(sets).astype(jnp.result_type(float))
  return _coverage(read_examples("sets", scores, labels, where))


@compiled_on_rows()
def _coverage(rows: ScoredRows) -> Array:
  is_covered = map_rows(label_score, rows)
  return mean_over_rows(is_covered, rows.keep, rows.label_invalid)


def mean_set_size(sets: ArrayLike, *, where: ArrayLike | None = None) -> Array:
  r"""Computes the mean number of classes in a set.

  Use it to compare models at the same coverage: smaller sets say more.

  .. math:: \frac{1}{n} \sum_i |S_i|

  Args:
    sets: Prediction sets, booleans of shape ``[..., C]``.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any example.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match.

  Examples:
    >>> sets = jnp.array([[True, False], [True, True]])
    >>> float(calibration.mean_set_size(sets))
    1.5

  References:
    Sadinle, Lei and Wasserman, `Least Ambiguous Set-Valued Classifiers with
    Bounded Error Levels <https://arxiv.org/abs/1609.00451>`_, 2019.
  """
  scores = _check_sets(sets).astype(jnp.result_type(float))
  no_labels = np.zeros(scores.shape[:-1], np.int32)
  return _mean_size(read_examples("sets", scores, no_labels, where))


@compiled_on_rows()
def _mean_size(rows: ScoredRows) -> Array:
  return mean_over_rows(jnp.sum(rows.scores, axis=-1), rows.keep)
