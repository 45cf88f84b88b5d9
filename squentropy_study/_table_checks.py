# SPDX-License-Identifier: Apache-2.0
"""Finds columns and rows of a table that mislead a comparison of losses."""

import hashlib
import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.tree import DecisionTreeClassifier

if TYPE_CHECKING:
  from squentropy_study._folds import Folds

# In smaller tables, unique or sorted values are often a coincidence.
_FEWEST_ROWS = 20
# Share of different values in a column that is still called nearly unique.
_NEARLY_UNIQUE = 0.95
# Logarithm of the odds against so many different values by chance.
_NOT_BY_CHANCE = 7.0
_ID_NAME = re.compile(
  r"(?:.*[\W_])?(?:id|ids|uuid|guid)|rowid|row|index|key|.*[a-z](?:Id|ID)"
)
# pandas and R write the row numbers first, in a column without a name.
_NO_NAME = re.compile(r"(?:Unnamed: \d+(?:\.\d+)*)?")
# Digits that people write for a missing number, such as -999 and 9999.
_FILLER = re.compile(r"-?(?:9{2,}|8{2,}|7{2,}|1)")
# A table may have several, such as -888 for "refused" and -999 for "unknown".
_MOST_SENTINELS = 3
_FEWEST_OTHERS = 5
_LEAK_ROWS = 5000
_ROWS_AT_ONCE = 4096
_LEAK_ERROR = 0.005


def _has_id_name(name: str) -> bool:
  return bool(_ID_NAME.fullmatch(name) or _ID_NAME.fullmatch(name.lower()))


def numbers_rows(name: str, by_row: np.ndarray, distinct: int) -> bool:
  """Whether a column of numbers identifies the rows instead of describing them.

  Args:
    name: The name of the column.
    by_row: ``[rows]``, float64; NaN where a value is missing.
    distinct: The number of different values.

  Returns:
    True if all numbers are integers and one of three conditions holds. The
    numbers are unique and the column is called an index. They are unique in a
    range so small that this is not by chance. They are sorted and nearly
    unique.
  """
  values = by_row[~np.isnan(by_row)]
  size = values.size
  if size < 2 or (np.mod(values, 1) != 0).any():
    return False
  unique = distinct == size
  if unique and (_NO_NAME.fullmatch(name) or _has_id_name(name)):
    return True
  if size < _FEWEST_ROWS:
    return False
  # Random integers of this range are unique with probability exp(-odds).
  span = values.max() - values.min() + 1
  if unique and size**2 / (2 * span) > _NOT_BY_CHANCE:
    return True
  steps = np.diff(values)
  is_sorted = bool((steps >= 0).all() or (steps <= 0).all())
  return is_sorted and distinct >= _NEARLY_UNIQUE * size


def names_rows(name: str, size: int, distinct: int) -> bool:
  """Whether a column of texts identifies the rows, such as names and keys."""
  if distinct == size and size > 1 and _has_id_name(name):
    return True
  return size >= _FEWEST_ROWS and distinct >= _NEARLY_UNIQUE * size


def sentinels(
  values: np.ndarray, counts: np.ndarray
) -> list[tuple[float, int]]:
  """Finds numbers that look like missing values, such as -999.

  Args:
    values: The different numbers of a column.
    counts: The number of rows of each.

  Returns:
    Repeated extreme values far outside the other values, and their counts. A
    value such as -999 or 9999 is far outside if its distance from the others is
    half of their range. Any other value needs a distance of ten ranges.
  """
  order = np.argsort(values)
  values, counts = values[order], counts[order]
  found: list[tuple[float, int]] = []
  for _ in range(2):
    for size in range(
      1, min(_MOST_SENTINELS, values.size - _FEWEST_OTHERS) + 1
    ):
      if _is_far(values, counts, size):
        found += zip(
          values[:size].tolist(), counts[:size].tolist(), strict=True
        )
        values, counts = values[size:], counts[size:]
        break
    # The other end is the first one of the negative values.
    values, counts = -values[::-1], counts[::-1]
    found = [(-value, count) for value, count in found]
  return found


def _is_far(values: np.ndarray, counts: np.ndarray, size: int) -> bool:
  """Whether the first values are repeated and far below the others."""
  few, others = values[:size], values[size:]
  filler = all(_FILLER.fullmatch(f"{value:.12g}") for value in few)
  if size > 1 and not filler:
    return False
  away = 0.5 if filler else 10.0
  often = (counts[:size] >= (2 if filler else 3)).all()
  # Integers have steps of 1, so that -1 below 0 to 9 is no gap.
  gap = others[0] - few[-1]
  return bool(often and gap > max(away * np.ptp(others), 1))


