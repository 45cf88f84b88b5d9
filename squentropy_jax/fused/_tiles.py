# SPDX-License-Identifier: Apache-2.0
"""One tile of logits, some rows by some classes: its sums and its cotangent."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core.class_sums import (
  RELATIVE,
  SUMS,
  ClassSums,
  Sum,
  merge,
  no_classes,
  shift_of,
)
from squentropy_jax.fused._head import Arrays, Cotangents, Head


def product(
  a: jax.Array, b: jax.Array, axis_a: int, axis_b: int, dtype: jnp.dtype
) -> jax.Array:
  """The matrix product that sums over the named axes."""
  dimensions = (((axis_a,), (axis_b,)), ((), ()))
  return lax.dot_general(a, b, dimensions, preferred_element_type=dtype)


def rounded(g: jax.Array, dtype: np.dtype) -> jax.Array:
  """A sum over devices, cast to a narrower dtype."""
  narrow, wide = jnp.finfo(dtype), jnp.finfo(g.dtype)
  if narrow.bits < wide.bits and narrow.nexp == wide.nexp:
    # Else a TPU takes the cast before the sum.
    g = lax.reduce_precision(g, narrow.nexp, narrow.nmant)
  return g.astype(dtype)


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


def finite(tile: jax.Array) -> jax.Array:
  """The tile with 0 for ``-inf``; NaN and inf become NaN."""
  return jnp.where(tile == -jnp.inf, jnp.zeros_like(tile), tile + 0.0 * tile)


def logits(head: Head, arrays: Arrays) -> jax.Array:
  """The tile of logits, in the dtype of sums."""
  dtype = head.operand_dtype
  z = product(
    arrays.features.astype(dtype),
    arrays.kernel.astype(dtype),
    1,
    1 - head.class_axis,
    head.sum_dtype,
  )
  bias = None if arrays.bias is None else arrays.bias[None]
  return of_products(head, z, bias, as_column(arrays.factor))


def of_products(
  head: Head,
  z: jax.Array,
  bias: jax.Array | None,
  factor: jax.Array | None = None,
) -> jax.Array:
  """The logits from the products of features and kernel."""
  if bias is not None:
    z += bias.astype(z.dtype)
  if head.soft_cap is not None:
    z = head.soft_cap * jnp.tanh(z / head.soft_cap)
  if factor is not None:
    z *= factor
  if bias is not None:
    # Neither a cap nor a factor makes an impossible class possible.
    z = jnp.where(bias == -jnp.inf, -jnp.inf, z)
  return z


def without_same_key(arrays: Arrays, z: jax.Array) -> jax.Array:
  """The tile with ``-inf`` for each class that has the key of the row."""
  if arrays.row_keys is None or arrays.class_keys is None:
    return z
  is_same = arrays.row_keys[:, None] == arrays.class_keys[None]
  return jnp.where(is_same, -jnp.inf, z)


def logit_derivative(
  head: Head, factor: jax.Array | None, z: jax.Array
) -> jax.Array:
  """The derivative of the logits ``z`` by the products plus bias.

  ``factor`` has the shape of ``z`` or broadcasts to it.
  """
  out = (
    jnp.ones_like(z) if factor is None else jnp.broadcast_to(factor, z.shape)
  )
  if head.soft_cap is not None:
    capped = finite(z) if factor is None else finite(z) / factor
    # The cap has no derivative at NaN, nor at an impossible class.
    one = jnp.where(z == -jnp.inf, 0.0, 1.0) + 0.0 * capped
    out *= one - jnp.square(capped / head.soft_cap)
  return out


def as_column(factor: jax.Array | None) -> jax.Array | None:
  """The factor of each row with a class axis of length 1."""
  return None if factor is None else factor[:, None]


def sum_derivative(rule: Sum, z: jax.Array, exps: jax.Array) -> jax.Array:
  """The derivative of a sum by every logit, 0 for ``-inf``, over its factor."""
  derivative = rule.derivative(finite(z), exps)
  # A mask that is not needed would take the memory of a tile.
  if rule.constant:
    derivative = jnp.where(z == -jnp.inf, jnp.zeros_like(z), derivative)
  return derivative


class Tile(NamedTuple):
  """A tile of logits whose sums are known.

  Attributes:
    logits: The logits, ``-inf`` at the targets.
    exps: Their exponentials relative to the largest logit so far.
    arrays: The rows and classes of the tile.
  """

  logits: jax.Array
  exps: jax.Array
  arrays: Arrays


class RowSums(NamedTuple):
  """The class sums of rows, and how they change with the factor.

  Attributes:
    classes: The sums over the classes that are no target of the row.
    by_factor: Has for each sum the sum of its derivative by each logit, times
      that logit. Its ``max`` is that of ``classes``. None if the loss has no
      factor.
  """

  classes: ClassSums
  by_factor: ClassSums | None


def no_row_sums(head: Head, rows: int, targets: int) -> RowSums:
  """The sums over no class."""
  dtype = head.sum_dtype
  none = no_classes(jnp.zeros((rows, targets), dtype), jnp.zeros(rows, dtype))
  return RowSums(none, none if head.scaled else None)


def add_tile(
  head: Head,
  before: RowSums,
  part: Arrays,
  ids: jax.Array,
  start: jax.Array | int,
) -> tuple[RowSums, Tile]:
  """The sums with one more tile of classes, and the tile."""
  z = logits(head, part)
  sums = before.classes
  cols = columns(ids, start, z.shape[1])
  target = sums.target + pick(z, cols)
  z = without_same_key(part, z)
  z = mark(z, cols, jnp.full_like(target, -jnp.inf))
  found = no_classes(target, sums.max)
  exps = jnp.zeros_like(z)
  if head.has_max:
    # Relative to the largest logit of all tiles, so `merge` rescales one side.
    found = found._replace(max=jnp.maximum(sums.max, z.max(-1)))
  if head.has_exps:
    exps = jnp.exp(z - shift_of(found.max)[:, None])
  if head.has_max_id:
    max_id = start + jnp.argmax(z, axis=-1).astype(jnp.int32)
    found = found._replace(max_id=max_id)
  clean = finite(z)
  terms = {name: SUMS[name].term(clean, exps) for name in head.sums}
  after = merge(
    sums._replace(target=target),
    found._replace(**{name: x.sum(-1) for name, x in terms.items()}),
  )
  by_factor = before.by_factor
  if by_factor is not None:
    rates = {
      name: clean * SUMS[name].derivative(clean, exps) for name in head.sums
    }
    by_factor = merge(
      by_factor,
      found._replace(**{name: x.sum(-1) for name, x in rates.items()}),
    )
  return RowSums(after, by_factor), Tile(z, exps, part)


def cotangent(
  head: Head,
  part: Arrays,
  z: jax.Array,
  sums: ClassSums,
  cotangents: Cotangents,
  ids: jax.Array,
  start: jax.Array | int,
) -> jax.Array:
  """The cotangent of products plus bias, for logits ``z`` and their sums.

  The cotangent of ``target`` is that of its product plus bias already, and
  ``z`` may hold anything at the targets.
  """
  g = exps = jnp.zeros_like(z)
  if any(name in RELATIVE for name in cotangents):
    exps = jnp.exp(z - shift_of(sums.max)[:, None])
  for name, rule in SUMS.items():
    if name in cotangents:
      by_row = (rule.factor * cotangents[name])[:, None]
      if part.all_possible:
        g += by_row * rule.derivative(z, exps)
      else:
        g += by_row * sum_derivative(rule, z, exps)
  if "max" in cotangents:
    largest = columns(sums.max_id[:, None], start, z.shape[1])
    g = mark(g, largest, pick(g, largest) + cotangents["max"][:, None])
  g *= logit_derivative(head, as_column(part.factor), z)
  return mark(g, columns(ids, start, z.shape[1]), cotangents["target"])


def factor_gradient(
  factor: jax.Array, sums: RowSums, cotangents: Mapping[str, jax.Array]
) -> jax.Array:
  """The gradient of the factor of each row, from the sums over all classes."""
  assert sums.by_factor is not None
  target = finite(sums.classes.target)
  by_row = (cotangents["target"] * target).sum(-1)
  if "max" in cotangents:
    by_row += cotangents["max"] * finite(sums.classes.max)
  for name, rule in SUMS.items():
    if name in cotangents:
      by_row += rule.factor * cotangents[name] * getattr(sums.by_factor, name)
  return by_row / factor
