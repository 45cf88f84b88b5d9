# SPDX-License-Identifier: Apache-2.0
"""Reads the arguments of a calibration function and flattens them to rows.

A row is one example: ``C`` scores (probabilities or logits) and a class id.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.varying import without_explicit_axes

_P = ParamSpec("_P")
_R = TypeVar("_R")

_STACK = (
  "For the probability p of one positive class pass jnp.stack([1 - p, p], "
  "axis=-1), for one logit z jnp.stack([jnp.zeros_like(z), z], axis=-1)."
)


class ScoredExamples(NamedTuple):
  """Checked arguments in the shapes that the caller passed."""

  scores: Array  # [..., C]
  labels: Array  # [...], any integer type.
  where: Array | None  # [...], boolean.


class ScoredRows(NamedTuple):
  """The examples of `ScoredExamples`, flattened to ``n`` rows."""

  scores: Array  # [n, C]; dropped rows still hold what the caller passed.
  labels: Array  # [n], int32; 0 where the row is dropped or the label invalid.
  where: Array | None  # [n]
  label_invalid: Array  # [n], True in a kept row whose label is out of range.

  @property
  def keep(self) -> Array:
    """Which rows ``[n]`` are included."""
    if self.where is None:
      return jnp.ones(self.labels.shape, bool)
    return self.where

  def fill_dropped(self, scores: Array, value: float = 0) -> Array:
    """``scores`` ``[n, ...]`` with ``value`` in the dropped rows."""
    if self.where is None:
      return scores
    keep = self.where.reshape(self.where.shape + (1,) * (scores.ndim - 1))
    return jnp.where(keep, scores, value)


def as_scores(name: str, scores: ArrayLike) -> Array:
  """Returns ``scores`` as a floating array ``[..., C]`` with ``C >= 1``."""
  scores = checks.as_logits(scores, name)
  checks.check_num_classes(scores.shape[-1], name)
  return scores


def as_mask(
  where: ArrayLike, batch: tuple[int, ...], name: str = "where"
) -> Array:
  """Returns ``where`` as a boolean array of the batch shape."""
  mask = jnp.asarray(where)
  if mask.dtype != jnp.bool_:
    raise TypeError(
      f"{name} must be boolean, got dtype {mask.dtype}. Pass {name} != 0."
    )
  if mask.shape != batch:
    raise ValueError(
      f"{name} must have the batch shape {batch}, got {mask.shape}. Nothing "
      "is broadcast."
    )
  return mask


def _stack_advice(name: str) -> str:
  """What to do with one number for each example of two classes."""
  if name == "logits":
    pair = "[jnp.zeros_like(z), z]"
  elif name == "probabilities":
    pair = "[1 - p, p]"
  else:
    return ""
  letter = pair[-2]
  return (
    f" For the {name} {letter} of class 1 of two classes, pass "
    f"jnp.stack({pair}, axis=-1)."
  )


def read_examples(
  name: str,
  scores: ArrayLike,
  labels: ArrayLike,
  where: ArrayLike | None = None,
) -> ScoredExamples:
  """Checks types and shapes, and the range of labels if all is concrete."""
  scores = as_scores(name, scores)
  batch, num_classes = scores.shape[:-1], scores.shape[-1]
  prelude.refuse_one_class(num_classes, name, _STACK)
  values: Any = checks.as_array(labels, "labels")
  if not jnp.issubdtype(values.dtype, jnp.integer):
    raise TypeError(
      f"labels must be integer class ids, got dtype {values.dtype}. Pass "
      "labels.astype(jnp.int32) if these are class ids."
    )
  if values.shape != batch:
    raise ValueError(
      f"labels must have the batch shape {batch} of {name}, got {values.shape}."
      + (_stack_advice(name) if values.shape == scores.shape else "")
    )
  values = prelude.widen_ids(values)
  mask = None if where is None else as_mask(where, batch)
  readable = checks.is_concrete(where, used_with=(scores,))
  values = prelude.read_ids(values, num_classes, where, readable=readable)
  return ScoredExamples(scores, jnp.asarray(values), mask)


def read_confidence(
  confidence: ArrayLike, correct: ArrayLike, where: ArrayLike | None
) -> tuple[Array, Array, Array | None]:
  """Checks types and shapes of confidences and of what is correct."""
  scores = checks.as_floats(confidence, "confidence")
  hits = jnp.asarray(checks.as_array(correct, "correct"))
  if hits.dtype != jnp.bool_:
    raise TypeError(
      f"correct must be boolean, got dtype {hits.dtype}. Pass predictions == "
      "labels."
    )
  if hits.shape != scores.shape:
    raise ValueError(
      f"correct must have the shape {scores.shape} of confidence, got "
      f"{hits.shape}."
    )
  mask = None if where is None else as_mask(where, scores.shape)
  return scores, hits, mask


def _flatten(examples: ScoredExamples) -> ScoredRows:
  num_classes = examples.scores.shape[-1]
  n = math.prod(examples.labels.shape)
  labels = examples.labels.reshape(n)
  where = None if examples.where is None else examples.where.reshape(n)
  # Compared in their own type or a wider one: `int8_labels < 1000` would wrap.
  if labels.dtype.itemsize < 4:
    labels = labels.astype(jnp.int32)
  out_of_range = (labels < 0) | (labels > num_classes - 1)
  keep = jnp.ones(n, bool) if where is None else where
  labels = jnp.where(keep & ~out_of_range, labels, 0).astype(jnp.int32)
  scores = examples.scores.reshape(n, num_classes)
  return ScoredRows(scores, labels, where, keep & out_of_range)


def compiled_on_rows(
  *static: str,
) -> Callable[
  [Callable[Concatenate[ScoredRows, _P], _R]],
  Callable[Concatenate[ScoredExamples, _P], _R],
]:
  """Compiles a function of `ScoredRows` as one of `ScoredExamples`.

  A call outside ``jit`` is one dispatch. Results of sharded rows are
  replicated.

  Args:
    *static: Keyword arguments that are compile-time constants.

  Returns:
    A decorator.
  """

  def decorate(
    f: Callable[Concatenate[ScoredRows, _P], _R],
  ) -> Callable[Concatenate[ScoredExamples, _P], _R]:
    def run(examples: ScoredExamples, **keywords: Any) -> Any:
      constants = {name: keywords.pop(name) for name in static}

      def of_examples(examples: ScoredExamples, keywords: Any) -> Any:
        function: Callable[..., Any] = f
        return function(_flatten(examples), **keywords, **constants)

      return without_explicit_axes(
        of_examples, PartitionSpec(), examples, keywords
      )

    return jax.jit(functools.wraps(f)(run), static_argnames=static)

  return decorate


def check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
  """Raises unless ``value`` is a Python integer in ``[low, high]``."""
  if isinstance(value, bool) or not isinstance(value, int):
    raise TypeError(f"{name} must be a Python int, got {value!r}.")
  if value < low or (high is not None and value > high):
    limits = f"at least {low}" if high is None else f"in [{low}, {high}]"
    raise ValueError(f"{name} must be {limits}, got {value}.")


def as_scalar(
  name: str, value: Any, interval: str, examples: ScoredExamples
) -> Array:
  """A number in an interval as a scalar of the computation's type."""
  checks.check_interval(name, value, interval)
  dtype = checks.compute_dtype(examples.scores.dtype)
  return checks.as_scalar(name, value, dtype)


def widen(x: Array) -> Array:
  """Returns ``x`` in float32, or in float64 if it has that type."""
  return x.astype(checks.compute_dtype(x.dtype))
