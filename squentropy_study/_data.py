# SPDX-License-Identifier: Apache-2.0
"""Data sets, and the folds that all losses and seeds share."""

from collections.abc import Callable
import hashlib
from pathlib import Path
from typing import NamedTuple
import warnings

import numpy as np
from sklearn import datasets as sklearn_datasets
from sklearn.model_selection import StratifiedKFold, train_test_split

from squentropy_study import _data_files
from squentropy_study._study_error import StudyError, unknown_name

# Without cross-validation one part of four is the validation part and one the
# test part.
_PARTS = 4


class Dataset(NamedTuple):
  """A data set: numeric features and one class id per row.

  Attributes:
    name: The name or path that the user gave.
    features: ``[rows, columns]`` or ``[rows, height, width, channels]``,
      floating, not standardised; NaN where a value is missing.
    labels: ``[rows]``, int32 class ids from 0.
    classes: Names of the classes.
    notes: Sentences on how the file was turned into numbers.
  """

  name: str
  features: np.ndarray
  labels: np.ndarray
  classes: tuple[str, ...]
  notes: tuple[str, ...] = ()

  @property
  def class_counts(self) -> dict[str, int]:
    """Number of rows of each class by its name."""
    counts = np.bincount(self.labels, minlength=len(self.classes))
    return dict(zip(self.classes, map(int, counts), strict=True))


class FoldRows(NamedTuple):
  """One part of each fold, ``[folds, rows]``, padded to the same length.

  Attributes:
    rows: Row numbers in the data set.
    keep: False where the entry is padding.
  """

  rows: np.ndarray
  keep: np.ndarray


class Folds(NamedTuple):
  """A data set with disjoint training, validation and test rows per fold.

  Attributes:
    features: All rows, float32; NaN where a value is missing.
    labels: ``[rows]``, int32.
    num_classes: Number of classes.
    shift: Subtracted from the features of a fold, ``[folds, columns]`` (for
      images ``[folds, channels]``): the mean over its training rows.
    scale: Multiplies the shifted features: the inverse of their standard
      deviation, or 0 for a column that is constant in the training rows.
    train: ``[folds, rows]``, training rows; equally many in each fold.
    validation: Rows that choose the epoch and fit the temperature.
    test: Rows that are reported.
  """

  features: np.ndarray
  labels: np.ndarray
  num_classes: int
  shift: np.ndarray
  scale: np.ndarray
  train: np.ndarray
  validation: FoldRows
  test: FoldRows

  @property
  def row_counts(self) -> dict[str, int]:
    """Number of rows in each part, of the largest fold."""
    return {
      "train": self.train.shape[1],
      "validation": self.validation.rows.shape[1],
      "test": self.test.rows.shape[1],
    }


_BUNDLED: dict[str, Callable] = {
  "digits": sklearn_datasets.load_digits,
  "iris": sklearn_datasets.load_iris,
  "wine": sklearn_datasets.load_wine,
  "breast_cancer": sklearn_datasets.load_breast_cancer,
}


def names() -> tuple[str, ...]:
  """Returns the data sets that scikit-learn brings without a download."""
  return tuple(_BUNDLED)


def short_name(name: str) -> str:
  """Returns the name of a data set, or of a file without its endings."""
  path = Path(name)
  return Path(path.stem).stem if _data_files.is_compressed(path) else path.stem


def load_data(name: str, label: str | None = None) -> Dataset:
  """Loads a bundled data set or a data file.

  Args:
    name: A bundled data set (``digits``, ``iris``, ``wine``,
      ``breast_cancer``) or the path of a CSV, TSV, Parquet or NPZ file.
    label: The column of a table with the classes.

  Returns:
    The data set.

  Raises:
    StudyError: The name is unknown, or the file cannot be read.

  Examples:
    >>> from squentropy_study import load_data
    >>> load_data("iris").features.shape
    (150, 4)
  """
  if name not in _BUNDLED:
    path = Path(name)
    if not path.exists():
      if path.suffix or path.name != name:
        raise StudyError(f"there is no file {name}; check the path")
      raise unknown_name("data set", name, names())
    return Dataset(name, *_data_files.read(path, label))
  if label is not None:
    raise StudyError(
      f"{name} already has labels, so it has no column to choose; leave out "
      "--label"
    )
  bunch = _BUNDLED[name]()
  classes = tuple(map(str, bunch.target_names))
  return Dataset(name, bunch.data, bunch.target.astype(np.int32), classes)


def describe(name: str) -> str:
  """Returns one line on a bundled data set."""
  dataset = load_data(name)
  rows, features = dataset.features.shape
  size = f"{rows} rows, {features} features, {len(dataset.classes)} classes"
  return f"{name}: {size}"


