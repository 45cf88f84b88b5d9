# SPDX-License-Identifier: Apache-2.0
"""Training: all seeds of one loss in one compiled program."""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from squentropy_jax.study import _data, _evaluate, _losses
from squentropy_jax.study._settings import Settings

# About how many points the training curves have.
_CURVE_POINTS = 60


class Classifier(nnx.Module):
  """A multi-layer perceptron with two hidden layers of 256 units."""

  def __init__(self, features: int, classes: int, *, rngs: nnx.Rngs):
    self.hidden1 = nnx.Linear(features, 256, rngs=rngs)
    self.hidden2 = nnx.Linear(256, 256, rngs=rngs)
    self.logits = nnx.Linear(256, classes, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[rows, features]`` to logits ``[rows, classes]``."""
    x = nnx.relu(self.hidden1(x))
    return self.logits(nnx.relu(self.hidden2(x)))


class Cell(NamedTuple):
  """What training with one loss leaves behind; all a report needs.

  Attributes:
    curve_epochs: ``[points]``, epochs at which the curves were read.
    train_loss: ``[points, seeds]``, mean training loss in that epoch.
    curves: ``[points, readouts, metrics, seeds]`` on the test rows, in the
      order of the loss's readouts and of ``_evaluate.METRICS``.
    calibration_logits: ``[regimes, seeds, rows, classes]``.
    calibration_labels: ``[rows]``.
    test_logits: ``[regimes, seeds, rows, classes]``.
    test_labels: ``[rows]``.
  """

  curve_epochs: np.ndarray
  train_loss: np.ndarray
  curves: np.ndarray
  calibration_logits: np.ndarray
  calibration_labels: np.ndarray
  test_logits: np.ndarray
  test_labels: np.ndarray


class _Plan(NamedTuple):
  """What the compiled programs are specialised to, beside the loss."""

  features: int
  classes: int
  batch_size: int
  learning_rate: float
  epochs: int


class _State(NamedTuple):
  """What training changes; every leaf has a leading axis of seeds."""

  parameters: Any
  optimizer: Any


def segment_length(epochs: tuple[int, ...]) -> int:
  """Epochs per compiled segment: it divides every epoch to report at."""
  divisor = math.gcd(*epochs)
  longest = max(1, epochs[-1] // _CURVE_POINTS)
  return max(n for n in range(1, longest + 1) if divisor % n == 0)


def _classifier(plan: _Plan, key: jax.Array) -> Classifier:
  return Classifier(plan.features, plan.classes, rngs=nnx.Rngs(key))


@functools.partial(jax.jit, static_argnames="plan")
def _initialise(plan: _Plan, keys: jax.Array) -> _State:
  def one(key: jax.Array) -> _State:
    parameters = nnx.state(_classifier(plan, key), nnx.Param)
    return _State(parameters, optax.adam(plan.learning_rate).init(parameters))

  return jax.vmap(one)(keys)


@functools.partial(
  jax.jit, static_argnames=("plan", "loss"), donate_argnames="state"
)
def _segment(
  plan: _Plan,
  loss: _losses.NamedLoss,
  state: _State,
  keys: jax.Array,
  first_epoch: jax.Array,
  train: _data.Rows,
  held_out: jax.Array,
) -> tuple[_State, jax.Array, jax.Array]:
  """Trains for some epochs; returns state, last loss, held-out logits."""
  rows = train.labels.shape[0]
  steps = rows // plan.batch_size
  optimizer = optax.adam(plan.learning_rate)
  model = nnx.eval_shape(lambda: _classifier(plan, jax.random.key(0)))
  graph = nnx.graphdef(model)

  def mean_loss(parameters: Any, batch: jax.Array) -> jax.Array:
    logits = nnx.merge(graph, parameters)(train.features[batch])
    return loss(logits, train.labels[batch]).mean()

  def step(state: _State, batch: jax.Array) -> tuple[_State, jax.Array]:
    value, gradient = jax.value_and_grad(mean_loss)(state.parameters, batch)
    # Adam raises a float to its integer count of steps.
    with jax.numpy_dtype_promotion("standard"):
      updates, memory = optimizer.update(gradient, state.optimizer)
    parameters = optax.apply_updates(state.parameters, updates)
    return _State(parameters, memory), value

  def one_seed(state: _State, key: jax.Array) -> tuple:
    def epoch(state: _State, number: jax.Array) -> tuple[_State, jax.Array]:
      order = jax.random.permutation(jax.random.fold_in(key, number), rows)
      # The rows that do not fill a batch wait for the next epoch's order.
      batches = order[: steps * plan.batch_size].reshape(steps, -1)
      state, losses = jax.lax.scan(step, state, batches)
      return state, losses.mean()

    numbers = first_epoch + jnp.arange(plan.epochs)
    state, losses = jax.lax.scan(epoch, state, numbers)
    logits = nnx.merge(graph, state.parameters)(held_out)
    return state, losses[-1], logits

  return jax.vmap(one_seed)(state, keys)


def train(
  settings: Settings,
  loss: _losses.NamedLoss,
  split: _data.Split,
  on_segment: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Cell:
  """Trains a classifier with one loss from every seed.

  Args:
    settings: Seeds, epochs, batch size and learning rate.
    loss: The loss to train with.
    split: The rows.
    on_segment: Called with the epoch reached and the mean training loss each
      time the compiled program hands control back.

  Returns:
    The logits of the held-out rows at every epoch to report at, and curves.
  """
  rows, features = split.train.features.shape
  plan = _Plan(
    features,
    split.num_classes,
    min(settings.batch_size, rows),
    settings.learning_rate,
    segment_length(settings.epochs),
  )
  keys = jax.vmap(jax.random.key)(jnp.arange(settings.seeds))
  # One key for the weights, one for the order of the rows.
  keys, order_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
  state = _initialise(plan, keys)
  train_rows = jax.device_put(split.train)
  parts = (split.calibration.features, split.test.features)
  held_out = jnp.concatenate(parts)
  test_labels = jnp.asarray(split.test.labels)
  first_test_row = split.calibration.labels.size

  curve_epochs, train_loss, curves, reported = [], [], [], []
  for start in range(0, settings.epochs[-1], plan.epochs):
    state, last_loss, logits = _segment(
      plan, loss, state, order_keys, jnp.asarray(start), train_rows, held_out
    )
    epoch = start + plan.epochs
    on_segment(epoch, float(last_loss.mean()))
    curve_epochs.append(epoch)
    train_loss.append(np.asarray(last_loss))
    test_logits = logits[:, first_test_row:]
    curves.append(
      [
        list(_evaluate.measure(read(test_logits), test_labels)[0])
        for read in _losses.readouts(loss).values()
      ]
    )
    if epoch in settings.epochs:
      reported.append(np.asarray(logits))
  at_regimes = np.stack(reported)
  return Cell(
    np.asarray(curve_epochs),
    np.stack(train_loss),
    np.asarray(curves),
    at_regimes[:, :, :first_test_row],
    split.calibration.labels,
    at_regimes[:, :, first_test_row:],
    split.test.labels,
  )
