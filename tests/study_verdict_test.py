# SPDX-License-Identifier: Apache-2.0
"""The verdict follows from the numbers and names the training length."""

import dataclasses
import io
import re

import numpy as np
import pytest
from rich.console import Console

from squentropy_study import Settings, _results, _terminal_table, _verdict
from squentropy_study._evaluation import Evaluation, Metrics
from squentropy_study._results import Method, Results
from squentropy_study._train import RunResult


class _Fixed(Settings):
  """Settings without stopped training."""

  @property
  def training_lengths(self):
    lengths = super().training_lengths
    return {key: value for key, value in lengths.items() if value}


NOISE = np.array([-1.0, 0.0, 1.0, 2.0, -2.0])


def _results_with(ece, nll=None, seeds=5, epochs=(40, 300), losses=None):
  """Results whose ECE per loss and training length has these means."""
  settings = _Fixed(
    "digits", losses=losses or tuple(ece), seeds=seeds, epochs=epochs
  )
  nothing = np.zeros((len(epochs), 1, seeds), np.int32)
  result = RunResult(*[nothing] * len(RunResult._fields))
  evaluations = {}
  for loss, means in ece.items():
    for index, training_length in enumerate(settings.training_lengths):
      # Each loss has a noise of its own, so the differences vary.
      spread = 0.001 * np.roll(NOISE, len(evaluations))[:seeds]
      level = (nll or {}).get(loss, 0.1)
      ece_, other = means[index] + spread, 0.2 + spread
      metrics = Metrics(0.9 + spread, level + spread, other, ece_, other, other)
      evaluations[Method(loss, "softmax"), training_length] = Evaluation(
        metrics, metrics, 1 + spread, None
      )
  return Results(settings, dict.fromkeys(ece, result), evaluations)


def _texts(results):
  """The three statements by title."""
  statements = _verdict.verdict(results)
  titles = ["Accuracy", "Calibration", "Scope"]
  assert [title for title, _ in statements] == titles
  for _, text in statements:
    assert text.endswith(".")
  return dict(statements)


def test_sign_that_depends_on_the_training_length():
  texts = _texts(
    _results_with({"cross_entropy": (0.01, 0.05), "squentropy": (0.04, 0.02)})
  )
  assert "sign of the difference in calibration depends" in texts["Scope"]
  short, long = texts["Calibration"].split(". ")
  assert short.startswith(
    "After 40 epochs, squentropy is worse calibrated than cross_entropy on "
    "these test rows (ECE 0.040 compared with 0.010, difference +0.030 [+"
  )
  assert long.startswith(
    "After 300 epochs, squentropy is better calibrated than cross_entropy on "
    "these test rows (ECE 0.020 compared with 0.050, difference -0.030 [-"
  )


def test_difference_at_one_of_two_training_lengths():
  texts = _texts(
    _results_with({"cross_entropy": (0.02, 0.05), "squentropy": (0.0201, 0.02)})
  )
  assert "significant at some training lengths only" in texts["Scope"]
  assert "depends" not in texts["Scope"]


def test_same_sign_at_every_training_length():
  texts = _texts(
    _results_with({"cross_entropy": (0.05, 0.05), "squentropy": (0.02, 0.02)})
  )
  assert "the same sign at every training length" in texts["Scope"]
  assert texts["Calibration"].count("better calibrated") == 2


def test_difference_that_is_not_significant():
  texts = _texts(
    _results_with(
      {"cross_entropy": (0.0200, 0.02), "squentropy": (0.0201, 0.02)}
    )
  )
  assert texts["Calibration"].count("is not significantly different from") == 2
  assert "not significant at any training length" in texts["Scope"]
  assert "better" not in " ".join(texts.values())


def test_order_of_the_losses_does_not_change_the_verdict():
  numbers = {"squentropy": (0.04, 0.02), "cross_entropy": (0.01, 0.05)}
  text = _texts(_results_with(numbers))["Calibration"]
  assert "squentropy is worse calibrated than cross_entropy" in text


@pytest.mark.parametrize("seeds", [1, 2, 5])
@pytest.mark.parametrize("epochs", [(300,), (40, 300), (1, 40, 300)])
def test_no_claim_without_its_training_length(seeds, epochs):
  ece = {
    "cross_entropy": (0.05,) * 3,
    "squentropy": (0.02,) * 3,
    "squentropy:scale=2": (0.09,) * 3,
  }
  results = _results_with(ece, seeds=seeds, epochs=epochs)
  statements = _verdict.verdict(results) + _verdict.notes(results)
  for _, text in statements:
    for sentence in re.split(r"(?<=[.;]) (?=[A-Z])", text):
      if "calibrated" in sentence:
        assert re.match(r"After \d+ epochs?, ", sentence), sentence
  text = " ".join(text for _, text in statements)
  assert "Other losses" in dict(statements)
  if seeds < 3:
    assert "calibrated" not in text
    assert "cannot be compared statistically with" in text
    assert "needs at least three seeds with different results" in text
  else:
    assert "squentropy is better calibrated than cross_entropy" in text
    assert "worse calibrated: squentropy:scale=2 (+0.04" in text
  assert "1 epochs" not in text


