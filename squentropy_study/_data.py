# SPDX-License-Identifier: Apache-2.0
"""Data sets: bundled ones, files, tables; samples of their rows."""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
from pathlib import Path
import types
from typing import NamedTuple

import numpy as np
from sklearn import datasets as sklearn_datasets
from sklearn.model_selection import train_test_split

from squentropy_study import (
  _encoding,
  _read_file,
  _read_text,
)
from squentropy_study._encoding import EncodedTable
from squentropy_study._raw_table import RawTable
from squentropy_study._study_error import StudyError, unknown_name
from squentropy_study._table_encoder import TableEncoder
from squentropy_study._table_options import NO_OPTIONS, TableOptions


class Dataset(NamedTuple):
  """A data set: numeric features and one class id per row.

  Attributes:
    name: The name or path that the user gave.
    features: ``[rows, columns]`` or ``[rows, height, width, channels]``,
      floating, not standardised; NaN where a value is missing.
    labels: ``[rows]``, int32 class ids from 0.
    classes: Names of the classes.
    notes: Sentences on how the file was turned into numbers.
    warnings: Sentences on what may be wrong with the data.
    row_numbers: ``[rows]``, the number of each row in the file, from 0; None if
      all rows of the file are used.
    times: ``[rows]``, numbers or dates that order the rows; None without
      ``--time``.
    groups: ``[rows]``, equal values for the rows of a group; None without
      ``--group``.
    encoder: Turns new rows into features alike; None for arrays.
    ids: ``[rows]``, values that identify the rows; None without ``--id``.
  """

  name: str
  features: np.ndarray
  labels: np.ndarray
  classes: tuple[str, ...]
  notes: tuple[str, ...] = ()
  warnings: tuple[str, ...] = ()
  row_numbers: np.ndarray | None = None
  times: np.ndarray | None = None
  groups: np.ndarray | None = None
  encoder: TableEncoder | None = None
  ids: np.ndarray | None = None

  @property
  def class_counts(self) -> dict[str, int]:
    """Number of rows of each class by its name."""
    counts = np.bincount(self.labels, minlength=len(self.classes))
    return dict(zip(self.classes, map(int, counts), strict=True))


_BUNDLED: dict[str, Callable] = {
  "digits": sklearn_datasets.load_digits,
  "iris": sklearn_datasets.load_iris,
  "wine": sklearn_datasets.load_wine,
  "breast_cancer": sklearn_datasets.load_breast_cancer,
}


def names() -> tuple[str, ...]:
  """Returns the data sets that scikit-learn brings without a download."""
  return tuple(_BUNDLED)


def short_name(name: str) -> str:
  """Returns the name of a data set, or of a file without its endings."""
  path = Path(name)
  return Path(path.stem).stem if _read_text.is_compressed(path) else path.stem


def load_data(
  name: str,
  label: str | None = None,
  *,
  options: TableOptions = NO_OPTIONS,
  encoding: str | None = None,
  header: bool = True,
  time: str | None = None,
  group: str | None = None,
  id: str | None = None,
) -> Dataset:
  """Loads a bundled data set, a data file, or a folder of images.

  Args:
    name: A bundled data set (``digits``, ``iris``, ``wine``,
      ``breast_cancer``), or the path of a file of separated values (``.csv``,
      ``.tsv``, ``.tab``, ``.txt``, ``.data``), an ARFF, Parquet, Excel or NPZ
      file, or a folder with one folder of images per class. A file may be
      compressed.
    label: The column of a table with the classes.
    options: How a table is turned into features and labels.
    encoding: The encoding of a text without a byte order mark, such as
      ``cp1252``; None is UTF-8.
    header: Whether the first line of a text or workbook names the columns.
      Without names, they are ``column1``, ``column2`` and so on.
    time: A column of times to split the rows by, which is no feature.
    group: A column of groups to split the rows by, which is no feature.
    id: A column that identifies the rows, which is no feature.

  Returns:
    The data set.

  Raises:
    StudyError: The name is unknown, or the file cannot be read.

  Examples:
    >>> from squentropy_study import load_data
    >>> load_data("iris").features.shape
    (150, 4)
  """
  columns = {"time": time, "group": group, "id": id}
  if name not in _BUNDLED:
    path = Path(name)
    if not path.exists():
      if path.suffix or path.name != name:
        raise StudyError(f"there is no file {name}; check the path")
      raise unknown_name("data set", name, names())
    found = _read_file.read(path, label, encoding=encoding, header=header)
    if isinstance(found, RawTable):
      return from_table(
        name, found, str(label), options=options, columns=columns
      )
    check_no_columns(name, columns)
    return Dataset(name, *_encoding.apply_options(name, found, options))
  check_no_columns(name, columns)
  if label is not None:
    raise StudyError(
      f"{name} already has labels, so it has no column to choose; leave out "
      "--label"
    )
  if encoding is not None or not header:
    raise StudyError(
      f"{name} is a bundled data set and no file; leave out --encoding and "
      "--no-header"
    )
  bunch = _BUNDLED[name]()
  classes = tuple(map(str, bunch.target_names))
  encoded = EncodedTable(bunch.data, bunch.target.astype(np.int32), classes)
  if options != NO_OPTIONS:
    encoded = _encoding.apply_options(name, encoded, options)
  return Dataset(name, *encoded)


