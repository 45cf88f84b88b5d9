# SPDX-License-Identifier: Apache-2.0
"""Numbers from held-out logits: one row per readout, length and run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax import calibration

NUM_BINS = 15
# What fitted temperatures are held to.
TEMPERATURES = (0.1, 10.0)


class Metrics(NamedTuple):
  """What is measured of forecasts.

  Attributes:
    accuracy: Share of rows whose likeliest class is the label.
    nll: Mean negative log-likelihood.
    brier: Mean Brier score, summed over classes.
    ece: Expected calibration error, bins of equal width.
    ace: The same with bins of equal mass.
    aurc: Area under the risk-coverage curve.
  """

  accuracy: jax.Array
  nll: jax.Array
  brier: jax.Array
  ece: jax.Array
  ace: jax.Array
  aurc: jax.Array


METRICS = Metrics._fields


class HeldOut(NamedTuple):
  """Held-out rows of every run; the arrays have a leading axis of runs.

  Attributes:
    scores: ``[runs, rows, classes]``; their softmax is the forecast.
    labels: ``[runs, rows]``.
    keep: ``[runs, rows]``, False where a place holds no row.
  """

  scores: jax.Array | np.ndarray
  labels: jax.Array | np.ndarray
  keep: jax.Array | np.ndarray


class Evaluation(NamedTuple):
  """One loss, readout and length; the arrays have a leading axis of runs.

  Attributes:
    before: Metrics of the test rows as the classifier gives them.
    after: The same after temperature scaling.
    temperature: Fitted on the calibration rows alone; above 1 means the
      classifier was over-confident there.
    bins: Reliability bins before temperature scaling, summed over runs.
  """

  before: Metrics
  after: Metrics
  temperature: jax.Array
  bins: calibration.BinStats


@jax.jit
@jax.vmap
def accuracy(scores: jax.Array, labels: jax.Array) -> jax.Array:
  """Share of rows whose likeliest class is the label, of every run."""
  return calibration.accuracy(scores, labels)


@jax.jit
@jax.vmap
def measure(rows: HeldOut) -> tuple[Metrics, calibration.BinStats]:
  """Metrics and reliability bins of every run."""
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


@jax.jit
@jax.vmap
def _recalibrate(
  rows: HeldOut, scores: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Fits a temperature per run; returns them and the scaled scores."""
  params = calibration.fit_temperature(
    rows.scores, rows.labels, where=rows.keep
  )
  # Few rows, all of them right, would ask for endless confidence.
  beta = jnp.clip(
    params.inverse_temperature, 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
  )
  params = params._replace(inverse_temperature=beta)
  return params.temperature, calibration.apply(params, scores)


def evaluate(fit: HeldOut, test: HeldOut) -> Evaluation:
  """Measures before and after temperature scaling, all runs at once.

  Args:
    fit: Rows to fit the temperature on.
    test: Rows to report on.

  Returns:
    The evaluation.
  """
  temperature, scaled = _recalibrate(fit, test.scores)
  before, bins = measure(test)
  after, _ = measure(test._replace(scores=scaled))
  pooled = jax.tree.map(lambda sums: sums.sum(axis=0), bins)
  return Evaluation(before, after, temperature, pooled)
