# SPDX-License-Identifier: Apache-2.0
"""The numbers of a study: per seed, and what may be said across seeds."""

from collections.abc import Mapping
import csv
import dataclasses
import functools
import io
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from squentropy_study import _evaluate, _losses
from squentropy_study._evaluate import HeldOut
from squentropy_study._settings import Settings
from squentropy_study._train import Cell


class Method(NamedTuple):
  """A loss together with how probabilities are read from its logits."""

  loss: str
  readout: str


class Row(NamedTuple):
  """A row of ``results.csv``; ``_scaled``: after temperature scaling.

  All are of the test rows but ``train_accuracy``, which says how far the
  training rows were fitted.
  """

  data: str
  loss: str
  readout: str
  regime: str
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


# Dividing by the temperature leaves the accuracy as it is.
_SCALED = _evaluate.METRICS[1:]


class Column(NamedTuple):
  """A number of :class:`Row` as shown to people; the main ones first."""

  name: str
  title: str
  short: str
  decimals: int
  main: bool = False


COLUMNS = (
  Column("accuracy", "Accuracy", "accuracy", 4, main=True),
  Column("nll", "Negative log-likelihood (NLL)", "NLL", 3, main=True),
  Column("ece", "Expected calibration error (ECE)", "ECE", 4, main=True),
  Column("temperature", "Fitted temperature", "temperature", 2, main=True),
  Column(
    "nll_scaled", "NLL after temperature scaling", "NLL, scaled", 3, main=True
  ),
  Column(
    "ece_scaled", "ECE after temperature scaling", "ECE, scaled", 4, main=True
  ),
  Column("brier", "Brier score, summed over classes", "Brier", 3),
  Column("ace", "ECE with bins of equal mass", "equal-mass ECE", 4),
  Column("aurc", "Area under the risk-coverage curve (AURC)", "AURC", 4),
  Column("brier_scaled", "Brier after temperature scaling", "Brier, scaled", 3),
  Column(
    "ace_scaled",
    "Equal-mass ECE after temperature scaling",
    "equal-mass ECE, scaled",
    4,
  ),
  Column("aurc_scaled", "AURC after temperature scaling", "AURC, scaled", 4),
)


class Difference(NamedTuple):
  """Mean paired difference over seeds with its 95 % interval.

  Attributes:
    mean: Mean over seeds of "this minus the baseline".
    low: Lower end; NaN where the runs cannot say how far chance reaches.
    high: Upper end.
  """

  mean: float
  low: float
  high: float

  @property
  def sign(self) -> int:
    """1 or -1 where the interval leaves out 0, else 0: cannot be told."""
    return int(self.low > 0) - int(self.high < 0)


