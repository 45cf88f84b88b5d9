# SPDX-License-Identifier: Apache-2.0
"""Training: all runs (seeds and folds) of one loss in one compiled program."""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from squentropy_study import _data, _evaluate, _losses, _models
from squentropy_study._evaluate import HeldOut
from squentropy_study._settings import Settings

# About how many points the training curves have.
_CURVE_POINTS = 60
# A value that one training row in thousands has lies hundreds of deviations
# out; so far a network extrapolates without sense.
_MOST_DEVIATIONS = 10


class Cell(NamedTuple):
  """What training with one loss leaves behind; all a report needs.

  Runs are numbered fold by fold: run ``r`` is seed ``r % seeds`` in fold
  ``r // seeds``.

  Attributes:
    curve_epochs: ``[points]``, epochs at which the curves were read.
    train_loss: ``[points, runs]``, mean training loss in that epoch.
    curves: ``[points, readouts, metrics, runs]`` on the test rows, in the
      order of the loss's readouts and of ``_evaluate.METRICS``.
    train_accuracy: ``[lengths, readouts, runs]`` on the training rows.
    calibration_logits: ``[lengths, runs, rows, classes]``.
    calibration_labels: ``[runs, rows]``.
    calibration_keep: ``[runs, rows]``, False where a place holds no row.
    test_logits: ``[lengths, runs, rows, classes]``.
    test_labels: ``[runs, rows]``.
    test_keep: ``[runs, rows]``.
  """

  curve_epochs: np.ndarray
  train_loss: np.ndarray
  curves: np.ndarray
  train_accuracy: np.ndarray
  calibration_logits: np.ndarray
  calibration_labels: np.ndarray
  calibration_keep: np.ndarray
  test_logits: np.ndarray
  test_labels: np.ndarray
  test_keep: np.ndarray


class _Plan(NamedTuple):
  """What the compiled programs are specialised to, beside the loss."""

  model: str
  shape: tuple[int, ...]
  classes: int
  optimizer: str
  batch_size: int
  learning_rate: float
  epochs: int


class State(NamedTuple):
  """What training changes; every leaf has a leading axis of runs."""

  parameters: Any
  statistics: Any
  optimizer: Any


class Reached(NamedTuple):
  """A training under way; what a run that is killed goes on from.

  Attributes:
    state: After the last segment.
    train_loss: One ``[runs]`` per segment so far.
    curves: One ``[readouts, metrics, runs]`` per segment so far.
    train_accuracy: One ``[readouts, runs]`` per length reported so far.
    logits: One ``[runs, held-out rows, classes]`` per length reported so far.
  """

  state: State
  train_loss: list[np.ndarray]
  curves: list[np.ndarray]
  train_accuracy: list[np.ndarray]
  logits: list[np.ndarray]


class Inputs(NamedTuple):
  """The rows as the compiled programs take them.

  Attributes:
    features: All rows, ``[rows, ...]``.
    labels: ``[rows]``.
    shift: What each run subtracts from the features, ``[runs, columns]``.
    scale: What it multiplies them with.
    train: ``[runs, rows]``, rows to train on.
    held_out: ``[runs, rows]``, rows to read logits of.
    order_keys: ``[runs]``, random keys for the order of the rows.
  """

  features: jax.Array
  labels: jax.Array
  shift: jax.Array
  scale: jax.Array
  train: jax.Array
  held_out: jax.Array
  order_keys: jax.Array


# All but features and labels, which every run shares.
_PER_RUN = Inputs(None, None, 0, 0, 0, 0, 0)  # type: ignore[arg-type]


