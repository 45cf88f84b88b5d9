# SPDX-License-Identifier: Apache-2.0
"""Conformal prediction sets: classes enough to hold the label so often."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import checks as _checks
from squentropy_jax.calibration import _inputs
from squentropy_jax.calibration._apply import read_params

Score = Callable[[Any], Array]
_MARGIN = 1e-4  # Nearer to 0 and 1 a fraction of small denominator is no more.


class ConformalThreshold(NamedTuple):
  """Classes of at most this score form the set; see :func:`fit_conformal`.

  Attributes:
    threshold: The largest score in a set, a scalar; infinite where there were
      too few rows to promise anything but all classes, NaN where a row was
      bad.
  """

  threshold: Array


@jax.jit
def _widened(p: Array) -> Array:
  """Probabilities ``[..., C]``, float32 or wider; NaN in rows that are none."""
  valid = _inputs.are_probabilities(p)[..., None]
  return jnp.where(valid, _inputs.widen(p), jnp.nan)


def lac_score(probabilities: ArrayLike) -> Array:
  r"""Score of each class for sets of least mean size (LAC, also THR).

  .. math:: s_k = 1 - p_k

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.

  Returns:
    The scores, shape ``[..., C]``, float32 or wider. NaN in a row that is not
    of probabilities, such as of logits (see :class:`BinStats`).

  Examples:
    >>> print(calibration.lac_score(jnp.array([0.7, 0.2, 0.1])))
    [0.3 0.8 0.9]

  References:
    Sadinle, Lei and Wasserman, `Least Ambiguous Set-Valued Classifiers with
    Bounded Error Levels <https://arxiv.org/abs/1609.00451>`_, 2019.
  """
  return 1 - _widened(_inputs.as_scores("probabilities", probabilities))


def aps_score(probabilities: ArrayLike, *, key: Array | None = None) -> Array:
  r"""Score of each class for sets that adapt to the difficulty (APS).

  .. math:: s_k = \sum_{j : \pi(j) \le \pi(k)} p_j - u\, p_k

  with :math:`\pi(k)` the place of class :math:`k` by falling probability (ties
  by class) and :math:`u` 0, or uniform in [0, 1) for each row with a ``key``.
  Without the key sets are larger than need be. Give other keys to the
  calibration and the test rows:
  ``functools.partial(calibration.aps_score, key=key)``.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    key: Key of the random numbers, or none for scores without chance.

  Returns:
    The scores, shape ``[..., C]``, float32 or wider. NaN in a row that is not
    of probabilities, such as of logits (see :class:`BinStats`).

  Raises:
    TypeError: If ``probabilities`` or ``key`` is of no such type.

  Examples:
    >>> print(calibration.aps_score(jnp.array([0.2, 0.7, 0.1])))
    [0.9 0.7 1. ]

  References:
    Romano, Sesia and Candès, `Classification with Valid and Adaptive Coverage
    <https://arxiv.org/abs/2006.02544>`_, 2020.
  """
  p = _widened(_inputs.as_scores("probabilities", probabilities))
  order = jnp.argsort(p, axis=-1, descending=True)
  mass = jnp.cumsum(jnp.take_along_axis(p, order, axis=-1), axis=-1)
  # An order sorted gives the inverse permutation: back to the classes.
  score = jnp.take_along_axis(mass, jnp.argsort(order, axis=-1), axis=-1)
  if key is None:
    return score
  _checks.check_key(key)
  u = jax.random.uniform(key, (*p.shape[:-1], 1), p.dtype)
  return score - jnp.broadcast_to(u, p.shape) * p


def _rank(count: Array, alpha: Fraction) -> Array:
  """``ceil((count + 1) (1 - alpha))`` in int32 without a rounding error."""
  a, b = alpha.numerator, alpha.denominator  # Below 2^15: no product wraps.
  whole, part = (count + 1) // b, (count + 1) % b
  return count + 1 - (whole * a + part * a // b)


def fit_conformal(
  predictions: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: float,
  score: Score = lac_score,
  where: ArrayLike | None = None,
) -> ConformalThreshold:
  r"""Finds the score up to which classes belong to a prediction set.

  .. math::

    q = s_{(r)}, \qquad r = \lceil (n + 1) (1 - \alpha) \rceil

  the :math:`r`-th smallest score of the labels of :math:`n` held-out rows. If
  these and a new row are exchangeable, the set :math:`\{k : s_k \le q\}` of
  the new row holds its label with chance at least :math:`1 - \alpha`, however
  wrong the probabilities are. Where :math:`r > n` the threshold is infinite
  and sets hold every class.

  Args:
    predictions: What ``score`` takes, shape ``[..., C]``: probabilities for
      :func:`lac_score` and :func:`aps_score`, logits for a score of logits.
    labels: Class ids, integers of shape ``[...]``.
    alpha: The chance to miss the label, a Python float in (0, 1), taken as the
      nearest fraction of a denominator below 2**15; not nearer to 0 and 1 than
      1e-4.
    score: Function from ``predictions`` to the score of every class, ``[...,
      C]``, smaller for classes that fit better.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A :class:`ConformalThreshold` for :func:`prediction_set`. NaN with a label
    out of range under ``jit``, or where the label of a kept row has score NaN.

  Raises:
    TypeError: If a dtype or the type of ``alpha`` or ``score`` does not fit.
    ValueError: If a shape or ``alpha`` does not fit, or a label known at call
      time is out of range.

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
  # The decimal number meant: 0.1, not the float next to it.
  fraction = Fraction(str(float(alpha))).limit_denominator(2**15 - 1)
  given = _inputs.read_rows("predictions", predictions, labels, where)
  scores = _scores(score, given.scores)
  return _fit(given._replace(scores=scores), alpha=fraction)


