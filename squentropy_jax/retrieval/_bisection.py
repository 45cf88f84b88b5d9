# SPDX-License-Identifier: Apache-2.0
"""Balanced clusters by repeated splits into two, in memory for large sets.

A node is a range of clusters, and its rows are as many as these clusters hold.
Every level splits all nodes at once: the rows of a node are sorted by their
inner product with the difference of two centroids, which is the best assignment
of a fixed number of rows to each of them, and cut.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks, varying

# Features in one block of rows: bounds the memory of products and copies.
_BLOCK_SIZE = 2**22


def _over_blocks(
  features: jax.Array, block: Callable[..., jax.Array], carry: jax.Array
) -> jax.Array:
  """Folds ``block(carry, rows, index, is_new)`` over blocks of rows."""
  n, width = features.shape
  size = min(n, max(1, _BLOCK_SIZE // width))

  def step(i: jax.Array, carry: jax.Array) -> jax.Array:
    # The last block starts early rather than run over: no padded copy.
    start = jnp.minimum(i * size, n - size)
    index = start + jnp.arange(size, dtype=jnp.int32)
    rows = jax.lax.dynamic_slice_in_dim(features, start, size)
    return block(carry, rows.astype(carry.dtype), index, index >= i * size)

  return jax.lax.fori_loop(0, -(-n // size), step, carry)


def _scores(
  features: jax.Array, directions: jax.Array, node: jax.Array
) -> jax.Array:
  """The inner product of each row with the direction of its node."""
  largest = jnp.max(jnp.abs(directions), axis=-1, keepdims=True)
  # Neither squares of large features overflow, nor those of small ones vanish.
  directions = directions / jnp.where(largest > 0, largest, 1.0)

  def block(
    scores: jax.Array, rows: jax.Array, index: jax.Array, _: jax.Array
  ) -> jax.Array:
    products = jnp.sum(rows * directions[node[index]], axis=-1)
    return jax.lax.dynamic_update_slice(scores, products, (index[0],))

  start = jnp.zeros(features.shape[:1], directions.dtype)
  start = varying.vary_like(start, (features, directions, node))
  return _over_blocks(features, block, start)


def _sums(
  features: jax.Array, segment: jax.Array, num_segments: int
) -> jax.Array:
  """The sum of the rows of each segment."""

  def block(
    sums: jax.Array, rows: jax.Array, index: jax.Array, is_new: jax.Array
  ) -> jax.Array:
    target = jnp.where(is_new, segment[index], num_segments)
    return sums.at[target].add(rows, mode="drop")

  dtype = checks.compute_dtype(features.dtype)
  start = jnp.zeros((num_segments, features.shape[1]), dtype)
  start = varying.vary_like(start, (features, segment))
  return _over_blocks(features, block, start)


def _interleave(first: jax.Array, second: jax.Array) -> jax.Array:
  return jnp.stack([first, second], axis=1).ravel()


@functools.partial(jax.jit, static_argnums=(2, 3))
def bisect_rows(
  key: jax.Array, features: jax.Array, num_clusters: int, num_iters: int
) -> jax.Array:
  """The cluster of each row of ``[N, d]``; -1 if a feature is not finite."""
  n = features.shape[0]
  dtype = checks.compute_dtype(features.dtype)
  depth = (num_clusters - 1).bit_length()
  num_nodes = 2**depth
  quotient, remainder = divmod(n, num_clusters)
  ids = jnp.arange(n, dtype=jnp.int32)

  def first_place(cluster: jax.Array) -> jax.Array:
    """Where a cluster starts when the rows are sorted by cluster."""
    return cluster * quotient + jnp.minimum(cluster, remainder)

  def split(level: jax.Array, state: Any) -> Any:
    order, node = state[:2]
    low, high = (x[: num_nodes // 2] for x in state[2:])
    middle = (low + high) // 2
    start, stop = first_place(low), first_place(high)
    size, left = stop - start, first_place(middle) - start
    counts = _interleave(left, size - left)
    counts = jnp.maximum(counts, 1).astype(dtype)[:, None]

    def assign(directions: jax.Array) -> tuple[jax.Array, jax.Array]:
      """Rows by node and score, and the child of the node of each row."""
      scores = _scores(features, directions, node)
      by_node, _, order = jax.lax.sort((node, scores, ids), num_keys=2)
      right = ids - start[by_node] >= left[by_node]
      child = 2 * by_node + right.astype(jnp.int32)
      return order, jnp.zeros_like(node).at[order].set(child)

    def refine(_: jax.Array, directions: jax.Array) -> jax.Array:
      means = _sums(features, assign(directions)[1], num_nodes) / counts
      return means[1::2] - means[::2]

    # The first centroids are two rows, drawn without replacement.
    keys = jax.random.split(jax.random.fold_in(key, level))
    one = jax.random.randint(keys[0], size.shape, 0, jnp.maximum(size, 1))
    step = jax.random.randint(keys[1], size.shape, 1, jnp.maximum(size, 2))
    two = (one + step) % jnp.maximum(size, 1)
    first, second = (
      features[order[jnp.minimum(start + x, n - 1)]].astype(dtype)
      for x in (one, two)
    )
    directions = jax.lax.fori_loop(0, num_iters - 1, refine, second - first)
    return (
      *assign(directions),
      _interleave(low, middle),
      _interleave(middle, high),
    )

  # Nodes that are not in use yet are empty ranges after the last cluster.
  ends = jnp.full((num_nodes,), num_clusters, jnp.int32)
  state = ids, jnp.zeros_like(ids), ends.at[0].set(0), ends
  state = varying.vary_like(state, (key, features))
  order = jax.lax.fori_loop(0, depth, split, state)[0] if depth else ids
  starts = first_place(jnp.arange(1, num_clusters, dtype=jnp.int32))
  cluster = jnp.cumsum(jnp.zeros_like(ids).at[starts].add(1))
  found = jnp.zeros_like(ids).at[order].set(cluster)
  return jnp.where(jnp.all(jnp.isfinite(features)), found, -1)
