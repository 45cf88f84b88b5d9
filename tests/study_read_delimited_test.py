# SPDX-License-Identifier: Apache-2.0
"""Separated values: separators, quotes, decimal marks, headers, lengths."""

import csv

import pytest

from squentropy_study import StudyError, _decimal_mark, _delimited, _header

NAMES = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}


def _read(text, **options):
  return _delimited.read(text, "a.csv", **options)


def _columns(text, **options):
  return _read(text, **options).frame.to_dict("list")


@pytest.mark.parametrize("separator", NAMES)
def test_separators_are_found_and_said(separator):
  others = "".join(x for x in NAMES if x not in (separator, "\t"))
  rows = [
    ["size", "a text", "kind"],
    [" 1 ", f"has {others}{separator}, all", "x"],
    ["02", 'a "quote"', ""],
    ["NA", "two\nlines", " y"],
  ]
  quoted = [['"' + c.replace('"', '""') + '"' for c in row] for row in rows]
  text = "\r\n".join(separator.join(row) for row in quoted)
  table = _read(text)
  assert table.frame.to_dict("list") == {
    "size": ["1", "02", "NA"],
    "a text": [rows[1][1], 'a "quote"', "two\nlines"],
    "kind": ["x", None, "y"],
  }
  assert table.from_text
  assert table.decimal == "."
  assert table.notes == (f"values are separated by {NAMES[separator]}",)
  assert _read(text, usual=separator).notes == ()


@pytest.mark.parametrize(
  ("text", "names"),
  [
    ("a;b\n1,5;2,5\n3,5;4,5\n", "a b"),
    ("a|b\n1,5|2\n3|4\n", "a b"),
    ("a\tb,c\n1,5\t2\n", "a b,c"),
    ("a,b\n1;2,3\n4;5,6\n", "a b"),
    ("a,b\n", "a b"),
    ("sep=;\na;b,c\n1;2\n", "a b,c"),
    ("SEP=,\r\na;b,c\r\n1,2\r\n", "a;b c"),
    ('"sep=:"\na:b\n1:2\n', "a b"),
    ("a\r1\r2\r", "a"),
  ],
)
def test_separators_of_unusual_tables(text, names):
  expected = ["a", "b,c"] if names == "a b,c" else names.split()
  assert list(_read(text).frame.columns) == expected


def test_separator_line_of_excel_is_said_and_counted():
  table = _read("sep=;\r\na;b\r\n1;2\r\n")
  assert table.frame.to_dict("list") == {"a": ["1"], "b": ["2"]}
  assert table.notes == ("the first line names the separator ';'",)
  with pytest.raises(StudyError, match="line 3 has 3 values for 2 columns"):
    _read("sep=;\r\na;b\r\n1;2;3\r\n")


def test_no_value_is_converted_and_blank_lines_are_no_rows():
  text = 'code,"a ""b""",\n\n001,NaN,None\n \nA01, 1e5 ,\n\n'
  assert _columns(text) == {
    "code": ["001", "A01"],
    'a "b"': ["NaN", "1e5"],
    "Unnamed: 2": ["None", None],
  }


def test_rows_in_several_chunks(monkeypatch):
  monkeypatch.setattr(_delimited, "_CHUNK", 3)
  for rows in range(8):
    text = "a,b\n" + "".join(f"{k},{-k}\n" for k in range(rows))
    numbers = [str(k) for k in range(rows)]
    assert _columns(text)["a"] == numbers
    assert _columns(text, header=False)["column1"] == ["a", *numbers]
  with pytest.raises(StudyError, match=r"line 6 has 1 value for 2 c.*1 other"):
    _read("a,b\n1,2\n1,2\n1,2\n1,2\n1\n1,2\n1,2,3\n")


def test_cells_may_have_any_size():
  limit = csv.field_size_limit()
  cell = "x" * 200_000
  assert _columns(f"a,b\n{cell},1\n")["a"] == [cell]
  assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
  ("text", "decimal"),
  [
    ("a;b\n0,942;x\n12;y\n", ","),
    ("a;b\n1.234,5;x\n2;y\n", ","),
    ("a;b\n1,234;x\n2,345;y\n", ","),  # Semicolons decide.
    ("a\tb\n1,234\tx\n2,345\ty\n", "."),  # Perhaps thousands.
    ("a\tb\n1,5\tx\n2,345\ty\n", ","),
    ('a,b\n"1,5",x\n"2,25",y\n', ","),
    ('a,b\n"2,883.43","$5,190"\n"1,741.01","$4,049"\n', "."),
    ("a;b\n1.5;x\n2;y\n", "."),
    ("a;b\n1,234;2.5\n2,345;3.5\n", "."),
    ("a;b\n1,5 %;x\n€ 2,5;y\n", ","),
    ("a;b\n1,5e3;unknown\n-,5;<0,1\n", ","),
    ("a;b\n1,2,3;x\n4,5;y\n6,7,8;y\n", "."),  # Mostly lists.
    ("a;b\nx, y;1\nz, w;2\n", "."),
    ("a;b\n01.02.2024;x\n03.04.2024;y\n", "."),
  ],
)
def test_decimal_mark(text, decimal):
  table = _read(text, usual=";")
  assert table.decimal == decimal
  said = [note for note in table.notes if "decimal" in note]
  assert bool(said) == (decimal == ",")


