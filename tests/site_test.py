# SPDX-License-Identifier: Apache-2.0
"""The pages of the site: links, reference, gallery, tables, and the build."""

import ast
import csv
import importlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest
from support import source

DOCS = source.ROOT / "docs"
GALLERY = sorted((DOCS / "gallery").glob("*.py"))
# Those that compile little. The build runs all.
CHEAP = ("first_steps", "declare_a_loss")


@pytest.fixture(scope="module")
def site():
  """The module that collects the pages, and the pages."""
  path = list(sys.path)
  sys.path.insert(0, str(DOCS / "website"))
  try:
    module = importlib.import_module("site_pages")
    return module, module.pages()
  finally:
    sys.path[:] = path


def without_code(text):
  return re.sub(r"^(```+)[^\n]*\n.*?^\1`*$", "", text, flags=re.M | re.S)


def anchors(text):
  """The anchors of the headings of a page, as on the code host."""
  found = set()
  for title in re.findall(r"^#+ (.*)$", without_code(text), re.M):
    title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
    found.add(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
  return found


def test_links_lead_to_pages_and_headings(site):
  _, pages = site
  known = {*pages.texts, *pages.files}
  broken = []
  for page, text in pages.texts.items():
    text = re.sub(r"`[^`\n]+`", "", without_code(text))
    for link in re.findall(r"(?<=\]\()([^)\s]+)(?=\))", text):
      if link.startswith(("http://", "https://")):
        continue
      target, _, anchor = link.removeprefix("path:").partition("#")
      place = os.path.normpath(os.path.join(os.path.dirname(page), target))
      place = place if target else page
      has_anchor = not anchor or anchor in anchors(pages.texts.get(place, ""))
      if place not in known or not has_anchor:
        broken.append(f"{page}: {link}")
  assert not broken


def test_a_link_to_nothing_is_an_error(site):
  module, _ = site
  pages = module.Pages()
  with pytest.raises(ValueError, match=r"links to missing\.md"):
    pages.add("docs/fused.md", "[text](missing.md)")
  pages.add(
    "docs/fused.md", "`[text](missing.md)` [a](losses/README.md#labels)"
  )
  assert pages.texts["fused.md"].endswith("[a](losses/index.md#labels)")
  pages.add("docs/mining.md", "[a](../tests/optax_parity_test.py)")
  assert (
    pages.texts["mining.md"] == "[a](path:files/tests/optax_parity_test.py)"
  )


def test_a_link_that_is_a_path_gets_the_title_of_its_page(site):
  module, _ = site
  pages = module.Pages()
  pages.add("docs/fused.md", "# Large\n")
  pages.add(
    "docs/losses/ldr.md", "[docs/fused.md](../fused.md) [b](../fused.md)"
  )
  pages.name_links()
  assert pages.texts["losses/ldr.md"] == "[Large](../fused.md) [b](../fused.md)"


def test_pages_have_parts_of_other_files(site):
  _, pages = site
  index = pages.texts["index.md"]
  assert index.count("\n- **") >= 4
  assert "](replication/over_confidence.png)\n\n*Each dot" in index
  study = pages.texts["study.md"]
  assert "[A notebook of the\ngallery](gallery/compare_losses.py)" in study
  assert 'src="gallery/report.html"' in study


def test_navigation_names_pages(site):
  _, pages = site
  listed = set()
  for page, text in pages.texts.items():
    folder = os.path.dirname(page)
    for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.M | re.S):
      for entry in tree.splitlines():
        entry = re.sub(r".*<(.*)>", r"\1", entry)
        if entry and not entry.startswith(":"):
          listed.add(os.path.join(folder, entry))
  places = {re.sub(r"\.(md|py)$", "", page) for page in pages.texts}
  assert listed <= places
  unlisted = {
    page
    for page, text in pages.texts.items()
    if "orphan: true" not in text
    and re.sub(r"\.(md|py)$", "", page) not in listed
  }
  assert unlisted == {"index.md"}


