# SPDX-License-Identifier: Apache-2.0
"""Reads dates, and turns them into numbers and calendar features."""

from collections.abc import Sequence
import datetime
import re

import numpy as np

DAY = np.timedelta64(1, "D")
# What a date is turned into in addition to the days since the first date.
CALENDAR = ("month", "weekday", "hour")

_CHARACTERS = frozenset("0123456789-/.:+ TZ")
_YEAR_FIRST = re.compile(
  r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})"
  r"(?:[T ](\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?) ?(Z|[+-]\d{2}:?\d{2})?)?"
)
# Only with dots is it sure that the day comes before the month.
_DAY_FIRST = re.compile(
  r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?: (\d{1,2}:\d{2}(?::\d{2})?))?"
)
_AMBIGUOUS = re.compile(r"\d{1,2}[-/]\d{1,2}[-/](?:\d{2}|\d{4})(?: .*)?")


def _read(text: str) -> datetime.datetime | None:
  """Returns the date of one text in UTC, or None."""
  if match := _YEAR_FIRST.fullmatch(text):
    year, _, month, day, time, zone = match.groups()
  elif match := _DAY_FIRST.fullmatch(text):
    (day, month, year, time), zone = match.groups(), None
  else:
    return None
  hour, _, rest = (time or "0:00").partition(":")
  iso = f"{year}-{month:0>2}-{day:0>2}T{hour:0>2}:{rest}{zone or ''}"
  try:
    date = datetime.datetime.fromisoformat(iso)
  except ValueError:
    return None
  if date.tzinfo:
    date = date.astimezone(datetime.UTC).replace(tzinfo=None)
  return date


def read_dates(texts: Sequence[str] | np.ndarray) -> np.ndarray:
  """Reads texts as dates.

  Args:
    texts: Dates such as ``2024-01-31``, with or without a time of day and a
      time zone, or ``31.01.2024``.

  Returns:
    ``[texts]``, datetime64 in microseconds and UTC; NaT where a text is not a
    date.
  """
  dates = [
    _read(text) if _CHARACTERS.issuperset(text) else None for text in texts
  ]
  return np.array(dates, "datetime64[us]")


def is_ambiguous(text: str) -> bool:
  """Whether a text is a date that may have its day or its month first."""
  return bool(_AMBIGUOUS.fullmatch(text))


def date_text(date: np.datetime64) -> str:
  """Returns a date in ISO form, without the time of day where it is 0:00."""
  day = date.astype("datetime64[D]")
  return str(day) if day == date else str(date.astype("datetime64[s]"))


def days_since(dates: np.ndarray, first: np.datetime64) -> np.ndarray:
  """Returns the days from a first date; NaN for NaT."""
  # Division of timedeltas gives NaN for NaT.
  return (dates - first) / DAY


def calendar_feature(dates: np.ndarray, part: str) -> np.ndarray:
  """Returns a part of dates as float64; NaN for NaT.

  Args:
    dates: ``[rows]``, datetime64.
    part: ``"month"`` (1 to 12), ``"weekday"`` (0 is Monday) or ``"hour"``
      (with its fraction).

  Returns:
    ``[rows]``, float64.
  """
  days = dates.astype("datetime64[D]")
  if part == "hour":
    return (dates - days) / np.timedelta64(1, "h")
  if part == "weekday":
    # 1970-01-01 was a Thursday.
    values = (days.astype(np.int64) + 3) % 7
  else:
    values = dates.astype("datetime64[M]").astype(np.int64) % 12 + 1
  return np.where(np.isnat(dates), np.nan, values)
