# SPDX-License-Identifier: Apache-2.0
"""The prelude of every loss: it checks and prepares the arguments.

`checked` checks axes, dtypes, masks, labels and their sharding, before anything
is traced. `prepare` is the traced part. It widens the logits, moves the class
axis last, masks classes, sets dropped rows to placeholders and finds the
invalid rows. `entries` does both steps for losses of single entries.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core.hyperparameters import Hyperparameters, Static

_SIGMOID = (
  "For one sigmoid logit for each label, use losses.binary_cross_entropy, with "
  "logits and labels of one shape."
)


def widen_ids(ids: Any) -> Any:
  """Converts ids of less than a byte to int8, which NumPy can compare."""
  return ids.astype(np.int8) if jnp.iinfo(ids.dtype).bits < 8 else ids


def as_distinct(name: str, values: Any) -> jax.Array:
  """Converts integers that are compared, unless JAX would change them."""
  dtype = jax.dtypes.canonicalize_dtype(values.dtype)
  if isinstance(values, np.ndarray) and values.size:
    low, high = values.min(), values.max()
    if low < jnp.iinfo(dtype).min or high > jnp.iinfo(dtype).max:
      raise ValueError(
        f"{name} must fit in {dtype}, got {low} to {high}. Pass "
        f"numpy.unique({name}, return_inverse=True)[1], in their shape."
      )
  return jnp.asarray(values)


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
      advice = "For one-hot rows pass jnp.asarray(labels, jnp.float32). "
      # With one logit for each label there is no class axis.
      advice = _SIGMOID if len(full) == 1 else advice + _SIGMOID
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
    more = f" {_SIGMOID}" if shape == full and dtype == jnp.bool_ else ""
    raise TypeError(f"labels must be {forms}; got dtype {dtype}.{more}")
  more = f" {_SIGMOID}" if len(full) == 1 else ""
  raise ValueError(
    f"labels must be {forms}; got {dtype} of shape {shape}.{more}"
  )


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


def refuse_first(
  values: Any, bad: Any, keep: Any, interval: str, advice: str, name: str
) -> None:
  if keep is not None:
    bad = bad & np.asarray(keep)
  if bad.any():
    row = tuple(int(i) for i in np.argwhere(bad)[0])
    place = f"{name}[{', '.join(map(str, row))}]" if row else name
    raise ValueError(f"{place} = {values[row]} is outside {interval}. {advice}")


def check_label_range(
  ids: Any,
  num_classes: int,
  keep: Any,
  name: str,
  advice: str = "Drop padded examples with where=.",
) -> None:
  """Raises for the first kept label outside ``[0, num_classes)``."""
  values = np.asarray(ids)
  bad = (values < 0) | (values > num_classes - 1)
  refuse_first(values, bad, keep, f"[0, {num_classes})", advice, name)


def refuse_one_class(
  num_classes: int, name: str, advice: str = _SIGMOID
) -> None:
  """Raises for one class, whose probability is 1 for all scores."""
  if num_classes == 1:
    raise ValueError(
      f"{name} must have two classes or more, got one, whose probability is "
      f"always 1. {advice}"
    )


def narrow_labels(labels: Any, num_classes: int) -> Any:
  """Converts NumPy ids to int32, invalid ones to -1; not those of JAX."""
  if isinstance(labels, jax.Array):
    return labels
  # A conversion to int32 would turn 2**32 into class 0; -1 stays invalid.
  good = (labels >= 0) & (labels <= num_classes - 1)
  narrow = np.where(good, labels, np.zeros_like(labels)).astype(np.int32)
  return np.where(good, narrow, np.int32(-1))


def read_ids(
  ids: Any,
  num_classes: int,
  keep: Any,
  readable: bool,
  name: str = "labels",
  **advice: str,
) -> Any:
  """Checks the range of kept ids if they can be read; see `narrow_labels`."""
  if readable and checks.is_concrete(ids):
    check_label_range(ids, num_classes, keep, name, **advice)
  return narrow_labels(ids, num_classes)


# By how much the sum of a target distribution may differ from 1, and by how
# many eps of its dtype a number may be below 0, and the sum differ in addition.
SUM_TOLERANCE = 0.01
_SLACK = 4


def check_distributions(
  values: Any, keep: Any, axis: int, name: str = "labels", *, part: bool = False
) -> None:
  """Raises for the first kept row that is no distribution over ``axis``.

  Its entries must be 0 or more. Their sum must be 1, or with ``part`` at most
  1. Narrow dtypes are added in float32.
  """
  if keep is not None and not np.any(keep):
    return
  array = np.asarray(values)
  slack = _SLACK * float(jnp.finfo(array.dtype).eps)
  array = array.astype(checks.compute_dtype(array.dtype), copy=False)
  with np.errstate(invalid="ignore", over="ignore"):
    least, total = array.min(axis), array.sum(axis)
    excess = total - 1 if part else np.abs(total - 1)
    bad = ~((least >= -slack) & (excess <= SUM_TOLERANCE + slack))
  if keep is not None:
    bad = bad & np.asarray(keep)
  if not bad.any():
    return
  row = tuple(int(i) for i in np.argwhere(bad)[0])
  of_row = f" of row {', '.join(map(str, row))}" if row else ""
  most = "at most " if part else ""
  raise ValueError(
    f"{name}{of_row} must be a target distribution, of numbers that are at "
    f"least 0 and sum to {most}1, got a least number of {least[row]:.4g} and "
    f"a sum of {total[row]:.4g}. Divide the numbers by their sum, multiply the "
    "losses by weights of examples, and drop padded examples with where=. "
    "For several labels for each example, use losses.binary_cross_entropy."
  )


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
  range of class ids and the sum of target distributions are checked if their
  values can be read.
  """
  array = checks.as_logits(logits, name)
  axis = checks.as_axis(axis, array, name)
  full = array.shape
  batch = full[:axis] + full[axis + 1 :]
  checks.check_num_classes(full[axis], name)
  # A query without negatives has one document, and a loss of 0.
  if name != "similarities":
    refuse_one_class(full[axis], name)
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
    elif readable and checks.is_concrete(targets):
      check_distributions(targets, rows, axis)
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
