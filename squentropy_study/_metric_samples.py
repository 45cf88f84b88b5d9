# SPDX-License-Identifier: Apache-2.0
"""The metrics of a ranking, as samples whose errors can be computed."""

from collections.abc import Callable
import dataclasses

import numpy as np

from squentropy_study import (
  _class_metrics,
  _evaluation,
  _paired_errors,
  _test_rows,
)
from squentropy_study._paired_errors import Sample
from squentropy_study._test_rows import Predictions

# Metric values of ``[seeds, rows, classes]`` and labels, ``[seeds, rows]``.
_RowMetric = Callable[[np.ndarray, np.ndarray], np.ndarray]
# The same resamples for every method, so that methods are paired.
_SEED = 0


@dataclasses.dataclass(frozen=True)
class RankMetric:
  """A metric of a ranking.

  Attributes:
    name: Name, such as ``nll``.
    title: Title of a column.
    short: Name within a sentence.
    best: Adjective of the best value, such as ``lowest``.
    gain: 1 if larger is better, -1 if smaller is better.
    scale: What a value is multiplied by where it is shown.
    unit: What follows a shown difference, such as `` points``.
    is_tested: Whether it is among the tests of the headline.
    sample: Computes the sample from predictions.
  """

  name: str
  title: str
  short: str
  best: str
  gain: int
  scale: float
  unit: str
  is_tested: bool
  sample: Callable[[Predictions], Sample]


