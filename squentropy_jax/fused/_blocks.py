# SPDX-License-Identifier: Apache-2.0
"""Loops over blocks of rows and of classes, also inside a shard_map."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp


class Blocks(NamedTuple):
  """How many rows and how many classes a tile has."""

  rows: int
  classes: int


def over_blocks(
  step: Callable[..., tuple[Any, Any]],
  carry: Any,
  total: int,
  size: int,
  xs: tuple[Any, Any] = (None, None),
) -> tuple[Any, tuple[Any, Any]]:
  """Folds ``carry, y = step(carry, start, width, x)`` over ``total`` in blocks.

  The last block may be narrower. ``xs``, and what is returned with the carry,
  are the values of the full blocks, stacked, and that of the narrow one.
  """
  full, tail = divmod(total, size)
  stacked = last = None
  if full > 1:
    starts = size * jnp.arange(full, dtype=jnp.int32)
    carry, stacked = lax.scan(
      lambda c, x: step(c, x[0], size, x[1]), carry, (starts, xs[0])
    )
  elif full:
    # A loop of one turn would hide from the compiler that the carry is 0.
    only = jax.tree.map(lambda x: x[0], xs[0])
    carry, y = step(carry, 0, size, only)
    stacked = jax.tree.map(lambda y: y[None], y)
  if tail or not full:
    carry, last = step(carry, size * full, tail, xs[1])
  return carry, (stacked, last)


def cut(tree: Any, start: jax.Array | int, width: int) -> Any:
  return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, width), tree)


def over_rows(
  step: Callable[..., tuple[Any, Any]], carry: Any, arrays: Any, size: int
) -> tuple[Any, Any]:
  """Folds ``carry, y = step(carry, rows)``; the ``y`` are put together."""
  total = jax.tree.leaves(arrays)[0].shape[0]
  carry, (stacked, last) = over_blocks(
    lambda carry, start, width, _: step(carry, cut(arrays, start, width)),
    carry,
    total,
    size,
  )
  parts = [jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), stacked), last]
  parts = [part for part in parts if part is not None]
  return carry, jax.tree.map(lambda *ys: jnp.concatenate(ys), *parts)
