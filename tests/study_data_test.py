# SPDX-License-Identifier: Apache-2.0
"""Data sets, their folds and the settings of a study."""

import numpy as np
import pytest

from squentropy_study import Settings, StudyError, _data, _folds

SHAPES = {
  "digits": (1797, 64, 10),
  "iris": (150, 4, 3),
  "wine": (178, 13, 3),
  "breast_cancer": (569, 30, 2),
}


def _rows(folds, number):
  """Training, calibration and test rows of a fold."""
  parts = (folds.validation, folds.test)
  held_out = [part.rows[number][part.keep[number]] for part in parts]
  return [folds.train[number], *held_out]


@pytest.mark.parametrize("folds", [1, 3, 5])
@pytest.mark.parametrize("name", _data.names())
def test_folds_share_no_row_and_keep_the_classes(name, folds):
  data = _data.load_data(name)
  shape = (*data.features.shape, len(data.classes))
  assert shape == SHAPES[name]
  split = _folds.fold(data, folds, 0)
  parts = 4 if folds == 1 else folds
  whole = np.bincount(data.labels) / data.labels.size
  tested = []
  for number in range(folds):
    rows = _rows(split, number)
    every = np.concatenate(rows)
    assert np.unique(every).size == every.size
    # Folds are cut to the length of the shortest, which drops a row or two.
    assert data.labels.size - every.size <= 2
    for part in rows:
      # A part holds each class by its share, up to one row for each part.
      share = np.bincount(data.labels[part], minlength=whole.size)
      np.testing.assert_allclose(share, whole * part.size, rtol=0, atol=parts)
    tested.append(rows[2])
  if folds > 1:
    every = np.sort(np.concatenate(tested))
    np.testing.assert_array_equal(every, np.arange(data.labels.size))


def test_folds_are_decided_by_their_seed():
  data = _data.load_data("iris")
  first, again, other = (_folds.fold(data, 1, seed) for seed in (3, 3, 4))
  for a, b in zip(first[5:], again[5:], strict=True):
    np.testing.assert_array_equal(a, b)
  assert not np.array_equal(first.train, other.train)


def test_features_are_standardised_by_the_training_rows_alone():
  data = _data.load_data("digits")
  folds = _folds.fold(data, 3, 0)
  assert folds.features.dtype == np.float32
  for number in range(3):
    x = folds.features.astype(np.float64)
    x = (x - folds.shift[number]) * folds.scale[number]
    train, _, test = (x[rows] for rows in _rows(folds, number))
    varies = np.ptp(train, axis=0) > 0
    assert 0 < varies.sum() < 64  # Some pixels of digits are always 0.
    np.testing.assert_array_equal(folds.scale[number][~varies], 0)
    # Up to the rows dropped to make the folds equally long, 2 of 600.
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(train.std(axis=0)[varies], 1, atol=0.1)
    assert np.abs(test.mean(axis=0)).max() > 1e-3


def test_rows_cut_to_make_folds_equally_long_are_not_used():
  # 1 row of 10 is cut: a column that varies by that row alone is constant.
  data = _data.load_data("iris")
  data = _data.draw(data, 130, 0)
  for row in range(130):
    x = np.zeros((130, 1))
    x[row] = 1
    folds = _folds.fold(data._replace(features=x), 3, 0)
    trained = (folds.train == row).any(axis=1)
    np.testing.assert_array_equal(folds.scale[:, 0] > 0, trained)


def test_digest_is_of_rows_and_classes():
  data = _data.load_data("iris")
  other = [
    data._replace(features=data.features + 1e-9),
    data._replace(features=data.features.reshape(-1, 2, 2, 1)),
    data._replace(labels=2 - data.labels),
    data._replace(classes=("a", "b", "c")),
  ]
  digests = {_data.digest(each) for each in [data, *other]}
  assert len(digests) == 5
  assert _data.digest(_data.load_data("iris")) == _data.digest(data)
  # The settings say where the rows come from.
  assert _data.digest(data._replace(name="x", notes=("y",))) in digests


def test_large_offsets_do_not_cancel():
  data = _data.load_data("iris")
  moved = data._replace(features=data.features + 2.0**26)
  near, far = (_folds.fold(d, 1, 0).features for d in (data, moved))
  np.testing.assert_allclose(near, far, rtol=0, atol=1e-6)


def test_missing_values_stay_nan_and_images_share_a_scale():
  data = _data.load_data("iris")
  features = data.features.copy()
  features[::7, 1] = np.nan
  folds = _folds.fold(data._replace(features=features), 1, 0)
  np.testing.assert_array_equal(np.isnan(folds.features), np.isnan(features))
  assert np.isfinite(folds.shift).all()
  assert np.isfinite(folds.scale).all()
  images = data._replace(features=data.features.reshape(-1, 2, 2, 1))
  assert _folds.fold(images, 1, 0).shift.shape == (1, 1)


def test_class_with_too_few_rows_raises():
  labels = np.array([0] * 10 + [1] * 3, np.int32)
  data = _data.Dataset("mine", np.zeros((13, 1)), labels, ("no", "yes"))
  with pytest.raises(StudyError, match="class 'yes' of mine has 3 rows"):
    _folds.fold(data, 1, 0)
  _folds.fold(data, 3, 0)


def test_draw_keeps_the_shares():
  data = _data.load_data("digits")
  drawn = _data.draw(data, 300, 0)
  assert drawn.labels.size == 300
  assert "stratified sample of 300 of 1797 rows" in drawn.notes[-1]
  share = np.bincount(data.labels) * 300 / 1797
  np.testing.assert_allclose(np.bincount(drawn.labels), share, rtol=0, atol=1)
  assert _data.draw(data, 1797, 0) is data
  with pytest.raises(
    StudyError, match="at most 147, or 150 for all rows; got 149"
  ):
    _data.draw(_data.load_data("iris"), 149, 0)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"seeds": 0}, "seeds must be at least 1"),
    ({"max_epochs": 0}, "max epochs must be at least 1, got 0"),
    ({"stopping": "nl"}, "unknown stopping criterion 'nl'; did you mean 'nll'"),
    ({"class_weights": "balance"}, "did you mean 'balanced'"),
    ({"reference": "squentrpy"}, "did you mean 'squentropy'"),
    ({"epochs": (0, 3)}, "epochs"),
    ({"epochs": (5, 5)}, "epochs"),
    ({"epochs": (5, 4)}, "epochs"),
    ({"batch_size": 0}, "batch size"),
    ({"learning_rate": 0.0}, "learning rate"),
    ({"learning_rate": float("nan")}, "learning rate"),
    ({"data_seed": -1}, "data seed"),
    ({"losses": ()}, "at least one loss"),
    ({"losses": ("squentropy", "squentropy")}, "got 'squentropy' twice"),
  ],
)
def test_settings_that_cannot_be_run(change, message):
  with pytest.raises(StudyError, match=message):
    Settings("iris", **change)


def test_training_lengths_begin_with_stopped():
  def lengths(*epochs):
    return list(Settings("iris", epochs=epochs).training_lengths.items())

  stopped = ("stopped", None)
  assert lengths() == [stopped]
  assert lengths(3) == [stopped, ("fixed", 3)]
  assert lengths(3, 9) == [stopped, ("short", 3), ("long", 9)]
  assert lengths(3, 5, 9) == [
    stopped,
    ("short", 3),
    ("epoch_5", 5),
    ("long", 9),
  ]
