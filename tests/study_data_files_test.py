# SPDX-License-Identifier: Apache-2.0
"""CSV, TSV, Parquet and NPZ files, and files that cannot be read."""

import zipfile

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


@pytest.mark.parametrize("files", [0, 2])
def test_archive_must_hold_one_file(tmp_path, files):
  path = tmp_path / "a.csv.zip"
  with zipfile.ZipFile(path, "w") as archive:
    for number in range(files):
      archive.writestr(f"{number}.csv", "x,y\n1,a\n2,b\n")
  with pytest.raises(StudyError, match=f"one file in the archive, got {files}"):
    _data.load_data(str(path), "y")


def test_parquet(tmp_path):
  path = tmp_path / "mine.parquet"
  TABLE.astype({"key": "float64"}).to_parquet(path)
  _check(_data.load_data(str(path), "kind"))


def test_npz(tmp_path):
  path = tmp_path / "mine.npz"
  x = np.arange(12.0).reshape(3, 2, 2, 1)
  np.savez(path, x=x, y=np.array(["dog", "cat", "dog"]))
  data = _data.load_data(str(path))
  np.testing.assert_array_equal(data.features, x)
  np.testing.assert_array_equal(data.labels, [1, 0, 1])
  assert data.classes == ("cat", "dog")


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
    "these labels are counted as classes; leave the label empty where it is "
    "missing: NA, None, nan, null",
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
    ("a.csv", "x,y\n1,a\n2,b,3\n", "y", "line 3 has 3 values for 2 columns"),
    ("a.csv", "x,y\n1,a,5\n2,b,3\n", "y", "line 2 has 3 values for 2"),
    ("a.csv", "x,y\n1,a\n2\n", "y", "line 3 has 1 values for 2 columns"),
    ("a.csv", "x;y\n1;a\n2;b\n", "y", "separated by ',', got ';'"),
    ("a.csv", "x;y\n1,5;a\n2,5;b\n", "y", "separated by ',', got ';'"),
    ("a.tsv", "x,y\n1,a\n2,b\n", "y", r"separated by '\\t', got ','"),
    ("a.csv", "x,y\n1,a\n2,b\n", None, "--label, one of x, y"),
    ("a.csv", "x,y\n1,a\n2,b\n", "z", "unknown column of .*'z'"),
    ("a.csv", "x,yes\n1,a\n2,b\n", "yess", "did you mean 'yes'"),
    ("a.csv", "x,y\n1,a\n2,a\n", "y", r"has one class \(a\)"),
    ("a.csv", "x,y\n1,\n2,\n", "y", "has no class"),
    ("a.csv", "x,y\n1,0.5\n2,1.5\n", "y", "got fractional numbers"),
    ("a.csv", "x,y\n,a\n,b\n", "y", "no usable column of features"),
    ("a.csv", "y\na\nb\n", "y", "no usable column of features"),
    ("a.csv", "", "y", "cannot be read as a .csv file"),
    ("a.csv", "\x00\x01PK,\n1,2,3\n4", "y", "unknown column|cannot be read"),
    ("a.csv", 'x,y\n"1,a\n2,b\n', "y", "cannot be read as a .csv file"),
    ("a.parquet", "no", "y", "cannot be read as a .parquet file"),
    ("a.npz", "no", None, "cannot be read as a .npz file"),
    ("a.npz", "", None, "cannot be read as a .npz file"),
    ("a.npz", "no", "y", "leave out --label"),
    ("a.csv.gz", "x,y\n1,a\n", "y", "cannot be read as a .csv file"),
    ("a.tsv.zip", "x,y\n1,a\n", "y", "cannot be read as a .tsv file"),
    ("a.npz.gz", "no", None, "no reader for '.npz.gz'"),
    ("a.gz", "no", None, "no reader for '.gz'"),
    ("a.arff", "no", "y", "expected .csv, .tsv .also with .gz or .zip., .pa"),
    ("a.xls", "no", "y", "no reader for '.xls'"),
    ("a", "no", "y", "no reader for 'a name without ending'"),
  ],
)
def test_invalid_file_raises_one_line(tmp_path, name, content, label, message):
  path = tmp_path / name
  path.write_text(content)
  with pytest.raises(StudyError, match=message) as caught:
    _data.load_data(str(path), label)
  assert "\n" not in str(caught.value)
  assert str(path) in str(caught.value) or "column" in str(caught.value)


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"x": np.zeros((2, 1))}, "no array 'y'"),
    ({"x": np.zeros((2, 1)), "y": np.zeros(3)}, r"shapes \(2, 1\) and \(3,\)"),
    ({"x": np.zeros(2), "y": np.zeros(2)}, r"shapes \(2,\) and \(2,\)"),
    (
      {"x": np.array([["a"], ["b"]]), "y": np.arange(2)},
      "x must be numeric, got",
    ),
    ({"x": np.full((2, 1), np.nan), "y": np.arange(2)}, "no finite value"),
    ({"x": np.zeros((2, 1)), "y": np.zeros(2)}, "one class"),
    ({"x": np.array([[{}], [{}]]), "y": np.arange(2)}, "cannot be read"),
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


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_raise(tmp_path, encoding):
  path = tmp_path / "mine.csv"
  path.write_bytes("x,y\n1,a\n2,\xe9\n".encode(encoding))
  with pytest.raises(StudyError, match="save it as UTF-8"):
    _data.load_data(str(path), "y")


def test_folder_is_not_a_data_file(tmp_path):
  with pytest.raises(StudyError, match="is a folder; name a data file"):
    _data.load_data(str(tmp_path))


def test_missing_reader_says_what_to_install(tmp_path, monkeypatch):
  def read_parquet(path):
    raise ImportError("Unable to find a usable engine")

  monkeypatch.setattr("pandas.read_parquet", read_parquet)
  path = tmp_path / "mine.parquet"
  path.write_bytes(b"no")
  with pytest.raises(StudyError, match=r"pip install 'squentropy_jax\[tables"):
    _data.load_data(str(path), "y")