@dataclasses.dataclass(frozen=True)
class Results:
  """All numbers of a study.

  Attributes:
    settings: What was run.
    cells: What training left behind, by loss.
    evaluations: By method and regime.
  """

  settings: Settings
  cells: Mapping[str, Cell]
  evaluations: Mapping[tuple[Method, str], _evaluate.Evaluation]

  @property
  def methods(self) -> tuple[Method, ...]:
    """Losses and readouts in the order named."""
    return tuple(dict.fromkeys(method for method, _ in self.evaluations))

  @property
  def unit(self) -> str:
    """What differences are paired by."""
    return "fold" if self.settings.folds > 1 else "seed"

  @functools.cached_property
  def rows(self) -> list[Row]:
    """One row per loss, readout, length, fold and seed."""
    result = []
    for (method, regime), evaluation in self.evaluations.items():
      before, after = evaluation.before, evaluation.after
      scaled = (getattr(after, name) for name in _SCALED)
      fitted = self._at(method, self.cells[method.loss].train_accuracy)
      fitted = fitted[list(self.settings.regimes).index(regime)]
      columns = (*before, fitted, evaluation.temperature, *scaled)
      numbers = zip(*map(np.asarray, columns), strict=True)
      epochs = self.settings.regimes[regime]
      for run, values in enumerate(numbers):
        result.append(
          Row(
            self.settings.data,
            *method,
            regime,
            epochs,
            *divmod(run, self.settings.seeds),
            *(float(value) for value in values),
          )
        )
    return result

  def label(self, method: Method) -> str:
    """What people read; the readout only where there is a choice."""
    several = sum(other.loss == method.loss for other in self.methods) > 1
    return f"{method.loss} ({method.readout})" if several else method.loss

  def per_run(self, method: Method, regime: str, column: str) -> np.ndarray:
    """The values of a column, ``[folds, seeds]``."""
    values = [
      getattr(row, column)
      for row in self.rows
      if (row.loss, row.readout, row.regime) == (*method, regime)
    ]
    return np.reshape(values, (self.settings.folds, self.settings.seeds))

  def per_seed(self, method: Method, regime: str, column: str) -> np.ndarray:
    """The values of a column, one per seed: means over the folds."""
    return self.per_run(method, regime, column).mean(axis=0)

  def curve(self, method: Method, column: str) -> np.ndarray:
    """``train_loss`` or a metric of the test rows, ``[points, runs]``."""
    cell = self.cells[method.loss]
    if column == "train_loss":
      return cell.train_loss
    curves = self._at(method, cell.curves)
    return curves[:, _evaluate.METRICS.index(column)]

  def _at(self, method: Method, values: np.ndarray) -> np.ndarray:
    """Of a cell's ``[points, readouts, ...]``, those of a method."""
    names = list(_losses.readouts(_losses.parse(method.loss)))
    return values[:, names.index(method.readout)]

  def difference(
    self, method: Method, baseline: Method, regime: str, column: str
  ) -> Difference:
    """Compares two methods (Student's t, paired).

    The pairs are the seeds; in cross-validation the folds, each the mean of its
    seeds, as seeds of one fold share their test rows. With fewer than three of
    them, or differences that are all the same, there is no interval: two seeds
    that gain one row each would have one of no width.
    """
    values = self.per_run(method, regime, column)
    paired = values - self.per_run(baseline, regime, column)
    paired = paired.mean(axis=1 if self.settings.folds > 1 else 0)
    # A float32 has about seven digits; what differs less is the same.
    if paired.size < 3 or np.ptp(paired) < 1e-6:
      return Difference(float(paired.mean()), math.nan, math.nan)
    error = paired.std(ddof=1) / math.sqrt(paired.size)
    reach = special.stdtrit(paired.size - 1, 0.975) * error
    mean = paired.mean()
    return Difference(float(mean), float(mean - reach), float(mean + reach))

  def chance_ece(self, method: Method, regime: str) -> float:
    """The ECE that forecasts as confident would show if they were perfect.

    In a bin of ``n`` rows with mean confidence ``c`` the number of hits then
    has the variance ``n c (1 - c)``; its mean distance from ``n c`` is that of
    a normal variable.
    """
    bins = self.evaluations[method, regime].bins
    counts = np.asarray(bins.counts)
    full = counts > 0
    share = counts[full] / counts.sum()
    confidence = np.minimum(np.asarray(bins.confidence)[full], 1)
    rows = self.cells[method.loss].test_keep.sum(axis=1).mean()
    variance = share * confidence * (1 - confidence) / rows
    return float(np.sqrt(2 / np.pi * variance).sum())


def collect(settings: Settings, cells: Mapping[str, Cell]) -> Results:
  """Evaluates every loss with every readout in every regime."""
  evaluations = {}
  for spec, cell in cells.items():
    for readout, read in _losses.readouts(_losses.parse(spec)).items():
      for index, regime in enumerate(settings.regimes):
        evaluation = _evaluate.evaluate(
          HeldOut(
            read(cell.calibration_logits[index]),
            cell.calibration_labels,
            cell.calibration_keep,
          ),
          HeldOut(
            read(cell.test_logits[index]), cell.test_labels, cell.test_keep
          ),
        )
        evaluations[Method(spec, readout), regime] = evaluation
  return Results(settings, cells, evaluations)


def to_csv(results: Results) -> bytes:
  """The text of ``results.csv``; nine digits give a float32 back exactly."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator="\n")
  writer.writerow(Row._fields)
  for row in results.rows:
    writer.writerow(
      f"{value:.9g}" if isinstance(value, float) else value for value in row
    )
  return buffer.getvalue().encode()


def mean_and_spread(values: np.ndarray, decimals: int) -> str:
  """``mean ± standard deviation`` over seeds, as text."""
  mean = f"{values.mean():.{decimals}f}"
  if values.size < 2:
    return mean
  return f"{mean} ± {values.std(ddof=1):.{decimals}f}"
