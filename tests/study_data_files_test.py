# SPDX-License-Identifier: Apache-2.0
"""Data files of every kind, and files that are not what they say."""

import gzip
import struct

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
    [1, 0, 0, 1, 0],
    [0, 1, 0, 0, 1],
    [1, 2, 3, 4, 5],
  ]
  np.testing.assert_array_equal(data.features.T, expected)
  said = " ".join(data.notes)
  assert "want of a label: 1" in said
  assert "size (2)" in said
  assert "category of: colour" in said
  assert (
    "dropped, as they hold nothing or more than 100 categories: key" in said
  )


def test_csv_and_tsv(tmp_path):
  for ending, separator in ((".csv", ","), (".tsv", "\t")):
    path = tmp_path / f"mine{ending}"
    TABLE.to_csv(path, index=False, sep=separator)
    _check(_data.load(str(path), "kind"))


def test_parquet(tmp_path):
  path = tmp_path / "mine.parquet"
  TABLE.astype({"key": "float64"}).to_parquet(path)
  _check(_data.load(str(path), "kind"))


def test_r_table(tmp_path):
  pyreadr = pytest.importorskip("pyreadr", reason="reads R tables")
  path = tmp_path / "mine.rda"
  pyreadr.write_rdata(str(path), TABLE.drop(columns="key"), df_name="mine")
  data = _data.load(str(path), "kind")
  # R has no gaps among texts on the way out: they come back as a category.
  assert set(data.classes) >= {"a", "b"}
  np.testing.assert_array_equal(data.features[:3, 0], [1.5, np.nan, 3.0])


HEADER = """% A comment.
@relation 'mine'
@attribute size numeric
@ATTRIBUTE 'a colour' {red, 'dark blue'}
@attribute kind {a, b}
@data
1.5, red, b
?, 'dark blue', a
3, ?, b
"""


@pytest.mark.parametrize("ending", [".arff", ".dat"])
def test_header_tables(tmp_path, ending):
  path = tmp_path / f"mine{ending}"
  text = HEADER
  if ending == ".dat":
    # Some editors begin a file with a byte-order mark.
    text = "\ufeff" + HEADER.replace("?", "<null>")
    text = text.replace("'", '"').replace("@data", "@inputs size\n@data")
  path.write_text(text, encoding="utf-8")
  data = _data.load(str(path))
  np.testing.assert_array_equal(data.labels, [1, 0, 1])
  np.testing.assert_array_equal(
    data.features, [[1.5, 0, 1, 0], [np.nan, 1, 0, 1], [3, 0, 0, 0]]
  )


def test_table_of_numbers_alone(tmp_path):
  path = tmp_path / "mine.dat"
  path.write_text("1, 2, 0\n3, 4, 7\n")
  data = _data.load(str(path))
  np.testing.assert_array_equal(data.features, [[1, 2], [3, 4]])
  assert data.classes == ("0", "7")


def test_npz(tmp_path):
  path = tmp_path / "mine.npz"
  x = np.arange(12.0).reshape(3, 2, 2, 1)
  np.savez(path, x=x, y=np.array(["dog", "cat", "dog"]))
  data = _data.load(str(path))
  np.testing.assert_array_equal(data.features, x)
  np.testing.assert_array_equal(data.labels, [1, 0, 1])
  assert data.classes == ("cat", "dog")


