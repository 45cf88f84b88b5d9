# SPDX-License-Identifier: Apache-2.0
"""The classes that sparse targets do not name, as one class of the target."""

from typing import Any

import jax
import jax.numpy as jnp

from squentropy_jax import losses
from squentropy_jax._core import class_sums
from squentropy_jax._core.class_sums import ClassSums, RowStats
from squentropy_jax._core.elementwise import log, weighted
from squentropy_jax._core.labels import SUM_TOLERANCE
from squentropy_jax._core.rows import RowLoss

TAILS = ("ignore", "bucket")


def checked(
  tail: Any, loss: RowLoss[Any], smooth: bool, labels: Any, metrics: Any
) -> bool:
  """Whether the classes that are not named are one class, with its errors."""
  if tail not in TAILS:
    raise ValueError(
      f"tail must be one of {TAILS}, got {tail!r}. 'bucket' makes one class of "
      "the classes that labels do not name."
    )
  if tail == "ignore":
    return False
  if loss is not losses.cross_entropy:
    raise ValueError(
      f"tail='bucket' needs losses.cross_entropy, got {loss.__name__}: "
      "other losses do not define several classes as one. Pass tail='ignore'."
    )
  if not isinstance(labels, tuple):
    raise ValueError(
      "tail='bucket' needs labels as a pair (ids, probabilities), got class "
      "ids, which leave no probability. Pass tail='ignore'."
    )
  if metrics:
    raise ValueError(
      "metrics must be left out with tail='bucket': the statistics of several "
      "classes as one are not those of the row. Compute the metrics by "
      "fused.linear_loss_sum with class ids."
    )
  if smooth:
    raise ValueError(
      "tail='bucket' needs label_smoothing=0: smoothed labels name every class."
    )
  return True


def loss_of_bucket(
  loss: RowLoss[Any],
  sums: ClassSums,
  ids: jax.Array,
  probabilities: jax.Array,
) -> jax.Array:
  """The loss of the classes not named as one, times the missing probability.

  ``sums`` are over these classes. 0 for a row without a named class.
  """
  used = ids >= 0
  z = jnp.where(used, sums.target, -jnp.inf)
  named = z.max(-1)
  exps = jnp.exp(z - class_sums.shift_of(named)[..., None])
  rest = class_sums.shift_of(sums.max) + log(sums.sum_exp)
  one = jnp.ones_like(rest)
  stats: RowStats = class_sums.row_stats(
    class_sums.no_classes(rest, rest)._replace(
      max=named, sum_exp=exps.sum(-1), num_others=one
    )
  )
  missing = 1.0 - probabilities.sum(-1)
  # The value is clipped, and its derivative is not: it is -1 up to a sum of 1.
  constant = jax.lax.stop_gradient(missing)
  clipped = missing + (jnp.maximum(constant, 0.0) - constant)
  weight = jnp.where(missing < -SUM_TOLERANCE, jnp.nan, clipped)
  # If every class is named, what is missing is a rounding error.
  nothing = (rest == -jnp.inf) & (missing < SUM_TOLERANCE)
  weight = jnp.where(nothing, jnp.zeros_like(weight), weight)
  value = weighted(weight, loss.formula(stats))
  return jnp.where(used.any(-1), value, jnp.zeros_like(value))
