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

from squentropy_jax._core import checks, varying
from squentropy_jax._core.class_sums import ClassSums, no_classes, rescaled
from squentropy_jax.fused._tiles import Arrays, Head, RowSums


def _padded(spec: PartitionSpec, rank: int) -> PartitionSpec:
  return PartitionSpec(*spec, *(None,) * (rank - len(spec)))


class Layout(NamedTuple):
  """How rows and classes are sharded.

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
    """What has rows in its first axis."""
    return PartitionSpec(*((self.batch_axis,) if self.batch_axis else ()))

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
      "factor": self.rows,
    }

  def shards(self, axes: tuple[str, ...]) -> int:
    """The number of devices that these mesh axes shard over."""
    sizes = [self.mesh.shape[a] for a in axes] if self.mesh is not None else []
    return math.prod(sizes)

  @property
  def is_explicit(self) -> bool:
    """Whether the types of arrays name their sharding."""
    mesh = self.mesh
    return mesh is not None and AxisType.Explicit in mesh.axis_types

  @property
  def spans_processes(self) -> bool:
    """Whether other processes take part in the computation."""
    here = jax.process_index()
    devices = () if self.mesh is None else self.mesh.devices.flat
    return any(device.process_index != here for device in devices)

  def place(self, array: Any, spec: PartitionSpec) -> Any:
    """The array, resharded where the types of arrays name their sharding."""
    if not self.is_explicit:
      return array
    assert self.mesh is not None
    return reshard(array, NamedSharding(self.mesh, _padded(spec, array.ndim)))

  def broadcast(self, number: jax.Array, batch: tuple[int, ...]) -> jax.Array:
    """One number for every row, from a scalar or from numbers of the rows."""
    if number.ndim:
      return self.place(number, self.rows)
    if not self.is_explicit:
      return jnp.broadcast_to(number, batch)
    assert self.mesh is not None
    sharding = NamedSharding(self.mesh, _padded(self.rows, len(batch)))
    return lax.broadcast(number, batch, out_sharding=sharding)

  def map(
    self, function: Callable[..., Any], in_specs: Any, out_specs: Any
  ) -> Callable[..., Any]:
    """The function on every device's part; itself where there is no mesh."""
    if self.mesh is None:
      return function
    return jax.shard_map(
      function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs
    )


def _axis_names(name: str, axis: Any) -> tuple[str, ...]:
  names = () if axis is None else (axis,) if isinstance(axis, str) else axis
  if not all(isinstance(n, str) for n in names):
    raise TypeError(
      f"{name} must be the name of a mesh axis, or a tuple of names, got "
      f"{axis!r}."
    )
  return tuple(names)


def checked_layout(
  mesh: Mesh | None,
  batch_axis: Any,
  vocab_axis: Any,
  features: Any,
  kernel: Any,
) -> Layout:
  """The layout that the arguments name, or an error that says what is wrong."""
  if not isinstance(mesh, Mesh | None):
    raise TypeError(
      f"mesh must be a jax.sharding.Mesh, got {mesh!r}. Make one with "
      "jax.make_mesh."
    )
  layout = Layout(
    mesh,
    _axis_names("batch_axis", batch_axis),
    _axis_names("vocab_axis", vocab_axis),
  )
  both = layout.batch_axis + layout.vocab_axis
  if len(set(both)) < len(both):
    raise ValueError(
      f"batch_axis {batch_axis!r} and vocab_axis {vocab_axis!r} must be "
      "different axes."
    )
  if mesh is not None:
    unknown = [name for name in both if name not in mesh.axis_names]
    if unknown or not both:
      raise ValueError(
        "with a mesh, batch_axis or vocab_axis must name axes of it, which are "
        f"{mesh.axis_names}, got {batch_axis!r} and {vocab_axis!r}."
      )
    shards = layout.shards(layout.batch_axis)
    if layout.batch_axis and (features.ndim < 2 or features.shape[0] % shards):
      raise ValueError(
        f"features must have a first axis of rows that the {shards} devices of "
        f"batch_axis {batch_axis!r} divide, got {features.shape}. Add rows and "
        "drop them with where=."
      )
    return layout
  bound = frozenset(jax.sharding.get_abstract_mesh().manual_axes)
  if not bound >= set(both):
    raise ValueError(
      f"batch_axis {batch_axis!r} and vocab_axis {vocab_axis!r} must be axes "
      f"of a jax.shard_map around the call, which has {sorted(bound)}. Pass "
      "the mesh with mesh= outside a shard_map."
    )
  for name, array in (("features", features), ("kernel", kernel)):
    if checks.explicit_sharding(array) is not None:
      raise ValueError(
        f"{name} is sharded, {jax.typeof(array)}, and each device would gather "
        "it. Pass mesh=, batch_axis= and vocab_axis=."
      )
  vocab = set(layout.vocab_axis)
  if not vocab <= varying.axes_of(kernel) or vocab & varying.axes_of(features):
    raise ValueError(
      f"inside shard_map the kernel must be split over vocab_axis "
      f"{vocab_axis!r} and the features must not be, got kernel "
      f"{jax.typeof(kernel)} and features {jax.typeof(features)}. Leave "
      "check_vma on: without it JAX does not know how arrays are split, and "
      "gradients are wrong."
    )
  return layout


