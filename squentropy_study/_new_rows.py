# SPDX-License-Identifier: Apache-2.0
"""Turns new rows into the features and labels of a finished study."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple
import warnings

import numpy as np
import pandas as pd

from squentropy_study import (
  _arrays,
  _delimited,
  _header,
  _image_folder,
  _read_file,
)
from squentropy_study._column_cells import (
  Cells,
  example,
  read_cells,
  value_text,
)
from squentropy_study._column_encoder import (
  ColumnEncoder,
  boolean_values,
  category_names,
  date_values,
  number_values,
)
from squentropy_study._label_column import MISSING_LABELS, row_count
from squentropy_study._preprocessing import Preprocessing
from squentropy_study._raw_table import RawTable
from squentropy_study._study_error import StudyError
from squentropy_study._table_encoder import TableEncoder

# In quartile distances of the study: values beyond are of another scale. Fewer
# values than these say nothing about it.
_WIDE = 20
_LEAST_VALUES = 20
# Rows that are looked at, evenly spaced.
_ROWS_OF_SCALE = 1000


class NewRows(NamedTuple):
  """New rows.

  Attributes:
    features: ``[rows, ...]``, not standardised; NaN where a value is missing.
    labels: ``[rows]``, class ids, -1 for a row without a label; None if there
      are no labels.
    row_index: The index of the rows; None means 0, 1, 2 and so on.
    notes: Sentences on how the file was read.
    ids: ``[rows]``, values of the id column of the study, or paths of images;
      None without them.
    warnings: Sentences on values that are unlike those of the study.
  """

  features: np.ndarray
  labels: np.ndarray | None
  row_index: pd.Index | None = None
  notes: tuple[str, ...] = ()
  ids: np.ndarray | None = None
  warnings: tuple[str, ...] = ()


def read(
  data: Any,
  preprocessing: Preprocessing,
  *,
  merge_case: bool,
  id: str | None,
  encoding: str | None,
  header: bool,
) -> NewRows:
  """Reads new rows and encodes them like those of the study.

  Args:
    data: A path, a DataFrame or an array.
    preprocessing: Of the study.
    merge_case: Whether the study merged labels that differ only in case.
    id: The column that identifies the rows of the study, if any.
    encoding: The encoding of a text without a byte order mark; None is UTF-8.
    header: Whether the first line of a text or workbook names the columns.

  Returns:
    The rows.

  Raises:
    StudyError: The rows cannot be read, or are not like those of the study.
  """
  index: pd.Index | None = None
  paths: np.ndarray | None = None
  found: RawTable | tuple[np.ndarray, np.ndarray | None]
  if isinstance(data, pd.DataFrame):
    source, index, found = "the table", data.index, RawTable(data)
  elif isinstance(data, str | Path) and Path(data).is_dir():
    source = str(data)
    pixels, folders, paths = _of_folder(Path(data), preprocessing)
    found = (pixels, folders)
  elif isinstance(data, str | Path):
    source = str(data)
    found = _read_file.read_new(Path(data), encoding=encoding, header=header)
  else:
    source = "the array"
    found = (_arrays.features(np.asarray(data), source), None)
  encoder = preprocessing.encoder
  if isinstance(found, RawTable) and encoder is None:
    raise StudyError(
      f"the study was trained on arrays of shape (rows, "
      f"{', '.join(map(str, preprocessing.shape))}), but {source} is a table; "
      "pass such an array, or the path of an .npz file with it as array x"
    )
  if not isinstance(found, RawTable) and encoder is not None:
    raise StudyError(
      f"the study was trained on a table, but {source} is an array without "
      "names of columns; pass a DataFrame, or the path of a file with a table"
    )
  if isinstance(found, RawTable):
    assert encoder is not None
    rows = _of_table(found, encoder, source, merge_case, header)
    names = [str(name) for name in found.frame.columns]
    if id is not None and names.count(id) == 1:
      ids = found.frame.iloc[:, names.index(id)]
      rows = rows._replace(ids=ids.to_numpy(object))
  else:
    rows = _of_arrays(*found, preprocessing, source, merge_case)
    rows = rows._replace(ids=paths)
  if not len(rows.features):
    raise StudyError(f"{source} has no rows; add at least one")
  return rows._replace(row_index=index)


def _of_folder(
  folder: Path, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
  """Returns images, their folders and their paths within a folder."""
  if not preprocessing.from_folder:
    raise StudyError(
      f"{folder} is a folder, but the study was not trained on a folder of "
      "images; name a file"
    )
  pixels, names, classes = _image_folder.read_new(folder, preprocessing.shape)
  labels = None if classes is None else np.array(classes, object)
  return pixels, labels, np.array(names, object)


def _scale_warnings(
  x: np.ndarray, preprocessing: Preprocessing, source: str
) -> tuple[str, ...]:
  """Says which features seem to have another scale than in the study."""
  some = x[:: max(len(x) // _ROWS_OF_SCALE, 1)]
  values = preprocessing.standardized(some)
  values = values.reshape(-1, values.shape[-1])
  if len(values) < _LEAST_VALUES:
    return ()
  low, middle, high = np.nanpercentile(values, (10, 50, 90), axis=0)
  varies = np.nanmax(values, axis=0) > np.nanmin(values, axis=0)
  spread = high - low
  odd = (np.abs(middle) > _WIDE) | (spread > 5 * _WIDE)
  odd |= (spread < 1 / _WIDE) & varies
  if not odd.any():
    return ()
  return (
    f"the values of {source} are spread differently from those of the study in "
    f"{row_count(int(odd.sum())).replace('row', 'feature')}; scale them in the "
    "same way as the rows of the study",
  )


def _of_arrays(
  x: np.ndarray,
  y: np.ndarray | None,
  preprocessing: Preprocessing,
  source: str,
  merge_case: bool,
) -> NewRows:
  if x.shape[1:] != preprocessing.shape:
    shape = ", ".join(map(str, ("rows", *preprocessing.shape)))
    raise StudyError(
      f"{source} must have the shape ({shape}) of the arrays of the study, got "
      f"{x.shape}; reshape it"
    )
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
    odd_scale = _scale_warnings(x, preprocessing, source)
  if y is None:
    return NewRows(x, None, warnings=odd_scale)
  if y.shape != x.shape[:1]:
    raise StudyError(
      f"{source}: expected y of shape ({len(x)},), got {y.shape}; reshape it, "
      "or leave it out"
    )
  ids, odd = _labels(y, preprocessing.classes, merge_case)
  return NewRows(x, ids, warnings=odd + odd_scale)


def _of_table(
  table: RawTable,
  encoder: TableEncoder,
  source: str,
  merge_case: bool,
  header: bool,
) -> NewRows:
  names = [str(name) for name in table.frame.columns]
  _check_header(table, names, encoder, source, header)
  if not len(table.frame):
    raise StudyError(f"{source} has no rows; add at least one")
  frame = table.frame.set_axis(names, axis=1)
  # If a column occurs twice, transform raises an error.
  once = [c for c in encoder.columns if names.count(c.name) == 1]
  cells = [read_cells(c.name, frame[c.name], encoder.missing) for c in once]
  if table.from_text:
    mark = _decimal_mark(once, cells, table.decimal)
    columns = tuple(
      dataclasses.replace(column, decimal=mark) for column in encoder.columns
    )
    encoder = dataclasses.replace(encoder, columns=columns)
    once = [dataclasses.replace(column, decimal=mark) for column in once]
  features = encoder.transform(table)
  ids, odd = None, _odd_cells(once, cells)
  if names.count(encoder.label) == 1:
    ids, more = _labels(frame[encoder.label], encoder.classes, merge_case)
    odd += more
  return NewRows(features, ids, notes=table.notes, warnings=odd)


def _check_header(
  table: RawTable,
  names: list[str],
  encoder: TableEncoder,
  source: str,
  header: bool,
) -> None:
  """Raises if the columns of a file cannot be found by their names."""
  studied = list(encoder.names)
  unnamed = studied == _delimited.column_names(len(studied))
  if header:
    if unnamed and not {c.name for c in encoder.columns} <= {*names}:
      raise StudyError(
        f"the table of the study had no header, but the first line of {source} "
        "is read as a header; add --no-header (in Python, header=False)"
      )
    return
  _header.check(source, table, None, header=False)
  if not unnamed:
    raise StudyError(
      f"{source} has no header, but the study finds columns by name, such as "
      f"{encoder.columns[0].name!r}; add a first line with the names"
    )
  # Only a label at the end can be left out without moving other columns.
  if names != studied and [*names, encoder.label] != studied:
    raise StudyError(
      f"{source} has {len(names)} columns, but the table of the study had "
      f"{len(studied)}, with the label in {encoder.label}; pass the same "
      "columns in the same order"
    )


def _decimal_mark(
  columns: Sequence[ColumnEncoder], cells: Sequence[Cells], found: str
) -> str:
  """Returns the mark with which most numbers of a text can be read."""
  numeric = [
    (column, each)
    for column, each in zip(columns, cells, strict=True)
    if column.kind == "numeric" and each.kind == "texts"
  ]
  if not numeric:
    return found
  # A reader returns a comma only if it is certain. A point may be the default,
  # because "1.500" may mean 1500.
  first = "," if found == "," else numeric[0][0].decimal

  def unread(mark: str) -> int:
    return sum(
      int(np.isnan(number_values(each, mark)).sum()) for _, each in numeric
    )

  return min(first, "." if first == "," else ",", key=unread)


def _odd_cells(
  columns: Sequence[ColumnEncoder], cells: Sequence[Cells]
) -> tuple[str, ...]:
  """Says which values a column of the study cannot hold."""
  notes = []
  for column, each in zip(columns, cells, strict=True):
    if column.kind == "categorical":
      known = set(column.categories)
      odd = np.array([n not in known for n in category_names(each)], bool)
      end = "not a category of the study, and counts as missing"
    elif column.kind == "numeric":
      odd = np.isnan(number_values(each, column.decimal))
      end = "not a number, and counts as missing"
    elif column.kind == "boolean":
      odd = np.isnan(boolean_values(each))
      end = "neither true nor false, and counts as missing"
    else:
      odd = np.isnat(date_values(each))
      end = "not a date, and counts as missing"
    if odd.any():
      rows, value = int(each.counts[odd].sum()), each.values[odd.argmax()]
      notes.append(
        f"column {column.name!r}: the value of {row_count(rows)}, such as "
        f"{example(value_text(value))}, is {end}"
      )
  return tuple(notes)


def _labels(
  column: Any, classes: tuple[str, ...], merge_case: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Returns class ids, -1 for a row without a class, and warnings."""

  def key(text: str) -> str:
    return text.casefold() if merge_case else text

  place = {key(name): number for number, name in enumerate(classes)}
  codes, values = pd.factorize(pd.Series(column))
  texts = [value_text(value) for value in np.asarray(values)]
  by_value = np.array([place.get(key(text), -1) for text in texts] + [-1])
  unknown = [
    k
    for k, text in enumerate(texts)
    if by_value[k] < 0 and text not in MISSING_LABELS
  ]
  notes = []
  if unknown:
    rows = int(np.isin(codes, unknown).sum())
    notes.append(
      f"the label of {row_count(rows)}, such as {example(texts[unknown[0]])}, "
      "is not a class of the study, and is ignored"
    )
  return by_value[codes], tuple(notes)
