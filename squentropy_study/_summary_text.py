# SPDX-License-Identifier: Apache-2.0
"""The conclusion over several studies, in sentences."""

from collections.abc import Iterable, Sequence
import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from squentropy_study import _average_ranks, _comparisons, _paired_errors
from squentropy_study._average_ranks import AverageRanks
from squentropy_study._comparisons import (
  LEAST_SETS,
  Comparison,
  MethodAtLength,
)
from squentropy_study._result_rows import MEASURES, REFERENCE

# Metrics of the sentences and figures; the first one decides.
HEADLINE = ("nll_scaled", "accuracy", "ece_scaled")
# Metrics that the conclusion tests, so that Holm's correction is over them.
_TESTED = ("nll_scaled", "accuracy")
# Losses that a sentence names in their order.
_NAMED = 3

TITLES = {measure.name: measure.title for measure in MEASURES}


class Summary(NamedTuple):
  """What a page on several studies says.

  Attributes:
    reference: Loss and probability map that the others are compared with.
    comparisons: Every other method against the reference.
    rankings: For each training length, the headline metrics in their order.
    conclusion: One sentence.
    statements: Sentences on each headline metric.
  """

  reference: tuple[str, str]
  comparisons: list[Comparison]
  rankings: list[AverageRanks]
  conclusion: str
  statements: list[str]


def labels(
  methods: Iterable[Comparison | MethodAtLength],
) -> dict[tuple[str, str], str]:
  """Returns the label of each method, without the first map of a loss."""
  result: dict[tuple[str, str], str] = {}
  for loss, name, *_ in methods:
    again = loss in result.values()
    result.setdefault((loss, name), f"{loss} ({name})" if again else loss)
  return result


def _decimals(size: float) -> int:
  """Returns the decimals that show two digits of a number, at most six."""
  if not size > 0:
    return 4
  return min(max(1 - math.floor(math.log10(size)), 0), 6)


def differences(comparison: Comparison) -> tuple[str, str]:
  """Returns mean and median as text, rounded by the width of the interval."""
  mean, median, low, high = (
    comparison.mean,
    comparison.median,
    comparison.low,
    comparison.high,
  )
  tested = not math.isnan(low)
  decimals = _decimals((high - low) / 2 if tested else abs(mean))
  text = f"{mean:+.{decimals}f}"
  if tested:
    text += f" [{low:+.{decimals}f}, {high:+.{decimals}f}]"
  return text, f"{median:+.{decimals}f}"


def p_value(value: float) -> str:
  """Returns a p-value as text."""
  if math.isnan(value):
    return "too few"
  return f"{value:.2g}" if value >= 1e-4 else "< 0.0001"


def _with_p(value: float) -> str:
  text = p_value(value)
  return f"p {text}" if text.startswith("<") else f"p = {text}"


def _metric(name: str) -> str:
  """Returns the title of a metric within a sentence."""
  title = TITLES[name]
  return title if title[:2].isupper() else title[0].lower() + title[1:]


def _sets(count: int) -> str:
  return f"{count} data set{'s' if count != 1 else ''}"


def _significant(
  comparisons: Sequence[Comparison], length: str
) -> list[tuple[Comparison, float]]:
  """Returns what differs significantly, with its corrected p-value."""
  names = labels(comparisons)
  tested = [
    c
    for c in comparisons
    if c.training_length == length
    and c.metric in _TESTED
    and names[c.loss, c.probability_map] == c.loss
  ]
  # Without a p-value there are too few data sets, but the loss was compared.
  corrected = _paired_errors.holm(
    np.nan_to_num([c.p_value for c in tested], nan=1.0)
  )
  pairs = zip(tested, corrected, strict=True)
  return [(c, p) for c, p in pairs if p < 0.05]


