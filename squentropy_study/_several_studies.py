# SPDX-License-Identifier: Apache-2.0
"""Reads the results of several studies, one data set each."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from squentropy_study import _result_rows, _store
from squentropy_study._study_error import StudyError

# Settings that may differ between studies: what they say of a table, and what
# changes no number of a loss.
_OF_THE_DATA = frozenset(
  (
    "data",
    "label",
    "encoding",
    "header",
    "rows",
    "time",
    "group",
    "id",
    "drop",
    "categorical",
    "numeric",
    "missing",
    "min_class",
    "merge_rare",
    "merge_case",
    "dedupe",
    "reference",
    "baselines",
  )
)


def _read_rows(folder: Path) -> pd.DataFrame:
  """Reads ``results.csv`` of a finished study."""
  path = folder / "results.csv"
  if not path.exists():
    raise StudyError(
      f"{folder} holds no finished study; run one with squentropy-study run"
    )
  try:
    rows = pd.read_csv(path)
  except (pd.errors.EmptyDataError, pd.errors.ParserError):
    rows = pd.DataFrame()
  missing = set(_result_rows.ResultRow._fields) - set(rows.columns)
  if missing or rows.empty:
    lacking = f"column {min(missing)}" if missing else "rows"
    raise StudyError(
      f"{path} is not a table of results (it has no {lacking}); rewrite it "
      f"with: squentropy-study report {folder}"
    )
  return rows


def read_results(folders: Sequence[str | Path]) -> pd.DataFrame:
  """Reads the results of several studies that differ in their data alone.

  Args:
    folders: Folders of finished studies.

  Returns:
    The rows of their ``results.csv``.

  Raises:
    StudyError: A folder holds no finished study, two folders hold the same
      data, or a setting other than the data differs.
  """
  tables: dict[str, pd.DataFrame] = {}
  digests: set[str] = set()
  first: dict[str, Any] = {}
  for folder in map(Path, folders):
    rows, config = _read_rows(folder), _store.read_config(folder)
    if config is None:
      raise StudyError(
        f"{folder} holds no study because its config.json is missing; run the "
        "study again"
      )
    settings = dataclasses.asdict(_store.read_settings(folder, config))
    data = settings["data"]
    settings = {k: v for k, v in settings.items() if k not in _OF_THE_DATA}
    digest = config.get("data_sha256") or data
    if digest in digests:
      raise StudyError(
        f"{folder} holds the data {data}, which another folder holds too; "
        "leave one of them out"
      )
    if data in tables:
      # Files of the same name in different folders.
      data = f"{data} in {folder}"
      rows = rows.assign(data=data)
    first = first or settings
    for key, expected in first.items():
      if settings[key] != expected:
        raise StudyError(
          f"{folder} and {folders[0]} must differ in their data alone, but "
          f"{key} is {settings[key]} and {expected}; run one of them again"
        )
    tables[data] = rows
    digests.add(digest)
  return pd.concat(tables.values(), ignore_index=True)


def common_reference(folders: Sequence[str | Path]) -> str | None:
  """Returns the loss that all studies name as their reference, if any."""
  named = {
    _store.read_settings(Path(folder), config).reference
    for folder in folders
    if (config := _store.read_config(folder)) is not None
  }
  return named.pop() if len(named) == 1 else None
