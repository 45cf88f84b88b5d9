# SPDX-License-Identifier: Apache-2.0
"""Loss, training step, evaluation and sampling of a language model on a mesh.

A model is given as three functions of its parameters, so this file works with
Flax NNX, Flax Linen and plain JAX.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import optax

import squentropy_jax
from squentropy_jax import calibration, fused, losses, rows

AXES = ("data", "fsdp", "context", "vocab")
# These axes share the sequences of a batch, so that no two devices compute the
# blocks for the same token.
ROWS = ("data", "fsdp", "vocab")
TOKENS = P(ROWS, "context")
FEATURES = P(ROWS, "context", None)
# The embedding is sharded by class and width, a matrix of a block by its rows.
TABLE = P("vocab", "fsdp")
MATRIX = P(("fsdp", "vocab"))
_BINS = 15


class Model(NamedTuple):
  """A language model without its output layer.

  Attributes:
    init: ``init(key) -> params``.
    features: ``features(params, tokens, segments) -> [batch, length, width]``.
    table: ``table(params) -> [vocab, width]``, the embedding, which is also
      the output layer.
  """

  init: Callable[[jax.Array], Any]
  features: Callable[[Any, jax.Array, jax.Array], jax.Array]
  table: Callable[[Any], jax.Array]


class State(NamedTuple):
  """The state of a training, which a checkpoint holds."""

  step: jax.Array
  params: Any
  optimizer: Any


class LossScales(NamedTuple):
  """Scales of the terms that are added to the cross-entropy.

  Attributes:
    z: Scale of the z-loss, the square of the log-normaliser.
    square: Scale of the mean square of the incorrect classes' logits; 1 is
      squentropy.
  """

  z: float = 0.0
  square: float = 0.0


def square_term(stats):
  """The mean square of the incorrect classes' logits."""
  return losses.squentropy.row(stats) - losses.cross_entropy.row(stats)


_METRICS = {
  "cross-entropy": losses.cross_entropy.row,
  "z-loss": rows.z_loss,
  "square term": square_term,
  "accuracy": rows.correct,
}


def training_loss(scales: LossScales) -> Callable:
  """Returns the loss of a token as a row loss."""

  @squentropy_jax.row_loss
  def loss(stats):
    value = losses.squentropy.row(stats, scale=scales.square)
    return value + scales.z * rows.z_loss(stats)

  return loss


def parameter_spec(path: tuple, leaf: jax.Array) -> P:
  """Returns how a parameter and its optimizer state are sharded."""
  if any("embedding" in str(key) for key in path):
    return TABLE if leaf.ndim == 2 else P()
  return MATRIX if leaf.ndim == 2 else P()


