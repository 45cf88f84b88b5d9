# SPDX-License-Identifier: Apache-2.0
"""Turns a table with names and missing values into numbers and class ids."""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np
import pandas as pd

from squentropy_study import _column_types, _label_column, _table_checks
from squentropy_study._column_cells import (
  Cells,
  example,
  holds,
  read_cells,
  value_text,
)
from squentropy_study._column_encoder import (
  ColumnEncoder,
  date_values,
  number_values,
)
from squentropy_study._column_notes import (
  Decision,
  Remark,
  listed,
  notes,
  sentinel_warnings,
)
from squentropy_study._label_column import Labels, row_count
from squentropy_study._raw_table import RawTable
from squentropy_study._study_error import StudyError, unknown_name
from squentropy_study._table_encoder import TableEncoder, check_names
from squentropy_study._table_options import NO_OPTIONS, TableOptions, written


class EncodedTable(NamedTuple):
  """Numbers and class ids of a table.

  Attributes:
    features: ``[rows, ...]``, floating; NaN where a value is missing.
    labels: ``[rows]``, int32 class ids from 0.
    classes: Names of the classes.
    notes: Sentences on how the table was turned into numbers.
    warnings: Sentences on what may be wrong with the table.
    row_numbers: ``[rows]``, the number of each row in the table, from 0; None
      if all rows are used.
  """

  features: np.ndarray
  labels: np.ndarray
  classes: tuple[str, ...]
  notes: tuple[str, ...] = ()
  warnings: tuple[str, ...] = ()
  row_numbers: np.ndarray | None = None


def _check_columns(
  source: str, names: Sequence[str], label: str, options: TableOptions
) -> None:
  """Raises if the label or an option names a column that is not there."""
  if label not in names:
    raise unknown_name(f"column of {source}", label, names)
  for option in ("drop", "categorical", "numeric"):
    for column in getattr(options, option):
      if column == label:
        raise StudyError(
          f"{written(option, column)}: the column holds the labels; name a "
          "column of features"
        )
      if column not in names:
        raise unknown_name(
          f"column of {source} in --{option}", column, list(names)
        )


def _none_left(source: str, label: str, remarks: list[Remark]) -> StudyError:
  reasons = "; ".join(notes(remarks)) or "it has no other column"
  return StudyError(
    f"{source} has no usable column of features in addition to {label!r}: "
    f"{reasons}; add a column of features"
  )


class _Columns(NamedTuple):
  """The columns of features, and what is said about all columns."""

  encoders: list[ColumnEncoder]
  cells: list[Cells]
  remarks: list[Remark]
  warnings: list[str]
  sentinels: list[tuple[str, tuple[tuple[str, int], ...]]]


def _decide(
  source: str, table: RawTable, label: str, options: TableOptions
) -> _Columns:
  """Decides what becomes of each column of the rows that have a label."""
  columns = _Columns([], [], [], [], [])
  only_id: list[tuple[str, Cells, object]] = []

  def add(decision: Decision, cells: Cells) -> None:
    columns.remarks.extend(decision.remarks)
    columns.warnings.extend(decision.warnings)
    if decision.encoder is not None:
      columns.encoders.append(decision.encoder)
      columns.sentinels.append((decision.encoder.name, decision.sentinels))
      columns.cells.append(cells)

  for name in table.frame.columns:
    if name == label:
      continue
    if name in options.drop:
      columns.remarks.append(Remark("dropped", name))
      continue
    column = table.frame[name]
    cells = read_cells(name, column, options.missing)
    decision = _column_types.decide(
      name, column.dtype, cells, table.decimal, options
    )
    if decision.identifies:
      only_id.append((name, cells, column.dtype))
    add(decision, cells)
  if not columns.encoders and len(only_id) == 1:
    # Without its only column there would be no study.
    name, cells, dtype = only_id[0]
    asked = dataclasses.replace(options, numeric=(*options.numeric, name))
    try:
      decision = _column_types.decide(name, dtype, cells, table.decimal, asked)
    except StudyError:
      raise _none_left(source, label, columns.remarks) from None
    columns.remarks[:] = [r for r in columns.remarks if r.topic != "id"]
    add(decision, cells)
    columns.warnings.append(
      f"column {name!r} seems to number the rows, and is used because there is "
      "no other column of features; add columns that describe the rows"
    )
  if not columns.encoders:
    raise _none_left(source, label, columns.remarks)
  return columns


def _leaks(
  columns: _Columns, blocks: list[np.ndarray], labels: np.ndarray
) -> list[str]:
  """Says which columns predict the label alone."""
  found = []
  for encoder, block in zip(columns.encoders, blocks, strict=True):
    values = block[:, 0]
    if encoder.kind == "categorical":
      values = np.where(block.any(axis=1), block.argmax(axis=1), -1)
    accuracy = _table_checks.predicts_label(values, labels)
    if accuracy is not None:
      found.append((encoder.name, accuracy))
  if not found:
    return []
  names = [f"{name} (accuracy {accuracy:.3f})" for name, accuracy in found]
  return [
    "one column alone predicts the label, by a cross-validated decision tree: "
    f"{listed(names)}; if its values are known only after the label, leave it "
    f"out with {written('drop', found[0][0])}"
  ]


def _unmatched(frame: pd.DataFrame, options: TableOptions) -> list[str]:
  """Says which values that were called missing are in no column."""
  return [
    f"{written('missing', value)} occurs in no column of features; check its "
    "spelling"
    for value in options.missing
    if not any(holds(name, frame[name], value) for name in frame.columns)
  ]


