# SPDX-License-Identifier: Apache-2.0
"""Calibration: metrics that add up, recalibrators, and pictures."""

from squentropy_jax.calibration import plots as plots
from squentropy_jax.calibration._adaptive import (
  adaptive_calibration_error as adaptive_calibration_error,
)
from squentropy_jax.calibration._apply import apply as apply
from squentropy_jax.calibration._beta import BetaCalibration as BetaCalibration
from squentropy_jax.calibration._beta import (
  fit_beta_calibration as fit_beta_calibration,
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
from squentropy_jax.calibration._conformal import (
  ConformalThreshold as ConformalThreshold,
)
from squentropy_jax.calibration._conformal import aps_score as aps_score
from squentropy_jax.calibration._conformal import fit_conformal as fit_conformal
from squentropy_jax.calibration._conformal import lac_score as lac_score
from squentropy_jax.calibration._conformal import mean_set_size as mean_set_size
from squentropy_jax.calibration._conformal import (
  prediction_set as prediction_set,
)
from squentropy_jax.calibration._conformal import set_coverage as set_coverage
from squentropy_jax.calibration._errors import (
  debiased_calibration_error as debiased_calibration_error,
)
from squentropy_jax.calibration._errors import (
  expected_calibration_error as expected_calibration_error,
)
from squentropy_jax.calibration._errors import (
  maximum_calibration_error as maximum_calibration_error,
)
from squentropy_jax.calibration._linear import MatrixScaling as MatrixScaling
from squentropy_jax.calibration._linear import VectorScaling as VectorScaling
from squentropy_jax.calibration._linear import (
  fit_matrix_scaling as fit_matrix_scaling,
)
from squentropy_jax.calibration._linear import (
  fit_vector_scaling as fit_vector_scaling,
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
from squentropy_jax.calibration._temperature import (
  fit_temperature as fit_temperature,
)
from squentropy_jax.calibration._terms import avuc as avuc
from squentropy_jax.calibration._terms import (
  correctness_aware as correctness_aware,
)
from squentropy_jax.calibration._terms import mmce as mmce
from squentropy_jax.calibration._terms import soft_binned_ece as soft_binned_ece
from squentropy_jax.calibration._top_label import (
  HistogramBinning as HistogramBinning,
)
from squentropy_jax.calibration._top_label import (
  IsotonicRegression as IsotonicRegression,
)
from squentropy_jax.calibration._top_label import (
  fit_histogram_binning as fit_histogram_binning,
)
from squentropy_jax.calibration._top_label import (
  fit_isotonic_regression as fit_isotonic_regression,
)
