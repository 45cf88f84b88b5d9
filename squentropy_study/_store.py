# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the folder of a study; every write is atomic."""

from collections.abc import Iterator
import contextlib
import dataclasses
import io
import json
import os
from pathlib import Path
import re
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax

from squentropy_study import _fingerprint
from squentropy_study._settings import Settings
from squentropy_study._study_error import UNREADABLE, StudyError
from squentropy_study._train import RunResult, TrainingProgress, TrainState

CONFIG = "config.json"
_FORMAT = 1
_OUTPUTS = ("results.csv", "reliability.png", "training.png", "report.html")
SUMMARY = "summary.csv"
_SUMMARY_OUTPUTS = {SUMMARY, "summary.png", "summary.html"}
_PARTIAL = ".part"
_RUNS = "runs"
_CHECKPOINT = ".checkpoint"
_KEYS = {"command", "settings", "rows", "classes", "notes", "versions"}


@contextlib.contextmanager
def _file_errors(action: str, path: Path) -> Iterator[None]:
  """Turns an error of the file system into a StudyError."""
  try:
    yield
  except (OSError, ValueError) as error:
    if isinstance(error, OSError):
      reason = error.strerror or str(error)
    # TensorStore, which writes for orbax, raises ValueError on a full disk.
    elif code := re.search(r"os_error_code='(\d+)'", str(error)):
      reason = os.strerror(int(code[1]))
    else:
      raise
    raise StudyError(
      f"cannot {action} {path}: {reason}; fix that, or name another folder "
      "with --out"
    ) from None


def write(path: Path, data: bytes) -> None:
  """Writes all of the data, or leaves the file as it was."""
  partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
  with _file_errors("write", path):
    try:
      with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      partial.replace(path)
    finally:
      partial.unlink(missing_ok=True)


def make_summary_folder(out: Path) -> None:
  """Creates the folder of a summary; raises if it holds anything else."""
  with _file_errors("use", out):
    held = {path.name for path in out.glob("*") if path.suffix != _PARTIAL}
    # A summary always holds its table.
    if held and not (SUMMARY in held and held <= _SUMMARY_OUTPUTS):
      other = min(held - _SUMMARY_OUTPUTS or held)
      raise StudyError(
        f"{out} holds files of another kind ({other}); name a new or empty "
        "folder with --out"
      )
    if held:
      first, *_ = (out / SUMMARY).read_text().splitlines() or [""]
      if not first.startswith("loss,probability_map,training_length,metric,"):
        raise StudyError(
          f"{out / SUMMARY} is not a summary of studies; name another folder "
          "with --out"
        )
    out.mkdir(parents=True, exist_ok=True)


def read_config(folder: str | Path) -> dict[str, Any] | None:
  """Reads the configuration of a study.

  Args:
    folder: The folder of the study.

  Returns:
    The content of ``config.json``: ``command``, ``settings``, ``rows`` (row
    counts), ``classes`` (row counts by name), ``notes``, ``data_sha256`` and ``versions``. None if the folder
    holds no study.
  """
  try:
    config = json.loads((Path(folder) / CONFIG).read_text())
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
  ours = isinstance(config, dict) and config.get("squentropy_study") == _FORMAT
  return config if ours and config.keys() >= _KEYS else None


def read_settings(out: Path, config: dict) -> Settings:
  """Returns the settings in the configuration of a folder."""
  lists = ("losses", "epochs")
  try:
    fields: dict[str, Any] = {
      key: tuple(value) if key in lists else value
      for key, value in config["settings"].items()
    }
    return Settings(**fields)
  except (AttributeError, TypeError) as error:
    raise _damaged(out, error) from None


