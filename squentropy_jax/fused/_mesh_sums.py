# SPDX-License-Identifier: Apache-2.0
"""Sums over the classes of all devices, from the sums of each device."""

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core import varying
from squentropy_jax._core.class_sums import ClassSums, no_classes, rescaled
from squentropy_jax.fused._head import Arrays, Head
from squentropy_jax.fused._mesh import Layout, Local
from squentropy_jax.fused._tiles import RowSums


def count_possible(
  layout: Layout, head: Head, arrays: Arrays, here: Local
) -> jax.Array:
  """How many classes are possible, on all devices.

  ``arrays`` are the own ones of the device. With keys it is a count for each
  row ``[N]`` of ``here``, otherwise one for all.
  """
  axes = layout.classes
  if here.arrays.class_keys is not None:
    count = _count_other_keys(here.arrays, here.ids)
    axes = layout.class_axes
  elif arrays.bias is None:
    size = arrays.kernel.shape[head.class_axis]
    return jnp.asarray(size * lax.axis_size(axes) if axes else size, jnp.int32)
  else:
    count = jnp.sum(arrays.bias != -jnp.inf, dtype=jnp.int32)
  return lax.psum(count, axes) if axes else count


def _count_other_keys(arrays: Arrays, ids: jax.Array) -> jax.Array:
  """How many of some classes are possible in each row, its targets included."""
  row_keys, class_keys = arrays.row_keys, arrays.class_keys
  assert row_keys is not None
  assert class_keys is not None
  is_possible = jnp.ones(class_keys.shape, bool)
  if arrays.bias is not None:
    is_possible = arrays.bias != -jnp.inf
  # By a search in the sorted keys: to compare each pair takes a whole pass.
  order = jnp.argsort(class_keys)
  up_to = jnp.cumsum(is_possible[order], dtype=jnp.int32)
  up_to = jnp.concatenate([jnp.zeros_like(up_to[:1]), up_to])
  in_order = class_keys[order]
  first, last = (
    jnp.searchsorted(in_order, row_keys, side=side)
    for side in ("left", "right")
  )
  is_here = (ids >= 0) & (ids < class_keys.shape[0])
  target = jnp.where(is_here, ids, 0)
  is_same = is_here & (class_keys[target] == row_keys[:, None])
  is_same &= is_possible[target]
  count = up_to[-1] - (up_to[last] - up_to[first])
  return count + is_same.sum(-1, dtype=jnp.int32)


def add_up(
  layout: Layout, head: Head, sums: RowSums, first: jax.Array | int
) -> RowSums:
  """The sums over the classes of all devices, from those of each device."""
  classes = sums.classes
  sums = sums._replace(classes=classes._replace(max_id=classes.max_id + first))
  axis = layout.class_axes
  if not axis:
    return sums
  here = sums.classes
  largest, max_id, columns = here.max, here.max_id, []
  if head.has_max:
    largest = lax.pmax(lax.stop_gradient(here.max), axis)
  if head.has_max_id:
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
  if head.has_max_id:
    largest = next(found)

  def added() -> ClassSums:
    # What is not read is the same on every device.
    none = varying.vary_like(no_classes(total[:, :targets], total[:, 0]), total)
    if head.has_max:
      none = none._replace(max=largest)
    if head.has_max_id:
      none = none._replace(max_id=max_id)
    return none._replace(**{name: next(found) for name in head.sums})

  classes = added()
  return RowSums(classes, None if sums.by_factor is None else added())
