# SPDX-License-Identifier: Apache-2.0
"""Trains a language model: options, mesh, data, checkpoints and metrics."""

import argparse
from collections.abc import Callable
from concurrent import futures
import csv
import math
import pathlib
import time
from typing import Any

import corpus
from decoder import Sizes
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import lm_step
import numpy as np
import optax
import orbax.checkpoint as orbax
from rich import progress

from squentropy_jax import calibration

_SAMPLE_TOKENS = 64


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  add = parser.add_argument
  add("--out", type=pathlib.Path, default="reports/lm", help="results")
  add("--data", type=pathlib.Path, default="data/lm", help="prepared text")
  add("--text", default=corpus.STDLIB, help="stdlib, a file or a folder")
  add("--vocab", type=int, default=8192, help="size of the vocabulary")
  add("--width", type=int, default=128)
  add("--layers", type=int, default=2)
  add("--heads", type=int, default=4)
  add("--length", type=int, default=256, help="tokens of a sequence")
  add("--batch", type=int, default=16, help="sequences of a step")
  add("--micro-batches", type=int, default=1, help="parts of a batch")
  add("--steps", type=int, default=1000)
  add("--warm-up", type=int, default=50, help="steps")
  add("--learning-rate", type=float, default=3e-3)
  add("--weight-decay", type=float, default=0.1)
  add("--z-loss", type=float, default=1e-4, help="scale of the z-loss")
  add("--square", type=float, default=0.0, help="scale of the square term")
  add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
  add("--full-logits", action="store_true", help="store the logits")
  add("--seed", type=int, default=0)
  add(
    "--evaluate-every", type=int, default=100, help="steps between checkpoints"
  )
  add("--evaluation-batches", type=int, default=8)
  add("--mesh", default="", help="such as data=2,vocab=2; by default data only")
  add("--cpu-devices", type=int, help="CPU devices of a process")
  add("--coordinator", help="host:port; not needed on a pod or with Slurm")
  add("--processes", type=int)
  add("--process", type=int)
  add("--distributed", action="store_true", help="on a pod or with Slurm")
  return parser


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
    ValueError: If an axis is unknown or the sizes do not fit the devices.
  """
  devices = jax.device_count()
  sizes = dict.fromkeys(lm_step.AXES, 1)
  for item in filter(None, text.split(",")):
    axis, _, size = item.partition("=")
    if axis not in sizes or not size.isdigit() or int(size) < 1:
      raise ValueError(
        f"mesh must name sizes of {', '.join(lm_step.AXES)}, such as "
        f"data=2,vocab=2; got {item!r}"
      )
    sizes[axis] = int(size)
  if not text:
    sizes["data"] = devices
  if math.prod(sizes.values()) != devices:
    raise ValueError(
      f"the product of the mesh sizes must be {devices}, the number of devices "
      f"of all processes, got {sizes}; change --mesh, or --cpu-devices on a CPU"
    )
  types = (AxisType.Auto,) * len(sizes)
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types)


def _check(arguments: argparse.Namespace, mesh: jax.sharding.Mesh) -> None:
  rows = arguments.batch // arguments.micro_batches
  over = mesh.shape["data"] * mesh.shape["fsdp"]
  if arguments.batch % arguments.micro_batches or rows % over:
    raise ValueError(
      f"batch must be a multiple of {arguments.micro_batches} (micro-batches) "
      f"x {over} (data x fsdp of the mesh), got {arguments.batch}"
    )
  if arguments.length % mesh.shape["context"]:
    raise ValueError(
      f"length must be a multiple of context={mesh.shape['context']} of the "
      f"mesh, got {arguments.length}"
    )
  if arguments.vocab % mesh.shape["vocab"]:
    raise ValueError(
      f"vocab must be a multiple of vocab={mesh.shape['vocab']} of the mesh, "
      f"got {arguments.vocab}"
    )


class Batches:
  """Batches of a data set as arrays on the mesh, which are read ahead.

  Every process reads only the sequences of its devices, one step ahead.
  """

  def __init__(self, dataset: Any, shape: tuple[int, ...], mesh: Any):
    """Stores the data set, the shape ``[micro-batches, rows, length]``."""
    self._dataset = dataset
    self._shape = shape
    self._sharding = NamedSharding(mesh, P(None, *lm_step.TOKENS))
    self._reader = futures.ThreadPoolExecutor(1)
    self._next: dict[int, futures.Future] = {}

  def _read(self, step: int) -> dict[str, jax.Array]:
    micro, rows, _ = self._shape
    first = step * micro * rows

    def part(name: str) -> Callable:
      def read(index: tuple[slice, ...]) -> np.ndarray:
        numbers = np.arange(micro * rows).reshape(micro, rows)[index[:2]]
        read = [self._dataset[first + int(k)][name] for k in numbers.flat]
        return np.reshape(read, (*numbers.shape, -1))[..., index[2]]

      return read

    return {
      name: jax.make_array_from_callback(
        self._shape, self._sharding, part(name)
      )
      for name in ("inputs", "targets")
    }

  def __getitem__(self, step: int) -> dict[str, jax.Array]:
    ready = self._next.pop(step, None) or self._reader.submit(self._read, step)
    self._next = {step + 1: self._reader.submit(self._read, step + 1)}
    return ready.result()


class Metrics:
  """Writes rows of ``metrics.csv``, in the first process only."""

  def __init__(self, path: pathlib.Path, step: int):
    """Removes the rows after the step from which the training continues."""
    self._path = path
    self._writes = jax.process_index() == 0
    if self._writes:
      path.parent.mkdir(parents=True, exist_ok=True)
      kept = []
      if path.exists():
        with path.open(newline="") as file:
          kept = [row for row in csv.reader(file) if row]
        kept = kept[:1] + [row for row in kept[1:] if int(row[0]) <= step]
      with path.open("w", newline="") as file:
        csv.writer(file).writerows(kept)
      self._empty = not kept

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds a row."""
    if self._writes:
      with self._path.open("a", newline="") as file:
        writer = csv.writer(file)
        if self._empty:
          writer.writerow(["step", *values])
          self._empty = False
        writer.writerow([step, *(f"{x:.9g}" for x in values.values())])