def test_single_training_length_is_named_as_a_limitation():
  text = _texts(
    _results_with(
      {"cross_entropy": (0.05,), "squentropy": (0.02,)}, epochs=(300,)
    )
  )["Scope"]
  assert "Only one training length was evaluated" in text


def test_equal_difference_for_every_seed_is_not_tested():
  results = _results_with(
    {"cross_entropy": (0.05, 0.05), "squentropy": (0.02, 0.02)}
  )
  new, old = Method("squentropy", "softmax"), Method("cross_entropy", "softmax")
  for method, accuracy in ((new, 37 / 38), (old, 36 / 38)):
    key = (method, "long")
    evaluation = results.evaluations[key]
    before = evaluation.before._replace(
      accuracy=np.full(5, accuracy, np.float32)
    )
    results.evaluations[key] = evaluation._replace(before=before)
  difference = results.difference(new, old, "long", "accuracy")
  assert np.isnan(difference.low)
  assert _texts(results)["Accuracy"].endswith(
    "After 300 epochs, squentropy cannot be compared statistically with "
    "cross_entropy (accuracy 0.974 compared with 0.947, difference +0.026)."
  )


def test_claims_from_folds_are_not_limited_to_these_test_rows():
  results = _results_with(
    {"cross_entropy": (0.05, 0.05), "squentropy": (0.02, 0.02)}, seeds=5
  )
  # Five folds of one seed have the same numbers in another shape.
  settings = dataclasses.replace(results.settings, seeds=1, folds=5)
  results = dataclasses.replace(results, settings=settings)
  texts = _texts(results)
  assert "these test rows" not in texts["Calibration"]
  assert "split" not in texts["Scope"]
  assert "5 folds" in dict(_verdict.notes(results))["Intervals"]


def test_divergence_compares_nothing():
  results = _results_with(
    {"cross_entropy": (0.05, 0.05), "squentropy": (0.02, 0.02)},
    nll={"squentropy": np.nan},
  )
  ((title, text),) = _verdict.verdict(results)
  assert title == "Diverged"
  assert _verdict.notes(results) == []
  assert "squentropy" in text
  assert "cross_entropy" not in text


def test_single_loss_is_not_compared():
  results = _results_with({"squentropy": (0.1, 0.2)})
  ((title, _),) = _verdict.verdict(results)
  assert _verdict.notes(results) == []
  assert title == "Nothing to compare"


def test_interval_is_that_of_students_t():
  results = _results_with(
    {"cross_entropy": (0.0, 0.0), "squentropy": (0.0, 0.0)}, seeds=3
  )
  new, old = Method("squentropy", "softmax"), Method("cross_entropy", "softmax")
  paired = results.per_seed(new, "short", "ece") - results.per_seed(
    old, "short", "ece"
  )
  difference = results.difference(new, old, "short", "ece")
  # 4.302653 is the 97.5 % point of Student's t with 2 degrees of freedom.
  reach = 4.302653 * np.sqrt(((paired - paired.mean()) ** 2).sum() / 2 / 3)
  assert difference.high - difference.mean == pytest.approx(reach, rel=1e-6)
  assert difference.mean - difference.low == pytest.approx(reach, rel=1e-6)


@pytest.mark.parametrize(
  ("low", "high", "sign"), [(1, 2, 1), (-2, -1, -1), (-1, 1, 0), (0, 1, 0)]
)
def test_sign_is_that_of_an_interval_without_zero(low, high, sign):
  assert _results.Difference((low + high) / 2, low, high).sign == sign
  assert _results.Difference(1.0, np.nan, np.nan).sign == 0


def test_table_prints_the_name_of_the_data_unchanged():
  results = _results_with({"cross_entropy": (0.0, 0.0)})
  settings = dataclasses.replace(results.settings, data="[bold]mine[/red].csv")
  console = Console(width=200, file=io.StringIO())
  results = dataclasses.replace(results, settings=settings)
  console.print(_terminal_table.results_table(results))
  assert "[bold]mine[/red].csv, 5 seeds" in console.file.getvalue()