def _idx(array):
  sizes = struct.pack(f">{array.ndim}I", *array.shape)
  return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def test_idx_folder(tmp_path):
  x = np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4)
  y = np.array([3, 1, 3, 1, 3], np.uint8)
  files = {
    "train-images-idx3-ubyte": x[:3],
    "train-labels-idx1-ubyte": y[:3],
    "t10k-images-idx3-ubyte": x[3:],
    "t10k-labels-idx1-ubyte": y[3:],
  }
  for name, array in files.items():
    if name.startswith("t10k"):
      (tmp_path / f"{name}.gz").write_bytes(gzip.compress(_idx(array)))
    else:
      (tmp_path / name).write_bytes(_idx(array))
  data = _data.load(str(tmp_path))
  np.testing.assert_allclose(data.features[..., 0] * 255, x, rtol=1e-6)
  np.testing.assert_array_equal(data.labels, [1, 0, 1, 0, 1])
  assert "3 and 2 images were pooled" in data.notes[0]
  (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no")
  with pytest.raises(StudyError, match="folder of IDX files"):
    _data.load(str(tmp_path))


@pytest.mark.parametrize("ending", [".csv", ".CSV", ".dat"])
def test_classes_may_have_the_names_of_gaps(tmp_path, ending):
  path = tmp_path / f"mine{ending}"
  names = ["None", "NA", " null", "nan", "None ", "", "?"]
  head = "" if ending == ".dat" else "x,kind\n"
  rows = [f"{k},{name}" for k, name in enumerate(names)]
  path.write_text(head + "\n".join(rows) + "\n")
  data = _data.load(str(path), None if ending == ".dat" else "kind")
  assert data.classes == ("NA", "None", "nan", "null")
  np.testing.assert_array_equal(data.labels, [1, 0, 3, 2, 1])
  np.testing.assert_array_equal(data.features[:, 0], range(5))
  assert data.notes == (
    "rows dropped for want of a label: 2",
    "counted as a class, though its name may stand for a gap (empty the label "
    "where it does): NA, None, nan, null",
  )


def test_index_without_a_name_tells_no_class(tmp_path):
  path = tmp_path / "mine.csv"
  # Sorted by class and shuffled after: the index still tells it.
  frame = pd.DataFrame({"x": [7, 8, 7, 8], "y": ["a", "a", "b", "b"]})
  for rows in ([0, 1, 2, 3], [2, 0, 3, 1]):
    frame.loc[rows].to_csv(path)
    data = _data.load(str(path), "y")
    np.testing.assert_array_equal(data.features[:, 0], frame["x"][rows])
    assert data.features.shape == (4, 1)
    assert "number the rows" in data.notes[0]
    assert data.notes[0].endswith(": Unnamed: 0")
  # What repeats is no number of a row, nor is a fraction.
  for column in ("3,3,4,5", "0.5,1,2,3"):
    lines = [f"{v},{y}" for v, y in zip(column.split(","), "aabb", strict=True)]
    path.write_text("\n".join([",y", *lines]) + "\n")
    assert _data.load(str(path), "y").features.shape == (4, 1)


def test_label_column_may_have_any_name(tmp_path):
  path = tmp_path / "mine.csv"
  path.write_text("x,self\n1,a\n2,b\n")
  assert _data.load(str(path), "self").classes == ("a", "b")


def test_numbers_of_a_csv_are_classes_in_their_order(tmp_path):
  path = tmp_path / "mine.csv"
  path.write_text("x,y\n1,10\n2,9\n3,\n4,1e1\n")
  assert _data.load(str(path), "y").classes == ("9", "10")
  path.write_text("x,y\n1,9007199254740992\n2,9007199254740993\n3,?\n")
  assert _data.load(str(path), "y").classes == (str(2**53), str(2**53 + 1))
  # Beyond 64 bits they would all be one float.
  path.write_text(f"x,y\n1,{2**64}\n2,{2**64 + 1}\n3,?\n")
  assert _data.load(str(path), "y").classes == (str(2**64), str(2**64 + 1))


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
  path = tmp_path / "mine.csv"
  path.write_text('\ufeff\ny,"a ""b"""\n\nc,"1"\n  \nd,2\n')
  data = _data.load(str(path), "y")
  np.testing.assert_array_equal(data.features, [[1], [2]])


@pytest.mark.parametrize(
  ("name", "content", "label", "message"),
  [
    ("a.csv", "y,a,b,y\n0,1,2,0\n1,2,3,1\n", "y", "two columns 'y'; rename"),
    ("a.csv", "y,a,y \n0,1,0\n1,2,1\n", "y", "two columns 'y'; rename"),
    ("a.csv", "x,y\n1,a\n2,b,3\n", "y", "line 3 has 3 values for 2 columns"),
    ("a.csv", "x,y\n1,a,5\n2,b,3\n", "y", "line 2 has 3 values for 2"),
    ("a.csv", "x,y\n1,a\n2\n", "y", "line 3 has 1 values for 2 columns"),
    ("a.csv", "x;y\n1;a\n2;b\n", "y", "separated by ';', not by ','"),
    ("a.csv", "x;y\n1,5;a\n2,5;b\n", "y", "separated by ';', not by ','"),
    ("a.tsv", "x,y\n1,a\n2,b\n", "y", "separated by ',', not by"),
    (
      "a.arff",
      "@attribute '' real\n@data\n1\n",
      None,
      "attribute 1 has no name",
    ),
    (
      "a.arff",
      "@attribute x real\n@attribute x real\n@data\n1,2\n",
      None,
      "two columns 'x'",
    ),
    ("a.csv", "x,y\n1,a\n2,b\n", None, "--label; it has x, y"),
    ("a.csv", "x,y\n1,a\n2,b\n", "z", "unknown column of .*'z'"),
    ("a.csv", "x,yes\n1,a\n2,b\n", "yess", "did you mean 'yes'"),
    ("a.csv", "x,y\n1,a\n2,a\n", "y", r"has one value \(a\)"),
    ("a.csv", "x,y\n1,\n2,\n", "y", "has no value"),
    ("a.csv", "x,y\n1,0.5\n2,1.5\n", "y", "holds fractions"),
    ("a.csv", "x,y\n,a\n,b\n", "y", "no column to learn from"),
    ("a.csv", "y\na\nb\n", "y", "no column to learn from"),
    ("a.csv", "", "y", "cannot be read as a .csv file"),
    ("a.csv", "\x00\x01PK,\n1,2,3\n4", "y", "unknown column|cannot be read"),
    ("a.csv", 'x,y\n"1,a\n2,b\n', "y", "cannot be read as a .csv file"),
    ("a.parquet", "no", "y", "cannot be read as a .parquet file"),
    ("a.npz", "no", None, "cannot be read as a .npz file"),
    ("a.npz", "", None, "cannot be read as a .npz file"),
    ("a.npz", "no", "y", "leave out --label"),
    ("a.arff", "1,2\n", None, "no @data line"),
    ("a.arff", "@attribute x real\n@data\n1,2\n", None, "2 values for 1"),
    ("a.arff", "@attribute x real\n@data\nred\n", None, "cannot be read"),
    ("a.dat", "1,a\n2,b,c\n", None, "cannot be read as a .dat file"),
    ("a.rda", "no", "y", "a.rda"),
    ("a.xls", "no", "y", "no reader for '.xls'"),
    ("a", "no", "y", "no reader for 'a name without ending'"),
  ],
)
def test_bad_file_is_one_line(tmp_path, name, content, label, message):
  path = tmp_path / name
  path.write_text(content)
  with pytest.raises(StudyError, match=message) as caught:
    _data.load(str(path), label)
  assert "\n" not in str(caught.value)
  assert str(path) in str(caught.value) or "column" in str(caught.value)


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"x": np.zeros((2, 1))}, "no array 'y'"),
    ({"x": np.zeros((2, 1)), "y": np.zeros(3)}, r"shape \(2, 1\)"),
    ({"x": np.zeros(2), "y": np.zeros(2)}, r"shape \(2,\)"),
    ({"x": np.array([["a"], ["b"]]), "y": np.arange(2)}, "not numbers"),
    ({"x": np.full((2, 1), np.nan), "y": np.arange(2)}, "holds no number"),
    ({"x": np.zeros((2, 1)), "y": np.zeros(2)}, "one value"),
    ({"x": np.array([[{}], [{}]]), "y": np.arange(2)}, "cannot be read"),
    ({"x": np.zeros((2, 1)), "y": np.array([1j, 2j])}, "complex numbers"),
    ({"x": np.zeros((2, 1)), "y": np.zeros(2, "V3")}, "cannot be read"),
  ],
)
def test_bad_npz_is_one_line(tmp_path, arrays, message):
  path = tmp_path / "mine.npz"
  np.savez(path, **arrays)
  with pytest.raises(StudyError, match=message):
    _data.load(str(path))


