# SPDX-License-Identifier: Apache-2.0
"""Baselines on the rows of the losses."""

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression

from squentropy_study import StudyError, _baselines, _data, _evaluation, _folds

# Few rows and rounds: boosting is most of the time.
ROUNDS = 5


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
  monkeypatch.setattr(_baselines, "_ROUNDS", ROUNDS)


def _iris(number=3):
  return _folds.fold(_data.load_data("iris"), number, 0)


@pytest.fixture(scope="module")
def folds():
  return _iris()


def _standardized(folds, number, rows):
  x = (folds.features[rows] - folds.shift[number]) * folds.scale[number]
  return np.clip(x, -10, 10)


def test_each_baseline_predicts_every_test_row_of_every_fold(folds):
  baselines = _baselines.fit_baselines(folds)
  assert list(baselines) == [
    "majority class",
    "logistic regression",
    "gradient-boosted trees",
  ]
  labels, keep = folds.labels[folds.test.rows], folds.test.keep
  for name, baseline in baselines.items():
    assert baseline.log_probs.shape == (*labels.shape, 3)
    assert baseline.temperature.shape == (3,)
    np.testing.assert_allclose(
      special.logsumexp(baseline.log_probs, axis=-1), 0, atol=1e-5
    )
    scaled = baseline.scaled_log_probs
    np.testing.assert_allclose(np.exp(scaled).sum(axis=-1), 1)
    right = scaled.argmax(axis=-1) == labels
    accuracy = right[keep].mean()
    assert accuracy > 0.85 if name != "majority class" else accuracy < 0.4
  again = _baselines.fit_baselines(folds)
  for name, baseline in baselines.items():
    np.testing.assert_array_equal(baseline.log_probs, again[name].log_probs)


def test_majority_and_logistic_regression_are_those_of_the_training_rows(folds):
  counts = np.bincount(folds.labels[folds.train[1]])
  part = _baselines._part(folds, 1)
  majority = _baselines._scores(_baselines._fit_majority, part)
  np.testing.assert_allclose(majority.test[0], np.log(counts / counts.sum()))
  model = LogisticRegression(max_iter=200)
  model.fit(
    _standardized(folds, 1, folds.train[1]), folds.labels[folds.train[1]]
  )
  expected = model.predict_log_proba(
    _standardized(folds, 1, folds.test.rows[1])
  )
  scores = _baselines._scores(_baselines._fit_logistic, part)
  np.testing.assert_allclose(
    special.log_softmax(scores.test, axis=-1), expected, atol=1e-4
  )


def test_temperature_is_of_the_validation_rows(folds):
  baseline = _baselines._fit(_baselines._fit_logistic, folds)
  rows, keep = folds.validation
  for number, temperature in enumerate(baseline.temperature):
    scores = _baselines._scores(
      _baselines._fit_logistic, _baselines._part(folds, number)
    )
    chosen = keep[number]
    labels = folds.labels[rows[number][chosen]]
    held = np.ones(labels.size, bool)
    added = _evaluation.with_one_error(
      _evaluation.HeldOutLogits(scores.validation[chosen], labels, held)
    )

    def nll(at, added=added):
      log_probs = special.log_softmax(np.asarray(added.scores) / at, axis=-1)
      places = np.asarray(added.labels)[:, None]
      return -np.take_along_axis(log_probs, places, axis=-1).mean()

    assert nll(temperature) < min(
      nll(0.9 * temperature), nll(1.1 * temperature)
    )


def test_validation_rows_choose_the_boosting_round(folds):
  part = _baselines._part(folds, 0)
  # Labels by chance: the first round is the best one.
  shuffled = np.random.default_rng(0).permutation(part.labels)
  one = part._replace(labels=shuffled)
  few = np.abs(_baselines._scores(_baselines._fit_trees, one).test).max()
  assert (
    few
    < 0.6 * np.abs(_baselines._scores(_baselines._fit_trees, part).test).max()
  )


