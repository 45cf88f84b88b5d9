# SPDX-License-Identifier: Apache-2.0
"""The rows every calibration function reads, checked once.

A row is one example: ``C`` scores (probabilities or logits) and a label.
"""

import math
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np


class Rows(NamedTuple):
  """Scores ``[n, C]`` as given, labels ``[n]`` in range, and two flags."""

  scores: Array
  labels: Array  # int32, 0 where the row is dropped or its label is bad.
  keep: Array  # False: the row does not exist.
  bad: Array  # True: a kept row whose label is out of range.


def _is_concrete(*arrays: ArrayLike | None) -> bool:
  """Whether the values can be read now, on this host."""
  return all(
    not isinstance(x, jax.core.Tracer)
    and (not isinstance(x, Array) or x.is_fully_addressable)
    for x in arrays
  )


def _check_concrete_labels(
  labels: ArrayLike, num_classes: int, where: ArrayLike | None
) -> None:
  values = np.asarray(labels)
  # uint64 and int64 compare correctly with Python integers in NumPy.
  out = (values < 0) | (values > num_classes - 1)
  if where is not None:
    out &= np.asarray(where)
  if out.any():
    row = tuple(int(i) for i in np.argwhere(out)[0])
    raise ValueError(
      f"labels must lie in [0, {num_classes}), the last axis of the scores; "
      f"row {row} has label {int(values[row])}. Mask rows without a label "
      "with `where`."
    )


def as_scores(name: str, scores: ArrayLike) -> Array:
  """Returns ``scores`` as a floating array ``[..., C]`` with ``C >= 1``."""
  scores = jnp.asarray(scores)
  if not jnp.issubdtype(scores.dtype, jnp.floating):
    raise TypeError(f"{name} must be floating point, got {scores.dtype}.")
  if scores.ndim == 0 or scores.shape[-1] == 0:
    raise ValueError(
      f"{name} must have shape [..., C] with at least one class, got "
      f"{scores.shape}."
    )
  return scores


def as_mask(where: ArrayLike | None, shape: tuple[int, ...]) -> Array:
  """Returns ``where`` as a boolean array of the batch shape."""
  if where is None:
    return jnp.ones(shape, bool)
  where = jnp.asarray(where)
  if where.dtype != jnp.bool_:
    raise TypeError(f"where must be boolean, got {where.dtype}.")
  if where.shape != shape:
    raise ValueError(
      f"where must have the batch shape {shape}, got {where.shape}."
    )
  return where


def read_rows(
  name: str,
  scores: ArrayLike,
  labels: ArrayLike,
  where: ArrayLike | None = None,
) -> Rows:
  """Checks the arguments and flattens the batch to ``n`` rows."""
  scores = as_scores(name, scores)
  batch, num_classes = scores.shape[:-1], scores.shape[-1]
  given_labels, given_where = labels, where
  labels = jnp.asarray(labels)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError(f"labels must be integers, got {labels.dtype}.")
  if labels.shape != batch:
    raise ValueError(
      f"labels must have the shape of {name} without its last axis: "
      f"expected {batch}, got {labels.shape}."
    )
  keep = as_mask(where, batch)
  if _is_concrete(given_labels, given_where):
    _check_concrete_labels(given_labels, num_classes, given_where)
  n = math.prod(batch)
  labels, keep = labels.reshape(n), keep.reshape(n)
  if labels.dtype.itemsize < 4:  # `int8_labels < 1000` would wrap.
    labels = labels.astype(jnp.int32)
  out = (labels < 0) | (labels > num_classes - 1)
  labels = jnp.where(keep & ~out, labels, 0).astype(jnp.int32)
  return Rows(scores.reshape(n, num_classes), labels, keep, keep & out)


def widen(x: Array) -> Array:
  """Returns ``x`` in float32, or as it is where it is wider."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def top(rows: Rows) -> tuple[Array, Array, Array]:
  """Returns confidence, hit and validity of each row.

  The confidence is the largest probability; a hit is a label equal to the
  first class that has it. A kept row is invalid where its label is out of
  range or its confidence is not a probability (NaN, or logits given by
  mistake); a few units in the last place above one count as one.
  """
  scores = rows.scores
  confidence = widen(jnp.max(scores, axis=-1))
  hit = jnp.argmax(scores, axis=-1).astype(jnp.int32) == rows.labels
  above = 1 + 4 * float(jnp.finfo(scores.dtype).eps)
  valid = (confidence >= 0) & (confidence <= above) & ~rows.bad
  confidence = jnp.where(rows.keep & valid, jnp.minimum(confidence, 1), 0)
  return confidence, hit & rows.keep & valid, valid | ~rows.keep
