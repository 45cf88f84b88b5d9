# SPDX-License-Identifier: Apache-2.0
"""Tables as a reader of files gives them, made in a test."""

import numpy as np
import pandas as pd


def raw(columns, decimal="."):
  """A table of text cells: None is an empty cell, other values are written."""
  from squentropy_study._raw_table import RawTable

  cells = {
    name: [None if value is None else str(value) for value in values]
    for name, values in columns.items()
  }
  frame = pd.DataFrame(cells, dtype=object)
  return RawTable(frame, decimal, from_text=True)


def typed(columns):
  """A table with types, as of a Parquet file."""
  from squentropy_study._raw_table import RawTable

  return RawTable(pd.DataFrame(columns))


def shuffled(table, seed):
  """The same rows in another order."""
  order = np.random.default_rng(seed).permutation(len(table.frame))
  frame = table.frame.iloc[order].reset_index(drop=True)
  return table._replace(frame=frame)


def options(**fields):
  """Options on columns and labels."""
  from squentropy_study._table_options import TableOptions

  return TableOptions(**fields)


def encode(table, **fields):
  """Encoder and rows of a table whose labels are the column ``y``."""
  from squentropy_study._encoding import fit_encoder

  return fit_encoder("mine.csv", table, "y", options=options(**fields))


def kinds(encoder):
  """The kind of each column of features."""
  return {column.name: column.kind for column in encoder.columns}


def said(encoded):
  """All notes and warnings as one text."""
  return "\n".join((*encoded.notes, *encoded.warnings))