def _scores(score: Score, predictions: Array) -> Array:
  if not callable(score):
    raise TypeError(
      f"score must be a function such as calibration.lac_score, got {score!r}."
    )
  spec = jax.typeof(predictions).sharding.spec
  scores = _inputs.without_explicit_axes(score, predictions, spec, predictions)
  if scores.shape != predictions.shape:
    raise ValueError(
      f"score must keep the shape {predictions.shape} of its argument, got "
      f"{scores.shape}."
    )
  return scores


@_inputs.compiled("alpha")
def _fit(rows: _inputs.Rows, *, alpha: Fraction) -> ConformalThreshold:
  own = _inputs.widen(
    _inputs.map_rows(_inputs.own_score, rows.scores, rows.labels)
  )
  bad = jnp.any(rows.bad | (rows.keep & jnp.isnan(own)))
  count = jnp.sum(rows.keep, dtype=jnp.int32)
  # Dropped rows come last, and one more of them stands for a rank too high.
  own = jnp.sort(jnp.append(jnp.where(rows.keep, own, jnp.inf), jnp.inf))
  threshold = own[jnp.minimum(_rank(count, alpha) - 1, own.size - 1)]
  return ConformalThreshold(jnp.where(bad, jnp.nan, threshold))


def prediction_set(
  params: ConformalThreshold,
  predictions: ArrayLike,
  *,
  score: Score = lac_score,
) -> Array:
  r"""The classes of each row that its set holds.

  .. math:: \{k : s_k \le q\}

  Args:
    params: What :func:`fit_conformal` returned.
    predictions: What ``score`` takes, shape ``[..., C]``.
    score: The score the threshold was fitted with.

  Returns:
    Booleans of shape ``[..., C]``. A set may be empty. With an infinite
    threshold every set holds every class, and so it does where it is not known
    what to leave out: with a NaN threshold, and in a row with NaN scores.

  Raises:
    TypeError: If ``params`` or ``score`` is of no such type.
    ValueError: If the threshold is no scalar; map stacked ones with
      ``jax.vmap``.

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
      "params must be what fit_conformal returned, got "
      f"{type(params).__name__}; for recalibrated logits use apply."
    )
  predictions = _inputs.as_scores("predictions", predictions)
  scores = _scores(score, predictions)
  (threshold,) = read_params(params, scores.dtype, ())
  return ~(scores > threshold)


def _check_sets(sets: ArrayLike) -> Array:
  sets = jnp.asarray(sets)
  if sets.dtype != jnp.bool_ or sets.ndim == 0:
    raise TypeError(
      "sets must be booleans of shape [..., C], as prediction_set returns, "
      f"got {sets.dtype} of shape {sets.shape}."
    )
  return sets


def set_coverage(
  sets: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
  r"""Share of rows whose set holds the label.

  .. math:: \frac{1}{n} \sum_i [y_i \in S_i]

  Args:
    sets: Prediction sets, booleans of shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any row, or with a label out of range under ``jit``.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> sets = jnp.array([[True, False], [True, True]])
    >>> float(calibration.set_coverage(sets, jnp.array([1, 1])))
    0.5

  References:
    Romano, Sesia and Candès, `Classification with Valid and Adaptive Coverage
    <https://arxiv.org/abs/2006.02544>`_, 2020.
  """
  scores = _check_sets(sets).astype(jnp.result_type(float))
  return _coverage(_inputs.read_rows("sets", scores, labels, where))


@_inputs.compiled()
def _coverage(rows: _inputs.Rows) -> Array:
  inside = _inputs.map_rows(_inputs.own_score, rows.scores, rows.labels)
  return _inputs.mean_of_rows(inside, rows.keep, rows.bad)


def mean_set_size(sets: ArrayLike, *, where: ArrayLike | None = None) -> Array:
  r"""Mean number of classes in a set.

  .. math:: \frac{1}{n} \sum_i |S_i|

  Args:
    sets: Prediction sets, booleans of shape ``[..., C]``.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any row.

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
  return _mean_size(_inputs.read_rows("sets", scores, no_labels, where))


@_inputs.compiled()
def _mean_size(rows: _inputs.Rows) -> Array:
  return _inputs.mean_of_rows(jnp.sum(rows.scores, axis=-1), rows.keep)
