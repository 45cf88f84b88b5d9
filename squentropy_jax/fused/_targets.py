# SPDX-License-Identifier: Apache-2.0
"""The targets of rows, from class ids or from sparse distributions."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude


class Targets(NamedTuple):
  """The targets of the rows ``[...]``, by `targets_of`.

  Attributes:
    ids: Class ids ``[..., K]``, different within a row; -1 for an unused one.
    probabilities: Their weights ``[..., K]``, or None for class ids.
    invalid: Which are out of range, ``[..., K]``.
    places: For each id that was given, where it stands in ``ids``,
      ``[..., K]``. None if the ids of a row were one, or a distribution.
  """

  ids: jax.Array
  probabilities: jax.Array | None
  invalid: jax.Array
  places: jax.Array | None = None


def checked_pair(
  labels: Any, batch: tuple[int, ...] | None = None
) -> tuple[Any, Any]:
  """Checks a pair of class ids and probabilities of shape ``[*batch, K]``.

  Without ``batch`` the ids define it.
  """
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
  if batch is None:
    batch = ids.shape[:-1]
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
  labels: Any,
  num_classes: int,
  keep: np.ndarray | None,
  readable: bool,
  name: str = "labels",
) -> Any:
  """Labels as JAX arrays, their values checked if they can be read."""
  if not isinstance(labels, tuple):
    if keep is not None:
      keep = keep[(..., *(None,) * (labels.ndim - keep.ndim))]
    ids = prelude.read_ids(labels, num_classes, keep, readable, name)
    return checks.as_jax(ids)
  ids, probabilities = labels
  used = None
  if readable:
    used = np.asarray(probabilities) != 0
    used = used if keep is None else used & keep[..., None]
    name = "the probabilities of labels"
    prelude.check_distributions(probabilities, keep, -1, name, part=True)
  ids = prelude.read_ids(ids, num_classes, used, readable)
  return checks.as_jax(ids), checks.as_jax(probabilities)


def checked_labels(labels: Any, batch: tuple[int, ...]) -> Any:
  """Class ids ``[...]``, or a pair of ids and probabilities ``[..., K]``."""
  if isinstance(labels, tuple):
    return checked_pair(labels, batch)
  return _checked_ids(labels, batch)


def checked_queries(ids: Any, batch: tuple[int, ...]) -> Any:
  """Class ids ``[...]`` or ``[..., K]``, each to be asked for."""
  ids = checks.as_array(ids, "ids")
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(
      f"ids must be integers, got dtype {ids.dtype}. Pass jnp.asarray(ids, "
      "jnp.int32)."
    )
  if ids.shape[: len(batch)] != batch or ids.ndim > len(batch) + 1:
    raise ValueError(
      f"ids must have the batch shape {batch} of features, or the shape "
      f"(*{batch}, K) for K classes of each row, got {ids.shape}."
    )
  if ids.shape[len(batch) :] == (0,):
    raise ValueError(
      f"ids must hold one class id per row or more, got shape {ids.shape}."
    )
  return prelude.widen_ids(ids)


def targets_of(
  labels: Any, rank: int, num_classes: int, keep: jax.Array | None
) -> Targets:
  """The targets of labels, for a batch of that rank."""
  if isinstance(labels, tuple):
    ids, probabilities = labels
    return _sparse_targets(ids, probabilities, num_classes, keep)
  if labels.ndim > rank:
    return _query_targets(labels, num_classes, keep)
  return _hard_targets(labels, num_classes, keep)


def _hard_targets(
  labels: jax.Array, num_classes: int, keep: jax.Array | None
) -> Targets:
  """Targets for one class id per row."""
  ids, invalid = prelude.split_ids(labels[..., None], num_classes)
  if keep is not None:
    ids = jnp.where(keep[..., None], ids, -1)
    invalid &= keep[..., None]
  return Targets(ids, None, invalid)


def _sparse_targets(
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
  ids, order, starts = _merged(jnp.where(used, ids, -1))

  @functools.partial(jnp.vectorize, signature="(k),(k)->(k)")
  def added(starts: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.zeros_like(values).at[starts].add(values)

  probabilities = jnp.take_along_axis(probabilities, order, axis=-1)
  return Targets(
    ids=ids,
    probabilities=added(starts, probabilities),
    # The row is NaN, also where the id was put together with a valid one.
    invalid=jnp.any(invalid, axis=-1, keepdims=True),
  )


def _merged(ids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Sorts ids ``[..., K]`` of -1 or more, and puts equal ones together.

  Returns the ids, -1 for all but the first of equal ones; the order they were
  sorted by; and for each sorted one the place of the first that it equals.
  """
  order = jnp.argsort(ids, axis=-1)
  ids = jnp.take_along_axis(ids, order, axis=-1)
  before = jnp.concatenate([ids[..., :1] - 1, ids[..., :-1]], axis=-1)
  first = ids != before
  place = jax.lax.broadcasted_iota(jnp.int32, ids.shape, ids.ndim - 1)
  starts = jax.lax.cummax(jnp.where(first, place, 0), axis=ids.ndim - 1)
  return jnp.where(first, ids, -1), order, starts


def _query_targets(
  ids: jax.Array, num_classes: int, keep: jax.Array | None
) -> Targets:
  """Targets for class ids ``[..., K]`` that may be equal."""
  ids, invalid = prelude.split_ids(ids, num_classes)
  if keep is not None:
    ids = jnp.where(keep[..., None], ids, -1)
    invalid &= keep[..., None]
  ids, order, starts = _merged(ids)
  back = jnp.argsort(order, axis=-1)
  return Targets(
    ids=ids,
    probabilities=None,
    # The row is NaN, because the sums of a row leave out all its targets.
    invalid=jnp.any(invalid, axis=-1, keepdims=True),
    places=jnp.take_along_axis(starts, back, axis=-1),
  )


def asked_for(targets: Targets, each: jax.Array) -> jax.Array:
  """From values ``[..., K]`` of the targets those of the ids as given.

  The values of dropped rows are 0.
  """
  if targets.places is None:
    each = jnp.where(targets.ids >= 0, each, jnp.zeros_like(each))
    return each[..., 0]

  @functools.partial(jnp.vectorize, signature="(k),(k)->(k)")
  def taken(values: jax.Array, places: jax.Array) -> jax.Array:
    return values[places]

  used = jnp.any(targets.ids >= 0, axis=-1, keepdims=True)
  each = taken(each, targets.places)
  return jnp.where(used, each, jnp.zeros_like(each))
