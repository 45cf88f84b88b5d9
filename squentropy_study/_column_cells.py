# SPDX-License-Identifier: Apache-2.0
"""The different values of a column, whatever type it was read with."""

from collections.abc import Collection, Sequence
import datetime
import decimal
import numbers
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from squentropy_study._study_error import StudyError
from squentropy_study._table_options import written
from squentropy_study._written_numbers import read_numbers

# Texts that mean a missing value in a column of features: "?" and "<null>" of
# older tables, and what pandas writes and reads.
_MISSING_WORDS = frozenset(
  ("", "?", "<null>", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN")
  + ("-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN")
  + ("None", "n/a", "nan", "null")
)
_EXAMPLE_LENGTH = 40


class Cells(NamedTuple):
  """A column as numbers into its different values.

  Attributes:
    kind: ``"numbers"`` (values are float64), ``"booleans"`` (bool), ``"dates"``
      (datetime64 in UTC) or ``"texts"`` (object).
    values: The different values, in the order of their first row.
    codes: ``[rows]``, index of the value of each row; -1 where it is missing.
  """

  kind: str
  values: np.ndarray
  codes: np.ndarray

  @property
  def counts(self) -> np.ndarray:
    """The number of rows of each value."""
    return np.bincount(self.codes[self.codes >= 0], minlength=len(self.values))

  def rows(self, by_value: np.ndarray) -> np.ndarray:
    """Returns ``[rows]`` float64 from one number per value; NaN if missing."""
    return np.append(by_value, np.nan)[self.codes]


def example(text: Any) -> str:
  """Returns a text in quotes for a message, cut where it is long."""
  text = str(text)
  if len(text) > _EXAMPLE_LENGTH:
    text = f"{text[:_EXAMPLE_LENGTH]}..."
  return repr(text)


def value_text(value: Any) -> str:
  """Returns a cell as text; integral floats as integers where that is exact."""
  if isinstance(value, str):
    return value.strip()
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace").strip()
  if isinstance(value, float | np.floating):
    value = float(value)
    whole = value.is_integer() and abs(value) < 2**53
    return str(int(value)) if whole else str(value)
  if isinstance(value, datetime.date | np.datetime64):
    return str(pd.Timestamp(value).isoformat()).removesuffix("T00:00:00")
  return str(value)


def _dates(values: Any) -> np.ndarray:
  """Returns dates as datetime64 without a time zone, in UTC."""
  times = pd.to_datetime(pd.Series(values), utc=True)
  return times.dt.tz_localize(None).to_numpy("datetime64[us]")


def _factorized(values: Any) -> tuple[np.ndarray, np.ndarray]:
  codes, uniques = pd.factorize(values)
  return codes, np.asarray(uniques)


def _object_kind(values: Collection[Any]) -> str:
  """Returns the kind of a column of Python objects, from all of them."""
  types = {type(value) for value in values}
  if all(issubclass(t, bool | np.bool_) for t in types):
    return "booleans"
  if all(issubclass(t, numbers.Real | decimal.Decimal) for t in types) and (
    not any(issubclass(t, bool) for t in types)
  ):
    return "numbers"
  if all(issubclass(t, datetime.date) for t in types):
    return "dates"
  return "texts"


def _typed(name: str, column: pd.Series) -> tuple[str, Any] | None:
  """Returns kind and values of a column whose dtype says what it holds."""
  dtype = column.dtype
  if pd.api.types.is_complex_dtype(dtype):
    raise StudyError(
      f"column {name!r} holds complex numbers; write the real and the "
      "imaginary part in two columns, or leave it out with "
      f"{written('drop', name)}"
    )
  if pd.api.types.is_bool_dtype(dtype):
    return "booleans", column
  if pd.api.types.is_numeric_dtype(dtype):
    return "numbers", column
  if pd.api.types.is_datetime64_any_dtype(dtype):
    return "dates", column
  if isinstance(dtype, pd.PeriodDtype):
    return "dates", column.dt.to_timestamp()
  if pd.api.types.is_timedelta64_dtype(dtype):
    return "numbers", column.dt.total_seconds()
  return None


def read_cells(
  name: str, column: pd.Series, missing: tuple[str, ...] = ()
) -> Cells:
  """Finds the different values of a column, and the missing ones.

  Args:
    name: The name of the column in error messages.
    column: The column, of any dtype.
    missing: Values that count as missing, as text.

  Returns:
    The values. A column of Python objects has the kind of all of them, or is
    text.

  Raises:
    StudyError: The column holds complex numbers.
  """
  kind, codes, uniques = _distinct(name, column)
  gone = _are(kind, uniques, missing)
  if kind == "numbers":
    gone |= ~np.isfinite(uniques)
  elif kind == "texts":
    gone |= np.array([text in _MISSING_WORDS for text in uniques], bool)
  if gone.any():
    kept = np.cumsum(~gone) - 1
    codes = np.append(np.where(gone, -1, kept), -1)[codes]
    uniques = uniques[~gone]
  return Cells(kind, uniques, codes)


def holds(name: str, column: pd.Series, value: str) -> bool:
  """Returns whether a cell of a column is a value that is given as text."""
  kind, _, uniques = _distinct(name, column)
  return bool(_are(kind, uniques, (value,)).any())


def _distinct(
  name: str, column: pd.Series
) -> tuple[str, np.ndarray, np.ndarray]:
  """Returns the kind of a column, the code of each row, and the values."""
  typed = _typed(name, column)
  if typed is None:
    objects = column.astype(object)
    objects = objects.where(objects.notna(), None)
    kind = _object_kind([v for v in objects if v is not None])
    if kind == "texts":
      values = objects.map(value_text, na_action="ignore")
    else:
      values = objects
  else:
    kind, values = typed
  codes, uniques = _factorized(values)
  if kind == "numbers":
    uniques = pd.Series(uniques).to_numpy(np.float64, na_value=np.nan)
  elif kind == "dates":
    uniques = _dates(uniques)
  elif kind == "booleans":
    uniques = uniques.astype(bool)
  return kind, codes, uniques


def _are(
  kind: str, uniques: np.ndarray, missing: tuple[str, ...]
) -> np.ndarray:
  """Returns which values are among some that are given as text."""
  numbers = missing_numbers(missing)
  if kind == "booleans":
    return np.zeros(len(uniques), bool)
  if kind == "numbers":
    return np.isin(uniques, numbers)
  found = np.array([value_text(value) in missing for value in uniques], bool)
  if kind == "texts" and numbers:
    found |= np.isin(_any_numbers(uniques), numbers)
  return found


def _any_numbers(texts: Sequence[str] | np.ndarray) -> np.ndarray:
  """Reads texts as numbers with a decimal point, or else with a comma."""
  point, comma = (read_numbers(texts, mark).values for mark in ".,")
  return np.where(np.isnan(point), comma, point)


def missing_numbers(missing: tuple[str, ...]) -> list[float]:
  """Returns the numbers among the values that count as missing."""
  values = _any_numbers(missing)
  return values[~np.isnan(values)].tolist()
