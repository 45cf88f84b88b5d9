# SPDX-License-Identifier: Apache-2.0
"""Training: runs are independent, and a short training starts a long one."""

import numpy as np
import pytest

from squentropy_study import Settings, _data, _loss_specs, _train


@pytest.fixture(scope="module")
def folds():
  return _data.fold(_data.load_data("iris"), 1, 0)


def _train_with(folds, loss="squentropy", **settings):
  settings = {"seeds": 2, "epochs": (4,), "batch_size": 32, **settings}
  return _train.train(
    Settings("iris", **settings), _loss_specs.parse(loss), folds
  )


@pytest.fixture(scope="module")
def result(folds):
  return _train_with(folds)


def _assert_near(actual, expected):
  # The same sums in another order, over 8 steps: some ulp of float32 of
  # logits of order 1, and Adam divides small gradients by their own size.
  np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_seed_gives_the_same_alone_and_with_others(folds, result):
  alone = _train_with(folds, seeds=1)
  _assert_near(alone.test_logits[:, 0], result.test_logits[:, 0])
  difference = result.test_logits[:, 0] - result.test_logits[:, 1]
  assert np.abs(difference).max() > 0.1


def test_short_training_is_the_beginning_of_the_long_one(folds, result):
  longer = _train_with(folds, epochs=(4, 6))
  assert longer.test_logits.shape[0] == 2
  _assert_near(longer.test_logits[0], result.test_logits[0])
  assert np.abs(longer.test_logits[1] - result.test_logits[0]).max() > 0.01


def test_every_loss_starts_from_the_same_weights_in_the_same_order(folds):
  # With scale 0, squentropy is cross-entropy.
  one = _train_with(folds, "cross_entropy", epochs=(1,))
  same = _train_with(folds, "squentropy:scale=0", epochs=(1,))
  _assert_near(one.test_logits, same.test_logits)


def test_training_learns(result):
  correct = result.test_logits[0].argmax(-1) == result.test_labels
  assert correct.mean() > 0.6
  assert (result.train_loss[-1] < result.train_loss[0]).all()


def test_shapes(folds, result):
  assert result.calibration_logits.shape == (1, 2, 38, 3)
  assert result.test_logits.shape == (1, 2, 38, 3)
  assert result.curves.shape == (4, 1, 6, 2)
  assert result.train_loss.shape == (4, 2)
  np.testing.assert_array_equal(result.curve_epochs, [1, 2, 3, 4])
  assert result.test_labels.shape == (2, 38)


def test_batch_larger_than_the_rows_takes_them_all(folds):
  settings = {"epochs": (1,), "model": "linear"}
  large = _train_with(folds, batch_size=1000, **settings)
  exact = _train_with(folds, batch_size=74, **settings)
  np.testing.assert_array_equal(large.test_logits, exact.test_logits)


def test_progress_is_reported_between_segments(folds):
  seen = []
  _train.train(
    Settings("iris", seeds=1, epochs=(2, 120), model="linear"),
    _loss_specs.parse("squentropy"),
    folds,
    lambda epoch, loss: seen.append((epoch, loss)),
  )
  assert [epoch for epoch, _ in seen] == list(range(2, 121, 2))
  assert seen[-1][1] < seen[0][1]


# The fixture trains mlp with adam. A model and an optimizer do not interact, so
# two pairs cover the others.
@pytest.mark.parametrize(
  ("model", "optimizer"), [("linear", "sgd"), ("bn-mlp", "adamw")]
)
def test_every_model_and_optimizer_learns(folds, model, optimizer):
  result = _train_with(
    folds, model=model, optimizer=optimizer, epochs=(8,), learning_rate=0.01
  )
  assert (result.train_loss[-1] < result.train_loss[0]).all()
  assert np.isfinite(result.test_logits).all()


