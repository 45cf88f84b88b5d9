# SPDX-License-Identifier: Apache-2.0
"""The passes over a linear head on one device, in plain XLA operations.

Features are ``[N, d]`` here, target ids ``[N, K]`` and count from the first of
the classes on the device; an id outside them is no target here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import varying
from squentropy_jax._core.class_sums import (
  SUMS,
  ClassSums,
  shift_of,
  shrink_factor,
)
from squentropy_jax.fused import _plan, _tiles
from squentropy_jax.fused._head import Arrays, Cotangents, Gradient, Head
from squentropy_jax.fused._parts import (
  classes_of,
  cut_classes,
  num_classes,
  put_classes,
  rows_of,
  with_rows,
)
from squentropy_jax.fused._plan import Blocks
from squentropy_jax.fused._tiles import RowSums


def sums_of_rows(
  head: Head,
  width: int,
  arrays: Arrays,
  ids: jax.Array,
  each: Callable[..., tuple[Any, Any]] | None = None,
  extra: Any = None,
) -> tuple[RowSums, Any, tuple[Any, Any]]:
  """The sums of some rows, in one tile of ``width`` classes after the other.

  ``extra, y = each(extra, sums before, sums after, tile)`` is folded over the
  same tiles.
  """

  def step(carry, start, width, _):
    before, extra = carry
    part = classes_of(head, arrays, start, width)
    after, tile = _tiles.add_tile(head, before, part, ids, start)
    y = None
    if each is not None:
      extra, y = each(extra, before.classes, after.classes, tile)
    return (after, extra), y

  rows, targets = ids.shape
  sums = _tiles.no_row_sums(head, rows, targets)
  carry = varying.vary((sums, extra), varying.axes_of(arrays, ids))
  (sums, extra), ys = _plan.over_blocks(
    step, carry, num_classes(head, arrays), width
  )
  return sums, extra, ys


def row_sums(
  head: Head, blocks: Blocks, arrays: Arrays, ids: jax.Array
) -> RowSums:
  """The sums of every row: one matrix product."""

  def step(_, rows):
    some = with_rows(arrays, rows)
    return None, sums_of_rows(head, blocks.classes, some, rows.ids)[0]

  return _plan.over_rows(step, None, rows_of(arrays, ids), blocks.rows)[1]


def target_by_products(
  head: Head, arrays: Arrays, sums: ClassSums, cotangents: Cotangents
) -> Cotangents:
  """The cotangents, that of the target taken back to products plus bias."""
  factor = _tiles.as_column(arrays.factor)
  derivative = _tiles.logit_derivative(head, factor, sums.target)
  return cotangents | {"target": cotangents["target"] * derivative}


def zeros_like(
  head: Head,
  arrays: Arrays,
  wanted: frozenset[str],
  axes: frozenset[str],
  kernel_dtype: np.dtype | None = None,
  scatter: tuple[str, ...] = (),
) -> Gradient:
  """A gradient of 0 of what is wanted, in the dtype of sums by default.

  The kernel's is scattered over the mesh axes ``scatter``.
  """
  zeros = {
    name: jnp.zeros(getattr(arrays, name).shape, head.sum_dtype)
    for name in sorted(wanted)
  }
  zeros = varying.vary(zeros, axes)
  if "kernel" in wanted and kernel_dtype is not None:
    shape = list(arrays.kernel.shape)
    if scatter and not head.tile_axes:
      shape[1 - head.class_axis] //= lax.axis_size(scatter)
    whole = varying.axes_of(arrays.kernel) if scatter else axes
    zeros["kernel"] = varying.vary(jnp.zeros(shape, kernel_dtype), whole)
  return zeros


def add_products(
  head: Head, gradient: Gradient, g: jax.Array, part: Arrays
) -> Gradient:
  """The gradient with what a tile's cotangent ``g`` gives to it."""
  dtype, operand = g.dtype, head.operand_dtype
  # float16 cannot hold the small gradients of a large head; bfloat16 can.
  operand = dtype if operand == jnp.float16 else operand
  narrow = g.astype(operand)
  more = {}
  if "features" in gradient:
    kernel = part.kernel.astype(operand)
    more["features"] = _tiles.product(narrow, kernel, 1, head.class_axis, dtype)
  if "kernel" in gradient:
    pair = (part.features.astype(operand), narrow)
    a, b = pair if head.class_axis else reversed(pair)
    more["kernel"] = _tiles.product(a, b, 0, 0, dtype)
  if "bias" in gradient:
    more["bias"] = g.sum(0)
  return {name: old + more[name] for name, old in gradient.items()}


