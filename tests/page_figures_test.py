# SPDX-License-Identifier: Apache-2.0
"""The figures of the guides."""

from xml.etree import ElementTree

from support import source

DOCS = source.ROOT / "docs"
figures = source.script("docs", "page_figures")


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
