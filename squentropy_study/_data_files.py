# SPDX-License-Identifier: Apache-2.0
"""Reads CSV, TSV, Parquet and NPZ files."""

import csv
import gzip
import io
from pathlib import Path
import zipfile

import numpy as np
import pandas as pd

from squentropy_study import _encoding, _label_column, _table_encoder
from squentropy_study._encoding import EncodedTable
from squentropy_study._raw_table import RawTable
from squentropy_study._study_error import UNREADABLE, StudyError
from squentropy_study._table_options import NO_OPTIONS, TableOptions

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_COMPRESSED = (".gz", ".zip")


def is_compressed(path: Path) -> bool:
  """Returns whether the ending says that a file is compressed."""
  return path.suffix.lower() in _COMPRESSED


def _kind(path: Path) -> str:
  """Returns the ending that says how to read a file, in lower case."""
  return Path(path.stem if is_compressed(path) else path).suffix.lower()


def _text(path: Path) -> str:
  """Returns the text of a file, decompressed where its ending says so."""
  data = path.read_bytes()
  if path.suffix.lower() == ".gz":
    data = gzip.decompress(data)
  elif path.suffix.lower() == ".zip":
    with zipfile.ZipFile(path) as archive:
      members = [m for m in archive.namelist() if not m.endswith("/")]
      if len(members) != 1:
        raise ValueError(
          f"expected one file in the archive, got {len(members)}"
        )
      data = archive.read(members[0])
  return data.decode("utf-8-sig")


def _header(text: str, separator: str) -> list[str]:
  """Returns the first row, after checking that all rows have its length."""
  rows = csv.reader(
    io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True
  )
  first: list[str] = []
  for row in rows:
    if len(row) < 2 and not "".join(row).strip():
      continue  # A blank line.
    if not first:
      first = row
      # A decimal comma would make the other rows longer.
      others = [s for s in ",;\t|" if len(row) == 1 and s in row[0]]
      if others:
        raise ValueError(
          f"expected values separated by {separator!r}, got {others[0]!r}"
        )
    if len(row) != len(first):
      # pandas would shift the columns of a row that is too long.
      raise ValueError(
        f"line {rows.line_num} has {len(row)} values for {len(first)} columns"
      )
  if not first:
    raise ValueError("it has no rows")
  return first


def _delimited(path: Path) -> RawTable:
  """Reads a CSV or TSV file as text."""
  separator = _SEPARATORS[_kind(path)]
  text = _text(path)
  header = _header(text, separator)
  _table_encoder.check_names(str(path), [name.strip() for name in header])
  frame = pd.read_csv(
    io.StringIO(text),
    sep=separator,
    skipinitialspace=True,
    dtype=str,
    keep_default_na=False,
  ).astype(object)
  frame = frame.map(str.strip)
  return RawTable(frame.where(frame != "", None), from_text=True)


def _npz(path: Path) -> EncodedTable:
  with path.open("rb") as file:
    arrays = np.load(file, allow_pickle=False)
    if isinstance(arrays, np.ndarray):
      raise ValueError("expected arrays x and y, got one array without a name")
    missing = {"x", "y"} - set(arrays)
    if missing:
      raise ValueError(f"it has no array {min(missing)!r}")
    x, y = arrays["x"], arrays["y"]
  if y.ndim != 1 or x.ndim < 2 or len(x) != len(y):
    raise ValueError(
      "expected x of shape (rows, ...) and y of shape (rows,), got shapes "
      f"{x.shape} and {y.shape}"
    )
  if x.dtype.kind not in "biuf":
    raise ValueError(f"x must be numeric, got {x.dtype}")
  if x.dtype.kind == "f":
    x = np.where(np.isfinite(x), x, np.nan)
  if np.isnan(x).all():
    raise ValueError("x has no finite value")
  ids, classes, kept = _label_column.class_ids(f"y of {path}", y)
  x = x[kept]
  notes = _label_column.without_label(int((~kept).sum()))
  if missing_values := np.isnan(x).sum():
    notes.append(
      f"{missing_values} missing or infinite values are replaced by the mean "
      "of the training rows"
    )
  rows = np.flatnonzero(kept)
  return EncodedTable(x, ids, classes, tuple(notes), row_numbers=rows)


def _read(path: Path, label: str | None, options: TableOptions) -> EncodedTable:
  kind = _kind(path)
  delimited = kind in _SEPARATORS
  if path.is_dir():
    raise StudyError(f"{path} is a folder; name a data file")
  known = delimited or (
    kind in (".parquet", ".npz") and not is_compressed(path)
  )
  if not known:
    ending = "".join(path.suffixes[-2:]) if is_compressed(path) else path.suffix
    raise StudyError(
      f"{path}: no reader for {ending or 'a name without ending'!r}; expected "
      ".csv, .tsv (also with .gz or .zip), .parquet or .npz"
    )
  if kind == ".npz":
    if label is not None:
      raise StudyError(
        f"{path} has its labels in the array y, so it has no column to choose; "
        "leave out --label"
      )
    return _encoding.apply_options(str(path), _npz(path), options)
  table = _delimited(path) if delimited else RawTable(pd.read_parquet(path))
  if label is None:
    names = ", ".join(map(str, table.frame.columns[:8]))
    raise StudyError(
      f"{path}: choose the column of the classes with --label, one of {names}"
      + (" ..." if len(table.frame.columns) > 8 else "")
    )
  _, encoded = _encoding.fit_encoder(str(path), table, label, options=options)
  return encoded


def read(
  path: Path, label: str | None, options: TableOptions = NO_OPTIONS
) -> EncodedTable:
  """Reads a data file.

  Args:
    path: A CSV, TSV, Parquet or NPZ file. A CSV or TSV file may be compressed
      (``.gz``, ``.zip``). An NPZ file has arrays ``x`` and ``y``.
    label: The column of a table with the classes.
    options: How a table is turned into features and labels.

  Returns:
    Its rows.

  Raises:
    StudyError: The file cannot be read, has no usable column of classes, or
      needs a package that is not installed.
  """
  try:
    return _read(path, label, options)
  except ImportError as error:
    raise StudyError(
      f"{path}: reading a Parquet file needs a package that is not installed "
      f"({error.name or 'pyarrow'}). Install the extra: pip install "
      "'squentropy_jax[tables]'"
    ) from None
  except StudyError:
    raise
  except UnicodeDecodeError as error:
    raise StudyError(
      f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8, or "
      "correct its ending if it is another kind of file"
    ) from None
  except UNREADABLE as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise StudyError(
      f"{path} cannot be read as a {_kind(path)} file: {reason}; fix the file, "
      "or correct its ending if it is another kind of file"
    ) from None
