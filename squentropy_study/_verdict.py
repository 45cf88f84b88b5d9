# SPDX-License-Identifier: Apache-2.0
"""Sentences on the results, each with the training length it is of."""

from collections.abc import Mapping
import math
from typing import NamedTuple

from squentropy_study._results import (
  BASELINE,
  MEASURES,
  Difference,
  Method,
  Results,
)

_ACCURACY = {
  -1: "is less accurate than",
  0: "is not significantly different from",
  1: "is more accurate than",
}
_CALIBRATION = {
  -1: "is better calibrated than",
  0: "is not significantly different from",
  1: "is worse calibrated than",
}
_LIKELIHOOD = {
  -1: "has a lower NLL than",
  0: "is not significantly different from",
  1: "has a higher NLL than",
}
_NOT_TESTED = "cannot be compared statistically with"
_GROUPS = {
  -1: "better calibrated",
  0: "not significantly different",
  1: "worse calibrated",
}


class Statement(NamedTuple):
  """A part of the verdict.

  Attributes:
    title: What the statement is about.
    text: Sentences.
  """

  title: str
  text: str


def baseline(results: Results) -> Method:
  """Returns the loss to compare with: cross-entropy, or the first loss."""
  for method in results.methods:
    if method.loss == BASELINE:
      return method
  return results.methods[0]


def challenger(results: Results) -> Method | None:
  """Returns the first loss that is not the baseline, None without one."""
  old = baseline(results)
  others = (method for method in results.methods if method.loss != old.loss)
  return next(others, None)


def interval(difference: Difference, decimals: int) -> str:
  """Returns ``+0.012 [+0.003, +0.021]``, without brackets if not tested."""
  mean = f"{difference.mean:+.{decimals}f}"
  if math.isnan(difference.low):
    return mean
  low, high = difference.low, difference.high
  return f"{mean} [{low:+.{decimals}f}, {high:+.{decimals}f}]"


def _after(results: Results, length: str) -> str:
  epochs = results.settings.training_lengths[length]
  if epochs is None:
    return "After stopped training"
  return f"After {epochs} epoch{'s' if epochs > 1 else ''}"


def _compare(
  results: Results,
  new: Method,
  name: str,
  phrases: Mapping[int, str],
) -> str:
  """Returns a sentence for each training length."""
  old = baseline(results)
  short = {m.name: m.short for m in MEASURES}[name]
  sentences = []
  for length in results.settings.training_lengths:
    ours = results.per_seed(new, length, name).mean()
    theirs = results.per_seed(old, length, name).mean()
    difference = results.difference(new, old, length, name)
    tested = not math.isnan(difference.low)
    phrase = phrases[difference.sign] if tested else _NOT_TESTED
    one_split = difference.sign and results.settings.folds == 1
    where = " on these test rows" if one_split else ""
    sentences.append(
      f"{_after(results, length)}, {new.loss} {phrase} {old.loss}{where} "
      f"({short} {ours:.3f} compared with {theirs:.3f}, difference "
      f"{interval(difference, 3)})."
    )
  return " ".join(sentences)


def _scope(results: Results, new: Method) -> Statement:
  """Says whether the training length matters, and where the results hold."""
  old = baseline(results)
  settings = results.settings
  differences = [
    results.difference(new, old, length, "ece")
    for length in settings.training_lengths
  ]
  signs = {difference.sign for difference in differences}
  if all(math.isnan(difference.low) for difference in differences):
    opening = (
      "No difference in calibration is tested, because a test needs at least "
      f"three {results.unit}s with different results"
    )
  elif len(differences) == 1:
    opening = (
      "Only one training length was evaluated, and another one may give a "
      "different result"
    )
  elif signs == {0}:
    opening = (
      "The difference in calibration is not significant at any training length"
    )
  elif signs >= {-1, 1}:
    opening = (
      "The sign of the difference in calibration depends on the training length"
    )
  elif 0 in signs:
    opening = (
      "The difference in calibration is significant at some training lengths "
      "only"
    )
  else:
    opening = (
      "The difference in calibration has the same sign at every training length"
    )
  conditions = "this model and this optimizer"
  if settings.folds == 1:
    conditions = "this model, this optimizer and this split of the rows"
  return Statement(
    "Scope",
    f"{opening}. The results hold for {settings.data} with {conditions}.",
  )


