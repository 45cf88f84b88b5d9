# SPDX-License-Identifier: Apache-2.0
"""Types of columns are decided from the whole column."""

import dataclasses
import decimal

import numpy as np
import pandas as pd
import pytest
from support import tables

from squentropy_study import StudyError

LABELS = ["a", "b"] * 60
RANDOM = np.random.default_rng(0)
NOISE = np.round(RANDOM.normal(size=120), 3)
NUMBERS = RANDOM.permutation(120)
DATES = np.datetime64("2024-01-01") + RANDOM.integers(0, 900, 120)


def few(*values):
  """Some values, repeated to 120 rows."""
  return [values[k % len(values)] for k in range(120)]


def _every_kind():
  """A table of text with a column of each kind, and its rows by class."""
  with_words = list(NOISE)
  with_words[7], with_words[9] = "unknown", "<0.1"
  return tables.raw(
    {
      "code": [*(f"{k % 8 + 1:03d}" for k in range(119)), "A01"],
      "zip": few("01234", "99999", "80331"),
      "plain": NOISE,
      "words": with_words,
      "money": [f"${10000 * abs(x):,.2f}" for x in NOISE],
      "comma": [f"{x:.3f}".replace(".", ",") for x in NOISE],
      "truth": few("True", "false", "TRUE", None, "true"),
      "colour": few("red", "blue", " green"),
      "gaps": few("red", None),
      "day": DATES,
      "constant": ["k"] * 120,
      "empty": [None] * 120,
      "name": [f"Name {k}" for k in range(120)],
      "number": NUMBERS,
      "y": sorted(LABELS),
    }
  )


def test_every_kind_is_found():
  encoder, encoded = tables.encode(_every_kind())
  assert tables.kinds(encoder) == {
    "code": "categorical",
    "zip": "categorical",
    "plain": "numeric",
    "words": "numeric",
    "money": "numeric",
    "comma": "numeric",
    "truth": "boolean",
    "colour": "categorical",
    "gaps": "categorical",
    "day": "date",
  }
  text = tables.said(encoded)
  assert "columns without a value are left out: empty" in text
  assert "columns with a single value are left out: constant" in text
  assert "--categorical COLUMN: name, number" in text
  assert encoder.columns[0].categories == (
    *(f"00{k}" for k in range(1, 9)),
    "A01",
  )


@pytest.mark.parametrize("seed", range(5))
def test_order_of_the_rows_does_not_change_the_types(seed):
  table = _every_kind()
  encoder, encoded = tables.encode(table)
  other = tables.shuffled(table, seed)
  again, rows = tables.encode(other)
  assert again == encoder
  assert rows.notes == encoded.notes
  assert rows.warnings == encoded.warnings
  # The rows are the same ones in another order.
  back = encoder.transform(other)
  np.testing.assert_array_equal(back, rows.features)
  order = np.lexsort(encoded.features.T), np.lexsort(rows.features.T)
  np.testing.assert_array_equal(
    encoded.features[order[0]], rows.features[order[1]]
  )


def test_types_are_decided_without_the_rows_that_have_no_label():
  cells = [*NOISE[:50], "Total", *NOISE[50:]]
  codes = [*range(50), "007", *range(50, 120)]
  table = tables.raw(
    {"a": cells, "b": codes, "y": [*LABELS[:50], None, *LABELS[50:]]}
  )
  encoder, encoded = tables.encode(table, numeric=("b",))
  assert encoder.features == ("a", "b")
  assert encoded.notes == ("1 row without a label is dropped",)
  kept = [*range(50), *range(51, 121)]
  np.testing.assert_array_equal(encoded.row_numbers, kept)
  np.testing.assert_array_equal(encoded.features.T, [NOISE, range(120)])