def reduced_tile(
  head: Head,
  scatter: tuple[str, ...],
  g: jax.Array,
  kernel: jax.Array,
  dtype: np.dtype,
) -> jax.Array:
  """The gradient of a tile of a kernel, added up over devices."""
  if head.reduce_dtype is not None:
    g = g.astype(head.reduce_dtype)
  g = lax.psum_scatter(
    g, scatter, scatter_dimension=1 - head.class_axis, tiled=True
  )
  more = tuple(sorted(varying.axes_of(g) - varying.axes_of(kernel)))
  return _tiles.rounded(lax.psum(g, more) if more else g, dtype)


def recomputed_gradient(
  head: Head,
  blocks: Blocks,
  arrays: Arrays,
  ids: jax.Array,
  sums: ClassSums,
  cotangents: Cotangents,
  wanted: frozenset[str],
  kernel_dtype: np.dtype,
  scatter: tuple[str, ...],
) -> Gradient:
  """The gradient from cotangents of the sums, the logits computed again.

  Classes are the outer loop, so that a block of the kernel's gradient is summed
  in full precision and written once. Over the mesh axes ``scatter``, which
  shard the width of the kernel, it is scattered at once.
  """
  axes = varying.axes_of(arrays, ids, sums, cotangents)
  cotangents = target_by_products(head, arrays, sums, cotangents)
  every_row = rows_of(arrays, ids), sums, cotangents

  def over_classes(gradient, start, width, _):
    part = classes_of(head, arrays, start, width)
    of_rows = {n: g for n, g in gradient.items() if n == "features"}
    of_classes = zeros_like(head, part, wanted - {"features"}, axes)

    def over_rows(carry, row, height, _):
      of_rows, of_classes = carry
      rows, some_sums, some_cotangents = _plan.cut(every_row, row, height)
      some = with_rows(part, rows)
      z = _tiles.without_same_key(some, _tiles.logits(head, some))
      g = _tiles.cotangent(
        head, some, z, some_sums, some_cotangents, rows.ids, start
      )
      new = add_products(
        head, of_classes | _plan.cut(of_rows, row, height), g, some
      )
      of_rows = {
        n: lax.dynamic_update_slice_in_dim(old, new[n], row, 0)
        for n, old in of_rows.items()
      }
      return (of_rows, {n: new[n] for n in of_classes}), None

    (of_rows, of_classes), _ = _plan.over_blocks(
      over_rows,
      (of_rows, of_classes),
      arrays.features.shape[0],
      blocks.rows,
    )
    if scatter and "kernel" in of_classes:
      of_classes["kernel"] = reduced_tile(
        head, scatter, of_classes["kernel"], arrays.kernel, kernel_dtype
      )
    return put_classes(head, gradient | of_rows, of_classes, start), None

  gradient = zeros_like(head, arrays, wanted, axes, kernel_dtype, scatter)
  total = num_classes(head, arrays)
  return _plan.over_blocks(over_classes, gradient, total, blocks.classes)[0]


