# SPDX-License-Identifier: Apache-2.0
"""Bytes of a file, decompressed, and text from bytes."""

import bz2
import codecs
import gzip
import io
import lzma
from pathlib import Path, PurePosixPath
from typing import NamedTuple
import zipfile

from squentropy_study._study_error import StudyError

_ENDINGS = (".gz", ".zip", ".bz2", ".xz")
# The first bytes decide, because endings are often wrong.
_COMPRESSED = {
  b"\x1f\x8b": gzip.decompress,
  b"BZh": bz2.decompress,
  b"\xfd7zXZ\x00": lzma.decompress,
}
_ZIP = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"
# UTF-32 first, because its little-endian mark begins with that of UTF-16.
_MARKS = {
  codecs.BOM_UTF32_LE: "utf-32",
  codecs.BOM_UTF32_BE: "utf-32",
  codecs.BOM_UTF8: "utf-8",
  codecs.BOM_UTF16_LE: "utf-16",
  codecs.BOM_UTF16_BE: "utf-16",
}


class Content(NamedTuple):
  """What a file holds.

  Attributes:
    name: The name of the file or archive member without the ending of a
      compression. Its ending says how to read the bytes.
    data: The decompressed bytes.
    notes: Sentences on what was found.
  """

  name: str
  data: bytes
  notes: tuple[str, ...] = ()


def is_compressed(path: Path) -> bool:
  """Returns whether the ending says that a file is compressed."""
  return path.suffix.lower() in _ENDINGS


def _member(data: bytes, name: str) -> Content:
  """Returns the only file of an archive."""
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    # macOS adds a folder of its own to an archive.
    members = [
      member
      for member in archive.namelist()
      if not member.endswith("/") and not member.startswith("__MACOSX/")
    ]
    if len(members) != 1:
      raise StudyError(
        f"{name} must hold one file, got {len(members)} "
        f"({', '.join(members[:3]) or 'none'}); extract the file that you want "
        "to use and pass its path"
      )
    inner = PurePosixPath(members[0]).name
    return Content(inner, archive.read(members[0]))


def content(path: Path, archives: tuple[str, ...]) -> Content:
  """Reads a file and decompresses it where its first bytes say so.

  Args:
    path: The file.
    archives: Endings of files that are ZIP archives by themselves, such as
      ``.xlsx``; they stay as they are.

  Returns:
    The name that says how to read the bytes, and the bytes.

  Raises:
    StudyError: A ZIP archive holds no file or several.
  """
  data = path.read_bytes()
  name = path.stem if is_compressed(path) else path.name
  if data.startswith((_ZIP, _EMPTY_ZIP)):
    if path.suffix.lower() in archives:
      return Content(name, data)
    inner = _member(data, str(path))
    # The archive may name the kind of its file, as a.csv.zip does.
    return inner._replace(name=inner.name if Path(inner.name).suffix else name)
  for mark, decompress in _COMPRESSED.items():
    if data.startswith(mark):
      return Content(name, decompress(data))
  if is_compressed(path):
    return Content(
      name,
      data,
      (f"the file is not compressed, although its name ends in {path.suffix}",),
    )
  return Content(name, data)


def _advice(data: bytes) -> str:
  """Returns what to type for bytes that are not UTF-8."""
  try:
    data.decode("cp1252")
    western = "cp1252"
  except UnicodeDecodeError:
    western = "latin-1"
  return (
    f"add --encoding {western} for a file that Excel or another program saved "
    "in a Western European language, or name another encoding, such as cp1250, "
    "shift_jis or gb18030"
  )


def _refuse_zeros(text: str, source: str) -> None:
  """Raises for a text with characters of code 0, which no table has."""
  first = text.find("\0")
  if first < 0:
    return
  # Latin letters in UTF-16 have a zero in every second byte.
  for start, name in ((1, "utf-16-le"), (0, "utf-16-be")):
    half = text[start:1000:2]
    if 2 * half.count("\0") > len(half):
      raise StudyError(
        f"{source} seems to be UTF-16 text without a byte order mark; add "
        f"--encoding {name}"
      )
  raise StudyError(
    f"{source} is not text (character {first} has code 0); if it is another "
    "kind of file, rename it with the ending of that kind"
  )


def decode(
  data: bytes, source: str, encoding: str | None
) -> tuple[str, tuple[str, ...]]:
  """Decodes the bytes of a text file.

  A byte order mark decides. Without one, the text must be UTF-8 unless an
  encoding is named.

  Args:
    data: The bytes.
    source: The name of the file in error messages.
    encoding: The name of an encoding, as Python knows it, or None.

  Returns:
    The text, and sentences on what was found.

  Raises:
    StudyError: The bytes are no text of this encoding, or Python knows no
      encoding of this name.
  """
  marked = next((m for mark, m in _MARKS.items() if data.startswith(mark)), "")
  if encoding is not None:
    try:
      known = codecs.lookup(encoding).name
      "x".encode(encoding)  # Fails if the codec is not one of text.
    except (LookupError, UnicodeError):
      raise StudyError(
        f"unknown encoding {encoding!r}; choose one that Python knows, such as "
        "utf-8, utf-16, cp1252 (Western Windows), latin-1, cp1250, shift_jis "
        "or gb18030"
      ) from None
    if not known.startswith(marked):
      raise StudyError(
        f"{source} has the byte order mark of {marked.upper()}, not "
        f"{encoding}; leave out --encoding"
      )
  used = encoding or marked or "utf-8"
  if used == "utf-8" and b"\0" in data:
    # Before it is decoded, because UTF-16 is seldom valid UTF-8.
    _refuse_zeros(data.decode("latin-1"), source)
  try:
    # Only the byte order mark says which byte order UTF-16 has.
    text = data.decode(marked or used)
  except UnicodeDecodeError as error:
    at = f"{source} is not {used.upper()} text (byte {error.start})"
    advice = (
      "leave out --encoding, or name another one, such as --encoding utf-8, "
      "cp1252 or latin-1"
      if encoding
      else _advice(data)
    )
    raise StudyError(f"{at}; {advice}") from None
  text = text.removeprefix("\ufeff")
  _refuse_zeros(text, source)
  said = marked not in ("", "utf-8")
  return text, (f"the text is {marked.upper()}",) if said else ()
