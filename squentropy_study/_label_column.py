# SPDX-License-Identifier: Apache-2.0
"""Turns a column of labels into class ids; labels keep their text."""

from collections import defaultdict
import decimal
import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from squentropy_study._column_cells import example, value_text
from squentropy_study._study_error import StudyError
from squentropy_study._table_options import TableOptions

# Labels of a row without a class; "None" and "NA" may be names of classes.
MISSING_LABELS = ("", "?")
# Names of classes that may have been meant as missing labels.
_AMBIGUOUS_NAMES = frozenset(("na", "n/a", "nan", "none", "null"))
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_INFINITE = re.compile(r"[-+]?inf(?:inity)?", re.IGNORECASE)
# A column with more classes, or nearly as many classes as rows, may be an id.
_MOST_CLASSES = 500
_MANY_CLASSES = 20
_POOLED = "other"
_NAMED = 5


class Labels(NamedTuple):
  """The labels of a table.

  Attributes:
    ids: ``[kept]``, int32 class ids from 0.
    classes: Names of the classes.
    kept: ``[rows]``, bool: the rows that have a label and are used.
    notes: Sentences on what was done.
    warnings: Sentences on what may be wrong.
  """

  ids: np.ndarray
  classes: tuple[str, ...]
  kept: np.ndarray
  notes: tuple[str, ...] = ()
  warnings: tuple[str, ...] = ()


def row_count(rows: int) -> str:
  """Returns a number of rows in words."""
  return "1 row" if rows == 1 else f"{rows} rows"


def without_label(rows: int) -> list[str]:
  """Returns the note on rows that are dropped, if there are any."""
  if rows == 1:
    return ["1 row without a label is dropped"]
  return [f"{rows} rows without a label are dropped"] if rows else []


def _sort_key(text: str) -> tuple[decimal.Decimal, str]:
  """Sorts numbers by value, exactly, and equal numbers by their text."""
  return decimal.Decimal(text), text


