# SPDX-License-Identifier: Apache-2.0
"""The answer of a study in a few sentences."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from squentropy_study import (
  _data,
  _evaluation,
  _number_text,
  _paired_errors,
  _ranking,
)
from squentropy_study._metric_samples import RankMetric
from squentropy_study._paired_errors import Difference
from squentropy_study._ranking import RankedEntry, Ranking
from squentropy_study._result_rows import Method
from squentropy_study._results import Results
from squentropy_study._settings import STOPPED

_MOST_FURTHER = 3
# Losses of which the first sentence gives the differences.
_MOST_NAMED = 3
# A fixed length is past the best epoch if its NLL is higher by this factor and
# by this much.
_PAST = (1.05, 0.01)
# A baseline is much better with an NLL lower by this factor, or with this many
# points of accuracy.
_FAR_NLL = 0.9
_FAR_POINTS = 1.0
# A best epoch in this last share of the epochs is near the bound.
_LATE = 0.1


@dataclasses.dataclass(frozen=True)
class Headline:
  """The answer of a study.

  Attributes:
    sentence: Which loss is better than the reference.
    further: At most three sentences that qualify the answer.
  """

  sentence: str
  further: tuple[str, ...]

  def __str__(self) -> str:
    """Returns all sentences."""
    return " ".join((self.sentence, *self.further))


class PastBest(NamedTuple):
  """A fixed training length that is longer than good for a loss.

  Attributes:
    label: The loss.
    best_epoch: Median epoch at which its training was best.
    epoch: The fixed length.
    best_nll: Mean NLL at the best epoch, before temperature scaling.
    nll: Mean NLL at the fixed length.
  """

  label: str
  best_epoch: float
  epoch: int
  best_nll: float
  nll: float

  @property
  def text(self) -> str:
    """The sentence."""
    places = max(_number_text.decimals((self.nll - self.best_nll) / 2, 2), 2)
    now, best = (
      _number_text.fixed(value, places) for value in (self.nll, self.best_nll)
    )
    return (
      f"The best epoch of {self.label} is {self.best_epoch:.3g}; at epoch "
      f"{self.epoch} its NLL is {now} instead of {best}."
    )


def difference_parts(
  difference: Difference, metric: RankMetric
) -> tuple[str, str]:
  """Returns a difference as ``+0.9`` and ``[0.4, 1.4]``."""
  mean, low, high = (
    metric.scale * value
    for value in (difference.mean, difference.low, difference.high)
  )
  return _number_text.with_interval(mean, low, high, 1 if metric.unit else 3)


def mean_text(difference: Difference, metric: RankMetric) -> str:
  """Returns a difference without its interval, as ``+0.9 points``."""
  number, _ = difference_parts(difference, metric)
  one = number in ("+1", "-1")
  return number + (metric.unit.removesuffix("s") if one else metric.unit)


def difference_text(difference: Difference, metric: RankMetric) -> str:
  """Returns a difference as ``+0.9 points [0.4, 1.4]``."""
  _, interval = difference_parts(difference, metric)
  return f"{mean_text(difference, metric)} {interval}".rstrip()


def _in_metrics(entry: RankedEntry, metrics: Sequence[RankMetric]) -> str:
  texts = (difference_text(entry.differences[m.name], m) for m in metrics)
  parts = zip(metrics, texts, strict=True)
  return _number_text.listed([f"{m.short} ({text})" for m, text in parts])


def _significant(entry: RankedEntry, ranking: Ranking, sign: int) -> list:
  return [m for m in ranking.metrics if entry.significance(m) == sign]


def _better_and_worse(entry: RankedEntry, ranking: Ranking) -> str:
  """Says in what a loss is better, and in what it is worse."""
  better = _in_metrics(entry, _significant(entry, ranking, 1))
  worse = _significant(entry, ranking, -1)
  if not worse:
    return better
  return f"{better}, but significantly worse in {_in_metrics(entry, worse)}"


def _only_worse(entries: Sequence[RankedEntry], ranking: Ranking) -> str:
  """Says which losses are worse, as the end of a sentence."""
  if not entries:
    return ""
  names = _number_text.listed([entry.label for entry in entries])
  if len(entries) > 1:
    return f"; {names} are significantly worse"
  metrics = _significant(entries[0], ranking, -1)
  return (
    f"; {names} is significantly worse in {_in_metrics(entries[0], metrics)}"
  )


def _first(ranking: Ranking, data: str) -> str:
  """Returns the first sentence."""
  others = [e for e in ranking.losses if e.label != ranking.reference]
  reference = ranking.reference
  better = [e for e in others if _significant(e, ranking, 1)]
  worse = [
    e for e in others if e not in better and _significant(e, ranking, -1)
  ]
  if len(better) == 1:
    return (
      f"{better[0].label} is significantly better than {reference} on {data} "
      f"in {_better_and_worse(better[0], ranking)}"
      f"{_only_worse(worse, ranking)}."
    )
  if better:
    named = _number_text.listed([entry.label for entry in better])
    each = "; ".join(
      f"{entry.label} in {_better_and_worse(entry, ranking)}"
      for entry in better[:_MOST_NAMED]
    )
    return (
      f"{named} are significantly better than {reference} on {data}: "
      f"{each}{_only_worse(worse, ranking)}."
    )
  if not ranking.is_comparable:
    return (
      f"The losses cannot be compared on {data}, because there are too few "
      "test rows or all losses predict the same."
    )
  text = f"No loss is significantly better than {reference} on {data}"
  return f"{text}{_only_worse(worse, ranking)}."


def _winners(ranking: Ranking) -> str | None:
  """Says which loss is best in each metric that the first sentence left out."""
  by_label: dict[str, list[str]] = {}
  for metric in ranking.metrics:
    entry = ranking.best(metric)
    if not metric.is_tested or entry.significance(metric) == 1:
      continue
    text = f"the {metric.best} {metric.short}"
    if metric.name in entry.differences:
      text += f" ({difference_text(entry.differences[metric.name], metric)})"
    by_label.setdefault(entry.label, []).append(text)
  parts = [
    f"{label} has {_number_text.listed(texts, 4)}"
    for label, texts in by_label.items()
  ]
  return f"{'; '.join(parts)}." if parts else None


def _far_baseline(
  ranking: Ranking, metrics: Sequence[RankMetric]
) -> str | None:
  """Says whether a baseline is much and significantly better than each loss."""
  baselines = [entry for entry in ranking.baselines if entry.over_best]
  p_values = _paired_errors.holm(
    [e.over_best[m.name].p_value for e in baselines for m in metrics]
  ).reshape(-1, len(metrics))
  for entry, adjusted in zip(baselines, p_values, strict=True):
    texts = []
    for metric, p_value in zip(metrics, adjusted, strict=True):
      best = ranking.best(metric).values[metric.name]
      ours = entry.values[metric.name]
      gain = metric.gain * entry.over_best[metric.name].mean
      far = (
        ours.mean < _FAR_NLL * best.mean
        if metric.name == "nll"
        else gain * metric.scale >= _FAR_POINTS
      )
      if far and p_value < _ranking.LEVEL:
        texts.append(_value_and_best(ours, best, metric))
    if texts:
      return (
        f"The baseline {entry.label} is much better than every loss: "
        f"{_number_text.listed(texts)}."
      )
  return None


def _value_and_best(
  ours: Difference, best: Difference, metric: RankMetric
) -> str:
  places = 1 if metric.unit else 3
  unit = " %" if metric.unit else ""
  now, then = (
    _number_text.fixed(metric.scale * value.mean, places)
    for value in (ours, best)
  )
  return f"{metric.short} {now}{unit} (best loss {then}{unit})"


def past_best(results: Results) -> list[PastBest]:
  """Finds fixed training lengths that are past the best epoch.

  Args:
    results: The numbers.

  Returns:
    One item per loss and fixed length at which its NLL is clearly higher than
    at its best epoch.
  """
  found = []
  stopped, *_ = lengths = results.settings.training_lengths
  for method in results.methods:
    best = float(np.mean(results.per_seed(method, stopped, "nll")))
    epoch = float(np.median(results.epochs(method, stopped)))
    for length, fixed in lengths.items():
      if fixed is None or fixed <= epoch:
        continue
      value = float(np.mean(results.per_seed(method, length, "nll")))
      factor, least = _PAST
      if value > factor * best and value > best + least:
        label = results.label(method)
        found.append(PastBest(label, epoch, fixed, best, value))
  return found


def _runs_that(results: Results, holds: Callable[[Method], np.ndarray]) -> str:
  """Says for which runs of which losses something holds; empty for none."""
  counts = {method: int(holds(method).sum()) for method in results.methods}
  found = [
    f"{count} of {results.settings.runs} runs of {results.label(method)}"
    for method, count in counts.items()
    if count
  ]
  return _number_text.listed(found, 4) if found else ""


def all_correct(results: Results) -> str | None:
  """Says where the NLL rests on the row that the temperature fit adds."""

  def are_correct(method: Method) -> np.ndarray:
    evaluated = results.evaluations[method, STOPPED]
    return np.asarray(evaluated.validation_accuracy) == 1

  found = _runs_that(results, are_correct)
  if not found:
    return None
  return (
    f"In {found}, all validation rows are classified "
    "correctly. The temperature, and so the NLL, then depends on the "
    "misclassified row that the fit adds."
  )


def open_temperature(results: Results) -> str | None:
  """Says whose temperature the validation rows do not determine."""
  # At the upper bound all classes are equally probable, and the NLL is right.
  low, _ = _evaluation.TEMPERATURES
  found = []
  for method in results.methods:
    fitted = results.per_run(method, STOPPED, "temperature")
    if (fitted < 1.001 * low).any():
      found.append(results.label(method))
  if not found:
    return None
  return (
    f"Some temperatures of {_number_text.listed(found)} are at their lower "
    f"bound ({low:g}), so the NLL after temperature scaling may be too high."
  )


def at_bound(results: Results) -> str | None:
  """Says whose best epochs are near the bound of the search."""
  bound = results.settings.max_epochs
  found = _runs_that(
    results,
    lambda method: results.epochs(method, STOPPED) > (1 - _LATE) * bound,
  )
  if not found:
    return None
  return (
    f"The best epoch of {found} is in the last tenth of --max-epochs {bound}. "
    "More epochs may lower the NLL; raise --max-epochs."
  )


def headline_of(
  ranking: Ranking,
  data: str,
  past: Sequence[PastBest] = (),
  warning: str | None = None,
  bound: str | None = None,
) -> Headline:
  """Answers which loss is best.

  Args:
    ranking: The losses at the main training length.
    data: Name of the data.
    past: Fixed lengths past the best epoch.
    warning: A sentence on numbers that say little.
    bound: A sentence on training that may be too short.

  Returns:
    The sentences.
  """
  further = []
  if ranking.diverged:
    names = _number_text.listed([entry.label for entry in ranking.diverged])
    verb = "is" if len(ranking.diverged) == 1 else "are"
    further.append(
      f"{names} diverged (NaN or infinite values in at least one run) and "
      f"{verb} not ranked; try a lower learning rate."
    )
  if ranking.diverged_reference and len(ranking.losses) > 1:
    further.append(
      f"Because {ranking.diverged_reference} diverged, the other losses are "
      f"compared with {ranking.reference}, which has the lowest validation NLL."
    )
  if not ranking.losses:
    return Headline(
      f"No losses are compared on {data}, because every loss diverged.",
      ("Try a lower learning rate.",),
    )
  if len(ranking.losses) == 1:
    only = ranking.losses[0].label
    why = "did not diverge" if ranking.diverged else "was trained"
    first = f"No losses are compared on {data}, because only {only} {why}."
    if not ranking.diverged:
      further.append("Name two losses or more to compare them.")
  else:
    first = _first(ranking, data)
  further += filter(None, [warning, bound])
  # The NLL after a temperature at its bound is no evidence.
  trusted = [
    metric
    for metric in ranking.metrics
    if metric.is_tested and not (warning and metric.name == "nll")
  ]
  if far := _far_baseline(ranking, trusted):
    further.append(far)
  chosen = [item for item in past if item.label == ranking.reference]
  if chosen or past:
    further.append((chosen or list(past))[0].text)
  if ranking.is_comparable:
    further += filter(None, [_winners(ranking)])
  return Headline(first, tuple(further[:_MOST_FURTHER]))


def headline(results: Results) -> Headline:
  """Says which loss is best on the data of a study, with up to three caveats.

  The sentence calls a loss better or worse than the reference only if its
  difference in NLL or accuracy is significant. Holm's correction is for all
  losses and both metrics.

  Args:
    results: The numbers.

  Returns:
    One sentence, and at most three further ones.
  """
  return headline_of(
    _ranking.rank(results),
    _data.short_name(results.settings.data),
    past_best(results),
    all_correct(results) or open_temperature(results),
    at_bound(results),
  )
