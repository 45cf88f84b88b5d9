# SPDX-License-Identifier: Apache-2.0
"""Numbers as people write them, and words among numbers."""

import numpy as np
import pytest
from support import tables

from squentropy_study import StudyError, _written_numbers

NAN = np.nan
LABELS = ["a", "b"] * 60
NOISE = np.round(np.random.default_rng(0).normal(size=120), 3)


@pytest.mark.parametrize(
  ("decimal", "numbers"),
  [
    (
      ".",
      {
        "-1.5e3": -1500.0,
        "+.5": 0.5,
        "7.": 7.0,
        "2,883.43": 2883.43,
        "1,234,567": 1234567.0,
        "1 234 567": 1234567.0,
        "1\u202f234.5": 1234.5,
        "1'234": 1234.0,
        "1\u2019234": 1234.0,
        "$5,190": 5190.0,
        "-$5": -5.0,
        "$-5": -5.0,
        "5 €": 5.0,
        "EUR 12.50": 12.5,
        "R$ 7": 7.0,
        "(1,200)": -1200.0,
        "\u22123": -3.0,
        "59.4%": 0.594,
        "59.4 %": 0.594,
        "007": 7.0,
      },
    ),
    (
      ",",
      {
        "0,942": 0.942,
        "-1,397": -1.397,
        "1.234,5": 1234.5,
        "1.234": 1234.0,
        "1 234,5": 1234.5,
        "12,5 %": 0.125,
        "1,5e3": 1500.0,
      },
    ),
  ],
)
def test_numbers_are_read(decimal, numbers):
  found = _written_numbers.read_numbers(list(numbers), decimal)
  np.testing.assert_allclose(found.values, list(numbers.values()), rtol=1e-15)
  assert (found.forms != _written_numbers.WORD).all()


@pytest.mark.parametrize(
  ("decimal", "words"),
  [
    # A group has three digits, a number begins with no group of zeros, and one
    # number has one kind of separator.
    (".", ["0,942", "1,23", "12,34,567", "1,234 567", "1.234.567"]),
    (".", ["unknown", "-", "--", "", "1_000", "0x1A", "1e", "e5", "nan"]),
    (".", ["1.2.3", "(5", "5)", "--5", "-$-5", "12 kg", "5$€", "1e999"]),
    (".", ["1" * 500, "A01", "5 5"]),
    (",", ["1.5", "1,234,567", "1.23"]),
  ],
)
def test_words_are_not_numbers(decimal, words):
  found = _written_numbers.read_numbers(words, decimal)
  np.testing.assert_array_equal(found.values, NAN)
  assert (found.forms == _written_numbers.WORD).all(), found


def test_bounds_and_infinities_are_numbers_without_a_value():
  texts = ["<0.1", "> 5", "<=3", "≥2", "inf", "-Infinity"]
  values, forms = _written_numbers.read_numbers(texts)
  np.testing.assert_array_equal(values, NAN)
  assert (forms == _written_numbers.BOUND).all()


def test_plain_numbers_are_read_alike_on_both_paths():
  texts = [repr(float(x)) for x in np.random.default_rng(0).normal(size=50)]
  fast = _written_numbers.read_numbers(texts)
  slow = _written_numbers.read_numbers([*texts, "x"])
  np.testing.assert_array_equal(fast.values, slow.values[:-1])
  np.testing.assert_array_equal(fast.values, [float(text) for text in texts])


def test_numbers_in_clothes_are_one_feature_each():
  table = tables.raw(
    {
      "revenue": [f"{1e4 * abs(x):,.2f}" for x in NOISE],
      "cost": [f"${1e4 * abs(x):,.0f}" for x in NOISE],
      "share": [f"{50 + x:.1f}%" for x in NOISE],
      "y": LABELS,
    }
  )
  encoder, encoded = tables.encode(table)
  assert encoder.features == ("revenue", "cost", "share")
  np.testing.assert_allclose(
    encoded.features[:, 2], (50 + NOISE) / 100, rtol=0, atol=6e-4
  )
  (note,) = encoded.notes
  assert note.startswith("numbers are read without currency signs, percent")
  assert "share ('" in note
  assert "cost ('$" in note


@pytest.mark.parametrize("decimal", [".", ","])
def test_decimal_mark_of_a_column_may_differ_from_that_of_the_file(decimal):
  other = "," if decimal == "." else "."
  texts = [f"{x:.3f}".replace(".", other) for x in NOISE]
  encoder, encoded = tables.encode(
    tables.raw({"x": texts, "y": LABELS}, decimal)
  )
  assert encoder.columns[0].decimal == other
  np.testing.assert_array_equal(encoded.features[:, 0], NOISE)
  assert "a decimal mark other than that of the table: x" in encoded.notes[0]


