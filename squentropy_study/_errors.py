# SPDX-License-Identifier: Apache-2.0
"""The one error a user of the study can cause."""

from collections.abc import Iterable
import csv
import difflib
import tokenize
import zipfile
import zlib

# What readers raise on bytes that are not what the file's name says, or that
# have changed on the disk.
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
  tokenize.TokenError,
  zipfile.BadZipFile,
  zlib.error,
)


class StudyError(ValueError):
  """Something the user can mend; the message is one line and says how."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> StudyError:
  """An error that suggests the nearest of the known names."""
  known = list(known)
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
  return StudyError(f"unknown {kind} {name!r}; {hint}")
