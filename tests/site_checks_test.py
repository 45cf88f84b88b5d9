# SPDX-License-Identifier: Apache-2.0
"""The checks of the built site, which ``make docs`` runs."""

import html
import importlib
import json
import sys
import types

import pytest
from support import source

DOCS = source.ROOT / "docs"
PAGE = '<!doctype html><title>T</title><link rel="icon" href="data:,">'


def website(name):
  path = list(sys.path)
  sys.path.insert(0, str(DOCS / "website"))
  try:
    return importlib.import_module(name)
  finally:
    sys.path[:] = path


check_site = website("check_site")
notebook_times = website("notebook_times")
render_site = website("render_site")
study_report = website("study_report")


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


def test_links_out_of_the_site_are_found(tmp_path):
  (tmp_path / "above.csv").touch()
  (tmp_path / "site").mkdir()
  written(tmp_path / "site", a='<a href="../above.csv">1</a>')
  assert check_site.problems(tmp_path / "site") == [
    "a.html links to ../above.csv, which is outside the site"
  ]


def test_only_names_of_links_are_anchors(tmp_path):
  links = '<a href="#viewport">1</a><a name="here" href="#here">2</a>'
  written(tmp_path, a=f'<meta name="viewport" content="x">{links}')
  assert check_site.problems(tmp_path) == [
    "a.html links to #viewport, which has no such anchor"
  ]


def test_every_image_of_a_set_is_looked_for(tmp_path):
  (tmp_path / "a,b.png").touch()
  images = "a,b.png 1x,no.png  2x , data:x;base64,y 3x, gone.png"
  written(tmp_path, a=f'<img srcset="{images}">')
  assert check_site.problems(tmp_path) == [
    "a.html links to gone.png, which does not exist",
    "a.html links to no.png, which does not exist",
  ]


def test_text_after_a_style_sheet_is_no_style_sheet(tmp_path):
  text = "url(https://example.org/x)"
  written(tmp_path, a=f"<style>p {{ color: red }}</style>{text}")
  assert not check_site.problems(tmp_path)


def test_a_folder_without_pages_is_no_site(tmp_path):
  assert check_site.problems(tmp_path) == [f"{tmp_path.resolve()} has no pages"]


@pytest.mark.parametrize(
  "text",
  [
    '<script src="https://example.org/x"></script>',
    '<link rel="stylesheet" href="//example.org/x">',
    "<style>@import 'https://example.org/x';</style>",
    "<style>@import url('https://example.org/x');</style>",
    '<img srcset="data:x,y 1x, https://example.org/x 2x">',
    "<p style=\"background: url('https://example.org/x')\">",
    f'<iframe srcdoc="{html.escape("<img src=https://example.org/x>")}">',
  ],
)
def test_files_of_other_hosts_are_found(tmp_path, text):
  assert not check_site.problems(written(tmp_path, a="<p>"))
  (problem,) = check_site.problems(written(tmp_path, a=text))
  assert problem.endswith("//example.org/x from another host")


def test_fonts_of_other_hosts_are_found(tmp_path):
  css = written(tmp_path, a="<p>") / "a.css"
  css.write_text("@font-face { src: url(f.woff2) }", encoding="utf-8")
  assert not check_site.problems(tmp_path)
  css.write_text("@font-face { src: url(//example.org/f) }", encoding="utf-8")
  assert check_site.problems(tmp_path) == [
    "a.css loads //example.org/f from another host"
  ]


def test_names_without_a_page_are_found(tmp_path):
  (tmp_path / "api").mkdir()
  written(tmp_path / "api", **{"m.f": '<dt id="m.f">', "m.g": "m.g"})
  found = check_site.missing_names(tmp_path, {"m": ("f", "g", "h")})
  assert found == [
    "api/m.g.html does not document m.g",
    "api/m.h.html does not document m.h",
  ]


