# SPDX-License-Identifier: Apache-2.0
"""A table as it was read, before it is turned into features and labels."""

from typing import NamedTuple

import pandas as pd


class RawTable(NamedTuple):
  """A table as it was read from a file.

  Attributes:
    frame: One column per column of the file. A delimited file gives text: each
      value as it is in the file without outer spaces, and None for an empty
      cell. The columns of other files keep their types.
    decimal: The decimal mark of numbers in columns of text, ``"."`` or ``","``.
    notes: Sentences on what was found in the file.
    from_text: Whether all columns are text, so that the types of the columns
      are still to be decided.
  """

  frame: pd.DataFrame
  decimal: str = "."
  notes: tuple[str, ...] = ()
  from_text: bool = False
