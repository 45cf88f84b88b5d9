# SPDX-License-Identifier: Apache-2.0
"""Turns a table with names and missing values into numbers and class ids."""

from collections.abc import Sequence
import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from squentropy_study._study_error import StudyError, unknown_name

# Labels of a row without a class; "None" and "NA" may be names of classes.
MISSING_LABELS = ("", "?")
# Names of classes that may have been meant as missing labels.
_AMBIGUOUS_NAMES = frozenset(("na", "n/a", "nan", "none", "null"))
# A column with more categories is probably a name or a key.
_MOST_CATEGORIES = 100


class EncodedTable(NamedTuple):
  """Numbers and class ids of a table.

  Attributes:
    features: ``[rows, ...]``, floating; NaN where a value is missing.
    labels: ``[rows]``, int32 class ids from 0.
    classes: Names of the classes.
    notes: Sentences on how the table was turned into numbers.
  """

  features: np.ndarray
  labels: np.ndarray
  classes: tuple[str, ...]
  notes: tuple[str, ...] = ()


def _class_name(value: Any) -> str:
  """Writes integral floats as integers where that is exact."""
  if isinstance(value, float | np.floating):
    value = float(value)
    return str(int(value)) if abs(value) < 2**53 else str(value)
  return str(value)


def check_names(source: str, names: Sequence[str]) -> None:
  """Raises if two columns have the same name, as the label may be one."""
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise StudyError(f"{source} has two columns {twice!r}; rename one of them")


def without_label(rows: int) -> list[str]:
  """Returns the note on rows that are dropped, if there are any."""
  if rows == 1:
    return ["1 row without a label is dropped"]
  return [f"{rows} rows without a label are dropped"] if rows else []


def class_ids(
  name: str, labels: Any
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
  """Numbers the values of a label column from 0, in sorted order.

  Args:
    name: The name of the column in error messages.
    labels: Values of any type, one per row. Spaces around text are removed.

  Returns:
    Ids ``[kept]`` int32, names of the classes, and a mask ``[rows]`` of the
    rows that have a label.

  Raises:
    StudyError: The column has fewer than two values, or is not categorical.
  """
  series = pd.Series(labels)
  if series.dtype.kind == "O":
    stripped = [v.strip() if isinstance(v, str) else v for v in series]
    series = pd.Series(stripped, dtype=object)
    series = series.mask(series.isin(MISSING_LABELS))
  kept = series.notna().to_numpy()
  values = series[kept].infer_objects()
  if values.dtype.kind == "c":
    raise StudyError(
      f"{name} must hold classes, got complex numbers; convert them to class "
      "ids"
    )
  if values.dtype.kind == "f" and not np.equal(np.mod(values, 1), 0).all():
    raise StudyError(
      f"{name} must hold classes, got fractional numbers; choose another "
      "column, or bin the values into classes"
    )
  if values.dtype.kind == "O":
    values = values.astype(str)
  ids, classes = pd.factorize(values, sort=True)
  if len(classes) < 2:
    found = f"one class ({classes[0]})" if len(classes) else "no class"
    raise StudyError(
      f"{name} has {found}, but a study needs at least two classes; choose "
      "another column"
    )
  return ids.astype(np.int32), tuple(map(_class_name, classes)), kept


def _numeric(column: pd.Series) -> np.ndarray | None:
  """Returns the column as float64, or None if it is categorical."""
  if column.dtype.kind in "biuf" or isinstance(
    column.dtype, (pd.BooleanDtype, pd.Int64Dtype, pd.Float64Dtype)
  ):
    return column.to_numpy(np.float64, na_value=np.nan)
  return None


def _is_row_index(name: str, values: np.ndarray) -> bool:
  """Whether a column is the index that pandas and R write first."""
  # The name that pandas gives a column without one.
  if not re.fullmatch(r"Unnamed: \d+(\.\d+)*", name):
    return False
  return bool((np.mod(values, 1) == 0).all()) and (
    np.unique(values).size == values.size
  )


def _columns(frame: pd.DataFrame) -> tuple[list[np.ndarray], list[str]]:
  """Returns the numeric columns, and notes on how they were made."""
  columns, notes = [], []
  one_hot, imputed, dropped, indices = [], [], [], []
  for name in frame.columns:
    column = frame[name]
    values = _numeric(column)
    if values is None:
      if column.dtype.kind in "mM":
        raise StudyError(
          f"column {name!r} must be numeric or categorical, got times; convert "
          "it to numbers, or remove it"
        )
      present = column.astype(object).where(column.notna(), None)
      ids, categories = pd.factorize(present.map(str, na_action="ignore"))
      if not 0 < len(categories) <= _MOST_CATEGORIES:
        dropped.append(str(name))
        continue
      # A missing value is a row of zeros, a category like the others.
      columns += [(ids == k).astype(np.float64) for k in range(len(categories))]
      one_hot.append(str(name))
      continue
    values = np.where(np.isinf(values), np.nan, values)
    missing = np.isnan(values)
    if missing.all():
      dropped.append(str(name))
      continue
    if _is_row_index(str(name), values):
      indices.append(str(name))
      continue
    columns.append(values)
    if missing.any():
      columns.append(missing.astype(np.float64))
      imputed.append(f"{name} ({missing.sum()})")
  if one_hot:
    notes.append(
      f"categorical columns are one-hot encoded: {', '.join(one_hot)}"
    )
  if imputed:
    notes.append(
      "missing or infinite values are replaced by the mean of the training "
      f"rows and marked in an added column: {', '.join(imputed)}"
    )
  if indices:
    notes.append(
      "row indices without a column name are dropped, because they reveal the "
      f"class in a sorted table: {', '.join(indices)}"
    )
  if dropped:
    notes.append(
      "empty columns and columns with more than "
      f"{_MOST_CATEGORIES} categories are dropped: {', '.join(dropped)}"
    )
  return columns, notes


def encode_table(source: str, frame: pd.DataFrame, label: str) -> EncodedTable:
  """Turns a table into features and class ids.

  Numeric columns are kept. A missing value stays NaN, and an added column
  marks it. A categorical column is one-hot encoded.

  Args:
    source: The name of the table in error messages.
    frame: The table.
    label: The column with the classes.

  Returns:
    Features ``[rows, features]`` float64, labels, classes and notes.

  Raises:
    StudyError: The label column is missing or has fewer than two classes, or
      no column of features is left.

  Examples:
    >>> import pandas as pd
    >>> from squentropy_study import encode_table
    >>> frame = pd.DataFrame({"size": [1, 2], "kind": ["a", "b"]})
    >>> encode_table("my table", frame, "kind").classes
    ('a', 'b')
  """
  names = [str(name) for name in frame.columns]
  check_names(source, names)
  if label not in names:
    raise unknown_name(f"column of {source}", label, names)
  frame = frame.set_axis(names, axis=1)
  ids, classes, kept = class_ids(f"column {label!r} of {source}", frame[label])
  notes = without_label((~kept).sum())
  if ambiguous := [x for x in classes if x.lower() in _AMBIGUOUS_NAMES]:
    notes.append(
      "these labels are counted as classes; leave the label empty where it is "
      f"missing: {', '.join(ambiguous)}"
    )
  columns, more = _columns(frame.loc[kept].drop(columns=label))
  if not columns:
    raise StudyError(
      f"{source} has no usable column of features in addition to {label!r}: "
      "all are empty, row indices, or have more than "
      f"{_MOST_CATEGORIES} categories; add a column of features"
    )
  features = np.stack(columns, axis=1)
  return EncodedTable(features, ids, classes, (*notes, *more))
