# SPDX-License-Identifier: Apache-2.0
"""Labels keep their text; classes are merged and dropped only on request."""

import numpy as np
import pandas as pd
import pytest
from support import tables

from squentropy_study import StudyError, _data, _folds

NOISE = np.round(np.random.default_rng(0).normal(size=120), 3)


def encode(labels, make=tables.raw, **options):
  x = np.resize(NOISE, len(labels))
  return tables.encode(make({"x": x, "y": labels}), **options)[1]


def counts(encoded):
  return dict(
    zip(encoded.classes, np.bincount(encoded.labels).tolist(), strict=True)
  )


def test_labels_that_are_different_texts_are_different_classes():
  encoded = encode(["01", "1", "2", "1.0"] * 10)
  assert counts(encoded) == {"01": 10, "1": 10, "1.0": 10, "2": 10}
  (warning,) = encoded.warnings
  assert "same number written differently: '01' (10 rows), '1' (10 r" in warning


@pytest.mark.parametrize(
  ("labels", "classes"),
  [
    (["10", "9", "-1", "10"], ("-1", "9", "10")),
    (["10", "9", "x", "10"], ("10", "9", "x")),
    ([str(2**64), str(2**64 + 1), "3"], ("3", str(2**64), str(2**64 + 1))),
    (["None", "NA", "nan ", " None"], ("NA", "None", "nan")),
    (["1e300", "2e299", "?", None, ""], ("2e299", "1e300")),
  ],
)
def test_order_of_the_classes(labels, classes):
  assert encode(labels).classes == classes


@pytest.mark.parametrize(
  ("labels", "classes"),
  [
    (np.array([3.0, 1.0, np.nan]), ("1", "3")),
    (pd.array([3, 1, None], dtype="Int64"), ("1", "3")),
    ([True, False, None], ("False", "True")),
    (pd.Categorical(["b", "a", None]), ("a", "b")),
    (np.array([b"b", b"a", b"?"], object), ("a", "b")),
    (np.array([1e300, 1e299, 3.0]), ("3", "1e+299", "1e+300")),
  ],
)
def test_labels_of_typed_files(labels, classes):
  encoded = encode(labels, tables.typed)
  assert encoded.classes == classes


@pytest.mark.parametrize("labels", [["inf", "1", "2"], ["1", "2", "-Infinity"]])
def test_infinite_labels_raise(labels):
  with pytest.raises(StudyError, match=r"got -?(inf|Infinity) in 1 row; if"):
    encode(labels)
  with pytest.raises(StudyError, match=r"got -?inf in 1 row; if"):
    encode([float(text) for text in labels], tables.typed)
  assert encode([*labels, "sup"]).classes == tuple(sorted([*labels, "sup"]))


@pytest.mark.parametrize("make", [tables.raw, tables.typed])
def test_fractional_labels_raise(make):
  with pytest.raises(StudyError, match="got fractional numbers; choose"):
    encode([0.5, 1.0, 2.0], make)
  # Large floats are whole numbers.
  assert len(encode([1.5e300, 2.5e300, 1.0], make).classes) == 3


def test_case_is_a_warning_with_counts():
  labels = ["Yes", "yes", "YES", "No", "no", "yes"] * 20
  encoded = encode(labels)
  assert counts(encoded) == {
    "No": 20,
    "YES": 20,
    "Yes": 20,
    "no": 20,
    "yes": 40,
  }
  (warning,) = encoded.warnings
  assert "'yes' (40 rows), 'YES' (20 rows), 'Yes' (20 rows)" in warning
  assert "'No' (20 rows), 'no' (20 rows)" in warning
  assert "--merge-case merges them" in warning
  encoded = encode(labels, merge_case=True)
  assert counts(encoded) == {"No": 40, "yes": 80}
  assert encoded.warnings == ()
  assert "'YES' to 'yes' (20 rows)" in encoded.notes[0]
  with pytest.raises(StudyError, match="fewer than two classes left"):
    encode(["a", "A"] * 30, merge_case=True)


RARE = ["a"] * 40 + ["b"] * 30 + ["odd"] * 3 + ["even"] * 2 + [None]


def test_rare_classes_are_dropped_on_request():
  encoded = encode(RARE, min_class=4)
  assert counts(encoded) == {"a": 40, "b": 30}
  assert encoded.notes[-1] == (
    "classes with fewer than 4 rows are dropped, which removes 5 rows: "
    "'odd' (3 rows), 'even' (2 rows)"
  )
  np.testing.assert_array_equal(encoded.row_numbers, range(70))
  # Types are decided without these rows.
  x = [*range(70), "u", "v", "w", "x", "y", "z"]
  _, encoded = tables.encode(tables.raw({"x": x, "y": RARE}), min_class=4)
  assert encoded.features.shape == (70, 1)
  with pytest.raises(
    StudyError, match=r"fewer than two classes left .*smaller"
  ):
    encode(RARE, min_class=35)


def test_rare_classes_are_pooled_on_request():
  encoded = encode(RARE, merge_rare=4)
  assert counts(encoded) == {"a": 40, "b": 30, "other": 5}
  assert "are pooled in the class 'other' of 5 rows" in encoded.notes[-1]
  encoded = encode([x and x.replace("a", "other") for x in RARE], merge_rare=4)
  assert counts(encoded) == {"b": 30, "other": 40, "other classes": 5}
  # No class is rare.
  assert encode(RARE[:70], merge_rare=4).notes == ()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"min_class": 0}, "--min-class must be at least 1 row, got 0"),
    ({"merge_rare": -1}, "--merge-rare must be at least 1 row, got -1"),
    ({"min_class": 2, "merge_rare": 2}, "choose one of them"),
  ],
)
def test_options_that_do_not_fit_raise(options, message):
  with pytest.raises(StudyError, match=message):
    encode(RARE, **options)


def test_rare_class_names_the_options(tmp_path):
  path = tmp_path / "mine.csv"
  rows = [f"{x},{y}" for x, y in zip(NOISE, ["a", "b"] * 60, strict=True)]
  path.write_text("\n".join(["x,y", *rows, "3.5,odd"]) + "\n")
  data = _data.load_data(str(path), "y")
  # One row cannot be pooled to a class of four.
  message = r"class 'odd' of .* has 1 row, but .* with --min-class 4$"
  with pytest.raises(StudyError, match=message):
    _folds.fold(data, 1, 0)
  with pytest.raises(
    StudyError, match=r"mine.csv has 1 row in classes .*'odd'"
  ):
    _data.load_data(str(path), "y", options=tables.options(merge_rare=4))
  labels = data.labels.copy()
  labels[:2] = 2
  more = data._replace(labels=labels, classes=("a", "b", "c", "d"))
  with pytest.raises(StudyError, match="4, or pool them with --merge-rare 4"):
    _folds.fold(more._replace(labels=np.append(labels, 3)), 1, 0)


@pytest.mark.parametrize(("classes", "rows"), [(501, 50_000), (30, 50)])
def test_labels_that_look_like_an_id_raise(classes, rows):
  labels = [f"u{k % classes}" for k in range(rows)]
  message = f"{classes} classes in {rows} rows and may be an id.*--min-class 20"
  with pytest.raises(StudyError, match=message):
    encode(labels)
  assert len(encode(labels, min_class=1).classes) == classes
  # A table of few rows, and many classes with enough rows.
  assert len(encode(["a", "b", "c"]).classes) == 3
  assert len(encode([f"u{k % 300}" for k in range(6000)]).classes) == 300
