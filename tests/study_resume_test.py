# SPDX-License-Identifier: Apache-2.0
"""An interrupted study is resumed and gives the same numbers."""

import os
import pathlib
import resource
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from support import study

import squentropy_study
from squentropy_study import _cli, _program, _run_files, _train

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = squentropy_study.Settings(
  "iris",
  losses=("cross_entropy", "squentropy"),
  seeds=2,
  epochs=(2, 12),
  max_epochs=12,
  model="bn-mlp",
  baselines=False,
)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
  study.skip_figures(monkeypatch)


def _stop_at(epoch, loss):
  def on_progress(progress):
    if progress.loss == loss and progress.epoch == epoch:
      raise KeyboardInterrupt

  return on_progress


def test_interrupted_study_ends_with_the_same_numbers(tmp_path, monkeypatch):
  complete, parts = tmp_path / "complete", tmp_path / "parts"
  squentropy_study.run(SETTINGS, complete)
  # Before and after the first length to report, in the second loss as well.
  for epoch, loss in ((2, "cross_entropy"), (7, "cross_entropy")):
    with pytest.raises(KeyboardInterrupt):
      squentropy_study.run(
        SETTINGS, parts, save_every=0, on_progress=_stop_at(epoch, loss)
      )
  with pytest.raises(KeyboardInterrupt):
    squentropy_study.run(
      SETTINGS, parts, save_every=0, on_progress=_stop_at(9, "squentropy")
    )
  segments = []
  segment = _program.segment

  def spy(static, loss, state, first_step, *rest):
    segments.append((loss.name, int(first_step)))
    return segment(static, loss, state, first_step, *rest)

  monkeypatch.setattr(_program, "segment", spy)
  squentropy_study.run(SETTINGS, parts, save_every=0)
  # The last checkpoint is of the segment before the interruption.
  assert segments[0] == ("squentropy", 8)
  names = {path.name for path in (parts / "runs").iterdir()}
  losses = ("cross_entropy", "squentropy")
  endings = (".npz", ".model.npz")
  of_losses = {loss + ending for loss in losses for ending in endings}
  assert names == of_losses | {"rows.npz"}
  for name in names:
    ours, theirs = (out / "runs" / name for out in (parts, complete))
    assert ours.read_bytes() == theirs.read_bytes()
  ours, theirs = (out / "results.csv" for out in (parts, complete))
  assert ours.read_bytes() == theirs.read_bytes()


def test_fresh_deletes_a_checkpoint(tmp_path, monkeypatch):
  with pytest.raises(KeyboardInterrupt):
    squentropy_study.run(
      SETTINGS,
      tmp_path,
      save_every=0,
      on_progress=_stop_at(6, "cross_entropy"),
    )
  assert (tmp_path / "runs" / "cross_entropy.checkpoint").is_dir()
  started = []

  def segment(static, loss, state, first_step, *_):
    started.append(int(first_step))
    raise KeyboardInterrupt

  monkeypatch.setattr(_program, "segment", segment)
  with pytest.raises(KeyboardInterrupt):
    squentropy_study.run(SETTINGS, tmp_path, fresh=True)
  assert started == [0]


def test_killed_study_ends_with_the_same_numbers(tmp_path):
  words = ["run", "iris", "--seeds", "1", "--epochs", "40,400", "--quiet"]
  words += ["--model", "linear", "--no-baselines"]
  words += ["--losses", "cross_entropy", "--out"]
  complete, parts = tmp_path / "complete", tmp_path / "parts"
  process = subprocess.Popen(
    [sys.executable, "-m", "squentropy_study", *words, parts]
    + ["--save-every", "0"],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )
  checkpoint = parts / "runs" / "cross_entropy.checkpoint"
  deadline = time.monotonic() + 300
  # A finished step has a bare number for a name.
  while not any(path.name.isdigit() for path in checkpoint.glob("*")):
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.kill()
  process.wait()
  assert not (parts / "runs" / "cross_entropy.npz").exists()
  for out in (complete, parts):
    assert _cli.main([*words, str(out)]) == 0
  ours, theirs = (out / "results.csv" for out in (parts, complete))
  assert ours.read_bytes() == theirs.read_bytes()


# After a failed write, a thread of TensorStore may call an event loop that
# orbax has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_checkpoint_that_cannot_be_written_leaves_the_earlier_one(tmp_path):
  def progress(number):
    noise = np.random.default_rng(number).normal(size=(2, 30_000))
    state = _program.TrainState(jnp.asarray(noise, jnp.float32), {}, {})
    return _train.TrainingProgress(state, (), [noise[:, 0]], [], [], [], [])

  (tmp_path / "runs").mkdir()
  checkpoint = _run_files.Checkpoint(tmp_path, "squentropy", [0, 1], every=0)
  checkpoint.save(5, progress(0))
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  # No file may grow beyond this, as on a full disk.
  resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
  try:
    with pytest.raises(
      squentropy_study.StudyError, match=r"cannot write .*; fix that"
    ):
      checkpoint.save(9, progress(1))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  again = _run_files.Checkpoint(tmp_path, "squentropy", [0, 1], every=0)
  kept = again.restore(progress(2).state)
  np.testing.assert_array_equal(kept.state[0], progress(0).state[0])
  # Without the limit the next checkpoint is written.
  again.save(9, progress(1))
  kept = again.restore(progress(2).state)
  np.testing.assert_array_equal(kept.state[0], progress(1).state[0])


def test_damaged_checkpoint_is_one_line_and_exit_2(tmp_path, capsys):
  (tmp_path / "runs").mkdir()
  state = _program.TrainState(jnp.ones((2, 3)), {}, {})
  progress = _train.TrainingProgress(state, (), [np.ones(2)], [], [], [], [])
  checkpoint = _run_files.Checkpoint(tmp_path, "squentropy", [0, 1], every=0)
  checkpoint.save(5, progress)
  # A checkpoint of other seeds is no damage, but of no use.
  other = _run_files.Checkpoint(tmp_path, "squentropy", [2, 3], every=0)
  assert other.restore(state) is None
  folder = tmp_path / "runs" / "squentropy.checkpoint"
  assert not folder.exists()
  checkpoint.save(5, progress)
  # Of other weights, and then with every file cut in half.
  for like in (state._replace(parameters=jnp.ones((2, 3, 1))), state):
    message = r"squentropy\.checkpoint is damaged \(.*\); delete this folder"
    with pytest.raises(squentropy_study.StudyError, match=message) as caught:
      checkpoint.restore(like)
    assert "\n" not in str(caught.value)
    for path in folder.rglob("*"):
      if path.is_file():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