def _nll(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
  return -_test_rows.of_label(log_probs, labels)


def _row_mean(predictions: Predictions, metric: _RowMetric) -> Sample:
  """Returns the sample of a metric that is a mean over rows."""
  values = [metric(*fold) for fold in predictions.folds()]
  per_seed = np.mean([fold.mean(axis=1) for fold in values], axis=0)
  rows = np.concatenate([fold.mean(axis=0) for fold in values])
  return Sample(per_seed, (rows,), None, rows.size)


def nll(predictions: Predictions) -> Sample:
  """Returns the negative log-likelihood."""
  return _row_mean(predictions, _nll)


def accuracy(predictions: Predictions) -> Sample:
  """Returns the share of rows whose most probable class is the label."""
  return _row_mean(predictions, _test_rows.hits)._replace(is_share=True)


def balanced_accuracy(predictions: Predictions) -> Sample:
  """Returns the mean recall over the classes; each class is a stratum."""
  labels = np.concatenate([labels for _, labels in predictions.folds()])
  classes = np.unique(labels)
  recalls, rows = [], []
  for log_probs, of_fold in predictions.folds():
    hits = _test_rows.hits(log_probs, of_fold)
    present = [k for k in classes if (of_fold == k).any()]
    each = [hits[:, of_fold == k].mean(axis=1) for k in present]
    recalls.append(np.mean(each, axis=0))
    rows.append(hits.mean(axis=0))
  values = np.concatenate(rows)
  strata = tuple(values[labels == k] for k in classes)
  fewest = min(map(len, strata))
  return Sample(np.mean(recalls, axis=0), strata, None, fewest, is_share=True)


def ece(predictions: Predictions) -> Sample:
  """Returns the expected calibration error, with bootstrap resamples."""
  generator = np.random.default_rng(_SEED)
  seeds = predictions.log_probs.shape[1]
  rows = int(predictions.keep.sum())
  blocks = _paired_errors.resample_blocks(rows)
  per_seed, draws = [], []
  for log_probs, labels in predictions.folds():
    bins, excess = _test_rows.confidence_bins(log_probs, labels)
    # A column for each bin of each seed.
    columns = bins + _evaluation.NUM_BINS * np.arange(seeds)[:, None]
    sums = np.zeros((labels.size, _evaluation.NUM_BINS * seeds), np.float32)
    sums[np.arange(labels.size), columns] = excess

    def error(totals: np.ndarray, size: int = labels.size) -> np.ndarray:
      by_bin = totals.reshape(-1, seeds, _evaluation.NUM_BINS)
      return np.abs(by_bin).sum(axis=-1) / size

    per_seed.append(error(sums.sum(axis=0, dtype=np.float64))[0])
    errors = [
      error(_paired_errors.resamples(labels.size, size, generator) @ sums)
      for size in blocks
    ]
    draws.append(np.concatenate(errors).mean(axis=1))
  return Sample(np.mean(per_seed, axis=0), None, np.mean(draws, axis=0), rows)


# A metric of one class under several weightings of the rows: from scores,
# whether rows are of the class, and weights ``[weightings, rows]``.
_ClassMetric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _of_classes(predictions: Predictions, metric: _ClassMetric) -> Sample:
  """Returns the mean over the classes, with resamples in each class."""
  generator = np.random.default_rng(_SEED)
  counts = predictions.class_counts
  positives = _class_metrics.positive_classes(counts)
  blocks = _paired_errors.resample_blocks(int(counts.sum()) * positives.size)
  per_seed, draws = [], []
  for log_probs, labels in predictions.folds():
    # A grouped fold may have no test row of the rare class, or no other one.
    present = [k for k in positives if 0 < (labels == k).sum() < labels.size]
    if not present:
      continue
    here = np.array(present)

    def of_seeds(
      weights: np.ndarray,
      log_probs: np.ndarray = log_probs,
      labels: np.ndarray = labels,
      here: np.ndarray = here,
    ) -> np.ndarray:
      values = [
        [metric(run[:, k], labels == k, weights) for k in here]
        for run in log_probs
      ]
      return np.mean(values, axis=1)

    per_seed.append(of_seeds(np.ones((1, labels.size)))[:, 0])
    drawn = []
    for size in blocks:
      weights = np.empty((size, labels.size), np.float32)
      for k in np.unique(labels):
        rows = np.flatnonzero(labels == k)
        weights[:, rows] = _paired_errors.resamples(rows.size, size, generator)
      drawn.append(of_seeds(weights).mean(axis=0))
    draws.append(np.concatenate(drawn))
  return Sample(
    np.mean(per_seed, axis=0),
    None,
    np.mean(draws, axis=0),
    int(counts[positives].min()),
  )


def average_precision(predictions: Predictions) -> Sample:
  """Returns the average precision, with bootstrap resamples."""
  return _of_classes(predictions, _class_metrics.average_precision)


def auroc(predictions: Predictions) -> Sample:
  """Returns the AUROC, with bootstrap resamples."""
  return _of_classes(predictions, _class_metrics.auroc)


_NLL = RankMetric(
  "nll", "NLL after temperature", "NLL", "lowest", -1, 1.0, "", True, nll
)
_ECE = RankMetric(
  "ece", "ECE after temperature", "ECE", "lowest", -1, 1.0, "", False, ece
)
_ACCURACY = RankMetric(
  "accuracy",
  "Accuracy, %",
  "accuracy",
  "highest",
  1,
  100.0,
  " points",
  True,
  accuracy,
)
_BALANCED_ACCURACY = RankMetric(
  "balanced_accuracy",
  "Balanced accuracy, %",
  "balanced accuracy",
  "highest",
  1,
  100.0,
  " points",
  True,
  balanced_accuracy,
)
_AVERAGE_PRECISION = RankMetric(
  "average_precision",
  "Average precision",
  "average precision",
  "highest",
  1,
  1.0,
  "",
  True,
  average_precision,
)
_AUROC = RankMetric(
  "auroc", "AUROC", "AUROC", "highest", 1, 1.0, "", False, auroc
)
# A class with this share of the rows makes accuracy say little.
DOMINANT = 0.9
BALANCED = (_NLL, _ACCURACY, _ECE)
IMBALANCED = (_NLL, _BALANCED_ACCURACY, _AVERAGE_PRECISION, _AUROC, _ECE)


def chosen(class_counts: np.ndarray) -> tuple[RankMetric, ...]:
  """Returns the metrics of a table with this many rows of each class."""
  share = class_counts.max() / class_counts.sum()
  if share < DOMINANT:
    return BALANCED
  several = np.count_nonzero(class_counts) > 1
  if several and _class_metrics.positive_classes(class_counts).size:
    return IMBALANCED
  return tuple(x for x in IMBALANCED if x not in (_AVERAGE_PRECISION, _AUROC))