def test_every_public_name_has_a_page(site):
  _, pages = site
  missing = [
    name for name in source.public() if f"api/{name}.md" not in pages.texts
  ]
  assert not missing
  for module in source.public_modules():
    assert f"api/{module}.md" in pages.texts
  for name in importlib.import_module("squentropy_study").__all__:
    if name != "REFERENCE":  # A string.
      assert f"api/squentropy_study.{name}.md" in pages.texts


def test_names_in_text_lead_to_their_pages(site):
  api = sys.modules["api_pages"]
  assert api.page_of("losses.focal") == "api/squentropy_jax.losses.focal"
  assert api.page_of("row_loss") == "api/squentropy_jax.row_loss"
  assert api.page_of("nn.nnx.CosineHead") == (
    "api/squentropy_jax.nn.nnx.CosineHead"
  )
  assert api.page_of("focal") == api.page_of("squentropy_jax.losses.focal")
  assert api.page_of("fit_temperature()") == (
    "api/squentropy_jax.calibration.fit_temperature"
  )
  assert api.page_of("jax.jit") is None
  assert api.page_of("merge") is None


def table_rows(text):
  """The number of rows in the tables of each section of a page."""
  found = {}
  for section in re.split(r"^## ", text, flags=re.M)[1:]:
    title, _, body = section.partition("\n")
    tables = re.findall(r"^\|(?:.*\n\|)*", body, re.M)
    # The titles and the rule below them are no rows.
    found[title] = sum(table.count("\n") + 1 - 2 for table in tables)
  return found


def test_every_result_has_a_row(site):
  _, pages = site
  tables = sys.modules["benchmark_tables"]
  titles = {name: report.title for name, report in tables.REPORTS.items()}
  titles |= {"dense": "Losses of logits", "recalibration": "Recalibrators"}
  # Results with the same values of these columns share a row.
  shared = {
    "dense": ("shape", "axis", "mode"),
    "recalibration": ["recalibrator"],
  }
  expected = {}
  for path in tables.RESULTS.glob("*.csv"):
    with path.open(encoding="utf-8", newline="") as file:
      rows = list(csv.DictReader(file))
    if columns := shared.get(path.stem):
      rows = {tuple(row[column] for column in columns) for row in rows}
    expected[titles[path.stem]] = len(rows)
  text = pages.texts["benchmarks.md"]
  found = table_rows(text)
  assert {title: found.get(title) for title in titles.values()} == expected
  text = text.partition("## Losses of logits")[2].partition("## Fused heads")[0]
  assert not re.search(r"\| +\|$", text, re.M), "a cell is empty"


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_gallery_source_is_a_notebook(path):
  text = path.read_text(encoding="utf-8")
  ast.parse(text)
  cells = re.split(r"^# %%", text, flags=re.M)
  assert cells[1].startswith(" [markdown]\n# # "), "the title comes first"
  for cell in cells[1:]:
    if cell.startswith(" [markdown]"):
      lines = cell.splitlines()[1:]
      assert all(line.startswith("#") or not line for line in lines)
  for link in re.findall(r"\]\(([^)#]+)", text):
    assert (path.parent / link).exists(), link


@pytest.mark.parametrize("name", CHEAP)
def test_gallery_source_runs_as_a_script(name, tmp_path):
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  environment |= {"PYTHONPATH": str(source.ROOT), "MPLBACKEND": "agg"}
  out = subprocess.run(
    [sys.executable, "-W", "error", DOCS / "gallery" / f"{name}.py"],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert out.returncode == 0, out.stderr
  assert out.stdout


def test_site_builds_without_warnings(tmp_path):
  for name in ("sphinx", "furo", "myst_nb", "latex2mathml"):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f"{name} is not installed: make docs installs it")
  # The pages are read and linked, without notebooks and without their HTML.
  code = (
    "import pathlib, sys, build_site as b\n"
    "sys.exit(b.main(['-q', '-b', 'dummy', '-D', 'nb_execution_mode=off'],"
    " pathlib.Path(sys.argv[1])))"
  )
  out = subprocess.run(
    [sys.executable, "-c", code, tmp_path],
    cwd=pathlib.Path(DOCS / "website"),
    capture_output=True,
    text=True,
  )
  assert out.returncode == 0, out.stderr
