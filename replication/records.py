# SPDX-License-Identifier: Apache-2.0
"""The committed tables of numbers: one row per run, curve point or data set."""

from collections.abc import Sequence
import gzip
import pathlib

import pandas as pd

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs" / "replication"
RESULTS = DOCS / "results.csv.gz"
CURVES = DOCS / "curves.csv.gz"
SETS = DOCS / "sets.csv"
# The columns of the study's results that are kept.
COLUMNS = (
  ("data", "loss", "probability_map", "training_length", "epochs")
  + ("fold", "seed", "accuracy", "nll", "brier", "ece", "ace", "aurc")
  + ("train_accuracy", "temperature", "nll_scaled", "brier_scaled")
  + ("ece_scaled", "ace_scaled", "aurc_scaled")
)


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
  return pd.read_csv(
    path, dtype={"code": str, "stopped_code": str, "data_sha256": str}
  )


def append(
  path: pathlib.Path, rows: pd.DataFrame, keys: Sequence[str] = ("data",)
) -> None:
  """Adds rows to a table and removes the old rows with the same keys.

  Args:
    path: The table, which is created if it does not exist.
    rows: The new rows.
    keys: The columns that say which old rows the new ones replace.
  """
  if path.exists():
    before = read(path)
    new = pd.MultiIndex.from_frame(rows[list(keys)])
    others = before[~pd.MultiIndex.from_frame(before[list(keys)]).isin(new)]
    rows = pd.concat([others, rows], ignore_index=True)
  # Nine digits represent a float32 exactly.
  write(path, rows.to_csv(index=False, float_format="%.9g").encode())
