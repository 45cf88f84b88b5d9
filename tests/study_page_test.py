# SPDX-License-Identifier: Apache-2.0
"""The pages: one file each, escaped, and shown by a browser."""

import base64
import dataclasses
import html
import html.parser
import io
import re
import shutil
import subprocess

import jax
import matplotlib
from matplotlib import image
from matplotlib.figure import Figure
import numpy as np
import pytest
from rich.console import Console
from support import predictions as made
from support import study

import squentropy_study
from squentropy_study import (
  _charts,
  _cli,
  _page_tables,
  _ranking,
  _reliability,
  _report_page,
  _store,
  _terminal_table,
)
from squentropy_study._baselines import Baseline

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
  parts = ("74 training", "38 validation", "38 test", "setosa: 50 (33 %)")
  for wanted in (*parts, "0.001", "short: 2 epochs", "data seed 0"):
    assert wanted in text, wanted


def test_page_opens_with_the_answer(page, finished_study):
  _, results = finished_study
  headline = squentropy_study.headline(results)
  ranking = squentropy_study.rank(results)
  text = html_text(page)
  places = [
    text.index(part)
    for part in (
      headline.sentence,
      *headline.further,
      "Which loss? (stopped training)",
      "Standard errors",
      "All metrics and training lengths",
      "Reliability diagrams",
      "Training curves",
      "Definitions",
    )
  ]
  assert places == sorted(places)
  table = text[places[-6] : places[-5]]
  found = [table.index(entry.label) for entry in ranking.entries]
  assert found == sorted(found)
  assert table.index("NLL") < table.index("Accuracy") < table.index("ECE")
  assert "± test rows" in text


def html_text(page):
  """The text of a page, without its tags."""
  page = re.sub(
    r"base64,[A-Za-z0-9+/=]+|<style>.*</style>", "", page, flags=re.S
  )
  return html.unescape(re.sub(r"<[^>]*>", "", page))


def test_baselines_are_ranked_below_the_losses(finished_study, monkeypatch):
  study.skip_figures(monkeypatch)
  out, results = finished_study
  labels = results.run_results["cross_entropy"].test_labels[:1]
  sure = Baseline(np.log(0.97 * np.eye(3)[labels] + 0.01), np.ones(1))
  results = dataclasses.replace(results, baselines={"Boosted trees": sure})
  config = _store.read_config(out)
  text = html_text(_report_page.html(results, config).decode())
  assert "The baseline Boosted trees is much better than every loss: " in text
  table = text[text.index("Which loss?") : text.index("Standard errors")]
  last = max(table.index(results.label(method)) for method in results.methods)
  assert last < table.index("Baselines, on the same rows")
  assert last < table.index("Boosted trees")


def test_page_of_an_imbalanced_table_does_not_lead_with_accuracy(
  finished_study, monkeypatch
):
  study.skip_figures(monkeypatch)
  out, results = finished_study
  # 35 of 38 rows are of the first class.
  labels = np.zeros((2, 38), int)
  labels[:, :3] = [1, 2, 2]
  run_results = {
    loss: result._replace(test_labels=labels)
    for loss, result in results.run_results.items()
  }
  results = dataclasses.replace(results, run_results=run_results)
  config = _store.read_config(out)
  text = html_text(_report_page.html(results, config).decode())
  assert "Balanced accuracy, %" in text
  assert "Average precision" in text
  assert "Accuracy, %" not in text
  assert "92.1 % of the test rows are of the class setosa" in text
  assert "The rarest class has 1 test row, so the errors of its recall" in text


def test_class_tables_of_many_classes_are_cut():
  shares = (1 / 30,) * 30
  predictions = made.predictions(1.0, shares)
  names = [f"class {k}" for k in range(30)]
  table = _page_tables.classes(predictions, names)
  assert table.count('scope="row"') == _page_tables.MOST_LISTED
  assert "Predicted as" in _page_tables.confusions(predictions, names)
  summary = _page_tables.class_summary(dict.fromkeys(names, 8) | {"class 3": 1})
  assert summary == "30 classes, from class 0 (8 rows) to class 3 (1 row)"
  summary = _page_tables.class_summary(dict.fromkeys(names, 8))
  assert summary == "30 classes, 8 rows each"
  few = made.predictions(1.0)
  matrix = _page_tables.confusions(few, list("abc"))
  assert matrix.count('class="heat"') == 9


def test_reliability_diagrams_share_the_axis_of_the_rows(finished_study):
  _, results = finished_study
  panels = list(_reliability._panels(results).values())
  assert len(panels) == 2 * len(results.methods)
  top = _reliability._top(panels)
  highest = max(panel.share.max() for panel in panels)
  assert highest <= top <= highest + 0.1 + 1e-9
  for panel in panels:
    assert panel.share.sum() == pytest.approx(1)
    assert panel.rows.sum() == pytest.approx(38)


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


def test_curves_have_plain_ticks_and_mark_the_stopped_epoch(finished_study):
  _, results = finished_study
  with matplotlib.rc_context(_charts.figure_style()):
    figure = Figure()
    ax = figure.subplots()
    _charts._draw_curve(ax, results, "nll")
    figure.draw_without_rendering()
  labels = [*ax.get_xticklabels(), *ax.get_yticklabels()]
  texts = {label.get_text() for label in labels} - {""}
  assert texts
  assert all(re.fullmatch(r"\d+(\.\d+)?", text) for text in texts)
  dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
  assert dots == [
    np.median(results.epochs(method, "stopped")) for method in results.methods
  ]


def test_wide_axes_are_logarithmic_with_plain_ticks():
  figure = Figure()
  ax = figure.subplots()
  ax.plot([1, 300], [0.001, 0.9])
  _charts._plain_ticks(ax, "x", 1, 300)
  _charts._plain_ticks(ax, "y", 0.001, 0.9)
  figure.draw_without_rendering()
  assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
  texts = [label.get_text() for label in ax.get_yticklabels()]
  assert "0.01" in texts
  assert "100" in [label.get_text() for label in ax.get_xticklabels()]


def test_terminal_table_prints_the_name_of_the_data_unchanged(finished_study):
  _, results = finished_study
  settings = dataclasses.replace(results.settings, data="[bold]my[/red].csv")
  console = Console(width=200, file=io.StringIO())
  results = dataclasses.replace(results, settings=settings)
  console.print(_terminal_table.results_table(results))
  assert "[bold]my[/red].csv, 2 seeds" in console.file.getvalue()


def test_second_probability_map_is_marked_as_not_tested(finished_study, page):
  _, results = finished_study
  ranking = _ranking.rank(results)
  untested = [e.label for e in ranking.entries if e.is_untested]
  (label,) = untested
  assert "rescaled_square" in label
  assert page.count("not tested</span>") == 1
  assert "its own (log_probs) and the softmax" in page
  console = Console(width=200, file=io.StringIO())
  console.print(_terminal_table.results_table(results))
  assert console.file.getvalue().count("not tested") == 1


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
