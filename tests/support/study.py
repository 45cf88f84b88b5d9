# SPDX-License-Identifier: Apache-2.0
"""One small finished study for all tests that need one, and its helpers."""

import itertools
import json
import pathlib
import shutil

import pytest


def settings(**changes):
  """The settings of ``finished_study``, with changes."""
  import squentropy_study

  losses = ("cross_entropy", "rescaled_square:target_value=10", "squentropy")
  fields = {"losses": losses, "seeds": 2, "epochs": (2, 4), "max_epochs": 4}
  return squentropy_study.Settings("iris", **{**fields, **changes})


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory):
  """The folder and the results of a study, which no test may change."""
  import squentropy_study

  out = tmp_path_factory.mktemp("study") / "finished"
  return out, squentropy_study.run(settings(), out)


@pytest.fixture
def study_copy(finished_study, tmp_path):
  """A copy of the folder of ``finished_study``."""
  return shutil.copytree(finished_study[0], tmp_path / "copy")


def skip_figures(monkeypatch):
  """Writes placeholders for the figures."""
  from squentropy_study import _charts, _reliability

  # Figures are most of the time of a report.
  for module, name in ((_reliability, "reliability"), (_charts, "training")):
    monkeypatch.setattr(module, name, lambda *_, **__: b"a picture")


def forbid_training(monkeypatch):
  """Fails a test that trains."""
  from squentropy_study import _train

  def train(*_, **__):
    pytest.fail("trained a loss that was finished or must not be touched")

  monkeypatch.setattr(_train, "train", train)


def contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
  """The files below a folder."""
  return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def made_up(
  path: pathlib.Path, gain: float, probability_map="softmax", **settings
) -> pathlib.Path:
  """A study in which squentropy adds a gain to every metric of the data."""
  import squentropy_study
  from squentropy_study import ResultRow, _result_rows, _results, _store

  rows = []
  for loss, seed in itertools.product(("cross_entropy", "squentropy"), (0, 1)):
    # The seeds differ, but not their mean.
    value = (
      0.5 + (gain if loss == "squentropy" else 0.0) + 0.01 * (2 * seed - 1)
    )
    numbers = [value] * (len(ResultRow._fields) - 7)
    key = (path.name, loss, probability_map, "long", 300, 0, seed)
    rows.append(ResultRow(*key, *numbers))
  results = _results.Results(squentropy_study.Settings("iris"), {}, {})
  results.__dict__["rows"] = rows
  path.mkdir()
  (path / "results.csv").write_bytes(_result_rows.results_csv(results.rows))
  chosen = {"data": path.name, "label": None, "epochs": [300], **settings}
  config = {key: {} for key in _store._KEYS}
  config |= {"squentropy_study": _store._FORMAT, "settings": chosen}
  (path / "config.json").write_text(json.dumps(config))
  return path
