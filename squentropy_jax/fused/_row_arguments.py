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


def _checked_key(name: str, values: Any, shape: tuple[int, ...]) -> Any:
  array = checks.as_array(values, name)
  if not jnp.issubdtype(array.dtype, jnp.integer):
    raise TypeError(
      f"{name} must be integers, got dtype {array.dtype}. Number the different "
      "keys, for example with np.unique(..., return_inverse=True)."
    )
  if array.shape != shape:
    of = "row of features" if name == "row_keys" else "class of kernel"
    raise ValueError(
      f"{name} must have the shape {shape}, one key for each {of}, got "
      f"{array.shape}."
    )
  # Without jax_enable_x64, JAX would narrow them, and different keys may become
  # equal.
  wide = not np.can_cast(array.dtype, np.int32)
  if wide and isinstance(array, np.ndarray):
    limits = jnp.iinfo(np.int32)
    if not array.size or (
      array.min() >= limits.min and array.max() <= limits.max
    ):
      return jnp.asarray(array.astype(np.int32))
  if wide and not jax.config.read("jax_enable_x64"):
    raise ValueError(
      f"{name} must fit into int32 without jax_enable_x64, got {array.dtype}. "
      "Number the different keys from 0 on."
    )
  return checks.as_jax(array)


def checked_keys(
  row_keys: Any, class_keys: Any, batch: tuple[int, ...], num_classes: int
) -> tuple[Any, Any]:
  """The keys of rows and of classes as JAX arrays of one dtype, or None."""
  if row_keys is None and class_keys is None:
    return None, None
  if row_keys is None or class_keys is None:
    one = "class_keys" if row_keys is None else "row_keys"
    raise ValueError(
      f"row_keys and class_keys must be passed together, got {one} only."
    )
  keys = (
    _checked_key("row_keys", row_keys, batch),
    _checked_key("class_keys", class_keys, (num_classes,)),
  )
  dtype = jnp.promote_types(keys[0].dtype, keys[1].dtype)
  return keys[0].astype(dtype), keys[1].astype(dtype)


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