def gradient_in_forward(
  head: Head,
  blocks: Blocks,
  arrays: Arrays,
  ids: jax.Array,
  rows: Any,
  finish: Callable[[RowSums, Any, Any], tuple[ClassSums, Cotangents, Any]],
  wanted: frozenset[str],
  kernel_dtype: np.dtype,
) -> tuple[Gradient, Any]:
  """The gradient in one pass, with the logits of a block of rows kept.

  ``sums, cotangents, y = finish(sums, factor, rows)`` gives for a block of
  ``rows`` the sums over all devices and their cotangents. The ``y`` are put
  together. Rows are the outer loop.
  """
  axes = varying.axes_of(arrays, ids, rows)
  one_block = arrays.features.shape[0] <= blocks.rows
  of_rows = wanted & {"features"}
  total = num_classes(head, arrays)

  def over_a_block(by_classes, block):
    of_head, some_rows = block
    some, some_ids = with_rows(arrays, of_head), of_head.ids
    found, _, tiles = sums_of_rows(
      head,
      blocks.classes,
      some,
      some_ids,
      each=lambda extra, before, after, tile: (extra, tile.logits),
    )
    sums, cotangents, y = finish(found, some.factor, some_rows)
    sums, cotangents = varying.vary((sums, cotangents), axes)
    cotangents = target_by_products(head, some, sums, cotangents)

    def over_classes(carry, start, width, z):
      part = classes_of(head, some, start, width)
      g = _tiles.cotangent(head, part, z, sums, cotangents, some_ids, start)
      by_classes, by_rows = carry
      # What is written once need not be read.
      old = zeros_like(head, part, wanted - of_rows, axes)
      if not one_block:
        old = cut_classes(head, by_classes, start, width)
      new = add_products(head, old | by_rows, g, part)
      by_classes = put_classes(head, by_classes, new, start)
      return (by_classes, {n: new[n] for n in by_rows}), None

    (by_classes, by_rows), _ = _plan.over_blocks(
      over_classes,
      (by_classes, zeros_like(head, some, of_rows, axes)),
      total,
      blocks.classes,
      tiles,
    )
    return by_classes, (by_rows, y)

  by_classes = zeros_like(
    head, arrays, wanted - of_rows, axes, kernel_dtype if one_block else None
  )
  of_head = rows_of(arrays, ids)
  by_classes, (by_rows, ys) = _plan.over_rows(
    over_a_block, by_classes, (of_head, rows), blocks.rows
  )
  return by_classes | by_rows, ys


def frozen_sums(
  head: Head, blocks: Blocks, arrays: Arrays, ids: jax.Array
) -> tuple[RowSums, dict[str, jax.Array]]:
  """The sums, and their derivatives by the features, ``[N, d]`` each.

  The derivative of each sum is a product with the kernel, which is summed
  relative to the running largest logit as the sum is. The derivatives by the
  target and the maximum are rows of the kernel; `frozen_gradient` reads them.
  """
  dtype, operand = head.sum_dtype, head.operand_dtype
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
    by_features = dict.fromkeys(head.differentiable_sums, zero)
    some = with_rows(arrays, rows)
    return None, sums_of_rows(
      head, blocks.classes, some, rows.ids, each, by_features
    )[:2]

  return _plan.over_rows(step, None, rows_of(arrays, ids), blocks.rows)[1]


def frozen_gradient(
  head: Head,
  arrays: Arrays,
  ids: jax.Array,
  sums: ClassSums,
  by_features: dict[str, jax.Array],
  cotangents: Cotangents,
) -> jax.Array:
  """The gradient of the features from what `frozen_sums` gave."""
  of_targets = target_by_products(head, arrays, sums, cotangents)["target"]
  total = num_classes(head, arrays)

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
      lax.dynamic_index_in_dim(x, k, 1, keepdims=False)
      for x in (ids, of_targets)
    )
    return gradient + rows_of_kernel(some, weights), None

  # One target of each row after the other: all of them would be K times as
  # large as the features.
  gradient = varying.vary(
    jnp.zeros(arrays.features.shape, of_targets.dtype),
    varying.axes_of(arrays, ids, cotangents),
  )
  gradient, _ = _plan.over_blocks(add_target, gradient, ids.shape[1], 1)
  for name, derivative in by_features.items():
    if name in cotangents:
      by_row = SUMS[name].factor * cotangents[name]
      gradient += by_row[:, None] * derivative
  if "max" in cotangents:
    derivative = _tiles.logit_derivative(head, arrays.factor, sums.max)
    weights = cotangents["max"] * derivative
    gradient += rows_of_kernel(sums.max_id, weights)
  return gradient


class Passes(NamedTuple):
  """The passes of a back end over a head on one device."""

  sums: Callable[..., RowSums]
  frozen_sums: Callable[..., tuple[RowSums, dict[str, jax.Array]]]
  frozen_gradient: Callable[..., jax.Array]
  gradient_in_forward: Callable[..., tuple[Gradient, Any]]
  recomputed_gradient: Callable[..., Gradient]


PASSES = Passes(
  row_sums,
  frozen_sums,
  frozen_gradient,
  gradient_in_forward,
  recomputed_gradient,
)