def test_pages_that_a_search_does_not_find_are_found(tmp_path):
  index = {
    "docnames": ["a", "b", "c", "d"],
    "terms": {"squentropi": [0, 2], "loss": [3]},
    "titleterms": {"squentropi": 1},
  }
  script = tmp_path / "searchindex.js"
  script.write_text(f"Search.setIndex({json.dumps(index)})", encoding="utf-8")
  found = check_site.missing_results(tmp_path, "squentropi", "abcd")
  assert found == ["a search for 'squentropi' does not find d"]
  script.write_text("other", encoding="utf-8")
  (problem,) = check_site.missing_results(tmp_path, "squentropi", "abcd")
  assert "form" in problem


def test_notebooks_that_take_long_are_named(capsys):
  times = {"b": 61.0, "a": 59.94, "page": None}
  pages = {name: {"exec_data": {"runtime": t}} for name, t in times.items()}
  env = types.SimpleNamespace(nb_metadata={**pages, "other": {}})
  hooks = {}
  notebook_times.setup(types.SimpleNamespace(connect=hooks.__setitem__))
  hooks["build-finished"](types.SimpleNamespace(env=env), None)
  assert capsys.readouterr().out.splitlines() == [
    "a took 59.9 s",
    "b took 61.0 s",
    "More than 60 s: b",
  ]
  assert notebook_times.lines({"a": 1.0}) == ["a took 1.0 s"]


def test_the_embedded_report_becomes_a_file(tmp_path):
  folder = tmp_path / "gallery"
  folder.mkdir()
  report = '<h1 class="x">R</h1>'
  shown = '<pre>srcdoc="{report}"</pre>'
  frame = f'<iframe title="T" srcdoc="{html.escape(report)}"></iframe>'
  page = folder / "compare_losses.html"
  page.write_text(shown + frame, encoding="utf-8")
  link = '<a href="gallery/report.html">'
  written(tmp_path, study=f'<iframe src="gallery/report.html"></iframe>{link}')
  for _ in range(2):  # Pages that did not change are not written again.
    study_report.save(tmp_path)
    assert (folder / "report.html").read_text(encoding="utf-8") == report
    text = page.read_text(encoding="utf-8")
    assert text.startswith(shown + '<iframe title="T" src="report.html">')
    assert text.count("download") == 1
    assert not study_report.problems(tmp_path)


def test_a_report_that_is_not_shown_is_found(tmp_path):
  folder = tmp_path / "gallery"
  folder.mkdir()
  written(folder, compare_losses="<iframe srcdoc='<h1>'></iframe>")
  written(
    tmp_path, study='<a href="gallery/report.html"><img src="report.html">'
  )
  study_report.save(tmp_path)
  assert study_report.problems(tmp_path) == [
    "gallery/report.html has no report",
    "gallery/compare_losses.html does not show gallery/report.html",
    "gallery/compare_losses.html does not link to gallery/report.html",
    "study.html does not show gallery/report.html",
  ]


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


def test_files_that_do_not_exist_are_found(tmp_path, browser):
  written(
    tmp_path,
    image='<img src="no.png">',
    script='<script src="no.js"></script>',
    whole="<p>",
  )
  names = [f"{name}.html" for name in ("image", "script", "whole", "gone")]
  assert render_site.problems(tmp_path, names) == [
    "image.html loads no.png: error 404",
    "script.html loads no.js: error 404",
    "gone.html: error 404",
  ]


def test_requests_to_other_hosts_are_found(tmp_path, browser):
  written(
    tmp_path,
    image="<script>new Image().src = 'https://example.org/image'</script>",
    script='<script src="https://example.org/script"></script>',
    goes="<script>location = 'https://example.org/goes'</script>",
  )
  names = [f"{name}.html" for name in ("image", "script", "goes")]
  found = render_site.problems(tmp_path, names)
  assert len(found) == 3
  for problem, address in zip(found, ("image", "script", ""), strict=True):
    assert f"https://example.org/{address}' violates" in problem


def test_a_search_without_results_is_found(tmp_path, browser):
  script = "if (location.search === '?q=a') document.write('<li>x')"
  written(
    tmp_path, search=f'<ul id="search-results"><script>{script}</script></ul>'
  )
  names = ["search.html?q=a", "search.html?q=b"]
  assert render_site.problems(tmp_path, names) == [
    "search.html?q=b shows no result"
  ]
