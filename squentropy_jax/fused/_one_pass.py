# SPDX-License-Identifier: Apache-2.0
"""Gradients in one pass: logits kept, or products summed as they come."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from squentropy_jax._core import varying
from squentropy_jax._core.class_sums import (
  SUMS,
  ClassSums,
  shift_of,
  shrink_factor,
)
from squentropy_jax.fused import _blocks, _tiles, _xla
from squentropy_jax.fused._blocks import Blocks
from squentropy_jax.fused._tiles import (
  Arrays,
  Cotangents,
  Gradient,
  Head,
  RowSums,
)


def gradient_in_forward(
  head: Head,
  blocks: Blocks,
  arrays: Arrays,
  ids: jax.Array,
  rows: Any,
  finish: Callable[[RowSums, Any, Any], tuple[ClassSums, Cotangents, Any, Any]],
  extra: Any,
  wanted: frozenset[str],
  kernel_dtype: jnp.dtype,
) -> tuple[Gradient, Any, Any]:
  """The gradient in one pass, with the logits of a block of rows kept.

  ``sums, cotangents, y, more = finish(sums, factor, rows)`` gives for a block
  of ``rows`` the sums over all devices and their cotangents. The ``y`` are put
  together, and ``more`` is added to ``extra``. Rows are the outer loop.
  """
  axes = varying.axes_of(arrays, ids, rows)
  one_block = arrays.features.shape[0] <= blocks.rows
  of_rows = wanted & {"features"}
  total = _xla.num_classes(head, arrays)

  def over_a_block(carry, block):
    by_classes, extra = carry
    of_head, some_rows = block
    some, some_ids = _xla.with_rows(arrays, of_head), of_head.ids
    found, _, tiles = _xla.sums_of_rows(
      head,
      blocks.classes,
      some,
      some_ids,
      each=lambda extra, before, after, tile: (extra, tile.logits),
    )
    sums, cotangents, y, more = finish(found, some.factor, some_rows)
    sums, cotangents = varying.vary((sums, cotangents), axes)
    cotangents = _xla.target_by_products(head, some, sums, cotangents)

    def over_classes(carry, start, width, z):
      part = _xla.classes_of(head, some, start, width)
      g = _tiles.cotangent(head, part, z, sums, cotangents, some_ids, start)
      by_classes, by_rows = carry
      # What is written once need not be read.
      old = _xla.zeros_like(part, wanted - of_rows, axes)
      if not one_block:
        old = _xla.cut_classes(head, by_classes, start, width)
      new = _xla.add_products(head, old | by_rows, g, part)
      by_classes = _xla.put_classes(head, by_classes, new, start)
      return (by_classes, {n: new[n] for n in by_rows}), None

    (by_classes, by_rows), _ = _blocks.over_blocks(
      over_classes,
      (by_classes, _xla.zeros_like(some, of_rows, axes)),
      total,
      blocks.classes,
      tiles,
    )
    extra = jax.tree.map(jnp.add, extra, more)
    return (by_classes, extra), (by_rows, y)

  by_classes = _xla.zeros_like(
    arrays, wanted - of_rows, axes, kernel_dtype if one_block else None
  )
  of_head = _xla.Rows(arrays.features, arrays.factor, ids)
  (by_classes, extra), (by_rows, ys) = _blocks.over_rows(
    over_a_block, (by_classes, extra), (of_head, rows), blocks.rows
  )
  return by_classes | by_rows, ys, extra


def frozen_sums(
  head: Head, blocks: Blocks, arrays: Arrays, ids: jax.Array
) -> tuple[RowSums, dict[str, jax.Array]]:
  """The sums, and their derivatives by the features, ``[N, d]`` each.

  The derivative of each sum is a product with the kernel, which is summed
  relative to the running largest logit as the sum is. The derivatives by the
  target and the maximum are rows of the kernel; `frozen_gradient` reads them.
  """
  dtype, operand = arrays.sum_dtype, arrays.operand_dtype
  operand = dtype if operand == jnp.float16 else operand

  def each(by_features, before, after, tile):
    factor = _tiles.as_column(tile.arrays.factor)
    derivative = _tiles.logit_derivative(head, factor, tile.logits)
    kernel = tile.arrays.kernel.astype(operand)
    shrink = shrink_factor(before.max, shift_of(after.max))[:, None]
    out = {}
    for name, old in by_features.items():
      # Without the factor of the sum, which would overflow sooner.
      g = _tiles.sum_derivative(SUMS[name], tile.logits, tile.exps) * derivative
      more = _tiles.product(
        g.astype(operand), kernel, 1, head.class_axis, dtype
      )
      out[name] = (old * shrink if SUMS[name].relative else old) + more
    return out, None

  def step(_, rows):
    zero = jnp.zeros(rows.features.shape, dtype)
    some = _xla.with_rows(arrays, rows)
    return None, _xla.sums_of_rows(
      head, blocks.classes, some, rows.ids, each, dict.fromkeys(head.sums, zero)
    )[:2]

  rows = _xla.Rows(arrays.features, arrays.factor, ids)
  return _blocks.over_rows(step, None, rows, blocks.rows)[1]


def frozen_gradient(
  head: Head,
  arrays: Arrays,
  ids: jax.Array,
  sums: ClassSums,
  by_features: dict[str, jax.Array],
  cotangents: Cotangents,
) -> jax.Array:
  """The gradient of the features from what `frozen_sums` gave."""
  of_targets = _xla.target_by_products(head, arrays, sums, cotangents)["target"]
  total = _xla.num_classes(head, arrays)

  def rows_of_kernel(ids, weights):
    here = (ids >= 0) & (ids < total)
    found = jnp.take(
      arrays.kernel, jnp.where(here, ids, 0), axis=head.class_axis
    )
    found = jnp.moveaxis(found, 0, -1) if head.class_axis else found
    weights = jnp.where(here, weights, jnp.zeros_like(weights))
    return weights[:, None] * found.astype(weights.dtype)

  def add_target(gradient, k, _width, _x):
    some, weights = (
      jax.lax.dynamic_index_in_dim(x, k, 1, keepdims=False)
      for x in (ids, of_targets)
    )
    return gradient + rows_of_kernel(some, weights), None

  # One target of each row after the other: all of them would be K times as
  # large as the features.
  gradient = varying.vary(
    jnp.zeros(arrays.features.shape, of_targets.dtype),
    varying.axes_of(arrays, ids, cotangents),
  )
  gradient, _ = _blocks.over_blocks(add_target, gradient, ids.shape[1], 1)
  for name, derivative in by_features.items():
    if name in cotangents:
      by_row = SUMS[name].factor * cotangents[name]
      gradient += by_row[:, None] * derivative
  if "max" in cotangents:
    derivative = _tiles.logit_derivative(head, arrays.factor, sums.max)
    weights = cotangents["max"] * derivative
    gradient += rows_of_kernel(sums.max_id, weights)
  return gradient
