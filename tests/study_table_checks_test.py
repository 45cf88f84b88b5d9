# SPDX-License-Identifier: Apache-2.0
"""Row numbers, values that mean missing, leaks of the label, repeated rows."""

import numpy as np
import pytest
from support import tables

from squentropy_study import StudyError, _data, _folds, _table_checks

RANDOM = np.random.default_rng(0)
LABELS = ["a"] * 60 + ["b"] * 60
NOISE = np.round(RANDOM.normal(size=120), 3)
ORDER = RANDOM.permutation(120)
INTEGERS = RANDOM.integers(0, 10**5, 120)


@pytest.mark.parametrize("make", [tables.raw, tables.typed])
@pytest.mark.parametrize(
  ("name", "column"),
  [
    ("n", list(range(120))),
    ("n", list(range(120, 0, -1))),
    ("n", ORDER.tolist()),
    ("n", (ORDER + 10**6).tolist()),
    # Sorted, and nearly unique.
    ("n", sorted([*range(0, 115000, 1000), 7, 7, 9, 9, 3])),
    ("n", [None, *range(119)]),
    # Above 2**53, two neighbours are the same number in float64.
    ("n", [2**60 + 50 * k for k in range(120)]),
    ("n", [f"row {k}" for k in range(120)]),
    ("n", [f"row {k % 115}" for k in range(120)]),
    ("customer_id", np.unique(INTEGERS * 1000 + np.arange(120)).tolist()),
    ("userId", (INTEGERS * 1000 + np.arange(120)).tolist()),
    ("ID", (INTEGERS * 1000 + np.arange(120)).tolist()),
    ("Unnamed: 0", (INTEGERS * 1000 + np.arange(120)).tolist()),
  ],
)
def test_columns_that_identify_the_rows_are_left_out(name, column, make):
  table = make({name: column, "x": NOISE, "y": LABELS})
  encoder, encoded = tables.encode(table)
  assert encoder.features == ("x",)
  assert "reveal the class in a sorted table" in encoded.notes[0]
  assert encoded.notes[0].endswith(f": {name}")
  option = "categorical" if isinstance(column[0], str) else "numeric"
  encoder, _ = tables.encode(table, **{option: (name,)})
  assert len(encoder.columns) == 2


