# SPDX-License-Identifier: Apache-2.0
"""Agreement with probmetrics, where it is installed.

It needs torch, so no requirements list it. Its optimiser stops at about 1e-3 in
the probabilities; `calibration_optimum_test` has the tighter comparison.
"""

import functools

import numpy as np
import pytest
from support.calibration_recalibrators import apply, log_softmax

from squentropy_jax import calibration

peer = pytest.importorskip(
  "probmetrics.calibrators",
  reason="pip install probmetrics numba (they need torch)",
)
pytestmark = pytest.mark.filterwarnings("ignore")
SCALINGS = {
  "SVS": (peer.SVSCalibrator, calibration.fit_structured_vector_scaling, 4),
  "SMS": (peer.SMSCalibrator, calibration.fit_structured_matrix_scaling, 4),
  "ETS": (
    functools.partial(peer.ETSCalibrator, loss="ce"),
    calibration.fit_ensemble_temperature,
    4,
  ),
  "quadratic": (
    functools.partial(peer.BinaryLogisticCalibrator, "quadratic"),
    functools.partial(calibration.fit_quadratic_scaling, penalty=1e-6),
    2,
  ),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_probabilities_agree(name):
  theirs, fit, classes = SCALINGS[name]
  rng = np.random.default_rng(0)
  z = (rng.normal(size=(300, classes)) * 2).astype(np.float32)
  y = (z / 2 + 0.2 * np.arange(classes) + rng.gumbel(size=z.shape)).argmax(-1)
  p = np.exp(log_softmax(z))
  model = theirs()
  model.fit(p, y)
  got = np.exp(log_softmax(np.asarray(apply(fit(z, y), z))))
  np.testing.assert_allclose(got, model.predict_proba(p), atol=1e-3)
  # The bound can fail: recalibration changes more than that.
  assert np.abs(got - p).max() > 1e-2
