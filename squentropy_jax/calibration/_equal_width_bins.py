# SPDX-License-Identifier: Apache-2.0
"""Bins of equal width over [0, 1]."""

from jax import Array
import jax.numpy as jnp
import numpy as np


def edges(num_bins: int, dtype: np.dtype) -> np.ndarray:
  """The edges ``b / num_bins`` of the bins, ``[num_bins + 1]``.

  They are rounded to ``dtype``, so that the number nearest to an edge is the
  edge and opens its bin.
  """
  return (np.arange(num_bins + 1) / num_bins).astype(dtype)


def bin_of(x: Array, num_bins: int) -> Array:
  """The bin of each ``x`` in [0, 1], an int32: left-closed, the last closed."""
  edge = jnp.asarray(edges(num_bins, x.dtype))
  # The product may round across an edge, so it is compared with the edges.
  index = jnp.minimum(jnp.floor(x * num_bins).astype(jnp.int32), num_bins - 1)
  index = index - (x < edge[index]).astype(jnp.int32)
  index = index + (x >= edge[index + 1]).astype(jnp.int32)
  return jnp.minimum(index, num_bins - 1)


def centres(num_bins: int, dtype: np.dtype) -> np.ndarray:
  """The centres of the bins, ``[num_bins]``."""
  return ((np.arange(num_bins) + 0.5) / num_bins).astype(dtype)
