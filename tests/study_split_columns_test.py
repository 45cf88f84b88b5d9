# SPDX-License-Identifier: Apache-2.0
"""The columns of --time and --group, from a file to the folds."""

import numpy as np
import pandas as pd
import pytest

from squentropy_study import StudyError, load_data
from squentropy_study._data import digest, from_table
from squentropy_study._folds import fold
from squentropy_study._raw_table import RawTable

ROWS = 60


@pytest.fixture
def path(tmp_path):
  rng = np.random.default_rng(0)
  frame = pd.DataFrame(
    {
      "day": pd.date_range("2025-01-01", periods=ROWS).strftime("%Y-%m-%d"),
      "size": rng.normal(size=ROWS),
      "customer": rng.permutation(np.arange(ROWS) // 3),
      "paid": rng.permutation(np.arange(ROWS) % 2).astype(object),
    }
  )
  # A row without a label is dropped, and its time with it.
  frame.loc[7, "paid"] = ""
  path = tmp_path / "orders.csv"
  frame.sample(frac=1, random_state=1).to_csv(path, index=False)
  return path


def test_time_trains_on_the_past(path):
  dataset = load_data(str(path), "paid", time="day")
  times = dataset.times
  assert times.dtype.kind == "M"
  assert len(times) == len(dataset.labels) == ROWS - 1
  assert np.datetime64("2025-01-08") not in times
  folds = fold(dataset, 1, 0, times=times)
  train, validation, test = (
    times[rows]
    for rows in (folds.train, folds.validation.rows, folds.test.rows)
  )
  assert train.max() < validation.min()
  assert validation.max() < test.min()
  assert "from 2025-01-01" in folds.notes[0]
  later = dataset._replace(times=times + np.timedelta64(1, "D"))
  assert digest(dataset) != digest(later)


def test_no_group_is_in_two_parts(path):
  dataset = load_data(str(path), "paid", group="customer")
  folds = fold(dataset, 1, 0, groups=dataset.groups)
  parts = (folds.train[0], folds.validation.rows[0], folds.test.rows[0])
  train, validation, test = (set(dataset.groups[rows]) for rows in parts)
  assert not train & validation
  assert not train & test
  assert not validation & test


@pytest.mark.parametrize("options", [{"time": "day"}, {"group": "customer"}])
def test_the_column_is_no_feature(path, options):
  without = load_data(str(path), "paid", **options).features.shape[1]
  assert without < load_data(str(path), "paid").features.shape[1]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"time": "date"}, "unknown column of .* for --time 'date'"),
    ({"group": "paid"}, "--group paid: the column holds the labels"),
  ],
)
def test_column_that_is_not_there(path, options, message):
  with pytest.raises(StudyError, match=message):
    load_data(str(path), "paid", **options)


def test_times_that_are_no_times(path):
  path.write_text(path.read_text().replace("2025-01-05", "soon"))
  with pytest.raises(StudyError, match=r"'day' .* dates such as .* got 'soon'"):
    load_data(str(path), "paid", time="day")


def test_arrays_have_no_columns():
  with pytest.raises(StudyError, match="iris has no column for --time"):
    load_data("iris", time="day")


def test_groups_of_a_typed_frame_with_missing_values():
  frame = pd.DataFrame(
    {
      0: np.arange(12.0),
      1: pd.array([1, 1, None] * 4, dtype="Int64"),
      2: ["a", "b"] * 6,
    }
  )
  table = RawTable(frame, ".", (), False)
  dataset = from_table("made", table, "2", columns={"group": "1"})
  with pytest.raises(StudyError, match=r"4 of 12 rows have no value"):
    fold(dataset, 1, 0, groups=dataset.groups)


def test_labels_that_are_lists():
  frame = pd.DataFrame({"x": [1.0, 2.0], "y": [["a"], ["a", "b"]]})
  with pytest.raises(StudyError, match="holds lists"):
    from_table("made", RawTable(frame, ".", (), False), "y")
