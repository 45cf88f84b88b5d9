# SPDX-License-Identifier: Apache-2.0
"""The folder of a study: what is kept in it, and never half written."""

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

from squentropy_study import _versions
from squentropy_study._errors import UNREADABLE, StudyError
from squentropy_study._settings import Settings
from squentropy_study._train import Cell, Reached, State

CONFIG = "config.json"
_FORMAT = 1
_OUTPUTS = ("results.csv", "reliability.png", "training.png", "report.html")
SUMMARY = "summary.csv"
_SUMMARY_OUTPUTS = {SUMMARY, "summary.png", "summary.html"}
_PARTIAL = ".part"
_UNDER_WAY = ".checkpoint"
_PARTS = {"command", "settings", "rows", "notes", "versions"}


@contextlib.contextmanager
def _mendable(action: str, path: Path) -> Iterator[None]:
  """Turns what the file system refuses into an error of one line."""
  try:
    yield
  except (OSError, ValueError) as error:
    if isinstance(error, OSError):
      reason = error.strerror or str(error)
    # TensorStore, which writes for orbax, tells a full disk by a ValueError.
    elif code := re.search(r"os_error_code='(\d+)'", str(error)):
      reason = os.strerror(int(code[1]))
    else:
      raise
    raise StudyError(
      f"cannot {action} {path}: {reason}; mend that, or name another folder "
      "with --out"
    ) from None


def write(path: Path, data: bytes) -> None:
  """Writes a file so that it holds all of the data or is left as it was."""
  partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
  with _mendable("write", path):
    try:
      with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      partial.replace(path)
    finally:
      partial.unlink(missing_ok=True)


def make_summary_folder(out: Path) -> None:
  """Makes the folder of a summary, or refuses one that holds anything else."""
  with _mendable("use", out):
    held = {path.name for path in out.glob("*") if path.suffix != _PARTIAL}
    # Its own table is the first file of a summary.
    if held and not (SUMMARY in held and held <= _SUMMARY_OUTPUTS):
      other = min(held - _SUMMARY_OUTPUTS or held)
      raise StudyError(
        f"{out} holds something else ({other}); name a new or empty folder "
        "with --out"
      )
    if held:
      first, *_ = (out / SUMMARY).read_text().splitlines() or [""]
      if not first.startswith("loss,readout,regime,metric,sets,"):
        raise StudyError(
          f"{out / SUMMARY} is no summary of studies; name another folder "
          "with --out"
        )
    out.mkdir(parents=True, exist_ok=True)


def read_config(out: Path) -> dict | None:
  """The configuration of the study in a folder; None if it holds none."""
  try:
    config = json.loads((out / CONFIG).read_text())
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
  ours = isinstance(config, dict) and config.get("squentropy_study") == _FORMAT
  return config if ours and config.keys() >= _PARTS else None


