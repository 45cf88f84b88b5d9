# SPDX-License-Identifier: Apache-2.0
"""Training: runs are independent, and a short training starts a long one."""

import numpy as np
import pytest

from squentropy_study import (
  Settings,
  _data,
  _folds,
  _loss_specs,
  _program,
  _train,
)


@pytest.fixture(scope="module")
def folds():
  return _folds.fold(_data.load_data("iris"), 1, 0)


# Places of the first training lengths in a run result.
STOPPED, FIRST, SECOND = range(3)


def _settings(**changes):
  """A linear model with a large learning rate: cheap, and it learns."""
  fields = {"seeds": 2, "epochs": (4,), "max_epochs": 1, "batch_size": 32}
  fields |= {"model": "linear", "learning_rate": 0.05}
  return Settings("iris", **{**fields, **changes})


def _trained(rows, loss="squentropy", *, seeds=None, **settings):
  if seeds is not None:
    settings["seeds"] = len(seeds)
  return _train.train(
    _settings(**settings), _loss_specs.parse(loss), rows, seeds=seeds
  )


def _train_with(rows, loss="squentropy", **settings):
  return _trained(rows, loss, **settings).result


@pytest.fixture(scope="module")
def result(folds):
  return _train_with(folds)


def _logits(rows, steps, loss="squentropy", seeds=(0, 1), **settings):
  """The logits of the held-out rows after some steps, and nothing else."""
  settings, spec = _settings(**settings), _loss_specs.parse(loss)
  static = _train.static_settings(settings, rows)
  keys, data = _program.run_data(settings, spec, rows, list(seeds))
  state = _program.initialize(static, keys)
  _, _, logits = _program.segment(
    static, spec, state, np.int32(0), np.int32(steps), data
  )
  return np.asarray(logits)


def _assert_near(actual, expected):
  # The same sums in another order, over 8 steps: some ulp of float32 of
  # logits of order 1, and Adam divides small gradients by their own size.
  np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_seed_gives_the_same_alone_and_with_others(folds, result):
  # Four epochs of two steps.
  alone = _logits(folds, 8, seeds=[1])
  _assert_near(alone[0, 38:], result.test_scores[FIRST, 0, 1])
  first, second = result.test_scores[FIRST, 0]
  assert np.abs(first - second).max() > 0.1


def test_short_training_is_the_beginning_of_the_long_one(folds, result):
  longer = _train_with(folds, epochs=(4, 6))
  assert longer.test_scores.shape[0] == 3
  _assert_near(longer.test_scores[FIRST], result.test_scores[FIRST])
  change = longer.test_scores[SECOND] - result.test_scores[FIRST]
  assert np.abs(change).max() > 0.01


def test_every_loss_starts_from_the_same_weights_in_the_same_order(folds):
  # With scale 0, squentropy is cross-entropy.
  one = _logits(folds, 2, "cross_entropy")
  same = _logits(folds, 2, "squentropy:scale=0")
  _assert_near(one, same)


def test_training_learns(result):
  correct = result.test_scores[FIRST, 0].argmax(-1) == result.test_labels
  assert correct.mean() > 0.6
  assert (result.train_loss[-1] < result.train_loss[0]).all()


def test_shapes(folds, result):
  assert result.validation_scores.shape == (2, 1, 2, 38, 3)
  assert result.test_scores.shape == (2, 1, 2, 38, 3)
  assert result.curves.shape == (4, 1, 6, 2)
  assert result.criterion.shape == (4, 1, 2)
  assert result.train_loss.shape == (4, 2)
  np.testing.assert_array_equal(result.curve_epochs, [1, 2, 3, 4])
  np.testing.assert_array_equal(result.epochs, [[[1, 1]], [[4, 4]]])
  np.testing.assert_array_equal(result.test_rows, [folds.test.rows[0]] * 2)
  labels = folds.labels[result.test_rows]
  np.testing.assert_array_equal(result.test_labels, labels)


def test_batch_larger_than_the_rows_takes_them_all(folds):
  large = _logits(folds, 3, batch_size=1000)
  exact = _logits(folds, 3, batch_size=74)
  np.testing.assert_array_equal(large, exact)


