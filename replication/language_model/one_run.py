# SPDX-License-Identifier: Apache-2.0
"""Trains one model of the grid, and returns its row of results."""

from collections.abc import Callable
import functools
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from replication.language_model import glosses, grid, measures, transformer
import squentropy_jax
from squentropy_jax import fused, losses, rows

# Measures that are taken before the cooldown too.
PLATEAU = ("nll", "mean_logit", "std_logit", "max_abs_logit", "log_z") + (
  "head_norm",
  "mean_row_norm",
  "final_norm",
)
COLUMNS = (
  (*grid.Run._fields, "steps", "initial_nll", "diverged", "nll", "accuracy")
  + ("ece", "temperature", "nll_scaled", "ece_scaled", "mean_logit")
  + ("std_logit", "max_abs_logit", "log_z", "head_norm", "mean_row_norm")
  + ("final_norm", *(f"plateau_{name}" for name in PLATEAU))
  + ("step_seconds", "cpu_seconds", "code")
)


def token_loss(scales: grid.Scales) -> Callable:
  """Returns the loss of a token.

  Args:
    scales: The scales of the terms. Terms of scale 0 are not computed, so that
      the time of a step is that of the loss.

  Returns:
    A row loss.
  """

  @squentropy_jax.row_loss
  def loss(stats: squentropy_jax.RowStats) -> jax.Array:
    value = losses.cross_entropy.row(stats)
    if scales.square:
      value = losses.squentropy.row(stats, scale=scales.square)
    if scales.z:
      value += scales.z * rows.z_loss(stats)
    if scales.mean:
      mean = (stats.rest_sum + stats.target) / stats.num_classes
      value += scales.mean * mean**2
    return value

  return loss


def _is_matrix(params: Any) -> Any:
  return jax.tree.map(lambda x: x.ndim == 2, params)


_OPTIMIZER = optax.chain(
  optax.clip_by_global_norm(1.0),
  optax.scale_by_adam(b1=0.9, b2=0.95),
  optax.add_decayed_weights(0.1, mask=_is_matrix),
)


class _Programs(NamedTuple):
  """The compiled programs of a loss."""

  initial: Callable[[jax.Array], tuple]
  steps: Callable[[tuple, jax.Array, jax.Array], tuple]
  measure: Callable[[transformer.Params, jax.Array], dict[str, jax.Array]]


@functools.cache
def _shared(vocab: int, setup: grid.Setup) -> tuple[Callable, Callable]:
  """Compiles what all losses have in common."""

  @jax.jit
  def initial(key: jax.Array) -> tuple:
    params = transformer.init(key, vocab, setup)
    return params, _OPTIMIZER.init(params)

  blocks = (setup.blocks + 1, setup.block, setup.length + 1)
  params, _ = jax.eval_shape(initial, jax.random.key(0))
  text = jax.ShapeDtypeStruct(blocks, jnp.int32)
  measure = jax.jit(functools.partial(measures.measure, setup=setup))
  return initial, measure.lower(params, text).compile()


@functools.cache
def _programs(vocab: int, loss: str, setup: grid.Setup) -> _Programs:
  """Compiles the programs of a loss, once in a process."""
  row_loss = token_loss(grid.LOSSES[loss])

  def objective(params: transformer.Params, tokens: jax.Array) -> jax.Array:
    sums = fused.linear_loss_sum(
      row_loss,
      transformer.features(params, tokens[:, :-1], setup.heads),
      params["head"],
      tokens[:, 1:],
      class_axis=0,
    )
    return sums.loss / sums.weight

  def step(state: tuple, inputs: tuple[jax.Array, jax.Array]) -> tuple:
    params, memory = state
    tokens, rate = inputs
    gradient = jax.grad(objective)(params, tokens)
    # Adam raises a float to its integer count of steps.
    with jax.numpy_dtype_promotion("standard"):
      updates, memory = _OPTIMIZER.update(gradient, memory, params)
    params = jax.tree.map(lambda x, y: x - rate * y, params, updates)
    return (params, memory), None

  def steps(state: tuple, tokens: jax.Array, rates: jax.Array) -> tuple:
    return jax.lax.scan(step, state, (tokens, rates))[0]

  initial, measure = _shared(vocab, setup)
  number = (setup.cooldown, setup.batch, setup.length + 1)
  compiled = (
    jax.jit(steps, donate_argnums=0)
    .lower(
      jax.eval_shape(initial, jax.random.key(0)),
      jax.ShapeDtypeStruct(number, jnp.int32),
      jax.ShapeDtypeStruct(number[:1], jnp.float32),
    )
    .compile()
  )
  return _Programs(initial, compiled, measure)


