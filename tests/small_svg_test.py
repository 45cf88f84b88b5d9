# SPDX-License-Identifier: Apache-2.0
"""Figures become smaller and stay the same."""

import importlib.util
import itertools
import math
import pathlib
import re
from xml.etree import ElementTree

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"
_SPEC = importlib.util.spec_from_file_location(
  "small_svg", DOCS / "small_svg.py"
)
small_svg = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(small_svg)
NUMBER = r"-?(?:\d+\.?\d*|\.\d+)"


def points(path):
  """The points of each line of a path."""
  found = []
  for text in path.replace("z", "").split("M")[1:]:
    first, _, others = text.partition("l")
    numbers = [float(n) for n in re.findall(NUMBER, first + " " + others)]
    line = [(numbers[0], numbers[1])]
    for dx, dy in zip(numbers[2::2], numbers[3::2], strict=True):
      line.append((line[-1][0] + dx, line[-1][1] + dy))
    found.append(line)
  return found


def height(line, x):
  for (x0, y0), (x1, y1) in itertools.pairwise(line):
    if x0 <= x <= x1:
      return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
  raise AssertionError(x)


def test_a_curve_moves_by_less_than_a_pixel():
  curve = [(x / 2, round(40 + 30 * math.sin(x / 20), 1)) for x in range(200)]
  text = " ".join(f"{x} {y}" for x, y in curve)
  small = small_svg.compact(f'<path d="M {text} M 1 2  3 0.5 "/>')
  first, second = points(small)
  assert len(first) < 100
  assert len(small) < len(text) / 3
  for x, y in curve:
    assert height(first, x) == pytest.approx(y, abs=0.3)
  assert second == [(1, 2), (3, 0.5)]


def test_frames_and_other_paths_are_kept():
  frame = '<path d="M 0 9.4  5 9.4  5 0  0 0  z"/>'
  assert small_svg.compact(frame) == '<path d="M0 9.4l5 0 0-9.4-5 0z"/>'
  curve = '<path d="M 0 1.5 C 1 2 3 4 5 6 "/>'
  assert small_svg.compact(curve) == curve


def test_styles_that_repeat_are_written_once():
  text = "".join(f'<text style="fill: red; x: 1">{i}</text>' for i in range(3))
  small = small_svg.compact(f"<style></style>{text}<a style='y'/>")
  assert small.startswith("<style>.c0{fill:red;x:1}</style>")
  assert small.count('class="c0"') == 3
  assert "style='y'" in small


def test_all_figures_are_small():
  sizes = {}
  for path in [*DOCS.glob("*.svg"), *DOCS.glob("losses/*.svg")]:
    data = path.read_bytes()
    assert ElementTree.fromstring(data).tag.endswith("svg")
    sizes[path.name] = len(data)
  assert max(sizes.values()) < 30_000
  assert sum(sizes.values()) < 250_000
