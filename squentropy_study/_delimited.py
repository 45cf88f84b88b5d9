# SPDX-License-Identifier: Apache-2.0
"""Text of separated values, such as CSV, as a table of text columns."""

import collections
from collections.abc import Iterator, Sequence
import contextlib
import csv
import io
import itertools
import re

import pandas as pd

from squentropy_study import _decimal_mark
from squentropy_study._raw_table import RawTable
from squentropy_study._study_error import StudyError

# In the order of preference: a comma may also be a decimal mark, and only a
# rare name of a column holds one of the others.
_SEPARATORS = ("\t", ";", "|", ",")
_SEPARATOR_NAMES = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}
# What finds the separator: so many rows from the first characters.
_SAMPLE_ROWS = 200
_SAMPLE_CHARACTERS = 2**20
# The last line that the reader sees. An open quote would take it in.
_END = "\0end"
# So many rows are checked and transposed at a time.
_CHUNK = 4096


@contextlib.contextmanager
def _cells_of_any_size(text: str) -> Iterator[None]:
  """Lifts the limit of the csv module, 131 072 characters per cell."""
  limit = csv.field_size_limit(max(len(text) + 1, csv.field_size_limit()))
  try:
    yield
  finally:
    csv.field_size_limit(limit)


def _is_blank(row: Sequence[str]) -> bool:
  return len(row) < 2 and not "".join(row).strip()


class _OpenQuoteError(ValueError):
  """A quoted value without an end; the argument is its line."""


def _reader(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
  """Yields the rows that are not blank, each with the number of its line."""
  lines = itertools.chain(io.StringIO(text, newline=""), [_END])
  rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
  start = line = 1
  for row in rows:
    if row == [_END]:
      return
    if not _is_blank(row):
      yield line, row
    start, line = line, rows.line_num + 1
  raise _OpenQuoteError(start)


def _find_separator(text: str) -> str | None:
  """Returns what separates the values, or None if lines have one value."""
  best, chosen = (False, 0.0), None
  sample = text[:_SAMPLE_CHARACTERS]
  for separator in _SEPARATORS:
    lengths: list[int] = []
    with contextlib.suppress(_OpenQuoteError):
      rows = itertools.islice(_reader(sample, separator), _SAMPLE_ROWS)
      for _, row in rows:
        lengths.append(len(row))
    if not lengths:
      continue
    counts = collections.Counter(lengths)
    common = max(counts, key=lambda length: (counts[length], length))
    if common < 2:
      common = lengths[0]  # The header may name columns that no row has.
    # A decimal comma splits the rows, but not the header.
    score = (lengths[0] == common, counts[common] / len(lengths))
    if common > 1 and score > best:
      best, chosen = score, separator
  return chosen


def _excel_separator(text: str) -> tuple[str | None, str]:
  """Splits off the first line that tells Excel the separator: ``sep=;``."""
  found = re.match(r"""["']?sep=([^\r\n])["']?\r?\n""", text, re.IGNORECASE)
  return (found[1], text[found.end() :]) if found else (None, text)


def _wrong_lengths(
  source: str, separator: str, rows: list[tuple[int, int]], skipped: int
) -> StudyError:
  """Returns the error for rows that are longer or shorter than the first.

  Args:
    source: The name of the file.
    separator: What separates the values.
    rows: Line and length of the first row, and of each row of another length.
    skipped: Number of lines above those that are counted.
  """
  (first_line, count), (line, length), *others = rows
  if count == 1 and others and all(n == length for _, n in others):
    return StudyError(
      f"{source}: line {first_line + skipped} has one value, but others have "
      f"{length}; remove the lines above the names of the columns"
    )
  values = f"{length} value{'s' if length > 1 else ''}"
  columns = f"{count} column{'s' if count > 1 else ''}"
  plural = "s" if len(others) > 1 else ""
  more = f" (and {len(others)} other line{plural})" if others else ""
  return StudyError(
    f"{source}: line {line + skipped} has {values} for {columns}{more}; put "
    f"quotes around a value that holds {separator!r}, or correct or remove the "
    "line"
  )


def _columns(
  text: str, separator: str, source: str, skipped: int
) -> tuple[list[str], list[list[str | None]]]:
  """Returns the first row, and the columns of the other rows.

  Values have no outer spaces; an empty one is None.
  """
  rows = _reader(text, separator)
  try:
    first_line, first = next(rows, (0, []))
    columns: list[list[str | None]] = [[] for _ in first]
    wrong = []
    # In chunks, because many lists at a time are slow to collect as garbage.
    while chunk := list(itertools.islice(rows, _CHUNK)):
      wrong += [(n, len(row)) for n, row in chunk if len(row) != len(first)]
      if not wrong:
        cells = zip(*(row for _, row in chunk), strict=True)
        for column, more in zip(columns, cells, strict=True):
          column += [cell.strip() or None for cell in more]
  except _OpenQuoteError as error:
    raise StudyError(
      f"{source}: a quoted value begins in line {error.args[0] + skipped} and "
      "has no closing quote; add the quote, or write a quote inside a quoted "
      'value twice ("")'
    ) from None
  if not first:
    raise StudyError(
      f"{source} has no rows; name a file with a header and rows"
    )
  if wrong:
    raise _wrong_lengths(
      source, separator, [(first_line, len(first)), *wrong], skipped
    )
  return first, columns


def column_names(count: int) -> list[str]:
  """Returns the names of the columns of a file without a header."""
  return [f"column{number}" for number in range(1, count + 1)]


def read(
  text: str, source: str, *, usual: str | None = None, header: bool = True
) -> RawTable:
  """Reads separated values as text, without deciding any type.

  The separator is a comma, semicolon, tab or bar, or the one of the line
  ``sep=;`` that Excel reads. Values may be quoted.

  Args:
    text: The text of the file.
    source: The name of the file in error messages.
    usual: The separator that needs no note.
    header: Whether the first row names the columns.

  Returns:
    The table, its decimal mark, and notes on the separator and the mark.

  Raises:
    StudyError: The file has no rows, an open quote, or rows of different
      lengths.
  """
  named, rest = _excel_separator(text)
  with _cells_of_any_size(text):
    separator = named or _find_separator(rest)
    first, columns = _columns(rest, separator or ",", source, int(bool(named)))
  if separator is None and all(
    re.search(r"\S\s+\S", cell or "") for cell in columns[0]
  ):
    raise StudyError(
      f"{source}: its values are not separated by commas, semicolons, tabs or "
      "bars; replace the spaces between values by commas"
    )
  notes = []
  if named:
    notes.append(f"the first line names the separator {named!r}")
  elif separator and separator != usual:
    notes.append(f"values are separated by {_SEPARATOR_NAMES[separator]}")
  names = [name.strip() for name in first]
  if header:
    # The name that pandas gives a column without one.
    names = [name or f"Unnamed: {k}" for k, name in enumerate(names)]
  else:
    for column, name in zip(columns, names, strict=True):
      column.insert(0, name or None)
    names = column_names(len(names))
  decimal, more = _decimal_mark.find(columns, semicolons=separator == ";")
  frame = pd.DataFrame(
    {k: pd.Series(column, dtype=object) for k, column in enumerate(columns)}
  )
  return RawTable(
    frame.set_axis(names, axis=1), decimal, (*notes, *more), from_text=True
  )