def test_note_on_a_decimal_comma():
  columns = [["7", "0,942", "1,5"], [None, "2.10", "2.11"]]
  assert _decimal_mark.find(columns, semicolons=True) == (
    ",",
    (
      "numbers have a decimal comma, such as 0,942, but others have a decimal "
      "point, such as 2.10",
    ),
  )
  assert _decimal_mark.find(columns, semicolons=False) == (
    ".",
    (
      "numbers have a decimal point, such as 2.10, but others have a decimal "
      "comma, such as 0,942",
    ),
  )
  assert _decimal_mark.find(columns[:1], semicolons=False)[1] == (
    "numbers have a decimal comma, such as 0,942",
  )


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "has no rows; name a file with"),
    (" \n\n", "has no rows"),
    ("x,y\n1,a\n2,b,3\n", "line 3 has 3 values for 2 columns; put quotes"),
    ("x,y\n1,a,5\n2,b,3\n", "line 2 has 3 values.*1 other line.; put quotes"),
    ("x,y\n1,a\n2\n3,4,5\n6\n", "line 3 has 1 value .*and 2 other lines"),
    ('x,y\n"1\n2",a\n2,b,3\n', "line 4 has 3 values"),
    (
      "My table\n\nx,y\n1,2\n3,4\n",
      "line 1 has one value, but others have 2; r",
    ),
    ('x,y\n1,b\n"1,a\n2,b\n', "begins in line 3 and has no closing quote; add"),
    ("x y\n1 2\n3  4\n", "not separated by commas.*replace the spaces"),
  ],
)
def test_text_that_is_no_table(text, message):
  with pytest.raises(StudyError, match=f"^a.csv.*{message}"):
    _read(text)


def test_names_without_a_header():
  table = _read("1;2\n3;4\n", header=False)
  assert table.frame.to_dict("list") == {
    "column1": ["1", "3"],
    "column2": ["2", "4"],
  }


@pytest.mark.parametrize(
  ("text", "label"),
  [
    ("0.9,-1.3,yes\n0.3,-1.0,yes\n0.1,2,no\n", "churned"),
    ("0.9,-1.3,yes\n0.3,-1.0,yes\n0.1,2,no\n", None),
    ("0.9,-1.3,yes\n0.3,-1.0,yes\n0.1,2,no\n", "yes"),
    ("5,5,yes\n?,3,yes\n2,2,no\n", "5"),
    ("p,x,s\np,x,s\ne,y,s\ne,x,s\n", "class"),
    ("1;red\n2;red\n3;blue\n", "class"),
  ],
)
def test_file_without_a_header_is_recognised(text, label):
  with pytest.raises(StudyError, match="no header: its first line") as caught:
    _header.check("a.csv", _read(text), label, header=True)
  last = len(text.splitlines()[0].replace(";", ",").split(","))
  assert "Add --no-header" in str(caught.value)
  assert f"--label column{last}" in str(caught.value)
  _header.check("a.csv", _read(text, header=False), label, header=False)


@pytest.mark.parametrize(
  ("text", "label"),
  [
    ("a,b,kind\n1,2,x\n3,4,y\n", "sort"),
    ("a,b,kind\n1,2,x\n3,4,y\n", None),
    ("0,1,2,kind\n5,6,7,x\n8,9,7,y\n", None),  # Names that pandas writes.
    ("2019,2020,kind\n5,6,x\n8,9,y\n", "sort"),
    ("0.5,1.5,kind\n5,6,x\n8,9,y\n", "kind"),
    (",1.5,kind\n5,6,x\n8,9,y\n", "kind"),
    ("a,b\n", "b"),
  ],
)
def test_header_is_not_taken_for_data(text, label):
  _header.check("a.csv", _read(text), label, header=True)


def test_no_header_with_a_header():
  for text in ("size,kind\n1,a\n2,b\n", "size,kind\n1,a\n?,b\n"):
    with pytest.raises(
      StudyError, match=r"is size, kind; leave out --no-header"
    ):
      _header.check("a.csv", _read(text, header=False), None, header=False)
  for text in ("?,kind\n1,a\n2,b\n", "x,a\ny,b\n", "1,kind\n2,a\n"):
    _header.check("a.csv", _read(text, header=False), None, header=False)
