# SPDX-License-Identifier: Apache-2.0
"""Standardises features in two steps: all rows robustly, then each fold."""

import warnings

import numpy as np

# Larger features, in quartile distances, would overflow float32.
_LARGEST = 1e30


def robust(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns median and inverse quartile distance of the last axis.

  This is the first of two steps. One huge value, perhaps of a test row, must
  not make all others equal in float32, as a mean and a deviation would.
  """
  axes = tuple(range(features.ndim - 1))
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    low, middle, high = np.nanpercentile(features, (25, 50, 75), axis=axes)
    # Where half of the values are equal, such as those of a rare category.
    distance = np.where(high > low, high - low, np.nanstd(features, axis=axes))
  usable = np.isfinite(distance) & (distance > 0)
  return np.nan_to_num(middle), 1 / np.where(usable, distance, 1)


def scaled(
  features: np.ndarray, middle: np.ndarray, inverse: np.ndarray
) -> np.ndarray:
  """Applies the first step of the standardisation; returns float32."""
  values = (features.astype(np.float64) - middle) * inverse
  return np.clip(values, -_LARGEST, _LARGEST).astype(np.float32)


def standardization(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns shift and scale of the last axis, ignoring missing values.

  The scale of an empty or constant column is 0: the column is not informative
  in these rows, and another value in a test row must not move its logits.
  """
  axes = tuple(range(features.ndim - 1))
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    mean = np.nan_to_num(np.nanmean(features, axis=axes))
    deviation = np.nanstd(features, axis=axes)
    # The computed deviation of a constant may differ from 0.
    varies = np.nanmax(features, axis=axes) > np.nanmin(features, axis=axes)
  return mean, np.where(varies, 1 / np.where(varies, deviation, 1), 0)