def segment_length(epochs: tuple[int, ...]) -> int:
  """Epochs per compiled segment: it divides every epoch to report at."""
  divisor = math.gcd(*epochs)
  longest = max(1, epochs[-1] // _CURVE_POINTS)
  return max(n for n in range(1, longest + 1) if divisor % n == 0)


def _network(plan: _Plan, key: jax.Array) -> nnx.Module:
  build = _models.MODELS[plan.model].build
  return build(plan.shape, plan.classes, rngs=nnx.Rngs(key))


def _optimizer(plan: _Plan) -> optax.GradientTransformation:
  return _models.OPTIMIZERS[plan.optimizer](plan.learning_rate)


@functools.partial(jax.jit, static_argnames="plan")
def _initialise(plan: _Plan, keys: jax.Array) -> State:
  def one(key: jax.Array) -> State:
    network = _network(plan, key)
    parameters = nnx.state(network, nnx.Param)
    statistics = nnx.state(network, nnx.BatchStat)
    return State(parameters, statistics, _optimizer(plan).init(parameters))

  return jax.vmap(one)(keys)


def _graphs(plan: _Plan) -> tuple[nnx.GraphDef, nnx.GraphDef]:
  """The network without its numbers, to train and to forecast with."""
  network = nnx.eval_shape(lambda: _network(plan, jax.random.key(0)))
  network.train()
  training = nnx.graphdef(network)
  network.eval()
  return training, nnx.graphdef(network)


def _read(own: Inputs, index: jax.Array) -> jax.Array:
  """The features of some rows, as a run standardises them."""
  x = own.features[index]
  columns = (1,) * (x.ndim - 1) + (-1,)
  x = (x - own.shift.reshape(columns)) * own.scale.reshape(columns)
  # A gap is the mean of the training rows.
  x = jnp.where(jnp.isnan(x), 0, x)
  return jnp.clip(x, -_MOST_DEVIATIONS, _MOST_DEVIATIONS)


@functools.partial(jax.jit, static_argnames="plan")
def _fitted(plan: _Plan, state: State, inputs: Inputs) -> jax.Array:
  """Logits of the training rows, ``[runs, rows, classes]``."""
  _, forecasting = _graphs(plan)

  def one_run(state: State, own: Inputs) -> jax.Array:
    network = nnx.merge(forecasting, state.parameters, state.statistics)
    return network(_read(own, own.train))

  return jax.vmap(one_run, in_axes=(0, _PER_RUN))(state, inputs)


@functools.partial(
  jax.jit, static_argnames=("plan", "loss"), donate_argnames="state"
)
def _segment(
  plan: _Plan,
  loss: _losses.NamedLoss,
  state: State,
  first_epoch: jax.Array,
  inputs: Inputs,
) -> tuple[State, jax.Array, jax.Array]:
  """Trains for some epochs; returns state, last loss, held-out logits."""
  rows = inputs.train.shape[1]
  steps = rows // plan.batch_size
  optimizer = _optimizer(plan)
  training, forecasting = _graphs(plan)

  def mean_loss(
    parameters: Any, statistics: Any, own: Inputs, batch: jax.Array
  ) -> tuple[jax.Array, Any]:
    # A copy, whose statistics may change in here.
    network = nnx.merge(training, parameters, statistics, copy=True)
    logits = network(_read(own, batch))
    value = loss(logits, own.labels[batch]).mean()
    return value, nnx.state(network, nnx.BatchStat)

  def step(
    own: Inputs, state: State, batch: jax.Array
  ) -> tuple[State, jax.Array]:
    (value, statistics), gradient = jax.value_and_grad(mean_loss, has_aux=True)(
      state.parameters, state.statistics, own, batch
    )
    # Adam raises a float to its integer count of steps.
    with jax.numpy_dtype_promotion("standard"):
      updates, memory = optimizer.update(
        gradient, state.optimizer, state.parameters
      )
    parameters = optax.apply_updates(state.parameters, updates)
    return State(parameters, statistics, memory), value

  def one_run(state: State, own: Inputs) -> tuple[State, jax.Array, jax.Array]:
    def epoch(state: State, number: jax.Array) -> tuple[State, jax.Array]:
      key = jax.random.fold_in(own.order_keys, number)
      order = jax.random.permutation(key, own.train)
      # The rows that do not fill a batch wait for the next epoch's order.
      batches = order[: steps * plan.batch_size].reshape(steps, -1)
      state, losses = jax.lax.scan(functools.partial(step, own), state, batches)
      return state, losses.mean()

    numbers = first_epoch + jnp.arange(plan.epochs)
    state, losses = jax.lax.scan(epoch, state, numbers)
    network = nnx.merge(forecasting, state.parameters, state.statistics)
    return state, losses[-1], network(_read(own, own.held_out))

  return jax.vmap(one_run, in_axes=(0, _PER_RUN))(state, inputs)


def _inputs(settings: Settings, folds: _data.Folds) -> tuple[jax.Array, Inputs]:
  """Keys for the weights of each run, and the rows."""

  def per_run(x: np.ndarray) -> jax.Array:
    return jnp.asarray(np.repeat(x, settings.seeds, axis=0))

  # A seed is the same in every fold: one key for the weights, one for orders.
  seeds = jnp.arange(settings.runs) % settings.seeds
  keys = jax.vmap(jax.random.key)(seeds)
  split = jax.vmap(jax.random.split)(keys)
  held_out = (folds.calibration.rows, folds.test.rows)
  return split[:, 0], Inputs(
    jnp.asarray(folds.features),
    jnp.asarray(folds.labels),
    per_run(folds.shift),
    per_run(folds.scale),
    per_run(folds.train),
    per_run(np.concatenate(held_out, axis=1)),
    split[:, 1],
  )


def train(
  settings: Settings,
  loss: _losses.NamedLoss,
  folds: _data.Folds,
  on_segment: Callable[[int, float], None] = lambda epoch, loss: None,
  *,
  restore: Callable[[State], Reached | None] = lambda state: None,
  save: Callable[[int, Reached], None] = lambda epoch, reached: None,
) -> Cell:
  """Trains a network with one loss from every seed in every fold.

  Args:
    settings: What decides the numbers.
    loss: The loss to train with.
    folds: The rows.
    on_segment: Called with the epoch reached and the mean training loss each
      time the compiled program hands control back.
    restore: Given a fresh state, what an earlier call has reached, if any.
    save: Called after each segment with what to restore.

  Returns:
    The logits of the held-out rows at every epoch to report at, and curves.
  """
  shape = folds.features.shape[1:]
  _models.check_shape(settings.model, settings.data, shape)
  plan = _Plan(
    settings.model,
    shape,
    folds.num_classes,
    settings.optimizer,
    min(settings.batch_size, folds.train.shape[1]),
    settings.learning_rate,
    segment_length(settings.epochs),
  )
  weights, inputs = _inputs(settings, folds)
  fresh = _initialise(plan, weights)
  reached = restore(fresh) or Reached(fresh, [], [], [], [])

  def held_out(part: _data.Part) -> tuple[np.ndarray, np.ndarray]:
    rows, keep = (np.repeat(x, settings.seeds, axis=0) for x in part)
    return folds.labels[rows], keep

  calibration, test = held_out(folds.calibration), held_out(folds.test)
  train_labels = jnp.asarray(folds.labels)[inputs.train]
  readouts = _losses.readouts(loss).values()
  first_test_row = folds.calibration.rows.shape[1]
  starts = range(0, settings.epochs[-1], plan.epochs)
  for start in starts[len(reached.train_loss) :]:
    state, last_loss, logits = _segment(
      plan, loss, reached.state, jnp.asarray(start), inputs
    )
    reached = reached._replace(state=state)
    epoch = start + plan.epochs
    on_segment(epoch, float(last_loss.mean()))
    reached.train_loss.append(np.asarray(last_loss))
    test_logits = logits[:, first_test_row:]
    per_readout = [
      _evaluate.measure(HeldOut(read(test_logits), *test))[0]
      for read in readouts
    ]
    reached.curves.append(np.asarray([list(each) for each in per_readout]))
    if epoch in settings.epochs:
      fitted = _fitted(plan, state, inputs)
      accuracy = [_evaluate.accuracy(r(fitted), train_labels) for r in readouts]
      reached.train_accuracy.append(np.asarray(accuracy))
      reached.logits.append(np.asarray(logits))
    save(epoch, reached)
  at_lengths = np.stack(reached.logits)
  return Cell(
    np.asarray([start + plan.epochs for start in starts]),
    np.stack(reached.train_loss),
    np.stack(reached.curves),
    np.stack(reached.train_accuracy),
    at_lengths[:, :, :first_test_row],
    *calibration,
    at_lengths[:, :, first_test_row:],
    *test,
  )