def _recalibrated(results: Results, new: Method) -> Statement:
  """Compares both losses after temperature scaling."""
  old = baseline(results)
  fitted = []
  for length in results.settings.training_lengths:
    ours, theirs = (
      results.per_seed(method, length, "temperature").mean()
      for method in (new, old)
    )
    fitted.append(
      f"{_after(results, length)}, the fitted temperature of {new.loss} is "
      f"{ours:.2f} and that of {old.loss} is {theirs:.2f}."
    )
  return Statement(
    "After temperature scaling",
    f"{_compare(results, new, 'ece_scaled', _CALIBRATION)} "
    f"{' '.join(fitted)} Above 1 the model was over-confident before scaling, "
    "below 1 under-confident.",
  )


def _others(results: Results, others: list[Method]) -> Statement:
  """Groups the other methods by the significance of their ECE."""
  old = baseline(results)
  sentences = []
  for length in results.settings.training_lengths:
    groups: dict[str, list[str]] = {}
    for method in others:
      difference = results.difference(method, old, length, "ece")
      tested = not math.isnan(difference.low)
      group = _GROUPS[difference.sign] if tested else "not tested"
      text = f"{results.label(method)} ({interval(difference, 3)})"
      groups.setdefault(group, []).append(text)
    listed = "; ".join(f"{k}: {', '.join(v)}" for k, v in groups.items())
    sentences.append(f"{_after(results, length)}, {listed}.")
  return Statement(
    "Other losses",
    f"Difference in ECE from {old.loss}. {' '.join(sentences)}",
  )


def _intervals(results: Results, new: Method) -> Statement:
  """Explains the intervals and their limitations."""
  settings = results.settings
  if settings.folds > 1:
    pairs = f"{settings.folds} folds"
    limitation = (
      "The folds share training rows, so the intervals are somewhat too narrow."
    )
  else:
    pairs = f"{settings.seeds} seeds"
    rows = results.run_results[new.loss].test_keep[0].sum()
    limitation = (
      "They cover the randomness of the training, but not the choice of the "
      f"{rows} test rows; use --folds for that."
    )
  return Statement(
    "Intervals",
    "Brackets are 95 % confidence intervals of the mean difference (paired "
    f"Student's t over {pairs}). {limitation} There is no interval with fewer "
    "than three pairs or if all differences are equal. There is no correction "
    "for multiple testing: about one in twenty comparisons without a true "
    "difference appears significant.",
  )


def verdict(results: Results) -> list[Statement]:
  """Summarises the results in sentences.

  A loss is called better or worse only together with the training length, and
  only if the 95 % confidence interval of the difference excludes 0.

  Args:
    results: The numbers.

  Returns:
    Statements on accuracy, on calibration and on their scope; a single one if
    nothing can be compared.
  """
  new, old = challenger(results), baseline(results)
  if new is None:
    text = f"Only {old.loss} was trained; name two losses to compare them."
    return [Statement("Nothing to compare", text)]
  diverged = _diverged(results)
  if diverged:
    text = (
      f"Training with {', '.join(diverged)} gave values that are not finite in "
      "at least one run (see the table), so nothing is compared. Try a lower "
      "learning rate."
    )
    return [Statement("Diverged", text)]
  return [
    Statement("Accuracy", _compare(results, new, "accuracy", _ACCURACY)),
    Statement("Calibration", _compare(results, new, "ece", _CALIBRATION)),
    _scope(results, new),
  ]


def _diverged(results: Results) -> list[str]:
  """Returns the losses with a value that is not finite."""
  return sorted(
    {
      row.loss
      for row in results.rows
      if not (math.isfinite(row.nll) and math.isfinite(row.ece))
    }
  )


def notes(results: Results) -> list[Statement]:
  """Returns statements on likelihood, temperature scaling and other losses.

  Args:
    results: The numbers.

  Returns:
    The statements; none if the verdict compares nothing.
  """
  new, old = challenger(results), baseline(results)
  if new is None or _diverged(results):
    return []
  statements = [
    Statement("Likelihood", _compare(results, new, "nll", _LIKELIHOOD)),
    _recalibrated(results, new),
  ]
  others = [method for method in results.methods if method not in (new, old)]
  if others:
    statements.append(_others(results, others))
  return [*statements, _intervals(results, new)]
