# SPDX-License-Identifier: Apache-2.0
"""Data sets, and the folds every loss and seed shares."""

from collections.abc import Callable
import hashlib
from pathlib import Path
from typing import NamedTuple
import warnings

import numpy as np
from sklearn import datasets as sklearn_datasets
from sklearn.model_selection import StratifiedKFold, train_test_split

from squentropy_study import _readers
from squentropy_study._errors import StudyError, unknown_name

# Of so many parts one is for the temperature and one for the test.
_PARTS = 4


class Dataset(NamedTuple):
  """Rows of numbers with one class id each.

  Attributes:
    name: What the user calls it.
    features: ``[rows, columns]`` or ``[rows, height, width, channels]``,
      floating, as they come; NaN for gaps.
    labels: ``[rows]``, int32 class ids from 0.
    classes: Names of the classes.
    notes: Sentences on what was done to make numbers of it.
  """

  name: str
  features: np.ndarray
  labels: np.ndarray
  classes: tuple[str, ...]
  notes: tuple[str, ...] = ()


class Part(NamedTuple):
  """Rows of each fold, ``[folds, rows]``; short folds end in dropped rows.

  Attributes:
    rows: Which rows.
    keep: Whether the place is a row of the fold.
  """

  rows: np.ndarray
  keep: np.ndarray


class Folds(NamedTuple):
  """A data set with disjoint rows to train on, recalibrate on and report on.

  Attributes:
    features: All rows, float32; NaN for gaps.
    labels: ``[rows]``, int32.
    num_classes: How many classes there are.
    shift: What a fold subtracts from the features, ``[folds, columns]`` (of an
      image, one number per channel): their mean over its training rows.
    scale: What it multiplies them with then: the inverse of their deviation; 0
      for a column that is constant in its training rows, which says nothing.
    train: ``[folds, rows]``, rows to train on; equally many in each fold.
    calibration: Rows to fit the temperature on.
    test: Rows to report on.
  """

  features: np.ndarray
  labels: np.ndarray
  num_classes: int
  shift: np.ndarray
  scale: np.ndarray
  train: np.ndarray
  calibration: Part
  test: Part

  @property
  def rows(self) -> dict[str, int]:
    """Rows per part; of the largest fold where they differ."""
    return {
      "train": self.train.shape[1],
      "calibration": self.calibration.rows.shape[1],
      "test": self.test.rows.shape[1],
    }


_BUNDLED: dict[str, Callable] = {
  "digits": sklearn_datasets.load_digits,
  "iris": sklearn_datasets.load_iris,
  "wine": sklearn_datasets.load_wine,
  "breast_cancer": sklearn_datasets.load_breast_cancer,
}


def names() -> tuple[str, ...]:
  """The data sets that come with scikit-learn and need no download."""
  return tuple(_BUNDLED)


def load(name: str, label: str | None = None) -> Dataset:
  """Loads a data set by name, or from a file or folder.

  Args:
    name: One of :func:`names`, or a path.
    label: Column of classes, for a file that is a table.

  Returns:
    The data set.

  Raises:
    StudyError: The name is unknown, or the file cannot be read.
  """
  if name not in _BUNDLED:
    path = Path(name)
    if not path.exists():
      if path.suffix or path.name != name:
        raise StudyError(f"there is no file {name}")
      raise unknown_name("data set", name, names())
    read = _readers.read(path, label)
    return Dataset(name, *read)
  if label is not None:
    raise StudyError(f"{name} has its labels apart; leave out --label")
  bunch = _BUNDLED[name]()
  classes = tuple(map(str, bunch.target_names))
  return Dataset(name, bunch.data, bunch.target.astype(np.int32), classes)


def describe(name: str) -> str:
  """One line on a data set."""
  dataset = load(name)
  rows, features = dataset.features.shape
  size = f"{rows} rows, {features} features, {len(dataset.classes)} classes"
  return f"{name}: {size}"


