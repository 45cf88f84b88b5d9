# SPDX-License-Identifier: Apache-2.0
"""Options, stored runs and data of examples/pods, and its table of memory."""

import csv
import importlib
import importlib.util
import pathlib
import re
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from support import source

PODS = source.ROOT / "examples" / "pods"
DOCS = source.ROOT / "docs"
MODULES = (
  "corpus",
  "decoder",
  "lm_io",
  "lm_options",
  "lm_step",
  "lm_training",
  "train_lm",
)
SMALL = [
  "--vocab=304",
  "--width=8",
  "--layers=1",
  "--heads=1",
  "--length=8",
  "--batch=8",
  "--steps=2",
  "--warm-up=1",
  "--evaluate-every=1",
  "--evaluation-batches=1",
  "--dtype=float32",
]


@pytest.fixture(scope="module")
def pods():
  """The modules of the example."""
  sys.path.insert(0, str(PODS))
  try:
    found = {name: importlib.import_module(name) for name in MODULES}
  finally:
    sys.path.remove(str(PODS))
  return SimpleNamespace(**found)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "text.txt"
  path.write_text((DOCS / "pods.md").read_text(encoding="utf-8"))
  return path


@pytest.fixture
def train(pods, text, tmp_path):
  """Trains with options after the small ones, unless the process ends."""

  def run(*options):
    data = [f"--text={text}", f"--data={text.parent}", f"--out={tmp_path}/run"]
    # Flax and optax promote ranks and dtypes.
    with (
      jax.numpy_rank_promotion("allow"),
      jax.numpy_dtype_promotion("standard"),
    ):
      pods.lm_training.main(pods.train_lm.nnx_model, [*SMALL, *data, *options])

  return run


def test_a_bucket_stays_a_bucket(pods):
  """No part of the path is taken for a local folder."""
  arguments = pods.lm_options.parser().parse_args(["--out=gs://bucket/run"])
  assert str(arguments.out / "checkpoints") == "gs://bucket/run/checkpoints"
  metrics = arguments.out / "metrics.csv"
  assert str(metrics.parent / "x") == "gs://bucket/run/x"
  local = pods.lm_options.parser().parse_args(["--out=reports/lm"]).out
  assert str(local) == str(pathlib.Path("reports/lm").absolute())


def test_every_option_has_a_help_text(pods):
  for action in pods.lm_options.parser()._actions:
    assert len((action.help or "").split()) >= 3, action.dest


def test_a_run_continues_only_with_its_options(pods, train, capsys, tmp_path):
  train()
  first = capsys.readouterr().out
  assert "finished" not in first
  train("--mesh=vocab=8", "--evaluation-batches=2")
  second = capsys.readouterr().out
  assert "holds this training, which is finished after 2 steps" in second
  assert "perplexity" in second
  with pytest.raises(SystemExit) as ended:
    train("--steps=3", "--seed=1")
  assert ended.value.code == 2
  errors = capsys.readouterr().err
  assert "steps is 2 there and 3 here, seed is 0 there and 1 here" in errors
  assert "pass another --out" in errors
  assert len(errors.splitlines()) == 1
  arguments = pods.lm_options.parser().parse_args(
    [*SMALL, f"--out={tmp_path}/run"]
  )
  with pytest.raises(
    pods.lm_options.OptionsError,
    match=r"model is nnx_model there and linen_model here, text is .* and new",
  ):
    pods.lm_options.compare(arguments, "linen_model", "new")


def test_a_diverged_run_ends_with_a_message(train, capsys, tmp_path):
  with pytest.raises(SystemExit) as ended:
    train("--learning-rate=nan")
  assert ended.value.code == 2
  errors = capsys.readouterr().err
  assert "the loss is NaN after step" in errors
  assert "--learning-rate" in errors
  # The step that gave NaN is in the metrics, but not among the checkpoints.
  with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
    last = list(csv.DictReader(file))[-1]
  assert last["validation nll"] == "nan"
  assert not (tmp_path / "run" / "checkpoints" / last["step"]).exists()


def test_perplexity_above_the_largest_float_is_infinite(pods):
  batches = {0: {"inputs": np.zeros((1, 1)), "targets": np.zeros((1, 1))}}
  edges = np.linspace(0, 1, 3, dtype=np.float32)
  bins = pods.lm_step.calibration.bin_stats_from_confidence(
    edges, edges > 0, num_bins=2
  )
  program = SimpleNamespace(evaluate=lambda *_: (1e6, 1, 10, bins))
  found = pods.lm_training._evaluate(
    program, None, _Numbered(batches, 1), number=5
  )
  assert found["validation nll"] == 1e5
  assert found["perplexity"] == np.inf


