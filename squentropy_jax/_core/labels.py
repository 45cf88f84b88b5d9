# SPDX-License-Identifier: Apache-2.0
"""The prelude of every loss: it checks and prepares the arguments.

`checked` checks axes, dtypes, masks, labels and their sharding, before anything
is traced. `prepare` is the traced part. It widens the logits, moves the class
axis last, masks classes, sets dropped rows to placeholders and finds the
invalid rows. `checked_arrays`, `checked_entries` and `checked_numbers` do both
steps for losses of single entries, such as binary losses.
"""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core.hyperparameters import Hyperparameters, Static

_STACK = (
  "For one sigmoid logit z per example, pass the logits of two classes, "
  "jnp.stack([jnp.zeros_like(z), z], axis=-1)."
)


def widen_ids(ids: Any) -> Any:
  """Converts ids of less than a byte to int8, which NumPy can compare."""
  return ids.astype(np.int8) if jnp.iinfo(ids.dtype).bits < 8 else ids


def as_labels(
  labels: ArrayLike, batch: tuple[int, ...], full: tuple[int, ...]
) -> Any:
  """Checks that labels are class ids or target distributions.

  Class ids have the shape ``batch``, and distributions the shape ``full``.
  Returns arrays unchanged, and Python scalars and lists as NumPy arrays. JAX
  may narrow int64, so the range of ids is checked before they are converted.
  """
  array = checks.as_array(labels, "labels")
  shape, dtype = tuple(np.shape(array)), array.dtype
  forms = (
    f"class ids, integers of shape {batch}, or target distributions, floats "
    f"of shape {full}"
  )
  if jnp.issubdtype(dtype, jnp.integer):
    if shape == batch:
      return widen_ids(array)
    if shape == full:
      # With one logit for each label there is no class axis.
      single = len(full) == 1 or (batch == full[:-1] and full[-1] == 1)
      advice = (
        _STACK
        if single
        else "For one-hot rows pass jnp.asarray(labels, jnp.float32), for "
        f"class ids pass shape {batch}."
      )
      raise TypeError(
        f"labels of the logits' shape {full} must be floats, got {dtype}. "
        + advice
      )
  elif jnp.issubdtype(dtype, jnp.floating):
    if shape == full:
      return array
    if shape == batch:
      raise TypeError(
        f"labels of shape {batch} are class ids and must be integers, got "
        f"{dtype}. Pass jnp.asarray(labels, jnp.int32)."
      )
  else:
    raise TypeError(f"labels must be {forms}; got dtype {dtype}.")
  raise ValueError(f"labels must be {forms}; got {dtype} of shape {shape}.")


def as_where(
  where: ArrayLike, batch: tuple[int, ...], full: tuple[int, ...]
) -> Any:
  """Checks that ``where`` is boolean, of shape ``batch`` or ``full``.

  NumPy arrays stay as they are: inside a trace JAX would turn them into
  tracers, which cannot be read.
  """
  array = checks.as_array(where, "where")
  if array.dtype != jnp.bool_:
    raise TypeError(
      f"where must be boolean, got dtype {array.dtype}. Pass where != 0."
    )
  if array.shape not in (batch, full):
    raise ValueError(
      f"where must have the batch shape {batch} (which examples) or the "
      f"logits' shape {full} (which classes), got {array.shape}. Nothing is "
      "broadcast."
    )
  return array


def _refuse_first(
  values: np.ndarray, bad: np.ndarray, keep: Any, interval: str, advice: str
) -> None:
  if keep is not None:
    bad = bad & np.asarray(keep)
  if bad.any():
    row = tuple(int(i) for i in np.argwhere(bad)[0])
    place = f"labels[{', '.join(map(str, row))}]" if row else "labels"
    raise ValueError(f"{place} = {values[row]} is outside {interval}. {advice}")


def check_label_range(labels: Any, num_classes: int, keep: Any = None) -> None:
  """Raises for the first kept label outside ``[0, num_classes)``."""
  values = np.asarray(labels)
  bad = (values < 0) | (values > num_classes - 1)
  advice = "Drop padded examples with where=."
  if num_classes == 1:
    advice += f" {_STACK}"
  _refuse_first(values, bad, keep, f"[0, {num_classes})", advice)


