# SPDX-License-Identifier: Apache-2.0
"""How the arrays of a head are sharded, and what crosses between devices.

The sums of the rows cross in the forward pass, the gradients in the backward
pass. The features or the kernel are gathered only where their width is sharded,
or where one mesh axis shards rows and classes both. The logits never cross.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
  reshard,
)
import numpy as np

from squentropy_jax._core import varying
from squentropy_jax.fused._head import Arrays, Gradient, Head
from squentropy_jax.fused._tiles import rounded

Axes = tuple[str, ...]


class Layout(NamedTuple):
  """How a head is sharded, by `_layout.resolved`.

  Attributes:
    mesh: The mesh to make a shard_map on. None on one device, and inside a
      shard_map of the user.
    rows: The mesh axes of each batch dimension.
    width: Those of the width of the features, all of them axes of classes too.
    kernel_width: Those of the width of the kernel, all of them of rows too.
    classes: Those of the classes.
    gather: What is gathered over the axes of rows and classes both, ``"rows"``
      or ``"kernel"``.
    result: How results of the rows are sharded.
  """

  mesh: Mesh | AbstractMesh | None = None
  rows: tuple[Axes, ...] = ()
  width: Axes = ()
  kernel_width: Axes = ()
  classes: Axes = ()
  gather: str = "rows"
  result: PartitionSpec = PartitionSpec()

  @property
  def row_axes(self) -> Axes:
    """The mesh axes of all batch dimensions."""
    return tuple(name for axes in self.rows for name in axes)

  @property
  def shared(self) -> Axes:
    """The axes of rows and classes both."""
    return tuple(name for name in self.classes if name in self.row_axes)

  @property
  def gathered_rows(self) -> Axes:
    """The axes over which rows are gathered."""
    return self.shared if self.gather == "rows" else ()

  @property
  def class_axes(self) -> Axes:
    """The axes that shard the classes while a device works."""
    over = self.shared if self.gather == "kernel" else ()
    return tuple(name for name in self.classes if name not in over)

  @property
  def row_spec(self) -> PartitionSpec:
    """What has rows in its first axes."""
    return PartitionSpec(*(axes or None for axes in self.rows))

  @property
  def parts(self) -> PartitionSpec:
    """What every device has of a sum over classes, ``[1, rows, ...]``."""
    rows = tuple(a for a in self.row_axes if a not in self.gathered_rows)
    return PartitionSpec(self.class_axes or None, rows or None)

  def by_name(self, class_axis: int) -> dict[str, PartitionSpec]:
    """The arrays of a head, or their gradients."""
    kernel = (self.kernel_width or None, self.classes or None)
    return {
      "features": PartitionSpec(*self.row_spec, self.width or None),
      "kernel": PartitionSpec(*(kernel if class_axis else kernel[::-1])),
      "bias": PartitionSpec(self.classes or None),
      "factor": self.row_spec,
      "row_keys": self.row_spec,
      "class_keys": PartitionSpec(self.classes or None),
    }

  def shards(self, axes: Axes) -> int:
    """The number of devices that these axes shard over; 1 without a mesh."""
    return shards(self.mesh, axes)

  @property
  def is_explicit(self) -> bool:
    """Whether the types of arrays name their sharding."""
    mesh = self.mesh
    return mesh is not None and AxisType.Explicit in mesh.axis_types

  @property
  def spans_processes(self) -> bool:
    """Whether other processes take part in the computation."""
    if isinstance(self.mesh, AbstractMesh):
      # It has no devices to ask; `checks.is_concrete` asks the arrays.
      return jax.process_count() > 1
    here = jax.process_index()
    devices = () if self.mesh is None else self.mesh.devices.flat
    return any(device.process_index != here for device in devices)

  def place(self, array: Any, spec: PartitionSpec) -> Any:
    """The array, resharded where the types of arrays name their sharding."""
    if not self.is_explicit:
      return array
    return reshard(array, self._sharding(spec, array.ndim))

  def _sharding(self, spec: PartitionSpec, rank: int) -> NamedSharding:
    assert self.mesh is not None
    full = PartitionSpec(*spec, *(None,) * (rank - len(spec)))
    return NamedSharding(self.mesh, full)

  def broadcast(self, number: jax.Array, batch: tuple[int, ...]) -> jax.Array:
    """One number for every row, from a scalar or from numbers of the rows."""
    if number.ndim:
      return self.place(number, self.row_spec)
    if not self.is_explicit:
      return jnp.broadcast_to(number, batch)
    sharding = self._sharding(self.row_spec, len(batch))
    return lax.broadcast(number, batch, out_sharding=sharding)

  def padded_rows(self, array: Any, *more: Axes | None) -> Any:
    """The array with rows of 0 added until the devices divide them.

    ``more`` are the mesh axes of its axes after those of the rows.
    """
    rows = [
      -n % self.shards(a) for n, a in zip(array.shape, self.rows, strict=False)
    ]
    if any(rows):
      # An axis that is padded cannot be sharded yet.
      spec = (
        None if n else a for n, a in zip(rows, self.row_spec, strict=False)
      )
      array = self.place(array, PartitionSpec(*spec, *more))
      widths = [(0, n) for n in rows] + [(0, 0)] * (array.ndim - len(rows))
      array = jnp.pad(array, widths)
    return self.place(array, PartitionSpec(*self.row_spec, *more))

  def result_rows(self, array: jax.Array, batch: tuple[int, ...]) -> jax.Array:
    """The inverse of `padded_rows`, sharded as results are."""
    array = self.place(array, self.result)
    return array[tuple(map(slice, batch))] if array.shape != batch else array

  def map(
    self, function: Callable[..., Any], in_specs: Any, out_specs: Any
  ) -> Callable[..., Any]:
    """The function on every device's part; itself where there is no mesh."""
    if self.mesh is None:
      return function
    return jax.shard_map(
      function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs
    )


