# SPDX-License-Identifier: Apache-2.0
"""Gradients in one pass over the logits: kept, or summed up as they come."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from squentropy_jax._core import varying
from squentropy_jax.fused import _blocks, _tiles, _xla
from squentropy_jax.fused._blocks import Blocks
from squentropy_jax.fused._tiles import Arrays, Gradient, Head, Slopes, Sums


def keep_gradient(
  head: Head,
  blocks: Blocks,
  arrays: Arrays,
  ids: jax.Array,
  rows: Any,
  finish: Callable[[Sums, Any], tuple[Sums, Slopes, Any, Any]],
  extra: Any,
  wanted: frozenset[str],
  kernel_dtype: jnp.dtype,
) -> tuple[Gradient, Any, Any]:
  """The gradient in one pass, with the logits of a block of rows kept.

  ``sums, slopes, y, more = finish(sums, rows)`` gives for a block of ``rows``
  the sums over all devices and their slopes; the ``y`` are put together, and
  ``more`` is added to ``extra``. Rows are the outer loop.
  """
  axes = varying.axes_of(arrays, ids, rows)
  one_block = arrays.features.shape[0] <= blocks.rows
  of_rows = wanted & {"features"}
  total = _xla.num_classes(head, arrays)

  def over_a_block(carry, block):
    whole, extra = carry
    features, some_ids, some_rows = block
    some = arrays._replace(features=features)
    sums, _, tiles = _xla.sums_of_rows(
      head,
      blocks.classes,
      some,
      some_ids,
      each=lambda extra, before, after, z, part: (extra, z),
    )
    sums, slopes, y, more = finish(sums, some_rows)
    sums, slopes = varying.vary((sums, slopes), axes)
    slopes = _xla.own_by_products(head, some, sums, slopes)

    def over_classes(carry, start, width, z):
      part = _xla.classes_of(head, some, start, width)
      g = _tiles.cotangent(head, part, z, sums, slopes, some_ids, start)
      whole, by_rows = carry
      # What is written once need not be read.
      old = _xla.zeros_like(part, wanted - of_rows, axes)
      if not one_block:
        old = _xla.cut_classes(head, whole, start, width)
      new = _xla.add_products(head, old | by_rows, g, part)
      whole = _xla.put_classes(head, whole, new, start)
      return (whole, {n: new[n] for n in by_rows}), None

    (whole, by_rows), _ = _blocks.over_blocks(
      over_classes,
      (whole, _xla.zeros_like(some, of_rows, axes)),
      total,
      blocks.classes,
      tiles,
    )
    extra = jax.tree.map(jnp.add, extra, more)
    return (whole, extra), (by_rows, y)

  whole = _xla.zeros_like(
    arrays, wanted - of_rows, axes, kernel_dtype if one_block else None
  )
  (whole, extra), (by_rows, ys) = _blocks.over_rows(
    over_a_block, (whole, extra), (arrays.features, ids, rows), blocks.rows
  )
  return whole | by_rows, ys, extra


def fields_with_products(head: Head) -> tuple[str, ...]:
  """The fields of `Sums` that `frozen_sums` gives the derivatives of."""
  read = {
    "mass": head.mass,
    "total": "rest_sum" in head.reads,
    "square": "rest_sq" in head.reads,
  }
  return tuple(name for name, is_read in read.items() if is_read)


def frozen_sums(
  head: Head, blocks: Blocks, arrays: Arrays, ids: jax.Array
) -> tuple[Sums, dict[str, jax.Array]]:
  """The sums, and their derivatives by the features, ``[N, d]`` each.

  The products of exponentials and kernel are summed relative to the running
  largest logit, as the exponentials are. What the derivative by ``own`` and
  ``top`` needs is a row of the kernel; `frozen_gradient` takes it there.
  """
  dtype, operand = arrays.sum_dtype, arrays.operand_dtype
  operand = dtype if operand == jnp.float16 else operand

  def times_kernel(tile, z, part):
    tile *= _tiles.slope(head, part.scale, z)
    kernel = part.kernel.astype(operand)
    tile = tile.astype(operand)
    return _tiles.product(tile, kernel, 1, head.class_axis, dtype)

  def each(by, before, after, z, part):
    new = {}
    if head.mass:
      shift = _tiles.shift_of(after.top)
      shrink = _tiles.shrink_of(before.top, shift)[:, None]
      more = times_kernel(jnp.exp(z - shift[:, None]), z, part)
      new["mass"] = by["mass"] * shrink + more
    if "rest_sum" in head.reads:
      more = times_kernel(_tiles.possible(z), z, part)
      new["total"] = by["total"] + more
    if "rest_sq" in head.reads:
      # Half the derivative, which is finite where the tile is.
      more = times_kernel(_tiles.finite(z), z, part)
      new["square"] = by["square"] + more
    return new, None

  def step(_, rows):
    features, some_ids = rows
    zero = jnp.zeros(features.shape, dtype)
    by = dict.fromkeys(fields_with_products(head), zero)
    some = arrays._replace(features=features)
    return None, _xla.sums_of_rows(
      head, blocks.classes, some, some_ids, each, by
    )[:2]

  rows = (arrays.features, ids)
  return _blocks.over_rows(step, None, rows, blocks.rows)[1]


def frozen_gradient(
  head: Head,
  arrays: Arrays,
  ids: jax.Array,
  sums: Sums,
  by: dict[str, jax.Array],
  slopes: Slopes,
) -> jax.Array:
  """The gradient of the features from what `frozen_sums` gave."""
  slopes = _xla.own_by_products(head, arrays, sums, slopes)
  total = _xla.num_classes(head, arrays)

  def rows_of_kernel(ids, weights):
    here = (ids >= 0) & (ids < total)
    found = jnp.take(
      arrays.kernel, jnp.where(here, ids, 0), axis=head.class_axis
    )
    found = jnp.moveaxis(found, 0, -1) if head.class_axis else found
    weights = jnp.where(here, weights, jnp.zeros_like(weights))
    return weights[:, None] * found.astype(weights.dtype)

  def add_target(by_features, k, _width, _x):
    some, weights = (
      jax.lax.dynamic_index_in_dim(x, k, 1, keepdims=False)
      for x in (ids, slopes.own)
    )
    return by_features + rows_of_kernel(some, weights), None

  # One target of each row after the other: all of them would be K times as
  # large as the features.
  by_features = varying.vary(
    jnp.zeros(arrays.features.shape, slopes.own.dtype),
    varying.axes_of(arrays, ids, slopes),
  )
  by_features, _ = _blocks.over_blocks(add_target, by_features, ids.shape[1], 1)
  doubled = slopes._replace(square=2.0 * slopes.square)
  for name, derivative in by.items():
    by_features += getattr(doubled, name)[:, None] * derivative
  if "rest_max" in head.reads:
    slope = slopes.top * _tiles.slope(head, arrays.scale, sums.top)
    by_features += rows_of_kernel(sums.top_id, slope)
  return by_features
