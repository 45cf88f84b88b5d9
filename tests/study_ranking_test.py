# SPDX-License-Identifier: Apache-2.0
"""The ranking: its order, its reference, its errors; metrics of classes."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from support import predictions as made

from squentropy_study import (
  _class_metrics,
  _metric_samples,
  _paired_errors,
  _ranking,
  _test_rows,
)
from squentropy_study._baselines import Baseline


def test_order_is_that_of_the_nll_and_baselines_come_last():
  entries = made.entries(cross_entropy=1.0, squentropy=2.0, logit_norm=1.5)
  entries.append(made.baseline("Gradient-boosted trees", 3.0))
  ranking = _ranking.rank_entries(entries, None, "stopped")
  labels = [entry.label for entry in ranking.entries]
  assert labels == [
    "squentropy",
    "logit_norm",
    "cross_entropy",
    "Gradient-boosted trees",
  ]
  assert [e.is_baseline for e in ranking.entries] == [False] * 3 + [True]
  values = [entry.values["nll"].mean for entry in ranking.losses]
  assert values == sorted(values)
  assert ranking.best(ranking.metrics[0]).label == "squentropy"
  assert ranking.seeds == 3


@pytest.mark.parametrize(
  ("losses", "wanted", "expected"),
  [
    (("cross_entropy", "squentropy"), None, "cross_entropy"),
    (("logit_norm", "squentropy"), None, "squentropy"),
    (("cross_entropy", "squentropy"), "best", "squentropy"),
    (("cross_entropy", "logit_norm", "squentropy"), "logit_norm", "logit_norm"),
  ],
)
def test_reference(losses, wanted, expected):
  entries = [
    entry._replace(validation_nll=2.0 - k)
    for k, entry in enumerate(
      made.entries(**{loss: 1.0 + k for k, loss in enumerate(losses)})
    )
  ]
  ranking = _ranking.rank_entries(entries, wanted, "stopped")
  assert ranking.reference == expected
  assert not ranking.diverged_reference
  for entry in ranking.entries:
    assert (entry.differences == {}) == (entry.label == expected)


def test_validation_rows_choose_the_best_reference():
  entries = made.entries(logit_norm=1.0, squentropy=1.5)
  entries = [
    entry._replace(validation_nll=value)
    for entry, value in zip(entries, (0.4, 0.5), strict=True)
  ]
  ranking = _ranking.rank_entries(entries, "best", "stopped")
  assert ranking.losses[0].label == "squentropy"
  assert ranking.reference == "logit_norm"
  assert ranking.losses[0].significance(ranking.metrics[0]) == 1


def test_reference_that_diverged_is_replaced_and_named():
  entries = made.entries(cross_entropy=1.0, squentropy=1.2, logit_norm=1.0)
  entries = [
    entry._replace(validation_nll=float(k)) for k, entry in enumerate(entries)
  ]
  entries[0].predictions.log_probs[0, 0] = np.nan
  ranking = _ranking.rank_entries(entries, None, "stopped")
  assert ranking.diverged_reference == "cross_entropy"
  assert ranking.reference == "squentropy"


def test_map_of_the_reference_is_chosen_by_the_validation_rows():
  first, second, other = made.entries(own=1.0, softmax=1.3, squentropy=2.0)
  entries = [
    first._replace(loss="square", validation_nll=0.5),
    second._replace(loss="square", validation_nll=0.9),
    other,
  ]
  ranking = _ranking.rank_entries(entries, "square", "stopped")
  assert [e.label for e in ranking.losses] == ["squentropy", "softmax", "own"]
  assert ranking.reference == "own"
  # The other map of a loss replaces the one that diverged.
  first.predictions.log_probs[0, 0] = np.nan
  ranking = _ranking.rank_entries(entries, "square", "stopped")
  assert ranking.reference == "softmax"
  assert not ranking.diverged_reference


def test_differences_are_paired_by_row_and_corrected():
  entries = made.entries(cross_entropy=1.0, squentropy=1.3, logit_norm=1.1)
  ranking = _ranking.rank_entries(entries, None, "stopped")
  reference = ranking.losses[-1]
  assert reference.label == "cross_entropy"
  best = ranking.losses[0]
  found = best.differences["nll"]
  assert found.mean == pytest.approx(
    best.values["nll"].mean - reference.values["nll"].mean
  )
  unpaired = math.hypot(
    best.values["nll"].rows_error, reference.values["nll"].rows_error
  )
  assert found.rows_error < 0.6 * unpaired
  # Two losses in two metrics; ECE is not tested.
  assert ranking.num_tests == 4
  assert set(best.adjusted) == {"nll", "accuracy"}
  assert best.adjusted["nll"] >= found.p_value
  assert best.significance(ranking.metrics[0]) == 1


def test_diverged_losses_are_not_ranked():
  entries = made.entries(cross_entropy=1.0, squentropy=2.0, logit_norm=1.5)
  entries[1].predictions.log_probs[0, 1, 0] = np.nan
  ranking = _ranking.rank_entries(entries, None, "stopped")
  assert [e.label for e in ranking.losses] == ["logit_norm", "cross_entropy"]
  assert [e.label for e in ranking.diverged] == ["squentropy"]
  assert ranking.entries[-1].label == "squentropy"
  entries[0].predictions.log_probs[...] = np.nan
  ranking = _ranking.rank_entries(entries, None, "stopped")
  assert ranking.reference == "logit_norm"


@pytest.mark.parametrize("shares", [made.SHARES, (0.96, 0.04)])
def test_baselines_are_paired_with_losses_of_any_number_of_seeds(
  shares, monkeypatch
):
  # The work of the bootstrap, which grows with the seeds, is bounded.
  monkeypatch.setattr(_paired_errors, "_MOST_WORK", 300 * made.ROWS * 3)
  entries = made.entries(shares, cross_entropy=0.5, squentropy=1.0)
  entries.append(made.baseline("trees", 1.2, shares))
  ranking = _ranking.rank_entries(entries, None, "stopped")
  (trees,) = ranking.baselines
  for metric in ranking.metrics:
    value = trees.values[metric.name]
    assert math.isnan(value.seeds_error)
    assert value.rows_error > 0
    over = trees.over_best[metric.name]
    best = ranking.best(metric).values[metric.name]
    assert over.mean == pytest.approx(value.mean - best.mean)
  assert all(entry.over_best == {} for entry in ranking.losses)
  for entry in entries[:2]:
    entry.predictions.log_probs[...] = np.nan
  ranking = _ranking.rank_entries(entries, None, "stopped")
  assert [x.label for x in ranking.baselines] == ["trees"]
  assert ranking.baselines[0].over_best == {}


def test_imbalanced_table_is_not_ranked_by_accuracy():
  shares = (0.96, 0.04)
  entries = made.entries(shares, cross_entropy=1.0, squentropy=2.0)
  ranking = _ranking.rank_entries(entries, None, "stopped")
  names = [metric.name for metric in ranking.metrics]
  assert names == [
    "nll",
    "balanced_accuracy",
    "average_precision",
    "auroc",
    "ece",
  ]
  assert ranking.num_tests == 3


def test_class_without_a_test_row():
  """A split by time or group may leave a class out of the test rows."""
  entries = made.entries((1.0, 0.0), cross_entropy=1.0, squentropy=2.0)
  ranking = _ranking.rank_entries(entries, None, "stopped")
  names = [metric.name for metric in ranking.metrics]
  assert names == ["nll", "balanced_accuracy", "ece"]
  entries = made.entries((0.95, 0.05, 0.0), cross_entropy=1.0, squentropy=2.0)
  ranking = _ranking.rank_entries(entries, None, "stopped")
  difference = ranking.losses[0].differences["average_precision"]
  assert 0 < difference.rows_error < 0.5
  (metrics, *_) = _class_metrics.class_metrics(entries[0].predictions)
  assert np.isfinite(metrics).all()


def test_fold_without_the_rare_class():
  rows = made.predictions(1.0, (0.95, 0.05), folds=2)
  expected = _metric_samples.average_precision(rows)
  labels = rows.labels.copy()
  labels[1] = 0
  found = _metric_samples.average_precision(rows._replace(labels=labels))
  assert np.isfinite(found.mean)
  assert 0 < found.mean < 1
  assert expected.per_seed.shape == found.per_seed.shape


def test_fold_of_one_class_has_no_auroc():
  predictions = made.predictions(1.0, (0.92, 0.04, 0.04), folds=2)
  labels = predictions.labels.copy()
  labels[1] = 0
  entry = made.entries(cross_entropy=1.0)[0]
  entry = entry._replace(predictions=predictions._replace(labels=labels))
  ranking = _ranking.rank_entries([entry], None, "stopped")
  value = ranking.losses[0].values["auroc"]
  alone = _metric_samples.auroc(
    predictions._replace(
      log_probs=predictions.log_probs[:1],
      labels=labels[:1],
      keep=predictions.keep[:1],
    )
  )
  assert value.mean == pytest.approx(alone.mean)
  only = entry.predictions._replace(labels=0 * labels)
  ranking = _ranking.rank_entries(
    [entry._replace(predictions=only)], None, "stopped"
  )
  assert "auroc" not in [metric.name for metric in ranking.metrics]


def test_padding_is_left_out():
  plain = made.entries(cross_entropy=1.0, squentropy=2.0)
  padded = [
    entry._replace(
      predictions=_test_rows.Predictions(
        np.pad(
          entry.predictions.log_probs,
          ((0, 0), (0, 0), (0, 5), (0, 0)),
          constant_values=np.nan,
        ),
        np.pad(entry.predictions.labels, ((0, 0), (0, 5))),
        np.pad(entry.predictions.keep, ((0, 0), (0, 5))),
      )
    )
    for entry in plain
  ]
  one, other = (
    _ranking.rank_entries(entries, None, "stopped").losses[0].values
    for entries in (plain, padded)
  )
  assert one == other


@pytest.mark.parametrize("shares", [(0.9, 0.1), (0.5, 0.3, 0.2)])
def test_class_metrics_are_those_of_scikit_learn(shares):
  predictions = made.predictions(1.0, shares, folds=2, seeds=2)
  found = _class_metrics.class_metrics(predictions)
  assert len(found) == 4
  runs = [
    (run, labels)
    for log_probs, labels in predictions.folds()
    for run in log_probs
  ]
  for metrics, (run, labels) in zip(found, runs, strict=True):
    hard = run.argmax(axis=-1)
    probabilities = np.exp(run)
    assert metrics.balanced_accuracy == pytest.approx(
      sklearn_metrics.balanced_accuracy_score(labels, hard)
    )
    assert metrics.macro_f1 == pytest.approx(
      sklearn_metrics.f1_score(labels, hard, average="macro")
    )
    if len(shares) == 2:
      area = sklearn_metrics.roc_auc_score(labels, probabilities[:, 1])
    else:
      area = sklearn_metrics.roc_auc_score(
        labels, probabilities, multi_class="ovr"
      )
    assert metrics.auroc == pytest.approx(area, rel=1e-5)
    precision = [
      sklearn_metrics.average_precision_score(labels == k, probabilities[:, k])
      for k in range(len(shares))
    ]
    expected = precision[1] if len(shares) == 2 else np.mean(precision)
    assert metrics.average_precision == pytest.approx(expected)


@pytest.mark.parametrize(
  ("name", "peer"),
  [
    ("average_precision", sklearn_metrics.average_precision_score),
    ("auroc", sklearn_metrics.roc_auc_score),
  ],
)
def test_ties_and_weights_count_as_in_scikit_learn(name, peer):
  generator = np.random.default_rng(0)
  scores = generator.integers(0, 5, 60) / 5
  positive = generator.random(60) < 0.3
  weights = generator.integers(0, 3, (4, 60)).astype(np.float64)
  found = getattr(_class_metrics, name)(scores, positive, weights)
  expected = [peer(positive, scores, sample_weight=w) for w in weights]
  np.testing.assert_allclose(found, expected)


def test_samples_agree_with_the_metrics_of_classes():
  predictions = made.predictions(1.0, (0.9, 0.1), folds=2, seeds=2)
  metrics = np.array(_class_metrics.class_metrics(predictions))
  per_seed = metrics.reshape(2, 2, -1).mean(axis=0)
  sample = _metric_samples.balanced_accuracy(predictions)
  np.testing.assert_allclose(sample.per_seed, per_seed[:, 0])
  assert len(sample.strata) == 2
  for column, name in ((2, "auroc"), (3, "average_precision")):
    sample = getattr(_metric_samples, name)(predictions)
    np.testing.assert_allclose(sample.per_seed, per_seed[:, column], rtol=1e-6)


def test_metrics_drawn_in_blocks_are_the_same(monkeypatch):
  predictions = made.predictions(1.0, (0.9, 0.1))
  whole = _metric_samples.ece(predictions)
  rows = int(predictions.keep.sum())
  monkeypatch.setattr(_paired_errors, "_MOST_COUNTS", 300 * rows)
  assert _paired_errors.resample_blocks(rows) == [300, 300, 300, 100]
  blocks = _metric_samples.ece(predictions)
  np.testing.assert_allclose(blocks.draws, whole.draws, rtol=1e-5)
  assert _metric_samples.auroc(predictions).draws.shape == (1000,)


def test_accuracy_of_all_rows_has_an_error():
  """The rows of a small table do not show that a model is never wrong."""
  predictions = made.predictions(50.0, rows=38)
  found = _paired_errors.estimate(_metric_samples.accuracy(predictions))
  assert found.mean == 1
  assert found.rows_error == pytest.approx(np.sqrt(1 / 39 / 40))


def test_per_class():
  predictions = made.predictions(1.0, (0.6, 0.3, 0.1), folds=2, seeds=2)
  found = _class_metrics.per_class(predictions)
  matrix = _class_metrics.confusion_matrix(predictions)
  assert matrix.sum() == pytest.approx(predictions.keep.sum())
  np.testing.assert_array_equal(found.rows, predictions.class_counts)
  np.testing.assert_allclose(found.share, [0.6, 0.3, 0.1], atol=1e-6)
  np.testing.assert_allclose(found.recall, np.diag(matrix) / matrix.sum(axis=1))
  assert found.probability.sum() == pytest.approx(1, abs=1e-5)
  assert ((found.ece >= 0) & (found.ece <= 1)).all()


def test_baseline_that_is_certain_and_wrong_pays_for_it_as_a_loss_does():
  rows = made.predictions(1.0)
  scores = np.zeros((*rows.labels.shape, 3), np.float32)
  scores[..., 0] = 2000
  baseline = Baseline(scores, np.array([2.0]))
  found = _test_rows.of_baseline(baseline.scaled_log_probs, rows)
  wrong = (rows.labels != 0).mean()
  assert _metric_samples.nll(found).mean == pytest.approx(1000 * wrong)


def test_bins_are_those_of_the_library():
  import jax.numpy as jnp

  from squentropy_jax import calibration

  predictions = made.predictions(1.0, folds=1, seeds=1)
  ((log_probs, labels),) = predictions.folds()
  bins = calibration.bin_stats(
    jnp.asarray(np.exp(log_probs[0]), jnp.float32), labels, num_bins=15
  )
  rows, accuracy, confidence = _test_rows.bin_stats(predictions)
  np.testing.assert_allclose(rows, bins.counts)
  full = rows > 0
  np.testing.assert_allclose(accuracy[full], bins.accuracy[full], rtol=1e-5)
  np.testing.assert_allclose(confidence[full], bins.confidence[full], rtol=1e-5)
  error = calibration.expected_calibration_error(bins)
  sample = _metric_samples.ece(predictions)
  assert sample.mean == pytest.approx(float(error), rel=1e-4)
