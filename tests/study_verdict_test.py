# SPDX-License-Identifier: Apache-2.0
"""The verdict follows from the numbers and names the training_length."""

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

NOISE = np.array([-1.0, 0.0, 1.0, 2.0, -2.0])


def _results_with(ece, nll=None, seeds=5, epochs=(40, 300), losses=None):
  """Results whose ECE per loss and training_length has the means given."""
  settings = Settings(
    "digits", losses=losses or tuple(ece), seeds=seeds, epochs=epochs
  )
  nothing = np.zeros((len(epochs), 1, seeds), np.int32)
  cell = RunResult(*[nothing] * len(RunResult._fields))
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
  return Results(settings, dict.fromkeys(ece, cell), evaluations)


def _say(results):
  """Three sentences: what they are about, and what they say."""
  statements = _verdict.verdict(results)
  for _, text in statements:
    assert re.fullmatch(r"(?:[^.]|\.\d)*\.", text), f"not one sentence: {text}"
  titles = ["Accuracy", "Calibration", "What it depends on"]
  assert [title for title, _ in statements] == titles
  return dict(statements)


def test_verdict_that_turns_with_the_length_says_so():
  said = _say(
    _results_with({"cross_entropy": (0.01, 0.05), "squentropy": (0.04, 0.02)})
  )
  assert "depends on how long one trains" in said["What it depends on"]
  said = said["Calibration"]
  place = "calibrated on these test rows after"
  assert f"worse {place} 40 epochs (0.040 against 0.010, +0.030" in said
  assert f"better {place} 300 epochs (0.020 against 0.050, -0.0" in said


def test_difference_at_one_length_only_does_not_turn():
  said = _say(
    _results_with({"cross_entropy": (0.02, 0.05), "squentropy": (0.0201, 0.02)})
  )["What it depends on"]
  assert "at some of the lengths only" in said
  assert "depends" not in said


def test_verdict_that_does_not_turn_says_so():
  said = _say(
    _results_with({"cross_entropy": (0.05, 0.05), "squentropy": (0.02, 0.02)})
  )
  assert "same at each length" in said["What it depends on"]
  assert said["Calibration"].count("better calibrated") == 2


def test_difference_within_chance_is_no_difference():
  said = _say(
    _results_with(
      {"cross_entropy": (0.0200, 0.02), "squentropy": (0.0201, 0.02)}
    )
  )
  assert said["Calibration"].count("no clear difference") == 2
  assert "Nothing is told apart" in said["What it depends on"]
  assert "better" not in " ".join(said.values())


def test_order_of_the_losses_does_not_turn_the_verdict():
  numbers = {"squentropy": (0.04, 0.02), "cross_entropy": (0.01, 0.05)}
  said = _say(_results_with(numbers))["Calibration"]
  assert "squentropy against cross_entropy" in said
  assert "worse calibrated on these test rows after 40 epochs" in said


@pytest.mark.parametrize("seeds", [1, 2, 5])
@pytest.mark.parametrize("epochs", [(300,), (40, 300), (1, 40, 300)])
def test_no_claim_without_its_regime(seeds, epochs):
  ece = {
    "cross_entropy": (0.05,) * 3,
    "squentropy": (0.02,) * 3,
    "squentropy:scale=2": (0.09,) * 3,
  }
  results = _results_with(ece, seeds=seeds, epochs=epochs)
  statements = _verdict.verdict(results) + _verdict.notes(results)
  for title, text in statements:
    for clause in re.split(r"(?<=\))[;.] ", text):
      if "calibrated" in clause and title not in ("The others", "Intervals"):
        assert re.search(r"after \d+ epoch", clause), clause
    if title == "The others":
      for sentence in text.split(". ")[1:]:
        assert re.match(r"After \d+ epochs?, ", sentence), sentence
  text = " ".join(text for _, text in statements)
  if seeds < 3:
    assert "better calibrated" not in text
    assert "undecided" in text
    assert "Nothing is decided" in text
  else:
    assert "better calibrated on these test rows after" in text
  assert "after 1 epochs" not in text


def test_one_length_warns_that_it_is_one():
  said = _say(
    _results_with(
      {"cross_entropy": (0.05,), "squentropy": (0.02,)}, epochs=(300,)
    )
  )["What it depends on"]
  assert "another may turn the answer" in said


def test_same_gain_from_every_seed_is_no_proof():
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
  said = _say(results)["Accuracy"]
  assert "undecided after 300 epochs (0.974 against 0.947, +0.026)" in said


def test_folds_say_more_than_these_test_rows():
  results = _results_with(
    {"cross_entropy": (0.05, 0.05), "squentropy": (0.02, 0.02)}, seeds=5
  )
  # Five folds of one seed have the same numbers in another shape.
  settings = dataclasses.replace(results.settings, seeds=1, folds=5)
  results = dataclasses.replace(results, settings=settings)
  said = _say(results)
  assert "better calibrated after 300 epochs" in said["Calibration"]
  assert "split" not in said["What it depends on"]
  assert "5 folds" in dict(_verdict.notes(results))["Intervals"]


def test_divergence_concludes_nothing():
  results = _results_with(
    {"cross_entropy": (0.05, 0.05), "squentropy": (0.02, 0.02)},
    nll={"squentropy": np.nan},
  )
  ((title, text),) = _verdict.verdict(results)
  assert title == "Diverged"
  assert _verdict.notes(results) == []
  assert "squentropy" in text
  assert "cross_entropy" not in text


def test_one_loss_has_no_rival():
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
def test_sign_needs_an_interval_without_zero(low, high, sign):
  assert _results.Difference((low + high) / 2, low, high).sign == sign
  assert _results.Difference(1.0, np.nan, np.nan).sign == 0


def test_table_prints_the_name_of_the_data_as_it_is():
  results = _results_with({"cross_entropy": (0.0, 0.0)})
  settings = dataclasses.replace(results.settings, data="[bold]mine[/red].csv")
  console = Console(width=200, file=io.StringIO())
  console.print(_terminal_table.table(dataclasses.replace(results, settings=settings)))
  assert "[bold]mine[/red].csv, 5 seeds" in console.file.getvalue()
