# SPDX-License-Identifier: Apache-2.0
"""Decides from a whole column what it holds: numbers, dates or categories."""

from collections.abc import Sequence
import dataclasses
import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from squentropy_study import _date_columns, _table_checks, _written_numbers
from squentropy_study._column_cells import Cells, example
from squentropy_study._column_encoder import (
  ColumnEncoder,
  boolean_values,
  category_names,
  date_values,
)
from squentropy_study._column_notes import (
  MOST_CATEGORIES,
  Decision,
  Remark,
  cell_count,
  most_common,
  number_text,
)
from squentropy_study._study_error import StudyError
from squentropy_study._table_options import TableOptions, written

# Share of the cells of a column that must be numbers or dates.
_ENOUGH = 0.95
# Share from which a column of categories is called one of numbers with words.
_MANY = 0.5
_EPOCH = np.datetime64("1970-01-01", "us")
# Mean number of words of texts that are not names.
_SENTENCE = 4
# There are at most as many spellings of true and false.
_MOST_SPELLINGS = 50
# A text with a number and a unit, such as "12.5 kg".
_MEASURE = re.compile(r"[-+]?\d[\d.,]* ?[^\W\d_]{1,8}")
# A user may ask for more, up to what a network can still be trained on.
_MOST_ON_REQUEST = 1000


class _Numbers(NamedTuple):
  """A column of texts read as numbers with one decimal mark."""

  decimal: str
  values: np.ndarray
  forms: np.ndarray
  share: float


def _read_numbers(cells: Cells, decimal: str) -> _Numbers:
  """Reads texts with the decimal mark of the file, or the other one."""
  counts = cells.counts
  best = None
  for mark in (decimal, "," if decimal == "." else "."):
    values, forms = _written_numbers.read_numbers(cells.values, mark)
    share = counts[~np.isnan(values)].sum() / counts.sum()
    if share >= _MANY:
      # Bounds and infinities are missing values in a column of numbers.
      share += counts[forms == _written_numbers.BOUND].sum() / counts.sum()
    if best is None or share > best.share:
      best = _Numbers(mark, values, forms, share)
    if share == 1:
      break
  assert best is not None
  return best


def _is_code(cells: Cells, numbers: _Numbers) -> bool:
  """Whether digits are the names of something, because one begins with 0."""
  texts = cells.values[~np.isnan(numbers.values)]
  whole = not any(numbers.decimal in text for text in texts)
  return whole and any(map(_written_numbers.is_code, cells.values))


def _remarks_of_numbers(
  name: str, cells: Cells, numbers: _Numbers, decimal: str
) -> tuple[list[Remark], list[str]]:
  """Says how texts are read as numbers."""
  remarks, warnings = [], []
  forms, values = numbers.forms, numbers.values
  decorated = np.flatnonzero(forms == _written_numbers.DECORATED)
  if decorated.size:
    k = min(decorated, key=lambda k: cells.values[k])
    meaning = f"{example(cells.values[k])} is {number_text(values[k])}"
    remarks.append(Remark("decorated", f"{name} ({meaning})"))
  if numbers.decimal != decimal:
    fractions = [text for text in cells.values if numbers.decimal in text]
    text = f"{name} ({example(min(fractions, default=''))})"
    remarks.append(Remark("comma", text))
  odd = np.isnan(values)
  if odd.any():
    count = cell_count(cells.counts[odd].sum())
    text = f"{name} ({count}, such as {most_common(cells, odd)})"
    remarks.append(Remark("odd", text))
  signs = _written_numbers.currencies(cells.values[decorated])
  if len(signs) > 1:
    warnings.append(
      f"column {name!r} has amounts in several currencies "
      f"({', '.join(signs)}), which are read as if they were one; convert them "
      "to one currency"
    )
  percent = np.array(["%" in str(text) for text in cells.values])[~odd]
  if (
    percent.any() and not percent.all() and (values[~odd][~percent] != 0).any()
  ):
    warnings.append(
      f"column {name!r} has numbers with and without a percent sign, such as "
      f"{example(cells.values[~odd][percent][0])} and "
      f"{example(cells.values[~odd][~percent][0])}, so that equal amounts may "
      "differ by a factor of 100; write them alike"
    )
  return remarks, warnings