def narrow_labels(labels: Any, num_classes: int) -> Any:
  """Converts NumPy ids to int32, invalid ones to -1; not those of JAX."""
  if isinstance(labels, jax.Array):
    return labels
  # A conversion to int32 would turn 2**32 into class 0; -1 stays invalid.
  good = (labels >= 0) & (labels <= num_classes - 1)
  narrow = np.where(good, labels, np.zeros_like(labels)).astype(np.int32)
  return np.where(good, narrow, np.int32(-1))


def read_ids(ids: Any, num_classes: int, keep: Any, readable: bool) -> Any:
  """Checks the range of kept ids if they can be read; see `narrow_labels`."""
  if readable and checks.is_concrete(ids):
    check_label_range(ids, num_classes, keep)
  return narrow_labels(ids, num_classes)


class Arguments(NamedTuple):
  """The checked arrays of a call, in the shapes and dtypes of the user.

  Attributes:
    logits: Scores.
    labels: Class ids, target distributions, or None for a loss without labels.
    where: Which examples or classes to keep, or None.
    numbers: Hyper-parameters, scalars or of the batch shape.
    more: Other scores. The trailing axes of each are those of the logits.
  """

  logits: jax.Array
  labels: jax.Array | None
  where: jax.Array | None
  numbers: dict[str, jax.Array]
  more: tuple[jax.Array, ...] = ()


def checked(
  logits: ArrayLike,
  labels: ArrayLike | None,
  *,
  axis: int,
  where: ArrayLike | None,
  hyperparameters: Hyperparameters,
  values: Mapping[str, Any],
  more: Mapping[str, ArrayLike] | None = None,
  name: str = "logits",
) -> tuple[Arguments, int, Static]:
  """Checks the arguments of a loss.

  Returns the arrays, the non-negative class axis and the static settings. The
  range of class ids is checked if their values can be read.
  """
  array = checks.as_logits(logits, name)
  axis = checks.as_axis(axis, array, name)
  full = array.shape
  batch = full[:axis] + full[axis + 1 :]
  checks.check_num_classes(full[axis], name)
  others = tuple(
    checks.shard_alike(n, checks.as_logits(x, n), array)
    for n, x in (more or {}).items()
  )
  targets = None if labels is None else as_labels(labels, batch, full)
  readable = checks.is_concrete(used_with=(array, *others))
  # Rows whose values are checked: all, the kept ones, or none if unknown.
  rows = None if readable else np.zeros(batch, bool)
  if where is not None:
    where = as_where(where, batch, full)
    if readable and checks.is_concrete(where):
      rows = np.asarray(where)
      rows = np.any(rows, axis=axis) if rows.ndim == len(full) else rows
    else:
      rows = np.zeros(batch, bool)
    where = checks.shard_alike("where", jnp.asarray(where), array, axis)
  if targets is not None:
    if jnp.issubdtype(targets.dtype, jnp.integer):
      targets = read_ids(targets, full[axis], rows, readable)
    targets = checks.shard_alike("labels", targets, array, axis)
  dtype = np.result_type(
    *(checks.compute_dtype(x.dtype) for x in (array, *others))
  )
  numbers, static = hyperparameters.split(values)
  arrays = {
    n: checks.shard_alike(n, x, array, axis) if x.ndim else x
    for n, x in hyperparameters.as_arrays(numbers, dtype, batch, rows).items()
  }
  targets = None if targets is None else jnp.asarray(targets)
  return Arguments(array, targets, where, arrays, others), axis, static


class Prepared(NamedTuple):
  """The arrays of a call inside the trace.

  Attributes:
    logits: Scores, ``-inf`` on masked classes.
    ids: Class ids in ``[0, C)``, int32, or None.
    probabilities: Target distributions of the logits' shape, or None.
    keep: Which rows to keep, or None for all.
    invalid: Kept rows whose loss is NaN. Their id is out of range or masked,
      they have target probability on a masked class, or no class is possible.
    numbers: Hyper-parameters, scalars or of the batch shape.
    more: Other scores, prepared like the logits.
  """

  logits: jax.Array
  ids: jax.Array | None
  probabilities: jax.Array | None
  keep: jax.Array | None
  invalid: jax.Array
  numbers: dict[str, jax.Array]
  more: tuple[jax.Array, ...]


