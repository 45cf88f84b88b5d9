# SPDX-License-Identifier: Apache-2.0
"""The compiled programs that train and predict all runs of one loss at once."""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from squentropy_jax import reweighting
from squentropy_study import _folds, _models
from squentropy_study._loss_specs import LossSpec
from squentropy_study._settings import CLASS_WEIGHTS, Settings

# Standardised features are clipped to this many standard deviations: a rare
# value can be hundreds of them away, where the model extrapolates.
MOST_DEVIATIONS = 10


class StaticSettings(NamedTuple):
  """What the compiled programs are specialised to, in addition to the loss."""

  model: str
  shape: tuple[int, ...]
  classes: int
  optimizer: str
  batch_size: int
  learning_rate: float


class TrainState(NamedTuple):
  """What training changes; every leaf has a leading axis of runs."""

  parameters: Any
  statistics: Any
  optimizer: Any


class RunData(NamedTuple):
  """The rows and random keys of the runs.

  Attributes:
    features: All rows, ``[rows, ...]``.
    labels: ``[rows]``.
    shift: What each run subtracts from the features, ``[runs, columns]``.
    scale: What each run multiplies the shifted features with.
    train: ``[runs, rows]``, training rows.
    held_out: ``[runs, rows]``, validation and test rows.
    order_keys: ``[runs]``, random keys for the order of the rows.
    bias: ``[runs, classes]``, added to the logits in the loss; None for 0.
    weights: ``[runs, classes]``, factors on the loss of an example of each
      class; None for 1.
  """

  features: jax.Array
  labels: jax.Array
  shift: jax.Array
  scale: jax.Array
  train: jax.Array
  held_out: jax.Array
  order_keys: jax.Array
  bias: jax.Array | None
  weights: jax.Array | None


# Axes of runs under vmap; all runs share features and labels.
_PER_RUN = RunData(None, None, 0, 0, 0, 0, 0, 0, 0)  # type: ignore[arg-type]


def _model(static: StaticSettings, key: jax.Array) -> nnx.Module:
  build = _models.MODELS[static.model].build
  return build(static.shape, static.classes, rngs=nnx.Rngs(key))


def _optimizer(static: StaticSettings) -> optax.GradientTransformation:
  return _models.OPTIMIZERS[static.optimizer](static.learning_rate)


@functools.partial(jax.jit, static_argnames="static")
def initialize(static: StaticSettings, keys: jax.Array) -> TrainState:
  def one(key: jax.Array) -> TrainState:
    model = _model(static, key)
    parameters = nnx.state(model, nnx.Param)
    statistics = nnx.state(model, nnx.BatchStat)
    return TrainState(
      parameters, statistics, _optimizer(static).init(parameters)
    )

  return jax.vmap(one)(keys)


def _graphs(static: StaticSettings) -> tuple[nnx.GraphDef, nnx.GraphDef]:
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
def predict(
  static: StaticSettings, model: Any, data: RunData, rows: jax.Array
) -> jax.Array:
  """Returns logits, ``[runs, rows, classes]``.

  Args:
    static: What the program is specialised to.
    model: Parameters and statistics of the models, with an axis of runs.
    data: The features, and how each run standardises them.
    rows: ``[runs, rows]``, row numbers of the features.

  Returns:
    The logits.
  """
  _, predicting = _graphs(static)

  def one_run(model: Any, run: RunData, rows: jax.Array) -> jax.Array:
    return nnx.merge(predicting, *model)(_standardized(run, rows))

  return jax.vmap(one_run, in_axes=(0, _PER_RUN, 0))(model, data, rows)


def model_like(static: StaticSettings) -> Any:
  """Returns parameters and statistics of a model, without their values."""
  model = nnx.eval_shape(lambda: _model(static, jax.random.key(0)))
  return nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)


