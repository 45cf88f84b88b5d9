# SPDX-License-Identifier: Apache-2.0
"""The mesh axes that an array varies over inside a ``jax.shard_map``.

The carry of a loop inside ``shard_map`` may not change its type. So its initial
value must vary over every axis that its updates vary over.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp


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
