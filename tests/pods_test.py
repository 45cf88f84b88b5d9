# SPDX-License-Identifier: Apache-2.0
"""The training of examples/pods: meshes, frameworks, processes that die."""

import csv
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import source

ROOT = source.ROOT
PODS = ROOT / "examples" / "pods"
SECONDS = 240
# A tiny model: two checkpoints before the end.
OPTIONS = [
  "--vocab=512",
  "--width=32",
  "--layers=1",
  "--heads=2",
  "--length=32",
  "--batch=8",
  "--steps=9",
  "--warm-up=2",
  "--evaluate-every=3",
  "--evaluation-batches=1",
  "--dtype=float32",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  """A folder with a small text: the documentation of this project."""
  folder = tmp_path_factory.mktemp("text")
  for path in sorted((ROOT / "docs").glob("*.md")):
    (folder / f"{path.stem}.txt").write_text(path.read_text())
  return folder


def command(script, text, out, *options):
  data = [f"--text={text}", f"--data={text}", f"--out={out}"]
  return [sys.executable, PODS / script, *OPTIONS, *data, *options]


def commands_of_the_page(text, out, *options):
  """Those of docs/pods.md for a CPU: the last of two equal options counts."""
  page = (ROOT / "docs" / "pods.md").read_text().replace("\\\n", "")
  blocks = re.findall(r"^```\n(.*?)^```", page, re.M | re.S)
  found = [x for x in map(shlex.split, blocks) if "--cpu-devices" in x]
  smaller = command("", text, out, *options)[2:]
  return [[sys.executable, *words[1:], *smaller] for words in found]


def environment():
  kept = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
  return kept | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}


def metrics(out):
  """The rows of metrics.csv without the speed."""
  with (out / "metrics.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  for row in rows:
    del row["tokens per second"]
  return rows


def launch(words):
  return subprocess.Popen(
    [str(word) for word in words],
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  out, errors = process.communicate(timeout=SECONDS)
  assert process.returncode == 0, errors[-4000:]
  return out, errors


def over_two(words):
  launcher = [sys.executable, PODS / "launch.py", "--processes=2", "--"]
  return launch([*launcher, *words[1:]])


@pytest.fixture(scope="module")
def alone(text, tmp_path_factory):
  """The training on one device."""
  out = tmp_path_factory.mktemp("alone")
  finish(launch(command("train_lm.py", text, out)))
  return metrics(out)


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
  """The training over two processes, none of which is killed."""
  out = tmp_path_factory.mktemp("undisturbed")
  finish(launch(commands_of_the_page(text, out)[1]))
  return metrics(out)


def assert_close(found, expected):
  """Compares the first rows, because later ones differ more and more."""
  for name in ("loss", "gradient norm", "validation nll"):
    numbers = [float(rows[0][name]) for rows in (found, expected)]
    np.testing.assert_allclose(*numbers, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("number", [0, 1])
def test_training_survives_a_killed_process(
  number, text, undisturbed, tmp_path
):
  """SIGKILL of one process: the same numbers, bit for bit, at the end."""
  process = launch(commands_of_the_page(text, tmp_path)[1])
  saved = tmp_path / "checkpoints" / "3"
  end = time.monotonic() + SECONDS
  while not saved.exists() and time.monotonic() < end:
    time.sleep(0.02)
  children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
  victim = int(children.read_text().split()[number])
  os.kill(victim, signal.SIGKILL)
  out, errors = finish(process)
  assert "starting all processes again" in errors
  assert re.search("Continues after step [36] ", out)
  assert metrics(tmp_path) == undisturbed


def test_commands_of_the_page_train_as_one_device_does(
  text, alone, undisturbed, tmp_path
):
  commands = commands_of_the_page(text, tmp_path)
  assert ["launch.py" in str(words) for words in commands] == [False, True]
  out, _ = finish(launch(commands[0]))
  assert "perplexity" in out
  assert (tmp_path / "checkpoints" / "9").is_dir()
  assert_close(metrics(tmp_path), alone)
  assert_close(undisturbed, alone)


def test_linen_training_ends_and_is_finished(text, tmp_path):
  words = command("train_lm_linen.py", text, tmp_path)
  finish(launch(words))
  written = (tmp_path / "metrics.csv").read_bytes()
  # A training that is finished prints its result again.
  out, _ = finish(launch(words))
  assert "perplexity" in out
  assert (tmp_path / "metrics.csv").read_bytes() == written
  found = [float(row["validation nll"]) for row in metrics(tmp_path)]
  assert found[-1] < found[0]


def test_linen_computes_the_features_of_nnx():
  modules = ("decoder", "train_lm", "train_lm_linen")
  decoder, nnx, linen = (source.script(PODS, name) for name in modules)
  sizes = decoder.Sizes(vocab=11, width=8, layers=2, heads=2)
  params = nnx.nnx_model(sizes, jnp.float32).init(jax.random.key(0))
  copied = {
    "embedding": params["embedding"],
    "RMSNorm_0": params["norm"],
  }
  for number, block in params["blocks"].items():
    names = {"norm1": "RMSNorm_0", "norm2": "RMSNorm_1"}
    copied[f"block{number}"] = {names.get(k, k): v for k, v in block.items()}
  draw = np.random.default_rng(0)
  tokens = draw.integers(0, 11, (2, 7))
  segments = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1]])
  ours = nnx.nnx_model(sizes, jnp.float32)
  theirs = linen.linen_model(sizes, jnp.float32)
  # An example is not as strict as the tests.
  with (
    jax.numpy_rank_promotion("allow"),
    jax.numpy_dtype_promotion("standard"),
  ):
    np.testing.assert_allclose(
      theirs.features(copied, tokens, segments),
      ours.features(params, tokens, segments),
      rtol=1e-5,
      atol=1e-6,
    )


