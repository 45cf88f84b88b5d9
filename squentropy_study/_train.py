# SPDX-License-Identifier: Apache-2.0
"""Trains all runs of one loss, every seed in every fold, in one program."""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from squentropy_study import _data, _evaluation, _models
from squentropy_study._evaluation import HeldOutLogits
from squentropy_study._loss_specs import LossSpec
from squentropy_study._settings import Settings

# Approximate number of points of the training curves.
_CURVE_POINTS = 60
# Standardised features are clipped to this many standard deviations: a rare
# value can be hundreds of them away, where the model extrapolates.
MOST_DEVIATIONS = 10


class RunResult(NamedTuple):
  """What the training with one loss leaves: all that a report needs.

  Runs are numbered fold by fold: run ``r`` is seed ``r % seeds`` in fold
  ``r // seeds``.

  Attributes:
    curve_epochs: ``[points]``, epochs at which the curves were evaluated.
    train_loss: ``[points, runs]``, mean training loss in that epoch.
    curves: ``[points, maps, metrics, runs]`` on the test rows, in the order of
      the loss's probability maps and of ``_evaluation.METRICS``.
    train_accuracy: ``[lengths, maps, runs]`` on the training rows.
    calibration_logits: ``[lengths, runs, rows, classes]``.
    calibration_labels: ``[runs, rows]``.
    calibration_keep: ``[runs, rows]``, False where an entry is padding.
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


class _StaticSettings(NamedTuple):
  """What the compiled programs are specialised to, in addition to the loss."""

  model: str
  shape: tuple[int, ...]
  classes: int
  optimizer: str
  batch_size: int
  learning_rate: float
  epochs: int


class TrainState(NamedTuple):
  """What training changes; every leaf has a leading axis of runs."""

  parameters: Any
  statistics: Any
  optimizer: Any


class TrainingProgress(NamedTuple):
  """An unfinished training, from which it can be resumed.

  Attributes:
    state: After the last segment.
    train_loss: One ``[runs]`` per segment so far.
    curves: One ``[maps, metrics, runs]`` per segment so far.
    train_accuracy: One ``[maps, runs]`` per training length so far.
    logits: One ``[runs, held-out rows, classes]`` per training length so far.
  """

  state: TrainState
  train_loss: list[np.ndarray]
  curves: list[np.ndarray]
  train_accuracy: list[np.ndarray]
  logits: list[np.ndarray]


class RunData(NamedTuple):
  """The rows and random keys of the runs.

  Attributes:
    features: All rows, ``[rows, ...]``.
    labels: ``[rows]``.
    shift: What each run subtracts from the features, ``[runs, columns]``.
    scale: What each run multiplies the shifted features with.
    train: ``[runs, rows]``, training rows.
    held_out: ``[runs, rows]``, calibration and test rows.
    order_keys: ``[runs]``, random keys for the order of the rows.
  """

  features: jax.Array
  labels: jax.Array
  shift: jax.Array
  scale: jax.Array
  train: jax.Array
  held_out: jax.Array
  order_keys: jax.Array


# Axes of runs under vmap; all runs share features and labels.
_PER_RUN = RunData(None, None, 0, 0, 0, 0, 0)  # type: ignore[arg-type]


def segment_length(epochs: tuple[int, ...]) -> int:
  """Returns epochs per segment, a divisor of every epoch to report."""
  divisor = math.gcd(*epochs)
  longest = max(1, epochs[-1] // _CURVE_POINTS)
  return max(n for n in range(1, longest + 1) if divisor % n == 0)


def _model(static: _StaticSettings, key: jax.Array) -> nnx.Module:
  build = _models.MODELS[static.model].build
  return build(static.shape, static.classes, rngs=nnx.Rngs(key))


def _optimizer(static: _StaticSettings) -> optax.GradientTransformation:
  return _models.OPTIMIZERS[static.optimizer](static.learning_rate)


@functools.partial(jax.jit, static_argnames="static")
def _initialize(static: _StaticSettings, keys: jax.Array) -> TrainState:
  def one(key: jax.Array) -> TrainState:
    model = _model(static, key)
    parameters = nnx.state(model, nnx.Param)
    statistics = nnx.state(model, nnx.BatchStat)
    return TrainState(
      parameters, statistics, _optimizer(static).init(parameters)
    )

  return jax.vmap(one)(keys)


def _graphs(static: _StaticSettings) -> tuple[nnx.GraphDef, nnx.GraphDef]:
  """Returns the model without its parameters, for training and prediction."""
  model = nnx.eval_shape(lambda: _model(static, jax.random.key(0)))
  model.train()
  training = nnx.graphdef(model)
  model.eval()
  return training, nnx.graphdef(model)


def _standardized(run: RunData, index: jax.Array) -> jax.Array:
  """Returns the features of some rows, standardised for a run."""
  x = run.features[index]
  columns = (1,) * (x.ndim - 1) + (-1,)
  x = (x - run.shift.reshape(columns)) * run.scale.reshape(columns)
  # A missing value becomes the mean of the training rows.
  x = jnp.where(jnp.isnan(x), 0, x)
  return jnp.clip(x, -MOST_DEVIATIONS, MOST_DEVIATIONS)


@functools.partial(jax.jit, static_argnames="static")
def _train_logits(
  static: _StaticSettings, state: TrainState, data: RunData
) -> jax.Array:
  """Returns the logits of the training rows, ``[runs, rows, classes]``."""
  _, predicting = _graphs(static)

  def one_run(state: TrainState, run: RunData) -> jax.Array:
    model = nnx.merge(predicting, state.parameters, state.statistics)
    return model(_standardized(run, run.train))

  return jax.vmap(one_run, in_axes=(0, _PER_RUN))(state, data)


@functools.partial(
  jax.jit, static_argnames=("static", "loss"), donate_argnames="state"
)
def _segment(
  static: _StaticSettings,
  loss: LossSpec,
  state: TrainState,
  first_epoch: jax.Array,
  data: RunData,
) -> tuple[TrainState, jax.Array, jax.Array]:
  """Trains for some epochs; returns state, last loss, held-out logits."""
  rows = data.train.shape[1]
  steps = rows // static.batch_size
  optimizer = _optimizer(static)
  training, predicting = _graphs(static)

  def mean_loss(
    parameters: Any, statistics: Any, run: RunData, batch: jax.Array
  ) -> tuple[jax.Array, Any]:
    # A copy, because the forward pass updates its statistics.
    model = nnx.merge(training, parameters, statistics, copy=True)
    logits = model(_standardized(run, batch))
    value = loss(logits, run.labels[batch]).mean()
    return value, nnx.state(model, nnx.BatchStat)

  def step(
    run: RunData, state: TrainState, batch: jax.Array
  ) -> tuple[TrainState, jax.Array]:
    (value, statistics), gradient = jax.value_and_grad(mean_loss, has_aux=True)(
      state.parameters, state.statistics, run, batch
    )
    # Adam raises a float to its integer count of steps.
    with jax.numpy_dtype_promotion("standard"):
      updates, memory = optimizer.update(
        gradient, state.optimizer, state.parameters
      )
    parameters = optax.apply_updates(state.parameters, updates)
    return TrainState(parameters, statistics, memory), value

  def one_run(
    state: TrainState, run: RunData
  ) -> tuple[TrainState, jax.Array, jax.Array]:
    def epoch(
      state: TrainState, number: jax.Array
    ) -> tuple[TrainState, jax.Array]:
      key = jax.random.fold_in(run.order_keys, number)
      order = jax.random.permutation(key, run.train)
      # Rows that do not fill the last batch are left out of this epoch.
      batches = order[: steps * static.batch_size].reshape(steps, -1)
      state, losses = jax.lax.scan(functools.partial(step, run), state, batches)
      return state, losses.mean()

    numbers = first_epoch + jnp.arange(static.epochs)
    state, losses = jax.lax.scan(epoch, state, numbers)
    model = nnx.merge(predicting, state.parameters, state.statistics)
    return state, losses[-1], model(_standardized(run, run.held_out))

  return jax.vmap(one_run, in_axes=(0, _PER_RUN))(state, data)


def _run_data(
  settings: Settings, folds: _data.Folds
) -> tuple[jax.Array, RunData]:
  """Returns the keys of the initial weights of each run, and the rows."""

  def per_run(x: np.ndarray) -> jax.Array:
    return jnp.asarray(np.repeat(x, settings.seeds, axis=0))

  # A seed is the same in every fold: one key for weights, one for the order.
  seeds = jnp.arange(settings.runs) % settings.seeds
  keys = jax.vmap(jax.random.key)(seeds)
  split = jax.vmap(jax.random.split)(keys)
  held_out = (folds.calibration.rows, folds.test.rows)
  return split[:, 0], RunData(
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
  loss: LossSpec,
  folds: _data.Folds,
  on_segment: Callable[[int, float], None] = lambda epoch, loss: None,
  *,
  restore: Callable[[TrainState], TrainingProgress | None] = lambda state: None,
  save: Callable[[int, TrainingProgress], None] = lambda epoch, progress: None,
) -> RunResult:
  """Trains a model with one loss, for every seed in every fold.

  Args:
    settings: The settings of the study.
    loss: The loss to train with.
    folds: The rows.
    on_segment: Called after each segment of epochs with the last epoch and
      the mean training loss.
    restore: Takes an initial state and returns the progress of an earlier
      call, or None.
    save: Called after each segment with the epoch and the progress.

  Returns:
    The logits of the held-out rows at every training length, and curves.
  """
  shape = folds.features.shape[1:]
  _models.check_shape(settings.model, settings.data, shape)
  static = _StaticSettings(
    settings.model,
    shape,
    folds.num_classes,
    settings.optimizer,
    min(settings.batch_size, folds.train.shape[1]),
    settings.learning_rate,
    segment_length(settings.epochs),
  )
  weight_keys, data = _run_data(settings, folds)
  initial = _initialize(static, weight_keys)
  progress = restore(initial) or TrainingProgress(initial, [], [], [], [])

  def held_out(part: _data.FoldRows) -> tuple[np.ndarray, np.ndarray]:
    rows, keep = (np.repeat(x, settings.seeds, axis=0) for x in part)
    return folds.labels[rows], keep

  calibration, test = held_out(folds.calibration), held_out(folds.test)
  train_labels = jnp.asarray(folds.labels)[data.train]
  maps = loss.probability_maps().values()
  first_test_row = folds.calibration.rows.shape[1]
  starts = range(0, settings.epochs[-1], static.epochs)
  for start in starts[len(progress.train_loss) :]:
    state, last_loss, logits = _segment(
      static, loss, progress.state, jnp.asarray(start), data
    )
    progress = progress._replace(state=state)
    epoch = start + static.epochs
    on_segment(epoch, float(last_loss.mean()))
    progress.train_loss.append(np.asarray(last_loss))
    test_logits = logits[:, first_test_row:]
    per_map = [
      _evaluation.measure(HeldOutLogits(scores(test_logits), *test))[0]
      for scores in maps
    ]
    progress.curves.append(np.asarray([list(each) for each in per_map]))
    if epoch in settings.epochs:
      train_logits = _train_logits(static, state, data)
      accuracy = [
        _evaluation.accuracy(scores(train_logits), train_labels)
        for scores in maps
      ]
      progress.train_accuracy.append(np.asarray(accuracy))
      progress.logits.append(np.asarray(logits))
    save(epoch, progress)
  at_lengths = np.stack(progress.logits)
  return RunResult(
    np.asarray([start + static.epochs for start in starts]),
    np.stack(progress.train_loss),
    np.stack(progress.curves),
    np.stack(progress.train_accuracy),
    at_lengths[:, :, :first_test_row],
    *calibration,
    at_lengths[:, :, first_test_row:],
    *test,
  )
