# SPDX-License-Identifier: Apache-2.0
"""Reads numbers as people write them: 1,234.50, $5,190, 59.4 %, <0.1."""

from collections.abc import Sequence
import functools
import re
from typing import NamedTuple

import numpy as np

# What a text is: no number, a plain number, a number with signs around it or
# separators in it, or a number without a value: a bound such as "<0.1", or inf.
WORD, PLAIN, DECORATED, BOUND = range(4)

_INFINITE = re.compile(r"[-+]?inf(?:inity)?", re.IGNORECASE)

_SHORT = 64
# The largest float64 has 309 digits.
_LONGEST = 400
_PLAIN_CHARACTERS = frozenset("0123456789.+-eE")
# Signs that Unicode has several of: minus, and spaces that do not break.
_SAME = str.maketrans("\u2212\u00a0\u2009\u202f\u2019", "-   '")
_CODES = (
  r"USD|EUR|GBP|CHF|JPY|CNY|INR|SEK|NOK|DKK|PLN|CZK|HUF|CAD|AUD|NZD|BRL|MXN|"
  r"ZAR|KRW|TRY|SGD|HKD|US\$|R\$|kr\.?|Fr\.?|Rs\.?"
)
_CURRENCY = f"(?:{_CODES})|[$€£¥₹₽₩₺₴₫₪฿₱₦]"
_SIGNS = re.compile(_CURRENCY)


class WrittenNumbers(NamedTuple):
  """Texts read as numbers.

  Attributes:
    values: ``[texts]``, float64; NaN where a text is not a number.
    forms: ``[texts]``, what each text is: ``WORD``, ``PLAIN``, ``DECORATED``
      or ``BOUND``.
  """

  values: np.ndarray
  forms: np.ndarray


@functools.cache
def _pattern(decimal: str) -> re.Pattern[str]:
  """Matches a number with one decimal mark and one separator of groups."""
  mark = re.escape(decimal)
  groups = r"[,' ]" if decimal == "." else r"[.' ]"
  number = (
    rf"(?:[1-9]\d{{0,2}}(?P<group>{groups})\d{{3}}(?:(?P=group)\d{{3}})*|\d+)"
    rf"(?:{mark}\d*)?|{mark}\d+"
  )
  return re.compile(
    rf"(?P<bound>[<>≤≥]=?)?\s*(?P<open>\()?\s*(?P<sign>[-+]?)\s*"
    rf"(?P<currency>{_CURRENCY})?\s*(?P<inner>[-+]?)\s*"
    rf"(?P<number>{number})(?P<exponent>[eE][-+]?\d+)?"
    rf"\s*(?P<unit>{_CURRENCY}|%)?\s*(?P<close>\))?"
  )


def _read(text: str, decimal: str) -> tuple[float, int]:
  """Returns the value and the form of one text."""
  match = _pattern(decimal).fullmatch(text.translate(_SAME))
  if match is None:
    return np.nan, BOUND if _INFINITE.fullmatch(text) else WORD
  bracketed = bool(match["open"])
  if bracketed != bool(match["close"]) or (match["sign"] and match["inner"]):
    return np.nan, WORD
  number = match["number"]
  if match["group"]:
    number = number.replace(match["group"], "")
  value = float(number.replace(decimal, ".") + (match["exponent"] or ""))
  # Accountants write a negative number in brackets.
  if bracketed or "-" in (match["sign"], match["inner"]):
    value = -value
  if match["unit"] == "%":
    value /= 100
  if not np.isfinite(value):
    return np.nan, WORD
  if match["bound"]:
    return np.nan, BOUND
  decorated = match["group"] or match["currency"] or match["unit"] or bracketed
  return value, DECORATED if decorated else PLAIN


def read_numbers(
  texts: Sequence[str] | np.ndarray, decimal: str = "."
) -> WrittenNumbers:
  """Reads texts as numbers.

  Thousands may be separated by the mark that is not the decimal mark, by
  spaces or by apostrophes, in groups of three digits. Currency signs are
  ignored, and a percentage is divided by 100. Bounds such as ``<0.1``
  and infinities are NaN.

  Args:
    texts: The texts, without outer spaces.
    decimal: The decimal mark, ``"."`` or ``","``.

  Returns:
    The numbers, and what each text is.
  """
  # Most columns are plain, and NumPy reads those in one call. Its array has
  # the width of the longest text.
  short = max(map(len, texts), default=0) <= _SHORT
  if short and decimal == "." and set().union(*texts) <= _PLAIN_CHARACTERS:
    try:
      values = np.array(texts, dtype=str).astype(np.float64)
    except ValueError:
      pass
    else:
      if np.isfinite(values).all():
        return WrittenNumbers(values, np.full(len(texts), PLAIN))
  words = (np.nan, WORD)
  pairs = [
    _read(text, decimal) if len(text) <= _LONGEST else words for text in texts
  ]
  values = np.array([value for value, _ in pairs], np.float64)
  return WrittenNumbers(values, np.array([form for _, form in pairs], int))


def currencies(texts: Sequence[str] | np.ndarray) -> list[str]:
  """Returns the different currency signs of texts that are numbers."""
  return sorted({sign for text in texts for sign in _SIGNS.findall(text)})


def is_code(text: str) -> bool:
  """Whether a text is digits with a leading zero, such as ``007``."""
  return len(text) > 1 and text[0] == "0" and text.isdecimal()
