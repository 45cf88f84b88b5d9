# SPDX-License-Identifier: Apache-2.0
"""Numbers from held-out logits: one row per readout, regime and seed."""

from typing import NamedTuple

import jax
from jax.typing import ArrayLike

from squentropy_jax import calibration

NUM_BINS = 15


class Metrics(NamedTuple):
  """Accuracy, mean negative log-likelihood, expected calibration error."""

  accuracy: jax.Array
  nll: jax.Array
  ece: jax.Array


METRICS = Metrics._fields


class Evaluation(NamedTuple):
  """One loss, readout and regime; the arrays have a leading axis of seeds.

  Attributes:
    before: Metrics of the test rows as the classifier gives them.
    after: The same after temperature scaling.
    temperature: Fitted on the calibration rows alone; above 1 means the
      classifier was over-confident there.
    bins: Reliability bins before temperature scaling, summed over seeds.
  """

  before: Metrics
  after: Metrics
  temperature: jax.Array
  bins: calibration.BinStats


@jax.jit
def measure(
  scores: jax.Array, labels: ArrayLike
) -> tuple[Metrics, calibration.BinStats]:
  """Metrics and reliability bins of every seed.

  Args:
    scores: ``[seeds, rows, classes]``; their softmax is the forecast.
    labels: ``[rows]``.

  Returns:
    Metrics and bins, with a leading axis of seeds.
  """

  def one_seed(scores: jax.Array) -> tuple[Metrics, calibration.BinStats]:
    probabilities = jax.nn.softmax(scores, axis=-1)
    bins = calibration.bin_stats(probabilities, labels, num_bins=NUM_BINS)
    metrics = Metrics(
      calibration.accuracy(scores, labels),
      calibration.negative_log_likelihood(scores, labels),
      calibration.expected_calibration_error(bins),
    )
    return metrics, bins

  return jax.vmap(one_seed)(scores)


@jax.jit
def _recalibrate(
  fit_scores: jax.Array, fit_labels: ArrayLike, scores: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Fits a temperature per seed; returns them and the scaled scores."""

  def one_seed(
    fit_scores: jax.Array, scores: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    params = calibration.fit_temperature(fit_scores, fit_labels)
    return params.temperature, calibration.apply(params, scores)

  return jax.vmap(one_seed)(fit_scores, scores)


def evaluate(
  calibration_scores: jax.Array,
  calibration_labels: ArrayLike,
  test_scores: jax.Array,
  test_labels: ArrayLike,
) -> Evaluation:
  """Measures before and after temperature scaling, all seeds at once.

  Args:
    calibration_scores: ``[seeds, rows, classes]``, to fit the temperature.
    calibration_labels: ``[rows]``.
    test_scores: ``[seeds, rows, classes]``, to report on.
    test_labels: ``[rows]``.

  Returns:
    The evaluation.
  """
  temperature, scaled = _recalibrate(
    calibration_scores, calibration_labels, test_scores
  )
  before, bins = measure(test_scores, test_labels)
  after, _ = measure(scaled, test_labels)
  pooled = jax.tree.map(lambda sums: sums.sum(axis=0), bins)
  return Evaluation(before, after, temperature, pooled)
