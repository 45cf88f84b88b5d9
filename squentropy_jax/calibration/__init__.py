# SPDX-License-Identifier: Apache-2.0
"""Calibration: metrics that add up, recalibrators, and pictures."""

from squentropy_jax.calibration import plots
from squentropy_jax.calibration._bins import (
  BinStats,
  bin_stats,
  expected_calibration_error,
  merge,
)
from squentropy_jax.calibration._scores import accuracy, negative_log_likelihood
from squentropy_jax.calibration._temperature import (
  TemperatureScaling,
  apply,
  fit_temperature,
)

__all__ = [
  "BinStats",
  "TemperatureScaling",
  "accuracy",
  "apply",
  "bin_stats",
  "expected_calibration_error",
  "fit_temperature",
  "merge",
  "negative_log_likelihood",
  "plots",
]
