# SPDX-License-Identifier: Apache-2.0
"""The targets of rows, and the losses of a row with each of its targets."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks, class_sums
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.class_sums import (
  SUMS,
  ClassSums,
  RowStats,
  sums_for,
)
from squentropy_jax._core.elementwise import weighted
from squentropy_jax._core.hyperparameters import Static, expanded
from squentropy_jax._core.rows import RowLoss, fields_read
from squentropy_jax.fused import _tail


class Targets(NamedTuple):
  """The targets of the rows ``[...]``, by `hard_targets` or `sparse_targets`.

  Attributes:
    ids: Class ids ``[..., K]``, different within a row; -1 for an unused one.
    probabilities: Their weights ``[..., K]``, or None for class ids.
    invalid: Which are out of range, ``[..., K]``.
  """

  ids: jax.Array
  probabilities: jax.Array | None
  invalid: jax.Array


def _checked_pair(labels: Any, batch: tuple[int, ...]) -> tuple[Any, Any]:
  """Checks a pair of class ids and probabilities of shape ``[*batch, K]``."""
  if len(labels) != 2:
    raise TypeError(
      "labels as a tuple must be a pair (ids, probabilities), got "
      f"{len(labels)} elements."
    )
  ids = checks.as_array(labels[0], "the ids of labels")
  probabilities = checks.as_array(labels[1], "the probabilities of labels")
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(
      f"the ids of labels must be integers, got {ids.dtype}. Pass labels as "
      "(ids, probabilities)."
    )
  if not jnp.issubdtype(probabilities.dtype, jnp.floating):
    raise TypeError(
      "the probabilities of labels must be floating point, got "
      f"{probabilities.dtype}. Pass labels as (ids, probabilities)."
    )
  if (
    ids.shape != probabilities.shape or ids.shape[:-1] != batch or not ids.ndim
  ):
    raise ValueError(
      "the ids and probabilities of labels must both have the shape "
      f"(*{batch}, K), K targets for each row, got {ids.shape} and "
      f"{probabilities.shape}."
    )
  if not ids.shape[-1]:
    raise ValueError(
      f"labels must hold one class id per row or more, got ids of shape "
      f"{ids.shape}. Drop rows without a target with where=."
    )
  return prelude.widen_ids(ids), probabilities


def _checked_ids(labels: Any, batch: tuple[int, ...]) -> Any:
  """Checks class ids of shape ``batch``."""
  labels = checks.as_array(labels, "labels")
  if jnp.issubdtype(labels.dtype, jnp.floating):
    raise TypeError(
      f"labels must be class ids, integers of shape {batch}, or a pair (ids, "
      f"probabilities), got {labels.dtype} of shape {labels.shape}. A dense "
      "target distribution is as large as the logits: pass its classes with "
      "probability above 0 as such a pair."
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError(
      f"labels must be integers, got dtype {labels.dtype}. Pass "
      "jnp.asarray(labels, jnp.int32)."
    )
  if labels.shape != batch:
    raise ValueError(
      f"labels must have the batch shape {batch} of features, one class id for "
      f"each row, got {labels.shape}."
    )
  return prelude.widen_ids(labels)


def read(
  labels: Any, num_classes: int, keep: np.ndarray | None, readable: bool
) -> Any:
  """Labels as JAX arrays, their range checked if they can be read."""
  if not isinstance(labels, tuple):
    ids = prelude.read_ids(labels, num_classes, keep, readable)
    return checks.as_jax(ids)
  ids, probabilities = labels
  used = None
  if readable:
    used = np.asarray(probabilities) != 0
    used = used if keep is None else used & keep[..., None]
  ids = prelude.read_ids(ids, num_classes, used, readable)
  return checks.as_jax(ids), checks.as_jax(probabilities)


def checked_labels(labels: Any, batch: tuple[int, ...]) -> Any:
  """Class ids ``[...]``, or a pair of ids and probabilities ``[..., K]``."""
  if isinstance(labels, tuple):
    return _checked_pair(labels, batch)
  return _checked_ids(labels, batch)


def hard_targets(
  labels: jax.Array, num_classes: int, keep: jax.Array | None
) -> Targets:
  """Targets for one class id per row."""
  ids, invalid = prelude.split_ids(labels[..., None], num_classes)
  if keep is not None:
    ids = jnp.where(keep[..., None], ids, -1)
    invalid &= keep[..., None]
  return Targets(ids, None, invalid)


def sparse_targets(
  ids: jax.Array,
  probabilities: jax.Array,
  num_classes: int,
  keep: jax.Array | None,
) -> Targets:
  """Targets for some class ids per row; equal ids are put together."""
  ids, invalid = prelude.split_ids(ids, num_classes)
  used = probabilities != 0
  if keep is not None:
    used &= keep[..., None]
  invalid &= used
  probabilities = jnp.where(used, probabilities, jnp.zeros_like(probabilities))
  # Sorted, equal ids are neighbours, and the first has all their probability.
  ids = jnp.where(used, ids, -1)
  order = jnp.argsort(ids, axis=-1)
  ids, probabilities = (
    jnp.take_along_axis(x, order, axis=-1) for x in (ids, probabilities)
  )
  before = jnp.concatenate([ids[..., :1] - 1, ids[..., :-1]], axis=-1)
  first = ids != before
  starts = jax.lax.cummax(
    jnp.where(
      first, jax.lax.broadcasted_iota(jnp.int32, ids.shape, ids.ndim - 1), 0
    ),
    axis=ids.ndim - 1,
  )

  @functools.partial(jnp.vectorize, signature="(k),(k)->(k)")
  def merged(starts: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.zeros_like(values).at[starts].add(values)

  return Targets(
    ids=jnp.where(first, ids, -1),
    probabilities=merged(starts, probabilities),
    # The row is NaN, also where the id was put together with a valid one.
    invalid=jnp.any(invalid, axis=-1, keepdims=True),
  )


def _of_one_class(z: jax.Array, possible: jax.Array) -> ClassSums:
  """The class sums over one class, of logit ``z`` where it is possible."""
  zero = jnp.zeros_like(z)
  clean = jnp.where(possible, z, zero)
  largest = jnp.where(possible, z, -jnp.inf)
  exps = jnp.exp(largest - class_sums.shift_of(largest))
  return class_sums.no_classes(z, z)._replace(
    max=largest,
    **{name: rule.term(clean, exps) for name, rule in SUMS.items()},
  )


def _of_others(each: ClassSums) -> ClassSums:
  """For every target ``[..., K]`` the sums over the others of its row."""
  axis = each.max.ndim - 1
  none = class_sums.no_classes(each.target[..., :1], each.max[..., :1])

  def shifted(x: jax.Array, end: jax.Array, reverse: bool) -> jax.Array:
    parts = [x[..., 1:], end] if reverse else [end, x[..., :-1]]
    return jnp.concatenate(parts, axis=-1)

  before, after = (
    jax.lax.associative_scan(
      class_sums.merge,
      ClassSums(*(shifted(x, e, r) for x, e in zip(each, none, strict=True))),
      reverse=r,
      axis=axis,
    )
    for r in (False, True)
  )
  return class_sums.merge(before, after)


def row_stats(
  sums: ClassSums, num_classes: jax.Array, targets: Targets
) -> RowStats:
  """Statistics ``[..., K]`` of each target; those of unused ones are finite.

  ``num_classes`` counts the possible ones. The other targets of a row are among
  the other classes of each.
  """
  z = sums.target
  used = targets.ids >= 0
  possible = used & (z != -jnp.inf)
  rest = sums._replace(target=z[..., 0])
  rest = jax.tree.map(lambda x: x[..., None], rest)
  if targets.probabilities is not None:
    rest = class_sums.merge(rest, _of_others(_of_one_class(z, possible)))
  others = num_classes - possible.astype(jnp.int32)
  rest = rest._replace(target=z, num_others=others.astype(z.dtype))
  rest = jax.tree.map(lambda x: jnp.where(used, x, jnp.ones_like(x)), rest)
  # An infinite logit makes a sum NaN, also where no maximum is computed.
  undefined = functools.reduce(
    jnp.logical_or, (jnp.isnan(getattr(sums, name)) for name in SUMS)
  )
  invalid = targets.invalid | (undefined[..., None] & used)
  return class_sums.set_nan(class_sums.row_stats(rest), invalid)


class Numbers(NamedTuple):
  """The traced numbers of a loss.

  Attributes:
    values: Hyper-parameters, scalars or of the batch shape.
    smoothing: The share of label smoothing, or None for none.
  """

  values: dict[str, jax.Array]
  smoothing: jax.Array | None


class WeightedRows(NamedTuple):
  """What a sum of losses knows of its rows ``[...]``, all of that shape."""

  targets: Targets
  weights: jax.Array
  numbers: Numbers


class RowGradients(NamedTuple):
  """The gradients of the sum by what its rows have."""

  weights: jax.Array
  probabilities: jax.Array | None
  numbers: Numbers


class HeadLoss(NamedTuple):
  """What is static about the loss of a head.

  Attributes:
    loss: The row loss.
    static: Its static settings.
    bucket: Whether the classes that sparse targets do not name are one class
      with the missing probability.
  """

  loss: RowLoss[Any]
  static: Static
  bucket: bool = False

  def formula(self, stats: RowStats, values: dict[str, Any]) -> jax.Array:
    """The loss of each row."""
    return self.loss.formula(stats, **values, **dict(self.static))

  def uniform(self, stats: RowStats, values: dict[str, Any]) -> jax.Array:
    """The mean loss over all possible classes as the target."""
    assert self.loss.uniform is not None
    return self.loss.uniform(stats, **values, **dict(self.static))

  def reads(self, numbers: Numbers) -> frozenset[str]:
    """The fields of `ClassSums` that the loss reads."""
    names = tuple(numbers.values)
    fields = fields_read(self.loss.formula, names, self.static)
    if numbers.smoothing is not None and self.loss.uniform is not None:
      fields |= fields_read(self.loss.uniform, names, self.static)
    return sums_read(fields)

  def factor(self, numbers: Numbers) -> jax.Array | None:
    """What the logits are multiplied by, or None for 1."""
    transform = self.loss.transform
    return None if transform is None else transform.factor(numbers.values)


def sums_read(fields: frozenset[str]) -> frozenset[str]:
  """The fields of `ClassSums` that these fields of `RowStats` need of a head.

  The maximum of a tile is NaN if a logit is, so it needs no sum for that.
  """
  reads = sums_for(fields - {"rest_max"})
  return reads | {"max"} if "rest_max" in fields else reads


def resolved(
  loss: Callable[..., jax.Array],
) -> tuple[RowLoss[Any], dict[str, Any]]:
  """The row loss that a callable stands for, and its hyper-parameters."""
  given: dict[str, Any] = {}
  inner: Any = loss
  while isinstance(inner, functools.partial):
    if inner.args:
      raise TypeError(
        "loss must be a functools.partial in keyword arguments only, got "
        f"{loss!r}. Pass features, kernel and labels to the head."
      )
    given = inner.keywords | given
    inner = inner.func
  name = getattr(inner, "__name__", repr(inner))
  if not isinstance(inner, RowLoss):
    raise TypeError(
      "loss must be a row loss, such as losses.squentropy or one made with "
      f"squentropy_jax.row_loss, or a functools.partial of one, got {name}. "
      "Compute it from the logits, or write a formula over "
      "fused.linear_row_stats."
    )
  return inner, inner.hyperparameters.complete(given, name)


def as_smoothing(
  label_smoothing: Any, loss: RowLoss[Any], dtype: np.dtype
) -> jax.Array | None:
  """The share of label smoothing as an array, or None for exactly 0."""
  checks.check_real("label_smoothing", label_smoothing)
  smoothing = checks.as_scalar(
    "label_smoothing", label_smoothing, dtype, "[0, 1]"
  )
  if checks.is_concrete(label_smoothing) and not np.any(label_smoothing):
    return None
  if loss.uniform is None:
    raise ValueError(
      f"label_smoothing must be 0 for {loss.__name__}, which declares no "
      "formula for smoothed labels. Pass labels as a pair (ids, "
      "probabilities), or declare row_loss(..., uniform=)."
    )
  return smoothing


def _of_targets(loss: HeadLoss, numbers: Numbers, stats: RowStats) -> jax.Array:
  """The loss with each target ``[..., K]``."""
  values = expanded(numbers.values)
  value = loss.formula(stats, values)
  if numbers.smoothing is None:
    return value
  # An impossible target has the limit of the loss.
  possible = stats.target != -jnp.inf
  zero = jnp.zeros_like(value)
  target = jnp.where(possible, stats.target, zero)
  mean = loss.uniform(stats._replace(target=target), values)
  smoothing = numbers.smoothing
  smoothing = smoothing[..., None] if smoothing.ndim else smoothing
  # Not a difference of the two, which may both be infinite.
  smoothed = weighted(1.0 - smoothing, value) + weighted(smoothing, mean)
  return jnp.where(possible, smoothed, value)


def row_losses(
  loss: HeadLoss,
  numbers: Numbers,
  sums: ClassSums,
  num_classes: jax.Array,
  targets: Targets,
) -> jax.Array:
  """The loss of each row; 0 for a dropped one."""
  stats = row_stats(sums, num_classes, targets)
  each = _of_targets(loss, numbers, stats)
  if targets.probabilities is not None:
    each *= targets.probabilities
  each = jnp.where(targets.ids >= 0, each, jnp.zeros_like(each)).sum(-1)
  if loss.bucket and targets.probabilities is not None:
    each += _tail.loss_of_bucket(
      loss.loss, sums, targets.ids, targets.probabilities
    )
  return each