def leaf_names(model: Any) -> list[str]:
  """Returns a name for each array of a model, such as ``0/logits/kernel``."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(model)
  return [
    # Each array is the value of an nnx.Variable.
    jax.tree_util.keystr(path, simple=True, separator="/").removesuffix(
      "/value"
    )
    for path, _ in leaves
  ]


@functools.partial(
  jax.jit, static_argnames=("static", "loss"), donate_argnames="state"
)
def segment(
  static: StaticSettings,
  loss: LossSpec,
  state: TrainState,
  first_step: jax.Array,
  num_steps: jax.Array,
  data: RunData,
) -> tuple[TrainState, jax.Array, jax.Array]:
  """Trains for some steps.

  Args:
    static: What the program is specialised to.
    loss: The loss.
    state: The state of all runs.
    first_step: Number of steps before this segment.
    num_steps: Number of steps of this segment.
    data: The rows.

  Returns:
    The state, the mean training loss over the steps of the segment but at
    most over the last epoch, and the logits of the held-out rows.
  """
  per_epoch = data.train.shape[1] // static.batch_size
  end = first_step + num_steps
  optimizer = _optimizer(static)
  training, predicting = _graphs(static)

  def mean_loss(
    parameters: Any, statistics: Any, run: RunData, batch: jax.Array
  ) -> tuple[jax.Array, Any]:
    # A copy, because the forward pass updates its statistics.
    model = nnx.merge(training, parameters, statistics, copy=True)
    logits, labels = model(_standardized(run, batch)), run.labels[batch]
    values = loss(
      logits if run.bias is None else logits + run.bias[None], labels
    )
    if run.weights is not None:
      values *= run.weights[labels]
    return values.mean(), nnx.state(model, nnx.BatchStat)

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
    def order_of(epoch: jax.Array) -> jax.Array:
      key = jax.random.fold_in(run.order_keys, epoch)
      return jax.random.permutation(key, run.train)

    def advance(
      number: jax.Array, carry: tuple[TrainState, jax.Array, jax.Array]
    ) -> tuple[TrainState, jax.Array, jax.Array]:
      state, order, total = carry
      epoch, place = number // per_epoch, number % per_epoch
      # All runs begin an epoch together, so that vmap keeps the condition.
      order = jax.lax.cond(place == 0, order_of, lambda _: order, epoch)
      # Rows that do not fill the last batch are left out of this epoch.
      batch = jax.lax.dynamic_slice_in_dim(
        order, place * static.batch_size, static.batch_size
      )
      state, value = step(run, state, batch)
      counted = jnp.where(end - number > per_epoch, 0, value)
      return state, order, total + counted.astype(jnp.float32)

    start = (
      state,
      order_of(first_step // per_epoch),
      jnp.zeros((), jnp.float32),
    )
    state, _, total = jax.lax.fori_loop(first_step, end, advance, start)
    model = nnx.merge(predicting, state.parameters, state.statistics)
    mean = total / jnp.minimum(num_steps, per_epoch).astype(jnp.float32)
    return state, mean, model(_standardized(run, run.held_out))

  return jax.vmap(one_run, in_axes=(0, _PER_RUN))(state, data)


def _row_mean_one(counts: np.ndarray, scheme: Any) -> np.ndarray:
  """Returns class weights whose mean over the rows is 1.

  The gradient then has the same scale as without weights, and the learning
  rate the same meaning.
  """
  weights = np.asarray(reweighting.class_weights(counts, scheme=scheme))
  mean = (weights * counts).sum() / counts.sum()
  return (weights / mean).astype(np.float32)


def run_data(
  settings: Settings, loss: LossSpec, folds: _folds.Folds, seeds: Sequence[int]
) -> tuple[jax.Array, RunData]:
  """Returns the keys of the initial weights of each run, and the rows."""

  def per_run(x: np.ndarray) -> jax.Array:
    return jnp.asarray(np.repeat(x, len(seeds), axis=0))

  # A seed is the same in every fold: one key for weights, one for the order.
  keys = jax.vmap(jax.random.key)(jnp.tile(jnp.asarray(seeds), settings.folds))
  split = jax.vmap(jax.random.split)(keys)
  counts = [
    np.bincount(folds.labels[rows], minlength=folds.num_classes)
    for rows in folds.train
  ]
  bias = weights = None
  if loss.adjustment:
    adjustment = functools.partial(
      reweighting.logit_adjustment, tau=loss.adjustment
    )
    biases = np.stack([adjustment(each) for each in counts])
    bias = per_run(biases.astype(np.float32))
  if settings.class_weights:
    scheme = CLASS_WEIGHTS[settings.class_weights]
    weights = per_run(
      np.stack([_row_mean_one(each, scheme) for each in counts])
    )
  held_out = (folds.validation.rows, folds.test.rows)
  return split[:, 0], RunData(
    jnp.asarray(folds.features),
    jnp.asarray(folds.labels),
    per_run(folds.shift),
    per_run(folds.scale),
    per_run(folds.train),
    per_run(np.concatenate(held_out, axis=1)),
    split[:, 1],
    bias,
    weights,
  )