def shards(mesh: Mesh | AbstractMesh | None, axes: Axes) -> int:
  """The number of devices that mesh axes shard over; 1 without a mesh."""
  return 1 if mesh is None else math.prod(mesh.shape[a] for a in axes)


# On one device. What is local has all rows, the width and the classes that the
# device works with: `local` gathers them, `reduced` is its inverse for
# gradients, and `own_rows` for results of rows.


def _gather(x: jax.Array, axes: Axes, dim: int) -> jax.Array:
  if not axes:
    return x
  x = varying.vary(x, frozenset(axes))
  return lax.all_gather(x, axes, axis=dim, tiled=True)


def _row_gathers(layout: Layout) -> list[tuple[Axes, int]]:
  over = layout.gathered_rows
  gathers = [
    (tuple(a for a in axes if a in over), i)
    for i, axes in enumerate(layout.rows)
  ]
  return [(axes, i) for axes, i in gathers if axes]


def gather_rows(layout: Layout, tree: Any) -> Any:
  """Arrays of rows ``[...]`` with those of the devices that share classes."""

  def one(x: jax.Array) -> jax.Array:
    for axes, i in _row_gathers(layout):
      x = _gather(x, axes, i)
    return x

  return jax.tree.map(one, tree)


def own_rows(layout: Layout, tree: Any) -> Any:
  """The inverse of `gather_rows`."""

  def one(x: jax.Array) -> jax.Array:
    for axes, i in _row_gathers(layout):
      size = x.shape[i] // lax.axis_size(axes)
      start = lax.axis_index(axes) * size
      x = lax.dynamic_slice_in_dim(x, start, size, i)
    return x

  return jax.tree.map(one, tree)


def _gathers(layout: Layout, head: Head) -> dict[str, list[tuple[Axes, int]]]:
  """What is gathered of each array: mesh axes, and the axis of the array."""
  over = tuple(a for a in layout.classes if a not in layout.class_axes)
  width = tuple(a for a in layout.kernel_width if a not in head.tile_axes)
  rank = len(layout.rows)
  return {
    "features": [*_row_gathers(layout), (layout.width, rank)],
    "kernel": [(width, 1 - head.class_axis), (over, head.class_axis)],
    "bias": [(over, 0)],
    "factor": _row_gathers(layout),
    "row_keys": _row_gathers(layout),
    "class_keys": [(over, 0)],
  }