def prepare(
  out: Path,
  settings: Settings,
  command: str,
  rows: dict[str, int],
  classes: dict[str, int],
  notes: tuple[str, ...],
  data_sha256: str,
  *,
  fresh: bool,
) -> None:
  """Prepares the folder for a study, or raises and changes nothing.

  Args:
    out: The folder; created if missing.
    settings: The settings of the study.
    command: The command line to record.
    rows: Row counts of the parts of a fold, to record.
    classes: Number of rows of each class by its name, to record.
    notes: Notes on the data, to record.
    data_sha256: Digest of the data.
    fresh: Delete an earlier study in the folder instead of resuming it.

  Raises:
    StudyError: The folder cannot be written, or holds files of another kind,
      or a study with other data, versions or settings. Only the losses may
      differ.
  """
  config = {
    "squentropy_study": _FORMAT,
    "command": command,
    # Through JSON, because it is compared with a configuration read from it.
    "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
    "rows": rows,
    "classes": classes,
    "notes": list(notes),
    "data_sha256": data_sha256,
    "versions": _fingerprint.versions(),
  }
  with _file_errors("use", out):
    _check(out, config, fresh=fresh)
    out.mkdir(parents=True, exist_ok=True)
  # The first file: a killed process leaves a folder that says what it is.
  write(out / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
  with _file_errors("use", out):
    (out / _RUNS).mkdir(exist_ok=True)
    # Partial files of killed processes.
    for folder in (out, out / _RUNS):
      for path in folder.glob(f".*.[0-9]*{_PARTIAL}"):
        path.unlink(missing_ok=True)


def _check(out: Path, config: dict, *, fresh: bool) -> None:
  """Raises if a folder holds anything but this study."""
  if out.exists() and not out.is_dir():
    raise StudyError(f"{out} is a file; name a folder with --out")
  earlier = read_config(out)
  if earlier is None:
    held = [path.name for path in out.glob("*") if path.suffix != _PARTIAL]
    if held:
      raise StudyError(
        f"{out} holds files of another kind ({min(held)}); name a new or empty "
        "folder with --out"
      )
  elif fresh:
    for path in [*map(out.joinpath, _OUTPUTS), *(out / _RUNS).glob("*.npz")]:
      path.unlink(missing_ok=True)
    for path in (out / _RUNS).glob(f"*{_CHECKPOINT}"):
      shutil.rmtree(path)
  else:
    for key, value in _identity(out, config).items():
      was = _identity(out, earlier).get(key)
      if was != value:
        difference = f"{key} was {was}, now {value}"
        if key == "data_sha256":
          difference = "its data have changed"
        raise StudyError(
          f"{out} holds another study ({difference}); name another folder with "
          "--out, or replace the study with --fresh"
        )


def _identity(out: Path, config: dict) -> dict[str, Any]:
  """Returns what must agree before run results are shown side by side."""
  data = {"data_sha256": config.get("data_sha256")}
  try:
    versions = _fingerprint.fingerprint(config["versions"])
    identity = {**config["settings"], **versions, **data}
  except (AttributeError, TypeError) as error:
    raise _damaged(out, error) from None
  # Each loss has a run result of its own, so losses may be added.
  identity.pop("losses", None)
  return identity


def _damaged(out: Path, error: Exception) -> StudyError:
  return StudyError(
    f"{out / CONFIG} is damaged ({error}); run the study again with --fresh"
  )


def _run_result_path(out: Path, loss: str, ending: str = ".npz") -> Path:
  name = loss.replace(":", "-").replace(",", "_")
  return out / _RUNS / f"{name}{ending}"


def has_run_result(out: Path, loss: str) -> bool:
  """Returns whether the training with a loss is finished and saved."""
  return _run_result_path(out, loss).exists()


class Checkpoint:
  """Saves an unfinished training, so that a killed study can be resumed."""

  def __init__(self, out: Path, loss: str, every: float):
    """Names the checkpoint of a loss.

    Args:
      out: Folder of the study.
      loss: The loss.
      every: Seconds between two checkpoints.
    """
    self._path = _run_result_path(out, loss, _CHECKPOINT).absolute()
    self._every = every
    self._last = time.monotonic()

  def _manager(self) -> orbax.CheckpointManager:
    # orbax deletes the earlier step only after the next one is complete.
    options = orbax.CheckpointManagerOptions(
      max_to_keep=1, enable_async_checkpointing=False
    )
    return orbax.CheckpointManager(self._path, options=options)

  def restore(self, initial: TrainState) -> TrainingProgress | None:
    """Returns the saved progress with the tree structure of a state."""
    if not self._path.exists():
      return None
    with self._manager() as manager:
      step = manager.latest_step()
      if step is None:
        return None
      saved = manager.restore(step, args=orbax.args.StandardRestore())
    leaves, structure = jax.tree.flatten(initial)
    state = [
      jnp.asarray(x, leaf.dtype)
      for x, leaf in zip(saved["state"], leaves, strict=True)
    ]
    parts = (
      list(map(np.asarray, saved.get(name) or []))
      for name in TrainingProgress._fields[1:]
    )
    return TrainingProgress(jax.tree.unflatten(structure, state), *parts)

  def save(self, epoch: int, progress: TrainingProgress) -> None:
    """Saves the progress, if the last checkpoint is old enough."""
    if time.monotonic() - self._last < self._every:
      return
    parts = {**progress._asdict(), "state": jax.tree.leaves(progress.state)}
    # orbax does not restore empty lists.
    parts = {name: value for name, value in parts.items() if value}
    with _file_errors("write", self._path), self._manager() as manager:
      manager.save(epoch, args=orbax.args.StandardSave(parts))
    self._last = time.monotonic()

  def remove(self) -> None:
    """Deletes the checkpoint after the training with the loss is finished."""
    shutil.rmtree(self._path, ignore_errors=True)


def write_run_result(out: Path, loss: str, result: RunResult) -> None:
  """Saves the run result of a loss."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **result._asdict())
  write(_run_result_path(out, loss), buffer.getvalue())


def read_run_result(out: Path, loss: str) -> RunResult:
  """Reads the run result of a loss."""
  path = _run_result_path(out, loss)
  with _file_errors("read", path):
    data = io.BytesIO(path.read_bytes())
  try:
    with np.load(data, allow_pickle=False) as arrays:
      return RunResult(**{name: arrays[name] for name in RunResult._fields})
  except UNREADABLE as error:
    reason = str(error).partition("\n")[0] or type(error).__name__
    raise StudyError(
      f"{path} is damaged ({reason}); delete it and run the study again"
    ) from None
