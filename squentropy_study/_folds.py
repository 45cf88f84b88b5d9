# SPDX-License-Identifier: Apache-2.0
"""The folds that all losses and seeds share."""

from typing import NamedTuple

import numpy as np

from squentropy_study import _data, _scaling, _splits
from squentropy_study._data import Dataset
from squentropy_study._study_error import StudyError


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
    data_shift: What was subtracted from the features of the data set: the
      median over all of its rows.
    data_scale: What the features were multiplied with after that.
    notes: Sentences on the split.
  """

  features: np.ndarray
  labels: np.ndarray
  num_classes: int
  shift: np.ndarray
  scale: np.ndarray
  train: np.ndarray
  validation: FoldRows
  test: FoldRows
  data_shift: np.ndarray
  data_scale: np.ndarray
  notes: tuple[str, ...] = ()

  @property
  def row_counts(self) -> dict[str, int]:
    """Number of rows in each part, of the largest fold."""
    return {
      "train": self.train.shape[1],
      "validation": self.validation.rows.shape[1],
      "test": self.test.rows.shape[1],
    }


def _pad(parts: list[np.ndarray]) -> FoldRows:
  """Pads the parts of all folds to the longest one."""
  size = max(map(len, parts))
  return FoldRows(
    np.stack([np.pad(part, (0, size - len(part))) for part in parts]),
    np.stack([np.arange(size) < len(part) for part in parts]),
  )


def _split(
  dataset: Dataset,
  folds: int,
  seed: int,
  times: np.ndarray | None,
  groups: np.ndarray | None,
) -> _splits.Split:
  """Assigns the rows to the parts of the folds."""
  labels, size = dataset.labels, len(dataset.classes)
  _splits.check_options(folds, time=times is not None, group=groups is not None)
  if times is not None:
    split, option = _splits.by_time(labels, times), "--time"
  else:
    parts = _splits.PARTS if folds == 1 else folds
    _data.check_counts(
      dataset, parts, "a split into training, validation and test rows"
    )
    if groups is None:
      return _splits.random(labels, folds, seed)
    split, option = _splits.grouped(labels, folds, seed, groups), "--group"
  notes = list(split.notes)
  names = ("training", "validation", "test")
  for name, part in zip(names, split[:3], strict=True):
    for rows in part:
      counts = np.bincount(labels[rows], minlength=size)
      if counts.all():
        continue
      absent = dataset.classes[counts.argmin()]
      text = f"class {absent!r} has no {name} row in the split of {option}"
      if name == "training":
        raise StudyError(f"{text}; drop its rows, or leave out {option}")
      notes.append(text)
  return split._replace(notes=tuple(dict.fromkeys(notes)))


def fold(
  dataset: Dataset,
  folds: int,
  seed: int,
  *,
  times: np.ndarray | None = None,
  groups: np.ndarray | None = None,
) -> Folds:
  """Splits the rows into parts and assigns the parts to folds.

  Fold ``i`` tests on part ``i``, validates on the next part and trains on all
  others. A single fold is the first fold of four. The parts have the same
  shares of the classes, except with times.

  Args:
    dataset: The rows.
    folds: Number of folds: 1, or 3 and more for cross-validation.
    seed: Seed of the split; the same for every loss and every training seed.
    times: ``[rows]``, numbers or dates: the test part is the last quarter of
      the rows in time, and the validation part the quarter before. There is
      one fold.
    groups: ``[rows]``, equal values for the rows of a group, of which none is
      in two parts.

  Returns:
    The folds.

  Raises:
    StudyError: A class has too few rows to be in every part, or times or
      groups cannot be split.
  """
  split = _split(dataset, folds, seed, times, groups)
  # In float64, because a large offset would cancel in float32.
  features = dataset.features.astype(np.float64)
  middle, inverse = _scaling.robust(features)
  features = _scaling.scaled(features, middle, inverse)
  order = np.random.default_rng(seed)
  train = [order.permutation(rows) for rows in split.train]
  # All folds train in one compiled program, so they need the same length.
  size = min(map(len, train))
  train = [rows[:size] for rows in train]
  standards = [
    _scaling.standardization(features[rows].astype(np.float64))
    for rows in train
  ]
  shift, scale = zip(*standards, strict=True)
  return Folds(
    features,
    dataset.labels,
    len(dataset.classes),
    np.stack(shift).astype(np.float32),
    np.stack(scale).astype(np.float32),
    np.stack(train),
    _pad(split.validation),
    _pad(split.test),
    middle,
    inverse,
    split.notes,
  )
