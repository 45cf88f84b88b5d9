# SPDX-License-Identifier: Apache-2.0
"""The checks that ``make docs`` runs, and the site where it is built."""

import html
import importlib
import json
import pathlib
import re
import sys

import pytest
from support import source

DOCS = source.ROOT / "docs"
SITE = source.ROOT / "build" / "site" / "html"
PAGE = '<!doctype html><title>T</title><link rel="icon" href="data:,">'


def website(name):
  path = list(sys.path)
  sys.path.insert(0, str(DOCS / "website"))
  try:
    return importlib.import_module(name)
  finally:
    sys.path[:] = path


check_site = website("check_site")
render_site = website("render_site")


@pytest.fixture(scope="module")
def site():
  """The site, where it was built from the pages as they are."""
  if not (SITE / "index.html").exists():
    pytest.skip("build/site/html does not exist: make docs builds it")
  pages = [source.ROOT / name for name in ("README.md", "CHANGELOG.md")]
  pages += [p for p in DOCS.rglob("*") if p.suffix in (".md", ".py", ".svg")]
  built = (SITE / "searchindex.js").stat().st_mtime
  if max(page.stat().st_mtime for page in pages) > built:
    pytest.skip("build/site/html is older than docs: make docs builds it again")
  return SITE


@pytest.fixture
def browser():
  """Skips a test where there is no browser."""
  if render_site.chromium() is None:
    pytest.skip("Chromium is not installed")


def written(folder, **pages):
  for name, text in pages.items():
    (folder / f"{name}.html").write_text(PAGE + text, encoding="utf-8")
  return folder


def test_links_to_nothing_are_found(tmp_path):
  (tmp_path / "file.csv").touch()
  written(
    tmp_path,
    a='<a href="b.html#here">1</a><a href="file.csv">2</a><a href="#top">3</a>'
    '<p id="top"><a href="https://example.org/x">4</a><img src="data:x,y">',
    b='<p id="here"><a href="a.html?q=1#top">5</a>',
  )
  assert not check_site.problems(tmp_path)
  written(
    tmp_path,
    a='<a href="b.html#gone">1</a><a href="gone.csv">2</a><img src="no.png">',
  )
  assert check_site.problems(tmp_path) == [
    "a.html links to b.html#gone, which has no such anchor",
    "a.html links to gone.csv, which does not exist",
    "a.html links to no.png, which does not exist",
    "b.html links to a.html?q=1#top, which has no such anchor",
  ]


@pytest.mark.parametrize(
  "text",
  [
    '<script src="https://example.org/x"></script>',
    '<link rel="stylesheet" href="//example.org/x">',
    "<style>@import 'https://example.org/x';</style>",
    "<p style=\"background: url('https://example.org/x')\">",
    f'<iframe srcdoc="{html.escape("<img src=https://example.org/x>")}">',
  ],
)
def test_files_of_other_hosts_are_found(tmp_path, text):
  assert not check_site.problems(written(tmp_path, a="<p>"))
  (problem,) = check_site.problems(written(tmp_path, a=text))
  assert problem.endswith("//example.org/x from another host")


def test_fonts_of_other_hosts_are_found(tmp_path):
  css = tmp_path / "a.css"
  css.write_text("@font-face { src: url(f.woff2) }", encoding="utf-8")
  assert not check_site.problems(tmp_path)
  css.write_text("@font-face { src: url(//example.org/f) }", encoding="utf-8")
  assert check_site.problems(tmp_path) == [
    "a.css loads //example.org/f from another host"
  ]


def test_the_embedded_report_becomes_a_file(tmp_path):
  pytest.importorskip("sphinx", reason="make docs installs it")
  folder = tmp_path / "gallery"
  folder.mkdir()
  report = '<h1 class="x">R</h1>'
  shown = '<pre>srcdoc="{report}"</pre>'
  frame = f'<iframe title="T" srcdoc="{html.escape(report)}"></iframe>'
  page = folder / "compare_losses.html"
  page.write_text(shown + frame, encoding="utf-8")
  for _ in range(2):  # Pages that did not change are not written again.
    website("build_site")._save_report(tmp_path)
    assert (folder / "report.html").read_text(encoding="utf-8") == report
    text = page.read_text(encoding="utf-8")
    assert text.startswith(shown + '<iframe title="T" src="report.html">')
    assert text.count("download") == 1


def test_wide_pages_and_errors_are_found(tmp_path, browser):
  wide = '<div style="width: 600px">x</div>'
  written(
    tmp_path,
    wide=f"<article>{wide}</article>",
    scrolls=f'<article><div style="overflow-x: auto">{wide}</div></article>',
    wrong="<script>undefinedName()</script>",
  )
  names = [f"{name}.html" for name in ("wide", "scrolls", "wrong")]
  found = render_site.problems(tmp_path, names)
  assert len(found) == 2
  assert found[0].startswith("wide.html is wider than 390 pixels: the page, <")
  assert "undefinedName is not defined" in found[1]


def test_built_site_is_whole_and_loads_only_its_own_files(site):
  assert not check_site.problems(site)


def test_built_site_has_every_public_name(site):
  api = website("api_pages")
  for module, names in api.symbols().items():
    for name in names:
      text = (site / "api" / f"{module}.{name}.html").read_text("utf-8")
      assert f'id="{module}.{name}"' in text, f"{module}.{name}"


def test_search_finds_the_main_loss(site):
  text = (site / "searchindex.js").read_text(encoding="utf-8")
  index = json.loads(re.fullmatch(r"Search\.setIndex\((.*)\)", text)[1])
  stem = "squentropi"
  found = {*index["terms"][stem], *index["titleterms"][stem]}
  names = {index["docnames"][number] for number in found}
  assert {"index", "losses/squentropy", "get_started"} <= names


def test_built_pages_fit_a_telephone(site, browser):
  pages, console = render_site.rendered(
    site, [*render_site.PAGES, "search.html?q=squentropy"]
  )
  assert not console
  assert {name: page["wide"] for name, page in pages.items()} == {
    name: [] for name in pages
  }
  assert pages["search.html?q=squentropy"]["results"] > 10


def test_report_is_shown_and_can_be_saved(site):
  report = pathlib.Path(site, "gallery", "report.html")
  assert "<h1" in report.read_text(encoding="utf-8")
  for name in ("gallery/compare_losses.html", "study.html"):
    text = (site / name).read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href)="([^"]*report\.html)"', text)
    assert len(links) == 2, name
    for link in links:
      assert (site / name).parent.joinpath(link).resolve() == report.resolve()
