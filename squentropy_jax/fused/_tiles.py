# SPDX-License-Identifier: Apache-2.0
"""One tile of logits, some rows by some classes: its sums and its cotangent."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core import checks as _checks

# What `linear_row_stats` reads.
ALL_FIELDS = frozenset(("log_odds", "rest_sum", "rest_sq", "rest_max"))


class Head(NamedTuple):
  """What is fixed while tracing about a linear head and its loss.

  Attributes:
    class_axis: The class axis of the kernel, 0 or 1.
    soft_cap: Logits become ``soft_cap * tanh(logits / soft_cap)``, if not None.
    reads: The fields of `RowStats` that the loss reads.
    scaled: Whether the loss multiplies the logits by a number of its own.
  """

  class_axis: int
  soft_cap: float | None
  reads: frozenset[str]
  scaled: bool = False

  @property
  def mass(self) -> bool:
    """Whether the loss reads the exponentials."""
    return bool(self.reads & {"log_odds", "rest_lse"})


class Arrays(NamedTuple):
  """What is differentiated: a head's arrays, or some rows or classes of them.

  Attributes:
    features: ``[R, d]``.
    kernel: ``[d, V]``, or ``[V, d]`` for class axis 0.
    bias: ``[V]``; ``-inf`` takes a class out.
    scale: A scalar that multiplies the capped logits.
  """

  features: jax.Array
  kernel: jax.Array
  bias: jax.Array | None = None
  scale: jax.Array | None = None

  @property
  def operand_dtype(self) -> jnp.dtype:
    """The dtype that features and kernel have in the matrix products."""
    # Eight bits are widened: no other type promotes with them.
    wide = [
      x.dtype if x.dtype.itemsize > 1 else jnp.dtype(jnp.float32)
      for x in (self.features, self.kernel)
    ]
    return jnp.promote_types(*wide)

  @property
  def sum_dtype(self) -> jnp.dtype:
    """The dtype of logits, sums and losses."""
    return _checks.compute_dtype(self.operand_dtype)


# Cotangents of some of the `Arrays`, by name.
Gradient = dict[str, jax.Array]


class Sums(NamedTuple):
  """Sums over the classes of rows ``[R]`` that are no row's target.

  Attributes:
    own: The logits of the row's targets, ``[R, K]``; 0 for an unused one.
    top: The largest logit, ``-inf`` if there is none.
    top_id: Its class; the lowest among equals.
    mass: The sum of ``exp(logit - shift)``, see `shift_of`.
    tilt: The sum of ``logit * exp(logit - shift)``, if the head is scaled.
    total: The sum of the logits.
    square: The sum of their squares.
  """

  own: jax.Array
  top: jax.Array
  top_id: jax.Array
  mass: jax.Array
  tilt: jax.Array
  total: jax.Array
  square: jax.Array


class Slopes(NamedTuple):
  """The cotangents of the fields of `Sums` with these names."""

  own: jax.Array
  top: jax.Array
  mass: jax.Array
  total: jax.Array
  square: jax.Array


def no_sums(rows: int, targets: int, dtype: jnp.dtype) -> Sums:
  """The sums over no class."""
  zero = jnp.zeros((rows,), dtype)
  return Sums(
    own=jnp.zeros((rows, targets), dtype),
    top=jnp.full((rows,), -jnp.inf, dtype),
    top_id=jnp.zeros((rows,), jnp.int32),
    mass=zero,
    tilt=zero,
    total=zero,
    square=zero,
  )


def product(
  a: jax.Array, b: jax.Array, axis_a: int, axis_b: int, dtype: jnp.dtype
) -> jax.Array:
  """The matrix product that sums over the named axes."""
  dimensions = (((axis_a,), (axis_b,)), ((), ()))
  return lax.dot_general(a, b, dimensions, preferred_element_type=dtype)


def columns(ids: jax.Array, start: jax.Array | int, width: int) -> jax.Array:
  """Where class ids stand in a tile; ``width`` and more if they do not."""
  outside = width + lax.broadcasted_iota(jnp.int32, ids.shape, ids.ndim - 1)
  local = ids - start
  return jnp.where((local >= 0) & (local < width), local, outside)


# A scatter costs a CPU nothing, and a compare with every class id does; on
# accelerators the compare joins the pass that reads the tile.


def _hits(tile: jax.Array, cols: jax.Array, k: int) -> jax.Array:
  ids = lax.broadcasted_iota(jnp.int32, tile.shape, 1)
  return ids == cols[:, k : k + 1]


def _places(cols: jax.Array) -> tuple[jax.Array, jax.Array]:
  return lax.broadcasted_iota(jnp.int32, cols.shape, 0), cols


def pick(tile: jax.Array, cols: jax.Array) -> jax.Array:
  """The entries at ``cols`` ``[R, K]``; 0 for columns outside the tile."""

  def by_compare(tile: jax.Array, cols: jax.Array) -> jax.Array:
    zero = jnp.zeros_like(tile)
    found = [
      jnp.where(_hits(tile, cols, k), tile, zero).sum(-1)
      for k in range(cols.shape[1])
    ]
    return jnp.stack(found, axis=-1)

  def by_gather(tile: jax.Array, cols: jax.Array) -> jax.Array:
    return tile.at[_places(cols)].get(mode="fill", fill_value=0)

  return lax.platform_dependent(tile, cols, cpu=by_gather, default=by_compare)


def mark(tile: jax.Array, cols: jax.Array, values: jax.Array) -> jax.Array:
  """The tile with ``values`` ``[R, K]`` at ``cols``."""

  def by_compare(
    tile: jax.Array, cols: jax.Array, values: jax.Array
  ) -> jax.Array:
    for k in range(cols.shape[1]):
      tile = jnp.where(_hits(tile, cols, k), values[:, k : k + 1], tile)
    return tile

  def by_scatter(
    tile: jax.Array, cols: jax.Array, values: jax.Array
  ) -> jax.Array:
    return tile.at[_places(cols)].set(values, mode="drop", unique_indices=True)

  return lax.platform_dependent(
    tile, cols, values, cpu=by_scatter, default=by_compare
  )


def possible(tile: jax.Array) -> jax.Array:
  """1 for an entry, 0 for ``-inf``; NaN and inf are NaN."""
  return finite(tile) * 0.0 + jnp.where(tile == -jnp.inf, 0.0, 1.0)


def finite(tile: jax.Array) -> jax.Array:
  """The tile with 0 for ``-inf``; NaN and inf are NaN."""
  loud = tile + 0.0 * tile
  return jnp.where(tile == -jnp.inf, jnp.zeros_like(tile), loud)


def logits(head: Head, arrays: Arrays) -> jax.Array:
  """The tile of logits, in the dtype of sums."""
  dtype = arrays.operand_dtype
  z = product(
    arrays.features.astype(dtype),
    arrays.kernel.astype(dtype),
    1,
    1 - head.class_axis,
    arrays.sum_dtype,
  )
  if arrays.bias is not None:
    z += arrays.bias.astype(z.dtype)[None]
  if head.soft_cap is not None:
    z = head.soft_cap * jnp.tanh(z / head.soft_cap)
  if arrays.scale is not None:
    z *= arrays.scale
  if arrays.bias is not None:
    # Neither a cap nor a scale brings an impossible class back.
    z = jnp.where((arrays.bias == -jnp.inf)[None], -jnp.inf, z)
  return z


def slope(head: Head, scale: jax.Array | None, z: jax.Array) -> jax.Array:
  """The derivative of logits, given as ``z``, by products plus bias."""
  out = jnp.ones_like(z) if scale is None else jnp.full_like(z, scale)
  if head.soft_cap is not None:
    capped = finite(z) if scale is None else finite(z) / scale
    out *= possible(z) - jnp.square(capped / head.soft_cap)
  return out


def shift_of(top: jax.Array) -> jax.Array:
  """What is subtracted before exp: a constant, 0 for an empty rest."""
  top = lax.stop_gradient(top)
  # inf stays, and makes the row NaN.
  return jnp.where(top == -jnp.inf, jnp.zeros_like(top), top)


def shrink_of(top: jax.Array, shift: jax.Array) -> jax.Array:
  """What turns exponentials relative to ``top`` into ones to ``shift``."""
  return jnp.exp(lax.stop_gradient(top) - shift)


def add_tile(
  head: Head, sums: Sums, z: jax.Array, ids: jax.Array, start: jax.Array | int
) -> tuple[Sums, jax.Array]:
  """The sums with a tile more, and the tile with ``-inf`` at the targets."""
  cols = columns(ids, start, z.shape[1])
  own = sums.own + pick(z, cols)
  z = mark(z, cols, jnp.full_like(own, -jnp.inf))
  out = sums._replace(own=own)
  if head.mass or "rest_max" in head.reads:
    top = z.max(-1)
    later = ~(top <= sums.top) & ~jnp.isnan(sums.top)  # The first NaN stays.
    out = out._replace(top=jnp.where(later, top, sums.top))
  if head.mass:
    shift = shift_of(out.top)
    shrink = shrink_of(sums.top, shift)
    exps = jnp.exp(z - shift[:, None])
    out = out._replace(mass=sums.mass * shrink + exps.sum(-1))
    if head.scaled:
      tilt = (finite(z) * exps).sum(-1)
      out = out._replace(tilt=sums.tilt * shrink + tilt)
  if "rest_sum" in head.reads:
    out = out._replace(total=sums.total + finite(z).sum(-1))
  if "rest_sq" in head.reads:
    out = out._replace(square=sums.square + jnp.square(finite(z)).sum(-1))
  if "rest_max" in head.reads:
    # Blocks come in the order of their ids, so an equal one later is not taken.
    top_id = start + jnp.argmax(z, axis=-1).astype(jnp.int32)
    out = out._replace(top_id=jnp.where(later, top_id, sums.top_id))
  return out, z


def cotangent(
  head: Head,
  part: Arrays,
  z: jax.Array,
  sums: Sums,
  slopes: Slopes,
  ids: jax.Array,
  start: jax.Array | int,
) -> jax.Array:
  """The cotangent of products plus bias, for logits ``z`` and their sums.

  The slopes by ``own`` are those by products plus bias already, and ``z`` may
  hold anything at the targets.
  """
  g = jnp.zeros_like(z)
  if head.mass:
    g += slopes.mass[:, None] * jnp.exp(z - shift_of(sums.top)[:, None])
  if "rest_sum" in head.reads:
    g += slopes.total[:, None] * possible(z)
  if "rest_sq" in head.reads:
    clean = z if part.bias is None else finite(z)
    g += (2.0 * slopes.square)[:, None] * clean
  if "rest_max" in head.reads:
    top = columns(sums.top_id[:, None], start, z.shape[1])
    g = mark(g, top, pick(g, top) + slopes.top[:, None])
  g *= slope(head, part.scale, z)
  return mark(g, columns(ids, start, z.shape[1]), slopes.own)
