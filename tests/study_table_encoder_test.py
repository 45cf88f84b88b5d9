# SPDX-License-Identifier: Apache-2.0
"""New rows become features like those of the table of the study."""

import numpy as np
import pytest
from support import tables

from squentropy_study import StudyError
from squentropy_study._table_encoder import TableEncoder

LABELS = ["a", "b"] * 30
NOISE = np.round(np.random.default_rng(0).normal(size=60), 3)


@pytest.fixture(scope="module")
def encoder():
  table = tables.raw(
    {
      "size": [None, *NOISE[1:]],
      "share": [f"{50 + x:.1f} %" for x in NOISE],
      "colour": ["red", "green", None] * 20,
      "truth": ["true", "false"] * 30,
      "day": np.datetime64("2024-01-01") + np.arange(60) * 5,
      "id": range(60),
      "y": LABELS,
    }
  )
  return tables.encode(table, missing=("-999",))[0]


ROWS = {
  "colour": ["green", "violet", None, "red "],
  "size": [-999, "unknown", 0.5, None],
  "truth": ["TRUE", "false", None, "maybe"],
  "share": ["10 %", "1,000%", "<5 %", "50%"],
  "day": ["2024-01-03", "2023-12-31", "never", None],
}
NAN = np.nan
FEATURES = {
  "size": [NAN, NAN, 0.5, NAN],
  "size (missing)": [1, 1, 0, 1],
  "share": [0.1, 10.0, NAN, 0.5],
  "colour=green": [1, 0, 0, 0],
  "colour=red": [0, 0, 0, 1],
  "truth": [1, 0, NAN, NAN],
  "day (days)": [2, -1, NAN, NAN],
  "day (month)": [1, 12, NAN, NAN],
  "day (weekday)": [2, 6, NAN, NAN],
}


def test_new_rows_are_encoded_alike(encoder):
  assert encoder.features == tuple(FEATURES)
  found = encoder.transform(tables.raw(ROWS))
  np.testing.assert_allclose(found.T, list(FEATURES.values()), rtol=1e-15)


def test_order_and_other_columns_do_not_matter(encoder):
  backward = {name: ROWS[name] for name in reversed(ROWS)}
  table = tables.raw({"new": [1, 2, 3, 4], **backward, "y": "abab"})
  np.testing.assert_array_equal(
    encoder.transform(table), encoder.transform(tables.raw(ROWS))
  )


def test_rows_of_a_typed_file_are_encoded_alike(encoder):
  table = tables.typed(
    {
      **ROWS,
      "size": [-999.0, NAN, 0.5, NAN],
      "share": [0.1, 10.0, NAN, 0.5],
      "truth": [True, False, None, None],
      "day": np.array(["2024-01-03", "2023-12-31", "NaT", "NaT"], "M8[s]"),
    }
  )
  np.testing.assert_allclose(
    encoder.transform(table).T, list(FEATURES.values()), rtol=1e-15
  )


def test_json_keeps_everything(encoder):
  again = TableEncoder.from_json(encoder.to_json())
  assert again == encoder
  assert again.to_json() == encoder.to_json()
  assert encoder.classes == ("a", "b")


def test_missing_columns_are_named(encoder):
  rows = {k: v for k, v in ROWS.items() if k not in ("day", "size")}
  with pytest.raises(StudyError, match="no column 'size', 'day'; add"):
    encoder.transform(tables.raw(rows))


@pytest.mark.parametrize(
  ("name", "cells", "message"),
  [
    ("size", ["u", "v", "w", None], "'size' held numbers .* such as 'u'"),
    ("day", ["1", "2", "3", "4"], "'day' held dates .* such as '1'"),
    ("truth", ["1", "2", "3", "4"], "'truth' held true and false"),
  ],
)
def test_columns_of_another_kind_raise(encoder, name, cells, message):
  with pytest.raises(StudyError, match=message):
    encoder.transform(tables.raw({**ROWS, name: cells}))


def test_empty_columns_are_missing_values(encoder):
  found = encoder.transform(tables.raw({name: [None] for name in ROWS}))
  expected = [NAN, 1, NAN, 0, 0, NAN, NAN, NAN, NAN]
  np.testing.assert_array_equal(found, [expected])


def test_two_columns_of_one_name_raise(encoder):
  table = tables.raw(ROWS)
  frame = table.frame.assign(again=table.frame["size"])
  frame.columns = [*table.frame.columns, "size"]
  with pytest.raises(StudyError, match="two columns 'size'; rename"):
    encoder.transform(table._replace(frame=frame))
