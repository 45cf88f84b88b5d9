# SPDX-License-Identifier: Apache-2.0
"""Sums over the classes other than the labelled one, a form per platform."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks as _checks

# Outside this range a lane is too short for a CPU's vectors, or its copy too
# large; inside it the width nearest to the middle is taken.
_LANE_MIN, _LANE_MID, _LANE_MAX = 16, 128, 4096
# Below this many classes one masked pass is as fast as any other form.
_LANES_FROM = 512
_BLOCK = 2048


class Moments(NamedTuple):
  """What one pass over a row gives; every field has the batch shape.

  Attributes:
    target: The labelled logit.
    shift: The largest other logit, a constant to differentiation; 0 if none.
    mass: The sum of ``exp(logit - shift)`` over the other classes.
    rest_sum: The sum of the other possible logits.
    rest_sq: The sum of their squares.
    rest_max: The largest other logit, ``-inf`` if there is none.
    rest_count: How many other classes are possible (logit above ``-inf``).
  """

  target: jax.Array
  shift: jax.Array
  mass: jax.Array
  rest_sum: jax.Array
  rest_sq: jax.Array
  rest_max: jax.Array
  rest_count: jax.Array


def class_ids(logits: jax.Array) -> jax.Array:
  """The class id of every entry, an array like ``logits`` of int32."""
  return lax.broadcasted_iota(
    jnp.int32,
    logits.shape,
    logits.ndim - 1,
    out_sharding=_checks.explicit_sharding(logits),
  )


def _finite_shift(rest_max: jax.Array) -> jax.Array:
  # +inf stays, so that inf - inf makes the row NaN: loud, not a silent limit.
  return jnp.where(rest_max == -jnp.inf, jnp.zeros_like(rest_max), rest_max)


def _masked_sums(
  logits: jax.Array, keep: jax.Array, shift: jax.Array
) -> tuple[jax.Array, ...]:
  """Mass, sum, sum of squares and count of the entries in ``keep``."""
  zero = jnp.zeros_like(logits)
  # Masked before they are squared: total minus target has no correct digit
  # when the target dominates.
  kept = jnp.where(keep, logits, zero)
  exps = jnp.where(keep, jnp.exp(logits - shift[..., None]), zero)
  count = jnp.sum(keep, axis=-1, dtype=jnp.int32).astype(logits.dtype)
  return exps.sum(-1), kept.sum(-1), jnp.square(kept).sum(-1), count


def iota_moments(logits: jax.Array, labels: jax.Array) -> Moments:
  """One masked pass: fuses on accelerators, and partitions along any axis."""
  is_target = class_ids(logits) == labels[..., None]
  target = jnp.where(is_target, logits, jnp.zeros_like(logits)).sum(-1)
  keep = ~is_target & (logits != -jnp.inf)
  rest_max = jnp.where(keep, logits, -jnp.inf).max(-1)
  shift = _finite_shift(rest_max)
  mass, rest_sum, rest_sq, count = _masked_sums(logits, keep, shift)
  return Moments(target, shift, mass, rest_sum, rest_sq, rest_max, count)


def _fold_blocks(
  logits: jax.Array, labels: jax.Array, init: Any, step: Callable[..., Any]
) -> Any:
  """Folds ``step(carry, block, keep)`` over blocks of classes."""
  num_classes = logits.shape[-1]
  size = min(_BLOCK, num_classes)

  def body(i: jax.Array, carry: Any) -> Any:
    # The last block starts early rather than run over: no padded copy.
    start = jnp.minimum(i * size, num_classes - size)
    block = lax.dynamic_slice_in_dim(logits, start, size, axis=-1)
    ids = start + class_ids(block)
    keep = (ids >= i * size) & (ids != labels[..., None]) & (block != -jnp.inf)
    return step(carry, block, keep)

  return lax.fori_loop(0, -(-num_classes // size), body, init)


def _block_sums(
  logits: jax.Array, labels: jax.Array, shift: jax.Array
) -> tuple[jax.Array, ...]:
  def step(
    carry: tuple[jax.Array, ...], block: jax.Array, keep: jax.Array
  ) -> tuple[jax.Array, ...]:
    return tuple(
      a + b
      for a, b in zip(carry, _masked_sums(block, keep, shift), strict=True)
    )

  return _fold_blocks(logits, labels, (jnp.zeros_like(shift),) * 4, step)


def block_moments(logits: jax.Array, labels: jax.Array) -> Moments:
  """The masked pass in blocks of classes: small memory for any class count."""
  if logits.shape[-1] <= _BLOCK:
    return iota_moments(logits, labels)
  target = _take(logits, labels)
  rest_max = _fold_blocks(
    logits,
    labels,
    # Made of the target, so that it varies over the axes the logits vary over.
    jnp.where(target == target, -jnp.inf, -jnp.inf).astype(logits.dtype),
    lambda m, block, keep: jnp.maximum(
      m, jnp.where(keep, block, -jnp.inf).max(-1)
    ),
  )
  shift = _finite_shift(rest_max)
  sums = _block_sums(logits, labels, shift)
  mass, rest_sum, rest_sq, count = sums
  return Moments(target, shift, mass, rest_sum, rest_sq, rest_max, count)


def lane_width(num_classes: int) -> int | None:
  """The divisor of ``num_classes`` to use as lane width, or None."""
  widths = [w for w in range(_LANE_MIN, _LANE_MAX + 1) if num_classes % w == 0]
  if num_classes < _LANES_FROM or not widths:
    return None
  return min(widths, key=lambda w: abs(np.log(w / _LANE_MID)))


def _take(array: jax.Array, index: jax.Array) -> jax.Array:
  """``array[..., index]`` along the last axis."""
  return jnp.take_along_axis(array, index[..., None], axis=-1)[..., 0]


def lane_moments(
  logits: jax.Array, labels: jax.Array, keep: jax.Array | None = None
) -> Moments:
  """Whole lanes summed unmasked, only the target's lane summed with a mask.

  A compare with the class id inside a long reduction keeps a CPU from using
  its vector kernels. So the classes are cut into lanes, every lane is summed
  as it is, and the target's lane is left out and summed again, masked. Rows
  outside ``keep`` give any value.
  """
  width = lane_width(logits.shape[-1])
  if width is None:
    return block_moments(logits, labels)
  lanes = logits.reshape(*logits.shape[:-1], -1, width)
  lane, offset = labels // width, labels % width
  own = jnp.take_along_axis(lanes, lane[..., None, None], axis=-2)[..., 0, :]
  is_own = class_ids(lanes[..., 0]) == lane[..., None]
  is_target = class_ids(own) == offset[..., None]

  target = jnp.where(is_target, own, jnp.zeros_like(own)).sum(-1)
  rest_max = jnp.maximum(
    jnp.where(is_own, -jnp.inf, lanes.max(-1)).max(-1),
    jnp.where(is_target, -jnp.inf, own).max(-1),
  )
  shift = _finite_shift(rest_max)
  own_sums = _masked_sums(own, ~is_target, shift)

  def total(own_sum: jax.Array, terms: jax.Array) -> jax.Array:
    by_lane = terms.sum(-1)
    return own_sum + jnp.where(is_own, jnp.zeros_like(by_lane), by_lane).sum(-1)

  mass = total(own_sums[0], jnp.exp(lanes - shift[..., None, None]))
  rest_sum = total(own_sums[1], lanes)
  rest_sq = total(own_sums[2], jnp.square(lanes))
  # exp(-inf) is 0 already; the other sums are taken again, masked, in the rare
  # batch that holds an impossible class.
  finite = jnp.isfinite(rest_sq)
  rest_sum, rest_sq, count = lax.cond(
    jnp.all(finite if keep is None else finite | ~keep),
    lambda: (
      rest_sum,
      rest_sq,
      # A select between constants takes the row's sharding and variance.
      jnp.where(rest_sq == rest_sq, width * lanes.shape[-2] - 1.0, 0.0).astype(
        logits.dtype
      ),
    ),
    lambda: _block_sums(logits, labels, shift)[1:],
  )
  return Moments(target, shift, mass, rest_sum, rest_sq, rest_max, count)


@jax.custom_jvp
def moments(
  logits: jax.Array, labels: jax.Array, keep: jax.Array | None
) -> Moments:
  """Moments of ``logits`` ``[..., C]`` around valid class ids ``[...]``.

  Impossible classes (``-inf`` logits) are left out of every field but
  ``target``. Rows outside ``keep`` ``[...]`` may hold anything, NaN included:
  their moments are finite constants with gradient 0. The form is chosen at
  trace time when the type of the logits is sharded, else by platform at
  lowering.
  """
  if _checks.explicit_sharding(logits) is not None:
    out = iota_moments(logits, labels)
  else:
    out = lax.platform_dependent(
      logits,
      labels,
      keep,
      cpu=lane_moments,
      default=lambda logits, labels, _: iota_moments(logits, labels),
    )
  if keep is None:
    return out
  return Moments(*(jnp.where(keep, f, jnp.ones_like(f)) for f in out))


@moments.defjvp
def _moments_jvp(
  primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Moments, Moments]:
  logits, labels, keep = primals
  dlogits = tangents[0]
  out = moments(logits, labels, keep)
  # Without the barrier XLA finds the forward pass's exponentials again here,
  # and keeps a copy as large as the logits.
  shift = lax.optimization_barrier(lax.stop_gradient(out.shift))[..., None]
  ids = class_ids(logits)
  is_target = ids == labels[..., None]
  drop = is_target | (logits == -jnp.inf)
  if keep is not None:
    is_target &= keep[..., None]
    drop |= ~keep[..., None]
  zero = jnp.zeros_like(dlogits)
  drest = jnp.where(drop, zero, dlogits)
  # A dropped entry holds the shift: finite, and its tangent is 0.
  rest = jnp.where(drop, shift, logits)
  largest = jnp.argmax(jnp.where(drop, -jnp.inf, logits), axis=-1)
  is_largest = ids == largest[..., None].astype(ids.dtype)
  return out, Moments(
    target=jnp.where(is_target, dlogits, zero).sum(-1),
    shift=jnp.zeros_like(out.shift),
    mass=(jnp.exp(rest - shift) * drest).sum(-1),
    rest_sum=drest.sum(-1),
    # In this order the slope of a huge finite logit does not overflow.
    rest_sq=(2.0 * (rest * drest)).sum(-1),
    rest_max=jnp.where(is_largest, drest, zero).sum(-1),
    rest_count=jnp.zeros_like(out.rest_count),
  )