def fit_encoder(
  source: str,
  table: RawTable,
  label: str,
  *,
  options: TableOptions = NO_OPTIONS,
) -> tuple[TableEncoder, EncodedTable]:
  """Decides how a table becomes features and class ids, and does it.

  The type of a column is decided from all of its cells in rows that have a
  label, so that it does not depend on the order of the rows.

  Args:
    source: The name of the table in error messages.
    table: The table as it was read.
    label: The column with the classes.
    options: What the user says about columns and labels.

  Returns:
    The encoder, which turns new rows into features alike, and the rows of the
    table.

  Raises:
    StudyError: The label column is missing, has fewer than two classes or looks
      like an id, an option does not fit the table, or no column of features is
      left.
  """
  names = [str(name) for name in table.frame.columns]
  check_names(source, names)
  _check_columns(source, names, label, options)
  frame = table.frame.set_axis(names, axis=1)
  labels = _label_column.read_labels(
    f"column {label!r} of {source}", frame[label], options
  )
  kept = frame.loc[labels.kept] if not labels.kept.all() else frame
  columns = _decide(source, table._replace(frame=kept), label, options)
  encoder = TableEncoder(
    label,
    labels.classes,
    tuple(columns.encoders),
    options.missing,
    tuple(names),
  )
  blocks = [
    encoder.encode_cells(cells)
    for encoder, cells in zip(columns.encoders, columns.cells, strict=True)
  ]
  features, ids = np.concatenate(blocks, axis=1), labels.ids
  row_numbers = np.flatnonzero(labels.kept)
  said = [*table.notes, *labels.notes, *notes(columns.remarks)]
  warnings = [
    *labels.warnings,
    *columns.warnings,
    *sentinel_warnings(columns.sentinels),
    *_unmatched(kept.drop(columns=[label, *options.drop]), options),
    *_leaks(columns, blocks, ids),
  ]
  encoded = EncodedTable(
    features, ids, labels.classes, tuple(said), tuple(warnings), row_numbers
  )
  return encoder, _deduped(encoded) if options.dedupe else encoded


def sortable(
  source: str, table: RawTable, name: str, options: TableOptions
) -> np.ndarray:
  """Returns a column of numbers or dates as values that can be sorted.

  Args:
    source: The name of the table in error messages.
    table: The table.
    name: A column of it.
    options: What the user says about columns.

  Returns:
    ``[rows]`` float64 or datetime64. NaN or NaT where a value is missing.

  Raises:
    StudyError: A value is neither a number nor a date, or both occur.
  """
  frame = table.frame.set_axis(map(str, table.frame.columns), axis=1)
  cells = read_cells(name, frame[name], options.missing)
  numbers, dates = number_values(cells, table.decimal), date_values(cells)
  no_number, no_date = np.isnan(numbers), np.isnat(dates)
  if no_number.all() and not no_date.any():
    return np.append(dates, np.datetime64("NaT"))[cells.codes]
  neither = no_number & no_date
  odd = neither if neither.any() else no_number
  if odd.any():
    raise StudyError(
      f"column {name!r} of {source} must hold numbers, or dates such as "
      f"2026-11-30, got {example(value_text(cells.values[odd.argmax()]))}; "
      "rewrite it, or name another column"
    )
  return cells.rows(numbers)


def _deduped(encoded: EncodedTable) -> EncodedTable:
  """Keeps the first of several rows with equal features and label."""
  first = _table_checks.first_of_equals(encoded.features, encoded.labels)
  repeats = int((~first).sum())
  if not repeats or encoded.row_numbers is None:
    return encoded
  note = f"{row_count(repeats)} with the features and the label of an earlier "
  return encoded._replace(
    features=encoded.features[first],
    labels=encoded.labels[first],
    row_numbers=encoded.row_numbers[first],
    notes=(*encoded.notes, f"{note}row dropped, as asked by --dedupe"),
  )


def apply_options(
  source: str, encoded: EncodedTable, options: TableOptions
) -> EncodedTable:
  """Applies the options on rows and classes to arrays of features and labels.

  Args:
    source: The name of the arrays in error messages.
    encoded: Features and labels that were not columns of a table.
    options: What the user asked for.

  Returns:
    The chosen rows and classes.

  Raises:
    StudyError: An option is about a column, or fewer than two classes are left.
  """
  if option := options.column_option():
    raise StudyError(f"{source} has no columns with names; leave out {option}")
  kept = np.ones(encoded.labels.size, bool)
  labels = _label_column.choose_classes(
    f"the label of {source}",
    Labels(encoded.labels, encoded.classes, kept),
    options,
  )
  rows = encoded.row_numbers
  rows = np.arange(kept.size) if rows is None else rows
  encoded = EncodedTable(
    encoded.features[labels.kept],
    labels.ids,
    labels.classes,
    (*encoded.notes, *labels.notes),
    (*encoded.warnings, *labels.warnings),
    rows[labels.kept],
  )
  return _deduped(encoded) if options.dedupe else encoded


def encode_table(source: str, frame: pd.DataFrame, label: str) -> EncodedTable:
  """Turns a table into features and class ids.

  Numeric columns are kept. A missing value stays NaN, and an added column
  marks it. A categorical column is one-hot encoded, and a date becomes days and
  calendar features. Columns that are constant or identify the rows are left
  out.

  Args:
    source: The name of the table in error messages.
    frame: The table.
    label: The column with the classes.

  Returns:
    Features ``[rows, features]`` float64, labels, classes, notes and warnings.

  Raises:
    StudyError: The label column is missing or has fewer than two classes, or
      no column of features is left.

  Examples:
    >>> import pandas as pd
    >>> from squentropy_study import encode_table
    >>> frame = pd.DataFrame({"size": [1, 2], "kind": ["a", "b"]})
    >>> encode_table("my table", frame, "kind").classes
    ('a', 'b')
  """
  _, encoded = fit_encoder(source, RawTable(frame), label)
  return encoded