def class_ids(logits: jax.Array, axis: int = -1) -> jax.Array:
  """Returns the class id of every entry, int32 in the logits' shape."""
  return jax.lax.broadcasted_iota(
    jnp.int32,
    logits.shape,
    axis % logits.ndim,
    out_sharding=checks.explicit_sharding(logits),
  )


def split_ids(labels: jax.Array, num_classes: int) -> tuple[Any, jax.Array]:
  """Clips ids to ``[0, num_classes)``; also returns which were outside."""
  # A conversion to int32 before the comparison could make invalid ids valid.
  last = min(num_classes - 1, jnp.iinfo(labels.dtype).max)
  invalid = (labels < 0) | (labels > last)
  return jnp.clip(labels, 0, last).astype(jnp.int32), invalid


def _behind(x: jax.Array, like: jax.Array) -> jax.Array:
  """Prepends axes of length 1 to ``x``, up to the rank of ``like``."""
  return x.reshape((1,) * (like.ndim - x.ndim) + x.shape)


def prepare(
  arguments: Arguments,
  axis: int,
  hyperparameters: Hyperparameters,
  *,
  in_place: bool = False,
) -> Prepared:
  """Prepares checked arguments; this is the traced part of the prelude.

  By default the class axis becomes the last one, logits are widened, and
  dropped rows are set to placeholders. With ``in_place`` the class axis is not
  moved, the logits keep their dtype, and dropped rows keep their logits. This
  is for sums that take ``keep`` as an argument.
  """
  z, labels, where, numbers, more = arguments
  num_classes = z.shape[axis]

  def moved(x: jax.Array) -> jax.Array:
    return x if in_place else jnp.moveaxis(x, axis - z.ndim, -1)

  last = axis if in_place else z.ndim - 1
  wide = np.result_type(*(checks.compute_dtype(x.dtype) for x in (z, *more)))
  scores = [moved(x) for x in (z, *more)]
  if not in_place:
    scores = [x.astype(wide) for x in scores]
  keep, mask = where, None
  if where is not None and where.ndim == z.ndim:
    mask = moved(where)
    keep = mask.any(last)
    scores = [jnp.where(_behind(mask, x), x, -jnp.inf) for x in scores]
  if keep is not None:
    numbers = hyperparameters.placeholders(numbers, keep)
    if not in_place:
      some = jnp.expand_dims(keep, last)
      scores = [
        jnp.where(_behind(some, x), x, jnp.zeros_like(x)) for x in scores
      ]
  ids = probabilities = None
  batch = scores[0].shape[:last] + scores[0].shape[last + 1 :]
  if labels is None:
    invalid = jnp.zeros(batch, bool)
  elif jnp.issubdtype(labels.dtype, jnp.integer):
    ids, invalid = split_ids(labels, num_classes)
    if mask is not None:
      is_target = class_ids(mask, last) == jnp.expand_dims(ids, last)
      invalid |= ~jnp.any(mask & is_target, axis=last)
  else:
    probabilities = moved(labels).astype(wide)
    if keep is not None:
      some = jnp.expand_dims(keep, last)
      zero = jnp.zeros_like(probabilities)
      probabilities = jnp.where(some, probabilities, zero)
    invalid = jnp.zeros(batch, bool)
    if mask is not None:
      invalid = jnp.any((probabilities != 0) & ~mask, axis=last)
  if not in_place:
    invalid |= jnp.all(scores[0] == -jnp.inf, axis=last)
  if keep is not None:
    invalid &= keep
  return Prepared(
    scores[0], ids, probabilities, keep, invalid, numbers, tuple(scores[1:])
  )


def drop(losses: jax.Array, keep: jax.Array | None) -> jax.Array:
  """Sets the value and the gradient of dropped rows to exactly 0."""
  if keep is None:
    return losses
  return jnp.where(keep, losses, jnp.zeros_like(losses))


def nan_factor(invalid: jax.Array, dtype: np.dtype) -> jax.Array:
  """Returns 1, or NaN for invalid rows.

  A product with this factor sets the value and the gradient to NaN.
  """
  return jnp.where(invalid, jnp.nan, 1.0).astype(dtype)