def _sentinels(
  values: np.ndarray, counts: np.ndarray, dates: bool = False
) -> tuple[tuple[str, int], ...]:
  """Returns the values that look like missing values as text, with counts."""
  found = []
  for value, count in _table_checks.sentinels(values, counts):
    text = number_text(value)
    if dates:
      text = _date_columns.date_text(_EPOCH + round(value) * _date_columns.DAY)
    found.append((text, count))
  return tuple(found)


def _numeric(
  name: str,
  cells: Cells,
  values: np.ndarray,
  encoder: ColumnEncoder,
  asked: bool = False,
) -> Decision:
  """Decides on a column of numbers: values per different value."""
  known = ~np.isnan(values)
  by_row = cells.rows(values)
  missing = int(np.isnan(by_row).sum())
  numbers, place = np.unique(values[known], return_inverse=True)
  # Integers above 2**53 are different cells, but may be equal as float64.
  distinct = int(known.sum())
  if not asked and _table_checks.numbers_rows(name, by_row, distinct):
    return Decision(None, (Remark("id", name or "''"),), identifies=True)
  if not known.any():
    return Decision(None, (Remark("empty", name),))
  if numbers.size == 1 and not missing:
    return Decision(None, (Remark("constant", name),))
  counts = np.bincount(place, cells.counts[known]).astype(int)
  found = _sentinels(numbers, counts)
  encoder = dataclasses.replace(encoder, marks_missing=missing > 0)
  remarks = (Remark("imputed", f"{name} ({missing})"),) if missing else ()
  return Decision(encoder, remarks, sentinels=found)


def _dates(name: str, cells: Cells, dates: np.ndarray) -> Decision:
  """Decides on a column of dates."""
  known = ~np.isnat(dates)
  missing = int((cells.codes < 0).sum() + cells.counts[~known].sum())
  if np.unique(dates[known]).size == 1 and not missing:
    return Decision(None, (Remark("constant", name),))
  first = dates[known].min()
  parts = {
    part: _date_columns.calendar_feature(dates[known], part)
    for part in _date_columns.CALENDAR
  }
  calendar = tuple(part for part, values in parts.items() if np.ptp(values) > 0)
  encoder = ColumnEncoder(
    name,
    "date",
    first=str(first),
    calendar=calendar,
    marks_missing=missing > 0,
  )
  since = f"days since {_date_columns.date_text(first)}"
  remarks = [Remark("date", f"{name} ({', '.join((since, *calendar))})")]
  if (~known).any():
    count = cell_count(cells.counts[~known].sum())
    text = f"{name} ({count}, such as {most_common(cells, ~known)})"
    remarks.append(Remark("odd", text))
  if missing:
    remarks.append(Remark("imputed", f"{name} ({missing})"))
  days = _date_columns.days_since(dates[known], _EPOCH)
  unique, place = np.unique(days, return_inverse=True)
  counts = np.bincount(place, cells.counts[known]).astype(int)
  found = _sentinels(unique, counts, dates=True)
  return Decision(encoder, tuple(remarks), sentinels=found)


def _look(names: list[str]) -> str:
  """Says what texts look like that are not read as numbers or dates."""
  if all(map(_date_columns.is_ambiguous, names)):
    return "which look like dates; write them as 2024-01-31"
  if all(map(_MEASURE.fullmatch, names)):
    return "which look like numbers with a unit; write the numbers only"
  return ""


def _is_free_text(texts: Sequence[str]) -> bool:
  """Whether texts are sentences rather than names or keys."""
  return float(np.mean([len(text.split()) for text in texts])) >= _SENTENCE


def _categorical(
  name: str,
  cells: Cells,
  asked: bool = False,
  why: Remark | None = None,
  look: str = "",
) -> Decision:
  """Decides on a column of categories.

  Args:
    name: The name of the column.
    cells: Its different values.
    asked: Whether the user asked for categories.
    why: Why digits are categories.
    look: What the texts look like, if they look like numbers or dates.

  Returns:
    The decision.
  """
  names = category_names(cells)
  categories = tuple(sorted(set(names)))
  size = int((cells.codes >= 0).sum())
  if not categories:
    return Decision(None, (Remark("empty", name),))
  if len(categories) == 1 and size == cells.codes.size:
    return Decision(None, (Remark("constant", name),))
  encoder = ColumnEncoder(name, "categorical", categories=categories)
  one_hot = Decision(encoder, (*filter(None, [why]), Remark("one_hot", name)))
  if asked:
    if len(categories) > _MOST_ON_REQUEST:
      raise StudyError(
        f"{written('categorical', name)}: the column has {len(categories)} "
        f"categories, but at most {_MOST_ON_REQUEST} can be one-hot encoded; "
        f"leave it out with {written('drop', name)}, or replace it by fewer "
        "categories"
      )
    return one_hot
  names_rows = _table_checks.names_rows(name, size, len(categories))
  is_long = names_rows or len(categories) > MOST_CATEGORIES
  if is_long and not look and _is_free_text(categories):
    return Decision(None, (Remark("text", name),))
  if names_rows and not look:
    return Decision(None, (Remark("id", name or "''"),), identifies=True)
  if is_long:
    such = most_common(cells, np.ones(len(names), bool))
    text = f"{name} ({len(categories)} categories such as {such}"
    text = f"{text}, {look})" if look else f"{text})"
    return Decision(None, (Remark("unread" if look else "many", text),))
  return one_hot


