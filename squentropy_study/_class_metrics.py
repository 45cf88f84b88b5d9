# SPDX-License-Identifier: Apache-2.0
"""Metrics that weight classes, not rows: for tables with a rare class."""

import math
from typing import NamedTuple

import jax
import numpy as np

from squentropy_jax import calibration
from squentropy_study import _evaluation
from squentropy_study._test_rows import Predictions


class ClassMetrics(NamedTuple):
  """Metrics of one run over all classes.

  Attributes:
    balanced_accuracy: Mean recall over the classes.
    macro_f1: Mean over the classes of the harmonic mean of precision and
      recall.
    auroc: Area under the receiver operating characteristic of each class
      against the others, averaged over the classes.
    average_precision: Area under the precision-recall curve of the rarer of
      two classes; the mean over the classes of three and more.
  """

  balanced_accuracy: float
  macro_f1: float
  auroc: float
  average_precision: float


NAMES = ClassMetrics._fields


class PerClass(NamedTuple):
  """What is shown for each class, ``[classes]`` each, over all runs.

  Attributes:
    rows: Number of test rows.
    recall: Share of the rows of the class that are predicted as the class.
    precision: Share of the rows predicted as the class that are of it; NaN if
      there are none.
    probability: Mean predicted probability of the class, over all rows.
    share: Share of the rows that are of the class.
    ece: Expected calibration error of the probability of the class.
  """

  rows: np.ndarray
  recall: np.ndarray
  precision: np.ndarray
  probability: np.ndarray
  share: np.ndarray
  ece: np.ndarray


def confusion_matrix(predictions: Predictions) -> np.ndarray:
  """Counts labels and predicted classes, averaged over the seeds.

  Args:
    predictions: The predictions.

  Returns:
    ``[classes, classes]``: rows are labels, columns predicted classes.
  """
  seeds = predictions.log_probs.shape[1]
  return sum(
    _confusions(log_probs, labels).sum(axis=0)
    for log_probs, labels in predictions.folds()
  ) / np.float64(seeds)