def test_npz_says_what_it_lacks(tmp_path):
  path = tmp_path / "mine.npz"
  x = np.arange(8.0).reshape(4, 2)
  x[0, 0], x[1, 1], x[3] = np.nan, np.inf, np.nan
  np.savez(path, x=x, y=np.array([1, 0, 1, np.nan]))
  data = _data.load(str(path))
  assert data.notes == (
    "rows dropped for want of a label: 1",
    "missing or infinite numbers, replaced by the mean of the training rows: 2",
  )
  with path.open("wb") as file:
    np.save(file, x)
  with pytest.raises(StudyError, match="one array without a name"):
    _data.load(str(path))


def test_huge_labels_stay_apart(tmp_path):
  path = tmp_path / "mine.npz"
  y = np.array([1e300, 1e299, 3.0, -1.0])
  np.savez(path, x=np.zeros((4, 1)), y=y)
  data = _data.load(str(path))
  np.testing.assert_array_equal(data.labels, [3, 2, 1, 0])
  assert data.classes == ("-1", "3", "1e+299", "1e+300")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_told_to_change(tmp_path, encoding):
  path = tmp_path / "mine.csv"
  path.write_bytes("x,y\n1,a\n2,\xe9\n".encode(encoding))
  with pytest.raises(StudyError, match="save it as UTF-8"):
    _data.load(str(path), "y")


@pytest.mark.parametrize("label", ["y", None])
def test_folder_without_images_is_called_that(tmp_path, label):
  with pytest.raises(StudyError, match="is a folder without IDX images"):
    _data.load(str(tmp_path), label)


def test_missing_reader_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "pyreadr", None)
  path = tmp_path / "mine.rda"
  path.write_bytes(b"no")
  with pytest.raises(StudyError, match=r"pip install 'squentropy_jax\[tables"):
    _data.load(str(path), "y")
