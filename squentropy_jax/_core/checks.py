# SPDX-License-Identifier: Apache-2.0
"""Argument checks that raise a TypeError or ValueError naming the argument."""

import operator
from typing import Any

import jax
from jax import core
import jax.numpy as jnp
import numpy as np

_MAX_CLASSES = 2**31 - 1


def compute_dtype(*dtypes: Any) -> np.dtype:
  """Returns the dtype of a computation: float64 if any is, else float32."""
  wide = any(dtype == np.float64 for dtype in dtypes)
  return np.dtype(np.float64 if wide else np.float32)


def explicit_sharding(array: jax.Array) -> Any:
  """Returns the sharding in an array's type; None if it names no axis."""
  sharding = getattr(jax.typeof(array), "sharding", None)
  spec = getattr(sharding, "spec", None) or ()
  return sharding if any(axis is not None for axis in spec) else None


def shard_alike(
  name: str,
  values: Any,
  logits: jax.Array,
  axis: int | tuple[int, ...] | None = None,
) -> jax.Array:
  """Gives ``values`` the sharding in the type of the logits.

  ``values`` have the logits' shape, perhaps behind other axes, or it without
  ``axis``, one axis or several. Unsharded values are sharded. Values that are
  sharded otherwise raise a ValueError.
  """
  sharding = explicit_sharding(logits)
  if sharding is None:
    return values
  array = jnp.asarray(values)
  spec = sharding.spec
  if array.ndim < logits.ndim:
    without = axis if isinstance(axis, tuple) else (axis,)
    spec = jax.P(*(s for i, s in enumerate(spec) if i not in without))
  elif array.ndim > logits.ndim:
    spec = jax.P(*(None,) * (array.ndim - logits.ndim), *spec)
  found = explicit_sharding(array)
  if found is None:
    return jax.sharding.reshard(array, sharding.update(spec=spec))
  if found.spec != spec:
    raise ValueError(
      f"{name} must be sharded as the logits are, {spec}, got {found.spec}. "
      f"Pass jax.sharding.reshard({name}, {spec})."
    )
  return array


def as_array(values: Any, name: str) -> Any:
  """Converts lists and numbers to NumPy arrays; returns arrays unchanged."""
  try:
    array = values if hasattr(values, "dtype") else np.asarray(values)
  except ValueError as error:
    raise ValueError(
      f"{name} must be one rectangular array, got nested lists of different "
      "lengths. Pad the rows and drop the padding with where=."
    ) from error
  if array.dtype == object:
    raise TypeError(
      f"{name} must be an array of numbers, got an array of Python objects. "
      f"Pass np.asarray({name}.tolist()) or build it with a numeric dtype."
    )
  return array


def as_jax(values: Any, dtype: Any = None) -> jax.Array:
  """Converts to a JAX array, of ``dtype`` if one is given.

  Returns a JAX array of that dtype unchanged.
  """
  # Without jax_enable_x64, an explicit float64 would give a warning.
  dtype = None if dtype is None else jax.dtypes.canonicalize_dtype(dtype)

  # Not `dtype in (None, ...)`: NumPy says that float64 equals None.
  def has_dtype(array: jax.Array) -> bool:
    return dtype is None or array.dtype == dtype

  if isinstance(values, jax.Array) and has_dtype(values):
    return values
  # A conversion computes nothing, but jax_debug_nans checks its result and
  # would raise an error for a NaN in a dropped row.
  with jax.debug_nans(False):
    array = jnp.asarray(values)
    return array if has_dtype(array) else array.astype(dtype)


def as_floats(values: jax.typing.ArrayLike, name: str) -> jax.Array:
  """Converts to an array of a floating dtype."""
  array = as_jax(as_array(values, name))
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise TypeError(
      f"{name} must be floating point, got dtype {array.dtype}. "
      f"Pass jnp.asarray({name}, jnp.float32) if these are scores."
    )
  return array


