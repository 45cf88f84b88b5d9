# SPDX-License-Identifier: Apache-2.0
"""The numbers of a study, per run and over runs."""

from collections.abc import Mapping
import csv
import dataclasses
import functools
import io
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from squentropy_study import _evaluation, _loss_specs
from squentropy_study._evaluation import HeldOutLogits
from squentropy_study._settings import Settings
from squentropy_study._train import RunResult

# The loss that others are compared with.
BASELINE = "cross_entropy"


class Method(NamedTuple):
  """A loss, and the map from its logits to probabilities.

  Attributes:
    loss: The loss as text.
    probability_map: ``log_probs``, the loss's own probabilities, or
      ``softmax``.
  """

  loss: str
  probability_map: str


class ResultRow(NamedTuple):
  """A row of ``results.csv``; ``_scaled``: after temperature scaling.

  All metrics are of the test rows except ``train_accuracy``, which is of the
  training rows.
  """

  data: str
  loss: str
  probability_map: str
  training_length: str
  epochs: int
  fold: int
  seed: int
  accuracy: float
  nll: float
  brier: float
  ece: float
  ace: float
  aurc: float
  train_accuracy: float
  temperature: float
  nll_scaled: float
  brier_scaled: float
  ece_scaled: float
  ace_scaled: float
  aurc_scaled: float


# Temperature scaling does not change the accuracy.
_SCALED = _evaluation.METRICS[1:]


class Measure(NamedTuple):
  """A column of ``results.csv`` with its titles.

  Attributes:
    name: Field of :class:`ResultRow`.
    title: Title of a table.
    short: Name within a sentence.
    decimals: Number of decimals shown.
    main: Whether it is shown in the terminal.
  """

  name: str
  title: str
  short: str
  decimals: int
  main: bool = False


MEASURES = (
  Measure("nll", "Negative log-likelihood (NLL)", "NLL", 3, main=True),
  Measure("accuracy", "Accuracy", "accuracy", 4, main=True),
  Measure("ece", "Expected calibration error (ECE)", "ECE", 4, main=True),
  Measure("temperature", "Fitted temperature", "temperature", 2, main=True),
  Measure(
    "nll_scaled", "NLL after temperature scaling", "scaled NLL", 3, main=True
  ),
  Measure(
    "ece_scaled", "ECE after temperature scaling", "scaled ECE", 4, main=True
  ),
  Measure("brier", "Brier score, summed over classes", "Brier", 3),
  Measure("ace", "ECE with bins of equal mass", "equal-mass ECE", 4),
  Measure("aurc", "Area under the risk-coverage curve (AURC)", "AURC", 4),
  Measure("brier_scaled", "Brier after temperature scaling", "scaled Brier", 3),
  Measure(
    "ace_scaled",
    "Equal-mass ECE after temperature scaling",
    "scaled equal-mass ECE",
    4,
  ),
  Measure("aurc_scaled", "AURC after temperature scaling", "scaled AURC", 4),
)


class Difference(NamedTuple):
  """Mean paired difference with its 95 % confidence interval.

  Attributes:
    mean: Mean of "this method minus the baseline".
    low: Lower end of the interval; NaN where it cannot be computed.
    high: Upper end of the interval.
  """

  mean: float
  low: float
  high: float

  @property
  def sign(self) -> int:
    """1 or -1 if the interval excludes 0, otherwise 0: not significant."""
    return int(self.low > 0) - int(self.high < 0)


