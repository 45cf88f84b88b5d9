# SPDX-License-Identifier: Apache-2.0
"""The error that a user of the study can cause and fix."""

from collections.abc import Iterable
import csv
import difflib
import lzma
import tokenize
import zipfile
import zlib

# What readers raise on a file that is damaged or of another kind.
UNREADABLE = (
  OSError,
  EOFError,
  NotImplementedError,
  RuntimeError,
  SyntaxError,
  TypeError,
  ValueError,
  LookupError,
  csv.Error,
  lzma.LZMAError,
  tokenize.TokenError,
  zipfile.BadZipFile,
  zlib.error,
)


class StudyError(ValueError):
  """A user error. The message is one line and says how to fix it."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> StudyError:
  """Returns an error that suggests the nearest known name."""
  known = list(known)
  near = difflib.get_close_matches(name, known, n=1)
  hint = (
    f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
  )
  return StudyError(f"unknown {kind} {name!r}; {hint}")
