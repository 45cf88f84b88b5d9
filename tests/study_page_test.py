# SPDX-License-Identifier: Apache-2.0
"""The pages: one file each, escaped, and shown by a browser."""

import base64
import dataclasses
import html.parser
import re
import shutil
import subprocess

import jax
from matplotlib import image
import pytest
from support import study

from squentropy_study import _cli, _report_page, _store

SETTINGS = study.settings()


class _Page(html.parser.HTMLParser):
  """Gathers what a browser would load, and whether the tags are balanced."""

  def __init__(self):
    super().__init__()
    self.loads = []
    self.open = []
    self.tags = []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    loading = ("src", "srcset", "href", "data", "poster", "action")
    self.loads += [value for key, value in attrs if key in loading]
    if tag not in ("meta", "img", "source", "wbr", "link", "br"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(finished_study):
  return (finished_study[0] / "report.html").read_text()


def test_page_is_one_file_without_scripts(page):
  parser = _Page()
  parser.feed(page)
  assert parser.open == []
  assert not {"script", "link", "iframe", "object"} & set(parser.tags)
  assert "@import" not in page
  assert "url(" not in page
  assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
  # Two themes of four diagrams and four curves.
  assert len(parser.loads) == 16
  for load in parser.loads:
    kind, _, data = load.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_page_fits_themes_and_phones(page):
  assert "prefers-color-scheme: dark" in page
  assert 'name="viewport"' in page


def test_page_describes_the_setup(page, finished_study):
  text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
  assert SETTINGS.command(str(finished_study[0])) in text
  assert f"jax {jax.__version__}" in text
  for wanted in ("74 training", "0.001", "short: 2 epochs", "data seed 0"):
    assert wanted in text, wanted


def test_page_escapes_its_inputs(finished_study, monkeypatch):
  study.skip_figures(monkeypatch)
  config = _store.read_config(finished_study[0])
  config["command"] = "<script>alert(1)</script> & $table"
  # A note names columns of the table.
  config["notes"] = ["one-hot encoded: <script>alert(2)</script>"]
  settings = dataclasses.replace(SETTINGS, data="<script>3")
  results = dataclasses.replace(finished_study[1], settings=settings)
  page = _report_page.html(results, config).decode()
  assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $table" in page
  assert "&lt;script&gt;alert(2)&lt;/script&gt;" in page
  assert "&lt;script&gt;3" in page
  assert "<script" not in page


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def _shown(page, width, picture, *options):
  """The pixels of a page in a window of this width."""
  subprocess.run(
    [
      BROWSER,
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--hide-scrollbars",
      f"--window-size={width},3000",
      f"--user-data-dir={picture.parent / 'profile'}",
      f"--screenshot={picture}",
      *options,
      page.as_uri(),
    ],
    check=True,
    capture_output=True,
    timeout=120,
  )
  return image.imread(picture)[..., :3]


@pytest.mark.skipif(not BROWSER, reason="needs a headless browser: chromium")
@pytest.mark.parametrize(
  ("name", "width", "theme"),
  [
    ("summary", 390, "light"),
    ("report", 1100, "light"),
    ("report", 390, "dark"),
  ],
)
def test_pages_in_a_browser(finished_study, tmp_path, name, width, theme):
  page = finished_study[0] / "report.html"
  if name == "summary":
    made = tmp_path / "made"
    gains = [-0.02, -0.01, 0.0, 0.01, 0.02, 0.03, 0.04, 0.08]
    folders = [
      study.made_up(tmp_path / f"set{k}", gain) for k, gain in enumerate(gains)
    ]
    assert _cli.main(["report", *map(str, folders), "--out", str(made)]) == 0
    page = made / "summary.html"
  options = ["--force-dark-mode"] if theme == "dark" else []
  pixels = _shown(page, width, tmp_path / "page.png", *options)
  assert pixels.shape[1] >= width
  background = pixels[0, 0].mean()
  assert background < 0.2 if theme == "dark" else background > 0.9
  # Something is drawn from top to bottom. The right margin is empty, which it
  # is not where a page is too wide for its window.
  ink = (pixels != pixels[0, 0]).any(axis=2)
  assert ink.any(axis=1)[:1500].mean() > 0.3
  assert not ink[:, -4:].any()
