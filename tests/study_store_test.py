# SPDX-License-Identifier: Apache-2.0
"""The folder of a study: what is protected, and what is damaged."""

import contextlib
import json

import numpy as np
import pytest
from support import study

import squentropy_study
from squentropy_study import _data, _run, _run_files, _store, _train

SETTINGS = study.settings()


def test_study_with_other_settings_is_not_overwritten(study_copy, monkeypatch):
  study.forbid_training(monkeypatch)
  before = study.contents(study_copy)
  message = r"another study \(max_epochs was 4, now 9\)"
  with pytest.raises(squentropy_study.StudyError, match=message):
    squentropy_study.run(study.settings(max_epochs=9), study_copy)
  with pytest.raises(
    squentropy_study.StudyError, match="is not among the losses"
  ):
    squentropy_study.run(study.settings(reference="focal"), study_copy)
  assert study.contents(study_copy) == before


def test_study_of_an_earlier_format_is_replaced_with_fresh_alone(
  study_copy, monkeypatch
):
  path = study_copy / "config.json"
  config = json.loads(path.read_text()) | {"squentropy_study": 1}
  path.write_text(json.dumps(config))
  message = "has format 1, .* needs format 3; run the study again with --fresh"
  with pytest.raises(squentropy_study.StudyError, match=message):
    squentropy_study.run(SETTINGS, study_copy)
  with pytest.raises(squentropy_study.StudyError, match=message):
    squentropy_study.report(study_copy)
  monkeypatch.setattr(_run, "report", lambda _: None)
  monkeypatch.setattr(_train, "train", lambda *_, **__: None)
  monkeypatch.setattr(_run_files, "write_trained", lambda *_: None)
  without = study.settings(baselines=False)
  squentropy_study.run(without, study_copy, fresh=True)
  runs = study_copy / "runs"
  assert [path.name for path in runs.iterdir()] == ["rows.npz"]


def test_study_of_other_data_with_the_same_name_is_not_overwritten(
  study_copy, monkeypatch
):
  study.forbid_training(monkeypatch)
  load = _data.load_data

  def changed(*names, **options):
    data = load(*names, **options)
    return data._replace(features=data.features + 1)

  monkeypatch.setattr(_data, "load_data", changed)
  message = "data have changed.*--out.*--fresh"
  with pytest.raises(squentropy_study.StudyError, match=message):
    squentropy_study.run(SETTINGS, study_copy)


def test_fresh_replaces_a_study_and_nothing_else(study_copy, monkeypatch):
  (study_copy / "notes.txt").write_text("mine")
  trained = []
  monkeypatch.setattr(_train, "train", lambda *_, **__: trained.append(1))
  monkeypatch.setattr(_run_files, "write_trained", lambda *_: None)
  with pytest.raises(squentropy_study.StudyError, match="unfinished"):
    squentropy_study.run(study.settings(seeds=3), study_copy, fresh=True)
  assert len(trained) == 3
  assert (study_copy / "notes.txt").read_text() == "mine"
  assert not (study_copy / "results.csv").exists()


@pytest.mark.parametrize("name", ["thesis.tex", "config.json"])
def test_folder_with_other_files_is_left_unchanged(tmp_path, monkeypatch, name):
  study.forbid_training(monkeypatch)
  (tmp_path / name).write_text("{}")
  message = f"files of another kind .{name}"
  for fresh in (False, True):
    with pytest.raises(squentropy_study.StudyError, match=message):
      squentropy_study.run(SETTINGS, tmp_path, fresh=fresh)
  assert study.contents(tmp_path) == {tmp_path / name: b"{}"}


def test_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "results.csv"
  path.write_bytes(b"old")

  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("os.fsync", full)
  with pytest.raises(squentropy_study.StudyError, match="No space left"):
    _store.write(path, b"new")
  assert study.contents(tmp_path) == {path: b"old"}


@pytest.mark.parametrize(
  ("key", "value"),
  [("settings", None), ("classes", None), ("own_losses", "none")],
)
def test_damaged_configuration_is_named(study_copy, key, value):
  path = study_copy / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
  with pytest.raises(squentropy_study.StudyError, match="is damaged"):
    squentropy_study.load(study_copy)


def test_damaged_run_result_is_named(study_copy):
  path = study_copy / "runs" / "squentropy.npz"
  intact = path.read_bytes()
  half = intact[: len(intact) // 2]
  for damaged in (b"", intact[:100], half, b"not a zip"):
    path.write_bytes(damaged)
    message = f"{path.name} is damaged"
    with pytest.raises(squentropy_study.StudyError, match=message):
      squentropy_study.report(study_copy)
  # One byte changed on the disk.
  order = np.random.default_rng(0).permutation(len(intact))[:100]
  for place in [*range(60), *order]:
    flipped = bytearray(intact)
    flipped[place] ^= 0xFF
    path.write_bytes(flipped)
    # Some bytes are not read, such as times.
    with contextlib.suppress(squentropy_study.StudyError):
      _run_files.read_run_result(study_copy, path.stem)


@pytest.mark.parametrize(
  "settings", [[], {"data": "iris", "colour": 1}, {"seeds": 2}]
)
def test_damaged_settings_are_named(study_copy, settings):
  path = study_copy / "config.json"
  config = json.loads(path.read_text()) | {"settings": settings}
  path.write_text(json.dumps(config))
  message = r"config\.json is damaged"
  with pytest.raises(squentropy_study.StudyError, match=message):
    squentropy_study.report(study_copy)


@pytest.mark.parametrize("key", ["settings", "versions"])
def test_study_with_a_damaged_config_is_not_resumed(study_copy, key):
  path = study_copy / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {key: []}))
  message = r"config\.json is damaged"
  with pytest.raises(squentropy_study.StudyError, match=message):
    squentropy_study.run(SETTINGS, study_copy)
