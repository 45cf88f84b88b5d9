# SPDX-License-Identifier: Apache-2.0
"""The folder of a study and its configuration; every write is atomic."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import io
import json
import os
from pathlib import Path
import re
import shutil
from typing import Any

import numpy as np

from squentropy_study import _fingerprint, _loss_specs
from squentropy_study._settings import Settings
from squentropy_study._study_error import UNREADABLE, StudyError

CONFIG = "config.json"
_FORMAT = 3
PREPROCESSING = "preprocessing.json"
# The second one where pyarrow is not installed.
PREDICTIONS = ("predictions.parquet", "predictions.csv.gz")
_OUTPUTS = (
  "results.csv",
  *PREDICTIONS,
  "reliability.png",
  "training.png",
  "report.html",
  PREPROCESSING,
)
SUMMARY = "summary.csv"
_SUMMARY_OUTPUTS = {
  SUMMARY,
  "summary.png",
  "summary.html",
  "ranks.csv",
  "ranks.png",
}
_PARTIAL = ".part"
RUNS = "runs"
CHECKPOINT = ".checkpoint"
# Settings that may differ from one call to the next.
_MAY_DIFFER = {"losses", "seeds", "reference", "baselines", "id"}
_KEYS = {
  "command",
  "settings",
  "rows",
  "classes",
  "notes",
  "versions",
  "own_losses",
}


@contextlib.contextmanager
def file_errors(action: str, path: Path) -> Iterator[None]:
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
  with file_errors("write", path):
    try:
      with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      partial.replace(path)
    finally:
      partial.unlink(missing_ok=True)


def read_arrays(path: Path, reader: Callable[[Any], Any]) -> Any:
  """Reads arrays; raises a StudyError if the file is damaged."""
  with file_errors("read", path):
    data = io.BytesIO(path.read_bytes())
  try:
    with np.load(data, allow_pickle=False) as arrays:
      return reader(arrays)
  except UNREADABLE as error:
    reason = str(error).partition("\n")[0] or type(error).__name__
    raise StudyError(
      f"{path} is damaged ({reason}); delete it and run the study again"
    ) from None


def make_summary_folder(out: Path) -> None:
  """Creates the folder of a summary; raises if it holds anything else."""
  with file_errors("use", out):
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
    counts), ``classes`` (row counts by name), ``notes``, ``data_sha256`` and
    ``versions``, and ``own_losses`` with a digest of each loss that is not of
    the library. None if the folder holds no study. Other versions of the study
    may have other settings.
  """
  try:
    config = json.loads((Path(folder) / CONFIG).read_text())
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
  if not isinstance(config, dict) or "squentropy_study" not in config:
    return None
  # Other formats may have other keys.
  complete = config.keys() >= _KEYS or config["squentropy_study"] != _FORMAT
  return config if complete else None


def check_format(out: Path, config: dict) -> None:
  """Raises if another version of the study wrote the folder."""
  if config["squentropy_study"] != _FORMAT:
    raise StudyError(
      f"the study in {out} has format {config['squentropy_study']}, but this "
      f"version of squentropy-study needs format {_FORMAT}; run the study "
      "again with --fresh"
    )


def read_settings(out: Path, config: dict) -> Settings:
  """Returns the settings in the configuration of a folder.

  Raises:
    StudyError: The folder is damaged, another version of the study wrote it, or
      the formula of a loss that is not of the library has changed.
  """
  check_format(out, config)
  try:
    fields: dict[str, Any] = {
      key: tuple(value) if isinstance(value, list) else value
      for key, value in config["settings"].items()
    }
    settings = Settings(**fields)
    classes, stored = len(config["classes"]), dict(config["own_losses"])
  except StudyError:
    raise
  except (AttributeError, TypeError, ValueError) as error:
    raise _damaged(out, error) from None
  for loss, digest in _loss_specs.digests(settings.losses, classes).items():
    if stored.get(loss) != digest:
      raise StudyError(
        f"{out} holds results of another formula of {loss}; restore that "
        "formula, name another folder with --out, or replace the study with "
        "--fresh"
      )
  return settings


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
      or a study with other data, versions or settings. Only the losses, the
      number of seeds, the reference, the baselines and the id column may
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
    "own_losses": _loss_specs.digests(settings.losses, len(classes)),
  }
  with file_errors("use", out):
    _check(out, config, fresh=fresh)
    out.mkdir(parents=True, exist_ok=True)
  # The first file: a killed process leaves a folder that says what it is.
  write(out / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
  with file_errors("use", out):
    (out / RUNS).mkdir(exist_ok=True)
    # Partial files of killed processes.
    for folder in (out, out / RUNS):
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
    for path in [*map(out.joinpath, _OUTPUTS), *(out / RUNS).glob("*.npz")]:
      path.unlink(missing_ok=True)
    for path in (out / RUNS).glob(f"*{CHECKPOINT}"):
      shutil.rmtree(path)
  else:
    check_format(out, earlier)
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
  # Each loss and each seed is trained alone, so they may be added. The others
  # decide only what is shown.
  return {k: v for k, v in identity.items() if k not in _MAY_DIFFER}


def _damaged(out: Path, error: Exception) -> StudyError:
  return StudyError(
    f"{out / CONFIG} is damaged ({error}); run the study again with --fresh"
  )