def test_digits_with_leading_zeros_are_categories():
  zips = [f"{k % 20:05d}" for k in range(120)]
  encoder, encoded = tables.encode(tables.raw({"zip": zips, "y": LABELS}))
  assert tables.kinds(encoder) == {"zip": "categorical"}
  assert "leading zeros are categorical" in encoded.notes[0]
  assert "zip (such as '00000')" in encoded.notes[0]
  encoder, _ = tables.encode(
    tables.raw({"zip": zips, "y": LABELS}), numeric=("zip",)
  )
  assert tables.kinds(encoder) == {"zip": "numeric"}
  # Among fractions, a leading zero is only another way to write a number.
  cells = ["007", *NOISE[1:]]
  encoder, _ = tables.encode(tables.raw({"x": cells, "y": LABELS}))
  assert tables.kinds(encoder) == {"x": "numeric"}


def test_spaces_around_categories_are_removed():
  colours = ["red", " red", "red ", "blue"] * 30
  encoder, encoded = tables.encode(tables.raw({"c": colours, "y": LABELS}))
  assert encoder.features == ("c=blue", "c=red")
  np.testing.assert_array_equal(encoded.features.sum(axis=0), [30, 90])


def test_types_of_a_file_are_kept():
  columns = {
    "integer": pd.array([*range(5), None] * 20, dtype="Int64"),
    "small": np.arange(120, dtype=np.uint8) % 7,
    "decimal": [decimal.Decimal(f"{x:.3f}") for x in NOISE],
    "gap": [None if k % 9 == 0 else decimal.Decimal(k) for k in range(120)],
    "bool": pd.array([True, False, None] * 40, dtype="boolean"),
    "objects": [True, None] * 60,
    "factor": pd.Categorical(["1", "2"] * 60),
    "words": ["1,234.5", "$2"] * 60,
    "mixed": [1, "2", 3.5, None] * 30,
    "day": DATES,
    "span": pd.to_timedelta(np.arange(120) % 11, unit="s"),
    "list": [[1], [2]] * 60,
    "y": LABELS,
  }
  encoder, encoded = tables.encode(tables.typed(columns), numeric=("gap",))
  assert tables.kinds(encoder) == {
    "integer": "numeric",
    "small": "numeric",
    "decimal": "numeric",
    "gap": "numeric",
    "bool": "boolean",
    "objects": "boolean",
    "factor": "categorical",
    "words": "numeric",
    "mixed": "numeric",
    "day": "date",
    "span": "numeric",
    "list": "categorical",
  }
  place = encoder.features.index("decimal")
  np.testing.assert_array_equal(encoded.features[:, place], NOISE)


def test_complex_columns_raise():
  with pytest.raises(StudyError, match=r"complex numbers; .* with --drop z"):
    tables.encode(tables.typed({"z": [1j, 2j], "y": ["a", "b"]}))


def test_many_categories_are_left_out_unless_asked_for():
  cells = [f"k{k % 101}" for k in range(1010)]
  table = tables.raw({"c": cells, "x": [0.5, 1.5] * 505, "y": ["a", "b"] * 505})
  encoder, encoded = tables.encode(table)
  assert tables.kinds(encoder) == {"x": "numeric"}
  assert "more than 100 categories are left out" in encoded.notes[0]
  assert "c (101 categories such as 'k0')" in encoded.notes[0]
  encoder, _ = tables.encode(table, categorical=("c",))
  assert len(encoder.columns[0].categories) == 101
  many = tables.raw({"c": range(1001), "y": ["a", "b"] * 500 + ["a"]})
  with pytest.raises(StudyError, match="1001 categories, but at most 1000"):
    tables.encode(many, categorical=("c",))


@pytest.mark.parametrize("repeats", [1, 4])
def test_free_text_is_left_out_with_the_reason(repeats):
  """Whether all texts differ, or more than 100 do."""
  texts = [f"the {k}th caller asked for help" for k in range(120)] * repeats
  table = {"note": texts, "x": [*NOISE] * repeats, "y": LABELS * repeats}
  encoder, encoded = tables.encode(tables.raw(table))
  assert tables.kinds(encoder) == {"x": "numeric"}
  note = next(text for text in encoded.notes if "note" in text)
  assert note.startswith("columns of free text are left out")
  assert "embedding" in note


