# SPDX-License-Identifier: Apache-2.0
"""What a user may say about the columns and the labels of a table."""

import dataclasses
import shlex

from squentropy_study._study_error import StudyError


@dataclasses.dataclass(frozen=True)
class TableOptions:
  """How a table is turned into features and labels.

  Attributes:
    drop: Columns to leave out.
    categorical: Columns to one-hot encode, even if they look like numbers or
      like row numbers.
    numeric: Columns to read as numbers, even if they look like row numbers.
      Cells that are not numbers are missing.
    missing: Values that mean a missing value in a column of features, in
      addition to empty cells.
    min_class: Drop the rows of classes with fewer rows.
    merge_rare: Pool the classes with fewer rows in one class.
    merge_case: Merge labels that differ only in upper and lower case.
    dedupe: Keep only the first of several rows with equal features and label.
  """

  drop: tuple[str, ...] = ()
  categorical: tuple[str, ...] = ()
  numeric: tuple[str, ...] = ()
  missing: tuple[str, ...] = ()
  min_class: int | None = None
  merge_rare: int | None = None
  merge_case: bool = False
  dedupe: bool = False

  def __post_init__(self) -> None:
    """Raises StudyError for options that contradict each other."""
    named: dict[str, str] = {}
    for option in ("drop", "categorical", "numeric"):
      for column in getattr(self, option):
        if named.setdefault(column, option) != option:
          raise StudyError(
            f"column {column!r} is named by --{named[column]} and --{option}; "
            "name it by one of them"
          )
    for option in ("min_class", "merge_rare"):
      rows = getattr(self, option)
      if rows is not None and rows < 1:
        name = option.replace("_", "-")
        raise StudyError(f"--{name} must be at least 1 row, got {rows}")
    if self.min_class is not None and self.merge_rare is not None:
      raise StudyError(
        "--min-class drops rare classes and --merge-rare pools them; choose "
        "one of them"
      )

  def words(self) -> list[str]:
    """Returns the words of the command line that give these options."""
    words = []
    for field in dataclasses.fields(self):
      option = f"--{field.name.replace('_', '-')}"
      value = getattr(self, field.name)
      if isinstance(value, tuple):
        # A value may begin with a minus sign, such as -999.
        words += [f"{option}={item}" for item in value]
      elif value is True:
        words.append(option)
      elif value is not None and value is not False:
        words += [option, str(value)]
    return words

  def column_option(self) -> str | None:
    """Returns an option on columns that was given, if any."""
    names = ("drop", "categorical", "numeric", "missing")
    return next((f"--{name}" for name in names if getattr(self, name)), None)


def written(option: str, value: str) -> str:
  """Returns an option with its value as one types it in a shell."""
  # A value that begins with a minus sign looks like an option.
  between = "=" if value.startswith("-") else " "
  return f"--{option}{between}{shlex.quote(value)}"


NO_OPTIONS = TableOptions()
