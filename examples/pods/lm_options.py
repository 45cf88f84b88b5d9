# SPDX-License-Identifier: Apache-2.0
"""The options of a training, and how they are checked and stored."""

import argparse
import json
import pathlib
from typing import Any

import corpus
from etils import epath
import jax

# Options that a training may change when it continues: they change neither the
# model nor the data nor the rate of any step.
_FREE = {
  "out",
  "data",
  "text",
  "micro_batches",
  "full_logits",
  "evaluate_every",
  "evaluation_batches",
  "mesh",
  "cpu_devices",
  "coordinator",
  "processes",
  "process",
  "distributed",
}


class OptionsError(ValueError):
  """Options that do not fit. Starting again with them cannot help."""


def _count(text: str) -> int:
  """Reads a number of things, of which there must be at least one."""
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(
      f"must be an integer of at least 1, got {text!r}"
    )
  return int(text)


def _folder(text: str) -> epath.Path:
  """Reads a folder or an address such as gs://BUCKET/RUN."""
  # orbax needs an absolute path. epath would take an address for a local path.
  return epath.Path(text if "://" in text else pathlib.Path(text).absolute())


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  found = argparse.ArgumentParser(
    formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  add = found.add_argument
  add(
    "--out",
    type=_folder,
    default="reports/lm",
    help="folder for checkpoints and metrics.csv; a run that was interrupted "
    "continues from it; all processes must see the same folder; for "
    "gs://BUCKET/RUN, install the package gcsfs",
  )
  add(
    "--data",
    type=pathlib.Path,
    default="data/lm",
    help="folder for the tokenizer and the tokens, which are made once",
  )
  add(
    "--text",
    default=corpus.STDLIB,
    help="text to train on: stdlib (the source of Python's standard library), "
    "a text file, or a folder with .txt files",
  )
  add("--vocab", type=_count, default=8192, help="number of different tokens")
  add(
    "--width",
    type=_count,
    default=128,
    help="numbers in the vector of a token, a multiple of twice --heads",
  )
  add("--layers", type=_count, default=2, help="number of transformer blocks")
  add("--heads", type=_count, default=4, help="attention heads of a block")
  add("--length", type=_count, default=256, help="tokens of a sequence")
  add("--batch", type=_count, default=16, help="sequences of a training step")
  add(
    "--micro-batches",
    type=_count,
    default=1,
    help="parts into which a batch is divided to save memory; a step adds up "
    "their gradients",
  )
  add("--steps", type=_count, default=1000, help="training steps in total")
  add(
    "--warm-up",
    type=int,
    default=50,
    help="steps in which the learning rate rises from 0",
  )
  add(
    "--learning-rate",
    type=float,
    default=3e-3,
    help="the largest learning rate of AdamW; it falls to a tenth at the end",
  )
  add("--weight-decay", type=float, default=0.1, help="weight decay of AdamW")
  add(
    "--z-loss",
    type=float,
    default=1e-4,
    help="scale of the squared log-normaliser in the loss; 0 turns it off",
  )
  add(
    "--square",
    type=float,
    default=0.0,
    help="scale of the mean square of the incorrect classes' logits in the "
    "loss; 1 is squentropy, 0 is cross-entropy",
  )
  add(
    "--dtype",
    choices=("bfloat16", "float32"),
    default="bfloat16",
    help="type of the computation; parameters are always float32",
  )
  add(
    "--full-logits",
    action="store_true",
    help="store all logits instead of using the fused head, to compare the two",
  )
  add(
    "--seed",
    type=int,
    default=0,
    help="seed of the initial parameters and of the order of the sequences",
  )
  add(
    "--evaluate-every",
    type=_count,
    default=100,
    help="steps between evaluations; each one writes metrics and a checkpoint",
  )
  add(
    "--evaluation-batches",
    type=_count,
    default=8,
    help="largest number of batches of the validation text in an evaluation",
  )
  add(
    "--mesh",
    default="",
    help="sizes of the mesh axes data, fsdp, context and vocab, such as "
    "data=2,vocab=2; by default, data is the number of devices",
  )
  add(
    "--cpu-devices",
    type=_count,
    help="train on this number of simulated CPU devices in each process",
  )
  add(
    "--coordinator",
    help="HOST:PORT of the first process; not needed on a pod or with Slurm",
  )
  add(
    "--processes", type=_count, help="number of processes, with --coordinator"
  )
  add("--process", type=int, help="number of this process, with --coordinator")
  add(
    "--distributed",
    action="store_true",
    help="connect the processes of a cluster, which JAX detects",
  )
  return found


def check(arguments: argparse.Namespace, mesh: jax.sharding.Mesh) -> None:
  """Raises OptionsError if sizes do not fit each other or the mesh."""
  axes = mesh.shape
  rows = axes["data"] * axes["fsdp"] * axes["vocab"]
  parts = axes["fsdp"] * axes["vocab"]
  micro = arguments.micro_batches
  for name, divisor, reason in (
    (
      "batch",
      micro * rows,
      f"--micro-batches {micro} x {rows} devices of the "
      "axes data, fsdp and vocab of --mesh",
    ),
    ("length", axes["context"], "context of --mesh"),
    ("vocab", axes["vocab"], "vocab of --mesh"),
    ("width", parts, "fsdp x vocab of --mesh"),
    (
      "width",
      2 * arguments.heads,
      "2 x --heads, because rotary positions need an even size of each head",
    ),
  ):
    value = getattr(arguments, name)
    if value % divisor:
      raise OptionsError(
        f"--{name} must be a multiple of {divisor} ({reason}), got {value}; "
        f"change --{name}, or what it must be a multiple of"
      )


def compare(arguments: argparse.Namespace, model: str, digest: str) -> dict:
  """Checks that the options are those of the training in ``--out``.

  Args:
    arguments: The options of this run.
    model: Which model the script trains.
    digest: Hash of the text.

  Returns:
    The options to store, for :func:`store`.

  Raises:
    OptionsError: If the training that is stored there has other options.
  """
  ours: dict[str, Any] = {
    name: value for name, value in vars(arguments).items() if name not in _FREE
  }
  # Another folder may hold the same text, and the same folder another text.
  ours |= {"model": model, "text": digest}
  path = arguments.out / "options.json"
  if not path.exists():
    return ours
  theirs = json.loads(path.read_text())
  different = [
    f"{name.replace('_', '-')} is {theirs.get(name)} there and {value} here"
    for name, value in ours.items()
    # A learning rate of NaN differs from itself.
    if str(theirs.get(name)) != str(value)
  ]
  if different:
    raise OptionsError(
      f"--out {arguments.out} holds a training with other options: "
      f"{', '.join(different)}; pass another --out, or the options of that "
      "training"
    )
  return ours


def store(arguments: argparse.Namespace, options: dict) -> None:
  """Writes the options next to the checkpoints."""
  arguments.out.mkdir(parents=True, exist_ok=True)
  partial = arguments.out / "options.json.part"
  partial.write_text(json.dumps(options, indent=2) + "\n")
  partial.replace(arguments.out / "options.json")
