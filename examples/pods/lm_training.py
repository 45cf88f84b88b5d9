# SPDX-License-Identifier: Apache-2.0
"""Trains a language model: mesh, batches, checkpoints and metrics."""

import argparse
from collections.abc import Callable
import math
import signal
import sys
import time
from typing import Any

import corpus
from decoder import Sizes
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import AxisType
import lm_io
import lm_options
import lm_step
import numpy as np
import optax
import orbax.checkpoint as orbax
from rich import progress

from squentropy_jax import calibration

_SAMPLE_TOKENS = 64
# The exit code of argparse for invalid options. A script that ends with it
# would end in the same way if it were started again.
_USELESS_TO_REPEAT = 2


class DivergedError(RuntimeError):
  """The loss is NaN. Continuing from the last checkpoint cannot help."""


def _connect(arguments: argparse.Namespace) -> None:
  """Connects the processes, before anything touches a device."""
  if arguments.cpu_devices:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", arguments.cpu_devices)
  if arguments.coordinator:
    # This setting has no effect on devices other than CPUs.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
      arguments.coordinator, arguments.processes, arguments.process
    )
  elif arguments.distributed:
    jax.distributed.initialize()


def make_mesh(text: str) -> jax.sharding.Mesh:
  """Returns a mesh of ``lm_step.AXES`` from a text such as data=2,vocab=2.

  Args:
    text: Sizes of axes. An axis that is not named has size 1. An empty text
      sets ``data`` to the number of devices.

  Raises:
    OptionsError: If an axis is unknown or the sizes do not fit the devices.
  """
  devices = jax.device_count()
  sizes = dict.fromkeys(lm_step.AXES, 1)
  for item in filter(None, text.split(",")):
    axis, _, size = item.partition("=")
    if axis not in sizes or not size.isdigit() or int(size) < 1:
      raise lm_options.OptionsError(
        f"mesh must name sizes of {', '.join(lm_step.AXES)}, such as "
        f"data=2,vocab=2; got {item!r}"
      )
    sizes[axis] = int(size)
  if not text:
    sizes["data"] = devices
  if math.prod(sizes.values()) != devices:
    raise lm_options.OptionsError(
      f"the product of the mesh sizes must be {devices}, the number of devices "
      f"of all processes, got {sizes}; change --mesh, or --cpu-devices on a CPU"
    )
  types = (AxisType.Auto,) * len(sizes)
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types)


def _evaluate(
  program: lm_step.Program, params: Any, batches: lm_io.Batches, number: int
) -> dict[str, float]:
  """Computes the metrics of at most ``number`` batches of validation text."""
  sums = None
  for step in range(min(number, batches.number)):
    batch = {k: x[0] for k, x in batches[step].items()}
    found = program.evaluate(params, batch)
    sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
  nll, right, count, bins = sums
  nll = float(nll) / float(count)
  # NumPy gives inf where math.exp raises OverflowError.
  with np.errstate(over="ignore"):
    perplexity = float(np.exp(nll))
  return {
    "validation nll": nll,
    "perplexity": perplexity,
    "validation accuracy": float(right) / float(count),
    "ece": float(calibration.expected_calibration_error(bins)),
  }


def _sample(
  program: lm_step.Program, params: Any, text: corpus.Corpus, length: int
) -> str:
  """Returns a text that is sampled from the model."""
  rows = math.prod(program.mesh.shape[axis] for axis in lm_step.ROWS)
  tokens = np.zeros((rows, length), np.int32)
  tokens[:, 0] = text.tokenizer.token_to_id(corpus.START)
  key = jax.random.key(0)
  for position in range(min(_SAMPLE_TOKENS, length - 1)):
    drawn = program.next_token(
      params, tokens, position, jax.random.fold_in(key, position)
    )
    drawn = multihost_utils.process_allgather(drawn, tiled=True)
    tokens[:, position + 1] = drawn
  return text.tokenizer.decode(tokens[0].tolist())


def _optimizer(arguments: argparse.Namespace) -> optax.GradientTransformation:
  rate = optax.warmup_cosine_decay_schedule(
    0.0,
    arguments.learning_rate,
    min(arguments.warm_up, arguments.steps - 1),
    arguments.steps,
    arguments.learning_rate / 10,
  )
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(rate, weight_decay=arguments.weight_decay),
  )


def main(
  build: Callable[[Sizes, Any], lm_step.Model], words: list[str] | None = None
) -> None:
  """Trains a model.

  Args:
    build: Returns the model for given sizes and compute dtype.
    words: The arguments of the command line; None reads ``sys.argv``.
  """
  arguments = lm_options.parser().parse_args(words)
  try:
    _connect(arguments)
    _run(arguments, build)
  except (lm_options.OptionsError, DivergedError) as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(_USELESS_TO_REPEAT)


