# SPDX-License-Identifier: Apache-2.0
"""Metrics of held-out rows, before and after temperature scaling."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax import calibration

NUM_BINS = 15
# Bounds of the fitted temperature.
TEMPERATURES = (0.1, 1000.0)


class Metrics(NamedTuple):
  """Metrics of predicted probabilities.

  Attributes:
    accuracy: Share of rows whose most probable class is the label.
    nll: Mean negative log-likelihood.
    brier: Mean Brier score, summed over classes.
    ece: Expected calibration error with bins of equal width.
    ace: Expected calibration error with bins of equal mass.
    aurc: Area under the risk-coverage curve.
  """

  accuracy: jax.Array
  nll: jax.Array
  brier: jax.Array
  ece: jax.Array
  ace: jax.Array
  aurc: jax.Array


METRICS = Metrics._fields


class HeldOutLogits(NamedTuple):
  """Held-out rows of every run; the arrays have a leading axis of runs.

  Attributes:
    scores: ``[runs, rows, classes]``; their softmax is the prediction.
    labels: ``[runs, rows]``.
    keep: ``[runs, rows]``, False where an entry is padding.
  """

  scores: jax.Array | np.ndarray
  labels: jax.Array | np.ndarray
  keep: jax.Array | np.ndarray


class Evaluation(NamedTuple):
  """One method at one training length; arrays have a leading axis of runs.

  Attributes:
    before: Metrics of the test rows before temperature scaling.
    after: Metrics of the test rows after temperature scaling.
    temperature: Fitted on the validation rows alone; above 1 means that the
      classifier was over-confident there.
    bins: Reliability bins before temperature scaling, summed over runs.
    validation_nll: Of the validation rows after temperature scaling.
    validation_accuracy: Of the validation rows.
  """

  before: Metrics
  after: Metrics
  temperature: jax.Array
  bins: calibration.BinStats
  validation_nll: jax.Array
  validation_accuracy: jax.Array


@jax.jit
@jax.vmap
def accuracy(rows: HeldOutLogits) -> jax.Array:
  """Returns the share of rows whose top class is the label, for each run."""
  return calibration.accuracy(rows.scores, rows.labels, where=rows.keep)


@jax.jit
@jax.vmap
def nll(rows: HeldOutLogits) -> jax.Array:
  """Returns the mean negative log-likelihood of each run."""
  return calibration.negative_log_likelihood(
    rows.scores, rows.labels, where=rows.keep
  )


@jax.jit
@jax.vmap
def measure(rows: HeldOutLogits) -> tuple[Metrics, calibration.BinStats]:
  """Returns metrics and reliability bins of each run."""
  scores, labels, keep = rows
  probabilities = jax.nn.softmax(scores, axis=-1)
  on_rows = (probabilities, labels)
  bins = calibration.bin_stats(*on_rows, num_bins=NUM_BINS, where=keep)
  metrics = Metrics(
    calibration.accuracy(scores, labels, where=keep),
    calibration.negative_log_likelihood(scores, labels, where=keep),
    calibration.brier_score(*on_rows, where=keep),
    calibration.expected_calibration_error(bins),
    calibration.adaptive_calibration_error(
      *on_rows, num_bins=NUM_BINS, where=keep
    ),
    calibration.area_under_risk_coverage(*on_rows, where=keep),
  )
  return metrics, bins


def with_one_error(rows: HeldOutLogits) -> HeldOutLogits:
  """Adds a row that counts as misclassified to the rows of a run.

  Without it, the temperature is 0 if all rows are classified correctly, and
  test rows that are not would have an NLL without bound. The row has the
  scores of the row with the median margin, the difference between the two
  largest scores. Its label is the class of the second largest score.
  """
  (first, second), (_, runner_up) = (
    jnp.moveaxis(x, -1, 0) for x in jax.lax.top_k(rows.scores, 2)
  )
  margins = jnp.where(rows.keep, first - second, jnp.inf)
  middle = jnp.argsort(margins)[jnp.maximum(rows.keep.sum() - 1, 0) // 2]
  return HeldOutLogits(
    jnp.concatenate([rows.scores, rows.scores[middle][None]]),
    jnp.append(rows.labels, runner_up[middle].astype(rows.labels.dtype)),
    jnp.append(rows.keep, True),
  )


@jax.jit
@jax.vmap
def recalibrate(
  rows: HeldOutLogits, scores: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Fits a temperature per run; returns it and the scaled scores."""
  added = with_one_error(rows)
  params = calibration.fit_temperature(
    added.scores, added.labels, where=added.keep
  )
  beta = jnp.clip(
    params.inverse_temperature, 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
  )
  params = params._replace(inverse_temperature=beta)
  return params.temperature, calibration.apply(params, scores)


def evaluate(fit: HeldOutLogits, test: HeldOutLogits) -> Evaluation:
  """Computes the metrics before and after temperature scaling.

  Args:
    fit: The validation rows, which fit the temperature.
    test: The test rows, which are reported.

  Returns:
    The evaluation.
  """
  temperature, scaled = recalibrate(fit, test.scores)
  before, bins = measure(test)
  after, _ = measure(test._replace(scores=scaled))
  pooled = jax.tree.map(lambda sums: sums.sum(axis=0), bins)
  scaled_fit = fit._replace(scores=fit.scores / temperature[:, None, None])
  return Evaluation(
    before, after, temperature, pooled, nll(scaled_fit), accuracy(fit)
  )
