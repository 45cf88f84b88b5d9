# SPDX-License-Identifier: Apache-2.0
"""From a table with names and gaps to numbers with class ids."""

from collections.abc import Sequence
import re
from typing import Any

import numpy as np
import pandas as pd

from squentropy_study._errors import StudyError, unknown_name

# What stands for a row without a label; "None" or "NA" may be a class.
LABEL_GAPS = ("", "?")
# A class of such a name may have been meant as a gap, as R writes it.
_GAP_NAMES = frozenset(("na", "n/a", "nan", "none", "null"))
# A category with more values than this is a name or a key, not a property.
_MOST_CATEGORIES = 100


def _class_name(value: Any) -> str:
  """A whole number without its point, where that loses nothing."""
  if isinstance(value, float | np.floating):
    value = float(value)
    return str(int(value)) if abs(value) < 2**53 else str(value)
  return str(value)


def check_names(source: str, names: Sequence[str]) -> None:
  """Refuses two columns of one name: which of them is the label?"""
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise StudyError(f"{source} has two columns {twice!r}; rename one")


def without_label(rows: int) -> list[str]:
  """The sentence on rows that were dropped, if any were."""
  return [f"rows dropped for want of a label: {rows}"] if rows else []


def class_ids(
  name: str, labels: Any
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
  """Ids from 0 for the values of a label column, in sorted order.

  Args:
    name: What the column is called in errors.
    labels: Values of any kind, one per row; spaces around texts go.

  Returns:
    Ids ``[kept]`` int32, names of the classes, and ``[rows]`` whether a row
    has a label at all.

  Raises:
    StudyError: The column has no value, one value, or is a quantity.
  """
  series = pd.Series(labels)
  if series.dtype.kind == "O":
    stripped = [v.strip() if isinstance(v, str) else v for v in series]
    series = pd.Series(stripped, dtype=object)
    series = series.mask(series.isin(LABEL_GAPS))
  kept = series.notna().to_numpy()
  values = series[kept].infer_objects()
  if values.dtype.kind == "c":
    raise StudyError(f"{name} holds complex numbers; turn them into ids")
  if values.dtype.kind == "f" and not np.equal(np.mod(values, 1), 0).all():
    raise StudyError(
      f"{name} holds fractions, so it is a quantity and not a class; name "
      f"another column, or cut it into classes first"
    )
  if values.dtype.kind == "O":
    values = values.astype(str)
  ids, classes = pd.factorize(values, sort=True)
  if len(classes) < 2:
    held = f"one value ({classes[0]})" if len(classes) else "no value"
    raise StudyError(f"{name} has {held}; a study needs two classes or more")
  return ids.astype(np.int32), tuple(map(_class_name, classes)), kept


def _numbers(column: pd.Series) -> np.ndarray | None:
  """The column as float64 with NaN for gaps; None for a category."""
  if column.dtype.kind in "biuf" or isinstance(
    column.dtype, (pd.BooleanDtype, pd.Int64Dtype, pd.Float64Dtype)
  ):
    return column.to_numpy(np.float64, na_value=np.nan)
  return None


def _is_key(name: str, numbers: np.ndarray) -> bool:
  """Whether a column is the index that pandas and R write before the others."""
  # pandas' name of a column without one.
  if not re.fullmatch(r"Unnamed: \d+(\.\d+)*", name):
    return False
  return bool((np.mod(numbers, 1) == 0).all()) and (
    np.unique(numbers).size == numbers.size
  )


def _columns(frame: pd.DataFrame) -> tuple[list[np.ndarray], list[str]]:
  """The columns of features, and a sentence on each thing done."""
  columns, notes = [], []
  one_hot, gapped, dropped, keys = [], [], [], []
  for name in frame.columns:
    column = frame[name]
    numbers = _numbers(column)
    if numbers is None:
      if column.dtype.kind in "mM":
        raise StudyError(
          f"column {name!r} holds times; turn it into numbers or drop it"
        )
      values = column.astype(object).where(column.notna(), None)
      ids, categories = pd.factorize(values.map(str, na_action="ignore"))
      if not 0 < len(categories) <= _MOST_CATEGORIES:
        dropped.append(str(name))
        continue
      # A gap is a row of zeros: a category like the others.
      columns += [(ids == k).astype(np.float64) for k in range(len(categories))]
      one_hot.append(str(name))
      continue
    numbers = np.where(np.isinf(numbers), np.nan, numbers)
    gaps = np.isnan(numbers)
    if gaps.all():
      dropped.append(str(name))
      continue
    if _is_key(str(name), numbers):
      keys.append(str(name))
      continue
    columns.append(numbers)
    if gaps.any():
      columns.append(gaps.astype(np.float64))
      gapped.append(f"{name} ({gaps.sum()})")
  if one_hot:
    notes.append(f"one column per category of: {', '.join(one_hot)}")
  if gapped:
    notes.append(
      "missing or infinite numbers, replaced by the mean of the training rows "
      f"and marked in a column of their own: {', '.join(gapped)}"
    )
  if keys:
    notes.append(
      "dropped, as they have no name and number the rows, which tells the "
      f"class where rows are sorted by it: {', '.join(keys)}"
    )
  if dropped:
    notes.append(
      "dropped, as they hold nothing or more than "
      f"{_MOST_CATEGORIES} categories: {', '.join(dropped)}"
    )
  return columns, notes


def numbers(
  source: str, frame: pd.DataFrame, label: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[str, ...]]:
  """Features, labels, class names and notes of a table.

  Numbers stay; gaps in them stay NaN, for the split to fill, and get a column
  that marks them. Each category of a text column becomes a column of 0 and 1.

  Args:
    source: What the table is called in errors.
    frame: The table.
    label: Name of the column with the classes.

  Returns:
    ``[rows, features]`` float64, ``[rows]`` int32, names of the classes, and
    sentences on what was done.

  Raises:
    StudyError: The label column is missing or has no two classes, or no
      column of features is left.
  """
  names = [str(name) for name in frame.columns]
  check_names(source, names)
  if label not in names:
    raise unknown_name(f"column of {source}", label, names)
  frame = frame.set_axis(names, axis=1)
  ids, classes, kept = class_ids(f"column {label!r} of {source}", frame[label])
  notes = without_label((~kept).sum())
  if gaps := [name for name in classes if name.lower() in _GAP_NAMES]:
    notes.append(
      "counted as a class, though its name may stand for a gap (empty the "
      f"label where it does): {', '.join(gaps)}"
    )
  columns, more = _columns(frame.loc[kept].drop(columns=label))
  if not columns:
    raise StudyError(
      f"{source} has no column to learn from beside {label!r}: all are empty, "
      "number the rows, or are categories with more than "
      f"{_MOST_CATEGORIES} values"
    )
  return np.stack(columns, axis=1), ids, classes, (*notes, *more)
