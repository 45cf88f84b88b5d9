# SPDX-License-Identifier: Apache-2.0
"""Dropped rows may hold anything: neither NaN checks nor leak checks fire."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.calibration_functions import NAMES, arguments, function

# These count or loop: they have no gradient in the scores.
NO_GRADIENT = {
  "bin_stats",
  "bin_stats_from_confidence",
  "brier_decomposition",
  "classwise_calibration_error",
  "fit_beta_calibration",
  "fit_ensemble_temperature",
  "fit_isotonic_regression",
  "fit_matrix_scaling",
  "fit_quadratic_scaling",
  "fit_spline_scaling",
  "fit_structured_matrix_scaling",
  "fit_structured_vector_scaling",
  "fit_temperature",
  "fit_vector_scaling",
  "mean_set_size",
  "roc_stats",
  "set_coverage",
}


@pytest.fixture(autouse=True, scope="module")
def _no_optimizations():
  # Programs this small take longer to optimise than to run.
  name = "jax_disable_most_optimizations"
  before = jax.config.read(name)
  jax.config.update(name, True)
  yield
  jax.config.update(name, before)


def _with_garbage(name):
  scores, labels, where = arguments(name)
  labels[~where] = -100
  if scores.dtype != bool:
    garbage = np.float32([np.nan, np.inf, -3e38])
    scores[~where] = garbage.reshape(3, *(1,) * (scores.ndim - 1))
  return scores, labels, where


def _sum(name):
  def summed(scores, labels, where):
    leaves = jax.tree.leaves(function(name)(scores, labels, where))
    return sum(jnp.sum(x) for x in leaves)

  return summed


@pytest.mark.parametrize("name", NAMES)
def test_no_nan_check_fires(name):
  f = function(name)
  scores, labels, where = _with_garbage(name)
  on_device = jnp.asarray(scores)
  with jax.debug_nans(True):
    eager = f(scores, labels, where)
    results = f(on_device, labels, where), jax.jit(f)(scores, labels, where)
  for x in jax.tree.leaves(eager):
    # The first threshold of a ROC curve is infinite.
    assert np.all(np.isfinite(x[1:] if name == "roc_curve" else x))
  for result in results:
    # Two programs may round differently.
    for x, y in zip(*map(jax.tree.leaves, (result, eager)), strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_GRADIENT])
def test_no_nan_check_fires_in_a_gradient(name):
  scores, labels, where = _with_garbage(name)
  on_device = jnp.asarray(scores)
  gradient = jax.grad(_sum(name))
  with jax.debug_nans(True):
    for f in (gradient, jax.jit(gradient)):
      got = f(on_device, labels, where)
      assert np.all(np.isfinite(got))
      np.testing.assert_array_equal(got[~where], 0)


@pytest.mark.parametrize("name", NAMES)
def test_no_leak_check_fires(name):
  # A leak shows in tracing: nothing needs to be compiled.
  inputs = _with_garbage(name)
  functions = [function(name)]
  if name not in NO_GRADIENT:
    functions.append(jax.grad(_sum(name)))
  with jax.checking_leaks():
    for f in functions:
      jax.eval_shape(f, *inputs)
