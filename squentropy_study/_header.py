# SPDX-License-Identifier: Apache-2.0
"""Finds out whether the first line of a table names its columns."""

import re

import pandas as pd

from squentropy_study._raw_table import RawTable
from squentropy_study._study_error import StudyError

_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")
_MISSING = ("?", "na", "n/a", "nan", "none", "null", "<null>", "-")
# So many cells of a column are compared with its name.
_CELLS = 1000


def _is_number(cell: object) -> bool:
  return _NUMBER.fullmatch(str(cell)) is not None


def _cells(column: pd.Series) -> list[str]:
  """Returns the first cells that are not missing, as text."""
  present = (str(cell) for cell in column.head(_CELLS) if not pd.isna(cell))
  return [cell for cell in present if cell.lower() not in _MISSING]


def _counts_up(names: list[str]) -> bool:
  """Whether names are numbers in sequence, as of pixels or of years."""
  if not all(name.isdecimal() for name in names):
    return False
  first = int(names[0])
  return names == [str(first + k) for k in range(len(names))]


def _looks_like_data(frame: pd.DataFrame) -> bool:
  """Whether the names of the columns look like a row of values."""
  numbers, texts = [], []
  for k, name in enumerate(map(str, frame.columns)):
    if re.fullmatch(r"Unnamed: \d+", name):
      continue
    cells = _cells(frame.iloc[:, k])
    if _is_number(name):
      if 2 * sum(map(_is_number, cells)) > len(cells):
        numbers.append(name)
    else:
      texts.append(name in cells)
  if numbers and not _counts_up(numbers):
    return True
  return bool(texts) and all(texts)


def _looks_like_header(frame: pd.DataFrame) -> bool:
  """Whether the first row looks like the names of the columns."""
  names = [
    cell
    for cell in frame.iloc[0]
    if isinstance(cell, str) and not _is_number(cell)
  ]
  if len(names) < frame.shape[1] or any(n.lower() in _MISSING for n in names):
    return False
  below = [_cells(frame.iloc[1:, k]) for k in range(frame.shape[1])]
  return any(cells and all(map(_is_number, cells)) for cells in below)


def check(
  source: str, table: RawTable, label: str | None, *, header: bool
) -> None:
  """Raises if a table is read with a header and has none, or the reverse.

  Names that look like values are an error only if the column of the labels is
  not among them, because columns may have any names.

  Args:
    source: The name of the file in error messages.
    table: The table.
    label: The column with the classes.
    header: Whether the first line was read as the names of the columns.

  Raises:
    StudyError: The table seems to have no header, or has one.
  """
  frame = table.frame
  names = [str(name) for name in frame.columns]
  if not header:
    if len(frame) > 1 and _looks_like_header(frame):
      first = ", ".join(map(str, frame.iloc[0, :8]))
      raise StudyError(
        f"{source} seems to have a header: its first line is {first}; leave "
        "out --no-header"
      )
    return
  named = label is not None and names.count(label) == 1
  if named and label not in _cells(frame.iloc[:, names.index(str(label))]):
    return
  if len(frame) and _looks_like_data(frame):
    first = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise StudyError(
      f"{source} seems to have no header: its first line is {first}. Add "
      "--no-header, which names the columns column1, column2, ..., and choose "
      f"the classes with --label, such as --label column{len(names)}; or add a "
      "first line with the names of the columns"
    )
