# SPDX-License-Identifier: Apache-2.0
"""Excel workbooks."""

import datetime

import pandas as pd
import pytest

from squentropy_study import StudyError, _read_file

FRAME = pd.DataFrame(
  {
    "size": [1.5, None, 3],
    "count": [1, 2, 3],
    "kind": ["NA", " x ", None],
    "mixed": [7, "unknown", 2.5],
    "flag": [True, False, True],
    "day": [datetime.datetime(2024, 1, day) for day in (1, 2, 3)],
  }
)


@pytest.fixture(autouse=True)
def _reader():
  pytest.importorskip("openpyxl", reason="reads workbooks")


def test_columns_keep_their_types(tmp_path):
  path = tmp_path / "a.xlsx"
  FRAME.to_excel(path, index=False, startrow=1, startcol=2)
  table = _read_file.read(path, "kind")
  assert not table.from_text
  assert table.notes == ()
  assert list(table.frame.columns) == list(FRAME.columns)
  assert [c.kind for c in table.frame.dtypes] == list("fiOObM")
  assert table.frame["kind"].tolist()[:2] == ["NA", "x"]
  assert pd.isna(table.frame["kind"][2])
  assert table.frame["mixed"].tolist() == [7, "unknown", 2.5]
  assert table.frame["size"].isna().tolist() == [False, True, False]
  # The first bytes decide between the two kinds of workbooks.
  old = path.rename(tmp_path / "a.xls")
  assert list(_read_file.read(old, "kind").frame.columns) == list(FRAME.columns)


def test_sheets_and_headers(tmp_path):
  path = tmp_path / "a.xlsx"
  with pd.ExcelWriter(path) as writer:
    FRAME.to_excel(writer, sheet_name="Data", index=False, header=False)
    FRAME.to_excel(writer, sheet_name="More")
  table = _read_file.read(path, "column3", header=False)
  assert list(table.frame.columns) == [f"column{k}" for k in range(1, 7)]
  assert len(table.frame) == 3
  assert table.notes == (
    "the first of 2 sheets is read, 'Data'; save another sheet as a file of "
    "its own to use it",
  )
  FRAME.set_axis(["y"] * 6, axis=1).to_excel(path)
  assert (
    list(_read_file.read(path, "y").frame.columns) == ["Unnamed: 0"] + ["y"] * 6
  )


def test_workbooks_without_a_table(tmp_path):
  path = tmp_path / "a.xlsx"
  FRAME[:0].to_excel(path, index=False)
  with pytest.raises(StudyError, match="sheet 'Sheet1' has no rows; move"):
    _read_file.read(path, "kind")
  path.write_bytes(b"\xd0\xcf\x11\xe0 and more")
  with pytest.raises(StudyError, match=r"has a password.*save it as \.xlsx"):
    _read_file.read(path, "kind")
  path.write_text("no")
  with pytest.raises(StudyError, match=r"cannot be read as a \.xlsx file"):
    _read_file.read(path, "kind")


def test_text_with_the_ending_of_a_workbook(tmp_path):
  path = tmp_path / "a.xls"
  path.write_text("x\ty\n1\ta\n")
  table = _read_file.read(path, "y")
  assert table.from_text
  assert table.frame.to_dict("list") == {"x": ["1"], "y": ["a"]}
