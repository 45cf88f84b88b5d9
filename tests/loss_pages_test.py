# SPDX-License-Identifier: Apache-2.0
"""Every family of losses has its page, with its formulas, hints and figure."""

import importlib.util
import inspect
import pathlib
import re

import pytest

from squentropy_jax import losses
from squentropy_jax.losses import _table

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "losses"
FAMILIES = {}
for _row in _table.TABLE:
  _module = getattr(losses, _row.name).__module__.rpartition("._")[2]
  FAMILIES.setdefault(_module, []).append(_row.name)


def figures():
  path = FOLDER.parent / "figures.py"
  spec = importlib.util.spec_from_file_location("figures", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def section(family, name):
  text = (FOLDER / f"{family}.md").read_text("utf-8")
  match = re.search(rf"^## `{name}`\n(.*?)(?=^## |\Z)", text, re.M | re.S)
  assert match, f"docs/losses/{family}.md has no section `{name}`."
  return match.group(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_a_page_with_all_of_its_losses(family):
  for name in FAMILIES[family]:
    text = section(family, name)
    assert re.search(r"^\$\$\n\\ell.*?\n\$\$\n", text, re.M | re.S), name
    assert "\n**For** " in text, name
    assert "\n**Not for** " in text, name
    # The signature is Python, and that of the code but for axis and where.
    written = re.search(rf"losses\.{name}(\(.*?(?:\n\)|\)(?=`)))", text, re.S)
    assert written, name
    scope: dict = {}
    exec(f"def loss{written.group(1)}: ...", scope)
    written_out, own = (
      [
        (p.name, p.kind, p.default)
        for p in inspect.signature(f).parameters.values()
      ]
      for f in (scope["loss"], getattr(losses, name))
    )
    assert [p for p in own if p in written_out] == written_out, name
    unsaid = {p[0] for p in own if p not in written_out}
    assert unsaid <= {"axis", "where", "hyperparameters"}, name


def test_pages_and_pictures_are_those_of_the_families():
  pages = {path.stem for path in FOLDER.glob("*.md")}
  pictures = {path.stem for path in FOLDER.glob("*.svg")}
  assert pages == pictures == set(FAMILIES) == set(figures().FIGURES)
  for family in FAMILIES:
    text = (FOLDER / f"{family}.md").read_text("utf-8")
    assert f"]({family}.svg)" in text


def test_a_figure_is_drawn_the_same_every_time(tmp_path):
  module = figures()
  few = {"square": module.FIGURES["square"]}
  module.FIGURES = few
  drawn = []
  for folder in ("first", "second"):
    (tmp_path / folder).mkdir()
    module.main(tmp_path / folder)
    drawn.append((tmp_path / folder / "square.svg").read_bytes())
  assert drawn[0] == drawn[1]
  # Text stays text, and nothing is larger than a page of code.
  assert b">rescaled_square</text>" in drawn[0]
  assert len(drawn[0]) < 40_000
