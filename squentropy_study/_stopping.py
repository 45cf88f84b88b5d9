# SPDX-License-Identifier: Apache-2.0
"""When a training is evaluated, and at which epoch each run is stopped."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_study import _evaluation
from squentropy_study._evaluation import HeldOutLogits

# An epoch of more steps is cut into parts of at most this many.
MOST_STEPS = 100
# Each of so many parts is followed by an evaluation; after that, the distance
# between two evaluations is one part in so many.
_DENSE = 20
# No run ends earlier, unless the bound of the search is below it. The criterion
# of the first steps is noise, and an epoch of a small table is a step or two.
FEWEST_EPOCHS = 10
FEWEST_STEPS = 100


class Point(NamedTuple):
  """An evaluation during a training.

  Attributes:
    step: Number of steps so far.
    epoch: Number of epochs so far, which may be fractional.
    candidate: Whether a run may be stopped here. The others are evaluated
      because a fixed length asks for them, and must not change what stopped
      training gives.
  """

  step: int
  epoch: float
  candidate: bool


def schedule(
  steps_per_epoch: int, max_epochs: int, epochs: Iterable[int]
) -> list[Point]:
  """Returns the evaluations of a training, in order.

  An epoch of more than 100 steps is cut into parts. There is an evaluation
  after each of the first 20 parts, then after every twentieth of the parts so
  far, and at each fixed length.

  Args:
    steps_per_epoch: Number of steps of an epoch.
    max_epochs: Bound of the search for the epoch of stopped training.
    epochs: The fixed lengths.

  Returns:
    The evaluations up to the bound and up to the longest fixed length.
  """
  parts = -(-steps_per_epoch // MOST_STEPS)
  fixed = {parts * epoch for epoch in epochs}
  bound = parts * max_epochs
  last = max(fixed | {bound})
  spaced, part = {bound}, 0
  while (part := part + max(1, part // _DENSE)) <= last:
    spaced.add(part)
  points = []
  for part in sorted(spaced | fixed):
    whole, rest = divmod(part, parts)
    step = whole * steps_per_epoch + rest * steps_per_epoch // parts
    candidate = part in spaced and part <= bound
    points.append(Point(step, step / steps_per_epoch, candidate))
  return points


def search_bounds(steps_per_epoch: int, max_epochs: int) -> tuple[float, float]:
  """Returns the epochs before which and at which the search of a run ends."""
  return max(FEWEST_EPOCHS, FEWEST_STEPS / steps_per_epoch), max_epochs


def criterion(stopping: str, validation: HeldOutLogits) -> jax.Array:
  """Returns what stopping minimises on the validation rows, for each run."""
  if stopping == "accuracy":
    return -_evaluation.accuracy(validation)
  if stopping == "refinement":
    _, scaled = _evaluation.recalibrate(validation, validation.scores)
    validation = validation._replace(scores=scaled)
  return _evaluation.nll(validation)


class Best(NamedTuple):
  """The best evaluation of each run so far, for one probability map.

  Attributes:
    criterion: ``[runs]``, the value to minimise.
    epoch: ``[runs]``, the epoch of the best evaluation.
    finished: ``[runs]``, whether the search for a better one has ended.
    scores: ``[runs, held-out rows, classes]``.
    model: The weights and statistics of the model, with a leading axis of runs.
  """

  criterion: np.ndarray
  epoch: np.ndarray
  finished: np.ndarray
  scores: jax.Array
  model: Any


@jax.jit
def _choose(chosen: jax.Array, new: Any, old: Any) -> Any:
  def choose(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(chosen.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

  return jax.tree.map(choose, new, old)


def update(
  best: Best | None,
  value: np.ndarray,
  epoch: float,
  bounds: tuple[float, float],
  scores: jax.Array,
  model: Any,
) -> Best:
  """Returns the best evaluations, after one more.

  A run is finished when its best epoch lies in the first half of its training
  so far and at least 10 epochs and 100 steps have passed, or at the bound of
  the search. A finished run does not change, so that its result does not depend
  on the runs that are trained with it.

  Args:
    best: The best evaluations so far; None before the first one.
    value: ``[runs]``, the criterion.
    epoch: Number of epochs so far.
    bounds: As returned by :func:`search_bounds`.
    scores: ``[runs, held-out rows, classes]``.
    model: The weights and statistics.

  Returns:
    The best evaluations.
  """
  if best is None:
    # The copy is needed because the next segment donates the model.
    model = jax.tree.map(jnp.copy, model)
    epochs = np.full(value.shape, epoch)
    best = Best(value, epochs, np.zeros(value.shape, bool), scores, model)
  else:
    # A finite value is better than the NaN of a training that diverged.
    better = (value < best.criterion) | np.isnan(best.criterion) & ~np.isnan(
      value
    )
    better &= ~best.finished
    chosen_scores, chosen_model = _choose(
      better, (scores, model), (best.scores, best.model)
    )
    best = Best(
      np.where(better, value, best.criterion),
      np.where(better, epoch, best.epoch),
      best.finished,
      chosen_scores,
      chosen_model,
    )
  fewest, most = bounds
  passed = epoch >= np.maximum(fewest, 2 * best.epoch)
  finished = best.finished | passed | (epoch >= most)
  return best._replace(finished=finished)
