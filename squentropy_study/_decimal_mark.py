# SPDX-License-Identifier: Apache-2.0
"""Finds whether the numbers of a text table have a decimal comma."""

from collections.abc import Sequence
import re

Column = Sequence[str | None]

# What may stand around a number: signs of currencies, percent, spaces.
_CLOTHES = re.compile(
  r"[\s$€£¥₹%]|(?<![A-Za-z])(?:EUR|USD|GBP|CHF)(?![A-Za-z])"
)
# A number with this mark, and one that can only be read with this mark: "1,5"
# and "0,123", but not "1,234", which may have a thousands separator.
_NUMBER = (
  r"[+-]?(?:\d+|\d{{1,3}}(?:[{other}'’]\d{{3}})+)?{mark}\d+(?:[eE][+-]?\d+)?"
)
_THOUSANDS = r"[+-]?[1-9]\d{{0,2}}{mark}\d{{3}}"


def _patterns(mark: str, other: str) -> tuple[re.Pattern, re.Pattern]:
  marks = {"mark": re.escape(mark), "other": re.escape(other)}
  return tuple(  # type: ignore[return-value]
    re.compile(pattern.format(**marks)) for pattern in (_NUMBER, _THOUSANDS)
  )


_PATTERNS = {",": _patterns(",", "."), ".": _patterns(".", ",")}


def _examples(column: Column, mark: str) -> tuple[str | None, str | None]:
  """Returns a number that has this mark for certain, and one that may."""
  number, thousands = _PATTERNS[mark]
  # Each cell once, in the order of the file.
  held = dict.fromkeys(c for c in column if c is not None and mark in c)
  certain: str | None = None
  possible: str | None = None
  count = 0
  for cell in held:
    bare = cell
    if not number.fullmatch(bare):
      bare = _CLOTHES.sub("", cell)
      if not number.fullmatch(bare):
        continue
    count += 1
    possible = possible or cell
    if not certain and not thousands.fullmatch(bare):
      certain = cell
  # Else it is a text that holds the mark.
  return (certain, possible) if 2 * count > len(held) else (None, None)


def find(
  columns: Sequence[Column], *, semicolons: bool
) -> tuple[str, tuple[str, ...]]:
  """Finds the decimal mark that more columns have.

  Args:
    columns: All cells of each column.
    semicolons: Whether values are separated by semicolons, as programs do
      where the decimal mark is a comma. It decides where the cells do not.

  Returns:
    ``"."`` or ``","``, and a note if any column has a comma.
  """
  commas = [_examples(column, ",") for column in columns]
  if not any(possible for _, possible in commas):
    return ".", ()
  points = [_examples(column, ".") for column in columns]
  with_comma = [certain for certain, _ in commas if certain]
  with_point = [certain for certain, _ in points if certain]
  if semicolons and not with_comma and not with_point:
    # Every number has three decimals.
    with_comma = [possible for _, possible in commas if possible]
  if not with_comma:
    return ".", ()
  more = len(with_comma) - len(with_point)
  if more < 0 or (more == 0 and not semicolons):
    return ".", (
      f"numbers have a decimal point, such as {with_point[0]}, but others have "
      f"a decimal comma, such as {with_comma[0]}",
    )
  note = f"numbers have a decimal comma, such as {with_comma[0]}"
  if with_point:
    note += f", but others have a decimal point, such as {with_point[0]}"
  return ",", (note,)
