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

from squentropy_jax._core import varying
from squentropy_jax._core.class_sums import ClassSums
from squentropy_jax.fused import _blocks, _tiles
from squentropy_jax.fused._blocks import Blocks
from squentropy_jax.fused._tiles import (
  Arrays,
  Cotangents,
  Gradient,
  Head,
  RowSums,
)


def num_classes(head: Head, arrays: Arrays) -> int:
  """How many classes the arrays have."""
  return arrays.kernel.shape[head.class_axis]


def classes_of(
  head: Head, arrays: Arrays, start: jax.Array | int, width: int
) -> Arrays:
  """The arrays with ``width`` classes from ``start`` on."""
  kernel = lax.dynamic_slice_in_dim(
    arrays.kernel, start, width, head.class_axis
  )
  bias = arrays.bias
  if bias is not None:
    bias = lax.dynamic_slice_in_dim(bias, start, width)
  return arrays._replace(kernel=kernel, bias=bias)


def _class_axes(head: Head) -> dict[str, int]:
  return {"kernel": head.class_axis, "bias": 0}


def cut_classes(
  head: Head, gradient: Gradient, start: jax.Array | int, width: int
) -> Gradient:
  """What a gradient says of ``width`` classes from ``start`` on."""
  return {
    name: lax.dynamic_slice_in_dim(gradient[name], start, width, axis)
    for name, axis in _class_axes(head).items()
    if name in gradient
  }


def put_classes(
  head: Head, gradient: Gradient, part: Gradient, start: jax.Array | int
) -> Gradient:
  """The inverse of `cut_classes`; ``part`` is cast to the gradient's dtypes."""
  return gradient | {
    name: lax.dynamic_update_slice_in_dim(
      gradient[name], part[name].astype(gradient[name].dtype), start, axis
    )
    for name, axis in _class_axes(head).items()
    if name in gradient
  }


class Rows(NamedTuple):
  """What of a head's arrays has rows, to be cut into blocks."""

  features: jax.Array
  factor: jax.Array | None
  ids: jax.Array


def with_rows(arrays: Arrays, rows: Rows) -> Arrays:
  """The arrays with some of their rows."""
  return arrays._replace(features=rows.features, factor=rows.factor)


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
  sums = _tiles.no_row_sums(head, rows, targets, arrays.sum_dtype)
  carry = varying.vary((sums, extra), varying.axes_of(arrays, ids))
  (sums, extra), ys = _blocks.over_blocks(
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

  rows = Rows(arrays.features, arrays.factor, ids)
  return _blocks.over_rows(step, None, rows, blocks.rows)[1]


def target_by_products(
  head: Head, arrays: Arrays, sums: ClassSums, cotangents: Cotangents
) -> Cotangents:
  """The cotangents, that of the target taken back to products plus bias."""
  factor = _tiles.as_column(arrays.factor)
  derivative = _tiles.logit_derivative(head, factor, sums.target)
  return cotangents | {"target": cotangents["target"] * derivative}


def zeros_like(
  arrays: Arrays,
  wanted: frozenset[str],
  axes: frozenset[str],
  kernel_dtype: jnp.dtype | None = None,
) -> Gradient:
  """A gradient of 0 of what is wanted, in the dtype of sums by default."""
  zeros = {
    name: jnp.zeros(getattr(arrays, name).shape, arrays.sum_dtype)
    for name in sorted(wanted)
  }
  if "kernel" in wanted and kernel_dtype is not None:
    zeros["kernel"] = zeros["kernel"].astype(kernel_dtype)
  return varying.vary(zeros, axes)


def add_products(
  head: Head, gradient: Gradient, g: jax.Array, part: Arrays
) -> Gradient:
  """The gradient with what a tile's cotangent ``g`` gives to it."""
  dtype, operand = g.dtype, part.operand_dtype
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


def recomputed_gradient(
  head: Head,
  blocks: Blocks,
  arrays: Arrays,
  ids: jax.Array,
  sums: ClassSums,
  cotangents: Cotangents,
  wanted: frozenset[str],
  kernel_dtype: jnp.dtype,
) -> Gradient:
  """The gradient from cotangents of the sums, the logits computed again.

  Classes are the outer loop, so that a block of the kernel's gradient is summed
  in full precision and written once.
  """
  axes = varying.axes_of(arrays, ids, sums, cotangents)
  cotangents = target_by_products(head, arrays, sums, cotangents)
  every_row = Rows(arrays.features, arrays.factor, ids), sums, cotangents

  def over_classes(gradient, start, width, _):
    part = classes_of(head, arrays, start, width)
    of_rows = {n: g for n, g in gradient.items() if n == "features"}
    of_classes = zeros_like(part, wanted - {"features"}, axes)

    def over_rows(carry, row, height, _):
      of_rows, of_classes = carry
      rows, some_sums, some_cotangents = _blocks.cut(every_row, row, height)
      some = with_rows(part, rows)
      z = _tiles.logits(head, some)
      g = _tiles.cotangent(
        head, some, z, some_sums, some_cotangents, rows.ids, start
      )
      new = add_products(
        head, of_classes | _blocks.cut(of_rows, row, height), g, some
      )
      of_rows = {
        n: lax.dynamic_update_slice_in_dim(old, new[n], row, 0)
        for n, old in of_rows.items()
      }
      return (of_rows, {n: new[n] for n in of_classes}), None

    (of_rows, of_classes), _ = _blocks.over_blocks(
      over_rows,
      (of_rows, of_classes),
      arrays.features.shape[0],
      blocks.rows,
    )
    return put_classes(head, gradient | of_rows, of_classes, start), None

  gradient = zeros_like(arrays, wanted, axes, kernel_dtype)
  total = num_classes(head, arrays)
  return _blocks.over_blocks(over_classes, gradient, total, blocks.classes)[0]
