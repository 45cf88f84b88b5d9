# SPDX-License-Identifier: Apache-2.0
"""A whole study: files, determinism, what is kept, and the page."""

import base64
import contextlib
import csv
import dataclasses
import html.parser
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

import squentropy_jax
import squentropy_study as study
from squentropy_study import (
  _data,
  _charts,
  _report_page,
  _store,
  _train,
  _fingerprint,
)

SETTINGS = study.Settings(
  "iris",
  losses=("cross_entropy", "rescaled_square:target_value=10", "squentropy"),
  seeds=2,
  epochs=(2, 4),
)
FILES = {
  "cells",
  "config.json",
  "reliability.png",
  "report.html",
  "results.csv",
  "training.png",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  out = tmp_path_factory.mktemp("study") / "made"
  return out, study.run(SETTINGS, out)


@pytest.fixture
def copy(made, tmp_path):
  return shutil.copytree(made[0], tmp_path / "copy")


def _contents(folder):
  return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _skip_figures(monkeypatch):
  for name in ("reliability", "training"):
    monkeypatch.setattr(_charts, name, lambda *_, **__: b"a picture")


def _forbid_training(monkeypatch):
  def train(*_, **__):
    pytest.fail("trained what was finished")

  monkeypatch.setattr(_train, "train", train)


def test_files(made):
  out, _ = made
  assert {path.name for path in out.iterdir()} == FILES
  for name in ("reliability.png", "training.png"):
    assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_csv_has_a_row_per_loss_readout_regime_and_seed(made):
  out, results = made
  with (out / "results.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0]) == [
    "data",
    "loss",
    "probability_map",
    "training_length",
    "epochs",
    "fold",
    "seed",
    "accuracy",
    "nll",
    "brier",
    "ece",
    "ace",
    "aurc",
    "train_accuracy",
    "temperature",
    "nll_scaled",
    "brier_scaled",
    "ece_scaled",
    "ace_scaled",
    "aurc_scaled",
  ]
  keys = {
    (row["loss"], row["probability_map"], row["training_length"], row["epochs"], row["seed"])
    for row in rows
  }
  methods = [
    ("cross_entropy", "softmax"),
    ("rescaled_square:target_value=10", "softmax"),
    ("rescaled_square:target_value=10", "linear"),
    ("squentropy", "softmax"),
  ]
  assert keys == {
    (*method, *training_length, seed)
    for method in methods
    for training_length in (("short", "2"), ("long", "4"))
    for seed in "01"
  }
  assert len(rows) == len(keys) == len(results.rows)
  assert {row["data"] for row in rows} == {"iris"}
  for row, numbers in zip(rows, results.rows, strict=True):
    assert float(row["ece"]) == pytest.approx(numbers.ece, rel=1e-8)
    assert 0 <= float(row["accuracy"]) <= 1
    assert float(row["temperature"]) > 0
    # Temperature 1 is among those tried; on other rows it may lose a little.
    assert float(row["nll_scaled"]) < float(row["nll"]) + 0.3


def test_config_says_what_was_run(made):
  out, _ = made
  config = json.loads((out / "config.json").read_text())
  assert (
    study.Settings(
      **{
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config["settings"].items()
      }
    )
    == SETTINGS
  )
  assert config["command"] == SETTINGS.command(str(out))
  assert config["versions"]["jax"] == jax.__version__
  assert config["data_sha256"] == _data.digest(_data.load("iris"))
  assert config["rows"] == {"train": 74, "calibration": 38, "test": 38}


def test_same_command_gives_the_same_files(made, tmp_path):
  out, _ = made
  jax.clear_caches()
  study.run(SETTINGS, tmp_path)
  ours = {path.name for path in tmp_path.rglob("*") if path.is_file()}
  for path in out.rglob("*"):
    if path.is_file() and path.name not in ("config.json", "report.html"):
      ours.remove(path.name)
      other = tmp_path / path.relative_to(out)
      assert other.read_bytes() == path.read_bytes(), path.name
  assert ours == {"config.json", "report.html"}


def test_finished_losses_are_kept_and_the_rest_is_trained(
  copy, made, monkeypatch
):
  _skip_figures(monkeypatch)
  (copy / "cells" / "squentropy.npz").unlink()
  with pytest.raises(study.StudyError, match="unfinished"):
    study.report(copy)
  (copy / "report.html").unlink()
  trained = []
  train = _train.train

  def spy(settings, loss, *rest, **hooks):
    trained.append(loss.spec)
    return train(settings, loss, *rest, **hooks)

  monkeypatch.setattr(_train, "train", spy)
  seen = []
  study.run(SETTINGS, copy, on_progress=seen.append)
  assert trained == ["squentropy"]
  kept = [item.loss for item in seen if item.value is None]
  assert kept == list(SETTINGS.losses[:2])
  expected = (made[0] / "results.csv").read_bytes()
  assert (copy / "results.csv").read_bytes() == expected
  assert (copy / "report.html").exists()


def test_study_with_other_settings_is_not_overwritten(copy, monkeypatch):
  _forbid_training(monkeypatch)
  before = _contents(copy)
  other = dataclasses.replace(SETTINGS, seeds=3)
  with pytest.raises(study.StudyError, match=r"another study \(seeds 2, now 3"):
    study.run(other, copy)
  assert _contents(copy) == before


def test_study_of_other_versions_is_not_mixed_with_this_one(copy, monkeypatch):
  _forbid_training(monkeypatch)
  config = json.loads((copy / "config.json").read_text())
  config["versions"]["jax"] = "0.0.1"
  (copy / "config.json").write_text(json.dumps(config))
  with pytest.raises(study.StudyError, match=r"jax 0\.0\.1, now"):
    study.run(SETTINGS, copy)


def test_other_data_of_the_same_name_are_not_mixed_with_these(
  copy, monkeypatch
):
  _forbid_training(monkeypatch)
  load = _data.load

  def changed(*names):
    data = load(*names)
    return data._replace(features=data.features + 1)

  monkeypatch.setattr(_data, "load", changed)
  with pytest.raises(study.StudyError, match=r"data have changed.*--out.*--fr"):
    study.run(SETTINGS, copy)


def test_study_grows_and_shrinks_with_the_losses(copy, made, monkeypatch):
  _skip_figures(monkeypatch)
  for name in (".report.html.123.part", "cells/.x.npz.9.part"):
    (copy / name).write_text("half")
  (copy / "mine.part").write_text("mine")
  fewer = dataclasses.replace(SETTINGS, losses=SETTINGS.losses[::-2])
  with monkeypatch.context() as patch:
    _forbid_training(patch)
    results = study.run(fewer, copy)
  assert {row.loss for row in results.rows} == set(fewer.losses)
  assert _store.read_settings(copy, _store.read_config(copy)) == fewer
  assert len([*(copy / "cells").iterdir()]) == 3
  assert [path.name for path in copy.rglob("*.part")] == ["mine.part"]
  (copy / "cells" / "squentropy.npz").unlink()
  study.run(SETTINGS, copy)
  expected = (made[0] / "results.csv").read_bytes()
  assert (copy / "results.csv").read_bytes() == expected


def test_fresh_replaces_a_study_and_nothing_else(copy, monkeypatch):
  (copy / "notes.txt").write_text("mine")
  cells = []
  monkeypatch.setattr(_train, "train", lambda *_, **__: cells.append(1))
  monkeypatch.setattr(_store, "write_run_result", lambda *_: None)
  with pytest.raises(study.StudyError, match="unfinished"):
    study.run(dataclasses.replace(SETTINGS, seeds=3), copy, fresh=True)
  assert len(cells) == 3
  assert (copy / "notes.txt").read_text() == "mine"
  assert not (copy / "results.csv").exists()


@pytest.mark.parametrize("name", ["thesis.tex", "config.json"])
def test_folder_that_holds_something_else_is_left_alone(
  tmp_path, monkeypatch, name
):
  _forbid_training(monkeypatch)
  (tmp_path / name).write_text("{}")
  for fresh in (False, True):
    with pytest.raises(study.StudyError, match=f"something else .{name}"):
      study.run(SETTINGS, tmp_path, fresh=fresh)
  assert _contents(tmp_path) == {tmp_path / name: b"{}"}


def test_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "results.csv"
  path.write_bytes(b"old")

  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("os.fsync", full)
  with pytest.raises(study.StudyError, match="No space left"):
    _store.write(path, b"new")
  assert _contents(tmp_path) == {path: b"old"}


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
def page(made):
  return (made[0] / "report.html").read_text()


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


def test_page_says_how_it_was_made(page, made):
  text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
  assert SETTINGS.command(str(made[0])) in text
  assert f"jax {jax.__version__}" in text
  for wanted in ("74 to train on", "0.001", "short: 2 epochs", "data seed 0"):
    assert wanted in text, wanted


def test_page_escapes_what_it_is_given(made, monkeypatch):
  _skip_figures(monkeypatch)
  config = _store.read_config(made[0])
  config["command"] = "<script>alert(1)</script> & $table"
  # A note names columns of the user's table.
  config["notes"] = ["one column per category of: <script>alert(2)</script>"]
  settings = dataclasses.replace(SETTINGS, data="<script>3")
  results = dataclasses.replace(made[1], settings=settings)
  page = _report_page.html(results, config).decode()
  assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $table" in page
  assert "&lt;script&gt;alert(2)&lt;/script&gt;" in page
  assert "&lt;script&gt;3" in page
  assert "<script" not in page


def test_damaged_files_are_named(copy):
  cell = next((copy / "cells").glob("*.npz"))
  whole = cell.read_bytes()
  for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"not a zip"):
    cell.write_bytes(damaged)
    with pytest.raises(study.StudyError, match=f"{cell.name} is damaged"):
      study.report(copy)
  # One byte changed on the disk.
  order = np.random.default_rng(0).permutation(len(whole))[:100]
  for place in [*range(60), *order]:
    flipped = bytearray(whole)
    flipped[place] ^= 0xFF
    cell.write_bytes(flipped)
    # Some bytes say nothing that is read, such as times.
    with contextlib.suppress(study.StudyError):
      _store.read_run_result(copy, cell.stem)
  cell.write_bytes(whole)
  config = json.loads((copy / "config.json").read_text())
  for settings in ([], {"data": "iris", "colour": 1}, {"seeds": 2}):
    text = json.dumps(config | {"settings": settings})
    (copy / "config.json").write_text(text)
    with pytest.raises(study.StudyError, match=r"config\.json is damaged"):
      study.report(copy)
  (copy / "config.json").write_text(json.dumps(config | {"settings": []}))
  with pytest.raises(study.StudyError, match=r"config\.json is damaged"):
    study.run(SETTINGS, copy)


