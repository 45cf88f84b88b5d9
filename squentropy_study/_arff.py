# SPDX-License-Identifier: Apache-2.0
"""ARFF files, the tables of Weka."""

from collections.abc import Iterator
import contextlib
import io
import math
import re
from typing import Any, NamedTuple

import pandas as pd

from squentropy_study._raw_table import RawTable
from squentropy_study._study_error import StudyError

_QUOTED = re.compile(r"""(['"])((?:\\.|(?!\1)[^\\])*)\1""")
# Up to a comma, the end, or a comment after a space.
_BARE = re.compile(r"[^,]*?(?=\s*(?:,|\s%|$))")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_ATTRIBUTE = re.compile(r"@attribute\s+", re.IGNORECASE)
_INDEX = re.compile(r"(\d+)\s+")
# The letters of a date format of Java, and those of Python.
_DATE = {"yyyy": "%Y", "yy": "%y", "MM": "%m", "dd": "%d", "HH": "%H"}
_DATE |= {"mm": "%M", "ss": "%S"}
_ISO = "yyyy-MM-dd'T'HH:mm:ss"
_NUMERIC = ("numeric", "real", "integer")


class _Value(NamedTuple):
  text: str
  quoted: bool
  end: int


class _Attribute(NamedTuple):
  """A column: its kind, the names of its categories, its date format."""

  name: str
  kind: str
  categories: tuple[str, ...] = ()
  date_format: str = ""

  @property
  def default(self) -> str | None:
    """What a sparse row leaves out: zero, or the first category."""
    if self.kind in _NUMERIC:
      return "0"
    return self.categories[0] if self.categories else None


def _unescape(text: str) -> str:
  def character(found: re.Match) -> str:
    code = found[1]
    if len(code) > 1:
      return chr(int(code[1:], 16))
    return _ESCAPES.get(code, code)

  return _ESCAPE.sub(character, text)


def _skip_space(text: str, start: int) -> int:
  while text[start : start + 1].isspace():
    start += 1
  return start


def _value(text: str, start: int) -> _Value:
  """Reads a value, which may be quoted, and the space around it."""
  start = _skip_space(text, start)
  quoted = _QUOTED.match(text, start)
  if quoted:
    end = _skip_space(text, quoted.end())
    return _Value(_unescape(quoted[2]), True, end)
  if text[start : start + 1] in ("'", '"'):
    raise ValueError("a quote is not closed")
  bare = _BARE.match(text, start)
  assert bare is not None
  return _Value(bare[0], False, _skip_space(text, bare.end()))


def _next(text: str, end: int) -> int | None:
  """Returns where the next value begins, or None at the end of the line."""
  if end == len(text) or text[end] == "%":
    return None
  if text[end] != ",":
    raise ValueError(f"expected a comma before {text[end : end + 20]!r}")
  return end + 1


def _values(text: str) -> list[_Value]:
  values: list[_Value] = []
  start: int | None = 0
  while start is not None:
    values.append(_value(text, start))
    start = _next(text, values[-1].end)
  return values


def _attribute(text: str) -> _Attribute:
  """Reads what follows the word ``@attribute``."""
  quoted = _QUOTED.match(text)
  name = quoted or re.match(r"[^\s{]+", text)
  if name is None:
    raise ValueError("an attribute has no name")
  title = _unescape(quoted[2]) if quoted else name[0]
  rest = text[name.end() :].strip()
  if rest.startswith("{"):
    inside = rest[1:].rpartition("}")[0]
    categories = tuple(value.text for value in _values(inside))
    return _Attribute(title, "nominal", categories)
  kind = (rest.split() or [""])[0].lower()
  if kind == "date":
    given = rest[len(kind) :].strip()
    return _Attribute(title, kind, (), _value(given or _ISO, 0).text)
  if kind not in (*_NUMERIC, "string"):
    raise ValueError(
      f"attribute {title!r} is {kind or 'of no kind'}; expected numeric, "
      "string, date or categories in braces"
    )
  return _Attribute(title, kind)


def _sparse(line: str, attributes: list[_Attribute]) -> list[str | None]:
  """Reads a row ``{index value, ...}``, which leaves out common values."""
  inside, brace, after = line[1:].rpartition("}")
  if not brace or (after.strip() and not after.strip().startswith("%")):
    raise ValueError("a row in braces must end with a brace")
  row = [attribute.default for attribute in attributes]
  start = 0 if inside.strip() else None
  while start is not None:
    start = _skip_space(inside, start)
    index = _INDEX.match(inside, start)
    if not index or int(index[1]) >= len(row):
      raise ValueError(
        f"expected the number of a column from 0 to {len(row) - 1} and a "
        f"value, got {inside[start : start + 20]!r}"
      )
    value = _value(inside, index.end())
    row[int(index[1])] = _present(value)
    start = _next(inside, value.end)
  return row