def read_settings(out: Path, config: dict) -> Settings:
  """The settings in the configuration of a folder."""
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
  notes: tuple[str, ...],
  data_sha256: str,
  *,
  fresh: bool,
) -> None:
  """Makes the folder ready for a study, or refuses to touch it.

  Args:
    out: The folder; created if missing.
    settings: The study to be put in it.
    command: The command line to record.
    rows: How many rows each part of a fold has, to record.
    notes: What was done to the data, to record.
    data_sha256: Digest of the data.
    fresh: Drop what an earlier study left there instead of going on with it.

  Raises:
    StudyError: The folder holds something else, or a study which differs in
      its settings (other losses are welcome), its data or its versions, or
      cannot be written.
  """
  config = {
    "squentropy_study": _FORMAT,
    "command": command,
    # Through text and back: tuples become lists, as they will be when read.
    "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
    "rows": rows,
    "notes": list(notes),
    "data_sha256": data_sha256,
    "versions": _versions.versions(),
  }
  with _mendable("use", out):
    _check(out, config, fresh=fresh)
    out.mkdir(parents=True, exist_ok=True)
  # First of all files: whatever kills the process, the folder says whose it is.
  write(out / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
  with _mendable("use", out):
    (out / "cells").mkdir(exist_ok=True)
    # What killed processes have left half written.
    for folder in (out, out / "cells"):
      for path in folder.glob(f".*.[0-9]*{_PARTIAL}"):
        path.unlink(missing_ok=True)


def _check(out: Path, config: dict, *, fresh: bool) -> None:
  """Refuses a folder that holds anything but this study."""
  if out.exists() and not out.is_dir():
    raise StudyError(f"{out} is a file; name a folder with --out")
  earlier = read_config(out)
  if earlier is None:
    held = [path.name for path in out.glob("*") if path.suffix != _PARTIAL]
    if held:
      raise StudyError(
        f"{out} holds something else ({min(held)}); name a new or empty "
        f"folder with --out"
      )
  elif fresh:
    for path in [*map(out.joinpath, _OUTPUTS), *(out / "cells").glob("*.npz")]:
      path.unlink(missing_ok=True)
    for path in (out / "cells").glob(f"*{_UNDER_WAY}"):
      shutil.rmtree(path)
  else:
    for key, value in _identity(out, config).items():
      was = _identity(out, earlier).get(key)
      if was != value:
        what = f"{key} {was}, now {value}"
        if key == "data_sha256":
          what = "its data have changed since"
        raise StudyError(
          f"{out} holds another study ({what}); name another folder with "
          "--out, or replace it with --fresh"
        )


def _identity(out: Path, config: dict) -> dict[str, Any]:
  """What must be alike for the cells of a study to stand side by side."""
  data = {"data_sha256": config.get("data_sha256")}
  try:
    parts = {**config["settings"], **config["versions"], **data}
  except TypeError as error:
    raise _damaged(out, error) from None
  # Each loss has a cell of its own: a study may grow.
  parts.pop("losses", None)
  return parts


def _damaged(out: Path, error: Exception) -> StudyError:
  return StudyError(
    f"{out / CONFIG} is damaged ({error}); run the study again with --fresh"
  )


def _cell_path(out: Path, spec: str, ending: str = ".npz") -> Path:
  name = spec.replace(":", "-").replace(",", "_")
  return out / "cells" / f"{name}{ending}"


def has_cell(out: Path, spec: str) -> bool:
  """Whether training with a loss is finished and kept."""
  return _cell_path(out, spec).exists()


class Checkpoint:
  """Keeps a training under way, so that a killed study goes on from there."""

  def __init__(self, out: Path, spec: str, every: float):
    """Looks for what an earlier call has kept.

    Args:
      out: Folder of the study.
      spec: The loss.
      every: Seconds between two savings.
    """
    self._path = _cell_path(out, spec, _UNDER_WAY).absolute()
    self._every = every
    self._last = time.monotonic()

  def _manager(self) -> orbax.CheckpointManager:
    # The earlier step goes only when the next is whole.
    options = orbax.CheckpointManagerOptions(
      max_to_keep=1, enable_async_checkpointing=False
    )
    return orbax.CheckpointManager(self._path, options=options)

  def restore(self, fresh: State) -> Reached | None:
    """What was reached, given a state of the same structure."""
    if not self._path.exists():
      return None
    with self._manager() as manager:
      step = manager.latest_step()
      if step is None:
        return None
      kept = manager.restore(step, args=orbax.args.StandardRestore())
    leaves, structure = jax.tree.flatten(fresh)
    state = [
      jnp.asarray(x, leaf.dtype)
      for x, leaf in zip(kept["state"], leaves, strict=True)
    ]
    parts = (
      list(map(np.asarray, kept.get(p) or [])) for p in Reached._fields[1:]
    )
    return Reached(jax.tree.unflatten(structure, state), *parts)

  def save(self, epoch: int, reached: Reached) -> None:
    """Keeps what was reached, if the last saving was long enough ago."""
    if time.monotonic() - self._last < self._every:
      return
    kept = {**reached._asdict(), "state": jax.tree.leaves(reached.state)}
    # An empty list would not come back.
    kept = {name: value for name, value in kept.items() if value}
    with _mendable("write", self._path), self._manager() as manager:
      manager.save(epoch, args=orbax.args.StandardSave(kept))
    self._last = time.monotonic()

  def remove(self) -> None:
    """Drops it, once the loss is finished."""
    shutil.rmtree(self._path, ignore_errors=True)


def write_cell(out: Path, spec: str, cell: Cell) -> None:
  """Keeps what training with a loss left behind."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **cell._asdict())
  write(_cell_path(out, spec), buffer.getvalue())


def read_cell(out: Path, spec: str) -> Cell:
  """Reads it back."""
  path = _cell_path(out, spec)
  with _mendable("read", path):
    data = io.BytesIO(path.read_bytes())
  try:
    with np.load(data, allow_pickle=False) as arrays:
      return Cell(**{name: arrays[name] for name in Cell._fields})
  except UNREADABLE as error:
    reason = str(error).partition("\n")[0] or type(error).__name__
    raise StudyError(
      f"{path} is damaged ({reason}); delete it and run the study again"
    ) from None
