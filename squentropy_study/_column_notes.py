# SPDX-License-Identifier: Apache-2.0
"""What is said about the columns of a table: one sentence for each topic."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from squentropy_study._column_cells import Cells, example, value_text
from squentropy_study._column_encoder import ColumnEncoder
from squentropy_study._table_options import written

# A column with more categories is probably a name or a key.
MOST_CATEGORIES = 100
# A message names at most so many columns.
_LISTED = 20

# Topics of the notes, in their order, and how each note begins.
_TOPICS = {
  "dropped": "columns are left out as asked",
  "id": "columns that number or name the rows are left out, because they "
  "reveal the class in a sorted table; keep one with --numeric COLUMN or "
  "--categorical COLUMN",
  "empty": "columns without a value are left out",
  "constant": "columns with a single value are left out",
  "many": f"columns with more than {MOST_CATEGORIES} categories are left out; "
  "keep one with --categorical COLUMN",
  "text": "columns of free text are left out, because a network needs numbers "
  "or categories; replace them by such columns, for example by an embedding of "
  "the text",
  "unread": "columns of text are left out, because they hold neither numbers "
  f"nor at most {MOST_CATEGORIES} categories; correct them, or read one with "
  "--numeric COLUMN",
  "decorated": "numbers are read without currency signs, percent signs and "
  "separators of thousands",
  "comma": "numbers are read with a decimal mark other than that of the table",
  "odd": "cells that do not fit the type of their column count as missing",
  "date": "dates are turned into days since the first date and calendar "
  "features",
  "code": "columns of digits with leading zeros are categorical; read one as "
  "numbers with --numeric COLUMN",
  "words": "columns are categorical because fewer than 95 % of their cells are "
  "numbers; read one as numbers with --numeric COLUMN",
  "one_hot": "categorical columns are one-hot encoded",
  "imputed": "missing or infinite values are replaced by the mean of the "
  "training rows and marked in an added column",
}


class Remark(NamedTuple):
  """A remark on one column; the notes collect the remarks of a topic."""

  topic: str
  text: str


class Decision(NamedTuple):
  """What becomes of one column.

  Attributes:
    encoder: How it becomes features; None if it is left out.
    remarks: What is to be said about it.
    warnings: Sentences on what may be wrong with it.
    sentinels: Values that look like missing values, and their counts.
    identifies: Whether it is left out because it identifies the rows.
  """

  encoder: ColumnEncoder | None
  remarks: tuple[Remark, ...] = ()
  warnings: tuple[str, ...] = ()
  sentinels: tuple[tuple[str, int], ...] = ()
  identifies: bool = False


def listed(texts: Sequence[str]) -> str:
  """Returns texts with commas, without the last ones if they are many."""
  more = len(texts) - _LISTED
  if more <= 0:
    return ", ".join(texts)
  return f"{', '.join(texts[:_LISTED])} and {more} more"


def sentinel_warnings(
  found: Sequence[tuple[str, tuple[tuple[str, int], ...]]],
) -> list[str]:
  """Says which values look like missing values, in which columns.

  Args:
    found: Names of columns, and the values that look missing there with their
      counts.

  Returns:
    One sentence for each value.
  """
  columns: dict[str, list[str]] = {}
  for name, values in found:
    for value, count in values:
      cells = "1 cell" if count == 1 else f"{count} cells"
      columns.setdefault(value, []).append(f"{name} ({cells})")
  return [
    f"{value} looks like a missing value: {listed(names)}; if it is one, use "
    f"{written('missing', value)}"
    for value, names in columns.items()
  ]


def notes(remarks: list[Remark]) -> list[str]:
  """Returns one sentence for each topic of some remarks."""
  texts = {
    topic: [r.text for r in remarks if r.topic == topic] for topic in _TOPICS
  }
  return [
    f"{_TOPICS[topic]}: {listed(found)}"
    for topic, found in texts.items()
    if found
  ]


def cell_count(number: int) -> str:
  """Returns a number of cells in words."""
  return "1 cell" if number == 1 else f"{number} cells"


def most_common(cells: Cells, where: np.ndarray) -> str:
  """Returns the most frequent value in quotes, the first in order of text."""
  counts = cells.counts
  chosen = min(
    np.flatnonzero(where),
    key=lambda k: (-counts[k], value_text(cells.values[k])),
  )
  return example(value_text(cells.values[chosen]))


def number_text(value: float) -> str:
  """Returns a number in the shortest form that is exact."""
  return value_text(float(value))
