# SPDX-License-Identifier: Apache-2.0
"""Classifiers that are no networks, fitted on the same rows as the losses."""

from collections.abc import Callable
import io
from pathlib import Path
from typing import Any, NamedTuple
import warnings

import numpy as np
from scipy import special
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from squentropy_study import _evaluation, _program, _store
from squentropy_study._evaluation import HeldOutLogits
from squentropy_study._folds import Folds

MAJORITY = "majority class"
LOGISTIC = "logistic regression"
TREES = "gradient-boosted trees"
FILE = "baselines.npz"

# Bounds of the time of a fold. Boosting fits a tree per round and class.
_ROUNDS = 100
_TREES = 3000
_WORK_OF_TREES = 5e9
# Of a tree with 31 leaves, for each column: passes over the rows, and bins.
_PASSES = 5
_BINS = 2 * 60 * 256
_COLUMNS_OF_TREES = 1000
_STEPS = 200
_PRODUCTS = 3e10
_FEWEST = 10
# On smaller tables, threads wait for each other longer than they compute.
_CELLS_OF_THREADS = 1e6


class Baseline(NamedTuple):
  """Predictions of a baseline for the test rows of each fold.

  Attributes:
    log_probs: ``[folds, rows, classes]``, before temperature scaling; the rows
      are those of ``Folds.test``, with its padding.
    temperature: ``[folds]``, fitted on the validation rows.
    notes: Sentences on what was cut to bound the time.
  """

  log_probs: np.ndarray
  temperature: np.ndarray
  notes: tuple[str, ...] = ()

  @property
  def scaled_log_probs(self) -> np.ndarray:
    """After temperature scaling, ``[folds, rows, classes]``, float64."""
    scores = self.log_probs.astype(np.float64)
    scores /= self.temperature[:, None, None]
    return special.log_softmax(scores, axis=-1)


class _Part(NamedTuple):
  """Rows of one fold as tables, standardised.

  Attributes:
    train: ``[rows, columns]``.
    labels: ``[rows]``.
    validation: ``[rows, columns]``.
    validation_labels: ``[rows]``.
    validation_keep: ``[rows]``, False where an entry is padding.
    test: ``[rows, columns]``, with padding.
  """

  train: np.ndarray
  labels: np.ndarray
  validation: np.ndarray
  validation_labels: np.ndarray
  validation_keep: np.ndarray
  test: np.ndarray


class _Scores(NamedTuple):
  """Scores of held-out rows for the classes that are in the training rows."""

  validation: np.ndarray
  test: np.ndarray
  notes: tuple[str, ...] = ()


def _part(folds: Folds, number: int) -> _Part:
  """Returns the rows of a fold, standardised as the losses see them."""
  most = _program.MOST_DEVIATIONS

  def table(rows: np.ndarray) -> np.ndarray:
    x = (folds.features[rows] - folds.shift[number]) * folds.scale[number]
    # A missing value becomes the mean of the training rows.
    return np.clip(np.nan_to_num(x), -most, most).reshape(len(rows), -1)

  rows, keep = (each[number] for each in folds.validation)
  train = folds.train[number]
  return _Part(
    table(train),
    folds.labels[train],
    table(rows),
    folds.labels[rows],
    keep,
    table(folds.test.rows[number]),
  )


def _two_columns(scores: np.ndarray) -> np.ndarray:
  """Returns ``[rows, classes]``: scikit-learn has one score for two classes."""
  if scores.ndim == 1 or scores.shape[1] == 1:
    logit = scores.reshape(-1)
    return np.stack([np.zeros_like(logit), logit], axis=1)
  return scores


def _fit_majority(part: _Part) -> _Scores:
  _, counts = np.unique(part.labels, return_counts=True)
  scores = np.log(counts / counts.sum())
  validation, test = (
    np.broadcast_to(scores, (len(rows), scores.size))
    for rows in (part.validation, part.test)
  )
  return _Scores(validation, test)


def _fit_logistic(part: _Part) -> _Scores:
  products = part.train.size * np.unique(part.labels).size
  steps = int(np.clip(_PRODUCTS / products, _FEWEST, _STEPS))
  model = LogisticRegression(max_iter=steps)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    model.fit(part.train, part.labels)
  notes: tuple[str, ...] = ()
  if model.n_iter_.max() >= steps:
    why = "before it converged"
    if steps < _STEPS:
      why = (
        f"because there are {len(part.train)} training rows with "
        f"{part.train.shape[1]} columns"
      )
    notes = (f"{LOGISTIC} was stopped after {steps} steps, {why}",)
  validation, test = (
    _two_columns(model.decision_function(x))
    for x in (part.validation, part.test)
  )
  return _Scores(validation, test, notes)


def _columns_of_trees(part: _Part) -> np.ndarray:
  """Returns the columns with the largest F statistic, in their order."""
  # A constant column has no statistic.
  with warnings.catch_warnings(), np.errstate(all="ignore"):
    warnings.simplefilter("ignore")
    statistic, _ = f_classif(part.train, part.labels)
  order = np.argsort(-np.nan_to_num(statistic, posinf=np.inf), kind="stable")
  return np.sort(order[:_COLUMNS_OF_TREES])


