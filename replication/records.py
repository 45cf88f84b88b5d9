# SPDX-License-Identifier: Apache-2.0
"""The committed tables of numbers: one row per run, curve point or data set."""

import gzip
import pathlib

import pandas as pd

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs" / "replication"
RESULTS = DOCS / "results.csv.gz"
CURVES = DOCS / "curves.csv.gz"
SETS = DOCS / "sets.csv"


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes a file, or leaves the old one as it was if that fails.

  Args:
    path: Its path. The content is compressed if the path ends in ``.gz``.
    content: What to write.
  """
  if path.suffix == ".gz":
    # Without the time, so that equal rows make equal files.
    content = gzip.compress(content, mtime=0)
  partial = path.with_name(f"{path.name}.part")
  try:
    partial.write_bytes(content)
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def read(path: pathlib.Path) -> pd.DataFrame:
  """Reads one of the tables.

  Args:
    path: Its path.

  Returns:
    Its rows. Digests are texts, also one that consists of digits only.
  """
  return pd.read_csv(path, dtype={"code": str, "data_sha256": str})


def append(path: pathlib.Path, rows: pd.DataFrame) -> None:
  """Adds rows to a table and removes the old rows of the same data sets.

  Args:
    path: The table, which is created if it does not exist.
    rows: The new rows, with a column ``data``.
  """
  if path.exists():
    before = read(path)
    others = before[~before["data"].isin(rows["data"])]
    rows = pd.concat([others, rows], ignore_index=True)
  # Nine digits represent a float32 exactly.
  write(path, rows.to_csv(index=False, float_format="%.9g").encode())