def _confusions(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the confusion matrix of each run, ``[runs, classes, classes]``."""
  runs, _, classes = log_probs.shape
  cells = np.arange(runs)[:, None] * classes + labels
  cells = cells * classes + log_probs.argmax(axis=-1)
  counts = np.bincount(cells.ravel(), minlength=runs * classes**2)
  return counts.reshape(runs, classes, classes)


def positive_classes(class_counts: np.ndarray) -> np.ndarray:
  """Returns the classes whose average precision counts; all have rows."""
  if class_counts.size > 2:
    return np.flatnonzero(class_counts)
  rarer = np.array([0 if class_counts[0] < class_counts[1] else 1])
  return rarer[class_counts[rarer] > 0]


def average_precision(
  scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Computes the average precision under several weightings of the rows.

  Rows of equal scores share a threshold. Without a positive row the result is
  NaN.

  Args:
    scores: ``[rows]``, large for a positive.
    is_positive: ``[rows]``, booleans.
    weights: ``[weightings, rows]``, such as counts of a bootstrap.

  Returns:
    ``[weightings]``.
  """
  order = np.argsort(-scores, kind="stable")
  scores, weights = scores[order], weights[:, order]
  found = np.cumsum(weights * is_positive[order], axis=1)
  chosen = np.cumsum(weights, axis=1)
  is_last = scores[1:] != scores[:-1]
  last = np.append(np.flatnonzero(is_last), scores.size - 1)
  found, chosen = found[:, last], chosen[:, last]
  gained = np.diff(found, axis=1, prepend=0)
  precision = found / np.maximum(chosen, np.finfo(chosen.dtype).tiny)
  with np.errstate(invalid="ignore"):
    return (gained * precision).sum(axis=1) / found[:, -1]


def auroc(
  scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Computes the AUROC under several weightings of the rows.

  It is the probability that a positive row has the higher score, and ties
  count one half. It is NaN without a positive or without a negative row.

  Args:
    scores: ``[rows]``, large for a positive.
    is_positive: ``[rows]``, booleans.
    weights: ``[weightings, rows]``, such as counts of a bootstrap.

  Returns:
    ``[weightings]``.
  """
  order = np.argsort(scores, kind="stable")
  scores = scores[order]
  weights = weights[:, order].astype(np.float64)
  first = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
  # Sums over the rows of each score, from the lowest to the highest.
  positive = np.add.reduceat(weights * is_positive[order], first, axis=1)
  negative = np.add.reduceat(weights, first, axis=1) - positive
  below = np.cumsum(negative, axis=1) - negative / 2
  with np.errstate(invalid="ignore"):
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return (positive * below).sum(axis=1) / pairs


def _mean_auroc(log_probs: np.ndarray, labels: np.ndarray) -> float:
  """Returns the mean area over the classes; of two classes both are equal."""
  classes = log_probs.shape[-1]
  once = np.ones((1, labels.size))
  values = [
    auroc(log_probs[:, k], labels == k, once)[0]
    for k in range(classes if classes > 2 else 1)
  ]
  return _mean(np.array(values))


def _mean(values: np.ndarray) -> float:
  """Returns the mean over the classes that have a value; NaN without any."""
  defined = values[~np.isnan(values)]
  return float(defined.mean()) if defined.size else math.nan


def class_metrics(predictions: Predictions) -> list[ClassMetrics]:
  """Computes the metrics of each run.

  Args:
    predictions: The predictions.

  Returns:
    One item per run, fold by fold; NaN for a run that diverged.
  """
  positives = positive_classes(predictions.class_counts)
  result = []
  for runs, labels in predictions.folds():
    once = np.ones((1, labels.size))
    for log_probs, matrix in zip(runs, _confusions(runs, labels), strict=True):
      if np.isnan(log_probs).any():
        result.append(ClassMetrics(*[math.nan] * len(NAMES)))
        continue
      hit, actual = np.diag(matrix), matrix.sum(axis=1)
      with np.errstate(invalid="ignore"):
        recall = hit / actual
        f1 = 2 * hit / (actual + matrix.sum(axis=0))
      precisions = [
        average_precision(log_probs[:, k], labels == k, once)[0]
        for k in positives
        if actual[k]
      ]
      result.append(
        ClassMetrics(
          float(np.nanmean(recall)),
          float(np.nanmean(f1)),
          _mean_auroc(log_probs, labels),
          _mean(np.array(precisions)),
        )
      )
  return result


@jax.jit
def _classwise_ece(probabilities: jax.Array, is_class: jax.Array) -> jax.Array:
  """Returns the calibration error of each class, from ``[rows, classes]``."""

  def one_class(confidence: jax.Array, correct: jax.Array) -> jax.Array:
    bins = calibration.bin_stats_from_confidence(
      confidence, correct, num_bins=_evaluation.NUM_BINS
    )
    return calibration.expected_calibration_error(bins)

  return jax.vmap(one_class, in_axes=1)(probabilities, is_class)


def per_class(predictions: Predictions) -> PerClass:
  """Computes recall, precision and calibration of each class.

  Args:
    predictions: The predictions.

  Returns:
    The metrics; the calibration error is the mean over the runs.
  """
  matrix = confusion_matrix(predictions)
  seeds = predictions.log_probs.shape[1]
  hit, actual, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(0)
  probability = np.zeros(len(matrix))
  eces = []
  for runs, labels in predictions.folds():
    probabilities = np.minimum(np.exp(runs), 1).astype(np.float32)
    probability += probabilities.sum(axis=(0, 1)) / seeds
    is_class = labels[:, None] == np.arange(len(matrix))
    eces += [
      np.asarray(_classwise_ece(each, is_class)) for each in probabilities
    ]
  with np.errstate(invalid="ignore", divide="ignore"):
    return PerClass(
      actual.round().astype(int),
      hit / actual,
      hit / predicted,
      probability / actual.sum(),
      actual / actual.sum(),
      np.mean(eces, axis=0),
    )