def checked_arrays(
  arrays: Mapping[str, ArrayLike], where: ArrayLike | None
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
  """Checks float arrays of one shape, and widens them to one dtype.

  Returns the arrays and the keep mask. Dropped entries become 0. All arrays
  must have the shape of the first one.
  """
  floats = {n: checks.as_floats(value, n) for n, value in arrays.items()}
  (first, like), *others = floats.items()
  for name, array in others:
    if array.shape != like.shape:
      raise ValueError(
        f"{name} must have the shape of {first} {like.shape}, got "
        f"{array.shape}. Nothing is broadcast."
      )
  if where is not None:
    where = as_where(where, like.shape, like.shape)
    where = checks.shard_alike("where", jnp.asarray(where), like)
  values = tuple(checks.shard_alike(n, x, like) for n, x in floats.items())
  return _widen_entries(values, where), where


@functools.partial(jax.jit, inline=True)
def _widen_entries(
  arrays: tuple[jax.Array, ...], keep: jax.Array | None
) -> tuple[jax.Array, ...]:
  wide = checks.compute_dtype(*(x.dtype for x in arrays))
  arrays = tuple(x.astype(wide) for x in arrays)
  if keep is None:
    return arrays
  return tuple(jnp.where(keep, x, jnp.zeros_like(x)) for x in arrays)


def checked_entries(
  logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Checks scores and labels in [0, 1] of one shape.

  Returns both in one dtype, and the keep mask. A concrete label out of range
  raises ValueError, and a traced one becomes NaN. Dropped entries become 0.
  """
  scores = checks.as_floats(logits, "logits")
  targets = checks.as_array(labels, "labels")
  shape, dtype = tuple(np.shape(targets)), targets.dtype
  if not (
    jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
  ):
    raise TypeError(
      "labels must be 0 or 1, integers, or floats in [0, 1], got dtype "
      f"{dtype}. Pass jnp.asarray(labels, jnp.int32)."
    )
  if shape != scores.shape:
    raise ValueError(
      f"labels must have the logits' shape {scores.shape}, got {shape}. A "
      "binary loss takes one score for each label. "
      + checks.advice_for_shapes(scores.shape, shape)
    )
  if where is not None:
    where = as_where(where, shape, shape)
  if checks.is_concrete(targets, where, used_with=(scores,)):
    values = np.asarray(targets)
    bad = ~((values >= 0) & (values <= 1))
    advice = (
      "Pass (labels + 1) // 2 for labels -1 and 1, and drop padded entries "
      "with where=."
    )
    _refuse_first(values, bad, where, "[0, 1]", advice)
  (scores,), where = checked_arrays({"logits": scores}, where)
  targets = jnp.asarray(checks.shard_alike("labels", targets, scores))
  return scores, _prepare_targets(targets, scores, where), where


@functools.partial(jax.jit, inline=True)
def _prepare_targets(
  targets: jax.Array, scores: jax.Array, keep: jax.Array | None
) -> jax.Array:
  in_range = (targets >= 0) & (targets <= 1)
  targets = jnp.where(in_range, targets.astype(scores.dtype), jnp.nan)
  if keep is not None:
    targets = jnp.where(keep, targets, jnp.zeros_like(targets))
  return targets


def checked_numbers(
  hyperparameters: Hyperparameters,
  values: Mapping[str, Any],
  scores: jax.Array,
  keep: jax.Array | None,
  axes: tuple[int, ...] | None = None,
) -> tuple[dict[str, jax.Array], Static]:
  """Checks the hyper-parameters of a loss that sums over sets of entries.

  Returns the numbers and the static settings. A number is a scalar, or has one
  value for each set. If ``axes`` is None, all entries are one set. Otherwise a
  set extends over ``axes``, and the numbers get axes of length 1 there.
  """
  axes = tuple(range(scores.ndim)) if axes is None else axes
  batch = tuple(n for i, n in enumerate(scores.shape) if i not in axes)
  numbers, static = hyperparameters.split(values)
  kept = None
  readable = checks.is_concrete(used_with=(scores,))
  rows = None if readable else np.zeros(batch, bool)
  if keep is not None and any(map(np.ndim, numbers.values())):
    kept = keep.any(axes)
    known = readable and checks.is_concrete(kept)
    rows = np.asarray(kept) if known else np.zeros(batch, bool)
  arrays = hyperparameters.as_arrays(numbers, scores.dtype, batch, rows)
  if kept is not None:
    arrays = hyperparameters.placeholders(arrays, kept)
  for name, x in arrays.items():
    if x.ndim:
      alike = checks.shard_alike(name, x, scores, axes)
      arrays[name] = jnp.expand_dims(alike, axes)
  return arrays, static
