# SPDX-License-Identifier: Apache-2.0
"""Types of the columns of a table of text."""

import numpy as np
import pandas as pd

from squentropy_study import _encoding
from squentropy_study._raw_table import RawTable

_MISSING = {"?", "<null>", "#N/A", "N/A", "NA", "NULL", "NaN", "None", "nan"}
_MISSING |= {"n/a", "null", "<NA>", "-nan", "-NaN", "#NA"}


def _class_values(texts: pd.Series) -> pd.Series:
  """Converts class names to numbers where that keeps them distinct."""
  present = texts[~texts.isna() & ~texts.isin(_encoding.MISSING_LABELS)]
  numbers = pd.to_numeric(present, errors="coerce")
  numeric = np.isfinite(numbers).all()
  if numbers.dtype.kind == "f":
    numeric &= (numbers.abs() < 2**53).all()
  return numbers.astype(object).reindex(texts.index) if numeric else texts


def typed(table: RawTable, label: str | None) -> pd.DataFrame:
  """Returns the table with numeric columns where all cells are numbers."""
  if not table.from_text:
    return table.frame
  columns = {}
  for k, name in enumerate(table.frame.columns):
    texts = table.frame.iloc[:, k]
    if name == label:
      columns[k] = _class_values(texts)
      continue
    texts = texts.where(~texts.isin(_MISSING), None)
    marked = texts.str.replace(table.decimal, ".", regex=False)
    try:
      columns[k] = pd.to_numeric(marked)
    except ValueError:
      columns[k] = texts
  return pd.DataFrame(columns).set_axis(table.frame.columns, axis=1)
