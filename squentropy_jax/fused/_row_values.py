# SPDX-License-Identifier: Apache-2.0
"""What is computed of a row with each of its targets, from its class sums."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks, class_sums
from squentropy_jax._core.class_sums import (
  SUMS,
  ClassSums,
  RowStats,
  sums_for,
)
from squentropy_jax._core.elementwise import weighted
from squentropy_jax._core.hyperparameters import (
  Hyperparameters,
  Static,
  expanded,
)
from squentropy_jax._core.rows import RowLoss, fields_read
from squentropy_jax.fused import _tail
from squentropy_jax.fused._metrics import Metric
from squentropy_jax.fused._targets import Targets


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

  ``num_classes`` counts the possible ones, for all rows or for each. The other
  targets of a row are among the other classes of each.
  """
  z = sums.target
  used = targets.ids >= 0
  possible = used & (z != -jnp.inf)
  rest = sums._replace(target=z[..., 0])
  rest = jax.tree.map(lambda x: x[..., None], rest)
  if targets.ids.shape[-1] > 1:
    rest = class_sums.merge(rest, _of_others(_of_one_class(z, possible)))
  if num_classes.ndim:
    num_classes = num_classes[..., None]
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


# The weighted sums of the losses and of the metrics of rows.
Totals = tuple[jax.Array, dict[str, jax.Array]]


class Statistics(NamedTuple):
  """What a head computes for each row, if that is no loss.

  It may have the hyper-parameter ``temperature``, which divides the logits.

  Attributes:
    fields: The fields of `RowStats` that are differentiated.
    constant: Those that are not.
  """

  fields: frozenset[str] = frozenset(RowStats._fields)
  constant: frozenset[str] = frozenset()

  @property
  def hyperparameters(self) -> Hyperparameters:
    """The temperature and its domain."""
    return Hyperparameters({"temperature": "(0, inf)"}, {})

  def reads(self, numbers: Numbers) -> frozenset[str]:
    """The fields of `ClassSums` that are differentiated."""
    del numbers
    return sums_read(self.fields)

  def constant_reads(self) -> frozenset[str]:
    """Those that need not be."""
    return sums_read(self.constant)

  def factor(self, numbers: Numbers) -> jax.Array | None:
    """What the logits are multiplied by, or None for 1."""
    temperature = numbers.values.get("temperature")
    return None if temperature is None else 1.0 / temperature

  def placeholders(self, numbers: Numbers, keep: jax.Array) -> Numbers:
    """The numbers, those of dropped rows replaced by one in the domain."""
    values = self.hyperparameters.placeholders(numbers.values, keep)
    return numbers._replace(values=values)


class HeadLoss(NamedTuple):
  """What is static about the loss of a head.

  Attributes:
    loss: The row loss.
    static: Its static settings.
    metrics: Row formulas that are computed with it, without gradient.
    bucket: Whether the classes that sparse targets do not name are one class
      with the missing probability.
  """

  loss: RowLoss[Any]
  static: Static
  metrics: tuple[Metric, ...] = ()
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

  def constant_reads(self) -> frozenset[str]:
    """The fields of `ClassSums` that the metrics read."""
    return sums_read(
      frozenset().union(*(fields_read(m.values, ()) for m in self.metrics))
    )

  def placeholders(self, numbers: Numbers, keep: jax.Array) -> Numbers:
    """The numbers, those of dropped rows replaced by some in their domains."""
    known = self.loss.hyperparameters
    return numbers._replace(values=known.placeholders(numbers.values, keep))


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


def row_values(
  loss: HeadLoss,
  numbers: Numbers,
  sums: ClassSums,
  num_classes: jax.Array,
  targets: Targets,
) -> Totals:
  """The loss and the metrics of each row; 0 for a dropped one."""
  stats = row_stats(sums, num_classes, targets)
  constant = jax.lax.stop_gradient(stats)

  def expected(each: jax.Array, probabilities: jax.Array | None) -> jax.Array:
    if probabilities is not None:
      each *= probabilities
    return jnp.where(targets.ids >= 0, each, jnp.zeros_like(each)).sum(-1)

  p = targets.probabilities
  losses = expected(_of_targets(loss, numbers, stats), p)
  if loss.bucket and p is not None:
    losses += _tail.loss_of_bucket(loss.loss, sums, targets.ids, p)
  p = jax.lax.stop_gradient(p)
  return losses, {m.name: expected(m.values(constant), p) for m in loss.metrics}


def weighted_sums(
  losses: jax.Array, metrics: dict[str, jax.Array], weights: jax.Array
) -> Totals:
  """The sums of the losses and of the metrics over the rows."""
  constant = jax.lax.stop_gradient(weights)
  found = {name: jnp.sum(x * constant) for name, x in metrics.items()}
  return jnp.sum(losses * weights), found
