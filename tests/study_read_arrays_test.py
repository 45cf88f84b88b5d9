# SPDX-License-Identifier: Apache-2.0
"""NPZ files."""

import numpy as np
import pytest

from squentropy_study import StudyError, _data


def test_npz(tmp_path):
  path = tmp_path / "mine.npz"
  x = np.arange(12.0).reshape(3, 2, 2, 1)
  np.savez(path, x=x, y=np.array(["dog", "cat", "dog"]))
  data = _data.load_data(str(path))
  np.testing.assert_array_equal(data.features, x)
  np.testing.assert_array_equal(data.labels, [1, 0, 1])
  assert data.classes == ("cat", "dog")


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"x": np.zeros((2, 1))}, r"no array 'y'; its arrays are x\. Expected"),
    (
      {f"part{k}": np.zeros(2) for k in range(9)},
      r"no array 'x'; its arrays are part0, .*part7, \.\.\..*save it",
    ),
    ({"x": np.zeros((2, 1)), "y": np.zeros(3)}, r"shapes \(2, 1\) and \(3,\)"),
    ({"x": np.zeros(2), "y": np.zeros(2)}, r"shapes \(2,\) and \(2,\)"),
    (
      {"x": np.array([["a"], ["b"]]), "y": np.arange(2)},
      "x must be an array of numbers, got",
    ),
    ({"x": np.full((2, 1), np.nan), "y": np.arange(2)}, "no finite value"),
    ({"x": np.zeros((2, 1)), "y": np.zeros(2)}, "one class"),
    (
      {"x": np.array([[{}], [{}]]), "y": np.arange(2)},
      r"array x holds Pyth.*x\.as",
    ),
    (
      {"x": np.zeros((2, 1)), "y": np.array(["a", None])},
      r"array y holds Python objects.*y=y\.astype\(str\)",
    ),
    ({"x": np.zeros((2, 1)), "y": np.array([1j, 2j])}, "complex numbers"),
    ({"x": np.zeros((2, 1)), "y": np.zeros(2, "V3")}, "got raw bytes"),
  ],
)
def test_invalid_npz_raises_one_line(tmp_path, arrays, message):
  path = tmp_path / "mine.npz"
  np.savez(path, **arrays)
  with pytest.raises(StudyError, match=message):
    _data.load_data(str(path))


def test_notes_of_an_npz(tmp_path):
  path = tmp_path / "mine.npz"
  x = np.arange(8.0).reshape(4, 2)
  x[0, 0], x[1, 1], x[3] = np.nan, np.inf, np.nan
  np.savez(path, x=x, y=np.array([1, 0, 1, np.nan]))
  data = _data.load_data(str(path))
  assert data.notes == (
    "1 row without a label is dropped",
    "2 missing or infinite values are replaced by the mean of the training "
    "rows",
  )
  with path.open("wb") as file:
    np.save(file, x)
  with pytest.raises(StudyError, match="one array without a name"):
    _data.load_data(str(path))


def test_large_labels_stay_distinct(tmp_path):
  path = tmp_path / "mine.npz"
  y = np.array([1e300, 1e299, 3.0, -1.0])
  np.savez(path, x=np.zeros((4, 1)), y=y)
  data = _data.load_data(str(path))
  np.testing.assert_array_equal(data.labels, [3, 2, 1, 0])
  assert data.classes == ("-1", "3", "1e+299", "1e+300")
