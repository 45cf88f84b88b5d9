# SPDX-License-Identifier: Apache-2.0
"""Turns one column of a table into features, alike for all later rows."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from squentropy_study import _date_columns
from squentropy_study._column_cells import (
  Cells,
  example,
  read_cells,
  value_text,
)
from squentropy_study._study_error import StudyError
from squentropy_study._written_numbers import read_numbers

_HELD = {"numeric": "numbers", "date": "dates", "boolean": "true and false"}
_BOOLEANS = {"true": True, "false": False}


def boolean_values(cells: Cells) -> np.ndarray:
  """Returns 1 for true and 0 for false; NaN for any other value."""
  if cells.kind in ("booleans", "numbers"):
    values = cells.values.astype(np.float64)
    return np.where(np.isin(values, (0, 1)), values, np.nan)
  texts = [value_text(value).lower() for value in cells.values]
  return np.array([_BOOLEANS.get(text, np.nan) for text in texts], np.float64)


def number_values(cells: Cells, decimal: str) -> np.ndarray:
  """Returns the numbers of a column; NaN for a value that is not one."""
  if cells.kind == "texts":
    return read_numbers(cells.values, decimal).values
  if cells.kind == "dates":
    return np.full(len(cells.values), np.nan)
  return cells.values.astype(np.float64)


def date_values(cells: Cells) -> np.ndarray:
  """Returns the dates of a column; NaT for a value that is not one."""
  if cells.kind == "dates":
    return cells.values
  if cells.kind == "texts":
    return _date_columns.read_dates(cells.values)
  return np.full(len(cells.values), np.datetime64("NaT", "us"))


def category_names(cells: Cells) -> list[str]:
  """Returns the values of a column as text."""
  return [value_text(value) for value in cells.values]


@dataclasses.dataclass(frozen=True)
class ColumnEncoder:
  """How one column becomes features.

  Attributes:
    name: The name of the column.
    kind: ``"numeric"`` (one feature), ``"boolean"`` (0 or 1), ``"categorical"``
      (one-hot) or ``"date"`` (days, and calendar features).
    decimal: The decimal mark of a numeric column.
    categories: The categories of a categorical column.
    first: The first date of a date column, in ISO form.
    calendar: The calendar features of a date column.
    marks_missing: Whether an added feature is 1 where the value is missing.
  """

  name: str
  kind: str
  decimal: str = "."
  categories: tuple[str, ...] = ()
  first: str = ""
  calendar: tuple[str, ...] = ()
  marks_missing: bool = False

  @classmethod
  def from_dict(cls, fields: dict[str, Any]) -> "ColumnEncoder":
    """Returns the encoder of what ``dataclasses.asdict`` and JSON wrote."""
    values: dict[str, Any] = {
      key: tuple(value) if isinstance(value, list) else value
      for key, value in fields.items()
    }
    return cls(**values)

  @property
  def features(self) -> tuple[str, ...]:
    """Names of the features of this column."""
    if self.kind == "categorical":
      return tuple(f"{self.name}={value}" for value in self.categories)
    names = [self.name]
    if self.kind == "date":
      parts = ("days", *self.calendar)
      names = [f"{self.name} ({part})" for part in parts]
    if self.marks_missing:
      names.append(f"{self.name} (missing)")
    return tuple(names)

  def encode(
    self, column: pd.Series, missing: tuple[str, ...] = ()
  ) -> np.ndarray:
    """Turns the column of some rows into features.

    Args:
      column: The column, of any dtype.
      missing: Values that count as missing, as text.

    Returns:
      ``[rows, features]`` float64. A missing number is NaN. A category that
      the encoder does not know is a row of zeros.

    Raises:
      StudyError: None of the values has the kind of the column.
    """
    return self.encode_cells(read_cells(self.name, column, missing))

  def encode_cells(self, cells: Cells) -> np.ndarray:
    """Turns cells into features, see :meth:`encode`."""
    if self.kind == "categorical":
      place = {value: k for k, value in enumerate(self.categories)}
      known = [place.get(name, -1) for name in category_names(cells)]
      number = np.append(np.array(known, int), -1)[cells.codes]
      one_hot = number[:, None] == np.arange(len(self.categories))
      return one_hot.astype(np.float64)
    if self.kind == "date":
      dates = date_values(cells)
      first = np.datetime64(self.first, "us")
      columns = [_date_columns.days_since(dates, first)]
      columns += [
        _date_columns.calendar_feature(dates, part) for part in self.calendar
      ]
    elif self.kind == "boolean":
      columns = [boolean_values(cells)]
    else:
      columns = [number_values(cells, self.decimal)]
    if len(cells.values) and np.isnan(columns[0]).all():
      raise StudyError(
        f"column {self.name!r} held {_HELD[self.kind]} in the table of the "
        "study, but holds none here, only values such as "
        f"{example(value_text(cells.values[0]))}; pass the same column as in "
        "that table"
      )
    features = [cells.rows(values) for values in columns]
    if self.marks_missing:
      features.append(np.isnan(features[0]).astype(np.float64))
    return np.stack(features, axis=1)
