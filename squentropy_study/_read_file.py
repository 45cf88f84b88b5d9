# SPDX-License-Identifier: Apache-2.0
"""Reads a data file or a folder of images by its ending."""

from collections.abc import Iterator
import contextlib
import io
from pathlib import Path

import numpy as np
import pandas as pd

from squentropy_study import (
  _arff,
  _arrays,
  _delimited,
  _excel,
  _header,
  _read_text,
)
from squentropy_study._encoding import EncodedTable
from squentropy_study._raw_table import RawTable
from squentropy_study._read_text import Content
from squentropy_study._study_error import UNREADABLE, StudyError

# The endings of delimited text, and the separator that needs no note.
_DELIMITED = {
  ".csv": ",",
  ".tsv": "\t",
  ".tab": "\t",
  ".txt": None,
  ".data": None,
}
_EXCEL = (".xlsx", ".xlsm", ".xls")
# Kinds that are ZIP archives by themselves.
_ARCHIVES = (".npz", ".xlsx", ".xlsm", ".xls")
_KINDS = (*_DELIMITED, ".arff", ".parquet", *_EXCEL, ".npz")
# The package that pandas reads a kind with, and what to do without it.
_EXTRA = "install the extra: pip install 'squentropy_jax[tables]'"
_PACKAGES = {
  ".parquet": ("pyarrow", _EXTRA),
  ".xlsx": ("openpyxl", _EXTRA),
  ".xlsm": ("openpyxl", _EXTRA),
  ".xls": ("xlrd", "save the table as .xlsx or .csv, or pip install xlrd"),
}


def _refuse_options(
  source: str, what: str, *, encoding: str | None, header: bool
) -> None:
  """Raises for an option that this kind of file does not have."""
  if encoding is not None:
    raise StudyError(
      f"{source} is {what}, not text, so it has no encoding; leave out "
      "--encoding"
    )
  if not header:
    raise StudyError(
      f"{source} is {what}, which has no header line; leave out --no-header"
    )


def _kind(found: Content, path: Path) -> str:
  """Returns the ending that says how to read a file."""
  kind = Path(found.name).suffix.lower()
  if kind == ".xls" and not found.data.startswith((_excel.OLD, b"PK")):
    return ".tsv"  # Programs also write text with this ending.
  if kind in _KINDS:
    return kind
  compressed = _read_text.is_compressed(path)
  ending = "".join(path.suffixes[-2:]) if compressed else path.suffix
  advice = f"expected one of {', '.join(_KINDS)} (also with .gz, .zip, .bz2 "
  advice += "or .xz), or a folder with one folder of images per class"
  if kind == ".npy":
    advice = "save features and labels with np.savez(path, x=..., y=...)"
  elif kind in (".json", ".jsonl", ".feather", ".pkl", ".dta", ".sas7bdat"):
    advice = (
      "save the table with pandas, such as frame.to_parquet(path) or "
      f"frame.to_csv(path, index=False); {advice}"
    )
  raise StudyError(
    f"{path}: no reader for {ending or 'a name without ending'!r}; {advice}"
  )


def _table(
  found: Content, kind: str, source: str, encoding: str | None, header: bool
) -> RawTable:
  if kind in _DELIMITED or kind == ".arff":
    text, notes = _read_text.decode(found.data, source, encoding)
    if kind == ".arff":
      table = _arff.read(text, source)
    else:
      usual = _DELIMITED[kind]
      table = _delimited.read(text, source, usual=usual, header=header)
    return table._replace(notes=(*notes, *table.notes))
  if kind in _EXCEL:
    return _excel.read(found.data, source, ending=kind, header=header)
  return RawTable(pd.read_parquet(io.BytesIO(found.data)))


def _check_label(
  path: Path, table: RawTable, label: str | None, header: bool
) -> None:
  """Raises if there is no name of a column of labels."""
  _header.check(str(path), table, label, header=header)
  if label is None:
    names = ", ".join(map(str, table.frame.columns[:8]))
    more = ", ..." if len(table.frame.columns) > 8 else ""
    raise StudyError(
      f"{path}: choose the column of the classes with --label, one of {names}"
      + more
    )


