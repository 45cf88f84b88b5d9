# SPDX-License-Identifier: Apache-2.0
"""Numbers as text, with as many digits as their errors allow."""

import math

_MOST_DECIMALS = 6


def decimals(error: float, default: int = 3) -> int:
  """Returns the number of decimals that an error leaves meaningful.

  Args:
    error: Standard error, or half of an interval.
    default: For an error that is 0 or not finite.

  Returns:
    Decimals that show the error with one digit, or with two if the first of
    them is 1 or 2.
  """
  if not (math.isfinite(error) and error > 0):
    return default
  # 0.3 keeps one decimal in spite of rounding.
  return min(max(math.ceil(-math.log10(error / 3) - 1e-9), 0), _MOST_DECIMALS)


def fixed(value: float, places: int, *, signed: bool = False) -> str:
  """Returns a number with a fixed number of decimals, never "-0.0"."""
  if not math.isfinite(value):
    return str(value)
  rounded = round(value, places) + 0.0
  return f"{rounded:{'+' if signed and rounded else ''}.{places}f}"


def with_interval(
  mean: float, low: float, high: float, default: int = 3
) -> tuple[str, str]:
  """Returns ``+0.9`` and ``[0.4, 1.4]``, which is empty without an interval."""
  if not (math.isfinite(low) and math.isfinite(high)):
    return fixed(mean, default, signed=True), ""
  places = decimals((high - low) / 2, default)
  ends = ", ".join(fixed(end, places) for end in (low, high))
  return fixed(mean, places, signed=True), f"[{ends}]"


def listed(names: list[str], most: int = 3) -> str:
  """Returns ``a, b and c``, or ``a, b and 4 more``."""
  if len(names) > most:
    names = [*names[: most - 1], f"{len(names) - most + 1} more"]
  if len(names) < 2:
    return "".join(names)
  return f"{', '.join(names[:-1])} and {names[-1]}"


def counted(number: int, noun: str) -> str:
  """Returns ``1 row``, ``2 rows``, ``3 classes``."""
  plural = "es" if noun.endswith("s") else "s"
  return f"{number} {noun}{'' if number == 1 else plural}"
