# SPDX-License-Identifier: Apache-2.0
"""Sums of losses, and the row formulas that are summed with them."""

from collections.abc import Callable, Hashable, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.rows import RowLoss


class LossSum(NamedTuple):
  """Sums over rows, which add up over batches and devices.

  Attributes:
    loss: The sum of the weighted losses, a scalar.
    weight: The sum of the weights, a scalar.
    metrics: The weighted sums of the metrics, scalars without gradient.
  """

  loss: jax.Array
  weight: jax.Array
  metrics: dict[str, jax.Array]


class Metric(NamedTuple):
  """A row formula, whose values are real numbers.

  Attributes:
    name: Its key in the argument ``metrics``.
    formula: The formula.
  """

  name: str
  formula: Callable[[RowStats], jax.Array]

  def values(self, stats: RowStats) -> jax.Array:
    """The value of each row; a boolean counts as 0 or 1."""
    found = self.formula(stats)
    if getattr(found, "shape", None) != stats.target.shape:
      raise TypeError(
        f"metrics[{self.name!r}] must return one number for each row. Of "
        f"statistics of shape {stats.target.shape} it returns {found}."
      )
    if jnp.issubdtype(found.dtype, jnp.complexfloating):
      raise TypeError(
        f"metrics[{self.name!r}] must return real numbers or booleans, got "
        f"{found.dtype}. Pass jnp.real or jnp.abs of it."
      )
    return found.astype(stats.target.dtype)


def as_metrics(metrics: Any) -> tuple[Metric, ...]:
  """The metrics of the argument, none for None."""
  if metrics is None:
    return ()
  if not isinstance(metrics, Mapping):
    raise TypeError(
      "metrics must be a dict of row formulas such as {'accuracy': "
      f"rows.correct}}, got {metrics!r}."
    )
  for name, formula in metrics.items():
    if not isinstance(name, str):
      raise TypeError(
        f"metrics must have names that are strings, got {name!r}. Pass "
        f"{str(name)!r}."
      )
    inner = formula
    while isinstance(inner, functools.partial):
      inner = inner.func
    if isinstance(inner, RowLoss):
      raise TypeError(
        f"metrics[{name!r}] must be a row formula, got the loss "
        f"{inner.__name__}. Pass its formula, {inner.__name__}.row, and bind "
        "hyper-parameters to that."
      )
    if not callable(formula):
      raise TypeError(
        f"metrics[{name!r}] must be a row formula such as rows.correct, got "
        f"{formula!r}."
      )
    if not isinstance(formula, Hashable):
      raise TypeError(
        f"metrics[{name!r}] must be hashable, got {formula!r}. Pass a function."
      )
  return tuple(Metric(name, f) for name, f in metrics.items())


def refuse_traced(metrics: tuple[Metric, ...], dtype: np.dtype) -> None:
  """Raises if a formula closes over a traced array.

  It is called inside the rule of differentiation, where such an array of the
  caller's trace has no value.
  """
  row: Any = jax.ShapeDtypeStruct((1,), dtype)
  stats = RowStats(*(row for _ in RowStats._fields))
  for metric in metrics:
    traced = jax.make_jaxpr(metric.values)(stats)
    if any(isinstance(x, jax.core.Tracer) for x in traced.consts):
      raise TypeError(
        f"metrics[{metric.name!r}] closes over a traced array. Compute the "
        "metric from fused.linear_row_stats, or pass a number that is not "
        "traced."
      )