def _run(
  arguments: argparse.Namespace, build: Callable[[Sizes, Any], lm_step.Model]
) -> None:
  """Prepares mesh, data and programs, and trains."""
  mesh = make_mesh(arguments.mesh)
  lm_options.check(arguments, mesh)
  source = (arguments.data, arguments.text, arguments.vocab)
  if jax.process_index() == 0:
    try:
      corpus.prepare(*source)
    except ValueError as error:
      raise lm_options.OptionsError(error) from error
  multihost_utils.sync_global_devices("the text is prepared")
  text = corpus.load(*source)
  multihost_utils.assert_equal(
    np.frombuffer(bytes.fromhex(text.digest), np.uint8),
    "--data must hold the same tokens on every host; prepare the text once and "
    "copy the folder",
  )
  options = lm_options.compare(arguments, build.__name__, text.digest)
  multihost_utils.sync_global_devices("the options are compared")
  if jax.process_index() == 0:
    lm_options.store(arguments, options)
  sizes = Sizes(
    arguments.vocab, arguments.width, arguments.layers, arguments.heads
  )
  program = lm_step.Program(
    build(sizes, jnp.dtype(arguments.dtype)),
    _optimizer(arguments),
    mesh,
    start=text.tokenizer.token_to_id(corpus.START),
    scales=lm_step.LossScales(arguments.z_loss, arguments.square),
    full_logits=arguments.full_logits,
  )
  rows = arguments.batch // arguments.micro_batches
  training = lm_io.Batches(
    corpus.shuffled(text.train, arguments.length, arguments.seed).repeat(),
    (arguments.micro_batches, rows, arguments.length),
    mesh,
  )
  validation = lm_io.Batches(
    corpus.Padded(corpus.shuffled(text.validation, arguments.length, 0)),
    (1, arguments.batch, arguments.length),
    mesh,
  )
  _train(arguments, program, training, validation, text)


def _score(metrics: dict[str, float]) -> float:
  """Returns a number that is larger for a better checkpoint."""
  return -metrics["validation nll"]


def _train(
  arguments: argparse.Namespace,
  program: lm_step.Program,
  training: lm_io.Batches,
  validation: lm_io.Batches,
  text: corpus.Corpus,
) -> None:
  """Trains from the last checkpoint to the last step."""
  policies = orbax.checkpoint_managers
  options = orbax.CheckpointManagerOptions(
    best_fn=_score,
    preservation_policy=policies.AnyPreservationPolicy(
      [policies.LatestN(1), policies.BestN(get_metric_fn=_score, n=1)]
    ),
  )
  folder = arguments.out / "checkpoints"
  with orbax.CheckpointManager(folder, options=options) as manager:
    latest = manager.latest_step()
    if latest is None:
      state = program.initial(jax.random.key(arguments.seed))
    else:
      like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        program.abstract,
        program.sharding,
      )
      state = manager.restore(latest, args=orbax.args.StandardRestore(like))
    first = int(state.step)
    if first >= arguments.steps and jax.process_index() == 0:
      print(
        f"--out {arguments.out} holds this training, which is finished after "
        f"{first} steps; this is its result. Pass another --out to train again."
      )
    elif first and jax.process_index() == 0:
      print(f"Continues after step {first} of --out {arguments.out}.")
    metrics = lm_io.Metrics(arguments.out / "metrics.csv", first)
    tokens = arguments.batch * arguments.length
    with _bar() as bar:
      task = bar.add_task(
        "", total=arguments.steps, completed=first, loss=math.nan, speed=0
      )
      began, since = time.monotonic(), first
      for step in range(first, arguments.steps):
        state, found = program.step(state, training[step])
        done = step + 1
        if step == first:
          # The first step compiles.
          jax.block_until_ready(found)
          began, since = time.monotonic(), done
        # After SIGTERM to any process, JAX chooses one step for all of them.
        stops = manager.reached_preemption(done)
        last = stops or done == arguments.steps
        if last or done % arguments.evaluate_every == 0:
          values = {name: float(x) for name, x in found.items()}
          seconds = time.monotonic() - began
          speed = (done - since) * tokens / max(seconds, 1e-9)
          values |= {"tokens per second": speed}
          values |= _evaluate(
            program, state.params, validation, arguments.evaluation_batches
          )
          metrics.write(done, values)
          if math.isnan(values["loss"] + values["validation nll"]):
            raise DivergedError(
              f"the loss is NaN after step {done}: the training diverged; pass "
              "a smaller --learning-rate or a longer --warm-up, and another "
              "--out"
            )
          bar.update(task, loss=values["validation nll"], speed=speed)
          manager.save(
            done,
            args=orbax.args.StandardSave(state),
            metrics={"validation nll": values["validation nll"]},
          )
          began, since = time.monotonic(), done
        bar.update(task, completed=done)
        if stops:
          manager.wait_until_finished()
          print(f"Stops after step {done}, because of SIGTERM.", flush=True)
          sys.exit(128 + signal.SIGTERM)
    manager.wait_until_finished()
  values = _evaluate(
    program, state.params, validation, arguments.evaluation_batches
  )
  written = _sample(program, state.params, text, arguments.length)
  if jax.process_index() == 0:
    print(", ".join(f"{name} {x:.4g}" for name, x in values.items()))
    print(written)


def _bar() -> progress.Progress:
  """Returns a progress bar; only the first process shows it."""
  return progress.Progress(
    progress.TextColumn("step"),
    progress.MofNCompleteColumn(),
    progress.BarColumn(),
    progress.TextColumn("validation NLL {task.fields[loss]:.3f}"),
    progress.TextColumn("{task.fields[speed]:.0f} tokens/s"),
    progress.TimeRemainingColumn(),
    disable=jax.process_index() != 0,
  )