def _rows_of_sample(labels: np.ndarray) -> np.ndarray:
  """Returns the rows that the search for leaks looks at."""
  if labels.size <= _LEAK_ROWS:
    return np.arange(labels.size)
  rows = np.random.default_rng(0).permutation(labels.size)[:_LEAK_ROWS]
  return np.sort(rows)


def _may_predict(values: np.ndarray, labels: np.ndarray) -> bool:
  """Whether any rule on one column could be right in nearly all rows.

  It is cheap, and rules out most columns before a tree is trained.
  """
  order = np.argsort(values, kind="stable")
  values, labels = values[order], labels[order]
  starts = np.flatnonzero(np.append(True, np.diff(values) != 0))
  if starts.size > values.size / 2:
    # A tree cannot follow labels that change at every other value.
    changes = np.count_nonzero(np.diff(labels))
    return bool(changes <= 0.1 * labels.size)
  table = np.zeros((starts.size, labels.max() + 1), int)
  group = np.cumsum(np.append(False, np.diff(values) != 0))
  np.add.at(table, (group, labels), 1)
  return bool(table.max(axis=1).sum() >= (1 - _LEAK_ERROR) * labels.size)


def predicts_label(values: np.ndarray, labels: np.ndarray) -> float | None:
  """Returns the accuracy of one column alone, if it is nearly 1.

  Args:
    values: ``[rows]``, numbers or numbers of categories; NaN if missing.
    labels: ``[rows]``, class ids from 0.

  Returns:
    The cross-validated accuracy of a decision tree on the column. None if it is
    not within 0.5 % of 1, or if predicting the most frequent class is nearly as
    accurate.
  """
  rows = _rows_of_sample(labels)
  values, labels = values[rows], labels[rows]
  counts = np.bincount(labels)
  # Classes that are too rare to be in every part count as errors.
  common = counts >= 3
  if labels.size < _FEWEST_ROWS or np.count_nonzero(common) < 2:
    return None
  # A missing value may reveal the label as well.
  values = np.where(np.isnan(values), np.nanmin(values, initial=0) - 1, values)
  if not _may_predict(values, labels):
    return None
  kept = common[labels]
  values, kept_labels = values[kept], labels[kept]
  accuracy = cross_val_score(
    DecisionTreeClassifier(random_state=0),
    values[:, None],
    kept_labels,
    cv=StratifiedKFold(3, shuffle=True, random_state=0),
  ).mean()
  accuracy *= kept.mean()
  chance = counts.max() / labels.size
  if 1 - accuracy <= min(_LEAK_ERROR, 0.1 * (1 - chance)):
    return float(accuracy)
  return None


def _row_keys(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns one number per row, equal for equal features and label."""
  flat = features.reshape(len(features), -1)
  digests: list[bytes] = []
  # In parts, because images would need several times their memory.
  for start in range(0, len(flat), _ROWS_AT_ONCE):
    part = slice(start, start + _ROWS_AT_ONCE)
    rows = np.column_stack([flat[part], labels[part]]).astype(np.float64)
    # Equal bytes mean equal rows: one form of NaN, and no negative zero.
    rows = np.where(np.isnan(rows), np.nan, rows + 0.0)
    digests += [
      hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows
    ]
  keys, _ = pd.factorize(np.array(digests, object))
  return keys


def first_of_equals(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns a mask of the rows that differ from all earlier rows.

  Args:
    features: ``[rows, ...]``; NaN where a value is missing.
    labels: ``[rows]``, class ids.

  Returns:
    ``[rows]``, bool.
  """
  keys = _row_keys(features, labels)
  first = np.zeros(len(keys), bool)
  first[np.unique(keys, return_index=True)[1]] = True
  return first


def repeats_note(
  features: np.ndarray, labels: np.ndarray, folds: "Folds"
) -> list[str]:
  """Says how many validation and test rows repeat a training row.

  Args:
    features: ``[rows, ...]``, the features of all rows.
    labels: ``[rows]``, their class ids.
    folds: The rows of the parts.

  Returns:
    One sentence, or none if no row is repeated.
  """
  keys = _row_keys(features, labels)
  found = []
  for name, part in (("validation", folds.validation), ("test", folds.test)):
    repeats = sum(
      int(np.isin(keys[rows[keep]], keys[train]).sum())
      for train, rows, keep in zip(folds.train, *part, strict=True)
    )
    if repeats:
      found.append(f"{repeats} of {int(part.keep.sum())} {name} rows")
  if not found:
    return []
  return [
    f"{' and '.join(found)} have the features and the label of a training row, "
    "so results on new rows may be worse; --dedupe keeps the first of several "
    "equal rows of a table"
  ]
