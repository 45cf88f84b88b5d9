# SPDX-License-Identifier: Apache-2.0
"""Tables and images from files, by the ending of their name."""

from collections.abc import Callable
import csv
import gzip
from pathlib import Path
import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from squentropy_study import _tables
from squentropy_study._errors import UNREADABLE, StudyError

# What stands for a gap in a column of features, beside pandas' own list.
_GAPS = ["?", "<null>"]


class Read(NamedTuple):
  """What a file held.

  Attributes:
    features: ``[rows, ...]``, floating; NaN for gaps.
    labels: ``[rows]``, int32 ids.
    classes: Their names.
    notes: Sentences on what was done to the rows and columns.
  """

  features: np.ndarray
  labels: np.ndarray
  classes: tuple[str, ...]
  notes: tuple[str, ...] = ()


def _first_row(path: Path, separator: str) -> list[str]:
  """The first row of a file whose rows are all as long, which is checked."""
  with path.open(encoding="utf-8-sig", newline="") as file:
    rows = csv.reader(file, delimiter=separator, skipinitialspace=True)
    first: list[str] = []
    for row in rows:
      if len(row) < 2 and not "".join(row).strip():
        continue  # A blank line.
      if not first:
        first = row
        # A decimal comma would make the other rows longer.
        others = [s for s in ",;\t|" if len(row) == 1 and s in row[0]]
        if others:
          raise ValueError(
            f"its values are separated by {others[0]!r}, not by {separator!r}"
          )
      if len(row) != len(first):
        # pandas would shift the columns of a row that is too long.
        raise ValueError(
          f"line {rows.line_num} has {len(row)} values for {len(first)} columns"
        )
  if not first:
    raise ValueError("it has no rows")
  return first


def _labels(texts: pd.Series) -> pd.Series:
  """Numbers if all texts but the gaps are, and stay apart as numbers."""
  held = texts[~texts.str.strip().isin(_tables.LABEL_GAPS)]
  numbers = pd.to_numeric(held, errors="coerce")
  whole = np.isfinite(numbers).all()
  if numbers.dtype.kind == "f":
    whole &= (numbers.abs() < 2**53).all()
  return numbers.astype(object).reindex(texts.index) if whole else texts


def _delimited(path: Path, label: str | None, **layout: Any) -> pd.DataFrame:
  """Reads rows of text; a class may be called "None", which else is a gap."""
  frame = pd.read_csv(path, na_values=_GAPS, skipinitialspace=True, **layout)
  if label is None or label not in frame.columns:
    return frame
  texts = pd.read_csv(
    path,
    usecols=[label],
    dtype=str,
    keep_default_na=False,
    skipinitialspace=True,
    **layout,
  )
  frame[label] = _labels(texts[label])
  return frame


def _csv(path: Path, label: str | None) -> pd.DataFrame:
  separator = "\t" if path.suffix.lower() == ".tsv" else ","
  header = _first_row(path, separator)
  _tables.check_names(str(path), [name.strip() for name in header])
  return _delimited(path, label, sep=separator)


def _parquet(path: Path, label: str | None) -> pd.DataFrame:
  return pd.read_parquet(path)


def _rda(path: Path, label: str | None) -> pd.DataFrame:
  import pyreadr  # Optional.

  try:
    tables = pyreadr.read_r(str(path))
  except pyreadr.LibrdataError as error:
    raise ValueError(str(error)) from None
  if len(tables) != 1:
    raise ValueError(f"it holds {len(tables)} tables, not one")
  return next(iter(tables.values()))


# A name, quoted or not, and what it may hold.
_ATTRIBUTE = re.compile(
  r"@attribute\s+(?:'([^']*)'|\"([^\"]*)\"|([^\s{]+))\s*(.*)", re.IGNORECASE
)


def _header_table(path: Path, label: str | None) -> pd.DataFrame:
  """An ARFF or KEEL table: ``@attribute`` lines, then rows after ``@data``."""
  names, kinds = [], []
  lines = iter(path.read_text("utf-8-sig").splitlines())
  for line in lines:
    word = line.strip().lower()
    if word.startswith("@data"):
      break
    if match := _ATTRIBUTE.match(line.strip()):
      names.append("".join(name for name in match.groups()[:3] if name))
      if not names[-1]:
        raise ValueError(f"its attribute {len(names)} has no name")
      kinds.append(match[4].strip().lower())
  else:
    raise ValueError("it has no @data line")
  _tables.check_names(str(path), names)
  wanted = (line for line in lines if line.strip() and line[0] != "%")
  quote = "'" if path.suffix.lower() == ".arff" else '"'
  rows = list(csv.reader(wanted, quotechar=quote, skipinitialspace=True))
  uneven = [row for row in rows if len(row) != len(names)]
  if uneven:
    raise ValueError(
      f"a row has {len(uneven[0])} values for {len(names)} attributes: "
      f"{','.join(uneven[0])[:40]}"
    )
  stripped = [[cell.strip() for cell in row] for row in rows]
  frame = pd.DataFrame(stripped, columns=names).replace(_GAPS, None)
  for name, kind in zip(names, kinds, strict=True):
    if re.match(r"(numeric|real|integer)\b", kind):
      frame[name] = pd.to_numeric(frame[name])
  return frame


def _dat(path: Path, label: str | None) -> pd.DataFrame:
  """A KEEL table; without a header the columns are numbered from 0."""
  # Comments may stand before the header.
  if re.match(r"(\s*%.*\n)*\s*@", path.read_text("utf-8-sig")):
    return _header_table(path, label)
  width = len(_first_row(path, ","))
  names = [str(k) for k in range(width)]
  return _delimited(path, label or names[-1], names=names)


