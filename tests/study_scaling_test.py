# SPDX-License-Identifier: Apache-2.0
"""Features of the training rows do not depend on single values elsewhere."""

import numpy as np
import pytest

from squentropy_study import _data, _folds, _scaling


@pytest.mark.parametrize("huge", [1e9, 1e30, -1e300])
def test_a_huge_value_of_a_test_row_deletes_no_feature(huge):
  rng = np.random.default_rng(0)
  features = rng.uniform(size=(400, 2))
  features[:, 1] = rng.uniform(size=400) < 0.1  # Its quartiles are equal.
  labels = (features[:, 0] > 0.5).astype(np.int32)
  dataset = _data.Dataset("made", features, labels, ("a", "b"))
  expected = _folds.fold(dataset, 1, 0)
  row = expected.test.rows[0, 0]
  features = features.copy()
  features[row] = huge
  found = _folds.fold(dataset._replace(features=features), 1, 0)

  def standardized(folds):
    rows = folds.features[folds.train[0]]
    return (rows - folds.shift[0]) * folds.scale[0]

  np.testing.assert_array_equal(found.train, expected.train)
  np.testing.assert_allclose(
    standardized(found), standardized(expected), rtol=1e-4, atol=1e-4
  )
  assert np.isfinite(found.features).all()


def test_scaling_ignores_missing_values_and_empty_columns():
  features = np.array([[1.0, np.nan], [2.0, np.nan], [np.nan, np.nan]])
  middle, inverse = _scaling.robust(features)
  np.testing.assert_array_equal(middle, [1.5, 0.0])
  np.testing.assert_array_equal(inverse, [2.0, 1.0])
