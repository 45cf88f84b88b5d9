# SPDX-License-Identifier: Apache-2.0
"""Turns new rows of a table into the features of a study."""

from collections.abc import Sequence
import dataclasses
import json

import numpy as np

from squentropy_study._column_encoder import ColumnEncoder
from squentropy_study._raw_table import RawTable
from squentropy_study._study_error import StudyError


def check_names(source: str, names: Sequence[str]) -> None:
  """Raises if two columns have the same name, as the label may be one."""
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise StudyError(f"{source} has two columns {twice!r}; rename one of them")


@dataclasses.dataclass(frozen=True)
class TableEncoder:
  """How a table becomes features, so that new rows become features alike.

  Attributes:
    label: The column with the classes.
    classes: Names of the classes.
    columns: How each column of features is encoded.
    missing: Values that count as missing, as text.
    names: Names of all columns of the table, in its order.
  """

  label: str
  classes: tuple[str, ...]
  columns: tuple[ColumnEncoder, ...]
  missing: tuple[str, ...] = ()
  names: tuple[str, ...] = ()

  @property
  def features(self) -> tuple[str, ...]:
    """Names of the features, such as ``size`` and ``colour=red``."""
    return tuple(name for column in self.columns for name in column.features)

  def to_json(self) -> str:
    """Returns the encoder as JSON."""
    return json.dumps(dataclasses.asdict(self), indent=1)

  @classmethod
  def from_json(cls, text: str) -> "TableEncoder":
    """Returns the encoder that :meth:`to_json` wrote."""
    fields = json.loads(text)
    return cls(
      fields["label"],
      tuple(fields["classes"]),
      tuple(map(ColumnEncoder.from_dict, fields["columns"])),
      tuple(fields["missing"]),
      tuple(fields["names"]),
    )

  def transform(self, table: RawTable) -> np.ndarray:
    """Turns new rows into the features of the study.

    Args:
      table: The rows. Other columns than those of the encoder, such as the
        label, are ignored.

    Returns:
      ``[rows, features]`` float64. A missing number is NaN. A category that
      the table of the study did not have is a row of zeros.

    Raises:
      StudyError: A column is missing, or holds values of another kind.
    """
    names = [str(name) for name in table.frame.columns]
    frame = table.frame.set_axis(names, axis=1)
    absent = [c.name for c in self.columns if c.name not in names]
    if absent:
      raise StudyError(
        f"the new rows have no column {', '.join(map(repr, absent))}; add the "
        "columns that the table of the study has"
      )
    check_names("the table of new rows", names)
    blocks = [c.encode(frame[c.name], self.missing) for c in self.columns]
    return np.concatenate(blocks, axis=1)
