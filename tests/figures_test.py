# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/losses: one for each family, drawn reproducibly."""

from xml.etree import ElementTree

import matplotlib
import pytest
from support import source

FOLDER = source.ROOT / "docs" / "losses"
figures = source.script("docs", "figures")


def test_each_page_has_its_figure():
  pages = {path.stem for path in FOLDER.glob("*.md")} - {"README", "table"}
  pictures = {path.stem for path in FOLDER.glob("*.svg")}
  assert pages == pictures == set(figures.FIGURES)


@pytest.mark.skipif(
  matplotlib.__version_info__ < (3, 11), reason="older versions draw otherwise"
)
def test_a_figure_is_drawn_the_same_every_time(tmp_path, monkeypatch):
  few = {"square": figures.FIGURES["square"]}
  monkeypatch.setattr(figures, "FIGURES", few)
  drawn = []
  for folder in ("first", "second"):
    (tmp_path / folder).mkdir()
    figures.main(tmp_path / folder)
    drawn.append((tmp_path / folder / "square.svg").read_bytes())
  assert drawn[0] == drawn[1]
  assert drawn[0] == (FOLDER / "square.svg").read_bytes(), (
    "Run `python docs/figures.py`."
  )


def test_figures_are_small_and_hold_no_font():
  sizes = []
  for path in FOLDER.glob("*.svg"):
    text = path.read_bytes()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert b">loss</text>" in text
    assert b"font-face" not in text
    sizes.append(len(text))
  # small_svg_test.py adds up all figures of docs.
  assert max(sizes) < 15_000