def shardings(tree: Any, mesh: Mesh) -> Any:
  """Returns the sharding of every array of a state."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(mesh, parameter_spec(path, leaf)), tree
  )


def stored_logits_sums(
  scales: LossScales,
  features: jax.Array,
  table: jax.Array,
  targets: jax.Array,
) -> tuple:
  """Returns what the fused head returns, from logits that are stored.

  This is what a training without the fused head computes: float32 logits, one
  log-normaliser, and everything else from these two.
  """
  kept = targets >= 0
  logits = (features @ table.astype(features.dtype).T).astype(jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  ids = jnp.where(kept, targets, 0)[..., None]
  target = jnp.take_along_axis(logits, ids, axis=-1)[..., 0]
  others = jnp.square(logits).sum(axis=-1) - jnp.square(target)
  each = {
    "cross-entropy": log_z - target,
    "z-loss": jnp.square(log_z),
    "square term": others / (logits.shape[-1] - 1),
    "accuracy": (target == logits.max(axis=-1)).astype(jnp.float32),
  }
  sums = {name: x.sum(where=kept) for name, x in each.items()}
  loss = (
    sums["cross-entropy"]
    + scales.z * sums["z-loss"]
    + scales.square * sums["square term"]
  )
  return loss, (kept.sum().astype(jnp.float32), sums)


def segments_of(tokens: jax.Array, start: int) -> jax.Array:
  """Numbers the files of a packed sequence, to limit attention to a file."""
  return jnp.cumsum(tokens == start, axis=-1)


class Program:
  """The compiled programs of a training on a mesh."""

  def __init__(
    self,
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    start: int,
    scales: LossScales,
    full_logits: bool = False,
  ):
    """Stores what the programs are compiled for.

    Args:
      model: The model.
      optimizer: The optimizer.
      mesh: A mesh with the axes ``AXES``.
      start: The token with which a file starts.
      scales: The scales of the terms of the loss.
      full_logits: Store the logits, to compare with the fused head.
    """
    self.model = model
    self.mesh = mesh
    self._optimizer = optimizer
    self._start = start
    self._scales = scales
    self._full_logits = full_logits

    def initial(key):
      params = model.init(key)
      return State(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    self.abstract = jax.eval_shape(initial, jax.random.key(0))
    self.sharding = shardings(self.abstract, mesh)
    # Under jit every device makes only its part of the parameters.
    self.initial = jax.jit(initial, out_shardings=self.sharding)
    self.step = jax.jit(
      self._step, donate_argnums=0, out_shardings=(self.sharding, None)
    )
    self.evaluate = jax.jit(self._evaluate)
    self.next_token = jax.jit(self._next_token)

  def _features(self, params: Any, tokens: jax.Array) -> jax.Array:
    segments = segments_of(tokens, self._start)
    # The lookup needs whole rows. From an embedding whose width is sharded,
    # XLA would send the tokens of all devices to every device.
    whole = NamedSharding(self.mesh, P("vocab"))
    params = jax.tree_util.tree_map_with_path(
      lambda path, leaf: (
        jax.lax.with_sharding_constraint(leaf, whole)
        if parameter_spec(path, leaf) == TABLE
        else leaf
      ),
      params,
    )
    features = self.model.features(params, tokens, segments)
    return jax.lax.with_sharding_constraint(
      features, NamedSharding(self.mesh, FEATURES)
    )

  def _sums(self, params: Any, batch: dict[str, jax.Array]) -> tuple:
    """Returns sums over the tokens, which a step adds up and divides once."""
    features = self._features(params, batch["inputs"])
    targets = batch["targets"]
    table = self.model.table(params)
    if self._full_logits:
      return stored_logits_sums(self._scales, features, table, targets)
    sums = fused.linear_loss_sum(
      training_loss(self._scales),
      features,
      table,
      targets,
      class_axis=0,
      where=targets >= 0,
      metrics=_METRICS,
      compute_dtype=features.dtype,
      mesh=self.mesh,
      features_spec=FEATURES,
      kernel_spec=TABLE,
    )
    return sums.loss, (sums.weight, sums.metrics)

  def gradients(self, params: Any, batch: dict[str, jax.Array]) -> tuple:
    """Returns the mean loss and metrics of all tokens, and the gradient.

    Args:
      params: The parameters.
      batch: ``inputs`` and ``targets`` of shape ``[micro-batches, rows,
        length]``. The gradients of the micro-batches are added up, and divided
        once by the number of all tokens.
    """
    grad = jax.value_and_grad(self._sums, has_aux=True)

    def add(total, micro):
      return jax.tree.map(jnp.add, total, grad(params, micro)), None

    first = jax.tree.map(lambda x: x[0], batch)
    shapes = jax.eval_shape(grad, params, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    ((loss, (count, metrics)), gradient), _ = jax.lax.scan(add, zeros, batch)
    mean = functools.partial(jax.tree.map, lambda x: x / count)
    return mean(loss), mean(metrics), mean(gradient)

  def _step(self, state: State, batch: dict[str, jax.Array]) -> tuple:
    loss, metrics, gradient = self.gradients(state.params, batch)
    # Adam raises a float to its integer count of steps.
    with jax.numpy_dtype_promotion("standard"):
      updates, memory = self._optimizer.update(
        gradient, state.optimizer, state.params
      )
    params = optax.apply_updates(state.params, updates)
    metrics = {
      "loss": loss,
      **metrics,
      "gradient norm": optax.tree.norm(gradient),
    }
    return State(state.step + 1, params, memory), metrics

  def _evaluate(self, params: Any, batch: dict[str, jax.Array]) -> tuple:
    """Returns sums over a batch ``[rows, length]``, and bins of confidence."""
    kept = batch["targets"] >= 0
    found = fused.linear_confidence(
      self._features(params, batch["inputs"]),
      self.model.table(params),
      batch["targets"],
      class_axis=0,
      where=kept,
      mesh=self.mesh,
      features_spec=FEATURES,
      kernel_spec=TABLE,
    )
    nll = -jnp.where(kept, found.log_prob, 0).sum()
    right = jnp.where(kept, found.correct, False).sum()
    bins = calibration.bin_stats_from_confidence(
      found.confidence, found.correct, num_bins=_BINS, where=kept
    )
    return nll, right, kept.sum(), bins

  def _next_token(
    self, params: Any, tokens: jax.Array, position: jax.Array, key: jax.Array
  ) -> jax.Array:
    """Samples the token after a position of each row from the model."""
    features = self._features(params, tokens)
    last = features[:, position].astype(jnp.float32)
    return jax.random.categorical(key, last @ self.model.table(params).T)