def test_all_axes_but_data_shard_over_two_processes(text, alone, tmp_path):
  options = ("--cpu-devices=4", "--mesh=fsdp=2,context=2,vocab=2")
  out, _ = finish(over_two(command("train_lm.py", text, tmp_path, *options)))
  assert "perplexity" in out
  assert (tmp_path / "checkpoints" / "9").is_dir()
  assert_close(metrics(tmp_path), alone)


# With the arguments of the launcher, the devices are those of two processes.
GRADIENTS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import jax
options = dict(word.split("=") for word in sys.argv[2:])
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4 if options else 8)
if options:
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    options["--coordinator"],
    int(options["--processes"]),
    int(options["--process"]),
  )
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import optax
import decoder, lm_step, lm_training, train_lm

sizes = decoder.Sizes(vocab=64, width=16, layers=1, heads=2)
tokens = np.random.default_rng(0).integers(0, 64, (2, 8, 17))
targets = tokens[..., 1:].copy()
targets[:, -1, 5:] = -1
batch = {"inputs": tokens[..., :-1], "targets": targets}


def found(text, micro, **options):
  alone = text == "data=1"
  devices = jax.local_devices()[:1] if alone else jax.devices()
  sizes_of = dict.fromkeys(lm_step.AXES, 1)
  sizes_of |= {k: int(v) for k, v in (x.split("=") for x in text.split(","))}
  mesh = jax.sharding.Mesh(
    np.reshape(devices, tuple(sizes_of.values())), tuple(sizes_of)
  )
  program = lm_step.Program(
    train_lm.nnx_model(sizes, jnp.float32), optax.sgd(0.1), mesh, start=0,
    scales=lm_step.LossScales(1e-4, 1e-3), **options,
  )
  state = program.initial(jax.random.key(0))
  parts = {k: v.reshape(micro, -1, 16) for k, v in batch.items()}
  loss, metrics, gradient = jax.jit(program.gradients)(state.params, parts)
  leaves = jax.tree.leaves(gradient)
  if not alone:
    leaves = [multihost_utils.process_allgather(x, tiled=True) for x in leaves]
  return [float(loss), *map(np.asarray, leaves)]


expected = found("data=1", 2)
result = {}
for text, micro, options in (
  ("data=1", 1, {}),
  ("data=1", 2, {"full_logits": True}),
  ("data=8", 1, {}),
  ("vocab=8", 2, {}),
  ("data=2,fsdp=2,vocab=2", 2, {}),
  ("fsdp=2,context=2,vocab=2", 1, {}),
):
  ours = found(text, micro, **options)
  loss = abs(ours[0] / expected[0] - 1)
  ulp = max(
    float(np.abs(a - b).max() / np.spacing(np.abs(b).max(), dtype=np.float32))
    for a, b in zip(ours[1:], expected[1:], strict=True)
  )
  result[f"{text} {micro} {options}"] = [loss, ulp]
if jax.process_index() == 0:
  print(json.dumps(result))
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_is_equal_on_every_mesh(processes, tmp_path):
  """The loss to 1e-6, gradients to 16 ulp of the largest of each array."""
  script = tmp_path / "gradients.py"
  script.write_text(GRADIENTS)
  words = [sys.executable, script, PODS]
  out, _ = finish(launch(words) if processes == 1 else over_two(words))
  found = json.loads(out.splitlines()[-1])
  assert len(found) == 6
  for name, (loss, ulp) in found.items():
    assert loss < 1e-6, name
    assert ulp < 16, name


def test_stop_signal_saves_a_checkpoint(text, tmp_path):
  # So many steps that the processes do not end by themselves.
  words = commands_of_the_page(text, tmp_path, "--steps=1000000")[1]
  process = launch(words)
  end = time.monotonic() + SECONDS
  while not (tmp_path / "metrics.csv").exists() and time.monotonic() < end:
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  out, errors = process.communicate(timeout=SECONDS)
  assert process.returncode == 128 + signal.SIGTERM
  assert "launch: killing" not in errors
  # Both processes stop after the same step, which is saved.
  first, second = re.findall(r"Stops after step (\d+), because", out)
  assert first == second == metrics(tmp_path)[-1]["step"]
  assert (tmp_path / "checkpoints" / first).is_dir()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--mesh=model=2"], "mesh must name sizes of data, fsdp, context, vocab"),
    (["--mesh=data=3"], "change --mesh, or --cpu-devices"),
    (["--batch=7", "--micro-batches=2"], "batch must be a multiple of 2"),
  ],
)
def test_options_that_do_not_fit(options, message, text, tmp_path):
  process = launch(command("train_lm.py", text, tmp_path, *options))
  _, errors = process.communicate(timeout=SECONDS)
  assert process.returncode
  assert message in errors


def test_sequences_share_one_token_with_the_next():
  corpus = source.script(PODS, "corpus")
  tokens = np.arange(10)
  sequences = corpus.Sequences(tokens, 4)
  assert len(sequences) == 3
  last = sequences[2]
  np.testing.assert_array_equal(last["inputs"], [8, 0, 0, 0])
  np.testing.assert_array_equal(last["targets"], [9, -1, -1, -1])
  kept = [
    x["targets"][x["targets"] >= 0]
    for x in map(sequences.__getitem__, range(3))
  ]
  np.testing.assert_array_equal(np.concatenate(kept), tokens[1:])
  with pytest.raises(ValueError, match="tokens must have at least 2 entries"):
    corpus.Sequences(tokens[:1], 4)
