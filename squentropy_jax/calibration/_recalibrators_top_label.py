# SPDX-License-Identifier: Apache-2.0
"""Maps of the top label's confidence: histogram binning and isotonic."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core.varying import vary_like
from squentropy_jax.calibration import _digit_sums
from squentropy_jax.calibration._confidence_order import (
  ConfidenceOrder,
  sort_by_confidence,
)
from squentropy_jax.calibration._equal_width_bins import bin_of, centres
from squentropy_jax.calibration._recalibrators_apply import (
  apply_params,
  read_params,
)
from squentropy_jax.calibration._row_functions import (
  TopLabel,
  class_index,
  largest,
  map_rows,
)
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  check_int,
  compiled_on_rows,
  read_examples,
  widen,
)


class HistogramBinning(NamedTuple):
  """A confidence for each bin; see :func:`fit_histogram_binning`.

  Attributes:
    accuracy: The new confidence in each bin of equal width, ``[m]``.
  """

  accuracy: Array


class IsotonicRegression(NamedTuple):
  """A nondecreasing map of confidence; see :func:`fit_isotonic_regression`.

  Attributes:
    confidence: Rising confidences, ``[n]``.
    accuracy: The new confidence at each of them, ``[n]``, nondecreasing.
  """

  confidence: Array
  accuracy: Array


def _confidence(logits: Array) -> Array:
  """The largest probability ``[...]`` of logits ``[..., C]``."""
  first = jnp.max(logits, axis=-1)
  return jnp.exp(first - jax.nn.logsumexp(logits, axis=-1))


def _log(x: Array) -> Array:
  """``log(x)``, with derivative 0 at 0, where the map is constant."""
  return jnp.where(x == 0, -jnp.inf, jnp.log(jnp.where(x == 0, 1, x)))


def _with_confidence(logits: Array, new: Array) -> Array:
  """Log-probabilities with a new top confidence ``[...]``, others scaled."""
  _, prediction = largest(logits)
  is_top = class_index(logits) == prediction[..., None]
  others = jnp.where(is_top, -jnp.inf, logits)
  rest_lse = jax.nn.logsumexp(others, axis=-1, keepdims=True)
  # The only possible class has probability 1.
  alone = rest_lse == -jnp.inf
  rest_lse = jnp.where(alone, 0, rest_lse)
  new = jnp.where(alone, 1, new[..., None])
  # 1 - x is exact above 1/2, where log(1 - x) is sensitive to it.
  return jnp.where(is_top, _log(new), _log(1 - new) + (others - rest_lse))


@apply_params.register
def _apply_histogram(params: HistogramBinning, logits: Array) -> Array:
  (accuracy,) = read_params(params, logits.dtype, (None,))
  bins = bin_of(jnp.minimum(_confidence(logits), 1), accuracy.shape[-1])
  return _with_confidence(logits, accuracy[bins])


@apply_params.register
def _apply_isotonic(params: IsotonicRegression, logits: Array) -> Array:
  knots, values = read_params(params, logits.dtype, (None,), (None,))
  new = jnp.interp(_confidence(logits), knots, values)
  return _with_confidence(logits, new)


def _top_label_of_logits(rows: ScoredRows) -> TopLabel:
  def of_block(scores: Array, labels: Array) -> tuple[Array, Array]:
    logits = widen(scores)
    return _confidence(logits), largest(logits)[1] == labels

  confidence, hit = map_rows(of_block, rows)
  valid = ~jnp.isnan(confidence) & ~rows.label_invalid
  use = rows.keep & valid
  confidence = jnp.where(use, jnp.minimum(confidence, 1), 0)
  return TopLabel(confidence, hit & use, use, rows.keep & ~valid)


@compiled_on_rows("num_bins")
def _fit_histogram(rows: ScoredRows, *, num_bins: int) -> HistogramBinning:
  top = _top_label_of_logits(rows)
  dtype = top.confidence.dtype
  bins = jnp.where(top.use, bin_of(top.confidence, num_bins), num_bins)
  flags = jnp.stack([top.use, top.hit], axis=-1).astype(jnp.int32)
  counts, hits = (
    _digit_sums.segment_sum(flags, bins, num_bins).sum(0).astype(dtype)
  )
  centre = centres(num_bins, dtype)
  accuracy = jnp.where(counts > 0, hits / jnp.maximum(counts, 1), centre)
  undefined = jnp.any(top.invalid) | ~jnp.any(top.use)
  return HistogramBinning(jnp.where(undefined, jnp.nan, accuracy))


def _pool_violators(rows: ConfidenceOrder) -> Array:
  """The nondecreasing sequence ``[n]`` nearest to the hits of sorted rows."""
  n = rows.confidence.shape[0]
  dtype = rows.confidence.dtype
  rank = jnp.arange(n, dtype=jnp.int32)

  def mean(block: Array) -> Array:
    return block[0].astype(dtype) / block[1].astype(dtype)

  def push(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
    """Appends a group of ties as a block, and pools until means rise."""

    def violates(state: tuple[Array, Array]) -> Array:
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
    return jax.lax.while_loop(violates, pool, state)

  start = (jnp.full((), -1, jnp.int32), jnp.zeros((n + 1, 2), jnp.int32))
  start = vary_like(start, rows.hits)
  _, blocks = jax.lax.fori_loop(0, n, push, start)
  ends = jnp.cumsum(blocks[:, 1], dtype=jnp.int32)
  block = jnp.searchsorted(ends, rank, side="right")
  return mean(blocks[block].T)


@compiled_on_rows()
def _fit_isotonic(rows: ScoredRows) -> IsotonicRegression:
  ordered = sort_by_confidence(_top_label_of_logits(rows))
  # The last knot is repeated for dropped rows.
  rank = jnp.arange(ordered.confidence.shape[0], dtype=jnp.int32)
  rank = jnp.clip(rank, 0, ordered.size - 1)
  undefined = ordered.invalid | (ordered.size == 0)
  confidence, accuracy = ordered.confidence, _pool_violators(ordered)
  return IsotonicRegression(
    jnp.where(undefined, jnp.nan, confidence[rank]),
    jnp.where(undefined, jnp.nan, accuracy[rank]),
  )


def fit_histogram_binning(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  num_bins: int = 15,
  where: ArrayLike | None = None,
) -> HistogramBinning:
  r"""Fits a new confidence for each bin: its accuracy (histogram binning).

  Use it with many held-out examples, if accuracy is not a nondecreasing
  function of confidence. If it is, use :func:`fit_isotonic_regression`.

  .. math::

    c \mapsto \frac{1}{|B_b|} \sum_{i \in B_b} a_i
    \quad \text{for } c \in B_b = [b/m, (b+1)/m)

  with :math:`c_i` the largest probability of example :math:`i` and :math:`a_i`
  whether its class is the label. The confidence of an empty bin is its centre.
  The other probabilities are scaled so that all sum to 1; another class may
  become the largest. A bin with hits only gives probability 1, and an infinite
  negative log-likelihood if that is wrong.

  Args:
    logits: Logits of held-out examples, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    num_bins: Number of bins :math:`m` of equal width, a Python int.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`HistogramBinning` for :func:`apply`. NaN without any example, or
    if an included one has a NaN logit or a traced label out of range.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

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
  check_int("num_bins", num_bins, 1)
  examples = read_examples("logits", logits, labels, where)
  return _fit_histogram(examples, num_bins=num_bins)


def fit_isotonic_regression(
  logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> IsotonicRegression:
  r"""Fits accuracy as a nondecreasing function of confidence (isotonic).

  Use it with many held-out examples, if one temperature leaves a bent
  reliability diagram. It keeps the order of the confidences, up to ties.

  .. math::

    \min_f \sum_i (a_i - f(c_i))^2 \quad
    \text{with } f(c_i) \le f(c_j) \text{ where } c_i < c_j

  with :math:`c_i` the largest probability of example :math:`i` and :math:`a_i`
  whether its class is the label. The map is linear between the :math:`c_i` and
  constant outside. The other probabilities are scaled so that all sum to 1.
  Probabilities of exactly 0 and 1 occur, as in :func:`fit_histogram_binning`.

  The pool-adjacent-violators algorithm is a loop of :math:`n` steps. It runs on
  any device, but is slow on an accelerator, and under ``vmap`` it takes
  :math:`n^2` steps. Use ``jax.lax.map`` for several seeds.

  Args:
    logits: Logits of held-out examples, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    An :class:`IsotonicRegression` for :func:`apply`. NaN without any example,
    or if an included one has a NaN logit or a traced label out of range.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

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
  return _fit_isotonic(read_examples("logits", logits, labels, where))