def test_names_of_two_words_are_not_free_text():
  names = [f"Person {k}" for k in range(120)]
  _, encoded = tables.encode(
    tables.raw({"who": names, "x": NOISE, "y": LABELS})
  )
  assert "name the rows" in next(n for n in encoded.notes if "who" in n)


@pytest.mark.parametrize("value", ["NaN", "-9", "2024-01-03", "n.a."])
def test_missing_value_that_never_occurs_is_said(value):
  columns = {
    "number": [-9.0, *range(119)],
    "word": ["n.a.", *["a", "b"] * 59, "c"],
    "day": ["2024-01-03", *["2024-01-02", "2024-01-01"] * 59, "2024-01-05"],
    "y": LABELS,
  }
  table = tables.raw(columns)
  _, encoded = tables.encode(table, missing=(value,))
  assert ("occurs in no column" in tables.said(encoded)) == (value == "NaN")
  _, encoded = tables.encode(table, missing=(value, "-99"))
  expected = "--missing=-99 occurs in no column of features; check its spelling"
  assert expected in encoded.warnings


def test_a_long_cell_is_a_category_and_short_in_messages():
  cells = ["x" * 100_000, *["x"] * 119]
  encoder, encoded = tables.encode(
    tables.raw({"text": cells, "x": NOISE, "y": LABELS})
  )
  assert encoder.columns[0].categories == ("x", "x" * 100_000)
  assert len(tables.said(encoded)) < 200
  # The same where all cells differ, one of them long.
  cells = [f"{k}{'x' * (100_000 if k == 0 else 0)}x" for k in range(120)]
  _, encoded = tables.encode(
    tables.raw({"text": cells, "x": NOISE, "y": LABELS})
  )
  assert len(tables.said(encoded)) < 400


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"drop": ("colr",)}, "unknown column of mine.csv in --drop 'colr'; did"),
    ({"numeric": ("y",)}, "--numeric y: the column holds the labels"),
    ({"drop": ("color", "x")}, "no usable column .* left out as asked: color"),
    ({"drop": ("x",), "numeric": ("x",)}, "named by --drop and --numeric"),
  ],
)
def test_options_that_do_not_fit_raise(options, message):
  table = tables.raw({"color": ["r", "g"] * 60, "x": NOISE, "y": LABELS})
  with pytest.raises(StudyError, match=message):
    tables.encode(table, **options)


def test_options_choose_the_kind():
  table = tables.raw({"k": ["1", "2", "3"] * 40, "x": NOISE, "y": LABELS})
  encoder, encoded = tables.encode(table, drop=("x",), categorical=("k",))
  assert encoder.features == ("k=1", "k=2", "k=3")
  assert "columns are left out as asked: x" in encoded.notes
  _, encoded = tables.encode(table, missing=("2",))
  np.testing.assert_array_equal(
    np.isnan(encoded.features[:, 0]), [0, 1, 0] * 40
  )


def test_missing_values_are_compared_as_numbers_and_as_text():
  table = tables.raw(
    {
      "a": [-999.0, 1.5, -999, 2.5] * 30,
      "b": ["-999,0", "1,5", "2,5", "x"] * 30,
      "c": ["none of these", "u", "v", "w"] * 30,
      "y": LABELS,
    }
  )
  encoder, encoded = tables.encode(table, missing=("-999", "none of these"))
  assert encoder.features[:2] == ("a", "a (missing)")
  assert encoder.columns[1].categories == ("1,5", "2,5", "x")
  assert encoder.columns[2].categories == ("u", "v", "w")
  typed = tables.typed({"a": [-999.0, 1.5] * 60, "y": LABELS})
  _, encoded = tables.encode(typed, missing=("-999",))
  np.testing.assert_array_equal(np.isnan(encoded.features[:, 0]), [1, 0] * 60)


def test_encoder_is_plain_data():
  encoder, _ = tables.encode(_every_kind())
  for column in encoder.columns:
    for value in dataclasses.asdict(column).values():
      assert isinstance(value, str | bool | tuple)
