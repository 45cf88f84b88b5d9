# SPDX-License-Identifier: Apache-2.0
"""Calibration: metrics, recalibrators, conformal sets, regularizers, plots."""

from squentropy_jax.calibration import plots as plots
from squentropy_jax.calibration._conformal_scores import (
  aps_score as aps_score,
)
from squentropy_jax.calibration._conformal_scores import (
  lac_score as lac_score,
)
from squentropy_jax.calibration._conformal_sets import (
  ConformalThreshold as ConformalThreshold,
)
from squentropy_jax.calibration._conformal_sets import (
  fit_conformal as fit_conformal,
)
from squentropy_jax.calibration._conformal_sets import (
  mean_set_size as mean_set_size,
)
from squentropy_jax.calibration._conformal_sets import (
  prediction_set as prediction_set,
)
from squentropy_jax.calibration._conformal_sets import (
  set_coverage as set_coverage,
)
from squentropy_jax.calibration._metrics_adaptive import (
  adaptive_calibration_error as adaptive_calibration_error,
)
from squentropy_jax.calibration._metrics_bin_stats import (
  BinStats as BinStats,
)
from squentropy_jax.calibration._metrics_bin_stats import (
  bin_stats as bin_stats,
)
from squentropy_jax.calibration._metrics_bin_stats import (
  bin_stats_from_confidence as bin_stats_from_confidence,
)
from squentropy_jax.calibration._metrics_bin_stats import (
  merge as merge,
)
from squentropy_jax.calibration._metrics_binned_errors import (
  debiased_calibration_error as debiased_calibration_error,
)
from squentropy_jax.calibration._metrics_binned_errors import (
  expected_calibration_error as expected_calibration_error,
)
from squentropy_jax.calibration._metrics_binned_errors import (
  maximum_calibration_error as maximum_calibration_error,
)
from squentropy_jax.calibration._metrics_brier_decomposition import (
  BrierDecomposition as BrierDecomposition,
)
from squentropy_jax.calibration._metrics_brier_decomposition import (
  brier_decomposition as brier_decomposition,
)
from squentropy_jax.calibration._metrics_classwise import (
  classwise_calibration_error as classwise_calibration_error,
)
from squentropy_jax.calibration._metrics_refinement import (
  RefinementDecomposition as RefinementDecomposition,
)
from squentropy_jax.calibration._metrics_refinement import (
  brier_refinement as brier_refinement,
)
from squentropy_jax.calibration._metrics_refinement import (
  nll_refinement as nll_refinement,
)
from squentropy_jax.calibration._metrics_roc import (
  RocCurve as RocCurve,
)
from squentropy_jax.calibration._metrics_roc import (
  auroc as auroc,
)
from squentropy_jax.calibration._metrics_roc import (
  average_precision as average_precision,
)
from squentropy_jax.calibration._metrics_roc import (
  roc_curve as roc_curve,
)
from squentropy_jax.calibration._metrics_roc_stats import (
  RocStats as RocStats,
)
from squentropy_jax.calibration._metrics_roc_stats import (
  binned_auroc as binned_auroc,
)
from squentropy_jax.calibration._metrics_roc_stats import (
  binned_average_precision as binned_average_precision,
)
from squentropy_jax.calibration._metrics_roc_stats import (
  binned_roc_curve as binned_roc_curve,
)
from squentropy_jax.calibration._metrics_roc_stats import (
  roc_stats as roc_stats,
)
from squentropy_jax.calibration._metrics_scores import (
  accuracy as accuracy,
)
from squentropy_jax.calibration._metrics_scores import (
  brier_score as brier_score,
)
from squentropy_jax.calibration._metrics_scores import (
  negative_log_likelihood as negative_log_likelihood,
)
from squentropy_jax.calibration._metrics_scores import (
  top_k_accuracy as top_k_accuracy,
)
from squentropy_jax.calibration._metrics_selective import (
  RiskCoverage as RiskCoverage,
)
from squentropy_jax.calibration._metrics_selective import (
  area_under_risk_coverage as area_under_risk_coverage,
)
from squentropy_jax.calibration._metrics_selective import (
  confidence_auroc as confidence_auroc,
)
from squentropy_jax.calibration._metrics_selective import (
  excess_area_under_risk_coverage as excess_area_under_risk_coverage,
)
from squentropy_jax.calibration._metrics_selective import (
  risk_coverage_curve as risk_coverage_curve,
)
from squentropy_jax.calibration._metrics_smooth import (
  smooth_calibration_error as smooth_calibration_error,
)
from squentropy_jax.calibration._recalibrators_apply import (
  apply as apply,
)
from squentropy_jax.calibration._recalibrators_beta import (
  BetaCalibration as BetaCalibration,
)
from squentropy_jax.calibration._recalibrators_beta import (
  fit_beta_calibration as fit_beta_calibration,
)
from squentropy_jax.calibration._recalibrators_binary import (
  QuadraticScaling as QuadraticScaling,
)
from squentropy_jax.calibration._recalibrators_binary import (
  SplineScaling as SplineScaling,
)
from squentropy_jax.calibration._recalibrators_binary import (
  fit_quadratic_scaling as fit_quadratic_scaling,
)
from squentropy_jax.calibration._recalibrators_binary import (
  fit_spline_scaling as fit_spline_scaling,
)
from squentropy_jax.calibration._recalibrators_ensemble import (
  EnsembleTemperatureScaling as EnsembleTemperatureScaling,
)
from squentropy_jax.calibration._recalibrators_ensemble import (
  fit_ensemble_temperature as fit_ensemble_temperature,
)
from squentropy_jax.calibration._recalibrators_linear import (
  MatrixScaling as MatrixScaling,
)
from squentropy_jax.calibration._recalibrators_linear import (
  VectorScaling as VectorScaling,
)
from squentropy_jax.calibration._recalibrators_linear import (
  fit_matrix_scaling as fit_matrix_scaling,
)
from squentropy_jax.calibration._recalibrators_linear import (
  fit_vector_scaling as fit_vector_scaling,
)
from squentropy_jax.calibration._recalibrators_structured import (
  StructuredMatrixScaling as StructuredMatrixScaling,
)
from squentropy_jax.calibration._recalibrators_structured import (
  StructuredVectorScaling as StructuredVectorScaling,
)
from squentropy_jax.calibration._recalibrators_structured import (
  fit_structured_matrix_scaling as fit_structured_matrix_scaling,
)
from squentropy_jax.calibration._recalibrators_structured import (
  fit_structured_vector_scaling as fit_structured_vector_scaling,
)
from squentropy_jax.calibration._recalibrators_temperature import (
  TemperatureScaling as TemperatureScaling,
)
from squentropy_jax.calibration._recalibrators_temperature import (
  fit_temperature as fit_temperature,
)
from squentropy_jax.calibration._recalibrators_top_label import (
  HistogramBinning as HistogramBinning,
)
from squentropy_jax.calibration._recalibrators_top_label import (
  IsotonicRegression as IsotonicRegression,
)
from squentropy_jax.calibration._recalibrators_top_label import (
  fit_histogram_binning as fit_histogram_binning,
)
from squentropy_jax.calibration._recalibrators_top_label import (
  fit_isotonic_regression as fit_isotonic_regression,
)
from squentropy_jax.calibration._regularizers import (
  avuc as avuc,
)
from squentropy_jax.calibration._regularizers import (
  correctness_aware as correctness_aware,
)
from squentropy_jax.calibration._regularizers import (
  mmce as mmce,
)
from squentropy_jax.calibration._regularizers import (
  soft_binned_ece as soft_binned_ece,
)
