# SPDX-License-Identifier: Apache-2.0
"""Calibration: metrics that add up, recalibrators, and pictures."""

from squentropy_jax.calibration import plots as plots
from squentropy_jax.calibration._adaptive import (
  adaptive_calibration_error as adaptive_calibration_error,
)
from squentropy_jax.calibration._bins import BinStats as BinStats
from squentropy_jax.calibration._bins import bin_stats as bin_stats
from squentropy_jax.calibration._bins import merge as merge
from squentropy_jax.calibration._brier import (
  BrierDecomposition as BrierDecomposition,
)
from squentropy_jax.calibration._brier import (
  brier_decomposition as brier_decomposition,
)
from squentropy_jax.calibration._classwise import (
  classwise_calibration_error as classwise_calibration_error,
)
from squentropy_jax.calibration._errors import (
  debiased_calibration_error as debiased_calibration_error,
)
from squentropy_jax.calibration._errors import (
  expected_calibration_error as expected_calibration_error,
)
from squentropy_jax.calibration._errors import (
  maximum_calibration_error as maximum_calibration_error,
)
from squentropy_jax.calibration._scores import accuracy as accuracy
from squentropy_jax.calibration._scores import brier_score as brier_score
from squentropy_jax.calibration._scores import (
  negative_log_likelihood as negative_log_likelihood,
)
from squentropy_jax.calibration._scores import top_k_accuracy as top_k_accuracy
from squentropy_jax.calibration._selective import RiskCoverage as RiskCoverage
from squentropy_jax.calibration._selective import (
  area_under_risk_coverage as area_under_risk_coverage,
)
from squentropy_jax.calibration._selective import (
  confidence_auroc as confidence_auroc,
)
from squentropy_jax.calibration._selective import (
  excess_area_under_risk_coverage as excess_area_under_risk_coverage,
)
from squentropy_jax.calibration._selective import (
  risk_coverage_curve as risk_coverage_curve,
)
from squentropy_jax.calibration._smooth import (
  smooth_calibration_error as smooth_calibration_error,
)
from squentropy_jax.calibration._temperature import (
  TemperatureScaling as TemperatureScaling,
)
from squentropy_jax.calibration._temperature import apply as apply
from squentropy_jax.calibration._temperature import (
  fit_temperature as fit_temperature,
)
