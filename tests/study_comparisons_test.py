# SPDX-License-Identifier: Apache-2.0
"""Several studies together, and the pages as a browser shows them."""

import itertools
import json
import math
import shutil
import subprocess

from matplotlib import image
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import squentropy_study as study
from squentropy_study import _cli, _results, _store, _comparisons
from squentropy_study._results import Row

SETS = 8


def _folder(path, name, gain, probability_map="softmax", **settings):
  """A study in which squentropy gains so much on every metric."""
  rows = []
  for loss, seed in itertools.product(("cross_entropy", "squentropy"), (0, 1)):
    # Seeds differ, which the means take out.
    value = (
      0.5 + (gain if loss == "squentropy" else 0.0) + 0.01 * (2 * seed - 1)
    )
    numbers = [value] * (len(Row._fields) - 7)
    rows.append(Row(name, loss, probability_map, "long", 300, 0, seed, *numbers))
  results = _results.Results(study.Settings("iris"), {}, {})
  results.__dict__["rows"] = rows
  path.mkdir()
  (path / "results.csv").write_bytes(_results.to_csv(results))
  parts = {key: {} for key in _store._PARTS}
  chosen = {"data": name, "label": None, "epochs": [300], **settings}
  config = parts | {"squentropy_study": 1, "settings": chosen}
  (path / "config.json").write_text(json.dumps(config))
  return path


@pytest.fixture
def folders(tmp_path):
  gains = [-0.02, -0.01, 0.0, 0.01, 0.02, 0.03, 0.04, 0.08]
  return [
    _folder(tmp_path / str(k), f"set{k}", gain) for k, gain in enumerate(gains)
  ], np.asarray(gains)


def test_wins_ties_losses_interval_and_test(folders):
  paths, gains = folders
  comparisons = _comparisons.compare(_comparisons.read(paths))
  assert {c.loss for c in comparisons} == {"squentropy"}
  by_metric = {c.metric: c for c in comparisons}
  assert "temperature" not in by_metric
  accuracy, ece = by_metric["accuracy"], by_metric["ece"]
  assert (accuracy.sets, accuracy.wins, accuracy.losses) == (SETS, 5, 2)
  assert (ece.wins, ece.losses) == (2, 5)
  assert accuracy.ties == ece.ties == 1
  assert accuracy.mean == pytest.approx(gains.mean(), abs=1e-8)
  assert accuracy.low < gains.mean() < accuracy.high
  expected = stats.wilcoxon(gains).pvalue
  assert accuracy.p_value == pytest.approx(expected, rel=1e-6)
  # The interval of a bootstrap is near that of Student's t without its tails.
  error = gains.std(ddof=1) / math.sqrt(SETS)
  assert 1.5 * error < accuracy.high - accuracy.low < 5 * error


def test_equal_everywhere_is_neither_better_nor_sure(tmp_path):
  paths = [_folder(tmp_path / str(k), f"set{k}", 0.0) for k in range(3)]
  for comparison in _comparisons.compare(_comparisons.read(paths)):
    assert (comparison.wins, comparison.ties, comparison.losses) == (0, 3, 0)
    assert comparison.p_value == 1
    assert math.isnan(comparison.low)


def test_command_writes_the_page(folders, tmp_path, capsys):
  paths, _ = folders
  out = tmp_path / "summary"
  assert _cli.main(["report", str(paths[0]), "--out", str(out)]) == 2
  assert "--out is for what several studies say" in capsys.readouterr().err
  assert _cli.main(["report", *map(str, paths), "--out", str(out)]) == 0
  assert "squentropy" in capsys.readouterr().out
  names = {path.name for path in out.iterdir()}
  assert names == {"summary.csv", "summary.html", "summary.png"}
  # Again into its own folder, but into no other.
  assert _cli.main(["report", *map(str, paths), "--out", str(out)]) == 0
  for name in ("notes.txt", "summary.csv"):
    other = tmp_path / f"other {name}"
    other.mkdir()
    (other / name).write_text("precious")
    assert _cli.main(["report", *map(str, paths), "--out", str(other)]) == 2
    assert [path.read_text() for path in other.iterdir()] == ["precious"]
  page = (out / "summary.html").read_text()
  assert "better than cross_entropy on 5, equal on 1, worse on 2 of 8" in page
  assert "<script" not in page


def test_folders_that_cannot_be_compared(folders, tmp_path):
  paths, _ = folders
  with pytest.raises(study.StudyError, match="data set0 a second time"):
    _comparisons.read([paths[0], paths[1], paths[0]])
  with pytest.raises(study.StudyError, match="no finished study"):
    _comparisons.read([paths[0], tmp_path / "nowhere"])
  (paths[1] / "results.csv").write_text("a,b\n1,2\n")
  with pytest.raises(study.StudyError, match="no table of results"):
    _comparisons.read(paths)
  alone = _folder(tmp_path / "alone", "alone", 0.1, probability_map="linear")
  with pytest.raises(study.StudyError, match="no study has cross_entropy"):
    _comparisons.compare(_comparisons.read([alone]))