# Readers get the column of classes as well, which may hold no number.
_TABLES: dict[str, Callable[[Path, str | None], pd.DataFrame]] = {
  ".csv": _csv,
  ".tsv": _csv,
  ".parquet": _parquet,
  ".arff": _header_table,
  ".dat": _dat,
  ".rda": _rda,
}
# Their last column is the class by custom.
_LABEL_LAST = (".arff", ".dat")


def _npz(path: Path) -> Read:
  with path.open("rb") as file:
    arrays = np.load(file, allow_pickle=False)
    if isinstance(arrays, np.ndarray):
      raise ValueError("it holds one array without a name, not x and y")
    missing = {"x", "y"} - set(arrays)
    if missing:
      raise ValueError(f"it has no array {min(missing)!r}")
    x, y = arrays["x"], arrays["y"]
  if y.ndim != 1 or x.ndim < 2 or len(x) != len(y):
    raise ValueError(
      f"x has shape {x.shape} and y {y.shape}, not a row of x and a class id "
      "in y for each example"
    )
  if x.dtype.kind not in "biuf":
    raise ValueError(f"x holds {x.dtype}, not numbers")
  if x.dtype.kind == "f":
    x = np.where(np.isfinite(x), x, np.nan)
  if np.isnan(x).all():
    raise ValueError("x holds no number")
  ids, classes, kept = _tables.class_ids(f"y of {path}", y)
  x = x[kept]
  notes = _tables.without_label((~kept).sum())
  if gaps := np.isnan(x).sum():
    notes.append(
      "missing or infinite numbers, replaced by the mean of the training rows: "
      f"{gaps}"
    )
  return Read(x, ids, classes, tuple(notes))


def _idx(path: Path) -> np.ndarray:
  """The array of an IDX file, which may be compressed."""
  data = path.read_bytes()
  if path.suffix == ".gz":
    data = gzip.decompress(data)
  # Two zeros, the type (8: unsigned bytes), how many axes; then their sizes.
  if len(data) < 4 or data[:3] != b"\x00\x00\x08":
    raise ValueError(f"{path.name} is no IDX file of bytes")
  rank = data[3]
  shape = np.frombuffer(data, ">u4", rank, offset=4)
  return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _images(folder: Path) -> Read:
  """A folder of MNIST's layout; its two parts are pooled."""

  def part(name: str) -> np.ndarray:
    found = sorted(folder.glob(f"{name}-idx?-ubyte*"))
    if not found:
      raise ValueError(f"it has no {name}-idx*-ubyte file")
    return _idx(found[0])

  images = [part("train-images"), part("t10k-images")]
  labels = [part("train-labels"), part("t10k-labels")]
  for x, y in zip(images, labels, strict=True):
    if len(x) != len(y):
      raise ValueError(f"{len(x)} images have {len(y)} labels")
  y = np.concatenate(labels)
  ids, classes, _ = _tables.class_ids(f"labels of {folder}", y)
  sizes = " and ".join(str(len(y)) for y in labels)
  notes = (f"its {sizes} images were pooled and split anew",)
  # One channel, in 0 .. 1.
  x = np.concatenate(images)[..., None] / np.float32(255)
  return Read(x, ids, classes, notes)


def _read(path: Path, label: str | None) -> Read:
  ending = path.suffix.lower()
  if path.is_dir() and not any(path.glob("train-images-idx?-ubyte*")):
    raise StudyError(
      f"{path} is a folder without IDX images (train-images-idx3-ubyte); name "
      "such a folder, or a data file"
    )
  if path.is_dir() or ending == ".npz":
    if label is not None:
      raise StudyError(f"{path} has its labels apart; leave out --label")
    return _images(path) if path.is_dir() else _npz(path)
  if ending not in _TABLES:
    known = ", ".join([*_TABLES, ".npz"])
    raise StudyError(
      f"{path}: no reader for {path.suffix or 'a name without ending'!r}; "
      f"a data file ends in one of {known}, or is a folder of IDX files"
    )
  frame = _TABLES[ending](path, label)
  if label is None:
    if ending not in _LABEL_LAST:
      names = ", ".join(map(str, frame.columns[:8]))
      raise StudyError(
        f"{path}: name the column of classes with --label; it has {names}"
        + (" ..." if len(frame.columns) > 8 else "")
      )
    label = str(frame.columns[-1])
  return Read(*_tables.numbers(str(path), frame, label))


def read(path: Path, label: str | None) -> Read:
  """Reads a data file.

  Args:
    path: A CSV, TSV, Parquet, NPZ (arrays ``x`` and ``y``), ARFF, KEEL
      ``.dat`` or R ``.rda`` file, or a folder of IDX files.
    label: Column of classes; for ARFF and KEEL the last one if None.

  Returns:
    Its rows.

  Raises:
    StudyError: The file is not what its name says, or has no usable column of
      classes, or its reader is not installed.
  """
  try:
    return _read(path, label)
  except ImportError as error:
    raise StudyError(
      f"{path}: reading it needs another package ({error.name or error}); "
      "pip install 'squentropy_jax[tables]'"
    ) from None
  except StudyError:
    raise
  except UnicodeDecodeError as error:
    raise StudyError(
      f"{path} is no text in UTF-8 (byte {error.start}); save it as UTF-8, or "
      "mend its name if it is of another kind"
    ) from None
  except UNREADABLE as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    kind = "folder of IDX files" if path.is_dir() else f"{path.suffix} file"
    raise StudyError(
      f"{path} cannot be read as a {kind}: {reason}; mend the file, or its "
      "name if it is of another kind"
    ) from None
