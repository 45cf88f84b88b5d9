# SPDX-License-Identifier: Apache-2.0
"""A row loss with its hyper-parameters, as the heads apply it to class sums."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core.class_sums import ClassSums, RowStats, sums_for
from squentropy_jax._core.elementwise import weighted
from squentropy_jax._core.hyperparameters import Static, expanded
from squentropy_jax._core.rows import RowLoss, fields_read
from squentropy_jax.fused._targets import Targets, row_stats


class Numbers(NamedTuple):
  """The traced numbers of a loss.

  Attributes:
    values: Hyper-parameters, scalars or of the batch shape.
    smoothing: The share of label smoothing, or None for none.
  """

  values: dict[str, jax.Array]
  smoothing: jax.Array | None


class HeadLoss(NamedTuple):
  """What is static about the loss of a head.

  Attributes:
    loss: The row loss.
    static: Its static settings.
  """

  loss: RowLoss[Any]
  static: Static

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
  return jnp.where(targets.ids >= 0, each, jnp.zeros_like(each)).sum(-1)