@functools.cache
def _text(path: pathlib.Path, setup: grid.Setup) -> tuple[np.ndarray, ...]:
  """Returns the sequences to train on, and the blocks to evaluate on."""
  tokens = glosses.load(path)
  train = glosses.sequences(tokens.train, setup.length)
  validation = glosses.sequences(tokens.validation, setup.length)
  wanted = (setup.blocks + 1) * setup.block
  for name, found, needed in (
    ("training", len(train), setup.steps * setup.batch),
    ("evaluation", len(validation), wanted),
  ):
    if found < needed:
      raise ValueError(
        f"the {name} text must have {needed} sequences of {setup.length} "
        f"tokens, got {found}; use a larger text or fewer steps."
      )
  order = np.random.default_rng(0).permutation(len(validation))[:wanted]
  shape = (setup.blocks + 1, setup.block, setup.length + 1)
  return train, validation[order].reshape(shape)


@functools.cache
def _initial_nll(
  vocab: int, seed: int, setup: grid.Setup, path: pathlib.Path
) -> float:
  initial, measure = _shared(vocab, setup)
  params, _ = initial(jax.random.key(seed))
  return float(measure(params, jnp.asarray(_text(path, setup)[1]))["nll"])


def train(run: grid.Run, setup: grid.Setup, path: pathlib.Path) -> dict:
  """Trains a model and measures it before and after the cooldown.

  Args:
    run: The loss, the learning rate, the seed and the number of classes.
    setup: The sizes of the model and of the training.
    path: The tokens of :func:`glosses.prepare`.

  Returns:
    The row of results, with the names in ``COLUMNS``.

  Raises:
    ValueError: If the number of steps is no multiple of the cooldown, or the
      text is too small.
  """
  if setup.steps % setup.cooldown:
    raise ValueError(
      f"steps must be a multiple of cooldown={setup.cooldown}, got "
      f"{setup.steps}."
    )
  began = time.process_time()
  programs = _programs(run.vocab, run.loss, setup)
  sequences, blocks = _text(path, setup)
  evaluation = jnp.asarray(blocks)
  order = np.random.default_rng(run.seed).permutation(len(sequences))
  relative = [grid.rate_at(step, setup) for step in range(setup.steps)]
  rates = np.asarray(relative, np.float32) * np.float32(run.learning_rate)
  state = programs.initial(jax.random.key(run.seed))
  plateau: dict[str, float] = {}
  trained = 0.0
  for first in range(0, setup.steps, setup.cooldown):
    if first == setup.steps - setup.cooldown:
      plateau = _numbers(programs.measure(state[0], evaluation))
    chosen = order[first * setup.batch :][: setup.cooldown * setup.batch]
    tokens = sequences[chosen].reshape(setup.cooldown, setup.batch, -1)
    inputs = map(jnp.asarray, (tokens, rates[first : first + setup.cooldown]))
    before = time.process_time()
    state = jax.block_until_ready(programs.steps(state, *inputs))
    trained += time.process_time() - before
  found = _numbers(programs.measure(state[0], evaluation))
  start = _initial_nll(run.vocab, run.seed, setup, path)
  row = {
    **run._asdict(),
    "steps": setup.steps,
    "initial_nll": start,
    "diverged": not (math.isfinite(found["nll"]) and found["nll"] < start),
    **found,
    **{f"plateau_{name}": plateau[name] for name in PLATEAU},
    "step_seconds": trained / setup.steps,
    "cpu_seconds": time.process_time() - began,
    "code": f"squentropy_jax {squentropy_jax.__version__}",
  }
  return {name: row[name] for name in COLUMNS}


def _numbers(found: dict[str, jax.Array]) -> dict[str, float]:
  return {name: float(value) for name, value in found.items()}