def conclude(
  rankings: Sequence[AverageRanks], comparisons: Sequence[Comparison]
) -> str:
  """Returns the conclusion, which is about the first training length.

  Args:
    rankings: The rankings by each headline metric at that length.
    comparisons: Every other method against the reference.

  Returns:
    A sentence.
  """
  first = rankings[0]
  length, metric = first.training_length, _metric(first.metric)
  best = (
    f"{_best(first)} the best average rank in {metric} "
    f"({first.ranks[0]:.1f} of {len(first.losses)})"
  )
  if first.sets < LEAST_SETS:
    return (
      f"{_sets(first.sets)} {'is' if first.sets == 1 else 'are'} too few for "
      f"a test, which needs at least {LEAST_SETS}. With {length} training, "
      f"{best}, which may be chance."
    )
  against = comparisons[0].against
  differing = _significant(comparisons, length)
  # A loss that diverged on some data set is not called better.
  found = [
    (c, p) for c, p in differing if c.better > c.worse and not c.diverged
  ]
  start = f"Over {_sets(first.sets)} with {length} training,"
  if not found:
    return (
      f"{start} no loss is significantly better than {against} in "
      f"{' or '.join(map(_metric, _TESTED))}; {best}."
    )
  place = {loss: k for k, loss in enumerate(first.losses)}
  winner, p = min(
    found, key=lambda x: (_TESTED.index(x[0].metric), place[x[0].loss])
  )
  others = [
    c.loss
    for c, _ in found
    if c.metric == winner.metric and c.loss != winner.loss
  ]
  also = ""
  for c, _ in differing:
    if c.loss == winner.loss and c.better < c.worse:
      also += f", and significantly worse in {_metric(c.metric)}"
  if others:
    also += f"; so {'is' if len(others) == 1 else 'are'} {_and(others)}"
  return (
    f"{start} {winner.loss} is significantly better than {against} in "
    f"{_metric(winner.metric)}, on {winner.better} of "
    f"{_sets(winner.sets)} (Wilcoxon signed-rank with Holm's correction, "
    f"{_with_p(p)}){also}."
  )


def _best(ranking: AverageRanks) -> str:
  """Returns the losses with the best average rank, and a verb."""
  tied = int((ranking.ranks == ranking.ranks[0]).sum())
  if tied == 1:
    return f"{ranking.losses[0]} has"
  if tied > _NAMED:
    return f"{ranking.losses[0]} and {tied - 1} others share"
  return f"{_and(ranking.losses[:tied])} share"


def _and(names: Iterable[str]) -> str:
  *first, last = names
  return f"{', '.join(first)} and {last}" if first else last


def state(ranking: AverageRanks, comparisons: Sequence[Comparison]) -> str:
  """Returns sentences on the ranks in one metric."""
  order = [
    f"{loss} ({rank:.1f})"
    for loss, rank in zip(ranking.losses, ranking.ranks, strict=True)
  ]
  tied = int((ranking.ranks == ranking.ranks[0]).sum())
  others = order[tied : max(_NAMED, tied)]
  more = len(order) - tied - len(others)
  if more > 0:
    others.append(f"{more} other{'s' if more > 1 else ''}")
  then = f", then {_and(others)}" if others else ""
  test = ""
  if not math.isnan(ranking.p_value):
    differ = "differ" if ranking.p_value < 0.05 else "do not differ"
    test = (
      f" The ranks {differ} significantly (Friedman test, "
      f"{_with_p(ranking.p_value)})."
    )
  against = ""
  for c in comparisons:
    of_best = c.loss == ranking.losses[0] and c.metric == ranking.metric
    if of_best and c.training_length == ranking.training_length:
      diverged = f" and diverged on {c.diverged}" if c.diverged else ""
      mean = (
        "" if math.isnan(c.mean) else f"; mean difference {differences(c)[0]}"
      )
      against = (
        f" Compared with {c.against}, {c.loss} is better on {c.better}, equal "
        f"on {c.equal} and worse on {c.worse} of {_sets(c.sets)}"
        f"{diverged}{mean}."
      )
      break
  return (
    f"{TITLES[ranking.metric]}: {_best(ranking)} the best average rank "
    f"({ranking.ranks[0]:.1f}){then}.{test}{against}"
  )


def summarize(rows: pd.DataFrame, reference: str | None = None) -> Summary:
  """Compares and ranks the losses of several studies.

  Args:
    rows: As returned by :func:`squentropy_study.read_results`.
    reference: The loss to compare with; None takes cross-entropy or, without
      it, the loss with the best average rank.

  Returns:
    The summary.

  Raises:
    StudyError: There is one loss only, or runs cannot be paired.
  """
  table = _comparisons.dataset_means(rows)
  lengths = list(dict.fromkeys(method.training_length for method in table))
  rankings = [
    _average_ranks.rank(table, length, metric)
    for length in lengths
    for metric in HEADLINE
  ]
  maps = {
    method.loss: method.probability_map
    for method in _average_ranks.main_methods(table, lengths[0])
  }
  chosen = reference or REFERENCE
  if chosen not in maps:
    chosen = rankings[0].losses[0]
  against = (chosen, maps[chosen])
  comparisons = _comparisons.compare_studies(rows, against)
  of_first = rankings[: len(HEADLINE)]
  return Summary(
    against,
    comparisons,
    rankings,
    conclude(of_first, comparisons),
    [state(ranking, comparisons) for ranking in of_first],
  )
