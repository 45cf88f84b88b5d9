# SPDX-License-Identifier: Apache-2.0
"""Every recalibrator, data for it, and fits that are compiled once."""

import functools

import jax
import numpy as np
import pytest

from squentropy_jax import calibration

FITS = {
  "temperature": calibration.fit_temperature,
  "ensemble": calibration.fit_ensemble_temperature,
  "vector": calibration.fit_vector_scaling,
  "matrix": calibration.fit_matrix_scaling,
  "structured_vector": calibration.fit_structured_vector_scaling,
  "structured_matrix": calibration.fit_structured_matrix_scaling,
  "beta": calibration.fit_beta_calibration,
  "quadratic": calibration.fit_quadratic_scaling,
  "spline": functools.partial(calibration.fit_spline_scaling, num_knots=5),
  "histogram": functools.partial(calibration.fit_histogram_binning, num_bins=5),
  "isotonic": calibration.fit_isotonic_regression,
}

# These take two classes.
BINARY = ("beta", "quadratic", "spline")
EVERY = pytest.mark.parametrize("name", FITS)


# Programs this small take longer to optimise than to run.
FAST = {"xla_backend_optimization_level": 0}


apply = jax.jit(calibration.apply, compiler_options=FAST)


@functools.cache
def compiled(name):
  return jax.jit(FITS[name], compiler_options=FAST)


def rows(c, n=40):
  """Underconfident logits, and labels drawn from their true distribution."""
  rng = np.random.default_rng(3)
  z = rng.normal(size=(n, c)) * 2
  y = (z + rng.gumbel(size=z.shape)).argmax(-1)
  return (z * 0.4 + 0.3 * np.arange(c)).astype(np.float32), y.astype(np.int32)


def data(name):
  return rows(2 if name in BINARY else 4)


def fit(name, z, y):
  """Fits among dropped rows that hold NaN and invalid labels."""
  n, drop = len(z), 60 - len(z)
  place = np.random.default_rng(1).permutation(60)
  z = np.concatenate([z, np.full((drop, z.shape[-1]), np.nan, z.dtype)])
  y = np.concatenate([y, np.full(drop, -100, y.dtype)])
  return compiled(name)(z[place], y[place], where=(np.arange(60) < n)[place])


@functools.cache
def fitted(name):
  return fit(name, *data(name))


def log_softmax(z):
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def mean_nll(z, y):
  return -log_softmax(z)[np.arange(len(y)), y].mean()
