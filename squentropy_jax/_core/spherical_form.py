# SPDX-License-Identifier: Apache-2.0
"""Losses of the target's output and two sums, for a factored output layer."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import checks
from squentropy_jax._core.class_sums import RowStats

_KNOWN = {"target", "rest_sum", "rest_sq", "num_classes"}


def beyond_sums(fields: Collection[str]) -> str:
  """Why a formula has no spherical form; an empty string if it has one."""
  more = sorted(set(fields) - _KNOWN)
  if not more:
    return ""
  return (
    f"it reads {', '.join(more)} of the other classes, not only their sum and "
    "their sum of squares"
  )


def of_sums(
  loss: Any,
  beyond: Callable[[Any], str],
  target: ArrayLike,
  total: ArrayLike,
  total_sq: ArrayLike,
  num_classes: int,
  **hyperparameters: Any,
) -> jax.Array:
  """The loss from the target's output and two sums over all classes."""
  given = {"target": target, "total": total, "total_sq": total_sq}
  sums = [checks.as_floats(x, name) for name, x in given.items()]
  batch = sums[0].shape
  if any(x.shape != batch for x in sums):
    raise ValueError(
      "target, total and total_sq must have the same shape, got "
      f"{', '.join(str(x.shape) for x in sums)}. Nothing is broadcast."
    )
  count = checks.as_count("num_classes", num_classes)
  dtype = checks.compute_dtype(*(x.dtype for x in sums))
  values = loss.hyperparameters.complete(hyperparameters, loss.__name__)
  numbers, static = loss.hyperparameters.split(values)
  if more := beyond(static):
    raise ValueError(
      f"{loss.__name__} has no spherical form with {dict(static)}: {more}."
    )
  values = loss.hyperparameters.as_arrays(numbers, dtype, batch)
  z, sum_z, sum_sq = (x.astype(dtype) for x in sums)
  factor = None if loss.transform is None else loss.transform.factor(values)
  if factor is not None:
    z, sum_z, sum_sq = z * factor, sum_z * factor, sum_sq * jnp.square(factor)
  nothing = jnp.full_like(z, jnp.nan)
  stats = RowStats(*(nothing,) * len(RowStats._fields))._replace(
    target=z,
    rest_sum=sum_z - z,
    # Of other outputs near 0, rounding leaves a number below 0.
    rest_sq=jnp.maximum(sum_sq - jnp.square(z), 0.0),
    num_classes=jnp.full_like(z, count),
  )
  return loss.formula(stats, **values, **dict(static))
