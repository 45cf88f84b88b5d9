# SPDX-License-Identifier: Apache-2.0
"""Sums over bins for every class against the others, and their error."""

import functools
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core.varying import vary_like
from squentropy_jax.calibration._equal_width_bins import bin_of, edges
from squentropy_jax.calibration._metrics_binned_errors import (
  check_norm,
  norm_of_gaps,
)
from squentropy_jax.calibration._row_functions import (
  are_probabilities,
  class_index,
  label_score,
  map_rows,
)
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  check_int,
  compiled_on_rows,
  read_examples,
  widen,
)

# On CPU: the number of sums per bin that are held at once, few enough for a
# core's cache, and the number of rows of a block that are added to each.
_SUMS = 2**10
_ROWS = 2**8


class ClasswiseBins(NamedTuple):
  """Sums over rows by bin and class, ``[m, C]``, float."""

  counts: Array
  hits: Array
  confidence: Array
  confidence_low: Array  # The rounding error of `confidence`, to be added.


def _masked(p: Array, keep: Array, other: float) -> Array:
  """``p`` in [0, 1], ``other`` in the dropped rows."""
  return jnp.where(keep[:, None], jnp.clip(widen(p), 0, 1), other)


def _add_pairs(
  a: tuple[Array, Array], b: tuple[Array, Array]
) -> tuple[Array, Array]:
  return a[0] + b[0], a[1] + b[1]


