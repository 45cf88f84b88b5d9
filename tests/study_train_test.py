# SPDX-License-Identifier: Apache-2.0
"""Training: seeds together are seeds apart, short is long read sooner."""

import numpy as np
import pytest

from squentropy_jax.study import Settings, _data, _losses, _train


@pytest.fixture(scope="module")
def split():
  return _data.split(_data.load("iris"), 0)


def _train_with(split, loss="squentropy", **settings):
  settings = {"seeds": 2, "epochs": (4,), "batch_size": 32, **settings}
  return _train.train(Settings("iris", **settings), _losses.parse(loss), split)


@pytest.fixture(scope="module")
def cell(split):
  return _train_with(split)


def _assert_near(actual, expected):
  # The same sums in another order, over 8 steps: some float32 roundings of
  # logits of order 1, and Adam divides small gradients by their own size.
  np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_seed_alone_gives_what_it_gave_in_company(split, cell):
  alone = _train_with(split, seeds=1)
  _assert_near(alone.test_logits[:, 0], cell.test_logits[:, 0])
  difference = cell.test_logits[:, 0] - cell.test_logits[:, 1]
  assert np.abs(difference).max() > 0.1


def test_short_training_is_the_long_one_read_sooner(split, cell):
  longer = _train_with(split, epochs=(4, 6))
  assert longer.test_logits.shape[0] == 2
  _assert_near(longer.test_logits[0], cell.test_logits[0])
  assert np.abs(longer.test_logits[1] - cell.test_logits[0]).max() > 0.01


def test_every_loss_starts_from_the_same_weights_in_the_same_order(split):
  # Without its square, squentropy is cross-entropy.
  one = _train_with(split, "cross_entropy", epochs=(1,))
  same = _train_with(split, "squentropy:scale=0", epochs=(1,))
  _assert_near(one.test_logits, same.test_logits)


def test_training_learns(cell):
  correct = cell.test_logits[0].argmax(-1) == cell.test_labels
  assert correct.mean() > 0.6
  assert (cell.train_loss[-1] < cell.train_loss[0]).all()


def test_shapes(split, cell):
  assert cell.calibration_logits.shape == (1, 2, 37, 3)
  assert cell.test_logits.shape == (1, 2, 38, 3)
  assert cell.curves.shape == (4, 1, 3, 2)
  assert cell.train_loss.shape == (4, 2)
  np.testing.assert_array_equal(cell.curve_epochs, [1, 2, 3, 4])
  assert cell.test_labels.size == split.test.labels.size


def test_batch_larger_than_the_rows_takes_them_all(split):
  large = _train_with(split, batch_size=1000, epochs=(1,))
  exact = _train_with(split, batch_size=75, epochs=(1,))
  np.testing.assert_array_equal(large.test_logits, exact.test_logits)


def test_progress_is_reported_between_segments(split):
  seen = []
  _train.train(
    Settings("iris", seeds=1, epochs=(2, 120)),
    _losses.parse("squentropy"),
    split,
    lambda epoch, loss: seen.append((epoch, loss)),
  )
  assert [epoch for epoch, _ in seen] == list(range(2, 121, 2))
  assert seen[-1][1] < seen[0][1]


@pytest.mark.parametrize(
  ("epochs", "length"),
  [((40, 300), 5), ((300,), 5), ((1,), 1), ((7, 300), 1), ((40, 3000), 40)],
)
def test_segments_divide_every_epoch_to_report_at(epochs, length):
  assert _train.segment_length(epochs) == length
