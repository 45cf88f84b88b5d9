# SPDX-License-Identifier: Apache-2.0
"""The figures of the guides."""

import csv
from xml.etree import ElementTree

import matplotlib
import pytest
from support import source

DOCS = source.ROOT / "docs"
figures = source.script("docs", "page_figures")


@pytest.mark.skipif(
  matplotlib.__version_info__ < (3, 11), reason="older versions draw otherwise"
)
def test_pages_show_their_figures_as_they_are_drawn(tmp_path, monkeypatch):
  names = list(figures.FIGURES)
  # The others take long.
  few = {
    name: figures.FIGURES[name] for name in ("attention", "probes", "weights")
  }
  monkeypatch.setattr(figures, "FIGURES", few)
  figures.main(tmp_path)
  for name in few:
    drawn = (tmp_path / f"{name}.svg").read_bytes()
    assert drawn == (DOCS / f"{name}.svg").read_bytes(), (
      "Run `python docs/page_figures.py`."
    )
  for name in names:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert f"]({name}.svg)" in page
    text = (DOCS / f"{name}.svg").read_bytes()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert b"font-face" not in text
    assert len(text) < 30_000


def test_stored_errors_are_those_of_the_margins_of_the_figure():
  numerics = source.script("docs", "numerics_figure")
  with numerics.TORCH.open(encoding="utf-8", newline="") as file:
    lines = list(csv.DictReader(file))
  assert [float(line["margin"]) for line in lines] == list(numerics.MARGINS)
  assert len({line["torch"] for line in lines}) == 1
  # The first is as exact as float32 is, and the last loss is rounded to 0.
  assert float(lines[0]["loss"]) < 2.0**-22
  assert {lines[-1][name] for name in numerics.TITLES} == {"1"}