def test_progress_is_reported_after_each_evaluation(folds):
  seen = []
  _train.train(
    _settings(epochs=(2, 60)),
    _loss_specs.parse("squentropy"),
    folds,
    lambda epoch, loss: seen.append((epoch, loss)),
  )
  epochs = [epoch for epoch, _ in seen]
  assert epochs == [*range(1, 41), *range(42, 61, 2)]
  assert seen[-1][1] < seen[0][1]


def test_segments_do_not_change_the_numbers(folds):
  """The permutation of an epoch is carried through a segment."""
  settings = _settings(batch_size=16)
  static = _train.static_settings(settings, folds)
  loss = _loss_specs.parse("squentropy")
  keys, data = _program.run_data(settings, loss, folds, [0, 1])

  def logits_after(*ends):
    state, start = _program.initialize(static, keys), 0
    for end in ends:
      state, loss_, logits = _program.segment(
        static, loss, state, np.int32(start), np.int32(end - start), data
      )
      start = end
    return np.asarray(logits), np.asarray(loss_)

  # Four steps an epoch: within one, at its end, and over several.
  whole, last_epoch = logits_after(10)
  for ends in ((1, 3, 10), (4, 8, 10), (5, 10)):
    parts, _ = logits_after(*ends)
    np.testing.assert_array_equal(parts, whole)
  # The mean over the last epoch alone.
  _, last = logits_after(6, 10)
  np.testing.assert_allclose(last_epoch, last, rtol=1e-6)


# The fixture trains linear with adam. A model and an optimizer do not interact,
# so two pairs cover the others.
@pytest.mark.parametrize(
  ("model", "optimizer", "loss", "kernel"),
  [
    ("mlp", "sgd", "cross_entropy", "0/hidden1/kernel"),
    ("bn-mlp", "adamw", "rescaled_square:target_value=10", "0/layers/0/kernel"),
  ],
)
def test_models_and_optimizers_learn(folds, model, optimizer, loss, kernel):
  settings = {"model": model, "optimizer": optimizer, "learning_rate": 0.01}
  settings |= {"epochs": (16,), "max_epochs": 15}
  result, models = _trained(folds, loss, **settings)
  assert (result.train_loss[-1] < result.train_loss[0]).all()
  assert np.isfinite(result.test_scores).all()
  # The saved models are those of stopped training, for each probability map.
  maps = len(_loss_specs.parse(loss).probability_maps())
  assert models.arrays[kernel].shape == (maps, 2, 4, 256)
  scores = _train.predict(
    _train.static_settings(_settings(**settings), folds),
    _loss_specs.parse(loss),
    models,
    folds.features[folds.test.rows[0]],
  )
  assert scores.shape == (maps, 2, 38, 3)
  _assert_near(scores, result.test_scores[STOPPED])
  assert np.abs(scores - result.test_scores[FIRST]).max() > 0.01


@pytest.mark.parametrize("model", ["linear", "bn-mlp"])
def test_column_that_is_constant_in_training_rows_moves_no_prediction(model):
  data = _data.load_data("iris")
  split = _folds.fold(data, 1, 0)
  # Another value in two rows tested on and nowhere else.
  odd = split.test.rows[0, :2]
  column = np.zeros((len(data.labels), 1))
  with_column = []
  for value in (0.0, 7.0):
    column[odd] = value
    x = np.concatenate([data.features, column], axis=1)
    folds = _folds.fold(data._replace(features=x), 1, 0)
    with_column.append(_logits(folds, 8, model=model, seeds=[0]))
  plain, other = with_column
  np.testing.assert_array_equal(other, plain)


def test_features_are_clipped(folds):
  held = folds.test.rows[0, 0]
  scores = []
  for value in (10.0, 1e4):
    features = folds.features.copy()
    features[held, 0] = folds.shift[0, 0] + value / folds.scale[0, 0]
    near = folds._replace(features=features)
    scores.append(_logits(near, 2, seeds=[0])[0, 38])
  # Standardised features are clipped to 10.
  np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4, atol=1e-4)


def test_accuracy_on_training_rows_is_that_of_the_reported_epochs(folds):
  # The training rows as test rows, so that both accuracies are the same.
  same = folds._replace(
    test=_folds.FoldRows(folds.train, np.ones_like(folds.train, bool))
  )
  loss = "rescaled_square:target_value=10"
  result = _train_with(same, loss, epochs=(4, 8), max_epochs=6)
  assert result.train_accuracy.shape == (3, 2, 2)
  right = result.test_scores.argmax(-1) == result.test_labels
  np.testing.assert_allclose(result.train_accuracy, right.mean(-1), rtol=1e-6)
  assert result.train_accuracy[SECOND, 0].min() > 0.6


