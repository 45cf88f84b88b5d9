# SPDX-License-Identifier: Apache-2.0
"""Recalibration of the top-label confidence: histogram and isotonic."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core.varying import vary_like
from squentropy_jax.calibration import _exact, _inputs
from squentropy_jax.calibration._apply import read_params, recalibrated
from squentropy_jax.calibration._bins import bin_of
from squentropy_jax.calibration._order import Ordered, order


class HistogramBinning(NamedTuple):
  """A confidence for each bin; see :func:`fit_histogram_binning`.

  Attributes:
    accuracy: The new confidence in each bin of equal width, ``[m]``.
  """

  accuracy: Array


class IsotonicRegression(NamedTuple):
  """A rising map of the confidence; see :func:`fit_isotonic_regression`.

  Attributes:
    confidence: Rising confidences, ``[n]``.
    accuracy: The new confidence at each of them, ``[n]``, rising.
  """

  confidence: Array
  accuracy: Array


def _confidence(logits: Array) -> Array:
  """The largest probability ``[...]`` of logits ``[..., C]``."""
  largest = jnp.max(logits, axis=-1)
  return jnp.exp(largest - jax.nn.logsumexp(logits, axis=-1))


def _log(x: Array) -> Array:
  """``log(x)``; its slope at 0 is 0, as the map is constant there."""
  return jnp.where(x == 0, -jnp.inf, jnp.log(jnp.where(x == 0, 1, x)))


def _with_confidence(logits: Array, new: Array) -> Array:
  """Log-probabilities with a new top confidence ``[...]``, the rest scaled."""
  _, first = _inputs.largest(logits)
  is_top = _inputs.class_ids(logits) == first[..., None]
  others = jnp.where(is_top, -jnp.inf, logits)
  rest = jax.nn.logsumexp(others, axis=-1, keepdims=True)
  # Without another possible class there is nowhere to put the mass.
  alone = rest == -jnp.inf
  rest = jnp.where(alone, 0, rest)
  new = jnp.where(alone, 1, new[..., None])
  # Above 1/2, where the logarithm of 1 - x matters, 1 - x does not round.
  return jnp.where(is_top, _log(new), _log(1 - new) + (others - rest))


@recalibrated.register
def _apply_histogram(params: HistogramBinning, logits: Array) -> Array:
  (accuracy,) = read_params(params, logits.dtype, (None,))
  bins = bin_of(jnp.minimum(_confidence(logits), 1), accuracy.shape[-1])
  return _with_confidence(logits, accuracy[bins])


@recalibrated.register
def _apply_isotonic(params: IsotonicRegression, logits: Array) -> Array:
  knots, values = read_params(params, logits.dtype, (None,), (None,))
  new = jnp.interp(_confidence(logits), knots, values)
  return _with_confidence(logits, new)


def _top(rows: _inputs.Rows) -> _inputs.Top:
  """The prediction of each row, from logits."""

  def of_block(
    scores: Array, labels: Array, keep: Array
  ) -> tuple[Array, Array]:
    logits = _inputs.widen(jnp.where(keep[:, None], scores, 0))
    return _confidence(logits), _inputs.largest(logits)[1] == labels

  confidence, hit = _inputs.map_rows(
    of_block, rows.scores, rows.labels, rows.keep
  )
  valid = ~jnp.isnan(confidence) & ~rows.bad
  use = rows.keep & valid
  confidence = jnp.where(use, jnp.minimum(confidence, 1), 0)
  return _inputs.Top(confidence, hit & use, use, rows.keep & ~valid)


@_inputs.compiled("num_bins")
def _fit_histogram(rows: _inputs.Rows, *, num_bins: int) -> HistogramBinning:
  top = _top(rows)
  dtype = top.confidence.dtype
  bins = jnp.where(top.use, bin_of(top.confidence, num_bins), num_bins)
  flags = jnp.stack([top.use, top.hit], axis=-1).astype(jnp.int32)
  counts, hits = _exact.segment_sum(flags, bins, num_bins).sum(0).astype(dtype)
  centre = ((np.arange(num_bins) + 0.5) / num_bins).astype(dtype)
  accuracy = jnp.where(counts > 0, hits / jnp.maximum(counts, 1), centre)
  bad = jnp.any(top.invalid) | ~jnp.any(top.use)
  return HistogramBinning(jnp.where(bad, jnp.nan, accuracy))


def _pool_violators(rows: Ordered) -> Array:
  """The rising sequence ``[n]`` nearest to the hits, in the order of rows."""
  n = rows.confidence.shape[0]
  dtype = rows.confidence.dtype
  rank = jnp.arange(n, dtype=jnp.int32)

  def mean(block: Array) -> Array:
    return block[0].astype(dtype) / block[1].astype(dtype)

  def push(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
    """Adds a group of ties as a block, and pools while means do not rise."""

    def falls(state: tuple[Array, Array]) -> Array:
      last, blocks = state
      above = mean(blocks[jnp.maximum(last - 1, 0)])
      return (last > 0) & (above >= mean(blocks[last]))

    def pool(state: tuple[Array, Array]) -> tuple[Array, Array]:
      last, blocks = state
      blocks = blocks.at[last - 1].add(blocks[last])
      return last - 1, blocks.at[last].set(0)

    last, blocks = state
    group = jnp.stack([rows.hits[i], rows.ties[i]])
    pushed = (last + 1, blocks.at[last + 1].set(group))
    is_new = rows.use[i] & (rows.start[i] == i)
    state = jax.tree.map(lambda a, b: jnp.where(is_new, a, b), pushed, state)
    return jax.lax.while_loop(falls, pool, state)

  start = (jnp.full((), -1, jnp.int32), jnp.zeros((n + 1, 2), jnp.int32))
  start = vary_like(start, rows.hits)
  _, blocks = jax.lax.fori_loop(0, n, push, start)
  ends = jnp.cumsum(blocks[:, 1], dtype=jnp.int32)
  block = jnp.searchsorted(ends, rank, side="right")
  return mean(blocks[block].T)


@_inputs.compiled()
def _fit_isotonic(rows: _inputs.Rows) -> IsotonicRegression:
  ordered = order(_top(rows))
  # The last knot is repeated in the place of dropped rows.
  rank = jnp.arange(ordered.confidence.shape[0], dtype=jnp.int32)
  rank = jnp.clip(rank, 0, ordered.size - 1)
  bad = ordered.invalid | (ordered.size == 0)
  return IsotonicRegression(
    *(
      jnp.where(bad, jnp.nan, x[rank])
      for x in (ordered.confidence, _pool_violators(ordered))
    )
  )


def fit_histogram_binning(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  num_bins: int = 15,
  where: ArrayLike | None = None,
) -> HistogramBinning:
  r"""Takes the accuracy of each bin of confidence as the new confidence.

  .. math::

    c \mapsto \frac{1}{|B_b|} \sum_{i \in B_b} a_i
    \quad \text{for } c \in B_b = [b/m, (b+1)/m)

  with :math:`c_i` the largest probability of row :math:`i` and :math:`a_i`
  whether its class is the label. An empty bin has its centre. The remaining
  probabilities are scaled to fill up to 1, so another class may come to be the
  largest. A bin of hits alone gives probability 1, and infinite likelihood
  loss where it is wrong.

  Args:
    logits: Logits of held-out examples, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    num_bins: Number of bins :math:`m` of equal width, a Python int.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A :class:`HistogramBinning` for :func:`apply`. NaN without any row, with a
    label out of range under ``jit``, or with a NaN logit in a kept row.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> z = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]))
    >>> params = calibration.fit_histogram_binning(
    ...   z, jnp.array([0, 1, 1]), num_bins=2
    ... )
    >>> print(jnp.exp(calibration.apply(params, z[0])).round(3))
    [0.667 0.333]

  References:
    Zadrozny and Elkan, `Obtaining Calibrated Probability Estimates from
    Decision Trees and Naive Bayesian Classifiers
    <https://dl.acm.org/doi/10.5555/645530.655658>`_, 2001.
  """
  _inputs.check_int("num_bins", num_bins, 1)
  rows = _inputs.read_rows("logits", logits, labels, where)
  return _fit_histogram(rows, num_bins=num_bins)


def fit_isotonic_regression(
  logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> IsotonicRegression:
  r"""Fits the confidence by a rising step function.

  .. math::

    \min_f \sum_i (a_i - f(c_i))^2 \quad
    \text{with } f(c_i) \le f(c_j) \text{ where } c_i < c_j

  with :math:`c_i` the largest probability of row :math:`i` and :math:`a_i`
  whether its class is the label; between the :math:`c_i` the map is linear,
  outside constant. The remaining probabilities are scaled to fill up to 1, and
  probabilities of exactly 0 and 1 appear, as in :func:`fit_histogram_binning`.

  The violators are pooled one after the other: a loop of :math:`n` steps that
  compiles and runs anywhere, but is no work for an accelerator, and under
  ``vmap`` takes :math:`n^2`; map over seeds with ``jax.lax.map``.

  Args:
    logits: Logits of held-out examples, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    An :class:`IsotonicRegression` for :func:`apply`. NaN without any row, with
    a label out of range under ``jit``, or with a NaN logit in a kept row.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> z = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]))
    >>> params = calibration.fit_isotonic_regression(z, jnp.array([1, 0, 0]))
    >>> print(jnp.exp(calibration.apply(params, z[0])))
    [0.5 0.5]

  References:
    Zadrozny and Elkan, `Transforming Classifier Scores into Accurate
    Multiclass Probability Estimates
    <https://doi.org/10.1145/775047.775151>`_, 2002.
  """
  return _fit_isotonic(_inputs.read_rows("logits", logits, labels, where))
