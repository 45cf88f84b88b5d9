# SPDX-License-Identifier: Apache-2.0
"""Numbers from held-out logits: one row per readout, regime and seed."""

from typing import NamedTuple

import jax

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
    bins_before: Reliability bins, summed over seeds.
    bins_after: The same after temperature scaling.
  """

  before: Metrics
  after: Metrics
  temperature: jax.Array
  bins_before: calibration.BinStats
  bins_after: calibration.BinStats


def _measure(
  scores: jax.Array, labels: jax.Array
) -> tuple[Metrics, calibration.BinStats]:
  """Metrics and bins of one seed; the softmax of scores is the forecast."""
  probabilities = jax.nn.softmax(scores, axis=-1)
  bins = calibration.bin_stats(probabilities, labels, num_bins=NUM_BINS)
  metrics = Metrics(
    calibration.accuracy(scores, labels),
    calibration.negative_log_likelihood(scores, labels),
    calibration.expected_calibration_error(bins),
  )
  return metrics, bins


@jax.jit
def measure(scores: jax.Array, labels: jax.Array) -> Metrics:
  """Metrics of ``scores [seeds, rows, classes]``, one per seed."""
  return jax.vmap(_measure, in_axes=(0, None))(scores, labels)[0]


@jax.jit
def evaluate(
  calibration_scores: jax.Array,
  calibration_labels: jax.Array,
  test_scores: jax.Array,
  test_labels: jax.Array,
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

  def one_seed(fit_scores: jax.Array, scores: jax.Array) -> tuple:
    params = calibration.fit_temperature(fit_scores, calibration_labels)
    before = _measure(scores, test_labels)
    after = _measure(calibration.apply(params, scores), test_labels)
    return before, after, params.temperature

  (before, bins_before), (after, bins_after), temperature = jax.vmap(one_seed)(
    calibration_scores, test_scores
  )

  def pooled(bins: calibration.BinStats) -> calibration.BinStats:
    return jax.tree.map(lambda sums: sums.sum(axis=0), bins)

  return Evaluation(
    before, after, temperature, pooled(bins_before), pooled(bins_after)
  )
