# SPDX-License-Identifier: Apache-2.0
"""Assigns rows to training, validation and test parts."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from squentropy_study._column_cells import value_text
from squentropy_study._study_error import StudyError

# Without cross-validation one part of four is the validation part and one the
# test part.
PARTS = 4


class Split(NamedTuple):
  """Row numbers of the parts, one array per fold.

  Attributes:
    train: Training rows.
    validation: Rows that choose the epoch and fit the temperature.
    test: Rows that are reported.
    notes: Sentences on the split.
  """

  train: list[np.ndarray]
  validation: list[np.ndarray]
  test: list[np.ndarray]
  notes: tuple[str, ...] = ()


def check_options(folds: int, *, time: bool, group: bool) -> None:
  """Raises if a split by time or groups cannot be made with other options."""
  if time and folds != 1:
    raise StudyError(
      "--time tests on the last quarter of the rows, so there is one fold; "
      f"leave out --folds {folds}, or --time"
    )
  if time and group:
    raise StudyError(
      "--time and --group split the rows in different ways; leave out one of "
      "them"
    )


def _rotate(parts: list[np.ndarray], folds: int) -> Split:
  """Fold ``i`` tests on part ``i`` and validates on the next part."""
  train, validation = [], []
  for number in range(folds):
    after = (number + 1) % len(parts)
    others = [p for k, p in enumerate(parts) if k not in (number, after)]
    train.append(np.concatenate(others))
    validation.append(parts[after])
  return Split(train, validation, parts[:folds])


def random(labels: np.ndarray, folds: int, seed: int) -> Split:
  """Splits the rows at random, with the same shares of the classes."""
  parts = PARTS if folds == 1 else folds
  splitter = StratifiedKFold(parts, shuffle=True, random_state=seed)
  rows = np.zeros(labels.size)
  return _rotate([part for _, part in splitter.split(rows, labels)], folds)


def _check_size(name: str, values: np.ndarray, labels: np.ndarray) -> None:
  if values.shape != labels.shape:
    raise StudyError(
      f"{name} must have one value for each of the {labels.size} rows, got "
      f"shape {values.shape}"
    )


def _missing(values: np.ndarray) -> int:
  """Returns the number of missing values: None, NaN, NaT and empty text."""
  if values.dtype.kind == "O":
    return sum(pd.isna(x) or x == "" for x in values.tolist())
  if values.dtype.kind in "US":
    return int((values == values.dtype.type()).sum())
  # NaN and NaT differ from themselves.
  return int((values != values).sum())


def grouped(
  labels: np.ndarray, folds: int, seed: int, groups: np.ndarray
) -> Split:
  """Splits whole groups at random, with similar shares of the classes.

  Args:
    labels: ``[rows]``, class ids.
    folds: Number of folds: 1, or 3 and more for cross-validation.
    seed: Seed of the split.
    groups: ``[rows]``, equal values for the rows of a group.

  Returns:
    A split in which no group is in two parts of a fold.

  Raises:
    StudyError: A row has no group, or the groups are too few.
  """
  groups = np.asarray(groups)
  _check_size("groups", groups, labels)
  if missing := _missing(groups):
    raise StudyError(
      f"{missing} of {labels.size} rows have no value in the column of "
      "--group; fill it in, or drop these rows"
    )
  parts = PARTS if folds == 1 else folds
  # Texts, because a column of objects may hold values that do not compare. 1
  # and 1.0 have the same text: a workbook may hold both.
  keys = groups
  if groups.dtype.kind == "O":
    keys = np.array([value_text(value) for value in groups.tolist()])
  _, ids = np.unique(keys, return_inverse=True)
  count = int(ids.max(initial=-1)) + 1
  if count < parts:
    raise StudyError(
      f"the column of --group has {count} different values, but a split needs "
      f"at least {parts}; name another column, or leave out --group"
    )
  splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
  rows = np.zeros(labels.size)
  found = [part for _, part in splitter.split(rows, labels, ids)]
  if not all(part.size for part in found):
    largest = np.bincount(ids).max()
    raise StudyError(
      f"the column of --group cannot be split into {parts} parts: its largest "
      f"value has {largest} of {labels.size} rows; name a column with smaller "
      "groups"
    )
  split = _rotate(found, folds)
  note = f"{count} groups, of which none is in two parts"
  left = max(map(len, split.train)) - min(map(len, split.train))
  if left > parts:
    note += (
      f"; up to {left} training rows of a fold are left out, because all folds "
      "train on equally many rows"
    )
  return split._replace(notes=(note,))


def _moment(value: np.generic) -> str:
  if value.dtype.kind == "M":
    return str(value.astype("datetime64[s]")).removesuffix("T00:00:00")
  return f"{value:.6g}"


def by_time(labels: np.ndarray, times: np.ndarray) -> Split:
  """Trains on the past: tests on the last quarter of the rows in time.

  The validation rows are the quarter before. Rows of the same time are in the
  same part, so the parts may be larger or smaller than a quarter.

  Args:
    labels: ``[rows]``, class ids.
    times: ``[rows]``, numbers or dates.

  Returns:
    The split, of one fold.

  Raises:
    StudyError: A row has no time, or too few times differ.
  """
  times = np.asarray(times)
  _check_size("times", times, labels)
  if times.dtype.kind not in "iufM":
    raise StudyError(
      "the column of --time must hold numbers or dates such as 2026-11-30, got "
      f"{times.dtype}; rewrite it, or name another column"
    )
  if missing := _missing(times):
    raise StudyError(
      f"{missing} of {labels.size} rows have no value in the column of --time; "
      "fill it in, or drop these rows"
    )
  order = np.argsort(times, kind="stable")
  ordered = times[order]
  # Where a part may begin: the first row of a later time.
  starts = 1 + np.flatnonzero(ordered[1:] != ordered[:-1])
  if starts.size < 2:
    raise StudyError(
      f"the column of --time has {starts.size + 1} different values, but "
      "training, validation and test rows need at least 3; name another column"
    )
  ends = [round(labels.size * share) for share in (0.5, 0.75)]
  first = starts[:-1][np.abs(starts[:-1] - ends[0]).argmin()]
  later = starts[starts > first]
  second = later[np.abs(later - ends[1]).argmin()]
  train, validation, test = np.split(order, [first, second])
  parts = (("trained", train), ("validated", validation), ("tested", test))
  spans = (
    f"{what} on {rows.size} rows from {_moment(times[rows].min())} to "
    f"{_moment(times[rows].max())}"
    for what, rows in parts
  )
  return Split([train], [validation], [test], (", ".join(spans),))
