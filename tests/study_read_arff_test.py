# SPDX-License-Identifier: Apache-2.0
"""ARFF files."""

import math

import numpy as np
import pytest

from squentropy_study import StudyError, _arff, load_data

HEADER = """\
% A comment.
@RELATION 'my table'
@attribute size numeric  % in metres
  @Attribute 'a kind' { red, "light blue" ,'b,c' }

@attribute note string
@ATTRIBUTE day date "dd.MM.yyyy"
@data
"""


def _rows(text):
  return _arff.read(HEADER + text, "a.arff").frame


def test_values_and_their_types():
  text = r"""
  % an indented comment
1.5,red,'it\'s \"so\"',"01.02.2024"
  -2e3 , 'light blue', "a, b % c" ,?  % the last value
?,"b,c",50% of,03.04.2024
7,?,'tab\tand \u00e9',?
8,'b,c','?',?
9,red,"",?
"""
  table = _arff.read(HEADER + text, "a.arff")
  frame = table.frame
  assert list(frame.columns) == ["size", "a kind", "note", "day"]
  assert frame["size"].dtype == np.float64
  np.testing.assert_array_equal(frame["size"], [1.5, -2000, np.nan, 7, 8, 9])
  kinds = ["red", "light blue", "b,c", None, "b,c", "red"]
  assert frame["a kind"].tolist() == kinds
  notes = ['it\'s "so"', "a, b % c", "50% of", "tab\tand \xe9", "?", None]
  assert frame["note"].tolist() == notes
  assert frame["day"].dtype.kind == "M"
  assert frame["day"].dt.month.tolist()[::2][:2] == [2, 4]
  assert not table.from_text


def test_sparse_rows_leave_out_zeros_and_first_categories():
  frame = _rows("{0 5, 1 'b,c', 2 text}\n{}\n{ 1 ?,0 ? } % none\n")
  np.testing.assert_array_equal(frame["size"], [5, 0, math.nan])
  assert frame["a kind"].tolist() == ["b,c", "red", None]
  assert frame["note"].tolist() == ["text", None, None]


def test_unusual_dates_stay_text():
  text = "@attribute a date 'EEE yyyy'\n@attribute b date\n@data\n"
  text += "'Mon 2024','2024-01-02T03:04:05'\n"
  frame = _arff.read(text, "a.arff").frame
  assert frame["a"].tolist() == ["Mon 2024"]
  assert frame["b"].dt.hour.tolist() == [3]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("1,red,x", "line 9 .*3 values for 4 attributes; separate"),
    ("\n1,green,x,?", "line 10 .*no category 'green'; add it"),
    ("1_0,red,x,?", "line 9 .*size must be a number, got '1_0'"),
    ("big,red,x,?", "line 9 .*size must be a number, got 'big'"),
    ("1,'red,x,?", "line 9 .*a quote is not closed"),
    ("1,'red'x,?", "line 9 .*expected a comma before 'x,"),
    ("{4 1}", "line 9 .*number of a column from 0 to 3"),
    ("{red}", "line 9 .*number of a column"),
    ("{0 1", "line 9 .*must end with a brace"),
    ("{0 1}, {5}", "line 9 "),
    ("1,red,x,32.01.2024", "dates of 'day'"),
    ("", "no rows after @data; add"),
  ],
)
def test_rows_that_cannot_be_read(text, message):
  with pytest.raises(StudyError, match=message) as caught:
    _rows(text)
  assert str(caught.value).startswith("a.arff")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("@data\n1\n", "line 1 .*no @attribute line above"),
    ("@attribute x relational\n", "line 1 .*'x' is relational; expected"),
    ("@attribute x\n", "'x' is of no kind"),
    ("x,y\n1,a\n", "line 1 .*expected @relation, .*got 'x,y'"),
  ],
)
def test_headers_that_cannot_be_read(text, message):
  with pytest.raises(StudyError, match=message):
    _arff.read(text, "a.arff")


def test_a_study_reads_arff(tmp_path):
  path = tmp_path / "mine.arff"
  rows = "\n".join(
    f'  % {k}\n{k},"{"b, c" if k % 2 else "d"}"' for k in range(6)
  )
  path.write_text(
    f'@attribute x real\n@attribute y {{"b, c",d}}\n@data\n{rows}'
  )
  data = load_data(str(path), "y")
  assert data.classes == ("b, c", "d")
  np.testing.assert_array_equal(data.features[:, 0], range(6))
  np.testing.assert_array_equal(data.labels, [1, 0, 1, 0, 1, 0])