def _texts(name: str, cells: Cells, decimal: str, asked: bool) -> Decision:
  """Decides on a column of texts."""
  counts = cells.counts
  if not asked and len(counts) <= _MOST_SPELLINGS:
    truth = boolean_values(cells)
    if not np.isnan(truth).any():
      return _numeric(name, cells, truth, ColumnEncoder(name, "boolean"))
  numbers = _read_numbers(cells, decimal)
  code = _is_code(cells, numbers)
  if asked or (numbers.share >= _ENOUGH and not code):
    encoder = ColumnEncoder(name, "numeric", decimal=numbers.decimal)
    decision = _numeric(name, cells, numbers.values, encoder, asked)
    if decision.encoder is None:
      return decision
    remarks, warnings = _remarks_of_numbers(name, cells, numbers, decimal)
    remarks += decision.remarks
    return decision._replace(remarks=tuple(remarks), warnings=tuple(warnings))
  dates = date_values(cells)
  if counts[~np.isnat(dates)].sum() >= _ENOUGH * counts.sum():
    return _dates(name, cells, dates)
  if code:
    codes = np.array(list(map(_written_numbers.is_code, cells.values)))
    such = most_common(cells, codes)
    return _categorical(
      name, cells, why=Remark("code", f"{name} (such as {such})")
    )
  if numbers.share >= _MANY:
    word = most_common(cells, np.isnan(numbers.values))
    text = f"{100 * numbers.share:.0f} % are numbers, others are like {word}"
    why = Remark("words", f"{name} ({text})")
    return _categorical(name, cells, why=why, look=text)
  return _categorical(name, cells, look=_look(category_names(cells)))


def _check_asked(name: str, cells: Cells, decimal: str) -> None:
  """Raises if a column that is to be numeric has no number."""
  if cells.kind == "texts" and (
    not np.isnan(_read_numbers(cells, decimal).values).all()
  ):
    return
  if cells.kind in ("numbers", "booleans") and len(cells.values):
    return
  such = "it is empty"
  if len(cells.values):
    such = f"such as {most_common(cells, np.ones(len(cells.values), bool))}"
  raise StudyError(
    f"{written('numeric', name)}: no cell of the column is a number ({such}); "
    "leave out this option, or name another column"
  )


def decide(
  name: str, dtype: object, cells: Cells, decimal: str, options: TableOptions
) -> Decision:
  """Decides what becomes of a column, from all of its cells.

  Args:
    name: The name of the column.
    dtype: The type it was read with.
    cells: Its different values.
    decimal: The decimal mark of numbers in text.
    options: What the user asked for.

  Returns:
    The decision. It does not depend on the order of the rows, except that a
    column of integers in increasing order is called a row number.

  Raises:
    StudyError: The options do not fit the column.
  """
  if name in options.categorical:
    return _categorical(name, cells, asked=True)
  asked = name in options.numeric
  if asked:
    _check_asked(name, cells, decimal)
  elif not len(cells.values):
    return Decision(None, (Remark("empty", name),))
  elif isinstance(dtype, pd.CategoricalDtype):
    return _categorical(name, cells)
  if cells.kind == "texts":
    return _texts(name, cells, decimal, asked)
  if cells.kind == "dates":
    return _dates(name, cells, cells.values)
  kind = "boolean" if cells.kind == "booleans" and not asked else "numeric"
  values = cells.values.astype(np.float64)
  return _numeric(name, cells, values, ColumnEncoder(name, kind), asked)