def _edit(path, change):
  """Rewrites the rows of squentropy in a table of results."""
  rows = pd.read_csv(path / "results.csv")
  rows = change(rows, rows["loss"] == "squentropy")
  rows.to_csv(path / "results.csv", index=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_diverged_set_is_a_loss_and_stays_out_of_the_mean(folders, value):
  paths, gains = folders

  def diverge(rows, ours):
    # One run of one loss, and of one metric, on its best set.
    rows.loc[ours & (rows["seed"] == 1), "nll"] = value
    return rows

  _edit(paths[-1], diverge)
  by_metric = {c.metric: c for c in _comparisons.compare(_comparisons.read(paths))}
  accuracy = by_metric["accuracy"]
  assert (accuracy.wins, accuracy.ties, accuracy.losses) == (4, 1, 3)
  assert (accuracy.diverged, accuracy.other_diverged) == (1, 0)
  assert (accuracy.sets, accuracy.finite) == (SETS, SETS - 1)
  assert accuracy.mean == pytest.approx(gains[:-1].mean(), abs=1e-8)
  assert accuracy.median == pytest.approx(np.median(gains[:-1]), abs=1e-8)
  assert by_metric["nll"].losses == 5


def test_divergence_of_the_baseline_is_a_win(folders):
  paths, _ = folders

  def diverge(rows, ours):
    rows.loc[~ours, list(Row._fields[7:])] = np.nan
    return rows

  _edit(paths[0], diverge)
  for comparison in _comparisons.compare(_comparisons.read(paths)):
    assert (comparison.diverged, comparison.other_diverged) == (0, 1)
    assert comparison.wins + comparison.losses + comparison.ties == SETS
    assert comparison.wins == (6 if comparison.metric == "accuracy" else 2)


def test_rounding_is_no_difference(tmp_path):
  paths = [_folder(tmp_path / str(k), f"set{k}", 3e-7) for k in range(4)]
  for comparison in _comparisons.compare(_comparisons.read(paths)):
    assert comparison.ties == 4
    assert comparison.p_value == 1


def test_order_of_the_data_sets_plays_no_part():
  ours, theirs = np.random.default_rng(0).normal(size=(2, 9))
  method = _comparisons.Method("squentropy", "softmax", "long")
  there = _comparisons.comparison(method, "ece", ours, theirs)
  back = _comparisons.comparison(method, "ece", ours[::-1], theirs[::-1])
  np.testing.assert_allclose(
    (back.low, back.high), (there.low, there.high), rtol=1e-12
  )


def test_runs_without_a_partner_are_refused(folders):
  paths, _ = folders

  def drop(rows, ours):
    return rows[~ours | (rows["seed"] == 0)]

  _edit(paths[0], drop)
  with pytest.raises(study.StudyError, match=r"set0 .* cannot be paired"):
    _comparisons.compare(_comparisons.read(paths))

  def drop_baseline(rows, ours):
    return rows[ours]

  _edit(paths[0], drop_baseline)
  with pytest.raises(study.StudyError, match="set0 has squentropy but not"):
    _comparisons.compare(_comparisons.read(paths))


def test_a_loss_alone_is_not_compared(folders):
  paths, _ = folders
  _edit(paths[0], lambda rows, ours: rows[~ours])
  with pytest.raises(study.StudyError, match="only cross_entropy was run"):
    _comparisons.compare(_comparisons.read(paths[:1]))


def test_studies_that_do_not_belong_together(folders, tmp_path):
  paths, _ = folders
  other = _folder(tmp_path / "other", "other", 0.1, epochs=[40])
  with pytest.raises(study.StudyError, match=r"in epochs \(\(40,\), there"):
    _comparisons.read([paths[0], other])
  config = json.loads((paths[1] / "config.json").read_text())
  for path in paths[:2]:
    config["settings"]["data"] = path.name
    text = json.dumps(config | {"data_sha256": "12ab"})
    (path / "config.json").write_text(text)
  with pytest.raises(study.StudyError, match="the data 1 a second time"):
    _comparisons.read(paths[:2])
  for text in ("", '"'):
    (paths[3] / "results.csv").write_text(text)
    with pytest.raises(study.StudyError, match="no table of results"):
      _comparisons.read(paths[3:5])


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  made = tmp_path_factory.mktemp("report") / "made"
  study.run(study.Settings("iris", seeds=1, epochs=(1,)), made)
  return made / "report.html"


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
def test_pages_in_a_browser(folders, report, tmp_path, name, width, theme):
  page = report
  if name == "summary":
    made = tmp_path / "made"
    _cli.main(["report", *map(str, folders[0]), "--out", str(made)])
    page = made / "summary.html"
  options = ["--force-dark-mode"] if theme == "dark" else []
  pixels = _shown(page, width, tmp_path / "page.png", *options)
  assert pixels.shape[1] >= width
  ground = pixels[0, 0].mean()
  assert ground < 0.2 if theme == "dark" else ground > 0.9
  # Something is drawn from top to bottom, and the margins are left free: a
  # page too wide for its window would run into the right edge.
  ink = (pixels != pixels[0, 0]).any(axis=2)
  assert ink.any(axis=1)[:1500].mean() > 0.3
  assert not ink[:, -4:].any()
