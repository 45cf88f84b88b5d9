# SPDX-License-Identifier: Apache-2.0
"""What the numbers say, in sentences that name the regime they hold in."""

import math
from typing import NamedTuple

from squentropy_jax.study._results import Difference, Method, Results

_CALIBRATION = {
  -1: "better calibrated",
  0: "no clear difference",
  1: "worse calibrated",
}
_SIZE = {-1: "lower", 0: "no clear difference", 1: "higher"}
_ONE_SEED = "undecided, as one seed has no interval"


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


def _word(difference: Difference, words: dict[int, str]) -> str:
  return _ONE_SEED if math.isnan(difference.low) else words[difference.sign]


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
      f"{_word(difference, words)} {_after(results, regime)} "
      f"({ours:.3f} against {theirs:.3f}, {interval(difference, 3)})"
    )
  return "; ".join(clauses)


def _calibration(results: Results, new: Method) -> Statement:
  old = baseline(results)
  signs = {
    results.difference(new, old, regime, "ece").sign
    for regime in results.settings.regimes
  }
  if len(results.settings.regimes) == 1:
    opening = "One training length was measured; another may turn the answer"
  elif results.settings.runs == 1:
    opening = "One seed says nothing about chance"
  elif signs == {0}:
    opening = "Nothing is told apart at the training lengths measured"
  elif signs >= {-1, 1}:
    opening = "The answer depends on how long one trains"
  elif 0 in signs:
    opening = "A difference shows at some of the training lengths only"
  else:
    opening = "The answer is the same at each training length measured"
  return Statement(
    "Calibration",
    f"{opening}. {new.loss} against {old.loss}, by ECE: "
    f"{_compare(results, new, 'ece', _CALIBRATION)}.",
  )


def _fit(results: Results, new: Method) -> Statement:
  return Statement(
    "Accuracy and likelihood",
    f"{new.loss} against {baseline(results).loss}. Accuracy: "
    f"{_compare(results, new, 'accuracy', _SIZE)}. NLL: "
    f"{_compare(results, new, 'nll', _SIZE)}.",
  )


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
      groups.setdefault(_word(difference, _CALIBRATION), []).append(text)
    said = "; ".join(f"{k}: {', '.join(v)}" for k, v in groups.items())
    clauses.append(f"A{_after(results, regime)[1:]}, {said}")
  return Statement(
    "The others", f"Against {old.loss}, by ECE. {'. '.join(clauses)}."
  )


def verdict(results: Results) -> list[Statement]:
  """A few sentences generated from the numbers, and how far they reach.

  A loss is called better or worse calibrated only together with the training
  length, and only where the 95 % interval over seeds leaves out 0.

  Args:
    results: The numbers.

  Returns:
    The statements.
  """
  settings = results.settings
  new, old = challenger(results), baseline(results)
  if new is None:
    text = f"Only {old.loss} was trained; name two losses to compare them."
    return [Statement("Nothing to compare", text)]
  diverged = sorted(
    {
      row.loss
      for row in results.rows
      if not (math.isfinite(row.nll) and math.isfinite(row.ece))
    }
  )
  if diverged:
    text = (
      f"Training with {', '.join(diverged)} gave numbers that are not finite "
      "for at least one seed (see the table), so nothing is concluded; try a "
      "lower learning rate."
    )
    return [Statement("Diverged", text)]
  statements = [
    _calibration(results, new),
    _fit(results, new),
    _recalibrated(results, new),
  ]
  others = [method for method in results.methods if method not in (new, old)]
  if others:
    statements.append(_others(results, others))
  reach = f"This holds for {settings.data}, this network and optimiser"
  brackets = " Brackets: 95 % interval of the difference, paired over "
  if settings.folds > 1:
    reach += (
      f".{brackets}{settings.folds} folds; they share rows to train on, so it "
      "is somewhat too narrow."
    )
  elif settings.seeds > 1:
    test_rows = results.cells[new.loss].test_keep[0].sum()
    reach += (
      f", and one split.{brackets}{settings.seeds} seeds; it covers chance in "
      f"training, not another choice of the {test_rows} test rows."
    )
  else:
    reach += ", and one split."
  return [*statements, Statement("Reach", reach)]