class _Numbered(dict):
  def __init__(self, batches, number):
    super().__init__(batches)
    self.number = number


@pytest.mark.parametrize(
  ("options", "messages"),
  [
    (["--micro-batches=0"], ["--micro-batches", "at least 1"]),
    (["--mesh=fsdp=8", "--width=12"], ["--width must be a multiple of 8"]),
    (["--heads=3"], ["--width must be a multiple of 6", "--heads"]),
    (["--mesh=vocab=8", "--batch=4"], ["--batch must be a multiple of 8"]),
    (["--vocab=100000"], ["pass a smaller --vocab"]),
    (["--text=nothing"], ["--text must name a text file"]),
  ],
)
def test_errors_name_the_option(options, messages, train, capsys):
  with pytest.raises(SystemExit) as ended:
    train(*options)
  assert ended.value.code == 2
  errors = capsys.readouterr().err
  for message in messages:
    assert message in errors


def test_a_changed_text_is_prepared_again(pods, tmp_path):
  path = tmp_path / "text.txt"
  source_of = (tmp_path / "data", str(path), 260)
  path.write_text("an old text, an old text " * 40)
  pods.corpus.prepare(*source_of)
  old = pods.corpus.load(*source_of)
  stored = list((tmp_path / "data").iterdir())
  written = [x.stat().st_mtime_ns for x in stored]
  pods.corpus.prepare(*source_of)
  assert [x.stat().st_mtime_ns for x in stored] == written
  path.write_text("some new words, some new words " * 40)
  pods.corpus.prepare(*source_of)
  new = pods.corpus.load(*source_of)
  assert "new words" in new.tokenizer.decode(new.train.tolist())
  assert old.digest != new.digest
  # A host to which the folder was copied may lack the text.
  path.unlink()
  pods.corpus.prepare(tmp_path / "data", str(path), 260)
  assert pods.corpus.load(*source_of).digest == new.digest


def test_an_evaluation_counts_every_target_once(pods):
  tokens = np.arange(183, dtype=np.int32)
  batches = pods.lm_io.Batches(
    pods.corpus.Padded(pods.corpus.shuffled(tokens, 8, 0)),
    (1, 16, 8),
    pods.lm_training.make_mesh(""),
  )
  assert batches.number == 2
  targets = np.concatenate(
    [np.asarray(batches[k]["targets"]).ravel() for k in range(2)]
  )
  np.testing.assert_array_equal(np.sort(targets[targets >= 0]), tokens[1:])


# The table of memory.


def _pod_memory():
  path = DOCS / "pod_memory.py"
  spec = importlib.util.spec_from_file_location("pod_memory", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _rows():
  with (DOCS / "pod_memory.csv").open(newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def test_page_quotes_the_table_of_memory():
  page = (DOCS / "pods.md").read_text(encoding="utf-8")
  found = re.findall(r"^\| (\w+) \((\d+) GiB\) \| (.*) \|$", page, re.M)
  expected = []
  for row in _rows():
    fits = float(row["sum"]) < float(row["memory"])
    numbers = [row[x] for x in ("devices", "model", "state", "activations")]
    total = row["sum"] if fits else f"{row['sum']} (does not fit)"
    numbers += [row["fused_head"], total, row["full_logits_instead"]]
    expected.append((row["device"], row["memory"], " | ".join(numbers)))
  assert found == expected


def test_table_of_memory_describes_the_example(pods):
  """State and sum follow from the example's shapes and specs."""
  memory = _pod_memory()
  rows = _rows()
  assert len(rows) == 9
  for model, (width, blocks) in memory.MODELS.items():
    params = memory.parameters(pods, width, blocks)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    for row in (row for row in rows if row["model"] == model):
      assert row["parameters"] == f"{count / 1e9:.2f}e9"
      state = memory.state_bytes(pods, params, int(row["devices"]))
      assert row["state"] == f"{state / 2**30:.2f}"
      # Nearly all of it is divided by all devices.
      assert 1 <= state * int(row["devices"]) / (16 * count) < 1.01
      parts = ("state", "activations", "fused_head")
      total = sum(float(row[part]) for part in parts)
      np.testing.assert_allclose(float(row["sum"]), total, atol=0.016)