class Local(NamedTuple):
  """What a device works with.

  Attributes:
    arrays: The arrays of the head, with rows ``[N]``.
    ids: The targets ``[N, K]``, counted from the device's first class.
    first: The id of that class.
    batch: The shape of its rows.
  """

  arrays: Arrays
  ids: jax.Array
  first: jax.Array | int
  batch: tuple[int, ...]


def local(layout: Layout, head: Head, arrays: Arrays, ids: jax.Array) -> Local:
  """Gathers what a device needs, features and kernel in the products' dtype."""
  found = {}
  for name, gathers in _gathers(layout, head).items():
    x = getattr(arrays, name)
    if x is not None and name in ("features", "kernel"):
      wide = x.dtype.itemsize > head.operand_dtype.itemsize
      if wide and any(axes for axes, _ in gathers):
        x = x.astype(head.operand_dtype)
    for axes, dim in gathers if x is not None else ():
      x = _gather(x, axes, dim)
    found[name] = x
  every = Arrays(**found)
  batch = every.features.shape[:-1]
  first: jax.Array | int = 0
  if layout.class_axes:
    here = every.kernel.shape[head.class_axis]
    first = lax.axis_index(layout.class_axes).astype(jnp.int32) * here
  of_rows = {
    name: getattr(every, name) for name in ("features", "factor", "row_keys")
  }
  of_rows, ids = flat((of_rows, gather_rows(layout, ids)), len(batch))
  some = every._replace(**of_rows)
  return Local(some, ids - first, first, batch)


def flat(tree: Any, rank: int) -> Any:
  """Arrays ``[*batch, ...]`` as ``[N, ...]``, for a batch of that rank."""

  def one(x: jax.Array) -> jax.Array:
    return x.reshape(math.prod(x.shape[:rank]), *x.shape[rank:])

  return jax.tree.map(one, tree)


def shaped(tree: Any, batch: tuple[int, ...]) -> Any:
  """Arrays ``[N, ...]`` as ``[*batch, ...]``."""
  return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), tree)


def kernel_dtype(
  layout: Layout, head: Head, some: Arrays, dtype: np.dtype, scattered: bool
) -> np.dtype:
  """The dtype to collect the gradient of a kernel of that dtype in.

  ``scattered`` is true if it is scattered over the width before.
  """
  # Parts of several devices are added in full precision; and a cotangent that
  # comes later may scale up what a type of few exponents has lost.
  several = bool(varying.axes_of(some.features) - {*layout.class_axes})
  if scattered and layout.kernel_width:
    several = layout.class_axes != layout.classes
  exponents = jnp.finfo(dtype).maxexp
  if several or exponents < jnp.finfo(jnp.float32).maxexp:
    return head.sum_dtype
  return dtype


def reduced(
  layout: Layout,
  head: Head,
  gradient: Gradient,
  arrays: Arrays,
  scattered: bool,
) -> Gradient:
  """The gradient of `local` arrays as that of the device's own arrays.

  Under shard_map a cotangent varies over every axis that its parts came from.
  Where the primal is sharded, each device gets its part of their sum, and where
  the primal is the same on all devices of an axis, the sum. ``scattered`` is
  true if the kernel's gradient is scattered over the width already.
  """
  gathers = _gathers(layout, head) | {"factor": []}
  if scattered:
    gathers["kernel"] = gathers["kernel"][1:]
  found = {}
  for name, g in gradient.items():
    x = getattr(arrays, name)
    axes = varying.axes_of(x)
    if head.reduce_dtype is not None and varying.axes_of(g):
      g = g.astype(head.reduce_dtype)
    if name == "factor":
      # Computed from the sums over all classes: no device has only a part.
      g = own_rows(layout, g)
    for over, dim in gathers[name]:
      if over:
        g = varying.vary(g, frozenset(over))
        g = lax.psum_scatter(g, over, scatter_dimension=dim, tiled=True)
    # What was scattered is smaller, so it is added up last.
    more = tuple(sorted(varying.axes_of(g) - axes))
    found[name] = varying.vary(lax.psum(g, more) if more else g, axes)
  return found


def cast(layout: Layout, g: jax.Array, dtype: np.dtype) -> jax.Array:
  """A gradient in the dtype of its primal."""
  if layout.mesh is not None or varying.axes_of(g):
    return rounded(g, dtype)
  return g.astype(dtype)
