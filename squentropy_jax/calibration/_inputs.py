# SPDX-License-Identifier: Apache-2.0
"""The rows every calibration function reads, checked once.

A row is one example: ``C`` scores (probabilities or logits) and a label.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec, auto_axes, use_abstract_mesh
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import checks as _checks

# Elements of a block that stays in the cache of one CPU core.
_BLOCK_SIZE = 2**18


class Given(NamedTuple):
  """Arguments that passed the checks, in the shapes the user gave them."""

  scores: Array  # [..., C]
  labels: Array  # [...], any integer type.
  where: Array | None  # [...]


class Rows(NamedTuple):
  """Scores ``[n, C]`` as given, labels ``[n]`` in range, and two flags."""

  scores: Array
  labels: Array  # int32, 0 where the row is dropped or its label is bad.
  keep: Array  # False: the row does not exist.
  bad: Array  # True: a kept row whose label is out of range.


class Top(NamedTuple):
  """The prediction of each row, ``[n]``; 0 and False where it is dropped."""

  confidence: Array  # In [0, 1], float32 or wider.
  hit: Array
  use: Array  # Kept and valid.
  invalid: Array  # Kept, but no label in range or no probabilities.


def as_scores(name: str, scores: ArrayLike) -> Array:
  """Returns ``scores`` as a floating array ``[..., C]`` with ``C >= 1``."""
  scores = _checks.as_logits(scores, name)
  _checks.check_num_classes(scores.shape[-1], name)
  return scores


def as_mask(where: ArrayLike, batch: tuple[int, ...]) -> Array:
  """Returns ``where`` as a boolean array of the batch shape."""
  mask = jnp.asarray(where)
  if mask.dtype != jnp.bool_:
    raise TypeError(
      f"where must be boolean, got dtype {mask.dtype}; pass where != 0."
    )
  if mask.shape != batch:
    raise ValueError(
      f"where must have the batch shape {batch}, got {mask.shape}; nothing is "
      "broadcast."
    )
  return mask


def read_rows(
  name: str,
  scores: ArrayLike,
  labels: ArrayLike,
  where: ArrayLike | None = None,
) -> Given:
  """Checks types and shapes, and the labels if they can be read now."""
  scores = as_scores(name, scores)
  batch, num_classes = scores.shape[:-1], scores.shape[-1]
  values: Any = labels if hasattr(labels, "dtype") else np.asarray(labels)
  if not jnp.issubdtype(values.dtype, jnp.integer):
    raise TypeError(f"labels must be integer class ids, got {values.dtype}.")
  if values.shape != batch:
    raise ValueError(
      f"labels must have the batch shape {batch}, got {values.shape}."
    )
  values = _checks.of_bytes(values)
  mask = None if where is None else as_mask(where, batch)
  if _checks.is_concrete(values, where):
    _checks.check_label_range(values, num_classes, where)
  values = _checks.narrowed_labels(values, num_classes)
  return Given(scores, jnp.asarray(values), mask)


def _flatten(given: Given) -> Rows:
  """Flattens the batch to ``n`` rows and marks labels out of range."""
  num_classes = given.scores.shape[-1]
  n = math.prod(given.labels.shape)
  labels = given.labels.reshape(n)
  keep = jnp.ones(n, bool) if given.where is None else given.where.reshape(n)
  # Compared in their own type or a wider one: `int8_labels < 1000` would wrap.
  if labels.dtype.itemsize < 4:
    labels = labels.astype(jnp.int32)
  out = (labels < 0) | (labels > num_classes - 1)
  labels = jnp.where(keep & ~out, labels, 0).astype(jnp.int32)
  scores = given.scores.reshape(n, num_classes)
  return Rows(scores, labels, keep, keep & out)


def without_explicit_axes(
  f: Callable[..., Any], like: Array, spec: PartitionSpec, *arguments: Any
) -> Any:
  """``f(*arguments)``, with the mesh axes of ``like`` left to the compiler.

  Where its type names explicit mesh axes, the result has the sharding
  ``spec``.
  """
  mesh = jax.typeof(like).sharding.mesh
  if AxisType.Explicit not in mesh.axis_types:
    return f(*arguments)
  with use_abstract_mesh(mesh):
    return auto_axes(f, out_sharding=spec)(*arguments)


def compiled(*static: str) -> Callable[[Callable[..., Any]], Any]:
  """Compiles a function of `Rows` as one of `Given`.

  Outside ``jit`` a call is so one dispatch. The results of sharded rows are
  replicated.
  """

  def decorate(f: Callable[..., Any]) -> Any:
    def run(given: Given, **keywords: Any) -> Any:
      constants = {name: keywords.pop(name) for name in static}

      def of_given(given: Given, keywords: Any) -> Any:
        return f(_flatten(given), **keywords, **constants)

      return without_explicit_axes(
        of_given, given.scores, PartitionSpec(), given, keywords
      )

    return jax.jit(functools.wraps(f)(run), static_argnames=static)

  return decorate


def check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
  """Raises unless ``value`` is a Python integer in ``[low, high]``."""
  if isinstance(value, bool) or not isinstance(value, int):
    raise TypeError(f"{name} must be a Python int, got {value!r}.")
  if value < low or (high is not None and value > high):
    limit = f"at least {low}" + ("" if high is None else f", at most {high}")
    raise ValueError(f"{name} must be {limit}; got {value}.")


def as_scalar(name: str, value: Any, interval: str, given: Given) -> Array:
  """A number in an interval as a scalar of the computation's type."""
  _checks.check_interval(name, value, interval)
  dtype = _checks.compute_dtype(given.scores.dtype)
  return _checks.as_scalar(name, value, dtype)


