# SPDX-License-Identifier: Apache-2.0
"""When a training is evaluated, and where each run is stopped."""

import numpy as np
import pytest

from squentropy_jax import calibration
from squentropy_study import (
  Settings,
  _data,
  _evaluation,
  _folds,
  _loss_specs,
  _stopping,
  _train,
)
from squentropy_study._evaluation import HeldOutLogits


def test_evaluations_are_dense_first_and_then_5_percent_apart():
  points = _stopping.schedule(7, 300, [40])
  epochs = [point.epoch for point in points]
  assert epochs[:22] == [*range(1, 23)]
  assert epochs[-1] == 300
  assert all(point.step == 7 * point.epoch for point in points)
  assert 40 in epochs
  gaps = np.diff(epochs)
  assert (gaps <= np.maximum(1, np.asarray(epochs[:-1]) / 20)).all()
  assert len(points) < 90


def test_long_epochs_are_cut_into_parts_of_at_most_100_steps():
  # 250 steps are parts of 83, 83 and 84.
  points = _stopping.schedule(250, 2, [])
  assert [point.step for point in points] == [83, 166, 250, 333, 416, 500]
  assert points[2].epoch == 1
  points = _stopping.schedule(1000, 50, [])
  gaps = np.diff([0, *(point.step for point in points)])
  assert (gaps[:20] == 100).all()
  assert gaps.max() <= 0.05 * 50_000
  assert len(points) < 100


def test_fixed_lengths_are_evaluated_and_are_no_candidates():
  base = _stopping.schedule(1, 300, [])
  epochs = {point.epoch for point in base}
  off = next(k for k in range(100, 200) if k not in epochs)
  points = _stopping.schedule(1, 300, [off, 900])
  assert [point for point in points if point.candidate] == base
  chosen = {point.epoch: point.candidate for point in points}
  assert chosen[off] is chosen[900] is False
  assert max(chosen) == 900
  # The curves go on to the longest length.
  assert sum(epoch > 300 for epoch in chosen) > 15


def _stop(values, epochs, bounds=(10, 300)):
  """Applies the rule to criteria ``[points, runs]``."""
  values = np.asarray(values, np.float32)
  best = None
  ends = np.zeros(values.shape[1])
  for value, epoch in zip(values, epochs, strict=True):
    scores = np.full((len(value), 1, 2), epoch, np.float32)
    model = {"weights": np.full((len(value), 3), epoch, np.float32)}
    best = _stopping.update(best, value, epoch, bounds, scores, model)
    ends = np.where((ends == 0) & best.finished, epoch, ends)
  # Scores and weights are those of the best epoch.
  np.testing.assert_allclose(best.scores[:, 0, 0], best.epoch, rtol=1e-6)
  np.testing.assert_allclose(best.model["weights"][:, 2], best.epoch, rtol=1e-6)
  return best, ends


def test_run_is_finished_when_its_best_epoch_is_in_the_first_half():
  epochs = np.arange(1, 41)
  lowest = np.asarray([3, 5, 6, 14, 40])
  best, ends = _stop(np.abs(epochs[:, None] - lowest), epochs, (10, 40))
  np.testing.assert_array_equal(best.epoch, lowest)
  # Never before epoch 10, and at the bound at the latest.
  np.testing.assert_array_equal(ends, [10, 10, 12, 28, 40])
  # A better epoch after the end does not count.
  late = np.where(epochs == 30, -1, np.abs(epochs - 6))
  best, _ = _stop(late[:, None], epochs)
  assert best.epoch == [6]
  # 100 steps are 25 epochs of 4 steps.
  assert _stopping.search_bounds(4, 40) == (25, 40)
  assert _stopping.search_bounds(50, 40) == (10, 40)
  best, ends = _stop(np.abs(epochs[:, None] - lowest), epochs, (25, 40))
  np.testing.assert_array_equal(ends, [25, 25, 25, 28, 40])


def test_rule_of_a_run_does_not_depend_on_the_others():
  epochs = np.asarray([0.5, *range(1, 30)])
  values = np.random.default_rng(0).normal(size=(30, 20))
  together, _ = _stop(values, epochs)
  for run in range(20):
    alone, _ = _stop(values[:, [run]], epochs)
    assert alone.epoch == together.epoch[[run]]
    assert alone.criterion == together.criterion[[run]]


