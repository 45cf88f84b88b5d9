# SPDX-License-Identifier: Apache-2.0
"""Predictions for the test rows, and their metrics row by row."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import special

from squentropy_study import _evaluation


class Predictions(NamedTuple):
  """Predicted probabilities of the test rows.

  Attributes:
    log_probs: ``[folds, seeds, rows, classes]``, float64.
    labels: ``[folds, rows]``.
    keep: ``[folds, rows]``, False where an entry is padding.
  """

  log_probs: np.ndarray
  labels: np.ndarray
  keep: np.ndarray

  @property
  def class_counts(self) -> np.ndarray:
    """Number of test rows of each class, over all folds."""
    return np.bincount(
      self.labels[self.keep], minlength=self.log_probs.shape[-1]
    )

  def folds(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields ``[seeds, rows, classes]`` and labels of each fold, unpadded."""
    for log_probs, labels, keep in zip(*self, strict=True):
      yield log_probs[:, keep], labels[keep]


def of_scores(
  scores: np.ndarray, labels: np.ndarray, keep: np.ndarray, seeds: int
) -> Predictions:
  """Returns predictions from scores of runs that are numbered fold by fold.

  Args:
    scores: ``[runs, rows, classes]``; their softmax is the prediction.
    labels: ``[runs, rows]``.
    keep: ``[runs, rows]``, False where an entry is padding.
    seeds: Number of runs of each fold, which share its rows.

  Returns:
    The predictions.
  """
  # Scores of a training that diverged give NaN.
  with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
    log_probs = special.log_softmax(scores.astype(np.float64), axis=-1)
  return Predictions(
    log_probs.reshape(-1, seeds, *log_probs.shape[1:]),
    np.asarray(labels)[::seeds],
    np.asarray(keep, bool)[::seeds],
  )


def of_baseline(log_probs: np.ndarray, others: Predictions) -> Predictions:
  """Returns the predictions of a baseline for the rows of other predictions.

  Args:
    log_probs: ``[folds, rows, classes]``.
    others: Predictions for the same rows.

  Returns:
    The predictions, as of one seed.
  """
  return others._replace(log_probs=log_probs[:, None])


def hits(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns 1.0 where the most probable class is the label, else 0.0."""
  return (log_probs.argmax(axis=-1) == labels).astype(np.float64)


def of_label(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the log-probability of the label of each row."""
  labels = np.broadcast_to(labels, log_probs.shape[:-1])
  return np.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]


def confidence_bins(
  log_probs: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the bin of each row, and its hit minus its confidence.

  The bins are those of :func:`squentropy_jax.calibration.bin_stats`.
  """
  with np.errstate(invalid="ignore", over="ignore"):
    confidence = np.exp(log_probs.max(axis=-1)).astype(np.float32)
  edges = np.arange(1, _evaluation.NUM_BINS) / _evaluation.NUM_BINS
  bins = np.searchsorted(edges.astype(np.float32), confidence, side="right")
  return bins, hits(log_probs, labels) - confidence


def bin_stats(
  predictions: Predictions,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns rows, mean accuracy and mean confidence of each bin.

  Returns:
    ``[bins]`` each, over all folds; the rows are means over the seeds. Accuracy
    and confidence of an empty bin are NaN.
  """
  seeds = predictions.log_probs.shape[1]
  sums = np.zeros((3, _evaluation.NUM_BINS))
  for log_probs, labels in predictions.folds():
    bins, excess = confidence_bins(log_probs, labels)
    hit = hits(log_probs, labels)
    for total, weights in zip(
      sums, (np.ones_like(hit), hit, hit - excess), strict=True
    ):
      total += np.bincount(bins.ravel(), weights.ravel(), _evaluation.NUM_BINS)
  with np.errstate(invalid="ignore"):
    return sums[0] / seeds, sums[1] / sums[0], sums[2] / sums[0]
