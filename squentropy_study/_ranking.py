# SPDX-License-Identifier: Apache-2.0
"""All losses of a study in the order of their NLL, as data."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np

from squentropy_study import _metric_samples, _paired_errors, _test_rows
from squentropy_study._metric_samples import RankMetric
from squentropy_study._paired_errors import Difference, Sample
from squentropy_study._result_rows import REFERENCE, Method
from squentropy_study._results import Results
from squentropy_study._settings import STOPPED
from squentropy_study._test_rows import Predictions

# Level of the tests after the correction.
LEVEL = 0.05


class Entry(NamedTuple):
  """A loss or a baseline with its predictions for the test rows.

  Attributes:
    label: Name in tables and sentences.
    predictions: After temperature scaling.
    loss: The loss as text; None for a baseline.
    method: The loss and its probability map; None for a baseline.
    epoch: Median over the runs of the epoch that is evaluated, if known.
    validation_nll: Mean over the runs of the NLL of the validation rows.
  """

  label: str
  predictions: Predictions
  loss: str | None = None
  method: Method | None = None
  epoch: float = math.nan
  validation_nll: float = math.nan


@dataclasses.dataclass(frozen=True)
class RankedEntry:
  """A row of the ranking.

  Attributes:
    label: Name in tables and sentences.
    method: The loss and its probability map; None for a baseline.
    epoch: Median over the runs of the epoch that is evaluated, if known.
    values: Each metric with its standard errors, by name.
    differences: The value minus that of the reference, by metric; empty for
      the reference and where nothing can be compared.
    adjusted: p-values after Holm's correction, by metric.
    diverged: Whether a value is not finite in any run.
    over_best: Of a baseline, the value minus that of the best loss, by metric;
      empty for a loss and where there is no loss.
  """

  label: str
  method: Method | None
  epoch: float
  values: Mapping[str, Difference]
  differences: Mapping[str, Difference]
  adjusted: Mapping[str, float]
  diverged: bool
  over_best: Mapping[str, Difference] = dataclasses.field(default_factory=dict)

  @property
  def is_baseline(self) -> bool:
    """Whether this is a baseline, not a loss."""
    return self.method is None

  @property
  def is_untested(self) -> bool:
    """Whether it is a second probability map, whose loss is tested already."""
    return bool(self.differences) and not (self.is_baseline or self.adjusted)

  def significance(self, metric: RankMetric) -> int:
    """Returns 1 if significantly better than the reference, -1 if worse."""
    if not self.adjusted.get(metric.name, math.nan) < LEVEL:
      return 0
    return int(np.sign(self.differences[metric.name].mean)) * metric.gain


@dataclasses.dataclass(frozen=True)
class Ranking:
  """Losses and baselines at one training length.

  Attributes:
    length: Name of the training length.
    reference: Label of the loss that others are compared with.
    metrics: What is compared, the main metric first.
    entries: The losses from the lowest NLL to the highest, then those that
      diverged, then the baselines.
    class_counts: Number of test rows of each class.
    seeds: Number of seeds.
    diverged_reference: The loss that was to be the reference, if it diverged.
  """

  length: str
  reference: str
  metrics: tuple[RankMetric, ...]
  entries: tuple[RankedEntry, ...]
  class_counts: np.ndarray
  seeds: int
  diverged_reference: str = ""

  @property
  def losses(self) -> list[RankedEntry]:
    """The losses that did not diverge, best first."""
    return [e for e in self.entries if not (e.is_baseline or e.diverged)]

  @property
  def diverged(self) -> list[RankedEntry]:
    """The losses that diverged."""
    return [e for e in self.entries if e.diverged and not e.is_baseline]

  @property
  def baselines(self) -> list[RankedEntry]:
    """The baselines, best first."""
    return [e for e in self.entries if e.is_baseline]

  @property
  def num_tests(self) -> int:
    """Number of p-values that the correction is for."""
    return sum(
      math.isfinite(p) for e in self.losses for p in e.adjusted.values()
    )

  @property
  def is_comparable(self) -> bool:
    """Whether the NLL of any loss can be tested against the reference."""
    name = self.metrics[0].name
    return any(
      math.isfinite(e.adjusted.get(name, math.nan)) for e in self.losses
    )

  def best(self, metric: RankMetric) -> RankedEntry:
    """Returns the loss with the best value; of equal ones the reference."""

    def key(entry: RankedEntry) -> tuple[float, bool]:
      value = round(metric.gain * entry.values[metric.name].mean, 9)
      if math.isnan(value):
        value = -math.inf
      return value, entry.label == self.reference

    return max(self.losses, key=key)


def _reference(losses: Sequence[Entry], wanted: str) -> Entry | None:
  """Returns the loss to compare with; None if there are no losses.

  The best loss is the best one on the validation rows. The test rows would
  choose the loss that they happen to favour, and so favour it once more in the
  comparison.
  """

  def validation_nll(entry: Entry) -> float:
    value = entry.validation_nll
    return value if math.isfinite(value) else math.inf

  named = [entry for entry in losses if entry.loss == wanted]
  return min(named or losses, key=validation_nll, default=None)


def _over_best(
  of_metric: Mapping[str, Sample],
  losses: Sequence[Mapping[str, Sample]],
  metrics: Sequence[RankMetric],
) -> dict[str, Difference]:
  """Compares a baseline with the best loss in each metric."""
  result = {}
  for metric in metrics if losses else ():
    name = metric.name
    best = max((x[name] for x in losses), key=lambda x: metric.gain * x.mean)
    result[name] = _paired_errors.estimate(of_metric[name] - best)
  return result


def rank_entries(
  entries: Sequence[Entry], reference: str | None, length: str
) -> Ranking:
  """Compares entries with a reference and sorts them.

  Args:
    entries: The losses, then the baselines.
    reference: A loss, or ``best``, the loss with the lowest validation NLL.
      None means cross-entropy if it is among the entries, else the best.
    length: Name of the training length.

  Returns:
    The ranking.
  """
  counts = entries[0].predictions.class_counts
  seeds = entries[0].predictions.log_probs.shape[1]
  metrics = _metric_samples.chosen(counts)
  samples: dict[str, dict[str, Sample]] = {}
  diverged = set()
  for entry in entries:
    if not np.isfinite(_metric_samples.nll(entry.predictions).per_seed).all():
      diverged.add(entry.label)
      continue
    samples[entry.label] = {
      metric.name: metric.sample(entry.predictions) for metric in metrics
    }
  order = sorted(
    (entry for entry in entries if entry.label in samples),
    key=lambda entry: samples[entry.label][metrics[0].name].mean,
  )
  losses = [entry for entry in order if entry.method is not None]
  wanted = reference or REFERENCE
  chosen = _reference(losses, wanted)
  diverged_reference = ""
  if chosen is not None and chosen.loss != wanted:
    gone = (e.label for e in entries if e.loss == wanted)
    diverged_reference = next(gone, "")
  differences: dict[str, dict[str, Difference]] = {}
  for entry in order:
    if chosen is None or entry is chosen:
      continue
    differences[entry.label] = {
      metric.name: _paired_errors.estimate(
        samples[entry.label][metric.name] - samples[chosen.label][metric.name]
      )
      for metric in metrics
    }
  # Another probability map of the same training is no other loss.
  main = {entry.loss: entry for entry in reversed(entries)}
  tested = [
    (entry.label, metric.name)
    for entry in losses
    for metric in metrics
    if metric.is_tested
    and main[entry.loss] is entry
    and chosen is not None
    and entry.loss != chosen.loss
  ]
  adjusted = _paired_errors.holm(
    [differences[label][name].p_value for label, name in tested]
  )
  corrected: dict[str, dict[str, float]] = {}
  for (label, name), p_value in zip(tested, adjusted, strict=True):
    corrected.setdefault(label, {})[name] = float(p_value)
  of_losses = [samples[entry.label] for entry in losses]
  over_best = {
    entry.label: _over_best(samples[entry.label], of_losses, metrics)
    for entry in order
    if entry.method is None
  }
  order += [entry for entry in entries if entry.label in diverged]
  nothing = Difference(*[math.nan] * len(Difference._fields))
  ranked = [
    RankedEntry(
      entry.label,
      entry.method,
      entry.epoch,
      {
        metric.name: _paired_errors.estimate(samples[entry.label][metric.name])
        if entry.label in samples
        else nothing
        for metric in metrics
      },
      differences.get(entry.label, {}),
      corrected.get(entry.label, {}),
      entry.label in diverged,
      over_best.get(entry.label, {}),
    )
    for entry in order
  ]
  return Ranking(
    length,
    chosen.label if chosen else "",
    metrics,
    tuple(sorted(ranked, key=lambda entry: entry.is_baseline)),
    counts,
    seeds,
    diverged_reference,
  )


def rank(results: Results, length: str = STOPPED) -> Ranking:
  """Ranks the losses of a study by their NLL after temperature scaling.

  Args:
    results: The numbers.
    length: Name of a training length.

  Returns:
    The ranking.
  """
  # A bootstrap takes time, and page, terminal and headline all ask.
  key = ("ranking", length)
  if key in results.cache:
    return results.cache[key]
  entries = [
    Entry(
      results.label(method),
      results.test_predictions(method, length),
      method.loss,
      method,
      float(np.median(results.epochs(method, length))),
      float(np.mean(results.evaluations[method, length].validation_nll)),
    )
    for method in results.methods
  ]
  rows = entries[0].predictions
  entries += [
    Entry(name, _test_rows.of_baseline(baseline.scaled_log_probs, rows))
    for name, baseline in results.baselines.items()
  ]
  results.cache[key] = rank_entries(entries, results.settings.reference, length)
  return results.cache[key]
