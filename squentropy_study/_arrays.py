# SPDX-License-Identifier: Apache-2.0
"""Features and labels that are arrays: NPZ files and folders of images."""

from collections.abc import Sequence
import io
from pathlib import Path
from typing import Any

import numpy as np

from squentropy_study import _image_folder, _label_column
from squentropy_study._encoding import EncodedTable
from squentropy_study._study_error import StudyError

_SAVE = "save it with np.savez(path, x=features, y=labels)"


def _array(arrays: np.lib.npyio.NpzFile, name: str, source: str) -> np.ndarray:
  try:
    return arrays[name]
  except ValueError as error:
    if "pickle" not in str(error):
      raise
    raise StudyError(
      f"{source}: the array {name} holds Python objects, which could run code "
      "when they are read; save numbers or text instead, such as "
      "np.savez(path, x=x.astype(float), y=y.astype(str))"
    ) from None


def _npz(data: bytes, source: str, names: Sequence[str]) -> Any:
  """Opens the arrays of a file, which must have some names."""
  arrays = np.load(io.BytesIO(data), allow_pickle=False)
  if isinstance(arrays, np.ndarray):
    raise StudyError(
      f"{source} holds one array without a name, expected x and y; {_SAVE}"
    )
  missing = [name for name in names if name not in arrays.files]
  if missing:
    found = ", ".join(arrays.files[:8]) or "none"
    raise StudyError(
      f"{source} has no array {missing[0]!r}; its arrays are {found}"
      f"{', ...' if len(arrays.files) > 8 else ''}. Expected x, the features, "
      f"and y, the labels: {_SAVE}"
    )
  return arrays


def features(x: np.ndarray, source: str) -> np.ndarray:
  """Returns an array of features with NaN where a value is not finite.

  Args:
    x: ``[rows, ...]``.
    source: The name of the array in error messages.

  Returns:
    The features.

  Raises:
    StudyError: The features are no numbers.
  """
  if x.dtype.kind not in "biuf":
    raise StudyError(
      f"{source}: x must be an array of numbers, got {x.dtype}; convert it "
      "with x.astype(float), or pass columns of text and categories in a table "
      "(a DataFrame, or a file such as .csv)"
    )
  return np.where(np.isfinite(x), x, np.nan) if x.dtype.kind == "f" else x


def new_npz(data: bytes, source: str) -> tuple[np.ndarray, np.ndarray | None]:
  """Reads the array ``x`` of new rows, and ``y`` if there is one."""
  arrays = _npz(data, source, ("x",))
  x = features(_array(arrays, "x", source), source)
  return x, _array(arrays, "y", source) if "y" in arrays.files else None


def npz(data: bytes, source: str) -> EncodedTable:
  """Reads features and labels from the arrays ``x`` and ``y`` of a file.

  Args:
    data: The bytes of an NPZ file.
    source: The name of the file in error messages.

  Returns:
    Its rows.

  Raises:
    StudyError: The arrays have other names, types or shapes.
  """
  arrays = _npz(data, source, ("x", "y"))
  x, y = _array(arrays, "x", source), _array(arrays, "y", source)
  return encoded(x, y, source)


def encoded(x: np.ndarray, y: Any, source: str) -> EncodedTable:
  """Turns arrays of features and labels into the rows of a study.

  Args:
    x: Features, ``[rows, ...]``.
    y: Labels, ``[rows]``.
    source: The name of the arrays in error messages.

  Returns:
    The rows.

  Raises:
    StudyError: The arrays have other types or shapes.
  """
  if y.ndim != 1 or x.ndim < 2 or len(x) != len(y):
    raise StudyError(
      f"{source}: expected x of shape (rows, ...) and y of shape (rows,), got "
      f"shapes {x.shape} and {y.shape}; reshape the arrays"
    )
  x = features(x, source)
  if np.isnan(x).all():
    raise StudyError(f"{source}: x has no finite value; add features")
  ids, classes, kept = _label_column.class_ids(f"y of {source}", y)
  x = x[kept]
  notes = _label_column.without_label(int((~kept).sum()))
  if missing_values := np.isnan(x).sum():
    notes.append(
      f"{missing_values} missing or infinite values are replaced by the mean "
      "of the training rows"
    )
  rows = np.flatnonzero(kept)
  return EncodedTable(x, ids, classes, tuple(notes), row_numbers=rows)


def images(folder: Path) -> EncodedTable:
  """Reads a folder with one folder of images per class.

  Args:
    folder: The folder.

  Returns:
    Features ``[rows, height, width, channels]``, and the folders as classes.

  Raises:
    StudyError: There are no images, one class, or images of several sizes.
  """
  pixels, names, notes = _image_folder.read(folder)
  # Names of folders are never missing labels.
  classes, ids = np.unique(names, return_inverse=True)
  if len(classes) < 2:
    raise StudyError(
      f"{folder} has one folder of images ({classes[0]}), but a study needs at "
      "least two classes; add a folder"
    )
  found = tuple(map(str, classes))
  return EncodedTable(pixels, ids.astype(np.int32), found, tuple(notes))
