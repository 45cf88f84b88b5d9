# SPDX-License-Identifier: Apache-2.0
"""The numbers of a study, per run and over runs."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from squentropy_study import (
  _class_metrics,
  _evaluation,
  _loss_specs,
  _predictions,
  _test_rows,
)
from squentropy_study._baselines import Baseline
from squentropy_study._evaluation import HeldOutLogits
from squentropy_study._folds import FoldRows
from squentropy_study._predictions import DataRows
from squentropy_study._result_rows import Method, ResultRow
from squentropy_study._settings import Settings
from squentropy_study._test_rows import Predictions
from squentropy_study._train import RunResult

# Temperature scaling does not change the accuracy.
_SCALED = ("nll", "brier", "ece", "ace", "aurc")


@dataclasses.dataclass(frozen=True)
class Results:
  """All numbers of a study.

  Attributes:
    settings: The settings of the study.
    run_results: What the training with each loss left.
    evaluations: By method and name of the training length.
    baselines: Classifiers that are no networks, by name.
    data_rows: What identifies the rows of the data.
    cache: What was computed from the other fields, such as the ranking.
  """

  settings: Settings
  run_results: Mapping[str, RunResult]
  evaluations: Mapping[tuple[Method, str], _evaluation.Evaluation]
  baselines: Mapping[str, Baseline] = dataclasses.field(default_factory=dict)
  data_rows: DataRows | None = None
  cache: dict[Any, Any] = dataclasses.field(
    default_factory=dict, init=False, compare=False, repr=False
  )

  def __repr__(self) -> str:
    """Returns a line, because a notebook shows the value of its last line."""
    losses = ", ".join(self.settings.losses)
    return f"<results of {losses} on {self.settings.data}>"

  @property
  def methods(self) -> tuple[Method, ...]:
    """Losses and probability maps in the order named."""
    return tuple(dict.fromkeys(method for method, _ in self.evaluations))

  @property
  def baseline_notes(self) -> tuple[str, ...]:
    """What was cut to bound the time of the baselines."""
    return tuple(note for x in self.baselines.values() for note in x.notes)

  @functools.cached_property
  def rows(self) -> list[ResultRow]:
    """One row per loss, probability map, training length, fold and seed."""
    result = []
    for (method, length), evaluation in self.evaluations.items():
      before, after = evaluation.before, evaluation.after
      scaled = (getattr(after, name) for name in _SCALED)
      run_result = self.run_results[method.loss]
      accuracy = self._at(method, length, run_result.train_accuracy)
      of_classes = _class_metrics.class_metrics(
        self.test_predictions(method, length)
      )
      with np.errstate(invalid="ignore"):
        improvement = np.asarray(before.nll) - np.asarray(after.nll)
      columns = (
        *before,
        accuracy,
        evaluation.temperature,
        *scaled,
        improvement,
        *np.transpose(of_classes),
      )
      numbers = zip(*map(np.asarray, columns), strict=True)
      epochs = self.epochs(method, length).ravel()
      for run, values in enumerate(numbers):
        result.append(
          ResultRow(
            self.settings.data,
            *method,
            length,
            float(epochs[run]),
            *divmod(run, self.settings.seeds),
            *(float(value) for value in values),
          )
        )
    return result

  def label(self, method: Method) -> str:
    """Returns the loss, with the probability map if there are several."""
    several = sum(other.loss == method.loss for other in self.methods) > 1
    return (
      f"{method.loss} ({method.probability_map})" if several else method.loss
    )

  def per_run(self, method: Method, length: str, name: str) -> np.ndarray:
    """Returns the values of a column of results.csv, ``[folds, seeds]``."""
    values = [
      getattr(row, name)
      for row in self.rows
      if (row.loss, row.probability_map, row.training_length)
      == (*method, length)
    ]
    return np.reshape(values, (self.settings.folds, self.settings.seeds))

  def per_seed(self, method: Method, length: str, name: str) -> np.ndarray:
    """Returns the values of a column, one per seed: means over the folds."""
    return self.per_run(method, length, name).mean(axis=0)

  def epochs(self, method: Method, length: str) -> np.ndarray:
    """Returns the epochs of training, ``[folds, seeds]``."""
    epochs = self._at(method, length, self.run_results[method.loss].epochs)
    return np.reshape(epochs, (self.settings.folds, self.settings.seeds))

  @property
  def test_rows(self) -> FoldRows:
    """The test rows of each run, ``[runs, rows]``, the same for every loss.

    Runs are numbered fold by fold: run ``r`` is seed ``r % seeds`` in fold
    ``r // seeds``.
    """
    result = next(iter(self.run_results.values()))
    return FoldRows(result.test_rows, result.test_keep)

  def test_scores(self, method: Method, length: str) -> np.ndarray:
    """Returns scores of the test rows, ``[runs, rows, classes]``.

    Their softmax is the predicted distribution before temperature scaling.
    """
    return self._at(method, length, self.run_results[method.loss].test_scores)

  def validation_scores(self, method: Method, length: str) -> np.ndarray:
    """Returns scores of the validation rows, ``[runs, rows, classes]``."""
    result = self.run_results[method.loss]
    return self._at(method, length, result.validation_scores)

  def test_predictions(
    self, method: Method, length: str, *, scaled: bool = True
  ) -> Predictions:
    """Returns the predictions for the test rows.

    Args:
      method: The method.
      length: Name of the training length.
      scaled: Whether temperature scaling is applied.

    Returns:
      The predictions.
    """
    result = self.run_results[method.loss]
    scores = self.test_scores(method, length)
    if scaled:
      temperature = self.evaluations[method, length].temperature
      scores = scores / np.asarray(temperature)[:, None, None]
    return _test_rows.of_scores(
      scores, result.test_labels, result.test_keep, self.settings.seeds
    )

  def table(self) -> pd.DataFrame:
    """Returns the ranking of the losses after stopped training.

    Returns:
      A row per loss, the lowest NLL after temperature scaling first, then the
      baselines. ``nll``, ``accuracy`` and ``ece`` (of a table with a dominant
      class others) are means; ``_seeds_error`` and ``_rows_error`` are their
      standard errors. ``_difference`` is from the reference, whose name is in
      ``attrs["reference"]``, with a 95 % interval from ``_low`` to ``_high``,
      and ``_p`` its p-value after Holm's correction. NaN where there is none.
    """
    # The modules that show results import this one.
    from squentropy_study import _ranking_table

    return _ranking_table.table(self)

  def plot(self, theme: str = "light") -> Figure:
    """Draws the ranking: the differences from the reference, with intervals.

    Args:
      theme: ``light`` or ``dark``.

    Returns:
      A figure with a panel per metric and a row per loss or baseline. A
      baseline that is farther away than all losses is an arrow with its value.
    """
    from squentropy_study import _ranking_table

    return _ranking_table.plot(self, theme)

  def predictions(self) -> pd.DataFrame:
    """Returns the predictions of stopped training for each test row.

    Returns:
      A row for each test row, fold, seed, and loss or baseline. ``row`` is the
      number of the row in the data, from 0 (the first row below the names of
      the columns), and ``id`` its value in the column of ``--id``, if one was
      named. ``label`` is the name of the class. ``log_prob_CLASS``, float32, is
      the logarithm of the predicted probability of a class after temperature
      scaling. It is of the probabilities that the loss itself defines. A
      baseline is fitted once for each fold and has seed 0.
    """
    return _predictions.frame(self)

  def curve_epochs(self, loss: str) -> np.ndarray:
    """Returns the epochs of the points of :meth:`curve`."""
    return self.run_results[loss].curve_epochs

  def curve(self, method: Method, name: str) -> np.ndarray:
    """Returns ``train_loss``, or a metric of the test rows, over epochs.

    Args:
      method: The method.
      name: ``train_loss`` or a metric such as ``accuracy``, ``nll``, ``ece``.

    Returns:
      ``[points, runs]``; NaN where a run had ended.
    """
    result = self.run_results[method.loss]
    if name == "train_loss":
      return result.train_loss
    curves = self._of_map(method, result.curves)
    return curves[:, _evaluation.METRICS.index(name)]

  def _at(self, method: Method, length: str, values: np.ndarray) -> np.ndarray:
    """Selects a training length and a map from ``[lengths, maps, ...]``."""
    lengths = list(self.settings.training_lengths)
    return self._of_map(method, values)[lengths.index(length)]

  def _of_map(self, method: Method, values: np.ndarray) -> np.ndarray:
    """Selects a probability map from ``[..., maps, ...]``, the second axis."""
    maps = [m.probability_map for m in self.methods if m.loss == method.loss]
    return values[:, maps.index(method.probability_map)]

  def chance_ece(self, method: Method, length: str) -> float:
    """Returns the expected ECE of a perfectly calibrated classifier.

    In a bin of ``n`` rows with mean confidence ``c`` the number of correct
    predictions then has the variance ``n c (1 - c)``. Its mean distance from
    ``n c`` is that of a normal variable.
    """
    bins = self.evaluations[method, length].bins
    counts = np.asarray(bins.counts)
    full = counts > 0
    share = counts[full] / counts.sum()
    confidence = np.minimum(np.asarray(bins.confidence)[full], 1)
    rows = self.run_results[method.loss].test_keep.sum(axis=1).mean()
    variance = share * confidence * (1 - confidence) / rows
    return float(np.sqrt(2 / np.pi * variance).sum())


def collect(
  settings: Settings,
  run_results: Mapping[str, RunResult],
  baselines: Mapping[str, Baseline],
  data_rows: DataRows,
) -> Results:
  """Evaluates every loss, probability map and training length."""
  evaluations = {}
  for loss, result in run_results.items():
    names = _loss_specs.parse(loss).probability_maps()
    for number, name in enumerate(names):
      for index, length in enumerate(settings.training_lengths):
        evaluations[Method(loss, name), length] = _evaluation.evaluate(
          HeldOutLogits(
            result.validation_scores[index, number],
            result.validation_labels,
            result.validation_keep,
          ),
          HeldOutLogits(
            result.test_scores[index, number],
            result.test_labels,
            result.test_keep,
          ),
        )
  return Results(settings, run_results, evaluations, baselines, data_rows)
