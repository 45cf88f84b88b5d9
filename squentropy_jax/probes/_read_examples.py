# SPDX-License-Identifier: Apache-2.0
"""Reads the arguments of a probe and flattens the examples to rows."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude


class Examples(NamedTuple):
  """Checked examples, flattened to ``n`` rows.

  Attributes:
    features: ``[n, d]``, float32 or wider; 0 in dropped rows.
    labels: ``[n]``, int32, in ``[0, num_classes)`` also where it was invalid.
    keep: ``[n]``, which rows are included.
    invalid: Whether the label of an included row is out of range, a scalar.
  """

  features: jax.Array
  labels: jax.Array
  keep: jax.Array
  invalid: jax.Array


def as_num_classes(num_classes: Any) -> int:
  """Converts a static number of classes, 1 or more, to an int."""
  count = checks.as_count("num_classes", num_classes)
  checks.check_num_classes(count, "num_classes")
  return count


def as_features(
  features: ArrayLike, name: str = "features", width: int | None = None
) -> jax.Array:
  """Converts to ``[..., width]``, float32 or wider."""
  # Dropped rows may hold NaN, and a conversion computes nothing.
  with jax.debug_nans(False):
    array = checks.as_floats(features, name)
    array = array.astype(checks.compute_dtype(array.dtype))
  if array.ndim == 0 or array.shape[-1] == 0:
    raise ValueError(
      f"{name} must have a feature axis of size 1 or more, got shape "
      f"{array.shape}. Pass shape [..., d]."
    )
  if width is not None and array.shape[-1] != width:
    raise ValueError(
      f"{name} must have {width} features, as params have, got shape "
      f"{array.shape}. Pass shape [..., {width}]."
    )
  return array


def read_examples(
  features: ArrayLike,
  labels: ArrayLike,
  num_classes: int,
  where: ArrayLike | None,
  name: str = "features",
) -> Examples:
  """Checks types and shapes, and the range of labels if all is concrete."""
  array = as_features(features, name)
  batch = array.shape[:-1]
  ids: Any = checks.as_array(labels, "labels")
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(
      f"labels must be integer class ids, got dtype {ids.dtype}. Pass "
      "labels.astype(jnp.int32) if these are class ids."
    )
  if ids.shape != batch:
    raise ValueError(
      f"labels must have the batch shape {batch} of {name}, got {ids.shape}. "
      "Pass one class id for each row."
    )
  if where is not None:
    mask: Any = checks.as_array(where, "where")
    if mask.dtype != jnp.bool_:
      raise TypeError(
        f"where must be boolean, got dtype {mask.dtype}. Pass where != 0."
      )
    if mask.shape != batch:
      raise ValueError(
        f"where must have the batch shape {batch} of {name}, got {mask.shape}. "
        "Nothing is broadcast."
      )
  ids = prelude.widen_ids(ids)
  readable = checks.is_concrete(where, used_with=(array,))
  ids = prelude.read_ids(ids, num_classes, where, readable)
  n = math.prod(batch)
  found, outside = prelude.split_ids(jnp.asarray(ids).reshape(n), num_classes)
  array = array.reshape(n, array.shape[-1])
  if where is None:
    keep = jnp.ones_like(outside)
  else:
    keep = jnp.asarray(where).reshape(n)
    array = jnp.where(keep[:, None], array, jnp.zeros_like(array))
  return Examples(array, found, keep, jnp.any(outside & keep))


def check_params(params: Any, *kinds: type) -> None:
  """Raises unless ``params`` has one of the types."""
  if not isinstance(params, kinds):
    names = " or ".join(f"probes.{kind.__name__}" for kind in kinds)
    raise TypeError(f"params must be a {names}, got {type(params).__name__}.")


def product(a: jax.Array, b: jax.Array) -> jax.Array:
  """Multiplies matrices without a rounding of the operands."""
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
