# SPDX-License-Identifier: Apache-2.0
"""Sums over classes and bins: many rows, few classes, both algorithms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import calibration
from squentropy_jax.calibration import _metrics_classwise


def test_accelerators_sum_classes_as_the_cpu_does():
  rng = np.random.default_rng(7)
  p = rng.dirichlet(np.ones(4), 257).astype(np.float32)
  p[:40] = rng.integers(0, 8, (40, 4)) / 7  # On the edges of the bins.
  p[7] = np.nan
  keep = np.arange(len(p)) % 3 > 0
  keep[7] = False
  sums = [
    jax.jit(functools.partial(f, num_bins=7))(p, keep)
    for f in (
      _metrics_classwise._compared_sums,
      _metrics_classwise._scattered_sums,
    )
  ]
  for a, b in zip(*sums, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-5)
  np.testing.assert_array_equal(sums[0][0], sums[1][0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_accelerators_sum_classes_without_a_copy(dtype):
  p = jax.ShapeDtypeStruct((3000, 2000), dtype)
  keep = jax.ShapeDtypeStruct((3000,), bool)
  sums = jax.jit(
    functools.partial(_metrics_classwise._compared_sums, num_bins=15)
  )
  memory = sums.lower(p, keep).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 0.05 * p.size * p.dtype.itemsize


@pytest.mark.parametrize("num_classes", [2, 10, 600])
def test_equal_rows_in_any_number_have_no_spread(num_classes):
  n = 200_000 if num_classes < 600 else 3000
  p = np.full((n, num_classes), 0.1 / (num_classes - 1), np.float32)
  p[:, 0] = 0.9
  y = np.zeros(n, np.int32)
  y[: n // 8] = 1
  frequency = np.bincount(y, minlength=num_classes) / n
  gap = frequency - p[0].astype(np.float64)
  # A block sums 256 numbers, each with a rounding error of half of 2^-24.
  rounding = 256 * 2.0**-25
  error = calibration.classwise_calibration_error(p, y)
  np.testing.assert_allclose(error, np.abs(gap).mean(), atol=rounding)
  parts = calibration.brier_decomposition(p, y)
  want = calibration.BrierDecomposition(
    reliability=np.square(gap).sum(),
    resolution=0,
    uncertainty=np.sum(frequency * (1 - frequency)),
    within_bin_variance=0,
    within_bin_covariance=0,
  )
  for name, value, exact in zip(want._fields, parts, want, strict=True):
    np.testing.assert_allclose(value, exact, atol=2 * rounding, err_msg=name)
  np.testing.assert_allclose(
    parts.score, calibration.brier_score(p, y), atol=4 * rounding
  )