def _compared_sums(
  p: Array, keep: Array, num_bins: int
) -> tuple[Array, Array, Array]:
  """Counts and sums of ``p`` ``[n, C]`` by bin: a fused pass for each bin."""
  edge = edges(num_bins, widen(p[:0]).dtype)
  edge[-1] = 2  # The last bin is closed.

  def one_bin(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    # The barrier and the single reduction keep XLA from storing `x`.
    x, use, (low, high) = jax.lax.optimization_barrier((p, keep, bounds))
    x = _masked(x, use, -1)  # In no bin.
    inside = (x >= low) & (x < high)
    terms = inside.astype(jnp.int32), jnp.where(inside, x, 0)
    zeros = tuple(jnp.zeros((), term.dtype) for term in terms)
    return jax.lax.reduce(terms, zeros, _add_pairs, (0,))

  bounds = jnp.asarray(edge[:-1]), jnp.asarray(edge[1:])
  counts, sums = jax.lax.map(one_bin, bounds)
  return counts, sums, jnp.zeros_like(sums)


def _two_sum(sum_: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
  """Adds ``x`` to a sum of two floats, the second the rounding error."""
  high, low = sum_
  new = high + x
  part = new - high
  return new, low + ((high - (new - part)) + (x - part))


def _add_groups(
  counts: Array, high: Array, low: Array
) -> tuple[Array, Array, Array]:
  """Adds up counts and sums of two floats over axis 1, a power of 2 long."""
  while (half := high.shape[1] // 2) > 0:
    low = low[:, :half] + low[:, half:]
    high, low = _two_sum((high[:, :half], low), high[:, half:])
  return counts.sum(1, dtype=jnp.int32), high[:, 0], low[:, 0]


def _scattered_sums(
  p: Array, keep: Array, num_bins: int
) -> tuple[Array, Array, Array]:
  """`_compared_sums` block by block: no array of the size of ``p``.

  The third result is the rounding error of the sums.
  """
  n, num_classes = p.shape
  width = min(num_classes, _SUMS)
  # A block of few classes takes more rows, and adds them up in groups: one sum
  # of so many numbers would be less accurate.
  groups = min(_SUMS // width, -(-n // _ROWS))
  groups = 1 << (groups.bit_length() - 1)
  length = min(n, groups * _ROWS)
  rows = jnp.arange(length, dtype=jnp.int32)
  first_column = (rows % groups * width)[:, None]

  def of_classes(first_class: Array) -> tuple[Array, Array, Array]:
    def step(i: Array, state: tuple) -> tuple:
      i = i.astype(jnp.int32)  # The type of the classes, with x64 too.
      first = jnp.minimum(i * length, n - length)
      block = jax.lax.dynamic_slice(p, (first, first_class), (length, width))
      new = jax.lax.dynamic_slice(keep, (first,), (length,))
      # The last block starts early and ignores the rows it reads again.
      new &= rows + first >= i * length
      block = _masked(block, new, 0)
      bins = jnp.where(new[:, None], bin_of(block, num_bins), num_bins)
      place = (bins, first_column + class_index(block))
      sums = jnp.zeros_like(zero).at[place].add(block, mode="drop")
      counts = state[0].at[place].add(1, mode="drop")
      return counts, *_two_sum(state[1:], sums)

    shape, dtype = (num_bins, groups * width), widen(p[:0]).dtype
    none, zero = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, dtype)
    none, zero = vary_like((none, zero), (p, keep))
    sums = jax.lax.fori_loop(0, -(-n // length), step, (none, zero, zero))
    return _add_groups(*(x.reshape(num_bins, groups, width) for x in sums))

  count = -(-num_classes // width)
  starts = np.minimum(np.arange(count) * width, num_classes - width)
  parts = jax.lax.map(of_classes, jnp.asarray(starts, jnp.int32))

  def join(x: Array) -> Array:
    full = jnp.moveaxis(x[:-1], 0, 1).reshape(num_bins, -1)
    return jnp.concatenate([full, x[-1][:, count * width - num_classes :]], 1)

  return jax.tree.map(join, parts)


def classwise_bins(rows: ScoredRows, num_bins: int) -> ClasswiseBins:
  """Counts, hits and confidence of every class and bin."""
  p, keep = rows.scores, rows.keep
  compared = functools.partial(_compared_sums, num_bins=num_bins)
  scattered = functools.partial(_scattered_sums, num_bins=num_bins)
  if p.shape[0] == 0:
    counts, confidence, low = compared(p, keep)
  else:
    counts, confidence, low = jax.lax.platform_dependent(
      p, keep, cpu=scattered, default=compared
    )
  of_label = map_rows(label_score, rows)
  of_label = jnp.where(keep, jnp.clip(widen(of_label), 0, 1), 0)
  use = keep & ~rows.label_invalid
  bins = jnp.where(use, bin_of(of_label, num_bins), num_bins)
  hits = jnp.zeros(counts.shape, jnp.int32)
  hits = hits.at[bins, rows.labels].add(1, mode="drop").astype(low.dtype)
  return ClasswiseBins(counts.astype(low.dtype), hits, confidence, low)


def any_invalid(rows: ScoredRows) -> Array:
  """Whether an included row is invalid, or no row is included."""
  valid = map_rows(lambda scores, _: are_probabilities(scores), rows)
  keep = rows.keep
  return jnp.any(keep & (rows.label_invalid | ~valid)) | ~jnp.any(keep)


@compiled_on_rows("num_bins", "norm")
def _classwise(rows: ScoredRows, *, num_bins: int, norm: float) -> Array:
  sums = classwise_bins(rows, num_bins)
  n = jnp.sum(rows.keep, dtype=sums.counts.dtype)
  gap = (sums.hits - sums.confidence) - sums.confidence_low
  gap = gap / jnp.maximum(sums.counts, 1)
  error = norm_of_gaps((sums.counts / n).T, gap.T, norm)
  return jnp.where(any_invalid(rows), jnp.nan, jnp.mean(error))


def classwise_calibration_error(
  probabilities: ArrayLike,
  labels: ArrayLike,
  *,
  num_bins: int = 15,
  norm: float = 1,
  where: ArrayLike | None = None,
) -> Array:
  r"""Computes the mean over classes of the one-against-others error.

  It reads every probability, not only the largest. Use it to see whether some
  class is always predicted with too much or too little probability.

  .. math::

    \frac{1}{C} \sum_k \Bigl(\sum_b \frac{n_{bk}}{n} \Bigl|\frac{1}{n_{bk}}
    \sum_{i : p_{ik} \in B_b} ([y_i = k] - p_{ik})\Bigr|^p\Bigr)^{1/p}

  over bins :math:`B_b` of equal width. With many classes most probabilities
  are near 0, and so is this error.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    num_bins: Number of bins, a Python int.
    norm: The power :math:`p`, a Python number of at least 1.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar. NaN without any example, or if an included one is invalid (see
    :class:`BinStats`).

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape or value is wrong, or a concrete label is out of
      range.

  Examples:
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8]])
    >>> error = calibration.classwise_calibration_error(p, jnp.array([0, 1]))
    >>> print(f"{error:.3f}")
    0.150

  References:
    Kull et al., `Beyond Temperature Scaling: Obtaining Well-Calibrated
    Multiclass Probabilities with Dirichlet Calibration
    <https://arxiv.org/abs/1910.12656>`_, 2019.
  """
  check_int("num_bins", num_bins, 1)
  check_norm(norm)
  examples = read_examples("probabilities", probabilities, labels, where)
  return _classwise(examples, num_bins=num_bins, norm=norm)
