# SPDX-License-Identifier: Apache-2.0
"""The predictions of a study for each test row, as a table and as a file."""

from collections.abc import Iterator
import importlib.util
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from squentropy_study import _store, _test_rows
from squentropy_study._column_cells import value_text
from squentropy_study._data import Dataset
from squentropy_study._settings import STOPPED
from squentropy_study._study_error import StudyError
from squentropy_study._test_rows import Predictions

if TYPE_CHECKING:
  from squentropy_study._results import Results

PARQUET, CSV = _store.PREDICTIONS
# Most log-probabilities in a file: 100 MB of Parquet, or 60 MB of text.
_MOST = {PARQUET: 25_000_000, CSV: 5_000_000}
_ROWS_FILE = "rows.npz"


class DataRows(NamedTuple):
  """What identifies the rows of a study.

  Attributes:
    classes: Names of the classes.
    numbers: ``[rows]``, the number of each row in the data, from 0.
    ids: ``[rows]``, the values of the id column; None without ``--id``.
  """

  classes: tuple[str, ...]
  numbers: np.ndarray
  ids: np.ndarray | None = None


def _ids(values: np.ndarray) -> np.ndarray:
  """Returns ids as integers if all of them are, else as text."""
  if all(isinstance(x, int) and not isinstance(x, bool) for x in values):
    return values
  texts = ["" if pd.isna(x) else value_text(x) for x in values]
  return np.fromiter(texts, object, len(texts))


def data_rows(dataset: Dataset) -> DataRows:
  """Returns what identifies the rows of a data set."""
  numbers = dataset.row_numbers
  return DataRows(
    dataset.classes,
    np.arange(dataset.labels.size) if numbers is None else numbers,
    None if dataset.ids is None else _ids(dataset.ids),
  )


def _path(out: Path) -> Path:
  return out / _store.RUNS / _ROWS_FILE


def has_data_rows(out: Path) -> bool:
  """Returns whether the folder of a study says what identifies its rows."""
  return _path(out).exists()


def write_data_rows(out: Path, rows: DataRows) -> None:
  """Saves what identifies the rows in the folder of a study."""
  arrays = {"numbers": rows.numbers}
  for name in ("classes", "ids"):
    values = getattr(rows, name)
    if values is not None:
      # An array of text gives each value the length of the longest one.
      text = json.dumps(list(values)).encode()
      arrays[name] = np.frombuffer(text, np.uint8)
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
  _store.write(_path(out), buffer.getvalue())


def read_data_rows(out: Path) -> DataRows:
  """Reads what :func:`write_data_rows` saved.

  Args:
    out: The folder of the study.

  Returns:
    What identifies the rows.

  Raises:
    StudyError: The file is missing or damaged.
  """

  def read(arrays: Any) -> DataRows:
    classes = tuple(json.loads(arrays["classes"].tobytes()))
    ids = None
    if "ids" in arrays.files:
      values = json.loads(arrays["ids"].tobytes())
      ids = np.fromiter(values, object, len(values))
    return DataRows(classes, arrays["numbers"], ids)

  return _store.read_arrays(_path(out), read)


def _all(results: "Results") -> Iterator[tuple[str, Predictions]]:
  """Yields the predictions of each loss and baseline after stopped training."""
  seen: dict[str, Predictions] = {}
  for method in results.methods:
    # The first map is the one that the loss itself defines.
    if method.loss not in seen:
      seen[method.loss] = results.test_predictions(method, STOPPED)
      yield method.loss, seen[method.loss]
  rows = next(iter(seen.values()))
  for name, baseline in results.baselines.items():
    yield name, _test_rows.of_baseline(baseline.scaled_log_probs, rows)


def frame(results: "Results", seeds: int | None = None) -> pd.DataFrame:
  """Returns a row for each test row, fold, seed, and loss or baseline.

  Args:
    results: The numbers of a study in a folder.
    seeds: Number of seeds, from seed 0; None means all.

  Returns:
    The table; see :meth:`Results.predictions`.
  """
  if results.data_rows is None:
    raise StudyError(
      "these results do not say which row of the data each test row is; read "
      "them with squentropy_study.load"
    )
  classes, numbers, ids = results.data_rows
  rows = results.test_rows.rows[:: results.settings.seeds]
  names, log_probs, columns = [], [], []
  for name, predictions in _all(results):
    chosen = predictions.log_probs[:, :seeds]
    shape = chosen.shape[:3]
    keep = np.broadcast_to(predictions.keep[:, None], shape)
    runs = np.indices(shape, np.int32)
    values = (rows[:, None], *runs[:2], predictions.labels[:, None])
    columns.append([np.broadcast_to(x, shape)[keep] for x in values])
    log_probs.append(chosen[keep].astype(np.float32))
    names.append(name)
  row, fold, seed, label = map(np.concatenate, zip(*columns, strict=True))
  losses = np.repeat(np.arange(len(names)), list(map(len, log_probs)))
  table: dict[str, object] = {"row": numbers[row]}
  if ids is not None:
    table["id"] = pd.Series(ids[row]).infer_objects()
  table |= {
    "fold": fold,
    "seed": seed,
    "loss": pd.Categorical.from_codes(losses, names),
    "label": pd.Categorical.from_codes(label, list(classes)),
  }
  joined = np.concatenate(log_probs)
  named = {f"log_prob_{name}": joined[:, k] for k, name in enumerate(classes)}
  return pd.DataFrame(table | named)


class File(NamedTuple):
  """The file of predictions.

  Attributes:
    name: Its name; None if the predictions are too many.
    seeds: Number of seeds that it holds.
  """

  name: str | None
  seeds: int


def file(results: "Results") -> File:
  """Returns which file holds the predictions, and of how many seeds."""
  name = PARQUET if importlib.util.find_spec("pyarrow") else CSV
  settings = results.settings
  numbers = results.test_rows.keep[:: settings.seeds].sum()
  if results.data_rows is not None:
    numbers *= len(results.data_rows.classes)
  left = _MOST[name] - numbers * len(results.baselines)
  seeds = int(min(left // (numbers * len(settings.losses)), settings.seeds))
  return File(name, seeds) if seeds > 0 else File(None, 0)


def write(out: Path, results: "Results") -> None:
  """Writes the predictions of a study to its folder."""
  name, seeds = file(results)
  for other in {PARQUET, CSV} - {name}:
    (out / other).unlink(missing_ok=True)
  if name is None:
    return
  table, buffer = frame(results, seeds), io.BytesIO()
  if name == PARQUET:
    table.to_parquet(buffer, engine="pyarrow", index=False)
  else:
    # Without the time, so that the same study gives the same bytes.
    how = {"method": "gzip", "compresslevel": 6, "mtime": 0}
    table.to_csv(buffer, index=False, lineterminator="\n", compression=how)
  _store.write(out / name, buffer.getvalue())
