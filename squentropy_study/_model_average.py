# SPDX-License-Identifier: Apache-2.0
"""The stopped models of one loss as one classifier: their mean prediction."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import special

from squentropy_study import _evaluation, _metric_samples, _paired_errors
from squentropy_study._evaluation import HeldOutLogits
from squentropy_study._metric_samples import RankMetric
from squentropy_study._paired_errors import Difference
from squentropy_study._result_rows import Method
from squentropy_study._results import Results
from squentropy_study._settings import STOPPED
from squentropy_study._study_error import StudyError, unknown_name
from squentropy_study._test_rows import Predictions


class ModelAverage(NamedTuple):
  """The temperatures with which the models of one method are averaged.

  The mean of calibrated predictions is under-confident. So the mean over the
  seeds of a fold has a temperature of its own, which is fitted on the
  validation rows of the fold.

  Attributes:
    method: The loss and its probability map.
    of_models: ``[folds, seeds]``, the temperature of each model.
    of_folds: ``[folds]``, the temperature of the mean over the seeds.
  """

  method: Method
  of_models: np.ndarray
  of_folds: np.ndarray


def best_method(results: Results, loss: str | None) -> Method:
  """Returns the method with the lowest validation NLL.

  Args:
    results: The numbers.
    loss: Restricts the choice to the probability maps of a loss.

  Returns:
    The method.

  Raises:
    StudyError: The loss is not trained, or no validation NLL is finite.
  """
  if loss is not None and loss not in results.settings.losses:
    raise unknown_name("loss of the study", loss, results.settings.losses)
  values = {
    method: float(np.mean(results.evaluations[method, STOPPED].validation_nll))
    for method in results.methods
    if loss in (None, method.loss)
  }
  finite = {m: value for m, value in values.items() if np.isfinite(value)}
  if not finite:
    raise StudyError(
      "the training diverged with "
      + ("every loss" if loss is None else f"{loss}; name another loss")
    )
  return min(finite, key=lambda method: finite[method])


def _mean_over_seeds(scores: np.ndarray, temperature: np.ndarray) -> np.ndarray:
  """Returns log-probabilities ``[folds, rows, classes]`` from each model's."""
  scaled = scores.astype(np.float64) / temperature[..., None, None]
  log_probs = special.log_softmax(scaled, axis=-1)
  return special.logsumexp(log_probs, axis=1) - np.log(temperature.shape[1])


def fit(results: Results, method: Method) -> ModelAverage:
  """Fits the temperature of the mean over the seeds of each fold."""
  settings, result = results.settings, results.run_results[method.loss]
  shape = (settings.folds, settings.seeds)
  temperature = results.evaluations[method, STOPPED].temperature
  of_models = np.reshape(np.asarray(temperature, np.float64), shape)
  scores = results.validation_scores(method, STOPPED)
  mean = _mean_over_seeds(
    scores.reshape(*shape, *scores.shape[1:]), of_models
  ).astype(np.float32)
  # The seeds of a fold share its rows.
  each = slice(None, None, settings.seeds)
  rows = HeldOutLogits(
    mean, result.validation_labels[each], result.validation_keep[each]
  )
  of_folds, _ = _evaluation.recalibrate(rows, mean)
  return ModelAverage(method, of_models, np.asarray(of_folds, np.float64))


def of_folds(average: ModelAverage, scores: np.ndarray) -> np.ndarray:
  """Returns the log-probabilities that each fold predicts.

  Args:
    average: The temperatures.
    scores: ``[runs, rows, classes]``; their softmax is the prediction of a
      model.

  Returns:
    ``[folds, rows, classes]``, float64.
  """
  shape = average.of_models.shape
  mean = _mean_over_seeds(
    scores.reshape(*shape, *scores.shape[1:]), average.of_models
  )
  scaled = mean / average.of_folds[:, None, None]
  return special.log_softmax(scaled, axis=-1)


def of_all(average: ModelAverage, scores: np.ndarray) -> np.ndarray:
  """Returns the log-probabilities of the mean over the folds.

  Args:
    average: The temperatures.
    scores: ``[runs, rows, classes]``.

  Returns:
    ``[rows, classes]``, float64.
  """
  log_probs = of_folds(average, scores)
  return special.logsumexp(log_probs, axis=0) - np.log(len(log_probs))


def measure(
  results: Results, average: ModelAverage
) -> Mapping[RankMetric, Difference]:
  """Returns the metrics of the test rows, each predicted by its fold."""
  of_models = results.test_predictions(average.method, STOPPED)
  log_probs = of_folds(average, results.test_scores(average.method, STOPPED))
  predictions = Predictions(
    log_probs[:, None], of_models.labels, of_models.keep
  )
  metrics = _metric_samples.chosen(of_models.class_counts)
  return {
    metric: _paired_errors.estimate(metric.sample(predictions))
    for metric in metrics
  }
