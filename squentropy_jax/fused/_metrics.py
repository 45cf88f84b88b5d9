# SPDX-License-Identifier: Apache-2.0
"""Sums of losses, and the row formulas that are summed with them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

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
    if isinstance(formula, RowLoss):
      raise TypeError(
        f"metrics[{name!r}] must be a row formula, got the loss "
        f"{formula.__name__}. Pass its formula, {formula.__name__}.row."
      )
    if not callable(formula):
      raise TypeError(
        f"metrics[{name!r}] must be a row formula such as rows.correct, got "
        f"{formula!r}."
      )
  return tuple(Metric(str(name), f) for name, f in metrics.items())
