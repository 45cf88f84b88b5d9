# SPDX-License-Identifier: Apache-2.0
"""A whole study: its files, its table, and which losses are trained."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from support import study

import squentropy_study
from squentropy_study import _baselines, _data, _run_files, _store, _train

SETTINGS = study.settings()
FILES = {
  "config.json",
  "preprocessing.json",
  "predictions.parquet",
  "reliability.png",
  "report.html",
  "results.csv",
  "runs",
  "training.png",
}


def test_files(finished_study):
  out, _ = finished_study
  assert {path.name for path in out.iterdir()} == FILES
  for name in ("reliability.png", "training.png"):
    assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_csv_has_a_row_per_method_training_length_and_seed(finished_study):
  out, results = finished_study
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
    "post_hoc_improvement",
    "balanced_accuracy",
    "macro_f1",
    "auroc",
    "average_precision",
  ]
  keys = {
    (
      row["loss"],
      row["probability_map"],
      row["training_length"],
      row["epochs"],
      row["seed"],
    )
    for row in rows
  }
  methods = [
    ("cross_entropy", "softmax"),
    ("rescaled_square:target_value=10", "log_probs"),
    ("rescaled_square:target_value=10", "softmax"),
    ("squentropy", "softmax"),
  ]
  assert keys == {
    (*method, *length, seed)
    for method in methods
    for length in (("stopped", "4"), ("short", "2"), ("long", "4"))
    for seed in "01"
  }
  assert len(rows) == len(keys) == len(results.rows)
  assert {row["data"] for row in rows} == {"iris"}
  for row, numbers in zip(rows, results.rows, strict=True):
    assert float(row["ece"]) == pytest.approx(numbers.ece, rel=1e-8)
    assert 0 <= float(row["accuracy"]) <= 1
    assert float(row["temperature"]) > 0
    improvement = float(row["nll"]) - float(row["nll_scaled"])
    assert float(row["post_hoc_improvement"]) == pytest.approx(
      improvement, abs=1e-6
    )
    # Fitted on other rows, so the NLL of these may be a little higher.
    assert float(row["nll_scaled"]) < float(row["nll"]) + 0.3


def test_config_records_what_was_run(finished_study):
  out, _ = finished_study
  config = squentropy_study.read_config(out)
  assert config == json.loads((out / "config.json").read_text())
  assert (
    squentropy_study.Settings(
      **{
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config["settings"].items()
      }
    )
    == SETTINGS
  )
  assert config["command"] == SETTINGS.command(str(out))
  assert config["versions"]["jax"] == jax.__version__
  assert config["data_sha256"] == _data.digest(_data.load_data("iris"))
  assert config["rows"] == {"train": 74, "validation": 38, "test": 38}
  assert config["classes"] == {"setosa": 50, "versicolor": 50, "virginica": 50}


def test_load_gives_the_results_and_writes_nothing(finished_study):
  out, results = finished_study
  before = study.contents(out)
  loaded = squentropy_study.load(out)
  assert loaded.rows == results.rows
  method = loaded.methods[-1]
  assert method == ("squentropy", "softmax")
  assert loaded.curve(method, "ece").shape == (4, 2)
  assert list(loaded.curve_epochs("squentropy")) == [1, 2, 3, 4]
  # The curves end at the last training length.
  last = loaded.per_seed(method, "long", "ece")
  assert loaded.curve(method, "ece")[-1] == pytest.approx(last, rel=1e-5)
  assert study.contents(out) == before
  with pytest.raises(squentropy_study.StudyError, match="holds no study"):
    squentropy_study.load(out.parent)


def test_same_settings_give_the_same_numbers(
  finished_study, tmp_path, monkeypatch
):
  study.skip_figures(monkeypatch)
  jax.clear_caches()
  settings = study.settings(losses=("squentropy",), baselines=False)
  squentropy_study.run(settings, tmp_path)
  assert {path.name for path in (tmp_path / "runs").iterdir()} == {
    "squentropy.npz",
    "squentropy.model.npz",
    "rows.npz",
  }
  for name in ("runs/squentropy.npz", "runs/squentropy.model.npz"):
    expected = (finished_study[0] / name).read_bytes()
    assert (tmp_path / name).read_bytes() == expected


def test_report_is_rewritten_with_the_same_bytes(finished_study, study_copy):
  for name in FILES - {"config.json", "preprocessing.json", "runs"}:
    (study_copy / name).unlink()
  squentropy_study.report(study_copy)
  for path in study_copy.rglob("*.*"):
    original = finished_study[0] / path.relative_to(study_copy)
    assert path.read_bytes() == original.read_bytes(), path.name


def test_finished_losses_are_kept_and_the_others_are_trained(
  study_copy, finished_study, monkeypatch
):
  study.skip_figures(monkeypatch)
  (study_copy / "runs" / "squentropy.npz").unlink()
  with pytest.raises(squentropy_study.StudyError, match="unfinished"):
    squentropy_study.report(study_copy)
  (study_copy / "report.html").unlink()
  trained = []
  train = _train.train

  def spy(settings, loss, *rest, **hooks):
    trained.append((loss.text, list(hooks["seeds"])))
    return train(settings, loss, *rest, **hooks)

  monkeypatch.setattr(_train, "train", spy)
  seen = []
  squentropy_study.run(SETTINGS, study_copy, on_progress=seen.append)
  assert trained == [("squentropy", [0, 1])]
  kept = [item.loss for item in seen if item.value is None]
  assert kept == list(SETTINGS.losses[:2])
  expected = (finished_study[0] / "results.csv").read_bytes()
  assert (study_copy / "results.csv").read_bytes() == expected
  assert (study_copy / "report.html").exists()


def test_losses_that_are_not_named_are_kept(
  study_copy, finished_study, monkeypatch
):
  study.skip_figures(monkeypatch)
  study.forbid_training(monkeypatch)
  for name in (".report.html.123.part", "runs/.x.npz.9.part"):
    (study_copy / name).write_text("half")
  (study_copy / "mine.part").write_text("mine")
  fewer = study.settings(losses=SETTINGS.losses[::-2], seeds=1)
  squentropy_study.run(fewer, study_copy, command="squentropy-study run iris")
  config = _store.read_config(study_copy)
  assert _store.read_settings(study_copy, config) == SETTINGS
  assert config["command"] == SETTINGS.command(str(study_copy))
  assert [path.name for path in study_copy.rglob("*.part")] == ["mine.part"]
  expected = (finished_study[0] / "results.csv").read_bytes()
  assert (study_copy / "results.csv").read_bytes() == expected


def test_a_later_call_keeps_the_reference(study_copy, monkeypatch):
  study.skip_figures(monkeypatch)
  study.forbid_training(monkeypatch)
  first, second = SETTINGS.losses[:2]
  settings = study.settings(reference=second)
  results = squentropy_study.run(settings, study_copy)
  assert results.settings.reference == second
  results = squentropy_study.run(study.settings(losses=(first,)), study_copy)
  assert results.settings.reference == second


def test_a_study_grows_by_losses_and_by_seeds(
  study_copy, finished_study, monkeypatch
):
  study.skip_figures(monkeypatch)
  trained = []
  train = _train.train

  def spy(settings, loss, *rest, **hooks):
    trained.append((loss.text, list(hooks["seeds"])))
    return train(settings, loss, *rest, **hooks)

  monkeypatch.setattr(_train, "train", spy)
  # A process that was killed after it had written the models of a new seed.
  models = study_copy / "runs" / "squentropy.model.npz"
  more = study.settings(losses=("squentropy:scale=0",), seeds=3)
  before = models.read_bytes()
  results = squentropy_study.run(more, study_copy)
  losses = (*SETTINGS.losses, "squentropy:scale=0")
  assert results.settings == dataclasses.replace(
    SETTINGS, losses=losses, seeds=3
  )
  assert trained == [
    *((loss, [2]) for loss in SETTINGS.losses),
    ("squentropy:scale=0", [0, 1, 2]),
  ]
  old = [r for r in results.rows if r.loss in SETTINGS.losses and r.seed < 2]
  assert old == finished_study[1].rows
  assert models.read_bytes() != before
  # The new seed is not one of the old ones, and curves of all have its axis.
  method = results.methods[-1]
  assert len(set(results.per_run(method, "long", "nll").ravel())) == 3
  assert results.curve(results.methods[0], "nll").shape == (4, 3)


def test_curves_of_seeds_that_end_later_are_padded(finished_study):
  out, _ = finished_study
  result = _run_files.read_run_result(out, "squentropy")
  models = _run_files.read_models(out, "squentropy")
  shorter = result._replace(
    seeds=result.seeds + 2,
    curve_epochs=result.curve_epochs[:3],
    train_loss=result.train_loss[:3],
    curves=result.curves[:3],
    criterion=result.criterion[:3],
  )
  joined, both = _run_files.join(
    _train.Trained(shorter, models), _train.Trained(result, models)
  )
  assert list(joined.seeds) == [2, 3, 0, 1]
  assert list(joined.curve_epochs) == [1, 2, 3, 4]
  assert np.isnan(joined.curves[3, ..., :2]).all()
  np.testing.assert_array_equal(joined.curves[..., 2:], result.curves)
  np.testing.assert_array_equal(
    joined.test_scores[:, :, :2], result.test_scores
  )
  assert {len(x[0]) for x in both.arrays.values()} == {4}


def test_rows_and_epochs_of_the_results(finished_study):
  _, results = finished_study
  keep = results.test_rows.keep
  assert results.test_rows.rows.shape == keep.shape == (2, 38)
  for method in results.methods:
    epochs = results.epochs(method, "short")
    np.testing.assert_array_equal(epochs, [[2, 2]])


def test_baselines_are_fitted_once(study_copy, finished_study, monkeypatch):
  study.skip_figures(monkeypatch)
  study.forbid_training(monkeypatch)
  _, results = finished_study
  assert list(results.baselines) == [
    "majority class",
    "logistic regression",
    "gradient-boosted trees",
  ]
  fitted = []

  def fit(folds):
    fitted.append(folds.test.rows)
    note = "the trees were cut"
    return {k: v._replace(notes=(note,)) for k, v in results.baselines.items()}

  monkeypatch.setattr(_baselines, "fit_baselines", fit)
  stages = []
  for _ in range(2):
    squentropy_study.run(SETTINGS, study_copy, on_stage=stages.append)
  assert fitted == []
  assert set(stages) == {"writing the report"}
  (study_copy / "runs" / "baselines.npz").unlink()
  with pytest.raises(squentropy_study.StudyError, match="baselines are miss"):
    squentropy_study.report(study_copy)
  without = study.settings(baselines=False)
  assert squentropy_study.run(without, study_copy).baselines == {}
  assert "Baselines" not in (study_copy / "report.html").read_text()
  assert fitted == []
  stages.clear()
  squentropy_study.run(SETTINGS, study_copy, on_stage=stages.append)
  assert stages == ["fitting the baselines", "writing the report"]
  np.testing.assert_array_equal(fitted, [results.test_rows.rows[:1]])
  page = (study_copy / "report.html").read_text()
  assert page.count("The trees were cut.") == 3


def test_divergence_is_reported_and_nothing_compared(tmp_path):
  settings = study.settings(
    losses=("cross_entropy", "squentropy"), model="linear", learning_rate=1e38
  )
  results = squentropy_study.run(settings, tmp_path)
  headline = squentropy_study.headline(results)
  assert headline.sentence == (
    "No losses are compared on iris, because every loss diverged."
  )
  assert {path.name for path in tmp_path.iterdir()} == FILES
