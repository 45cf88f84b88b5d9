# SPDX-License-Identifier: Apache-2.0
"""Argument checks: TypeError and ValueError that name the argument."""

from collections.abc import Mapping
import functools
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


def explicit_sharding(array: jax.Array) -> Any:
  """The sharding in the type of an array, None where it names no axis."""
  sharding = getattr(jax.typeof(array), "sharding", None)
  spec = getattr(sharding, "spec", None) or ()
  return sharding if any(axis is not None for axis in spec) else None


def shard_alike(
  name: str, values: Any, logits: jax.Array, axis: int | None = None
) -> jax.Array:
  """Gives ``values`` the sharding that the type of the logits names.

  ``values`` have the logits' shape, or it without ``axis``. Unsharded ones are
  cut up; sharded otherwise they are refused.
  """
  sharding = explicit_sharding(logits)
  if sharding is None:
    return values
  array = jnp.asarray(values)
  spec = sharding.spec
  if array.ndim < logits.ndim:
    spec = jax.P(*(s for i, s in enumerate(spec) if i != axis))
  own = explicit_sharding(array)
  if own is None:
    return jax.sharding.reshard(array, sharding.update(spec=spec))
  if own.spec != spec:
    raise ValueError(
      f"{name} must be sharded as the logits are, {spec}, got {own.spec}; "
      f"pass jax.sharding.reshard({name}, {spec})."
    )
  return array


def as_floats(values: jax.typing.ArrayLike, name: str) -> jax.Array:
  """Converts to an array of a floating dtype."""
  array = jnp.asarray(values)
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise TypeError(
      f"{name} must be floating point scores, got dtype {array.dtype}; "
      f"pass {name}.astype(jnp.float32) if these are scores."
    )
  return array


def as_logits(logits: jax.typing.ArrayLike, name: str = "logits") -> jax.Array:
  """Converts to an array of rank 1 or more and a floating dtype."""
  array = as_floats(logits, name)
  if array.ndim == 0:
    raise ValueError(f"{name} must have a class axis, got a scalar.")
  return array


def _as_int(value: Any, message: str) -> int:
  """An int of any kind, but no bool, which is one to Python."""
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
  """Normalises axes to sum over; ``None`` is all of them, ``()`` none."""
  if axis is None:
    return tuple(range(array.ndim))
  ndim = array.ndim
  message = (
    f"axis must be None or ints in [{-ndim}, {ndim}) for logits of shape "
    f"{array.shape}"
  )
  given = axis if isinstance(axis, tuple) else (axis,)
  axes = [_as_int(a, message) for a in given]
  if not all(-ndim <= a < ndim for a in axes):
    raise ValueError(f"{message}, got {axis!r}.")
  found = tuple(sorted(a % ndim for a in axes))
  if len(set(found)) < len(found):
    raise ValueError(f"axis names an axis twice: {axis!r}.")
  return found


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


def of_bytes(ids: Any) -> Any:
  """Ids of less than a byte as int8, which they fit in."""
  # NumPy compares them with no number beyond their range.
  return ids.astype(np.int8) if jnp.iinfo(ids.dtype).bits < 8 else ids


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
      return of_bytes(array)
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


def _refuse_first(
  values: np.ndarray, bad: np.ndarray, keep: Any, interval: str
) -> None:
  if keep is not None:
    bad = bad & np.asarray(keep)
  if bad.any():
    row = tuple(int(i) for i in np.argwhere(bad)[0])
    place = f"labels[{', '.join(map(str, row))}]" if row else "labels"
    raise ValueError(
      f"{place} = {values[row]} is outside {interval}; drop padded examples "
      "with where=."
    )


def check_label_range(labels: Any, num_classes: int, keep: Any = None) -> None:
  """Raises for the first kept label outside ``[0, num_classes)``."""
  values = np.asarray(labels)
  bad = (values < 0) | (values > num_classes - 1)
  _refuse_first(values, bad, keep, f"[0, {num_classes})")


def narrowed_labels(labels: Any, num_classes: int) -> Any:
  """Class ids in NumPy as int32, bad ones as -1; those of JAX as they are."""
  if isinstance(labels, jax.Array):
    return labels
  # A conversion to int32 would turn 2**32 into class 0; -1 stays bad.
  good = (labels >= 0) & (labels <= num_classes - 1)
  narrow = np.where(good, labels, np.zeros_like(labels)).astype(np.int32)
  return np.where(good, narrow, np.int32(-1))


def as_examples(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  axis: int,
  where: jax.typing.ArrayLike | None,
) -> tuple[jax.Array, Any, int, jax.Array | None]:
  """The checked arguments of a loss with a class axis, its axis not negative.

  Class ids are checked for range where they can be read.
  """
  array = as_logits(logits)
  axis = as_axis(axis, array)
  full = array.shape
  batch = full[:axis] + full[axis + 1 :]
  check_num_classes(full[axis])
  targets = as_labels(labels, batch, full)
  if where is not None:
    where = shard_alike("where", as_where(where, batch, full), array, axis)
  hard = jnp.issubdtype(targets.dtype, jnp.integer)
  if hard and is_concrete(targets, where):
    keep = None if where is None else np.asarray(where)
    if keep is not None and keep.ndim == len(full):
      keep = np.any(keep, axis=axis)
    check_label_range(targets, full[axis], keep)
  if hard:
    targets = narrowed_labels(targets, full[axis])
  return array, shard_alike("labels", targets, array, axis), axis, where