def class_ids(
  name: str, labels: Any
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
  """Numbers the values of a label column from 0, in sorted order.

  Two labels are one class only if their texts are equal: "01" and "1" are two
  classes. Classes that are all numbers are sorted by their value.

  Args:
    name: The name of the column in error messages.
    labels: Values of any type, one per row. Spaces around text are removed.

  Returns:
    Ids ``[kept]`` int32, names of the classes, and a mask ``[rows]`` of the
    rows that have a label.

  Raises:
    StudyError: The column has fewer than two values, or is not categorical.
  """
  codes, values = pd.factorize(pd.Series(labels))
  values = np.asarray(values)
  wrong = ""
  if getattr(getattr(labels, "dtype", None), "kind", "") == "V":
    wrong = "raw bytes"
  elif any(isinstance(v, complex | np.complexfloating) for v in values):
    wrong = "complex numbers"
  if wrong:
    raise StudyError(
      f"{name} must hold classes, got {wrong}; convert them to class ids"
    )
  texts = [value_text(value) for value in values]
  present = sorted({text for text in texts if text not in MISSING_LABELS})
  counts = np.bincount(codes[codes >= 0], minlength=len(texts))
  numeric = all(
    _NUMBER.fullmatch(text) or _INFINITE.fullmatch(text) for text in present
  )
  infinite = [text for text in present if _INFINITE.fullmatch(text)]
  if numeric and infinite:
    rows = sum(
      int(c) for c, t in zip(counts, texts, strict=True) if t in infinite
    )
    raise StudyError(
      f"{name} must hold classes, got {infinite[0]} in {row_count(rows)}; "
      "if a label is missing, leave its cell empty, or choose another column"
    )
  if numeric and present:
    if any(decimal.Decimal(text) % 1 for text in present if _small(text)):
      raise StudyError(
        f"{name} must hold classes, got fractional numbers; choose another "
        "column, or bin the values into classes"
      )
    present.sort(key=_sort_key)
  if len(present) < 2:
    found = f"one class ({present[0]})" if present else "no class"
    raise StudyError(
      f"{name} has {found}, but a study needs at least two classes; choose "
      "another column"
    )
  place = {text: number for number, text in enumerate(present)}
  by_value = np.array([place.get(text, -1) for text in texts] + [-1], np.int32)
  ids = by_value[codes]
  kept = ids >= 0
  return ids[kept], tuple(present), kept


def _small(text: str) -> bool:
  """Whether a number can have a fraction in double precision."""
  return abs(decimal.Decimal(text)) < 2**53


def _counted(classes: tuple[str, ...], counts: np.ndarray) -> str:
  """Returns some classes with their rows, the most frequent ones first."""
  order = np.lexsort((np.arange(len(classes)), -counts))
  texts = [f"{example(classes[k])} ({row_count(counts[k])})" for k in order]
  more = len(texts) - _NAMED
  return ", ".join(texts[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _regroup(
  labels: Labels, group: np.ndarray, classes: tuple[str, ...], note: str
) -> Labels:
  """Returns labels with other classes: ``group`` maps ids, -1 drops rows."""
  ids = group[labels.ids]
  kept = labels.kept.copy()
  kept[kept] = ids >= 0
  return labels._replace(
    ids=ids[ids >= 0].astype(np.int32),
    classes=classes,
    kept=kept,
    notes=(*labels.notes, note),
  )


def _same_case(labels: Labels) -> dict[str, list[int]]:
  """Returns the classes that differ only in upper and lower case."""
  groups = defaultdict(list)
  for number, text in enumerate(labels.classes):
    groups[text.casefold()].append(number)
  return {key: found for key, found in groups.items() if len(found) > 1}


def _merge_case(labels: Labels) -> Labels:
  """Merges classes that differ in case into the most frequent of them."""
  counts = np.bincount(labels.ids, minlength=len(labels.classes))
  names = list(labels.classes)
  for group in _same_case(labels).values():
    most = max(group, key=lambda k: counts[k])
    for number in group:
      names[number] = labels.classes[most]
  classes = tuple(c for k, c in enumerate(labels.classes) if names[k] == c)
  place = {text: number for number, text in enumerate(classes)}
  merged = [
    f"{example(text)} to {example(name)} ({row_count(count)})"
    for text, name, count in zip(labels.classes, names, counts, strict=True)
    if text != name
  ]
  if not merged:
    return labels
  note = f"labels that differ only in case are merged: {', '.join(merged)}"
  return _regroup(labels, np.array([place[n] for n in names]), classes, note)


def _without_rare(name: str, labels: Labels, options: TableOptions) -> Labels:
  """Drops or pools the classes with few rows, as the user asked."""
  least = options.min_class or options.merge_rare or 1
  counts = np.bincount(labels.ids, minlength=len(labels.classes))
  rare = counts < least
  if not rare.any():
    return labels
  names = tuple(c for c, few in zip(labels.classes, rare, strict=True) if few)
  listed = _counted(names, counts[rare])
  classes = tuple(c for c in labels.classes if c not in set(names))
  group = np.where(rare, -1, np.cumsum(~rare) - 1)
  if options.merge_rare is None:
    note = (
      f"classes with fewer than {row_count(least)} are dropped, which removes "
      f"{row_count(counts[rare].sum())}: {listed}"
    )
  else:
    rows = int(counts[rare].sum())
    if rows < least:
      raise StudyError(
        f"{name} has {row_count(rows)} in classes with fewer than {least} "
        f"rows, too few to pool them in one class: {listed}; drop them with "
        f"--min-class {least}"
      )
    pooled = _POOLED
    while pooled in classes:
      pooled = f"{pooled} classes"
    group = np.where(rare, len(classes), group)
    classes = (*classes, pooled)
    note = (
      f"classes with fewer than {row_count(least)} are pooled in the class "
      f"{pooled!r} of {row_count(rows)}: {listed}"
    )
  return _regroup(labels, group, classes, note)


def _warnings(labels: Labels) -> list[str]:
  """Says which labels may be several spellings of one class."""
  counts = np.bincount(labels.ids, minlength=len(labels.classes))

  def listed(groups: dict[Any, list[int]]) -> str:
    texts = [
      _counted(tuple(labels.classes[k] for k in group), counts[group])
      for group in groups.values()
    ]
    more = len(texts) - _NAMED
    return "; ".join(texts[:_NAMED]) + (f"; {more} more" if more > 0 else "")

  found = []
  if groups := _same_case(labels):
    found.append(
      f"labels differ only in upper and lower case: {listed(groups)}; they are "
      "different classes, and --merge-case merges them"
    )
  numbers = defaultdict(list)
  for number, text in enumerate(labels.classes):
    if _NUMBER.fullmatch(text):
      numbers[decimal.Decimal(text)].append(number)
  equal = {key: group for key, group in numbers.items() if len(group) > 1}
  if equal:
    found.append(
      f"labels are the same number written differently: {listed(equal)}; they "
      "are different classes, so write them alike if they mean the same class"
    )
  ambiguous = [x for x in labels.classes if x.lower() in _AMBIGUOUS_NAMES]
  if ambiguous:
    found.append(
      "labels that may mean a missing label are classes: "
      f"{', '.join(ambiguous)}; if a label is missing, leave its cell empty"
    )
  return found


def choose_classes(name: str, labels: Labels, options: TableOptions) -> Labels:
  """Merges, drops and pools classes as the user asked.

  Args:
    name: The name of the labels in error messages.
    labels: The labels.
    options: What the user asked for.

  Returns:
    The labels, with notes, and with warnings on those that look alike.

  Raises:
    StudyError: Fewer than two classes are left.
  """
  if options.merge_case:
    labels = _merge_case(labels)
  labels = _without_rare(name, labels, options)
  if len(labels.classes) < 2:
    raise StudyError(
      f"{name} has fewer than two classes left ({'; '.join(labels.notes)}); "
      "leave out the option, or use it with a smaller number"
    )
  return labels._replace(warnings=(*labels.warnings, *_warnings(labels)))


def read_labels(name: str, column: pd.Series, options: TableOptions) -> Labels:
  """Turns the label column of a table into class ids.

  Args:
    name: The name of the column in error messages.
    column: The column, of any dtype.
    options: What the user asked for.

  Returns:
    The labels.

  Raises:
    StudyError: The column has fewer than two classes, is not categorical, or
      looks like an id.
  """
  if column.map(lambda value: isinstance(value, (list, np.ndarray))).any():
    raise StudyError(
      f"{name} holds lists, but each row must have one label; choose another "
      "column"
    )
  ids, classes, kept = class_ids(name, column)
  notes = tuple(without_label(int((~kept).sum())))
  labels = choose_classes(name, Labels(ids, classes, kept, notes), options)
  number, rows = len(labels.classes), labels.ids.size
  many = number > max(_MANY_CLASSES, rows / 2) or number > _MOST_CLASSES
  # Who chooses the least number of rows of a class has looked at them.
  if many and options.min_class is None and options.merge_rare is None:
    raise StudyError(
      f"{name} has {number} classes in {row_count(rows)} and may be an id; "
      "choose another column with --label, or keep the classes of at least 20 "
      "rows with --min-class 20"
    )
  return labels