@dataclasses.dataclass(frozen=True)
class Results:
  """All numbers of a study.

  Attributes:
    settings: The settings of the study.
    run_results: What the training with each loss left.
    evaluations: By method and name of the training length.
    baselines: Probabilities of the test rows, ``[folds, rows, classes]``, by
      the name of a classifier that is no loss.
  """

  settings: Settings
  run_results: Mapping[str, RunResult]
  evaluations: Mapping[tuple[Method, str], _evaluation.Evaluation]
  baselines: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def methods(self) -> tuple[Method, ...]:
    """Losses and probability maps in the order named."""
    return tuple(dict.fromkeys(method for method, _ in self.evaluations))

  @property
  def unit(self) -> str:
    """What differences are paired by: ``fold`` or ``seed``."""
    return "fold" if self.settings.folds > 1 else "seed"

  @functools.cached_property
  def rows(self) -> list[ResultRow]:
    """One row per loss, probability map, training length, fold and seed."""
    result = []
    for (method, length), evaluation in self.evaluations.items():
      before, after = evaluation.before, evaluation.after
      scaled = (getattr(after, name) for name in _SCALED)
      accuracy = self._of_map(
        method, self.run_results[method.loss].train_accuracy
      )[list(self.settings.training_lengths).index(length)]
      columns = (*before, accuracy, evaluation.temperature, *scaled)
      numbers = zip(*map(np.asarray, columns), strict=True)
      epochs = self.settings.training_lengths[length]
      for run, values in enumerate(numbers):
        result.append(
          ResultRow(
            self.settings.data,
            *method,
            length,
            epochs,
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

  def curve_epochs(self, loss: str) -> np.ndarray:
    """Returns the epochs of the points of :meth:`curve`."""
    return self.run_results[loss].curve_epochs

  def curve(self, method: Method, name: str) -> np.ndarray:
    """Returns ``train_loss``, or a metric of the test rows, over epochs.

    Args:
      method: The method.
      name: ``train_loss`` or a metric such as ``accuracy``, ``nll``, ``ece``.

    Returns:
      ``[points, runs]``.
    """
    result = self.run_results[method.loss]
    if name == "train_loss":
      return result.train_loss
    curves = self._of_map(method, result.curves)
    return curves[:, _evaluation.METRICS.index(name)]

  def _of_map(self, method: Method, values: np.ndarray) -> np.ndarray:
    """Selects a probability map from ``[points, maps, ...]``."""
    maps = list(_loss_specs.parse(method.loss).probability_maps())
    return values[:, maps.index(method.probability_map)]

  def difference(
    self, method: Method, baseline: Method, length: str, name: str
  ) -> Difference:
    """Compares two methods with a paired Student's t interval.

    The pairs are the seeds. In cross-validation they are the folds, each the
    mean over its seeds, because the seeds of a fold share test rows. There is
    no interval with fewer than three pairs or if all differences are equal.
    """
    values = self.per_run(method, length, name)
    paired = values - self.per_run(baseline, length, name)
    paired = paired.mean(axis=1 if self.settings.folds > 1 else 0)
    # Below the precision of float32, differences are equal.
    if paired.size < 3 or np.ptp(paired) < 1e-6:
      return Difference(float(paired.mean()), math.nan, math.nan)
    error = paired.std(ddof=1) / math.sqrt(paired.size)
    reach = special.stdtrit(paired.size - 1, 0.975) * error
    mean = paired.mean()
    return Difference(float(mean), float(mean - reach), float(mean + reach))

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
  settings: Settings, run_results: Mapping[str, RunResult]
) -> Results:
  """Evaluates every loss, probability map and training length."""
  evaluations = {}
  for loss, result in run_results.items():
    for name, scores in _loss_specs.parse(loss).probability_maps().items():
      for index, length in enumerate(settings.training_lengths):
        evaluation = _evaluation.evaluate(
          HeldOutLogits(
            scores(result.calibration_logits[index]),
            result.calibration_labels,
            result.calibration_keep,
          ),
          HeldOutLogits(
            scores(result.test_logits[index]),
            result.test_labels,
            result.test_keep,
          ),
        )
        evaluations[Method(loss, name), length] = evaluation
  return Results(settings, run_results, evaluations)


def results_csv(results: Results) -> bytes:
  """Returns ``results.csv``, with enough digits to restore a float32."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator="\n")
  writer.writerow(ResultRow._fields)
  for row in results.rows:
    writer.writerow(
      f"{value:.9g}" if isinstance(value, float) else value for value in row
    )
  return buffer.getvalue().encode()


def mean_and_spread(values: np.ndarray, decimals: int) -> str:
  """Returns ``mean ± standard deviation`` as text."""
  mean = f"{values.mean():.{decimals}f}"
  if values.size < 2:
    return mean
  return f"{mean} ± {values.std(ddof=1):.{decimals}f}"