def test_two_classes_and_missing_values():
  data = _data.load_data("breast_cancer")
  features = data.features.copy()
  features[::7, 1] = np.nan
  data = _data.draw(data._replace(features=features), 200, 0)
  folds = _folds.fold(data, 1, 0)
  for name, baseline in _baselines.fit_baselines(folds).items():
    right = baseline.log_probs.argmax(-1) == folds.labels[folds.test.rows]
    assert right.mean() > (0.8 if name != "majority class" else 0.6), name


def test_class_without_training_rows(folds):
  # The third class is in no training row of the first fold.
  train = folds.train.copy()
  two = folds.labels[train[0]] < 2
  train[0][~two] = train[0][two][: (~two).sum()]
  baselines = _baselines.fit_baselines(folds._replace(train=train))
  for baseline in baselines.values():
    rows = train.shape[1]
    np.testing.assert_allclose(
      baseline.log_probs[0, :, 2], -np.log(rows + 3), rtol=1e-5
    )
    assert np.isfinite(baseline.log_probs).all()


def test_one_class_in_the_training_rows(folds):
  train = np.broadcast_to(folds.train[:, :1], folds.train.shape)
  for baseline in _baselines.fit_baselines(
    folds._replace(train=train)
  ).values():
    least = 1 / (train.shape[1] + 3)
    expected = np.sort([least, least, 1 - 2 * least])
    np.testing.assert_allclose(
      np.sort(np.exp(baseline.log_probs[0, 0])), expected, rtol=1e-4
    )


def test_images_with_many_columns(monkeypatch):
  monkeypatch.setattr(_baselines, "_COLUMNS_OF_TREES", 3)
  data = _data.load_data("iris")
  images = np.concatenate([data.features, 0 * data.features], axis=1)
  data = data._replace(features=images.reshape(-1, 2, 2, 2))
  folds = _folds.fold(data, 1, 0)
  part = _baselines._part(folds, 0)
  assert part.train.shape[1] == 8
  # Constant columns separate no classes.
  assert (_baselines._columns_of_trees(part) < 4).all()
  scores = _baselines._scores(_baselines._fit_trees, part)
  assert scores.notes == (
    "gradient-boosted trees use the 3 of 8 columns that separate the classes "
    "best",
  )


def test_time_is_bounded_by_fewer_rounds_and_steps(folds, monkeypatch):
  monkeypatch.setattr(_baselines, "_TREES", 6)
  monkeypatch.setattr(_baselines, "_WORK_OF_TREES", 1.0)
  monkeypatch.setattr(_baselines, "_PRODUCTS", 1.0)
  monkeypatch.setattr(_baselines, "_FEWEST", 2)
  part = _baselines._part(folds, 0)
  (note,) = _baselines._scores(_baselines._fit_trees, part).notes
  assert "at most 2 instead of 5 rounds" in note
  assert "3 classes" in note
  (note,) = _baselines._scores(_baselines._fit_logistic, part).notes
  assert "stopped after 2 steps" in note


def test_baselines_are_saved_and_read(folds, tmp_path):
  (tmp_path / "runs").mkdir()
  assert not _baselines.has_baselines(tmp_path)
  baseline = _baselines._fit(_baselines._fit_majority, folds)
  noted = baseline._replace(notes=("a", "b"))
  _baselines.write_baselines(tmp_path, {"x": baseline, "y.z": noted})
  assert _baselines.has_baselines(tmp_path)
  read = _baselines.read_baselines(tmp_path)
  assert list(read) == ["x", "y.z"]
  np.testing.assert_array_equal(read["x"].log_probs, baseline.log_probs)
  np.testing.assert_array_equal(read["x"].temperature, baseline.temperature)
  assert read["x"].notes == ()
  assert read["y.z"].notes == ("a", "b")
  path = tmp_path / "runs" / "baselines.npz"
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(StudyError, match=r"baselines.npz is damaged .*delete it"):
    _baselines.read_baselines(tmp_path)


def test_logistic_regression_that_did_not_converge_is_said(folds, monkeypatch):
  monkeypatch.setattr(_baselines, "_STEPS", 3)
  monkeypatch.setattr(_baselines, "_FEWEST", 1)
  notes = _baselines._fit_logistic(_baselines._part(folds, 0)).notes
  assert notes == (
    "logistic regression was stopped after 3 steps, before it converged",
  )