def _read(
  path: Path, label: str | None, encoding: str | None, header: bool
) -> RawTable | EncodedTable:
  source = str(path)
  arrays = path.is_dir()
  if not arrays:
    found = _read_text.content(path, _ARCHIVES)
    kind = _kind(found, path)
    arrays = kind == ".npz"
  if arrays:
    what = "a folder of images" if path.is_dir() else "a file of arrays"
    if label is not None:
      where = (
        "in the names of its folders" if path.is_dir() else "in the array y"
      )
      raise StudyError(
        f"{path} has its labels {where}, so it has no column to choose; leave "
        "out --label"
      )
    _refuse_options(source, what, encoding=encoding, header=header)
    if path.is_dir():
      return _arrays.images(path)
    encoded = _arrays.npz(found.data, source)
    return encoded._replace(notes=(*found.notes, *encoded.notes))
  table = _read_table(path, found, kind, encoding, header)
  _check_label(path, table, label, header)
  return table


def _read_table(
  path: Path, found: Content, kind: str, encoding: str | None, header: bool
) -> RawTable:
  """Reads the table of a file that holds no arrays."""
  source = str(path)
  if kind in (".parquet", *_EXCEL):
    # Only a workbook may have no header.
    no_header = kind in _EXCEL or header
    _refuse_options(
      source, f"a {kind} file", encoding=encoding, header=no_header
    )
  elif kind == ".arff":
    _refuse_options(source, "an ARFF file", encoding=None, header=header)
  table = _table(found, kind, source, encoding, header)
  return table._replace(notes=(*found.notes, *table.notes))


def read(
  path: Path,
  label: str | None,
  *,
  encoding: str | None = None,
  header: bool = True,
) -> RawTable | EncodedTable:
  """Reads a data file, or a folder of images.

  Args:
    path: A file of separated values (``.csv``, ``.tsv``, ``.tab``, ``.txt``,
      ``.data``), an ARFF, Parquet, Excel or NPZ file, or a folder with one
      folder of images per class. A file may be compressed.
    label: The column of a table with the classes.
    encoding: The encoding of a text without a byte order mark; None is UTF-8.
    header: Whether the first line of a text or workbook names the columns.

  Returns:
    A table as it was read, or the rows of arrays.

  Raises:
    StudyError: The file cannot be read, its kind does not have an option, no
      label is chosen, or a package is not installed.
  """
  with _file_errors(path):
    return _read(path, label, encoding, header)


def read_new(
  path: Path, *, encoding: str | None = None, header: bool = True
) -> RawTable | tuple[np.ndarray, np.ndarray | None]:
  """Reads new rows, which may have no labels.

  Args:
    path: A file with a table, or an NPZ file; not a folder.
    encoding: The encoding of a text without a byte order mark; None is UTF-8.
    header: Whether the first line of a text or workbook names the columns.

  Returns:
    A table as it was read, or features and labels; None without labels.

  Raises:
    StudyError: The file cannot be read.
  """
  if not path.exists():
    raise StudyError(f"there is no file {path}; check the path")
  with _file_errors(path):
    found = _read_text.content(path, _ARCHIVES)
    kind = _kind(found, path)
    if kind != ".npz":
      return _read_table(path, found, kind, encoding, header)
    what = "a file of arrays"
    _refuse_options(str(path), what, encoding=encoding, header=header)
    return _arrays.new_npz(found.data, str(path))


@contextlib.contextmanager
def _file_errors(path: Path) -> Iterator[None]:
  """Turns what readers raise into a StudyError that names the file."""
  ending = (
    path.with_suffix("") if _read_text.is_compressed(path) else path
  ).suffix.lower()
  try:
    yield
  except ImportError:
    package, advice = _PACKAGES.get(ending, ("pyarrow or openpyxl", _EXTRA))
    raise StudyError(
      f"{path}: reading a {ending} file needs the package {package}, which is "
      f"not installed; {advice}"
    ) from None
  except StudyError:
    raise
  except UNREADABLE as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise StudyError(
      f"{path} cannot be read as a {ending} file: {reason}; fix the file, or "
      "correct its ending if it is another kind of file"
    ) from None
