# SPDX-License-Identifier: Apache-2.0
"""Data files that become features and labels, and files that cannot."""

import numpy as np
import pandas as pd
import pytest

from squentropy_study import StudyError, _data

TABLE = pd.DataFrame(
  {
    "size": [1.5, None, 3.0, np.inf, 5.0, 6.0],
    "colour": ["red", "blue", None, "red", "blue", "red"],
    "count": [1, 2, 3, 4, 5, 6],
    "key": [None] * 6,
    "kind": ["b", "a", "b", "a", "b", None],
  }
)


def _check(data):
  """The rows of ``TABLE``, the last of which has no label."""
  assert data.classes == ("a", "b")
  np.testing.assert_array_equal(data.labels, [1, 0, 1, 0, 1])
  nan = np.nan
  expected = [
    [1.5, nan, 3.0, nan, 5.0],
    [0, 1, 0, 1, 0],
    [0, 1, 0, 0, 1],
    [1, 0, 0, 1, 0],
    [1, 2, 3, 4, 5],
  ]
  np.testing.assert_array_equal(data.features.T, expected)
  said = " ".join(data.notes)
  assert "1 row without a label is dropped" in said
  assert "size (2)" in said
  assert "one-hot encoded: colour" in said
  assert "columns without a value are left out: key" in said


@pytest.mark.parametrize(
  "name", ["a.csv", "a.tsv", "a.csv.gz", "a.TSV.gz", "a.csv.zip", "a.tsv.zip"]
)
def test_csv_and_tsv(tmp_path, name):
  path = tmp_path / name
  separator = "\t" if ".tsv" in name.lower() else ","
  # pandas compresses by the ending.
  TABLE.to_csv(path, index=False, sep=separator)
  _check(_data.load_data(str(path), "kind"))


def test_parquet(tmp_path):
  path = tmp_path / "mine.parquet"
  TABLE.astype({"key": "float64"}).to_parquet(path)
  _check(_data.load_data(str(path), "kind"))


@pytest.mark.parametrize("ending", [".csv", ".CSV"])
def test_classes_may_have_the_names_of_gaps(tmp_path, ending):
  path = tmp_path / f"mine{ending}"
  names = ["None", "NA", " null", "nan", "None ", "", "?"]
  rows = [f"{k},{name}" for k, name in enumerate(names)]
  path.write_text("x,kind\n" + "\n".join(rows) + "\n")
  data = _data.load_data(str(path), "kind")
  assert data.classes == ("NA", "None", "nan", "null")
  np.testing.assert_array_equal(data.labels, [1, 0, 3, 2, 1])
  np.testing.assert_array_equal(data.features[:, 0], range(5))
  assert data.notes == ("2 rows without a label are dropped",)
  assert data.warnings == (
    "labels that may mean a missing label are classes: NA, None, nan, null; if "
    "a label is missing, leave its cell empty",
  )


def test_row_index_without_a_name_is_dropped(tmp_path):
  path = tmp_path / "mine.csv"
  # Sorted by class and then shuffled: the index still reveals the class.
  frame = pd.DataFrame({"x": [7, 8, 7, 8], "y": ["a", "a", "b", "b"]})
  for rows in ([0, 1, 2, 3], [2, 0, 3, 1]):
    frame.loc[rows].to_csv(path)
    data = _data.load_data(str(path), "y")
    np.testing.assert_array_equal(data.features[:, 0], frame["x"][rows])
    assert data.features.shape == (4, 1)
    assert "reveal the class in a sorted table" in data.notes[0]
    assert data.notes[0].endswith(": Unnamed: 0")
  # A column with repeated or fractional values is not a row index.
  for column in ("3,3,4,5", "0.5,1,2,3"):
    lines = [f"{v},{y}" for v, y in zip(column.split(","), "aabb", strict=True)]
    path.write_text("\n".join([",y", *lines]) + "\n")
    assert _data.load_data(str(path), "y").features.shape == (4, 1)


def test_label_column_may_have_any_name(tmp_path):
  path = tmp_path / "mine.csv"
  path.write_text("x,self\n1,a\n2,b\n")
  assert _data.load_data(str(path), "self").classes == ("a", "b")


def test_numbers_of_a_csv_are_classes_in_their_order(tmp_path):
  path = tmp_path / "mine.csv"
  path.write_text("x,y\n1,10\n2,9\n3,\n4,1e1\n")
  assert _data.load_data(str(path), "y").classes == ("9", "10", "1e1")
  path.write_text("x,y\n1,9007199254740992\n2,9007199254740993\n3,?\n")
  assert _data.load_data(str(path), "y").classes == (str(2**53), str(2**53 + 1))
  # Beyond 64 bits they would all be one float.
  path.write_text(f"x,y\n1,{2**64}\n2,{2**64 + 1}\n3,?\n")
  assert _data.load_data(str(path), "y").classes == (str(2**64), str(2**64 + 1))


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
  path = tmp_path / "mine.csv"
  path.write_text('\ufeff\ny,"a ""b"""\n\nc,"1"\n  \nd,2\n')
  data = _data.load_data(str(path), "y")
  np.testing.assert_array_equal(data.features, [[1], [2]])


@pytest.mark.parametrize(
  ("name", "content", "label", "message"),
  [
    ("a.csv", "y,a,b,y\n0,1,2,0\n1,2,3,1\n", "y", "two columns 'y'; rename"),
    ("a.csv", "y,a,y \n0,1,0\n1,2,1\n", "y", "two columns 'y'; rename"),
    ("a.csv", "x,y\n1,a\n2,b\n", None, "--label, one of x, y"),
    ("a.csv", "x,y\n1,a\n2,b\n", "z", "unknown column of .*'z'"),
    ("a.csv", "x,yes\n1,a\n2,b\n", "yess", "did you mean 'yes'"),
    ("a.csv", "x,y\n1,a\n2,a\n", "y", r"has one class \(a\)"),
    ("a.csv", "x,y\n1,\n2,\n", "y", "has no class"),
    ("a.csv", "x,y\n1,0.5\n2,1.5\n", "y", "got fractional numbers"),
    ("a.csv", "x,y\n,a\n,b\n", "y", "no usable column of features"),
    ("a.csv", "y\na\nb\n", "y", "no usable column of features"),
    ("a.csv", "x,y\n1,a\n2\n", "y", "line 3 has 1 value for 2 columns"),
    ("a.csv", "", "y", "a.csv has no rows"),
    ("a.parquet", "no", "y", "cannot be read as a .parquet file"),
  ],
)
def test_invalid_file_raises_one_line(tmp_path, name, content, label, message):
  path = tmp_path / name
  path.write_text(content)
  with pytest.raises(StudyError, match=message) as caught:
    _data.load_data(str(path), label)
  assert "\n" not in str(caught.value)
  assert str(path) in str(caught.value) or "column" in str(caught.value)


def test_text_is_not_read_piece_by_piece(tmp_path):
  path = tmp_path / "mine.csv"
  codes = [f"{k % 8 + 1:03d}" for k in range(20_000)] + ["A01"]
  for order in (1, -1):
    rows = [f"{code},{k % 2}" for k, code in enumerate(codes)][::order]
    path.write_text("code,y\n" + "\n".join(rows) + "\n")
    assert _data.load_data(str(path), "y").features.shape == (20_001, 9)
