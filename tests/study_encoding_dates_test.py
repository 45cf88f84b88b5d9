# SPDX-License-Identifier: Apache-2.0
"""Dates become days and calendar features, alike for text and for types."""

import datetime

import numpy as np
import pandas as pd
import pytest
from support import tables

from squentropy_study import StudyError, _data, _date_columns

LABELS = ["a", "b"] * 60
START = datetime.datetime(2023, 12, 30)
HOURS = np.random.default_rng(0).integers(0, 9000, 120)
TIMES = [START + datetime.timedelta(hours=int(h)) for h in HOURS]
DAYS = [time.date() for time in TIMES]


@pytest.mark.parametrize(
  ("text", "iso"),
  [
    ("2024-01-31", "2024-01-31"),
    ("2024/1/31", "2024-01-31"),
    ("31.1.2024", "2024-01-31"),
    ("31.01.2024 7:05", "2024-01-31T07:05"),
    ("2024-01-31T23:59:58", "2024-01-31T23:59:58"),
    ("2024-01-31 23:59:58.25", "2024-01-31T23:59:58.250"),
    ("2024-01-31T23:30Z", "2024-01-31T23:30"),
    ("2024-01-31T23:30:00+02:00", "2024-01-31T21:30"),
    ("2024-01-31T23:30:00 -0130", "2024-02-01T01:00"),
    ("9999-12-31", "9999-12-31"),
    ("0001-01-01", "0001-01-01"),
  ],
)
def test_dates_are_read(text, iso):
  (found,) = _date_columns.read_dates([text])
  assert found == np.datetime64(iso)


@pytest.mark.parametrize(
  "text",
  [
    *("2024-02-30", "0000-00-00", "2024-13-01", "1/2/2024", "01-02-2024"),
    *("2024", "20240131", "2024-01", "2024-01/31", "2024-01-31 25:00", "x", ""),
  ],
)
def test_other_texts_are_not_dates(text):
  assert np.isnat(_date_columns.read_dates([text])).all()


def test_calendar_features_are_those_of_the_standard_library():
  dates = np.array([*TIMES, None], "datetime64[us]")
  for part, expected in {
    "month": [time.month for time in TIMES],
    "weekday": [time.weekday() for time in TIMES],
    "hour": [time.hour + time.minute / 60 for time in TIMES],
  }.items():
    found = _date_columns.calendar_feature(dates, part)
    np.testing.assert_array_equal(found, [*expected, np.nan])


TABLES = {
  "text": tables.raw({"at": DAYS, "y": LABELS}),
  "datetime64": tables.typed({"at": np.array(DAYS, "M8[s]"), "y": LABELS}),
  "objects": tables.typed({"at": pd.Series(DAYS, dtype=object), "y": LABELS}),
  "text in a typed file": tables.typed({"at": map(str, DAYS), "y": LABELS}),
}


@pytest.mark.parametrize("kind", TABLES)
def test_text_and_types_are_treated_alike(kind):
  encoder, encoded = tables.encode(TABLES[kind])
  assert encoder.features == ("at (days)", "at (month)", "at (weekday)")
  first = min(DAYS)
  expected = [((d - first).days, d.month, d.weekday()) for d in DAYS]
  np.testing.assert_array_equal(encoded.features, expected)
  assert encoded.notes == (
    "dates are turned into days since the first date and calendar features: at "
    f"(days since {first}, month, weekday)",
  )
  # An encoder of one kind reads the others.
  for table in TABLES.values():
    np.testing.assert_array_equal(encoder.transform(table), expected)


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_hours_are_a_feature_where_there_are_some(zone):
  times = pd.Series(pd.DatetimeIndex(TIMES, tz="UTC"))
  table = tables.typed(
    {"at": times.dt.tz_convert(zone) if zone else times, "y": LABELS}
  )
  encoder, encoded = tables.encode(table)
  assert encoder.columns[0].calendar == ("month", "weekday", "hour")
  days = (
    np.array(TIMES, "M8[s]") - np.datetime64(min(TIMES))
  ) / np.timedelta64(1, "D")
  np.testing.assert_allclose(encoded.features[:, 0], days, rtol=1e-15)
  np.testing.assert_array_equal(encoded.features[:, 3], [t.hour for t in TIMES])
  written = tables.raw({"at": [t.isoformat() for t in TIMES], "y": LABELS})
  np.testing.assert_array_equal(encoder.transform(written), encoded.features)


def test_cells_that_are_not_dates_are_missing():
  cells = ["0000-00-00", None, *DAYS[2:]]
  encoder, encoded = tables.encode(tables.raw({"at": cells, "y": LABELS}))
  assert encoder.features[-1] == "at (missing)"
  np.testing.assert_array_equal(encoded.features[:2, :3], np.nan)
  np.testing.assert_array_equal(encoded.features[:, 3], [1, 1, *([0] * 118)])
  assert "at (1 cell, such as '0000-00-00')" in encoded.notes[0]


def test_sorted_dates_are_no_row_numbers():
  encoder, _ = tables.encode(tables.raw({"at": sorted(DAYS), "y": LABELS}))
  assert tables.kinds(encoder) == {"at": "date"}


@pytest.mark.parametrize("make", [tables.raw, tables.typed])
def test_date_that_means_a_missing_value_is_pointed_out(make):
  cells = [datetime.date(9999, 12, 31)] * 5 + DAYS[5:]
  table = make({"at": pd.Series(cells, dtype=object), "y": LABELS})
  _, encoded = tables.encode(table)
  assert encoded.warnings == (
    "9999-12-31 looks like a missing value: at (5 cells); if it is one, use "
    "--missing 9999-12-31",
  )
  _, encoded = tables.encode(table, missing=("9999-12-31",))
  assert encoded.warnings == ()
  assert np.isnan(encoded.features[:, 0]).sum() == 5


def test_csv_and_parquet_are_treated_alike(tmp_path):
  frame = pd.DataFrame({"at": np.array(DAYS, "M8[s]"), "y": LABELS})
  frame.to_parquet(tmp_path / "mine.parquet")
  frame.to_csv(tmp_path / "mine.csv", index=False)
  parquet, csv = (
    _data.load_data(str(tmp_path / f"mine.{kind}"), "y")
    for kind in ("parquet", "csv")
  )
  assert csv.features.shape == (120, 3)
  np.testing.assert_array_equal(csv.features, parquet.features)
  assert csv.notes == parquet.notes


def test_dates_cannot_be_read_as_numbers():
  with pytest.raises(StudyError, match="--numeric at: no cell"):
    tables.encode(TABLES["datetime64"], numeric=("at",))
