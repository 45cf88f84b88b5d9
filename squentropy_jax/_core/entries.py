# SPDX-License-Identifier: Apache-2.0
"""The prelude of losses of single entries, such as binary losses."""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.hyperparameters import Hyperparameters, Static


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
    where = prelude.as_where(where, like.shape, like.shape)
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
  """Checks scores and labels in [0, 1] of one shape; booleans are 0 and 1.

  Returns both in one dtype, and the keep mask. A concrete label out of range
  raises ValueError, and a traced one becomes NaN. Dropped entries become 0.
  """
  scores = checks.as_floats(logits, "logits")
  targets = checks.as_array(labels, "labels")
  if targets.dtype == jnp.bool_:
    targets = targets.astype(np.int8)
  shape, dtype = tuple(np.shape(targets)), targets.dtype
  if not (
    jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
  ):
    raise TypeError(
      "labels must be 0 or 1, booleans or integers, or floats in [0, 1], got "
      f"dtype {dtype}. Pass labels == POSITIVE, with the label of positives."
    )
  if shape != scores.shape:
    raise ValueError(
      f"labels must have the logits' shape {scores.shape}, got {shape}. A "
      "binary loss takes one score for each label. "
      + checks.advice_for_shapes(scores.shape, shape)
    )
  if where is not None:
    where = prelude.as_where(where, shape, shape)
  if checks.is_concrete(targets, where, used_with=(scores,)):
    values = np.asarray(targets)
    bad = ~((values >= 0) & (values <= 1))
    advice = (
      "Pass (labels + 1) // 2 for labels -1 and 1, and drop padded entries "
      "with where=."
    )
    prelude.refuse_first(values, bad, where, "[0, 1]", advice, "labels")
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