def check_no_columns(name: str, columns: Mapping[str, str | None]) -> None:
  """Raises if an option names a column of rows without columns."""
  for option, column in columns.items():
    if column is not None:
      raise StudyError(
        f"{name} has no column for --{option}, which needs a table; leave out "
        f"--{option}"
      )


def from_table(
  name: str,
  table: RawTable,
  label: str,
  *,
  options: TableOptions = NO_OPTIONS,
  columns: Mapping[str, str | None] = types.MappingProxyType({}),
) -> Dataset:
  """Turns a table into a data set; see :func:`load_data`."""
  values: dict[str, np.ndarray] = {}
  named = {k: column for k, column in columns.items() if column is not None}
  names = [str(each) for each in table.frame.columns]
  table = table._replace(frame=table.frame.set_axis(names, axis=1))
  for option, column in named.items():
    if column == label:
      raise StudyError(
        f"--{option} {column}: the column holds the labels; name another one"
      )
    if column not in names:
      others = [each for each in names if each != label]
      raise unknown_name(f"column of {name} for --{option}", column, others)
    values[option] = (
      _encoding.sortable(name, table, column, options)
      if option == "time"
      else table.frame[column].to_numpy(object)
    )
  drop = dict.fromkeys((*options.drop, *named.values()))
  encoder, encoded = _encoding.fit_encoder(
    name,
    table,
    label,
    options=dataclasses.replace(options, drop=tuple(drop)),
  )
  rows = encoded.row_numbers
  times, groups, ids = (
    None if (found := values.get(option)) is None else found[rows]
    for option in ("time", "group", "id")
  )
  return Dataset(
    name,
    times=times,
    groups=groups,
    encoder=encoder,
    ids=ids,
    **encoded._asdict(),
  )


def describe(name: str) -> str:
  """Returns one line on a bundled data set."""
  dataset = load_data(name)
  rows, features = dataset.features.shape
  size = f"{rows} rows, {features} features, {len(dataset.classes)} classes"
  return f"{name}: {size}"


def digest(dataset: Dataset) -> str:
  """Returns a SHA-256 of everything in a data set that decides numbers."""
  result = hashlib.sha256()
  decisive = (dataset.features, dataset.labels, dataset.times, dataset.groups)
  for array in (x for x in decisive if x is not None):
    if array.dtype.kind == "O":
      array = array.astype(str)
    result.update(f"{array.dtype.str} {array.shape} ".encode())
    # Dates have no buffer of their own.
    result.update(array.tobytes())
  result.update(repr(dataset.classes).encode())
  return result.hexdigest()


def draw(dataset: Dataset, rows: int, seed: int) -> Dataset:
  """Returns a stratified sample of at most ``rows`` rows."""
  if rows >= dataset.labels.size:
    return dataset
  check_counts(dataset, 2, f"a sample of {rows} rows")
  if rows < len(dataset.classes):
    raise StudyError(
      f"rows must be at least the {len(dataset.classes)} classes of "
      f"{dataset.name}, got {rows}"
    )
  size = dataset.labels.size
  if rows > size - len(dataset.classes):
    raise StudyError(
      f"a stratified sample of {dataset.name} must leave out one row per "
      f"class: rows must be at most {size - len(dataset.classes)}, or {size} "
      f"for all rows; got {rows}"
    )
  index, _ = train_test_split(
    np.arange(size),
    train_size=rows,
    stratify=dataset.labels,
    random_state=seed,
  )
  note = f"stratified sample of {rows} of {size} rows"
  if dataset.row_numbers is None:
    dataset = dataset._replace(row_numbers=np.arange(size))
  of_rows = ("features", "labels", "row_numbers", "times", "groups", "ids")
  arrays = {name: getattr(dataset, name) for name in of_rows}
  return dataset._replace(
    **{name: x[index] for name, x in arrays.items() if x is not None},
    notes=(*dataset.notes, note),
  )


def check_counts(dataset: Dataset, least: int, purpose: str) -> None:
  """Raises if a class has too few rows for a purpose."""
  counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
  if counts.min() < least:
    rare = dataset.classes[counts.argmin()]
    rows = f"{counts.min()} row{'s' if counts.min() != 1 else ''}"
    enough = counts[counts < least].sum() >= least
    pool = f", or pool them with --merge-rare {least}" if enough else ""
    raise StudyError(
      f"class {rare!r} of {dataset.name} has {rows}, but {purpose} needs at "
      f"least {least} rows of each class; add rows, or drop rare classes with "
      f"--min-class {least}{pool}"
    )
