# SPDX-License-Identifier: Apache-2.0
"""Rows sorted by confidence, with ties averaged.

Rows of equal confidence share the mean of their hits, so that the order of the
rows in a data set does not change a metric. This is the expectation over
random orders of the ties.
"""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from squentropy_jax.calibration._row_functions import TopLabel


class ConfidenceOrder(NamedTuple):
  """Rows ``[n]`` by rising confidence; dropped rows come last.

  Attributes:
    confidence: The confidence, 0 where the row is dropped.
    use: Whether the row is included: True for the first ``size`` of them.
    start: The index of the first row of the row's group of ties, int32.
    ties: The number of rows in the group, int32.
    hits: The number of hits in the group, int32.
    hits_below: The number of hits before the group, int32.
    size: The number of included rows, a scalar int32.
    num_hits: The number of hits among them, a scalar int32.
    invalid: Whether any kept row is invalid, a scalar boolean.
  """

  confidence: Array
  use: Array
  start: Array
  ties: Array
  hits: Array
  hits_below: Array
  size: Array
  num_hits: Array
  invalid: Array


def sort_by_confidence(top: TopLabel) -> ConfidenceOrder:
  """Sorts rows by confidence and counts within groups of ties."""
  n = top.confidence.shape[0]
  # NaN sorts after every number, infinity included.
  key = jnp.where(top.use, top.confidence, jnp.nan)
  key, hit = jax.lax.sort((key, top.hit.astype(jnp.int32)), num_keys=1)
  size = jnp.sum(top.use, dtype=jnp.int32)
  rank = jnp.arange(n, dtype=jnp.int32)
  new = jnp.concatenate([jnp.ones((min(n, 1),), bool), key[1:] != key[:-1]])
  group = jnp.cumsum(new, dtype=jnp.int32) - 1
  zeros = jnp.zeros((n,), jnp.int32)
  ties = zeros.at[group].add(1)
  hits = zeros.at[group].add(hit)
  return ConfidenceOrder(
    confidence=jnp.where(rank < size, key, 0),
    use=rank < size,
    start=jax.lax.cummax(jnp.where(new, rank, 0)),
    ties=ties[group],
    hits=hits[group],
    hits_below=(jnp.cumsum(hits, dtype=jnp.int32) - hits)[group],
    size=size,
    num_hits=jnp.sum(hit, dtype=jnp.int32),
    invalid=jnp.any(top.invalid),
  )


def area_of_order(order: ConfidenceOrder) -> Array:
  """How often a hit has more confidence than a miss; half of the ties count."""
  dtype = order.confidence.dtype
  num_misses = (order.size - order.num_hits).astype(dtype)
  # A hit ranks above the misses below its group and half of those in it.
  below = (order.start - order.hits_below).astype(dtype)
  level = (order.ties - order.hits).astype(dtype)
  share_below = (below + level / 2) / num_misses
  share = order.hits.astype(dtype) / order.ties.astype(dtype)
  sum_ = jnp.sum(jnp.where(order.use, share * share_below, 0))
  area = sum_ / order.num_hits.astype(dtype)
  return jnp.where(order.invalid, jnp.nan, area)
