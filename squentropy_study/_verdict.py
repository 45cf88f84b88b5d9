# SPDX-License-Identifier: Apache-2.0
"""What the numbers say, in sentences that name the regime they hold in."""

import math
from typing import NamedTuple

from squentropy_study._results import COLUMNS, Difference, Method, Results

_CALIBRATION = {
  -1: "better calibrated",
  0: "no clear difference",
  1: "worse calibrated",
}
_SIZE = {-1: "lower", 0: "no clear difference", 1: "higher"}
_UNDECIDED = "undecided"


class Statement(NamedTuple):
  """A part of the verdict: what it is about, and what is said."""

  title: str
  text: str


def baseline(results: Results) -> Method:
  """Cross-entropy where it was run, else the first loss named."""
  for method in results.methods:
    if method.loss == "cross_entropy":
      return method
  return results.methods[0]


def challenger(results: Results) -> Method | None:
  """The loss the verdict is about: squentropy if run, else the next one."""
  others = [m for m in results.methods if m.loss != baseline(results).loss]
  for method in others:
    if method.loss.partition(":")[0] == "squentropy":
      return method
  return others[0] if others else None


def interval(difference: Difference, decimals: int) -> str:
  """``+0.012 [+0.003, +0.021]``, or without brackets for one seed."""
  mean = f"{difference.mean:+.{decimals}f}"
  if math.isnan(difference.low):
    return mean
  low, high = difference.low, difference.high
  return f"{mean} [{low:+.{decimals}f}, {high:+.{decimals}f}]"


def _after(results: Results, regime: str) -> str:
  epochs = results.settings.regimes[regime]
  return f"after {epochs} epoch{'s' if epochs > 1 else ''}"


def _word(
  results: Results, difference: Difference, words: dict[int, str]
) -> str:
  """What may be said; without folds it is said of these test rows alone."""
  if math.isnan(difference.low):
    return _UNDECIDED
  word = words[difference.sign]
  one_split = difference.sign and results.settings.folds == 1
  return f"{word} on these test rows" if one_split else word


def _compare(
  results: Results, new: Method, column: str, words: dict[int, str]
) -> str:
  """``higher after 40 epochs (0.9 against 0.8, +0.1 [...]); ...``."""
  clauses = []
  old = baseline(results)
  for regime in results.settings.regimes:
    ours = results.per_seed(new, regime, column).mean()
    theirs = results.per_seed(old, regime, column).mean()
    difference = results.difference(new, old, regime, column)
    clauses.append(
      f"{_word(results, difference, words)} {_after(results, regime)} "
      f"({ours:.3f} against {theirs:.3f}, {interval(difference, 3)})"
    )
  return "; ".join(clauses)


def _depends(results: Results, new: Method) -> Statement:
  """Whether the length matters, and what the numbers are of."""
  old = baseline(results)
  settings = results.settings
  differences = [
    results.difference(new, old, regime, "ece") for regime in settings.regimes
  ]
  signs = {difference.sign for difference in differences}
  if all(math.isnan(difference.low) for difference in differences):
    opening = "Nothing is decided: that needs three seeds or more that differ"
  elif len(settings.regimes) == 1:
    opening = "One training length was measured; another may turn the answer"
  elif signs == {0}:
    opening = "Nothing is told apart in calibration at the lengths measured"
  elif signs >= {-1, 1}:
    opening = "The answer on calibration depends on how long one trains"
  elif 0 in signs:
    opening = "A difference in calibration shows at some of the lengths only"
  else:
    opening = "The answer on calibration is the same at each length measured"
  split = "" if settings.folds > 1 else ", and this one split"
  return Statement(
    "What it depends on",
    f"{opening}; all of it is of {settings.data}, this network and optimiser"
    f"{split}.",
  )


def _against(
  results: Results,
  new: Method,
  column: str,
  title: str,
  words: dict[int, str],
) -> Statement:
  """One sentence on a number."""
  name = {c.name: c.short for c in COLUMNS}[column]
  said = _compare(results, new, column, words)
  old = baseline(results).loss
  return Statement(title, f"{new.loss} against {old}, by {name}: {said}.")


