# SPDX-License-Identifier: Apache-2.0
"""Parts of a head's arrays and of its gradients: some classes, or some rows."""

from typing import NamedTuple

import jax
from jax import lax

from squentropy_jax._core import varying
from squentropy_jax.fused._head import Arrays, Gradient, Head


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
  if head.tile_axes:
    if kernel.dtype.itemsize > head.operand_dtype.itemsize:
      kernel = kernel.astype(head.operand_dtype)
    kernel = varying.vary(kernel, frozenset(head.tile_axes))
    kernel = lax.all_gather(
      kernel, head.tile_axes, axis=1 - head.class_axis, tiled=True
    )
  bias, keys = (
    x if x is None else lax.dynamic_slice_in_dim(x, start, width)
    for x in (arrays.bias, arrays.class_keys)
  )
  return arrays._replace(kernel=kernel, bias=bias, class_keys=keys)


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
  row_keys: jax.Array | None
  ids: jax.Array


def with_rows(arrays: Arrays, rows: Rows) -> Arrays:
  """The arrays with some of their rows."""
  return arrays._replace(
    features=rows.features, factor=rows.factor, row_keys=rows.row_keys
  )


def rows_of(arrays: Arrays, ids: jax.Array) -> Rows:
  """The rows of the arrays, with their targets."""
  return Rows(arrays.features, arrays.factor, arrays.row_keys, ids)
