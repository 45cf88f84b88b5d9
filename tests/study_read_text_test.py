# SPDX-License-Identifier: Apache-2.0
"""Compressed files, and encodings of text."""

import bz2
import codecs
import gzip
import io
import lzma
import zipfile

import pytest

from squentropy_study import StudyError, _read_file, _read_text

TEXT = "size,kind\n1.5,café\n2,b\n"
COLUMNS = {"size": ["1.5", "2"], "kind": ["café", "b"]}


def _zip(files: dict[str, bytes]) -> bytes:
  data = io.BytesIO()
  with zipfile.ZipFile(data, "w") as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return data.getvalue()


def _read(path, **options):
  return _read_file.read(path, "kind", **options)


@pytest.mark.parametrize(
  ("ending", "compress"),
  [
    (".gz", gzip.compress),
    (".bz2", bz2.compress),
    (".xz", lzma.compress),
    (".zip", lambda data: _zip({"inside.csv": data})),
  ],
)
def test_first_bytes_say_how_a_file_is_compressed(tmp_path, ending, compress):
  data = compress(TEXT.encode())
  for name in (f"a.csv{ending}", "b.csv", f"C.CSV{ending.upper()}", "d.csv.gz"):
    path = tmp_path / name
    path.write_bytes(data)
    table = _read(path)
    assert table.frame.to_dict("list") == COLUMNS, name
    assert table.notes == ()
  path = tmp_path / f"plain.csv{ending}"
  path.write_text(TEXT, encoding="utf-8")
  assert _read(path).frame.to_dict("list") == COLUMNS
  assert _read(path).notes == (
    f"the file is not compressed, although its name ends in {ending}",
  )
  (tmp_path / "cut.csv").write_bytes(data[:-12])
  with pytest.raises(StudyError, match=r"cannot be read as a \.csv file"):
    _read(tmp_path / "cut.csv")


def test_archive_holds_one_file_and_may_name_its_kind(tmp_path):
  path = tmp_path / "a.zip"
  text = TEXT.replace(",", "\t").encode()
  path.write_bytes(_zip({"folder/table.tsv": text, "__MACOSX/._t": b"x"}))
  assert _read(path).frame.to_dict("list") == COLUMNS
  assert _read(path).notes == ()
  path = tmp_path / "a.csv.zip"
  path.write_bytes(_zip({"table": TEXT.encode()}))
  assert _read(path).frame.to_dict("list") == COLUMNS
  path.write_bytes(_zip({"one": b"", "two": b""}))
  with pytest.raises(
    StudyError, match=r"one file, got 2 \(one, two\); extract"
  ):
    _read(path)
  path.write_bytes(_zip({}))
  with pytest.raises(StudyError, match=r"one file, got 0 \(none\)"):
    _read(path)


@pytest.mark.parametrize(
  ("mark", "encoding", "note"),
  [
    (b"", "utf-8", ()),
    (codecs.BOM_UTF8, "utf-8", ()),
    (codecs.BOM_UTF16_LE, "utf-16-le", ("the text is UTF-16",)),
    (codecs.BOM_UTF16_BE, "utf-16-be", ("the text is UTF-16",)),
    (codecs.BOM_UTF32_LE, "utf-32-le", ("the text is UTF-32",)),
    (codecs.BOM_UTF32_BE, "utf-32-be", ("the text is UTF-32",)),
  ],
)
def test_byte_order_marks_are_followed(tmp_path, mark, encoding, note):
  path = tmp_path / "a.csv"
  path.write_bytes(mark + TEXT.encode(encoding))
  for named in (None, encoding):
    table = _read(path, encoding=named)
    assert table.frame.to_dict("list") == COLUMNS
    assert table.notes == note
  if mark:
    with pytest.raises(
      StudyError, match=r"byte order mark of UTF.*leave out --"
    ):
      _read(path, encoding="cp1252")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le"])
def test_text_without_a_mark_has_the_encoding_that_is_named(tmp_path, encoding):
  path = tmp_path / "a.csv"
  path.write_bytes(TEXT.encode(encoding))
  assert _read(path, encoding=encoding).frame.to_dict("list") == COLUMNS


@pytest.mark.parametrize(
  ("data", "encoding", "message"),
  [
    (TEXT.encode("cp1252"), None, r"not UTF-8.*byte 17.*add --encoding cp1252"),
    (b"a\x81,kind\n1,2\n", None, "add --encoding latin-1"),
    (TEXT.encode("cp1252"), "utf-8", r"not UTF-8.*leave out --encoding"),
    (TEXT.encode("cp1252"), "ascii", "not ASCII text"),
    (TEXT.encode(), "utf8000", "unknown encoding 'utf8000'; choose.*cp1252"),
    (TEXT.encode(), "base64", "unknown encoding 'base64'"),
    (
      b"a,kind\n1,b\n".decode().encode("utf-16-le"),
      None,
      "--encoding utf-16-le",
    ),
    (
      b"a,kind\n1,b\n".decode().encode("utf-16-be"),
      None,
      "--encoding utf-16-be",
    ),
    (TEXT.encode("utf-16-le"), None, "add --encoding utf-16-le"),
    (b"\x00\x01PK,\n1,2,3\n4", None, "is not text .character 0 has code 0"),
  ],
)
def test_wrong_encoding_says_what_to_type(tmp_path, data, encoding, message):
  path = tmp_path / "a.csv"
  path.write_bytes(data)
  with pytest.raises(StudyError, match=message) as caught:
    _read(path, encoding=encoding)
  assert "\n" not in str(caught.value)


def test_endings_of_compressed_files(tmp_path):
  assert _read_text.is_compressed(tmp_path / "a.csv.BZ2")
  assert not _read_text.is_compressed(tmp_path / "a.gz.csv")
