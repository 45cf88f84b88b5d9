# SPDX-License-Identifier: Apache-2.0
"""The loss after recalibration and what recalibration removes."""

import jax
import numpy as np
import pytest
import scipy.optimize
from support import contract
from support.calibration_recalibrators import log_softmax, mean_nll, rows

from squentropy_jax import calibration


@contract.jit
def both(z, y, where=None, params=None):
  return (
    calibration.nll_refinement(z, y, params=params, where=where),
    calibration.brier_refinement(z, y, params=params, where=where),
  )


def _brier(z, y):
  p = np.exp(log_softmax(np.asarray(z, np.float64)))
  return np.square(p - np.eye(z.shape[-1])[y]).sum(-1).mean()


def test_the_terms_are_the_losses_before_and_after_a_temperature():
  z, y = rows(4)
  z = 4 * z
  nll, brier = both(z, y)
  least = scipy.optimize.minimize_scalar(
    lambda beta: mean_nll(beta * z.astype(np.float64), y), bounds=(0, 5)
  )
  for parts, score in ((nll, mean_nll), (brier, _brier)):
    np.testing.assert_allclose(parts.loss, score(z, y), rtol=1e-6)
    want = score(least.x * z, y)
    np.testing.assert_allclose(parts.refinement, want, rtol=1e-4)
    np.testing.assert_array_equal(
      parts.calibration, parts.loss - parts.refinement
    )
    share = parts.calibration / parts.loss
    np.testing.assert_allclose(parts.post_hoc_improvement, share, rtol=1e-6)
    assert share > 0.05
  np.testing.assert_allclose(nll.refinement, least.fun, rtol=1e-6)


def test_params_come_from_other_rows():
  z, y = rows(4, 80)
  params = calibration.fit_vector_scaling(z[40:], y[40:])
  nll, brier = both(z[:40], y[:40], None, params)
  new = np.asarray(calibration.apply(params, z[:40]))
  np.testing.assert_allclose(nll.refinement, mean_nll(new, y[:40]), rtol=1e-6)
  np.testing.assert_allclose(brier.refinement, _brier(new, y[:40]), rtol=1e-6)
  # A recalibrator that does harm shows as a negative calibration error.
  worse = calibration.TemperatureScaling(np.float32(-1))
  assert calibration.nll_refinement(z, y, params=worse).calibration < 0


def test_dropped_and_invalid_rows():
  z, y = rows(4)
  keep = np.arange(40) % 3 > 0
  want = both(z[keep], y[keep])
  z[~keep], y[~keep] = np.nan, -7
  got = both(z, y, keep)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    got,
    want,
  )
  leaves = jax.tree.leaves(both(z, y))
  assert all(np.isnan(x) for x in leaves)
  with pytest.raises(ValueError, match=r"labels\[0\] = -7"):
    calibration.nll_refinement(z, y)


def test_a_loss_of_zero_has_no_share():
  zero = np.float32(0)
  parts = calibration.RefinementDecomposition(zero, zero, zero)
  assert np.isnan(parts.post_hoc_improvement)