def as_binary(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  where: jax.typing.ArrayLike | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Scores and labels in [0, 1] of one shape and dtype, and a keep mask.

  A label out of range raises where it can be read, and is NaN where not.
  Dropped entries become 0.
  """
  scores = as_floats(logits, "logits")
  targets = labels if hasattr(labels, "dtype") else np.asarray(labels)
  shape, dtype = tuple(np.shape(targets)), targets.dtype
  if not (
    jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
  ):
    raise TypeError(
      "labels must be 0 or 1, integers, or floats in [0, 1], got dtype "
      f"{dtype}; pass labels.astype(jnp.int32)."
    )
  if shape != scores.shape:
    raise ValueError(
      f"labels must have the logits' shape {scores.shape}, got {shape}: a "
      "binary loss takes one score per label."
    )
  if where is not None:
    where = shard_alike("where", as_where(where, shape, shape), scores)
  if is_concrete(targets, where):
    values = np.asarray(targets)
    bad = ~((values >= 0) & (values <= 1))
    _refuse_first(values, bad, where, "[0, 1]")
  targets = shard_alike("labels", targets, scores)
  return *_widened(scores, jnp.asarray(targets), where), where


@functools.partial(jax.jit, inline=True)
def _widened(
  scores: jax.Array, targets: jax.Array, keep: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  in_range = (targets >= 0) & (targets <= 1)
  wide = compute_dtype(scores.dtype)
  targets = jnp.where(in_range, targets.astype(wide), jnp.nan)
  scores = scores.astype(wide)
  if keep is not None:
    scores = jnp.where(keep, scores, jnp.zeros_like(scores))
    targets = jnp.where(keep, targets, jnp.zeros_like(targets))
  return scores, targets


def as_scalar(
  name: str, value: Any, dtype: np.dtype, interval: str = "(-inf, inf)"
) -> Any:
  """A hyper-parameter as a scalar of the computation's dtype.

  It must be in the interval after it is rounded to that dtype.
  """
  if np.ndim(value) != 0:
    raise ValueError(
      f"{name} must be a scalar, got shape {np.shape(value)}; use jax.vmap for "
      "one value per example."
    )
  check_interval(name, value, interval, dtype)
  return jnp.asarray(value).astype(dtype)


def as_scalars(
  hyperparameters: Mapping[str, tuple[Any, str]], dtype: np.dtype
) -> dict[str, Any]:
  """Hyper-parameters, given with their intervals, as scalars."""
  return {
    name: as_scalar(name, value, dtype, interval)
    for name, (value, interval) in hyperparameters.items()
  }


def check_real(name: str, value: Any) -> None:
  """Raises unless a hyper-parameter is real, which a bool is not."""
  kind = getattr(value, "dtype", None) or np.asarray(value).dtype
  if not (
    jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
  ):
    raise TypeError(f"{name} must be a real number, got {value!r}.")


def check_domain(name: str, value: Any, holds: Any, domain: str) -> None:
  """Raises if a hyper-parameter that can be read is outside its domain."""
  if is_concrete(value) and not np.all(holds):
    raise ValueError(f"{name} must be {domain}, got {value}.")


def check_interval(
  name: str, value: Any, interval: str, dtype: np.dtype | None = None
) -> None:
  """`check_domain` for an interval, written such as ``"[0, inf)"``.

  With ``dtype`` it is the value rounded to it that counts.
  """
  check_real(name, value)
  if not is_concrete(value):
    return
  low, high = (float(end) for end in interval[1:-1].split(","))

  def holds(x: np.ndarray) -> bool:
    above = x >= low if interval[0] == "[" else x > low
    below = x <= high if interval[-1] == "]" else x < high
    return bool(np.all(above & below))

  x = np.asarray(value)
  check_domain(name, value, holds(x), f"in {interval}")
  if dtype is not None:
    with np.errstate(over="ignore", under="ignore"):
      rounded = x.astype(dtype)
    domain = f"in {interval} as a {np.dtype(dtype)}"
    check_domain(name, value, holds(rounded), domain)


def as_flag(name: str, value: Any) -> bool:
  """A static choice."""
  if not isinstance(value, bool | np.bool_):
    raise TypeError(
      f"{name} must be True or False and is static, got {value!r}; under "
      "jax.jit bind it with functools.partial or name it in static_argnames."
    )
  return bool(value)


def as_count(name: str, value: Any) -> int:
  """A static number of steps, 1 or more."""
  count = _as_int(value, f"{name} must be one int")
  check_interval(name, count, "[1, inf)")
  return count


def check_key(key: Any) -> None:
  """Raises unless ``key`` is one random key, of the new style or the old."""
  dtype, ndim = getattr(key, "dtype", None), getattr(key, "ndim", None)
  new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  if not (ndim == 0 if new else (dtype == jnp.uint32 and ndim == 1)):
    raise TypeError(
      f"key must be one random key such as jax.random.key(0), got {key!r}."
    )