def _fit_trees(part: _Part) -> _Scores:
  """Fits boosted trees; the validation rows choose the number of rounds."""
  notes = []
  width = part.train.shape[1]
  if width > _COLUMNS_OF_TREES:
    chosen = _columns_of_trees(part)
    notes.append(
      f"{TREES} use the {chosen.size} of {width} columns that separate the "
      "classes best"
    )
    tables = (part.train, part.validation, part.test)
    train, validation, test = (x[:, chosen] for x in tables)
    part = part._replace(train=train, validation=validation, test=test)
  present = np.unique(part.labels)
  # Two classes need one tree per round.
  per_round = 1 if present.size == 2 else present.size
  rows, columns = part.train.shape
  work = per_round * columns * (_PASSES * rows + _BINS)
  rounds = max(int(_WORK_OF_TREES / work), _FEWEST)
  rounds = min(rounds, _ROUNDS, max(_TREES // per_round, 1))
  if rounds < _ROUNDS:
    notes.append(
      f"{TREES} have at most {rounds} instead of {_ROUNDS} rounds, because "
      f"there are {rows} training rows with {columns} columns and "
      f"{present.size} classes"
    )
  model = HistGradientBoostingClassifier(
    max_iter=rounds,
    # The default, 20, leaves few rows without a split.
    min_samples_leaf=min(max(rows // 50, 2), 20),
    early_stopping=False,
    random_state=0,
  )
  model.fit(part.train, part.labels)
  # A class that is not in the training rows chooses no round.
  known = part.validation_keep & np.isin(part.validation_labels, present)
  places = np.searchsorted(present, part.validation_labels[known])[:, None]
  best, lowest, kept = 0, np.inf, np.empty(0)
  for number, raw in enumerate(model.staged_decision_function(part.validation)):
    scores = _two_columns(raw)
    log_probs = special.log_softmax(scores[known], axis=-1)
    nll = -np.take_along_axis(log_probs, places, axis=-1).mean()
    if nll < lowest:
      best, lowest, kept = number, nll, scores
  stages = model.staged_decision_function(part.test)
  test = next(raw for number, raw in enumerate(stages) if number == best)
  return _Scores(kept, _two_columns(test), tuple(notes))


_FITS: dict[str, Callable[[_Part], _Scores]] = {
  MAJORITY: _fit_majority,
  LOGISTIC: _fit_logistic,
  TREES: _fit_trees,
}


def _of_all_classes(
  scores: np.ndarray, part: _Part, num_classes: int
) -> np.ndarray:
  """Returns log-probabilities, also of classes without a training row.

  Such a class has the probability 1 / (rows + classes), as if each class had
  one more row.
  """
  present = np.unique(part.labels)
  least = 1 / (part.labels.size + num_classes)
  left = 1 - least * (num_classes - present.size)
  result = np.full((len(scores), num_classes), np.log(least))
  result[:, present] = special.log_softmax(scores, axis=-1) + np.log(left)
  return result


def _scores(fit: Callable[[_Part], _Scores], part: _Part) -> _Scores:
  """Fits a baseline on the rows of a fold."""
  # From one class alone there is nothing to learn.
  one_class = np.unique(part.labels).size < 2
  threads = 1 if part.train.size < _CELLS_OF_THREADS else None
  with threadpool_limits(threads):
    return (_fit_majority if one_class else fit)(part)


def _fit(fit: Callable[[_Part], _Scores], folds: Folds) -> Baseline:
  """Fits a baseline on each fold."""
  held_out, predicted, labels, keep = [], [], [], []
  notes: dict[str, None] = {}
  for number in range(len(folds.train)):
    part = _part(folds, number)
    scores = _scores(fit, part)
    notes.update(dict.fromkeys(scores.notes))
    classes = folds.num_classes
    held_out.append(_of_all_classes(scores.validation, part, classes))
    predicted.append(_of_all_classes(scores.test, part, classes))
    labels.append(part.validation_labels)
    keep.append(part.validation_keep)
  log_probs = np.stack(predicted).astype(np.float32)
  temperature, _ = _evaluation.recalibrate(
    HeldOutLogits(
      np.stack(held_out).astype(np.float32), np.stack(labels), np.stack(keep)
    ),
    log_probs,
  )
  return Baseline(log_probs, np.asarray(temperature), tuple(notes))


def fit_baselines(folds: Folds) -> dict[str, Baseline]:
  """Fits the baselines on the training rows of each fold.

  The majority class predicts the frequencies of the classes. Logistic
  regression and gradient-boosted trees are those of scikit-learn with its
  defaults; the validation rows choose the number of boosting rounds, as they
  choose the epoch of a loss. The time is bounded: many rows, columns or
  classes get fewer steps, rounds or columns, which the notes say.

  Args:
    folds: The rows.

  Returns:
    The baselines by name.
  """
  return {name: _fit(fit, folds) for name, fit in _FITS.items()}


def _path(out: Path) -> Path:
  return out / "runs" / FILE


def has_baselines(out: Path) -> bool:
  """Returns whether the baselines are fitted and saved."""
  return _path(out).exists()


def write_baselines(out: Path, baselines: dict[str, Baseline]) -> None:
  """Saves the baselines in the folder of a study."""
  arrays: dict[str, Any] = {}
  for name, baseline in baselines.items():
    for field, value in baseline._asdict().items():
      as_text = np.str_ if field == "notes" else None
      arrays[f"{name}.{field}"] = np.asarray(value, as_text)
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  _store.write(_path(out), buffer.getvalue())


def read_baselines(out: Path) -> dict[str, Baseline]:
  """Reads the baselines of a study.

  Args:
    out: The folder of the study.

  Returns:
    The baselines by name.

  Raises:
    StudyError: The file is missing or damaged.
  """

  def read(arrays: Any) -> dict[str, Baseline]:
    names = dict.fromkeys(key.rpartition(".")[0] for key in arrays.files)
    return {
      name: Baseline(
        arrays[f"{name}.log_probs"],
        arrays[f"{name}.temperature"],
        tuple(map(str, arrays[f"{name}.notes"])),
      )
      for name in names
    }

  return _store.read_arrays(_path(out), read)