def _recalibrated(results: Results, new: Method) -> Statement:
  """What temperature scaling, the cheap alternative, does to both."""
  old = baseline(results)
  fitted = []
  for regime in results.settings.regimes:
    ours, theirs = (
      results.per_seed(method, regime, "temperature").mean()
      for method in (new, old)
    )
    fitted.append(f"{ours:.2f} and {theirs:.2f} {_after(results, regime)}")
  return Statement(
    "With temperature scaling",
    f"{new.loss} against {old.loss}, by ECE: "
    f"{_compare(results, new, 'ece_scaled', _CALIBRATION)}. The temperatures "
    f"were {', '.join(fitted)}; above 1 means over-confident before, below 1 "
    f"under-confident.",
  )


def _others(results: Results, others: list[Method]) -> Statement:
  """The remaining methods, sorted by what can be said of their ECE."""
  old = baseline(results)
  clauses = []
  for regime in results.settings.regimes:
    groups: dict[str, list[str]] = {}
    for method in others:
      difference = results.difference(method, old, regime, "ece")
      text = f"{results.label(method)} ({interval(difference, 3)})"
      groups.setdefault(_word(results, difference, _CALIBRATION), []).append(
        text
      )
    said = "; ".join(f"{k}: {', '.join(v)}" for k, v in groups.items())
    clauses.append(f"A{_after(results, regime)[1:]}, {said}")
  return Statement(
    "The others", f"Against {old.loss}, by ECE. {'. '.join(clauses)}."
  )


def _brackets(results: Results, new: Method) -> Statement:
  """What the intervals are, and what they leave out."""
  settings = results.settings
  if settings.folds > 1:
    said = (
      f"{settings.folds} folds; they share rows to train on, so it is somewhat "
      "too narrow"
    )
  else:
    rows = results.cells[new.loss].test_keep[0].sum()
    said = (
      f"{settings.seeds} seeds; it covers chance in training and not the "
      f"choice of the {rows} test rows, which takes --folds"
    )
  return Statement(
    "Intervals",
    f"Brackets: 95 % interval of the difference (Student), paired over {said}. "
    "Fewer than three runs, or runs that all differ alike, have none. Many "
    "numbers are compared and nothing is corrected for that: of twenty without "
    "a difference, about one seems to have one.",
  )


def verdict(results: Results) -> list[Statement]:
  """Three sentences generated from the numbers.

  A loss is called better or worse only together with the training length, and
  only where the 95 % interval leaves out 0.

  Args:
    results: The numbers.

  Returns:
    What is said of accuracy, of calibration, and of what both depend on; one
    statement where nothing can be compared.
  """
  new, old = challenger(results), baseline(results)
  if new is None:
    text = f"Only {old.loss} was trained; name two losses to compare them."
    return [Statement("Nothing to compare", text)]
  diverged = _diverged(results)
  if diverged:
    text = (
      f"Training with {', '.join(diverged)} gave numbers that are not finite "
      "for at least one run (see the table), so nothing is concluded; try a "
      "lower learning rate."
    )
    return [Statement("Diverged", text)]
  return [
    _against(results, new, "accuracy", "Accuracy", _SIZE),
    _against(results, new, "ece", "Calibration", _CALIBRATION),
    _depends(results, new),
  ]


def _diverged(results: Results) -> list[str]:
  """Losses with a number that is not finite."""
  return sorted(
    {
      row.loss
      for row in results.rows
      if not (math.isfinite(row.nll) and math.isfinite(row.ece))
    }
  )


def notes(results: Results) -> list[Statement]:
  """What stands below the verdict: likelihood, temperature, the other losses.

  Args:
    results: The numbers.

  Returns:
    The statements; none where the verdict concludes nothing.
  """
  new, old = challenger(results), baseline(results)
  if new is None or _diverged(results):
    return []
  statements = [
    _against(results, new, "nll", "Likelihood", _SIZE),
    _recalibrated(results, new),
  ]
  others = [method for method in results.methods if method not in (new, old)]
  if others:
    statements.append(_others(results, others))
  return [*statements, _brackets(results, new)]