def test_images_go_through_convolutions():
  data = _data.load_data("digits")
  images = data._replace(features=data.features.reshape(-1, 8, 8, 1))
  split = _folds.fold(_data.draw(images, 200, 0), 1, 0)
  settings = _settings(
    seeds=1, epochs=(12,), model="cnn", batch_size=128, learning_rate=1e-3
  )
  loss = _loss_specs.parse("cross_entropy")
  result = _train.train(settings, loss, split).result
  assert result.train_loss[-1, 0] < 0.7 * result.train_loss[0, 0]


def test_batch_normalisation_predicts_with_running_statistics(folds):
  # The statistics move with training: the logits of a row do not depend on
  # the other rows held out with it.
  logits = _logits(folds, 8, model="bn-mlp", seeds=[0])
  fewer = folds._replace(
    test=_folds.FoldRows(folds.test.rows[:, :5], folds.test.keep[:, :5])
  )
  part = _logits(fewer, 8, model="bn-mlp", seeds=[0])
  _assert_near(part, logits[:, : 38 + 5])


def test_fold_gives_the_same_alone_and_with_others():
  data = _data.load_data("iris")
  split = _folds.fold(data, 3, 0)
  settings = _settings(batch_size=16, folds=3)
  loss = _loss_specs.parse("squentropy")
  static = _train.static_settings(settings, split)
  keys, data = _program.run_data(settings, loss, split, [0, 1])
  state = _program.initialize(static, keys)
  _, _, logits = _program.segment(
    static, loss, state, np.int32(0), np.int32(6), data
  )
  assert logits.shape == (6, 100, 3)
  second = split._replace(
    shift=split.shift[1:2],
    scale=split.scale[1:2],
    train=split.train[1:2],
    validation=_folds.FoldRows(*(x[1:2] for x in split.validation)),
    test=_folds.FoldRows(*(x[1:2] for x in split.test)),
  )
  _assert_near(_logits(second, 6, batch_size=16), logits[2:4])


@pytest.fixture(scope="module")
def imbalanced():
  """Two folds' worth of training rows of which few are of class 0."""
  data = _data.load_data("iris")
  rows = np.flatnonzero((data.labels > 0) | (np.arange(150) < 8))
  return _folds.fold(
    data._replace(features=data.features[rows], labels=data.labels[rows]), 1, 0
  )


def _balanced(counts):
  return counts.sum() / (3 * counts)


def _effective(counts):
  weights = (1 - 0.999) / (1 - 0.999**counts)
  return weights * counts.sum() / (weights * counts).sum()


@pytest.mark.parametrize(
  ("scheme", "loss", "tau", "expected_weights"),
  [
    ("balanced", "cross_entropy", 0, _balanced),
    ("effective", "cross_entropy:adjustment=2", 2, _effective),
  ],
)
def test_weights_and_adjustment_are_in_the_loss_alone(
  imbalanced, scheme, loss, tau, expected_weights
):
  # Hardly a step is made, and the batch is all rows.
  settings = _settings(
    class_weights=scheme, learning_rate=1e-9, batch_size=1000
  )
  static = _train.static_settings(settings, imbalanced)
  spec = _loss_specs.parse(loss)
  keys, data = _program.run_data(settings, spec, imbalanced, [0, 1])
  state = _program.initialize(static, keys)
  model = (state.parameters, state.statistics)
  rows = np.asarray(data.train)
  logits = np.asarray(_program.predict(static, model, data, rows))
  held_out = _program.predict(static, model, data, data.held_out)
  labels = imbalanced.labels[rows]
  counts = np.bincount(labels[0])
  weights = expected_weights(counts)
  np.testing.assert_allclose(data.weights, [weights] * 2, rtol=1e-5)
  assert (weights[labels[0]]).mean() == pytest.approx(1)
  logits = logits + tau * np.log(counts / counts.sum())
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  losses = -np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]
  expected = (losses * weights[labels]).mean(axis=1)
  _, train_loss, predicted = _program.segment(
    static, spec, state, np.int32(0), np.int32(1), data
  )
  np.testing.assert_allclose(train_loss, expected, rtol=1e-5)
  _assert_near(predicted, held_out)
