# SPDX-License-Identifier: Apache-2.0
"""Argument checks: TypeError and ValueError that name the argument."""

import operator
from typing import Any

import jax
from jax import core
import jax.numpy as jnp
import numpy as np

_MAX_CLASSES = 2**31 - 1


def compute_dtype(dtype: Any) -> np.dtype:
  """The dtype a loss is computed in: float64 stays, all else is float32."""
  return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def as_logits(logits: jax.typing.ArrayLike, name: str = "logits") -> jax.Array:
  """Converts to an array of rank 1 or more and a floating dtype."""
  array = jnp.asarray(logits)
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise TypeError(
      f"{name} must be floating point scores, got dtype {array.dtype}; "
      f"pass {name}.astype(jnp.float32) if these are scores."
    )
  if array.ndim == 0:
    raise ValueError(f"{name} must have a class axis, got a scalar.")
  return array


def as_axis(axis: int, array: jax.Array, name: str = "logits") -> int:
  """Normalises ``axis`` to a non-negative axis of ``array``."""
  try:
    index = operator.index(axis)
  except TypeError:
    raise TypeError(
      f"axis must be one int, the class axis of {name}, got {axis!r}."
    ) from None
  if not -array.ndim <= index < array.ndim:
    raise ValueError(
      f"axis must be in [{-array.ndim}, {array.ndim}) for {name} of shape "
      f"{array.shape}, got {axis}."
    )
  return index % array.ndim


def check_num_classes(num_classes: int, name: str = "logits") -> None:
  """Refuses an empty class axis, and one that int32 ids cannot count."""
  if num_classes == 0:
    raise ValueError(f"{name} must have at least one class, got none.")
  if num_classes > _MAX_CLASSES:
    raise ValueError(
      f"{name} must have at most 2**31 - 1 classes, got {num_classes}."
    )


def is_concrete(*arrays: Any) -> bool:
  """Whether the values can be read now: no tracer, nothing on other hosts."""
  return not any(
    isinstance(a, core.Tracer)
    or (isinstance(a, jax.Array) and not a.is_fully_addressable)
    for a in arrays
  )


def as_labels(
  labels: jax.typing.ArrayLike, batch: tuple[int, ...], full: tuple[int, ...]
) -> Any:
  """Checks that labels are class ids ``batch`` or distributions ``full``.

  Returns the labels as they are, but for Python scalars and lists, which become
  NumPy arrays: a later conversion may narrow int64, so ids are range-checked
  first.
  """
  array = labels if hasattr(labels, "dtype") else np.asarray(labels)
  shape, dtype = tuple(np.shape(array)), array.dtype
  forms = (
    f"class ids, integers of shape {batch}, or target distributions, floats "
    f"of shape {full}"
  )
  if jnp.issubdtype(dtype, jnp.integer):
    if shape == batch:
      return array
    if shape == full:
      raise TypeError(
        f"labels of the logits' shape {full} must be floats, got {dtype}; "
        "for one-hot rows pass labels.astype(jnp.float32), for class ids pass "
        f"shape {batch}."
      )
    raise ValueError(f"labels must be {forms}; got {dtype} of shape {shape}.")
  if jnp.issubdtype(dtype, jnp.floating):
    if shape == full:
      return array
    if shape == batch:
      raise TypeError(
        f"labels of shape {batch} are class ids and must be integers, got "
        f"{dtype}; pass labels.astype(jnp.int32)."
      )
    raise ValueError(f"labels must be {forms}; got {dtype} of shape {shape}.")
  raise TypeError(f"labels must be {forms}; got dtype {dtype}.")


def as_where(
  where: jax.typing.ArrayLike, batch: tuple[int, ...], full: tuple[int, ...]
) -> jax.Array:
  """Checks that ``where`` is boolean, of shape ``batch`` or ``full``."""
  array = jnp.asarray(where)
  if array.dtype != jnp.bool_:
    raise TypeError(
      f"where must be boolean, got dtype {array.dtype}; pass where != 0."
    )
  if array.shape not in (batch, full):
    raise ValueError(
      f"where must have the batch shape {batch} (which examples) or the "
      f"logits' shape {full} (which classes), got {array.shape}; nothing is "
      "broadcast."
    )
  return array


def check_label_range(labels: Any, num_classes: int, keep: Any = None) -> None:
  """Raises for the first kept label outside ``[0, num_classes)``."""
  values = np.asarray(labels)
  bad = (values < 0) | (values > num_classes - 1)
  if keep is not None:
    bad &= np.asarray(keep)
  if bad.any():
    row = tuple(int(i) for i in np.argwhere(bad)[0])
    place = f"labels[{', '.join(map(str, row))}]" if row else "labels"
    raise ValueError(
      f"{place} = {values[row]} is outside [0, {num_classes}); drop padded "
      "examples with where=."
    )


def as_scalar(name: str, value: Any, dtype: np.dtype) -> Any:
  """A hyper-parameter as a scalar of the computation's dtype."""
  if np.ndim(value) != 0:
    raise ValueError(
      f"{name} must be a scalar, got shape {np.shape(value)}; use jax.vmap for "
      "one value per example."
    )
  return jnp.asarray(value).astype(dtype)