def as_logits(logits: jax.typing.ArrayLike, name: str = "logits") -> jax.Array:
  """Converts to an array of rank 1 or more and a floating dtype."""
  array = as_floats(logits, name)
  if array.ndim == 0:
    raise ValueError(
      f"{name} must have a class axis, got a scalar. For one sigmoid logit "
      "use losses.binary_cross_entropy."
    )
  return array


def _as_int(value: Any, message: str) -> int:
  """Converts any kind of int, but not bool, which is an int in Python."""
  try:
    if not isinstance(value, bool):
      return operator.index(value)
  except TypeError:
    pass
  raise TypeError(f"{message}, got {value!r}.")


def as_axis(axis: int, array: jax.Array, name: str = "logits") -> int:
  """Normalises ``axis`` to a non-negative axis of ``array``."""
  index = _as_int(axis, f"axis must be one int, the class axis of {name}")
  if not -array.ndim <= index < array.ndim:
    raise ValueError(
      f"axis must be in [{-array.ndim}, {array.ndim}) for {name} of shape "
      f"{array.shape}, got {axis}."
    )
  return index % array.ndim


def as_axes(
  axis: int | tuple[int, ...] | None, array: jax.Array
) -> tuple[int, ...]:
  """Normalises axes to sum over; ``None`` is all axes, ``()`` is none."""
  if axis is None:
    return tuple(range(array.ndim))
  ndim = array.ndim
  message = (
    f"axis must be None or ints in [{-ndim}, {ndim}) for logits of shape "
    f"{array.shape}"
  )
  entries = axis if isinstance(axis, tuple) else (axis,)
  axes = [_as_int(a, message) for a in entries]
  if not all(-ndim <= a < ndim for a in axes):
    raise ValueError(f"{message}, got {axis!r}.")
  found = tuple(sorted(a % ndim for a in axes))
  if len(set(found)) < len(found):
    raise ValueError(f"axis names an axis twice: {axis!r}.")
  return found


def check_num_classes(num_classes: int, name: str = "logits") -> None:
  """Raises for no classes, and for more classes than int32 ids can name."""
  if num_classes == 0:
    raise ValueError(f"{name} must have at least one class, got none.")
  if num_classes > _MAX_CLASSES:
    raise ValueError(
      f"{name} must have at most 2**31 - 1 classes, got {num_classes}."
    )


def _mesh_spans_processes() -> bool:
  try:
    mesh = jax.sharding.get_mesh()
  except ValueError:  # Inside a trace, which has no concrete mesh.
    return False
  return not mesh.empty and mesh.is_multi_process


def is_concrete(*values: Any, used_with: tuple[Any, ...] = ()) -> bool:
  """Returns whether values can be read without waiting for other processes.

  Args:
    *values: The values to read. They must not be tracers, and all of their data
      must be on devices of this process.
    used_with: The other arrays of the computation. If one of them, or the mesh
      of `jax.set_mesh`, spans several processes, the result is False. An error
      on this process alone would leave the others waiting in a collective.
  """
  for value in values:
    if isinstance(value, core.Tracer):
      return False
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
      return False
  if used_with and _mesh_spans_processes():
    return False
  for array in used_with:
    if isinstance(array, core.Tracer):
      if jax.process_count() > 1:
        return False
    elif isinstance(array, jax.Array) and not array.is_fully_addressable:
      return False
  return True


def check_real(name: str, value: Any) -> None:
  """Raises unless a hyper-parameter is a real number; bool is not."""
  kind = getattr(value, "dtype", None) or np.asarray(value).dtype
  if not (
    jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
  ):
    raise TypeError(f"{name} must be a real number, got {value!r}.")


def check_domain(name: str, value: Any, holds: Any, domain: str) -> None:
  """Raises if a concrete hyper-parameter is outside its domain."""
  if is_concrete(value) and not np.all(holds):
    raise ValueError(f"{name} must be {domain}, got {value}.")


def in_interval(x: np.ndarray, interval: str) -> np.ndarray:
  """Which numbers are in an interval, written such as ``"[0, inf)"``."""
  low, high = (float(end) for end in interval[1:-1].split(","))
  above = x >= low if interval[0] == "[" else x > low
  below = x <= high if interval[-1] == "]" else x < high
  return above & below


