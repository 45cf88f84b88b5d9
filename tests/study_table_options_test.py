# SPDX-License-Identifier: Apache-2.0
"""Options on columns and labels: command line, settings, a study's folder."""

import json
import shlex

import numpy as np
import pytest
from support import tables

from squentropy_study import Settings, StudyError, _commands, _run, _store

CHOSEN = {
  "drop": ("a b", "c"),
  "categorical": ("d",),
  "numeric": ("-e",),
  "missing": ("-999", "-", "n/a"),
  "merge_rare": 4,
  "merge_case": True,
  "dedupe": True,
}


def _parsed(words, monkeypatch):
  """The settings that a command line gives."""
  found = []

  def run(settings, out, **_):
    found.append(settings)
    raise StudyError("stop")

  monkeypatch.setattr(_run, "run", run)
  assert _commands.main([*words, "--quiet"]) == 2
  return found[0]


def test_command_line_gives_the_settings_and_back(monkeypatch, capsys):
  settings = Settings("mine.csv", "y", **CHOSEN)
  words = shlex.split(settings.command("out"))[1:]
  assert "--missing=-999" in words
  assert _parsed(words, monkeypatch) == settings
  plain = ["run", "mine.csv", "--missing", "-999", "--drop", "c"]
  settings = _parsed(plain, monkeypatch)
  assert settings.table_options == tables.options(
    missing=("-999",), drop=("c",)
  )
  settings = _parsed(["run", "mine.csv", "--min-class", "9"], monkeypatch)
  assert settings.min_class == 9
  capsys.readouterr()


def test_settings_are_read_back_from_json(tmp_path):
  import dataclasses

  settings = Settings("mine.csv", "y", **CHOSEN)
  values = json.loads(json.dumps(dataclasses.asdict(settings)))
  config = {
    "squentropy_study": _store._FORMAT,
    "settings": values,
    "classes": {"a": 1, "b": 2},
    "own_losses": {},
  }
  assert _store.read_settings(tmp_path, config) == settings


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"min_class": 0}, "--min-class must be at least 1"),
    ({"drop": ("x",), "categorical": ("x",)}, "named by --drop and --categ"),
  ],
)
def test_options_are_checked_with_the_settings(options, message):
  with pytest.raises(StudyError, match=message):
    Settings("mine.csv", "y", **options)


def test_options_reach_the_table(tmp_path, monkeypatch):
  path = tmp_path / "mine.csv"
  noise = np.round(np.random.default_rng(0).normal(size=80), 3)
  rows = [f"{x},{k},{'Aab'[k % 3]}" for k, x in enumerate(noise)]
  path.write_text("\n".join(["x,n,y", *rows, rows[0]]) + "\n")
  seen = []

  def prepare(*arguments, **_):
    seen.append(arguments[5])
    raise StudyError("stop")

  monkeypatch.setattr(_store, "prepare", prepare)
  for options, wanted in (
    ({}, "differ only in upper and lower case"),
    ({"merge_case": True}, "labels that differ only in case are merged"),
    ({"drop": ("n",)}, "columns are left out as asked: n"),
    ({"dedupe": True}, "1 row with the features and the label of an earlier"),
  ):
    settings = Settings(str(path), "y", losses=("squentropy",), **options)
    with pytest.raises(StudyError, match="stop"):
      _run.run(settings, tmp_path / "out")
    assert wanted in "\n".join(seen[-1])