def _evaluate(
  program: lm_step.Program, params: Any, batches: Batches, number: int
) -> dict[str, float]:
  """Computes the metrics of the validation text."""
  sums = None
  for step in range(number):
    batch = {k: x[0] for k, x in batches[step].items()}
    found = program.evaluate(params, batch)
    sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
  nll, right, count, bins = sums
  nll = float(nll) / float(count)
  return {
    "validation nll": nll,
    "perplexity": math.exp(nll),
    "validation accuracy": float(right) / float(count),
    "ece": float(calibration.expected_calibration_error(bins)),
  }


def _sample(
  program: lm_step.Program, params: Any, text: corpus.Corpus, length: int
) -> str:
  """Returns a text that is sampled from the model."""
  rows = program.mesh.shape["data"] * program.mesh.shape["fsdp"]
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
  arguments = _parser().parse_args(words)
  _connect(arguments)
  mesh = make_mesh(arguments.mesh)
  _check(arguments, mesh)
  source = (arguments.data, arguments.text, arguments.vocab)
  if jax.process_index() == 0:
    corpus.prepare(*source)
  multihost_utils.sync_global_devices("the text is prepared")
  text = corpus.load(*source)
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
  training = Batches(
    corpus.shuffled(text.train, arguments.length, arguments.seed),
    (arguments.micro_batches, rows, arguments.length),
    mesh,
  )
  validation = Batches(
    corpus.shuffled(text.validation, arguments.length, 0),
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
  training: Batches,
  validation: Batches,
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
  folder = (arguments.out / "checkpoints").absolute()
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
    metrics = Metrics(arguments.out / "metrics.csv", first)
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
        if done % arguments.evaluate_every == 0 or done == arguments.steps:
          values = {name: float(x) for name, x in found.items()}
          seconds = time.monotonic() - began
          speed = (done - since) * tokens / max(seconds, 1e-9)
          values |= {"tokens per second": speed}
          values |= _evaluate(
            program, state.params, validation, arguments.evaluation_batches
          )
          metrics.write(done, values)
          bar.update(task, loss=values["validation nll"], speed=speed)
          manager.save(
            done,
            args=orbax.args.StandardSave(state),
            metrics={"validation nll": values["validation nll"]},
          )
          began, since = time.monotonic(), done
        bar.update(task, completed=done)
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