@pytest.mark.parametrize(
  "column",
  [
    sorted(NOISE),
    list(NOISE * 1000),
    INTEGERS.tolist(),  # Unique by chance.
    [k // 5 for k in range(120)],  # Sorted, but each value has five rows.
    [k % 60 for k in range(120)],
    [f"k{k % 60}" for k in range(120)],
  ],
)
def test_columns_that_describe_the_rows_are_kept(column):
  assert len(np.unique(INTEGERS)) > 115
  table = tables.raw({"n": column, "x": NOISE, "y": LABELS})
  encoder, _ = tables.encode(table)
  assert set(tables.kinds(encoder)) == {"n", "x"}


def test_few_rows_do_not_make_row_numbers():
  table = tables.raw(
    {"n": range(19), "t": "abcdefghijklmnopqrs", "y": "ab" * 9 + "a"}
  )
  encoder, _ = tables.encode(table)
  assert len(encoder.columns) == 2


def test_the_only_column_is_kept_with_a_warning():
  encoder, encoded = tables.encode(tables.raw({"n": range(120), "y": LABELS}))
  assert encoder.features == ("n",)
  assert encoded.notes == ()
  assert "'n' seems to number the rows, and is used" in encoded.warnings[0]
  table = tables.raw({"n": range(120), "m": range(120), "y": LABELS})
  with pytest.raises(StudyError, match=r"no usable column .* number or name"):
    tables.encode(table)
  table = tables.raw({"n": [f"r{k}" for k in range(120)], "y": LABELS})
  with pytest.raises(StudyError, match=r"no usable column .* number or name"):
    tables.encode(table)


SENTINELS = {
  "negative": ([*NOISE[:112], *[-999.0] * 8], [(-999, 8)]),
  "one filler is no repetition": ([*NOISE[:119], -999.0], []),
  "ages": ([*range(100), *[999.0] * 2], [(999, 2)]),
  "two of them": (
    [*NOISE[:112], *[-999.0] * 5, *[-888.0] * 3],
    [(-999, 5), (-888, 3)],
  ),
  "both ends": ([*NOISE[:112], *[-99.0] * 5, *[99.0] * 3], [(-99, 5), (99, 3)]),
  "not written with nines": ([*NOISE[:100], *[5000.0] * 3], [(5000, 3)]),
  "minus one": ([*range(100, 200), -1, -1], [(-1, 2)]),
  "counts": ([0, 1, 2, 3, 4, 5, 6, 7, -1, -1, -1], []),
  "flags": ([0] * 50 + [1] * 50, []),
  "skewed": (np.round(np.exp(3 * NOISE), 1), []),
  "zeros": ([0] * 50 + list(range(60)), []),
  "months": (list(range(1, 13)) * 5 + [99] * 3, [(99, 3)]),
}


@pytest.mark.parametrize("name", SENTINELS)
def test_values_that_look_like_missing_ones(name):
  column, expected = SENTINELS[name]
  values, counts = np.unique(np.array(column, float), return_counts=True)
  assert _table_checks.sentinels(values, counts) == expected


@pytest.mark.parametrize("make", [tables.raw, tables.typed])
def test_value_that_means_missing_is_pointed_out(make):
  table = make({"x": [*NOISE[:108], *[-999.0] * 12], "y": ["a", "b"] * 60})
  _, encoded = tables.encode(table)
  assert encoded.warnings == (
    "-999 looks like a missing value: x (12 cells); if it is one, use "
    "--missing=-999",
  )
  encoder, encoded = tables.encode(table, missing=("-999",))
  assert encoder.features == ("x", "x (missing)")
  assert encoded.warnings == ()
  assert np.isnan(encoded.features[:, 0]).sum() == 12


LEAKS = {
  "code": [f"c{x}" for x in LABELS],
  "number": [10 * (x == "a") for x in LABELS],
  "threshold": np.where(np.array(LABELS) == "a", 5, -5) + NOISE,
  "band": np.where(np.array(LABELS) == "a", 0, 9 * np.sign(NOISE)) + NOISE,
  "empty": [None if x == "a" else k % 7 + 0.5 for k, x in enumerate(LABELS)],
  "flag": [x == "a" for x in LABELS],
}


@pytest.mark.parametrize("name", LEAKS)
def test_column_that_predicts_the_label_alone_is_a_warning(name):
  table = tables.raw({name: LEAKS[name], "x": NOISE, "y": LABELS})
  _, encoded = tables.encode(table)
  (warning,) = encoded.warnings
  assert warning.startswith("one column alone predicts the label")
  assert f": {name} (accuracy 1.000);" in warning or name == "empty"
  assert f"leave it out with --drop {name}" in warning


def test_column_that_is_nearly_right_is_no_leak():
  values = np.array([0.0] * 60 + [1.0] * 60)
  labels = np.array([0] * 60 + [1] * 60)
  assert _table_checks.predicts_label(values, labels) == 1.0
  assert _table_checks.predicts_label(1 - values[::-1], labels) == 1.0
  values[0] = 1.0
  assert _table_checks.predicts_label(values, labels) is None
  assert _table_checks.predicts_label(NOISE, labels) is None


def test_accuracy_of_the_most_frequent_class_is_no_leak():
  labels = np.zeros(2000, int)
  labels[:4] = 1
  values = RANDOM.normal(size=2000)
  assert _table_checks.predicts_label(values, labels) is None
  assert _table_checks.predicts_label(labels.astype(float), labels) == 1.0
  # A class with a row or two is no reason to miss the leak of the others.
  labels = np.repeat([0, 1, 2], [1000, 1000, 1])
  assert _table_checks.predicts_label(labels.astype(float), labels) > 0.995


def test_a_sample_of_a_large_table_is_looked_at():
  labels = RANDOM.integers(0, 2, 50_000)
  assert _table_checks.predicts_label(labels * 1.5, labels) == 1.0
  assert _table_checks.predicts_label(RANDOM.random(50_000), labels) is None


def test_repeated_rows_are_dropped_on_request():
  x = [1.5, 2.5, 1.5, 1.5, None, None, 0.0]
  table = tables.raw({"x": x, "z": ["u", "v"] * 3 + ["u"], "y": "abaabba"})
  _, encoded = tables.encode(table)
  assert len(encoded.features) == 7
  _, encoded = tables.encode(table, dedupe=True)
  np.testing.assert_array_equal(encoded.row_numbers, [0, 1, 3, 4, 5, 6])
  assert encoded.notes[-1] == (
    "1 row with the features and the label of an earlier row dropped, as asked "
    "by --dedupe"
  )


def test_equal_rows_have_equal_bytes():
  features = np.array(
    [[0.0, np.nan], [-0.0, -np.nan], [0.0, 1.0], [0.0, np.nan]]
  )
  labels = np.array([0, 0, 0, 1])
  first = _table_checks.first_of_equals(features, labels)
  np.testing.assert_array_equal(first, [True, False, True, True])
  images = features.reshape(4, 1, 1, 2)
  np.testing.assert_array_equal(
    _table_checks.first_of_equals(images, labels), first
  )


def test_rows_that_repeat_in_training_and_test_are_counted():
  features = np.arange(8.0)[:, None]
  features[6], features[7] = features[0], features[1]
  labels = np.zeros(8, int)
  labels[7] = 1
  train = np.array([[0, 1, 2], [2, 3, 4]])
  # Row 0 is padding, in a fold in which it is a training row.
  rows = np.array([[6, 7, 0], [0, 6, 0]])
  keep = np.array([[True, True, False], [True, True, False]])

  class Folds:
    validation = _folds.FoldRows(train * 0 + 5, train > -1)
    test = _folds.FoldRows(rows, keep)

  Folds.train = train
  assert _table_checks.repeats_note(features, labels, Folds) == [
    "1 of 4 test rows have the features and the label of a training row, so "
    "results on new rows may be worse; --dedupe keeps the first of several "
    "equal rows of a table"
  ]
  Folds.validation = Folds.test
  (note,) = _table_checks.repeats_note(features, labels, Folds)
  assert note.startswith("1 of 4 validation rows and 1 of 4 test rows have")
  Folds.validation = Folds.test = _folds.FoldRows(train * 0 + 5, train > -1)
  assert _table_checks.repeats_note(features, labels, Folds) == []


def test_options_on_rows_apply_to_arrays():
  data = _data.load_data("iris")
  options = tables.options(dedupe=True)
  deduped = _data.load_data("iris", options=options)
  assert deduped.features.shape == (149, 4)
  assert np.delete(np.arange(150), deduped.row_numbers).tolist() == [142]
  drawn = _data.draw(deduped, 100, 0)
  np.testing.assert_array_equal(
    drawn.features, data.features[drawn.row_numbers]
  )
  np.testing.assert_array_equal(
    deduped.features, data.features[deduped.row_numbers]
  )
  with pytest.raises(
    StudyError, match=r"iris has no columns .* leave out --drop"
  ):
    _data.load_data("iris", options=tables.options(drop=("x",)))


def test_warnings_on_many_columns_are_one_sentence():
  codes = [-999.0 if k % 4 == 0 else x for k, x in enumerate(NOISE)]
  columns = {f"c{k}": np.roll(codes, k) for k in range(30)}
  leaks = {f"l{k}": [k + 10 * (x == "a") for x in LABELS] for k in range(3)}
  _, encoded = tables.encode(tables.raw({**columns, **leaks, "y": LABELS}))
  sentinels, leaks = encoded.warnings
  assert sentinels.startswith("-999 looks like a missing value: c0 (30 cells),")
  assert "c19 (30 cells) and 10 more; if it is one" in sentinels
  assert ": l0 (accuracy 1.000), l1 (accuracy 1.000), l2 (acc" in leaks