def digest(dataset: Dataset) -> str:
  """A SHA-256 of everything in a data set that decides numbers."""
  result = hashlib.sha256()
  for array in (dataset.features, dataset.labels):
    result.update(f"{array.dtype.str} {array.shape} ".encode())
    result.update(np.ascontiguousarray(array).data)
  result.update(repr(dataset.classes).encode())
  return result.hexdigest()


def draw(dataset: Dataset, rows: int, seed: int) -> Dataset:
  """At most so many rows of a data set, each class by its share."""
  if rows >= dataset.labels.size:
    return dataset
  _check_counts(dataset, 2, f"a draw of {rows} rows")
  if rows < len(dataset.classes):
    raise StudyError(
      f"rows must be at least the {len(dataset.classes)} classes of "
      f"{dataset.name}, got {rows}"
    )
  size = dataset.labels.size
  if rows > size - len(dataset.classes):
    raise StudyError(
      f"rows must leave out a row of each class of {dataset.name}: at most "
      f"{size - len(dataset.classes)}, or {size} for all; got {rows}"
    )
  index, _ = train_test_split(
    np.arange(size),
    train_size=rows,
    stratify=dataset.labels,
    random_state=seed,
  )
  note = f"{rows} of {size} rows drawn, each class by its share"
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
      f"class {rare!r} of {dataset.name} has {rows}, too few for {purpose}, "
      f"which needs {least}; add rows, or leave the class out"
    )


def _stack(parts: list[np.ndarray]) -> Part:
  """Fills short folds up with places that are dropped."""
  size = max(map(len, parts))
  return Part(
    np.stack([np.pad(part, (0, size - len(part))) for part in parts]),
    np.stack([np.arange(size) < len(part) for part in parts]),
  )


def _standard(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Shift and scale over all axes but the last, without gaps.

  A column that is empty or constant in these rows has the scale 0: nothing can
  be learned from it, and rows with another value in it must not be driven away.
  """
  axes = tuple(range(features.ndim - 1))
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    mean = np.nan_to_num(np.nanmean(features, axis=axes))
    deviation = np.nanstd(features, axis=axes)
    # The deviation of a constant need not come out as 0.
    varies = np.nanmax(features, axis=axes) > np.nanmin(features, axis=axes)
  return mean, np.where(varies, 1 / np.where(varies, deviation, 1), 0)


def fold(dataset: Dataset, folds: int, seed: int) -> Folds:
  """Deals the rows, class by class, into parts; a fold is a choice of them.

  Fold ``i`` reports on part ``i``, fits the temperature on the next part and
  trains on the others. One fold is the first of four.

  Args:
    dataset: The rows.
    folds: How many folds: 1, or 3 and more for cross-validation.
    seed: Seed of the deal; the same for every loss and every training seed.

  Returns:
    The folds.

  Raises:
    StudyError: A class has too few rows to be in every part.
  """
  parts = _PARTS if folds == 1 else folds
  _check_counts(dataset, parts, "rows to train on, recalibrate on and test on")
  deal = StratifiedKFold(parts, shuffle=True, random_state=seed)
  rows = np.arange(dataset.labels.size)
  dealt = [index for _, index in deal.split(rows, dataset.labels)]
  # In float64 before they are rounded: a year has few digits after its mean.
  features = dataset.features.astype(np.float64)
  mean, inverse = _standard(features)
  features = ((features - mean) * inverse).astype(np.float32)
  order = np.random.default_rng(seed)
  train, calibration, test = [], [], []
  for number in range(folds):
    after = (number + 1) % parts
    others = [p for k, p in enumerate(dealt) if k not in (number, after)]
    train.append(order.permutation(np.concatenate(others)))
    calibration.append(dealt[after])
    test.append(dealt[number])
  # Folds differ by a few rows; compiled together they train on as many.
  size = min(map(len, train))
  train = [rows[:size] for rows in train]
  standards = [_standard(features[rows].astype(np.float64)) for rows in train]
  shift, scale = zip(*standards, strict=True)
  return Folds(
    features,
    dataset.labels,
    len(dataset.classes),
    np.stack(shift).astype(np.float32),
    np.stack(scale).astype(np.float32),
    np.stack(train),
    _stack(calibration),
    _stack(test),
  )