def _present(value: _Value) -> str | None:
  return None if value.text == "?" and not value.quoted else value.text


def _number(text: str, attribute: _Attribute) -> float:
  with contextlib.suppress(ValueError):
    if "_" not in text:  # float() also takes 1_000.
      return float(text)
  raise ValueError(f"{attribute.name} must be a number, got {text!r}")


def _row(line: str, attributes: list[_Attribute]) -> list[Any]:
  if line.startswith("{"):
    texts = _sparse(line, attributes)
  else:
    texts = [_present(value) for value in _values(line)]
  if len(texts) != len(attributes):
    raise ValueError(
      f"{len(texts)} values for {len(attributes)} attributes; separate the "
      "values by commas and quote a value that holds a comma"
    )
  row: list[Any] = []
  for text, attribute in zip(texts, attributes, strict=True):
    if text is None:
      row.append(math.nan if attribute.kind in _NUMERIC else None)
    elif attribute.kind in _NUMERIC:
      row.append(_number(text, attribute))
    elif attribute.categories and text not in attribute.categories:
      raise ValueError(
        f"{attribute.name} has no category {text!r}; add it to the "
        "@attribute line"
      )
    else:
      row.append(text.strip() or None)
  return row


def _lines(text: str) -> Iterator[tuple[int, str]]:
  """Yields the lines that are neither blank nor comments."""
  for number, line in enumerate(io.StringIO(text), 1):
    stripped = line.strip()
    if stripped and not stripped.startswith("%"):
      yield number, stripped


def _dates(column: list[str | None], attribute: _Attribute) -> pd.Series:
  """Converts a column of dates, or keeps it where the format is not known."""
  known = re.sub(r"'([^']*)'", r"\1", attribute.date_format)
  for java, python in _DATE.items():
    known = known.replace(java, python)
  # Other letters than those of Python's format and the T before a time.
  if re.search(r"(?<!%)[a-zA-SU-Z]", known):
    return pd.Series(column, dtype=object)
  try:
    return pd.Series(pd.to_datetime(column, format=known))
  except ValueError:
    raise ValueError(
      f"the dates of {attribute.name!r} do not have the format "
      f"{attribute.date_format!r}; correct it in the @attribute line"
    ) from None


def _column(
  number: int, attribute: _Attribute, rows: list[list[Any]]
) -> pd.Series:
  values = [row[number] for row in rows]
  if attribute.kind == "date":
    return _dates(values, attribute)
  dtype = "float64" if attribute.kind in _NUMERIC else "object"
  return pd.Series(values, dtype=dtype)


def read(text: str, source: str) -> RawTable:
  """Reads an ARFF file, also with rows in braces, which are sparse.

  Args:
    text: The text of the file.
    source: The name of the file in error messages.

  Returns:
    The table. Numeric columns are float64; dates are datetime64; categories
    and strings are text.

  Raises:
    StudyError: A line is not understood. The message has its number.
  """
  attributes: list[_Attribute] = []
  rows: list[list[Any]] | None = None
  number = 0
  try:
    for line_number, line in _lines(text):
      number = line_number
      if rows is not None:
        rows.append(_row(line, attributes))
      elif found := _ATTRIBUTE.match(line):
        attributes.append(_attribute(line[found.end() :]))
      elif line.lower().split()[0] == "@data":
        if not attributes:
          raise ValueError("there is no @attribute line above @data")
        rows = []
      elif not line.lower().startswith("@relation"):
        raise ValueError(
          f"expected @relation, @attribute or @data, got {line[:20]!r}"
        )
  except ValueError as error:
    raise StudyError(
      f"{source}: line {number} cannot be read: {error}"
    ) from None
  if not rows:
    raise StudyError(
      f"{source} has no rows after @data; add them, or name another file"
    )
  try:
    columns = {k: _column(k, a, rows) for k, a in enumerate(attributes)}
  except ValueError as error:
    raise StudyError(f"{source}: {error}") from None
  frame = pd.DataFrame(columns)
  return RawTable(frame.set_axis([a.name for a in attributes], axis=1))