def digest(dataset: Dataset) -> str:
  """Returns a SHA-256 of everything in a data set that decides numbers."""
  result = hashlib.sha256()
  for array in (dataset.features, dataset.labels):
    result.update(f"{array.dtype.str} {array.shape} ".encode())
    result.update(np.ascontiguousarray(array).data)
  result.update(repr(dataset.classes).encode())
  return result.hexdigest()


def draw(dataset: Dataset, rows: int, seed: int) -> Dataset:
  """Returns a stratified sample of at most ``rows`` rows."""
  if rows >= dataset.labels.size:
    return dataset
  _check_counts(dataset, 2, f"a sample of {rows} rows")
  if rows < len(dataset.classes):
    raise StudyError(
      f"rows must be at least the {len(dataset.classes)} classes of "
      f"{dataset.name}, got {rows}"
    )
  size = dataset.labels.size
  if rows > size - len(dataset.classes):
    raise StudyError(
      f"a stratified sample of {dataset.name} must leave out one row per "
      f"class: rows must be at most {size - len(dataset.classes)}, or {size} "
      f"for all rows; got {rows}"
    )
  index, _ = train_test_split(
    np.arange(size),
    train_size=rows,
    stratify=dataset.labels,
    random_state=seed,
  )
  note = f"stratified sample of {rows} of {size} rows"
  return dataset._replace(
    features=dataset.features[index],
    labels=dataset.labels[index],
    notes=(*dataset.notes, note),
  )


def _check_counts(dataset: Dataset, least: int, purpose: str) -> None:
  counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
  if counts.min() < least:
    rare = dataset.classes[counts.argmin()]
    rows = f"{counts.min()} row{'s' if counts.min() != 1 else ''}"
    raise StudyError(
      f"class {rare!r} of {dataset.name} has {rows}, but {purpose} needs at "
      f"least {least} rows of each class; add rows, or remove the class"
    )


def _pad(parts: list[np.ndarray]) -> FoldRows:
  """Pads the parts of all folds to the longest one."""
  size = max(map(len, parts))
  return FoldRows(
    np.stack([np.pad(part, (0, size - len(part))) for part in parts]),
    np.stack([np.arange(size) < len(part) for part in parts]),
  )


def _standardization(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns shift and scale of the last axis, ignoring missing values.

  The scale of an empty or constant column is 0: the column is not informative
  in these rows, and another value in a test row must not move its logits.
  """
  axes = tuple(range(features.ndim - 1))
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    mean = np.nan_to_num(np.nanmean(features, axis=axes))
    deviation = np.nanstd(features, axis=axes)
    # The computed deviation of a constant may differ from 0.
    varies = np.nanmax(features, axis=axes) > np.nanmin(features, axis=axes)
  return mean, np.where(varies, 1 / np.where(varies, deviation, 1), 0)


def fold(dataset: Dataset, folds: int, seed: int) -> Folds:
  """Splits the rows into stratified parts and assigns the parts to folds.

  Fold ``i`` tests on part ``i``, validates on the next part and trains on all
  others. A single fold is the first fold of four.

  Args:
    dataset: The rows.
    folds: Number of folds: 1, or 3 and more for cross-validation.
    seed: Seed of the split; the same for every loss and every training seed.

  Returns:
    The folds.

  Raises:
    StudyError: A class has too few rows to be in every part.
  """
  parts = _PARTS if folds == 1 else folds
  _check_counts(
    dataset, parts, "a split into training, validation and test rows"
  )
  splitter = StratifiedKFold(parts, shuffle=True, random_state=seed)
  rows = np.arange(dataset.labels.size)
  split = [index for _, index in splitter.split(rows, dataset.labels)]
  # In float64, because a large offset would cancel in float32.
  features = dataset.features.astype(np.float64)
  mean, inverse = _standardization(features)
  features = ((features - mean) * inverse).astype(np.float32)
  order = np.random.default_rng(seed)
  train, validation, test = [], [], []
  for number in range(folds):
    after = (number + 1) % parts
    others = [p for k, p in enumerate(split) if k not in (number, after)]
    train.append(order.permutation(np.concatenate(others)))
    validation.append(split[after])
    test.append(split[number])
  # All folds train in one compiled program, so they need the same length.
  size = min(map(len, train))
  train = [rows[:size] for rows in train]
  standards = [
    _standardization(features[rows].astype(np.float64)) for rows in train
  ]
  shift, scale = zip(*standards, strict=True)
  return Folds(
    features,
    dataset.labels,
    len(dataset.classes),
    np.stack(shift).astype(np.float32),
    np.stack(scale).astype(np.float32),
    np.stack(train),
    _pad(validation),
    _pad(test),
  )