def widen(x: Array) -> Array:
  """Returns ``x`` in float32, or as it is if it is float64."""
  return x.astype(_checks.compute_dtype(x.dtype))


def map_rows(f: Callable[..., Any], *arrays: Array) -> Any:
  """``f(*arrays)`` for an ``f`` that treats every row by itself.

  On CPU large inputs are cut into blocks that stay in the cache: XLA would
  write every intermediate array of shape ``[n, C]`` to memory. Accelerators
  fuse them away.
  """
  n = arrays[0].shape[0]
  size = max(1, _BLOCK_SIZE // max(1, arrays[0].size // max(1, n)))
  if n <= size:
    return f(*arrays)

  def blocks(*arrays: Array) -> Any:
    count = -(-n // size)
    # The last block starts early rather than run over: no padded copy.
    starts = jnp.minimum(jnp.arange(count, dtype=jnp.int32) * size, n - size)

    def block(start: Array) -> Any:
      return f(*(jax.lax.dynamic_slice_in_dim(x, start, size) for x in arrays))

    def join(parts: Array) -> Array:
      full = parts[:-1].reshape(-1, *parts.shape[2:])
      return jnp.concatenate([full, parts[-1, count * size - n :]])

    return jax.tree.map(join, jax.lax.map(block, starts))

  return jax.lax.platform_dependent(*arrays, cpu=blocks, default=f)


def class_ids(scores: Array) -> Array:
  """The class of every entry of ``[..., C]``, int32."""
  return jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)


def largest(scores: Array) -> tuple[Array, Array]:
  """Returns the largest score ``[...]`` and the first class that has it."""
  score = jnp.max(scores, axis=-1)
  # `argmax` is one slow reduction of pairs on CPU; two of numbers are not.
  ids = jnp.where(
    scores == score[..., None], class_ids(scores), scores.shape[-1]
  )
  return score, jnp.min(ids, axis=-1)


def own_score(scores: Array, labels: Array) -> Array:
  """The score ``[n]`` of each row's label."""
  # By a mask, not a gather: it fuses, and it shards over any axis.
  is_label = class_ids(scores) == labels[:, None]
  own = jnp.max(jnp.where(is_label, scores, -jnp.inf), axis=-1)
  # Or a reader would compute it again for every class.
  return jax.lax.optimization_barrier(own)


def rank_of_label(scores: Array, labels: Array) -> Array:
  """How many classes rank before each row's label; the first of ties wins."""
  own = own_score(scores, labels)[:, None]
  earlier = class_ids(scores) < labels[:, None]
  before = jnp.where(earlier, scores >= own, scores > own)
  return jnp.sum(before, axis=-1, dtype=jnp.int32)


def are_probabilities(scores: Array) -> Array:
  """Which rows ``[...]`` of ``[..., C]`` lie in [0, 1] and add up to 1.

  NaN and logits given by mistake do not. A few units in the last place of the
  given type are allowed for rounding, and a hundredth more for the sum of many
  of them.
  """
  slack = 4 * float(jnp.finfo(scores.dtype).eps)
  low = widen(jnp.min(scores, axis=-1))
  high = widen(jnp.max(scores, axis=-1))
  total = jnp.sum(widen(scores), axis=-1)
  adds_up = jnp.abs(total - 1) <= 0.01 + slack
  return (low >= -slack) & (high <= 1 + slack) & adds_up


def top(rows: Rows) -> Top:
  """Returns confidence and hit of each row, and whether they can be trusted.

  The confidence is the largest probability; a hit is a label equal to the
  first class that has it.
  """

  def of_block(scores: Array, labels: Array) -> tuple[Array, ...]:
    confidence, prediction = largest(scores)
    return confidence, prediction == labels, are_probabilities(scores)

  confidence, hit, valid = map_rows(of_block, rows.scores, rows.labels)
  valid &= ~rows.bad
  use = rows.keep & valid
  confidence = jnp.where(use, jnp.clip(widen(confidence), 0, 1), 0)
  return Top(confidence, hit & use, use, rows.keep & ~valid)


def mean_of_rows(value: Array, keep: Array, bad: Array | None = None) -> Array:
  """The mean ``[...]`` over kept rows; NaN without any, or with a bad one."""
  count = jnp.sum(keep, dtype=value.dtype)
  mean = jnp.sum(jnp.where(keep, value, 0)) / count
  return mean if bad is None else jnp.where(jnp.any(bad), jnp.nan, mean)
