# SPDX-License-Identifier: Apache-2.0
"""The checks of arguments with one value for each row, of all heads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks


def _of_rows(
  name: str, values: Any, batch: tuple[int, ...], num_classes: int | None
) -> Any:
  # NumPy arrays stay so: inside jit those of JAX are traced.
  array = checks.as_array(values, name)
  shape = array.shape
  if shape != batch:
    if shape in ((num_classes,), (*batch, num_classes)):
      advice = "Make classes impossible with bias=-inf."
    elif shape == (*batch, 1):
      advice = f"Pass {name}[..., 0]."
    else:
      advice = f"Pass jnp.broadcast_to({name}, {batch}) or reshape it."
    raise ValueError(
      f"{name} must have the batch shape {batch}, one value for each row of "
      f"features, got {shape}. {advice}"
    )
  return array


def checked_where(
  where: Any, batch: tuple[int, ...], num_classes: int | None = None
) -> Any:
  """The mask of rows, or None for all. NumPy arrays stay so."""
  if where is None:
    return None
  array = _of_rows("where", where, batch, num_classes)
  if array.dtype != jnp.bool_:
    raise TypeError(
      f"where must be boolean, got dtype {array.dtype}. Pass where != 0. The "
      "heads that return sums have weights= for a weight of each row."
    )
  return array


def checked_weights(
  weights: Any, batch: tuple[int, ...], num_classes: int | None = None
) -> Any:
  """The weights of rows, or None for 1. NumPy arrays stay so."""
  if weights is None:
    return None
  array = _of_rows("weights", weights, batch, num_classes)
  if array.dtype == jnp.bool_:
    raise TypeError(
      "weights must be real numbers, got booleans. Pass them as where=."
    )
  checks.check_real("weights", array)
  return array


def kept_rows(where: Any, weights: Any) -> Any:
  """The rows in the mask whose weight is not 0, or None for all."""
  if weights is None:
    return where
  used = weights != 0
  return used if where is None else where & used


def known_rows(
  where: Any,
  weights: Any,
  batch: tuple[int, ...],
  *,
  labels: Any,
  used_with: Any,
  spans_processes: bool = False,
) -> tuple[bool, np.ndarray | None]:
  """Whether labels can be read now, and which rows are known to be kept.

  What spans processes is not read: an error on one process would leave the
  others waiting. The rows are None for all, and none where nothing is known.
  """
  computed = tuple(jax.tree.leaves(used_with))
  present = [x for x in (where, weights) if x is not None]
  if spans_processes or not checks.is_concrete(*present, used_with=computed):
    return False, np.zeros(batch, bool)
  keep = kept_rows(*jax.tree.map(np.asarray, (where, weights)))
  return checks.is_concrete(*jax.tree.leaves(labels)), keep