def first_class(layout: Layout, head: Head, arrays: Arrays) -> jax.Array | int:
  """The id of the first class on this device."""
  if not layout.vocab_axis:
    return 0
  here = arrays.kernel.shape[head.class_axis]
  return lax.axis_index(layout.vocab_axis).astype(jnp.int32) * here


def count_possible(layout: Layout, head: Head, arrays: Arrays) -> jax.Array:
  """How many classes have no bias of ``-inf``, on all devices."""
  axis = layout.vocab_axis
  if arrays.bias is None:
    here = arrays.kernel.shape[head.class_axis]
    return jnp.asarray(here * lax.axis_size(axis) if axis else here, jnp.int32)
  count = jnp.sum(arrays.bias != -jnp.inf, dtype=jnp.int32)
  return lax.psum(count, axis) if axis else count


def add_up(layout: Layout, head: Head, sums: RowSums) -> RowSums:
  """The sums over the classes of all devices, from those of each device."""
  axis = layout.vocab_axis
  if not axis:
    return sums
  here = sums.classes
  largest, max_id, columns = here.max, here.max_id, []
  if head.has_max:
    largest = lax.pmax(lax.stop_gradient(here.max), axis)
  if "max" in head.reads:
    never = jnp.iinfo(jnp.int32).max
    is_largest = here.max == largest
    max_id = lax.pmin(jnp.where(is_largest, here.max_id, never), axis)
    # NaN equals nothing, and must not be lost.
    is_largest = (here.max_id == max_id) | jnp.isnan(here.max)
    columns = [jnp.where(is_largest, here.max, jnp.zeros_like(here.max))]
  records = [x for x in sums if x is not None]
  for record in records:
    relative = rescaled(record, largest) if head.has_exps else record
    columns += [getattr(relative, name) for name in head.sums]
  # One message for all of them.
  targets = here.target.shape[1]
  every = [here.target, *(x[:, None] for x in columns)]
  total = lax.psum(jnp.concatenate(every, axis=1), axis)
  found = iter(total[:, targets + i] for i in range(len(columns)))
  if "max" in head.reads:
    largest = next(found)

  def added() -> ClassSums:
    # What the loss does not read is the same on every device.
    none = varying.vary_like(no_classes(total[:, :targets], total[:, 0]), total)
    if head.has_max:
      none = none._replace(max=largest)
    if "max" in head.reads:
      none = none._replace(max_id=max_id)
    return none._replace(**{name: next(found) for name in head.sums})

  classes = added()
  return RowSums(classes, None if sums.by_factor is None else added())


def summed(gradient: Any, primal: Any) -> Any:
  """Cotangents that vary over the axes of their primals only.

  Under shard_map a cotangent varies over every axis that its parts came from;
  where the primal is the same on all devices of an axis, it is their sum.
  """

  def one(g: jax.Array, x: jax.Array) -> jax.Array:
    axes = tuple(sorted(varying.axes_of(g) - varying.axes_of(x)))
    return varying.vary(lax.psum(g, axes) if axes else g, varying.axes_of(x))

  return jax.tree.map(one, gradient, primal)
