# SPDX-License-Identifier: Apache-2.0
"""The mesh axes in the type of an array.

The carry of a loop inside ``shard_map`` may not change its type. So its initial
value must vary over every axis that its updates vary over. Explicit axes can be
left to the compiler.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, auto_axes, use_abstract_mesh


def axes_of(*trees: Any) -> frozenset[str]:
  """Returns the ``shard_map`` axes that any of the arrays varies over."""
  types = [jax.typeof(x) for x in jax.tree.leaves(trees)]
  return frozenset().union(*(t.manual_axis_type.varying for t in types))


def vary(tree: Any, axes: frozenset[str]) -> Any:
  """Makes every array of the tree vary over the axes."""

  def one(x: Any) -> Any:
    missing = tuple(sorted(axes - axes_of(x)))
    return lax.pcast(x, missing, to="varying") if missing else x

  return jax.tree.map(one, tree)


def vary_like(tree: Any, like: Any) -> Any:
  """Makes every array of the tree vary over the axes that ``like`` does."""
  return vary(tree, axes_of(like))


def gathered(x: jax.Array, names: tuple[str, ...]) -> jax.Array:
  """Concatenates the rows of all devices.

  A sum has a type that is the same on all devices, which all_gather has not.
  """
  every = jnp.zeros((lax.axis_size(names), *x.shape), x.dtype)
  every = every.at[lax.axis_index(names)].set(x)
  if x.dtype == jnp.bool_:
    every = lax.psum(every.astype(jnp.int32), names) > 0
  else:
    every = lax.psum(every, names)
  return every.reshape(-1, *x.shape[1:])


def without_explicit_axes(
  f: Callable[..., Any], spec: Any, *arguments: Any
) -> Any:
  """``f(*arguments)``, with explicit mesh axes left to the compiler.

  If the type of an array names explicit mesh axes, the result has the sharding
  ``spec``, a PartitionSpec or a tree of them.
  """
  arrays = jax.tree.leaves(arguments)
  meshes = [jax.typeof(x).sharding.mesh for x in arrays]
  explicit = [m for m in meshes if AxisType.Explicit in m.axis_types]
  if not explicit:
    return f(*arguments)
  with use_abstract_mesh(explicit[0]):
    return auto_axes(f, out_sharding=spec)(*arguments)