def test_few_words_among_numbers_are_missing():
  cells = list(NOISE)
  cells[3], cells[50], cells[77], cells[119] = "unknown", "-", "unknown", "<0.1"
  table = tables.raw({"ph": cells, "temp": NOISE, "y": LABELS})
  encoder, encoded = tables.encode(table)
  assert encoder.features == ("ph", "ph (missing)", "temp")
  missing = np.isnan(encoded.features[:, 0])
  assert np.flatnonzero(missing).tolist() == [3, 50, 77, 119]
  np.testing.assert_array_equal(encoded.features[:, 1], missing)
  assert "ph (4 cells, such as 'unknown')" in encoded.notes[0]
  assert encoded.notes[1].endswith("added column: ph (4)")


@pytest.mark.parametrize("words", [6, 7])
def test_numbers_are_at_least_95_percent_of_the_cells(words):
  # 6 of 120 cells are 5 %.
  cells = ["ph" if k < words else x for k, x in enumerate(NOISE)]
  encoder, encoded = tables.encode(
    tables.raw({"x": cells, "z": NOISE, "y": LABELS})
  )
  assert ("x" in tables.kinds(encoder)) == (words == 6)
  if words == 7:
    assert "neither numbers nor at most 100 categories" in encoded.notes[0]
    assert "94 % are numbers, others are like 'ph'" in encoded.notes[0]
    assert "--numeric COLUMN" in encoded.notes[0]
    # The option that the note names.
    encoder, encoded = tables.encode(
      tables.raw({"x": cells, "z": NOISE, "y": LABELS}), numeric=("x",)
    )
    assert tables.kinds(encoder)["x"] == "numeric"
    assert np.isnan(encoded.features[:, 0]).sum() == 7


def test_empty_cells_are_no_words():
  cells = [
    x if k % 2 else ["NA", None, "?"][k % 3] for k, x in enumerate(NOISE)
  ]
  _, encoded = tables.encode(tables.raw({"x": cells, "y": LABELS}))
  assert encoded.notes == (
    "missing or infinite values are replaced by the mean of the training rows "
    "and marked in an added column: x (60)",
  )


def test_bounds_do_not_turn_numbers_into_categories():
  cells = [x if k % 3 else "<0.1" for k, x in enumerate(NOISE)]
  encoder, encoded = tables.encode(tables.raw({"x": cells, "y": LABELS}))
  assert tables.kinds(encoder) == {"x": "numeric"}
  assert "x (40 cells, such as '<0.1')" in encoded.notes[0]


@pytest.mark.parametrize(
  ("form", "reason"),
  [
    ("{} kg", "look like numbers with a unit; write the numbers only"),
    ("3/14/{}", "look like dates; write them as 2024-01-31"),
  ],
)
def test_other_columns_get_the_right_reason(form, reason):
  cells = [form.format(2000 + k) for k in range(120)]
  table = tables.raw({"x": cells, "z": NOISE, "y": LABELS})
  encoder, encoded = tables.encode(table)
  assert tables.kinds(encoder) == {"z": "numeric"}
  assert reason in encoded.notes[0]


def test_several_currencies_are_a_warning():
  cells = [f"{'$€'[k % 2]}{abs(x)}" for k, x in enumerate(NOISE)]
  _, encoded = tables.encode(tables.raw({"x": cells, "y": LABELS}))
  assert "several currencies ($, €)" in encoded.warnings[0]


def test_percent_signs_on_some_numbers_are_a_warning():
  cells = [f"{abs(x):.3f}{'%' * (k % 2)}" for k, x in enumerate(NOISE)]
  _, encoded = tables.encode(tables.raw({"x": cells, "y": LABELS}))
  assert "with and without a percent sign" in encoded.warnings[0]
  cells = [f"{abs(x):.3f}%" if k % 9 else "0" for k, x in enumerate(NOISE)]
  _, encoded = tables.encode(tables.raw({"x": cells, "y": LABELS}))
  assert encoded.warnings == ()


def test_option_numeric_needs_a_number():
  table = tables.raw({"x": ["u", "v"] * 60, "z": NOISE, "y": LABELS})
  with pytest.raises(StudyError, match="--numeric x: no cell of the column"):
    tables.encode(table, numeric=("x",))
