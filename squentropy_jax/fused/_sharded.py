# SPDX-License-Identifier: Apache-2.0
"""What crosses between devices that have some of the rows and of the classes.

In the forward pass these are the sums of the rows, in the backward pass the
gradients; never the kernel, the features or the logits.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, reshard

from squentropy_jax._core import varying
from squentropy_jax.fused import _tiles
from squentropy_jax.fused._tiles import Arrays, Head, Sums


class Layout(NamedTuple):
  """How rows and classes are spread.

  Attributes:
    mesh: The mesh to make a shard_map on, or None.
    batch_axis: Mesh axes of the rows.
    vocab_axis: Mesh axes of the classes.
  """

  mesh: Mesh | None = None
  batch_axis: tuple[str, ...] = ()
  vocab_axis: tuple[str, ...] = ()

  @property
  def everywhere(self) -> PartitionSpec:
    """What is the same on every device."""
    return PartitionSpec()

  @property
  def rows(self) -> PartitionSpec:
    """What has a row, or rows of rows, in its first axis."""
    return PartitionSpec(self.batch_axis)

  @property
  def parts(self) -> PartitionSpec:
    """What every device has a part of, ``[1, rows, ...]``, of a sum over it."""
    return PartitionSpec(self.vocab_axis, self.batch_axis)

  def by_name(self, class_axis: int) -> dict[str, PartitionSpec]:
    """The arrays of a head, or their gradients."""
    before = (None,) * class_axis
    return {
      "features": self.rows,
      "kernel": PartitionSpec(*before, self.vocab_axis),
      "bias": PartitionSpec(self.vocab_axis),
      "scale": self.everywhere,
    }

  def shards(self, axes: tuple[str, ...]) -> int:
    """Over how many devices the mesh spreads what goes along some axes."""
    sizes = [self.mesh.shape[a] for a in axes] if self.mesh is not None else []
    return math.prod(sizes)

  def place(self, array: Any, spec: PartitionSpec) -> Any:
    """The array as the mesh spreads it, where types of arrays say how."""
    if self.mesh is None or AxisType.Explicit not in self.mesh.axis_types:
      return array
    spec = PartitionSpec(*spec, *(None,) * (array.ndim - len(spec)))
    return reshard(array, NamedSharding(self.mesh, spec))

  def map(
    self, function: Callable[..., Any], in_specs: Any, out_specs: Any
  ) -> Callable[..., Any]:
    """The function on every device's part; itself where there is no mesh."""
    if self.mesh is None:
      return function
    return jax.shard_map(
      function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs
    )


def first_class(layout: Layout, head: Head, arrays: Arrays) -> jax.Array | int:
  """The id of the first class at hand."""
  if not layout.vocab_axis:
    return 0
  here = arrays.kernel.shape[head.class_axis]
  return lax.axis_index(layout.vocab_axis).astype(jnp.int32) * here


def count_possible(layout: Layout, head: Head, arrays: Arrays) -> jax.Array:
  """How many classes no bias of ``-inf`` takes out, on all devices."""
  axis = layout.vocab_axis
  if arrays.bias is None:
    here = arrays.kernel.shape[head.class_axis]
    return jnp.asarray(here * lax.axis_size(axis) if axis else here, jnp.int32)
  count = jnp.sum(arrays.bias != -jnp.inf, dtype=jnp.int32)
  return lax.psum(count, axis) if axis else count


def add_up(layout: Layout, head: Head, sums: Sums) -> Sums:
  """The sums over all devices' classes, from each device's own."""
  axis = layout.vocab_axis
  if not axis:
    return sums
  parts: dict[str, jax.Array] = {}
  found: dict[str, jax.Array] = {}
  if head.mass or "rest_max" in head.reads:
    found["top"] = lax.pmax(lax.stop_gradient(sums.top), axis)
  if head.mass:
    shrink = _tiles.shrink_of(sums.top, _tiles.shift_of(found["top"]))
    parts["mass"] = sums.mass * shrink
    if head.scaled:
      parts["tilt"] = sums.tilt * shrink
  if "rest_sum" in head.reads:
    parts["total"] = sums.total
  if "rest_sq" in head.reads:
    parts["square"] = sums.square
  if "rest_max" in head.reads:
    never = jnp.iinfo(jnp.int32).max
    is_top = sums.top == found["top"]
    found["top_id"] = lax.pmin(jnp.where(is_top, sums.top_id, never), axis)
    # A NaN is nobody's largest, and must not be lost.
    is_top = (sums.top_id == found["top_id"]) | jnp.isnan(sums.top)
    parts["top"] = jnp.where(is_top, sums.top, jnp.zeros_like(sums.top))
  # One message for all of them.
  columns = [part[:, None] for part in parts.values()]
  every = lax.psum(jnp.concatenate([sums.own, *columns], axis=1), axis)
  targets = sums.own.shape[1]
  found |= {name: every[:, targets + i] for i, name in enumerate(parts)}
  # What the loss does not read is the same on every device.
  rows = sums.own.shape[0]
  none = varying.vary(
    _tiles.no_sums(rows, targets, every.dtype), varying.axes_of(every)
  )
  return none._replace(own=every[:, :targets], **found)


def summed(gradient: Any, primal: Any) -> Any:
  """Cotangents that vary over the axes of their primals only.

  Under shard_map a cotangent varies over every axis that its parts came from;
  where the primal is the same on all devices of an axis, it is their sum.
  """

  def one(g: jax.Array, x: jax.Array) -> jax.Array:
    axes = tuple(sorted(varying.axes_of(g) - varying.axes_of(x)))
    return varying.vary(lax.psum(g, axes) if axes else g, varying.axes_of(x))

  return jax.tree.map(one, gradient, primal)
