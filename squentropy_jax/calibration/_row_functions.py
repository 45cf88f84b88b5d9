# SPDX-License-Identifier: Apache-2.0
"""What metrics and recalibrators compute for each row, and their means."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from squentropy_jax.calibration._scored_rows import ScoredRows, widen

# Elements of a block that stays in the cache of one CPU core.
_BLOCK_SIZE = 2**18


class TopLabel(NamedTuple):
  """The predicted class of each row ``[n]``; 0 and False in dropped rows."""

  confidence: Array  # In [0, 1], float32 or wider.
  hit: Array  # Whether the predicted class is the label.
  use: Array  # Kept and valid.
  invalid: Array  # Kept, but the label or the scores are invalid.


def map_rows(f: Callable[[Array, Array], Any], rows: ScoredRows) -> Any:
  """``f(scores, labels)`` for an ``f`` that treats every row by itself.

  Scores of dropped rows are 0. On CPU, large inputs are cut into blocks that
  stay in the cache: XLA would write every intermediate array of shape
  ``[n, C]`` to memory. Accelerators fuse them away.
  """
  n = rows.scores.shape[0]
  size = max(1, _BLOCK_SIZE // max(1, rows.scores.size // max(1, n)))

  def of_block(rows: ScoredRows) -> Any:
    return f(rows.fill_dropped(rows.scores), rows.labels)

  if n <= size:
    return of_block(rows)

  def blocks(rows: ScoredRows) -> Any:
    count = -(-n // size)
    # The last block starts early rather than run over: no padded copy.
    starts = jnp.minimum(jnp.arange(count, dtype=jnp.int32) * size, n - size)

    def block(start: Array) -> Any:
      def cut(x: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, start, size)

      return of_block(jax.tree.map(cut, rows))

    def join(parts: Array) -> Array:
      full = parts[:-1].reshape(-1, *parts.shape[2:])
      return jnp.concatenate([full, parts[-1, count * size - n :]])

    return jax.tree.map(join, jax.lax.map(block, starts))

  return jax.lax.platform_dependent(rows, cpu=blocks, default=of_block)


def class_index(scores: Array) -> Array:
  """The class of every entry of ``[..., C]``, int32."""
  return jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)


def largest(scores: Array) -> tuple[Array, Array]:
  """Returns the largest score ``[...]`` and the first class that has it."""
  score = jnp.max(scores, axis=-1)
  # `argmax` is one slow reduction of pairs on CPU; two of numbers are not.
  ids = jnp.where(
    scores == score[..., None], class_index(scores), scores.shape[-1]
  )
  return score, jnp.min(ids, axis=-1)


def label_score(scores: Array, labels: Array) -> Array:
  """The score ``[n]`` of each row's label."""
  # By a mask, not a gather: it fuses, and it shards over any axis.
  is_label = class_index(scores) == labels[:, None]
  score = jnp.max(jnp.where(is_label, scores, -jnp.inf), axis=-1)
  # Without the barrier a reader would compute it again for every class.
  return jax.lax.optimization_barrier(score)


def rank_of_label(scores: Array, labels: Array) -> Array:
  """How many classes rank before each row's label; the first of ties wins."""
  score = label_score(scores, labels)[:, None]
  earlier = class_index(scores) < labels[:, None]
  before = jnp.where(earlier, scores >= score, scores > score)
  return jnp.sum(before, axis=-1, dtype=jnp.int32)


def _slack(scores: Array) -> float:
  """By how much rounding may carry a probability out of [0, 1]: a few ulp."""
  return 4 * float(jnp.finfo(scores.dtype).eps)


def are_probabilities(scores: Array) -> Array:
  """Which rows ``[...]`` of ``[..., C]`` lie in [0, 1] and sum to 1.

  Rows with NaN and rows of logits do not. The limits allow for rounding to the
  type of ``scores``: a few ulp for each number, and 0.01 more for the sum.
  """
  slack = _slack(scores)
  low = widen(jnp.min(scores, axis=-1))
  high = widen(jnp.max(scores, axis=-1))
  sum_ = jnp.sum(widen(scores), axis=-1)
  sums_to_one = jnp.abs(sum_ - 1) <= 0.01 + slack
  return (low >= -slack) & (high <= 1 + slack) & sums_to_one


def top_label(rows: ScoredRows) -> TopLabel:
  """The top label of each row, from probabilities.

  The confidence is the largest probability. A hit is a label equal to the
  first class that has it.
  """

  def of_block(scores: Array, labels: Array) -> tuple[Array, ...]:
    confidence, prediction = largest(scores)
    return confidence, prediction == labels, are_probabilities(scores)

  confidence, hit, valid = map_rows(of_block, rows)
  return _valid_top_label(
    confidence, hit, rows.keep, valid & ~rows.label_invalid
  )


def top_label_of_confidence(
  confidence: Array, hit: Array, where: Array | None
) -> TopLabel:
  """The top label of each row ``[n]``, from its confidence."""
  keep = jnp.ones(hit.shape, bool) if where is None else where
  confidence = jnp.where(keep, confidence, jnp.zeros_like(confidence))
  slack, wide = _slack(confidence), widen(confidence)
  valid = (wide >= -slack) & (wide <= 1 + slack)
  return _valid_top_label(confidence, hit, keep, valid)


def _valid_top_label(
  confidence: Array, hit: Array, keep: Array, valid: Array
) -> TopLabel:
  use = keep & valid
  confidence = jnp.where(use, jnp.clip(widen(confidence), 0, 1), 0)
  return TopLabel(confidence, hit & use, use, keep & ~valid)


def mean_over_rows(
  value: Array, keep: Array, invalid: Array | None = None
) -> Array:
  """The mean over kept rows; NaN without any, or if one is invalid."""
  count = jnp.sum(keep, dtype=value.dtype)
  mean = jnp.sum(jnp.where(keep, value, 0)) / count
  if invalid is None:
    return mean
  return jnp.where(jnp.any(invalid), jnp.nan, mean)