def test_ties_go_to_the_first_epoch_and_nan_to_none():
  nan, inf = np.nan, np.inf
  columns = [
    ([3, 1, 1, 1], 2),
    ([nan, 2, 2, 1], 4),
    ([2, nan, nan, 2], 1),
    ([nan, nan, nan, nan], 1),
    ([inf, inf, 5, 9], 3),
    ([nan, inf, 5, 9], 3),
  ]
  values = np.transpose([column for column, _ in columns])
  best, _ = _stop(values, [1, 2, 3, 4])
  np.testing.assert_array_equal(best.epoch, [epoch for _, epoch in columns])


@pytest.fixture(scope="module")
def held_out():
  random = np.random.default_rng(1)
  labels = random.integers(3, size=(2, 60))
  scores = 3 * np.eye(3)[labels] + 2.5 * random.normal(size=(2, 60, 3))
  keep = np.arange(60) < [[60], [45]]
  return HeldOutLogits(scores.astype(np.float32), labels, keep)


def test_refinement_is_the_nll_after_the_fitted_temperature(held_out):
  actual = _stopping.criterion("refinement", held_out)
  scores, labels, keep = held_out
  for run in range(2):
    rows = keep[run]
    z, y = scores[run][rows], labels[run][rows]
    ranked = np.sort(z, axis=1)
    middle = np.argsort(ranked[:, 2] - ranked[:, 1])[(len(z) - 1) // 2]
    params = calibration.fit_temperature(
      np.concatenate([z, z[middle][None]]), np.append(y, z[middle].argsort()[1])
    )
    assert 1.05 < params.temperature < 10
    expected = calibration.negative_log_likelihood(
      calibration.apply(params, z), y
    )
    np.testing.assert_allclose(actual[run], expected, rtol=1e-5)
  # Another scale of the scores makes no difference.
  double = held_out._replace(scores=2 * scores)
  again = _stopping.criterion("refinement", double)
  np.testing.assert_allclose(again, actual, rtol=1e-5)


def test_temperature_is_finite_if_all_rows_are_correct():
  """As if one row more were misclassified: a share of 1 / 21 here."""
  scores = np.full((1, 20, 2), [3.0, 0.0], np.float32)
  rows = HeldOutLogits(scores, np.zeros((1, 20), int), np.ones((1, 20), bool))
  temperature, scaled = _evaluation.recalibrate(rows, scores)
  np.testing.assert_allclose(temperature, 3 / np.log(20), rtol=1e-5)
  confidence = np.exp(scaled[0, 0, 0]) / np.exp(scaled[0, 0]).sum()
  np.testing.assert_allclose(confidence, 20 / 21, rtol=1e-5)


def test_other_criteria(held_out):
  scores, labels, keep = held_out
  right = np.mean(scores.argmax(-1) == labels, axis=1, where=keep)
  np.testing.assert_allclose(
    _stopping.criterion("accuracy", held_out), -right, rtol=1e-6
  )
  log_probs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
  nll = -np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]
  np.testing.assert_allclose(
    _stopping.criterion("nll", held_out),
    np.mean(nll, axis=1, where=keep),
    rtol=1e-5,
  )


def test_best_epoch_is_found_before_a_table_is_over_trained():
  """2000 rows with labels of which a fifth is random."""
  random = np.random.default_rng(0)
  x = random.normal(size=(2000, 20))
  y = (x[:, :4].sum(axis=1) + 2 * random.normal(size=2000) > 0).astype(np.int32)
  folds = _folds.fold(_data.Dataset("made", x, y, ("a", "b")), 1, 0)
  settings = Settings("made", seeds=2, epochs=(40,), max_epochs=60)
  result, _ = _train.train(settings, _loss_specs.parse("cross_entropy"), folds)
  stopped, fixed = result.epochs[:, 0]
  assert (stopped < 15).all()
  np.testing.assert_array_equal(fixed, [40, 40])
  # Over-trained after 40 epochs: on the test rows, which chose nothing.
  points = list(result.curve_epochs)
  nll = result.curves[:, 0, 1]
  at_stop = [nll[points.index(epoch), run] for run, epoch in enumerate(stopped)]
  assert (nll[points.index(40)] > np.asarray(at_stop) + 0.1).all()
  # The best epoch is that of the least criterion up to the end of the run.
  for run, epoch in enumerate(stopped):
    end = max(_stopping.FEWEST_STEPS / 7, 2 * epoch)
    until = [k for k, point in enumerate(points) if point <= end]
    assert result.criterion[until, 0, run].argmin() == points.index(epoch)
  # The training ends with the fixed length.
  assert points[-1] == 40
