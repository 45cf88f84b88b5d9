# SPDX-License-Identifier: Apache-2.0
"""Agreement with other libraries, whose values calibration_peers.py wrote."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.calibration_peers import (
  INTERCEPT,
  NUM_BINS,
  OFF_DIAGONAL,
  PENALTY,
  TABLE,
)

from squentropy_jax import calibration

with np.load(TABLE, allow_pickle=False) as table:
  PEERS = dict(table)
CASES = [
  key
  for key in PEERS
  if key.split("/")[0] not in ("inputs", "labels", "probabilities")
]


def _of_stats(f, **keywords):
  def metric(p, y, bins):
    return f(calibration.bin_stats(p, y, num_bins=bins), **keywords)

  return metric


def _binned(f):
  return lambda p, y, bins: f(p, y, num_bins=bins)


def _plain(f, **keywords):
  return lambda p, y, bins: f(p, y, **keywords)


def _by_trapezoids(p, y, bins):
  coverage, risk = calibration.risk_coverage_curve(p, y)
  area = jnp.sum((risk[1:] + risk[:-1]) / 2 * jnp.diff(coverage))
  return area / (1 - coverage[0])


def _isotonic(p, y, bins):
  # The map at its knots, in the order of the rows.
  params = calibration.fit_isotonic_regression(jnp.log(p), y)
  order = jnp.argsort(jnp.max(p, axis=-1))
  return jnp.zeros_like(params.accuracy).at[order].set(params.accuracy)


def _recalibrated(fit):
  def probabilities(z, y, bins):
    return jax.nn.softmax(calibration.apply(fit(z, y), z))

  return probabilities


METRICS = {
  "accuracy": _plain(calibration.accuracy),
  "adaptive": _binned(calibration.adaptive_calibration_error),
  "aurc_by_trapezoids": _by_trapezoids,
  "auroc": _plain(calibration.confidence_auroc),
  "brier": _plain(calibration.brier_score),
  "classwise": _binned(calibration.classwise_calibration_error),
  "ece": _of_stats(calibration.expected_calibration_error),
  "ece2": _of_stats(calibration.expected_calibration_error, norm=2),
  "isotonic": _isotonic,
  "mce": _of_stats(calibration.maximum_calibration_error),
  "mmce": lambda p, y, bins: calibration.mmce(jnp.log(p), y),
  "smooth": _plain(calibration.smooth_calibration_error),
  "top2": _plain(calibration.top_k_accuracy, k=2),
}
FITS = {
  "beta": functools.partial(calibration.fit_beta_calibration, penalty=0.0),
  "matrix": functools.partial(
    calibration.fit_matrix_scaling,
    off_diagonal_penalty=OFF_DIAGONAL,
    intercept_penalty=INTERCEPT,
  ),
  "temperature": calibration.fit_temperature,
  "vector": functools.partial(calibration.fit_vector_scaling, penalty=PENALTY),
}
RECALIBRATED = {name: _recalibrated(fit) for name, fit in FITS.items()}


@functools.cache
def _values(data, dtype):
  """Every value of this library for a data set, in one program."""
  names = {key.split("/")[1] for key in CASES if key.endswith(data)}
  p, z, y = (
    PEERS[f"{kind}/{data}"] for kind in ("probabilities", "inputs", "labels")
  )

  def every(p, z, y):
    values = {
      name: metric(p, y, NUM_BINS.get(data))
      for name, metric in METRICS.items()
      if name in names
    }
    return values | {
      name: f(z, y, None) for name, f in RECALIBRATED.items() if name in names
    }

  program = jax.jit(
    every, compiler_options={"xla_backend_optimization_level": 0}
  )
  return program(p.astype(dtype), z.astype(dtype), y)


def _check(key, dtype, atol):
  _, name, data = key.split("/")
  got = _values(data, dtype)[name]
  assert got.dtype == dtype
  np.testing.assert_allclose(got, PEERS[key], rtol=0, atol=atol)


def _tolerance(key, atol):
  # Both integrate on a grid, and the peer's search for the width stops at a
  # relative error of 1e-3.
  if key.startswith("relplot/smooth"):
    return 1e-3
  # These compute in float32 for any input.
  return max(atol, 3e-7) if key.startswith("torch") else atol


@pytest.mark.parametrize("key", CASES)
def test_agreement_in_float32(key):
  _check(key, np.float32, _tolerance(key, 2e-6))


@pytest.mark.x64
@pytest.mark.parametrize("key", CASES)
def test_agreement_in_float64(key):
  _check(key, np.float64, _tolerance(key, 1e-9))
