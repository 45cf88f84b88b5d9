# SPDX-License-Identifier: Apache-2.0
"""Losses compared over several studies."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support import study

from squentropy_study import (
  ResultRow,
  StudyError,
  _cli,
  _comparisons,
  _result_rows,
  _several_studies,
  _summary_text,
)

SETS = 8


@pytest.fixture
def folders(tmp_path):
  gains = [-0.02, -0.01, 0.0, 0.01, 0.02, 0.03, 0.04, 0.08]
  return [
    study.made_up(tmp_path / f"set{k}", gain) for k, gain in enumerate(gains)
  ], np.asarray(gains)


def test_counts_interval_and_test(folders):
  paths, gains = folders
  comparisons = _comparisons.compare_studies(
    _several_studies.read_results(paths)
  )
  assert {c.loss for c in comparisons} == {"squentropy"}
  by_metric = {c.metric: c for c in comparisons}
  assert not {"temperature", "post_hoc_improvement"} & {*by_metric}
  accuracy, ece = by_metric["accuracy"], by_metric["ece"]
  assert (accuracy.sets, accuracy.better, accuracy.worse) == (SETS, 5, 2)
  assert (ece.better, ece.worse) == (2, 5)
  assert accuracy.equal == ece.equal == 1
  assert accuracy.mean == pytest.approx(gains.mean(), abs=1e-8)
  assert accuracy.low < gains.mean() < accuracy.high
  expected = stats.wilcoxon(gains).pvalue
  assert accuracy.p_value == pytest.approx(expected, rel=1e-6)
  # The interval of a bootstrap is near that of Student's t without its tails.
  error = gains.std(ddof=1) / math.sqrt(SETS)
  assert 1.5 * error < accuracy.high - accuracy.low < 5 * error


def test_equal_losses_are_not_significantly_different(tmp_path):
  paths = [study.made_up(tmp_path / f"set{k}", 0.0) for k in range(3)]
  for comparison in _comparisons.compare_studies(
    _several_studies.read_results(paths)
  ):
    assert (comparison.better, comparison.equal, comparison.worse) == (0, 3, 0)
    assert math.isnan(comparison.p_value)
    assert math.isnan(comparison.low)


def test_few_data_sets_have_neither_interval_nor_test():
  method = _comparisons.MethodAtLength("squentropy", "softmax", "stopped")
  values = 0.01 * np.arange(1, 7)
  for sets, tested in ((5, False), (6, True)):
    few = values[:sets]
    c = _comparisons.compare_values(method, "nll", few, 0 * few)
    assert c.worse == sets
    assert math.isnan(c.low) != tested
    assert math.isnan(c.p_value) != tested
  # The signed-rank test leaves out equal pairs: one is left of six.
  one = np.where(values > 0.05, values, 0)
  c = _comparisons.compare_values(method, "nll", one, 0 * one)
  assert (c.equal, c.worse) == (5, 1)
  assert math.isnan(c.p_value)


def test_command_writes_the_page(folders, tmp_path, capsys):
  paths, _ = folders
  out = tmp_path / "summary"
  assert _cli.main(["report", str(paths[0]), "--out", str(out)]) == 2
  assert (
    "--out is for the summary of several studies" in capsys.readouterr().err
  )
  assert _cli.main(["report", *map(str, paths), "--out", str(out)]) == 0
  assert "squentropy" in capsys.readouterr().out
  names = {path.name for path in out.iterdir()}
  tables = {"summary.csv", "ranks.csv"}
  assert names == tables | {"summary.html", "summary.png", "ranks.png"}
  # A summary is replaced, but no other file.
  assert _cli.main(["report", *map(str, paths), "--out", str(out)]) == 0
  for name in ("notes.txt", "summary.csv"):
    other = tmp_path / f"other {name}"
    other.mkdir()
    (other / name).write_text("precious")
    assert _cli.main(["report", *map(str, paths), "--out", str(other)]) == 2
    assert [path.read_text() for path in other.iterdir()] == ["precious"]
  page = (out / "summary.html").read_text()
  # Larger gains are a larger NLL as well.
  assert "better on 5, equal on 1 and worse on 2 of 8 data sets" in page
  assert "Over 8 data sets with long training, no loss is significantly" in page
  assert "<script" not in page


def test_folders_that_cannot_be_compared_raise(folders, tmp_path):
  paths, _ = folders
  with pytest.raises(
    StudyError,
    match="set0, which another folder holds",
  ):
    _several_studies.read_results([paths[0], paths[1], paths[0]])
  with pytest.raises(StudyError, match="no finished study"):
    _several_studies.read_results([paths[0], tmp_path / "nowhere"])
  (paths[1] / "results.csv").write_text("a,b\n1,2\n")
  with pytest.raises(StudyError, match="is not a table of results"):
    _several_studies.read_results(paths)
  alone = study.made_up(tmp_path / "alone", 0.1, probability_map="log_probs")
  with pytest.raises(StudyError, match="no study has cross_entropy"):
    _comparisons.compare_studies(_several_studies.read_results([alone]))


def _edit(path, change):
  """Rewrites the rows of squentropy in a table of results."""
  rows = pd.read_csv(path / "results.csv")
  rows = change(rows, rows["loss"] == "squentropy")
  rows.to_csv(path / "results.csv", index=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_diverged_set_is_worse_and_left_out_of_the_mean(folders, value):
  paths, gains = folders

  def diverge(rows, ours):
    # One run of one loss, and of one metric, on its best set.
    rows.loc[ours & (rows["seed"] == 1), "nll"] = value
    return rows

  _edit(paths[-1], diverge)
  by_metric = {
    c.metric: c
    for c in _comparisons.compare_studies(_several_studies.read_results(paths))
  }
  accuracy = by_metric["accuracy"]
  assert (accuracy.better, accuracy.equal, accuracy.worse) == (4, 1, 3)
  assert (accuracy.diverged, accuracy.other_diverged) == (1, 0)
  assert (accuracy.sets, accuracy.finite) == (SETS, SETS - 1)
  assert accuracy.mean == pytest.approx(gains[:-1].mean(), abs=1e-8)
  assert accuracy.median == pytest.approx(np.median(gains[:-1]), abs=1e-8)
  assert by_metric["nll"].worse == 5


def test_divergence_of_the_baseline_is_better(folders):
  paths, _ = folders

  def diverge(rows, ours):
    rows.loc[~ours, list(ResultRow._fields[7:])] = np.nan
    return rows

  gains = {measure.name: measure.gain for measure in _result_rows.MEASURES}
  _edit(paths[0], diverge)
  for comparison in _comparisons.compare_studies(
    _several_studies.read_results(paths)
  ):
    assert (comparison.diverged, comparison.other_diverged) == (0, 1)
    assert comparison.better + comparison.worse + comparison.equal == SETS
    assert comparison.better == (6 if gains[comparison.metric] > 0 else 2)


def test_metric_without_a_value_is_no_divergence(folders, monkeypatch):
  paths, _ = folders

  def drop(rows, ours):
    # A class has no test row, whatever the loss.
    return rows.assign(aurc=np.nan)

  monkeypatch.setattr(
    _comparisons, "_FINITE", ("accuracy", "nll"), raising=True
  )
  _edit(paths[0], drop)
  by_metric = {
    c.metric: c
    for c in _comparisons.compare_studies(_several_studies.read_results(paths))
  }
  assert by_metric["aurc"].sets == SETS - 1
  assert by_metric["aurc"].diverged == 0
  assert by_metric["nll"].sets == by_metric["nll"].finite == SETS
  for path in paths:
    _edit(path, drop)
  compared = _comparisons.compare_studies(_several_studies.read_results(paths))
  assert "aurc" not in {c.metric for c in compared}


def test_rounding_is_no_difference(tmp_path):
  paths = [study.made_up(tmp_path / f"set{k}", 3e-7) for k in range(4)]
  for comparison in _comparisons.compare_studies(
    _several_studies.read_results(paths)
  ):
    assert comparison.equal == 4
    assert comparison.mean == 0


def test_order_of_the_data_sets_does_not_matter():
  ours, theirs = np.random.default_rng(0).normal(size=(2, 9))
  method = _comparisons.MethodAtLength("squentropy", "softmax", "long")
  there = _comparisons.compare_values(method, "ece", ours, theirs)
  back = _comparisons.compare_values(method, "ece", ours[::-1], theirs[::-1])
  np.testing.assert_allclose(
    (back.low, back.high), (there.low, there.high), rtol=1e-12
  )


def test_unpaired_runs_raise(folders):
  paths, _ = folders

  def drop(rows, ours):
    return rows[~ours | (rows["seed"] == 0)]

  _edit(paths[0], drop)
  with pytest.raises(StudyError, match=r"set0 .* cannot be paired"):
    _comparisons.compare_studies(_several_studies.read_results(paths))

  def drop_baseline(rows, ours):
    return rows[ours]

  _edit(paths[0], drop_baseline)
  with pytest.raises(StudyError, match="set0 has squentropy but not"):
    _comparisons.compare_studies(_several_studies.read_results(paths))


def test_single_loss_raises(folders):
  paths, _ = folders
  _edit(paths[0], lambda rows, ours: rows[~ours])
  with pytest.raises(StudyError, match="no loss except cross_entropy"):
    _comparisons.compare_studies(_several_studies.read_results(paths[:1]))


def test_studies_with_other_settings_raise(folders, tmp_path):
  paths, _ = folders
  other = study.made_up(tmp_path / "other", 0.1, epochs=[40])
  with pytest.raises(StudyError, match=r"but epochs is \(40,\) and \(300,\)"):
    _several_studies.read_results([paths[0], other])
  config = json.loads((paths[1] / "config.json").read_text())
  for path in paths[:2]:
    config["settings"]["data"] = path.name
    text = json.dumps(config | {"data_sha256": "12ab"})
    (path / "config.json").write_text(text)
  with pytest.raises(StudyError, match="which another folder holds too"):
    _several_studies.read_results(paths[:2])
  # Another file of the same name, which needs another encoding.
  config["settings"] |= {"data": paths[0].name, "encoding": "cp1252"}
  (paths[1] / "config.json").write_text(
    json.dumps(config | {"data_sha256": "34cd"})
  )
  names = list(dict.fromkeys(_several_studies.read_results(paths[:2])["data"]))
  assert names == ["set0", f"set0 in {paths[1]}"]
  for text in ("", '"'):
    (paths[3] / "results.csv").write_text(text)
    with pytest.raises(StudyError, match="is not a table of results"):
      _several_studies.read_results(paths[3:5])


def test_reference_that_all_studies_name(folders, tmp_path):
  paths, _ = folders
  named = [
    study.made_up(tmp_path / f"named{k}", 0.1, reference="squentropy")
    for k in range(2)
  ]
  assert _several_studies.common_reference(named) == "squentropy"
  assert _several_studies.common_reference([named[0], paths[0]]) is None
  summary = _summary_text.summarize(
    _several_studies.read_results(named), "squentropy"
  )
  assert summary.reference == ("squentropy", "softmax")
  assert {c.loss for c in summary.comparisons} == {"cross_entropy"}
