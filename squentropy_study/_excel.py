# SPDX-License-Identifier: Apache-2.0
"""Excel workbooks."""

import io
import warnings

import pandas as pd

from squentropy_study import _delimited
from squentropy_study._raw_table import RawTable
from squentropy_study._study_error import StudyError

# The first bytes of an old workbook, and of a workbook with a password.
OLD = b"\xd0\xcf\x11\xe0"


def _stripped(cell: object) -> object:
  if not isinstance(cell, str):
    return cell
  return cell.strip() or None


def read(
  data: bytes, source: str, *, ending: str, header: bool = True
) -> RawTable:
  """Reads the first sheet of a workbook.

  Args:
    data: The bytes of the file.
    source: The name of the file in error messages.
    ending: The ending of the file.
    header: Whether the first row names the columns.

  Returns:
    The table. Columns keep the types of their cells. Rows and columns without
    any value are left out.

  Raises:
    StudyError: The sheet has no rows, or the workbook has a password.
    ImportError: pandas has no package that reads this kind of workbook.
  """
  if ending != ".xls" and data.startswith(OLD):
    raise StudyError(
      f"{source} has a password or is an old workbook; save it as .xlsx "
      "without a password, or as .csv"
    )
  with warnings.catch_warnings():
    # The reader warns of every feature of Excel that it leaves out.
    warnings.filterwarnings("ignore", module="openpyxl")
    with pd.ExcelFile(io.BytesIO(data)) as book:
      names = [str(name) for name in book.sheet_names]
      # Without a header, because pandas renames columns of the same name.
      cells = pd.read_excel(
        book,
        sheet_name=names[0],
        header=None,
        dtype=object,
        keep_default_na=False,
        na_values=[""],
      )
  cells = cells.map(_stripped).dropna(how="all").dropna(axis=1, how="all")
  if len(cells) < 1 + header:
    raise StudyError(
      f"{source}: the sheet {names[0]!r} has no rows; move the sheet of the "
      "table to the front"
    )
  if header:
    columns = [
      f"Unnamed: {k}" if pd.isna(name) else str(name)
      for k, name in enumerate(cells.iloc[0])
    ]
    cells = cells.iloc[1:]
  else:
    columns = _delimited.column_names(cells.shape[1])
  frame = cells.set_axis(columns, axis=1).reset_index(drop=True)
  notes: tuple[str, ...] = ()
  if len(names) > 1:
    notes = (
      f"the first of {len(names)} sheets is read, {names[0]!r}; save another "
      "sheet as a file of its own to use it",
    )
  return RawTable(frame.infer_objects(), notes=notes)
