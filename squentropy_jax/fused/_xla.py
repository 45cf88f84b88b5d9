# SPDX-License-Identifier: Apache-2.0
"""The passes over a linear head on one device, in plain XLA operations.

Features are ``[N, d]`` here, target ids ``[N, K]`` and count from the first of
the classes at hand; an id outside them is no target here.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax.fused import _blocks, _tiles
from squentropy_jax.fused._blocks import Blocks
from squentropy_jax.fused._tiles import Arrays, Head, Slopes, Sums


def num_classes(head: Head, arrays: Arrays) -> int:
  """How many classes are at hand."""
  return arrays.kernel.shape[head.class_axis]


def classes_of(
  head: Head, arrays: Arrays, start: jax.Array | int, width: int
) -> Arrays:
  """The arrays with ``width`` classes from ``start`` on."""
  kernel, bias = arrays.kernel, arrays.bias
  if kernel is not None:
    kernel = lax.dynamic_slice_in_dim(kernel, start, width, head.class_axis)
  if bias is not None:
    bias = lax.dynamic_slice_in_dim(bias, start, width)
  return arrays._replace(kernel=kernel, bias=bias)


def put_classes(
  head: Head, whole: Arrays, part: Arrays, start: jax.Array | int
) -> Arrays:
  """The inverse of `classes_of`, rounding to the dtypes of the whole."""

  def put(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
    new = new.astype(old.dtype)
    return lax.dynamic_update_slice_in_dim(old, new, start, axis)

  kernel, bias = whole.kernel, whole.bias
  if kernel is not None:
    kernel = put(kernel, part.kernel, head.class_axis)
  if bias is not None:
    bias = put(bias, part.bias, 0)
  return part._replace(kernel=kernel, bias=bias)


def sums_of_rows(
  head: Head,
  width: int,
  arrays: Arrays,
  ids: jax.Array,
  each: Callable[..., tuple[Any, Any]] | None = None,
  extra: Any = None,
) -> tuple[Sums, Any, tuple[Any, Any]]:
  """The sums of some rows, in one tile of ``width`` classes after the other.

  ``extra, y = each(extra, sums before, sums after, tile, arrays of the tile)``
  is folded over the same tiles.
  """

  def step(carry, start, width, _):
    sums, extra = carry
    part = classes_of(head, arrays, start, width)
    z = _tiles.logits(head, part)
    new, z = _tiles.add_tile(head, sums, z, ids, start)
    y = None
    if each is not None:
      extra, y = each(extra, sums, new, z, part)
    return (new, extra), y

  sums = _tiles.no_sums(*ids.shape, arrays.sum_dtype)
  carry = _blocks.vary((sums, extra), _blocks.varying(arrays, ids))
  (sums, extra), ys = _blocks.over_blocks(
    step, carry, num_classes(head, arrays), width
  )
  return sums, extra, ys


def row_sums(
  head: Head, blocks: Blocks, arrays: Arrays, ids: jax.Array
) -> Sums:
  """The sums of every row: one matrix product."""

  def step(_, rows):
    some = arrays._replace(features=rows[0])
    return None, sums_of_rows(head, blocks.classes, some, rows[1])[0]

  rows = (arrays.features, ids)
  return _blocks.over_rows(step, None, rows, blocks.rows)[1]


def own_by_products(
  head: Head, arrays: Arrays, sums: Sums, slopes: Slopes
) -> Slopes:
  """The slopes, those by own logits taken back to products plus bias."""
  slope = _tiles.slope(head, arrays.scale, sums.own)
  return slopes._replace(own=slopes.own * slope)


def slope_by_scale(arrays: Arrays, sums: Sums, slopes: Slopes) -> jax.Array:
  """The gradient of the scale, from the sums over all classes."""
  by_row = (
    (slopes.own * _tiles.finite(sums.own)).sum(-1)
    + slopes.top * _tiles.finite(sums.top)
    + slopes.mass * sums.tilt
    + slopes.total * sums.total
    + 2.0 * slopes.square * sums.square
  )
  return by_row.sum() / arrays.scale


def zeros_like(
  arrays: Arrays,
  wanted: frozenset[str],
  axes: frozenset[str],
  kernel_dtype: jnp.dtype | None = None,
) -> Arrays:
  """A gradient of 0 of what is wanted, in the dtype of sums if not told."""
  dtypes = dict.fromkeys(Arrays._fields, arrays.sum_dtype)
  dtypes["kernel"] = kernel_dtype or arrays.sum_dtype
  zeros = {
    name: jnp.zeros(getattr(arrays, name).shape, dtypes[name])
    for name in wanted
  }
  return _blocks.vary(Arrays(**zeros), axes)


def add_products(
  head: Head, gradient: Arrays, g: jax.Array, part: Arrays
) -> Arrays:
  """Adds what a tile's cotangent ``g`` gives to its rows and classes."""
  dtype, operand = g.dtype, part.operand_dtype
  # float16 cannot hold the small slopes of a large head; bfloat16 can.
  operand = dtype if operand == jnp.float16 else operand
  narrow = g.astype(operand)
  if gradient.features is not None:
    kernel = part.kernel.astype(operand)
    more = _tiles.product(narrow, kernel, 1, head.class_axis, dtype)
    gradient = gradient._replace(features=gradient.features + more)
  if gradient.kernel is not None:
    pair = (part.features.astype(operand), narrow)
    a, b = pair if head.class_axis else reversed(pair)
    more = _tiles.product(a, b, 0, 0, dtype)
    gradient = gradient._replace(kernel=gradient.kernel.astype(dtype) + more)
  if gradient.bias is not None:
    gradient = gradient._replace(bias=gradient.bias + g.sum(0))
  return gradient


def stream_gradient(
  head: Head,
  blocks: Blocks,
  arrays: Arrays,
  ids: jax.Array,
  sums: Sums,
  slopes: Slopes,
  wanted: frozenset[str],
  kernel_dtype: jnp.dtype,
) -> Arrays:
  """The gradient from slopes of the sums, with the logits computed again.

  Classes are the outer loop, so that a block of the kernel's gradient is summed
  in full precision and written once.
  """
  axes = _blocks.varying(arrays, ids, sums, slopes)
  slopes = own_by_products(head, arrays, sums, slopes)
  rows = (arrays.features, ids, sums, slopes)

  def over_classes(whole, start, width, _):
    part = classes_of(head, arrays, start, width)
    block = zeros_like(part, wanted - {"features"}, axes)
    block = block._replace(features=whole.features)

    def over_rows(block, row, height, _):
      features, some_ids, *of_rows = _blocks.cut(rows, row, height)
      some = part._replace(features=features)
      z = _tiles.logits(head, some)
      g = _tiles.cotangent(head, some, z, *of_rows, some_ids, start)
      every = block.features
      if every is None:
        return add_products(head, block, g, some), None
      block = block._replace(features=_blocks.cut(every, row, height))
      block = add_products(head, block, g, some)
      every = lax.dynamic_update_slice_in_dim(every, block.features, row, 0)
      return block._replace(features=every), None

    total = arrays.features.shape[0]
    block, _ = _blocks.over_blocks(over_rows, block, total, blocks.rows)
    return put_classes(head, whole, block, start), None

  whole = zeros_like(arrays, wanted, axes, kernel_dtype)
  total = num_classes(head, arrays)
  return _blocks.over_blocks(over_classes, whole, total, blocks.classes)[0]
