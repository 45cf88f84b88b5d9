# SPDX-License-Identifier: Apache-2.0
"""The folder of a study: what is kept in it, and never half written."""

from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
from importlib import metadata
import io
import json
import os
from pathlib import Path
import platform
from typing import Any
import zipfile

import jax
import numpy as np

import squentropy_jax
from squentropy_jax.study._errors import StudyError
from squentropy_jax.study._settings import Settings
from squentropy_jax.study._train import Cell

CONFIG = "config.json"
_FORMAT = 1
_OUTPUTS = ("results.csv", "reliability.png", "training.png", "report.html")
_PARTIAL = ".part"
_PARTS = {"command", "settings", "rows", "versions"}


@contextlib.contextmanager
def _mendable(action: str, path: Path) -> Iterator[None]:
  """Turns what the file system refuses into an error of one line."""
  try:
    yield
  except OSError as error:
    raise StudyError(f"cannot {action} {path}: {error.strerror}") from None


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


def _source() -> str:
  """A digest of the package's code: a version number stands for many states."""
  root = Path(squentropy_jax.__file__).parent
  digest = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(path.relative_to(root).as_posix().encode() + b"\0")
    digest.update(path.read_bytes() + b"\0")
  return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
  """Versions of everything that has a part in the numbers."""
  packages = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
  return {
    "squentropy_jax": squentropy_jax.__version__,
    "source": _source(),
    "python": platform.python_version(),
    **{name: metadata.version(name) for name in packages},
    "device": jax.devices()[0].device_kind,
  }


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
    raise StudyError(
      f"{out / CONFIG} is damaged ({error}); run the study again with --fresh"
    ) from None


def prepare(
  out: Path,
  settings: Settings,
  command: str,
  rows: dict[str, int],
  *,
  fresh: bool,
) -> None:
  """Makes the folder ready for a study, or refuses to touch it.

  Args:
    out: The folder; created if missing.
    settings: The study to be put in it.
    command: The command line to record.
    rows: How many rows each part of the split has, to record.
    fresh: Drop what an earlier study left there instead of going on with it.

  Raises:
    StudyError: The folder holds something else, or a study which differs in
      its settings or versions, or cannot be written.
  """
  config = {
    "squentropy_study": _FORMAT,
    "command": command,
    # Through text and back: tuples become lists, as they will be when read.
    "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
    "rows": rows,
    "versions": versions(),
  }
  with _mendable("use", out):
    _check(out, config, fresh=fresh)
    out.mkdir(parents=True, exist_ok=True)
  # First of all files: whatever kills the process, the folder says whose it is.
  write(out / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
  with _mendable("use", out):
    (out / "cells").mkdir(exist_ok=True)


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
  else:
    for part in ("settings", "versions"):
      for key, value in config[part].items():
        was = earlier[part].get(key)
        if was != value:
          raise StudyError(
            f"{out} holds another study ({key} {was}, now {value}); name "
            f"another folder with --out, or replace it with --fresh"
          )


def _cell_path(out: Path, spec: str) -> Path:
  name = spec.replace(":", "-").replace(",", "_")
  return out / "cells" / f"{name}.npz"


def has_cell(out: Path, spec: str) -> bool:
  """Whether training with a loss is finished and kept."""
  return _cell_path(out, spec).exists()


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
  except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
    raise StudyError(
      f"{path} is damaged ({error}); delete it and run the study again"
    ) from None