def test_other_code_does_not_go_on_with_a_study(copy, monkeypatch):
  _forbid_training(monkeypatch)
  monkeypatch.setattr(_fingerprint, "_source", lambda: "0123456789ab")
  with pytest.raises(study.StudyError, match=r"source .*--fresh"):
    study.run(SETTINGS, copy)


def test_code_that_decides_no_number_may_change(tmp_path, monkeypatch):
  package = tmp_path / "squentropy_jax"
  root = pathlib.Path(squentropy_jax.__file__).parent
  shutil.copytree(root, package)
  monkeypatch.setattr(squentropy_jax, "__file__", str(package / "__init__.py"))
  before = _fingerprint._source()
  for name, matters in [
    ("study/_report_page.py", False),
    ("study/_cli.py", False),
    ("study/_train.py", True),
    ("losses/_square.py", True),
    ("calibration/_bins.py", True),
    ("_rows.py", True),
  ]:
    with (package / name).open("a") as file:
      file.write("# Other.\n")
    assert (_fingerprint._source() != before) == matters, name
    before = _fingerprint._source()


def test_divergence_is_reported_and_nothing_concluded(tmp_path):
  settings = dataclasses.replace(SETTINGS, learning_rate=1e30)
  results = study.run(settings, tmp_path)
  ((title, _),) = study.verdict(results)
  assert title == "Diverged"
  assert {path.name for path in tmp_path.iterdir()} == FILES