@pytest.mark.parametrize("model", ["mlp", "bn-mlp"])
def test_column_that_is_constant_in_training_rows_moves_no_prediction(model):
  data = _data.load_data("iris")
  split = _data.fold(data, 1, 0)
  # Another value in two rows tested on and nowhere else.
  odd = split.test.rows[0, :2]
  column = np.zeros((len(data.labels), 1))
  with_column = []
  for value in (0.0, 7.0):
    column[odd] = value
    x = np.concatenate([data.features, column], axis=1)
    folds = _data.fold(data._replace(features=x), 1, 0)
    with_column.append(_train_with(folds, model=model, seeds=1))
  plain, result = with_column
  np.testing.assert_array_equal(result.test_logits, plain.test_logits)


def test_features_are_clipped(folds):
  held = folds.test.rows[0, 0]
  logits = []
  for value in (10.0, 1e4):
    features = folds.features.copy()
    features[held, 0] = folds.shift[0, 0] + value / folds.scale[0, 0]
    near = folds._replace(features=features)
    logits.append(_train_with(near, seeds=1, epochs=(1,)).test_logits[0, 0, 0])
  # Standardised features are clipped to 10.
  np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def test_accuracy_on_training_rows_is_that_of_the_reported_epochs(folds):
  # The training rows as test rows, so that both accuracies are the same.
  same = folds._replace(
    test=_data.FoldRows(folds.train, np.ones_like(folds.train, bool))
  )
  loss = "rescaled_square:target_value=10"
  result = _train_with(same, loss, epochs=(4, 8))
  assert result.train_accuracy.shape == (2, 2, 2)
  right = result.test_logits.argmax(-1) == result.test_labels
  np.testing.assert_allclose(
    result.train_accuracy[:, 0], right.mean(-1), rtol=1e-6
  )
  assert result.train_accuracy[1, 0].min() > 0.6


def test_images_go_through_convolutions():
  data = _data.load_data("digits")
  images = data._replace(features=data.features.reshape(-1, 8, 8, 1))
  split = _data.fold(_data.draw(images, 200, 0), 1, 0)
  settings = Settings("digits", seeds=1, epochs=(12,), model="cnn")
  result = _train.train(settings, _loss_specs.parse("cross_entropy"), split)
  assert result.train_loss[-1, 0] < 0.7 * result.train_loss[0, 0]


def test_batch_normalisation_predicts_with_running_statistics(folds):
  # The statistics move with training: the logits of a row do not depend on
  # the other rows held out with it.
  result = _train_with(folds, model="bn-mlp", seeds=1)
  fewer = folds._replace(
    test=_data.FoldRows(folds.test.rows[:, :5], folds.test.keep[:, :5])
  )
  part = _train_with(fewer, model="bn-mlp", seeds=1)
  _assert_near(part.test_logits, result.test_logits[:, :, :5])


def test_fold_gives_the_same_alone_and_with_others():
  data = _data.load_data("iris")
  split = _data.fold(data, 3, 0)
  loss = _loss_specs.parse("squentropy")
  settings = Settings("iris", seeds=2, epochs=(2,), batch_size=16, folds=3)
  result = _train.train(settings, loss, split)
  assert result.test_logits.shape == (1, 6, 50, 3)
  second = split._replace(
    shift=split.shift[1:2],
    scale=split.scale[1:2],
    train=split.train[1:2],
    calibration=_data.FoldRows(*(x[1:2] for x in split.calibration)),
    test=_data.FoldRows(*(x[1:2] for x in split.test)),
  )
  settings = Settings("iris", seeds=2, epochs=(2,), batch_size=16)
  alone = _train.train(settings, loss, second)
  _assert_near(alone.test_logits, result.test_logits[:, 2:4])
  np.testing.assert_array_equal(alone.test_labels, result.test_labels[2:4])


@pytest.mark.parametrize(
  ("epochs", "length"),
  [((40, 300), 5), ((300,), 5), ((1,), 1), ((7, 300), 1), ((40, 3000), 40)],
)
def test_segments_divide_every_epoch_to_report_at(epochs, length):
  assert _train.segment_length(epochs) == length
