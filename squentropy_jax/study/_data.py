# SPDX-License-Identifier: Apache-2.0
"""Data sets by name, and the split every loss and seed shares."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn import datasets as sklearn_datasets
from sklearn.model_selection import train_test_split

from squentropy_jax.study._errors import StudyError, unknown_name


class Dataset(NamedTuple):
  """A table of numbers with one class id per row.

  Attributes:
    name: What the user calls it.
    features: ``[rows, features]``, float32, as they come.
    labels: ``[rows]``, int32 class ids from 0.
    num_classes: How many classes there are.
  """

  name: str
  features: np.ndarray
  labels: np.ndarray
  num_classes: int


class Rows(NamedTuple):
  """Some rows of a data set: ``features`` and ``labels``."""

  features: np.ndarray
  labels: np.ndarray


class Split(NamedTuple):
  """Disjoint rows to train on, to fit the temperature on, to report on."""

  train: Rows
  calibration: Rows
  test: Rows
  num_classes: int


_BUNDLED: dict[str, Callable] = {
  "digits": sklearn_datasets.load_digits,
  "iris": sklearn_datasets.load_iris,
  "wine": sklearn_datasets.load_wine,
  "breast_cancer": sklearn_datasets.load_breast_cancer,
}


def names() -> tuple[str, ...]:
  """The data sets that come with scikit-learn and need no download."""
  return tuple(_BUNDLED)


def load(name: str) -> Dataset:
  """Loads a data set by name.

  Args:
    name: One of :func:`names`.

  Returns:
    The data set.

  Raises:
    StudyError: The name is unknown; the message suggests the nearest one.
  """
  if name not in _BUNDLED:
    raise unknown_name("data set", name, names())
  features, labels = _BUNDLED[name](return_X_y=True)
  _, ids = np.unique(labels, return_inverse=True)
  return Dataset(
    name,
    features.astype(np.float32),
    ids.astype(np.int32),
    int(ids.max()) + 1,
  )


def describe(name: str) -> str:
  """One line on a data set."""
  dataset = load(name)
  rows, features = dataset.features.shape
  size = f"{rows} rows, {features} features, {dataset.num_classes} classes"
  return f"{name}: {size}"


def split(dataset: Dataset, seed: int, *, held_out: float = 0.5) -> Split:
  """Splits the rows by class into train, calibration and test.

  Half of the held-out rows fit the temperature, the other half is reported
  on and used for nothing else. Features are standardised with the mean and
  the standard deviation of the training rows.

  Args:
    dataset: The rows to split.
    seed: Seed of the split; the same for every loss and every training seed.
    held_out: Share of the rows kept out of training.

  Returns:
    The three parts.

  Raises:
    StudyError: A class has too few rows to appear in all three parts.
  """
  counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
  # Two held-out rows per class at least, and one to train on.
  if counts.min() * held_out < 2:
    raise StudyError(
      f"class {counts.argmin()} of {dataset.name} has {counts.min()} rows: "
      f"too few to train on, recalibrate on and test on"
    )
  rows = np.arange(dataset.labels.size)
  train, rest = train_test_split(
    rows, test_size=held_out, stratify=dataset.labels, random_state=seed
  )
  calibration, test = train_test_split(
    rest, test_size=0.5, stratify=dataset.labels[rest], random_state=seed
  )
  features = dataset.features.astype(np.float64)
  mean = features[train].mean(axis=0)
  deviation = features[train].std(axis=0)
  scaled = (features - mean) / np.where(deviation > 0, deviation, 1)

  def part(index: np.ndarray) -> Rows:
    return Rows(scaled[index].astype(np.float32), dataset.labels[index])

  return Split(part(train), part(calibration), part(test), dataset.num_classes)