def check_interval(
  name: str, value: Any, interval: str, dtype: np.dtype | None = None
) -> None:
  """Raises unless a value is real and in an interval such as ``"[0, inf)"``.

  With ``dtype``, the value rounded to that dtype must be in the interval too.
  """
  check_real(name, value)
  if not is_concrete(value):
    return
  x = np.asarray(value)
  check_domain(name, value, in_interval(x, interval), f"in {interval}")
  if dtype is not None:
    with np.errstate(over="ignore", under="ignore"):
      rounded = x.astype(dtype)
    domain = f"in {interval} as a {np.dtype(dtype)}"
    check_domain(name, value, in_interval(rounded, interval), domain)


def as_vector(
  name: str,
  values: Any,
  size: int,
  dtype: np.dtype,
  interval: str = "(-inf, inf)",
) -> jax.Array:
  """Converts to ``size`` numbers of ``dtype``, each in the interval."""
  array = as_array(values, name)
  if np.shape(array) != (size,):
    raise ValueError(
      f"{name} must be {size} numbers, of shape {(size,)}, got shape "
      f"{np.shape(array)}."
    )
  check_interval(name, array, interval, dtype)
  return as_jax(array, dtype)


def as_scalar(
  name: str, value: Any, dtype: np.dtype, interval: str = "(-inf, inf)"
) -> Any:
  """Converts a number to a scalar of the computation's dtype.

  The number must be in the interval also after it is rounded to that dtype.
  """
  if np.ndim(value) != 0:
    raise ValueError(f"{name} must be a scalar, got shape {np.shape(value)}.")
  check_interval(name, value, interval, dtype)
  return jnp.asarray(value).astype(dtype)


def as_flag(name: str, value: Any) -> bool:
  """Converts a static setting that is True or False to a bool."""
  if not isinstance(value, bool | np.bool_):
    raise TypeError(
      f"{name} must be True or False and is static, got {value!r}. Under "
      "jax.jit bind it with functools.partial or name it in static_argnames."
    )
  return bool(value)


def as_count(name: str, value: Any) -> int:
  """Converts a static number of steps, 1 or more, to an int."""
  count = _as_int(value, f"{name} must be one int")
  check_interval(name, count, "[1, inf)")
  return count


def as_axis_names(axis_name: Any) -> tuple[str, ...] | None:
  """Converts the name of a mesh axis, or a sequence of names, to a tuple.

  No name is None.
  """
  if axis_name is None:
    return None
  names = (axis_name,) if isinstance(axis_name, str) else axis_name
  if isinstance(names, tuple | list) and all(isinstance(n, str) for n in names):
    return tuple(names) or None
  raise TypeError(
    "axis_name must be None, a string or a tuple of strings, the names of mesh "
    f"axes, got {axis_name!r}."
  )


def as_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
  """Returns a static setting that is one of some names."""
  if isinstance(value, str) and value in choices:
    return value
  known = " or ".join(map(repr, choices))
  raise ValueError(f"{name} must be {known}, got {value!r}.")


def check_key(key: Any) -> None:
  """Raises unless ``key`` is one random key, typed or of raw uint32."""
  dtype, ndim = getattr(key, "dtype", None), getattr(key, "ndim", None)
  new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  if not (ndim == 0 if new else (dtype == jnp.uint32 and ndim == 1)):
    raise TypeError(
      f"key must be one random key such as jax.random.key(0), got {key!r}."
    )


def advice_for_shapes(scores: tuple[int, ...], labels: tuple[int, ...]) -> str:
  """Returns advice for scores and labels of different shapes."""
  if scores == (*labels, 1):
    return "Pass logits[..., 0]."
  if labels == (*scores, 1):
    return "Pass labels[..., 0]."
  if scores[:-1] == labels:
    return (
      "For class ids and one logit per class, use a loss such as "
      "losses.cross_entropy."
    )
  return "Pass labels reshaped to it; nothing is broadcast."
