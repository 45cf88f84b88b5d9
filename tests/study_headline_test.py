# SPDX-License-Identifier: Apache-2.0
"""The sentences follow from the numbers."""

import re
import types

import numpy as np
import pytest
from scipy import special
from support import predictions as made
from support import study

from squentropy_study import _evaluation, _headline, _ranking
from squentropy_study._headline import PastBest
from squentropy_study._paired_errors import Difference

PAST = PastBest("cross_entropy", 5.0, 40, 0.447, 0.831)
NUMBER = r"[+-]?\d+(\.\d+)?"
INTERVAL = rf"{NUMBER}( points?)? \[-?[\d.]+, -?[\d.]+\]"


def _headline_of(entries, past=(), reference=None):
  ranking = _ranking.rank_entries(entries, reference, "stopped")
  found = _headline.headline_of(ranking, "digits", past)
  assert len(found.further) <= 3
  for sentence in (found.sentence, *found.further):
    assert sentence.endswith(".")
    # No number without information, such as "+0.000 [+0.000, +0.001]".
    assert "0.000" not in sentence
    assert "nan" not in sentence
  return found


def _shape(text):
  """A sentence with its intervals left out."""
  return re.sub(INTERVAL, "X", text)


def test_nothing_significant_names_the_best_values():
  found = _headline_of(
    made.entries(cross_entropy=1.0, squentropy=1.01, logit_norm=0.99)
  )
  assert found.sentence == (
    "No loss is significantly better than cross_entropy on digits."
  )
  (winners,) = found.further
  assert _shape(winners) == (
    "squentropy has the lowest NLL (X) and the highest accuracy (X)."
  )
  assert str(found) == f"{found.sentence} {winners}"


def test_loss_that_is_better():
  found = _headline_of(
    made.entries(cross_entropy=1.0, squentropy=1.3, logit_norm=1.01)
  )
  assert _shape(found.sentence) == (
    "squentropy is significantly better than cross_entropy on digits in NLL "
    "(X) and accuracy (X)."
  )
  assert re.search(r"accuracy \(\+\d+ points \[\d+, \d+\]\)", found.sentence)
  # Both are the best values, which the first sentence has said.
  assert found.further == ()


def test_loss_that_is_better_in_nll_alone():
  entries = made.entries(cross_entropy=1.0, squentropy=1.0)
  rows = entries[0].predictions
  # Another temperature changes no top class.
  log_probs = special.log_softmax(0.2 * rows.log_probs, axis=-1)
  entries[0] = entries[0]._replace(
    predictions=rows._replace(log_probs=log_probs)
  )
  found = _headline_of(entries)
  assert _shape(found.sentence) == (
    "squentropy is significantly better than cross_entropy on digits in NLL "
    "(X)."
  )


def test_two_losses_that_are_better():
  found = _headline_of(
    made.entries(cross_entropy=1.0, squentropy=1.3, logit_norm=1.4)
  )
  assert _shape(found.sentence) == (
    "logit_norm and squentropy are significantly better than cross_entropy on "
    "digits: logit_norm in NLL (X) and accuracy (X); squentropy in NLL (X) and "
    "accuracy (X)."
  )


def test_what_better_losses_are_worse_in_is_said():
  entries = made.entries(cross_entropy=1.0, squentropy=1.4, logit_norm=1.5)
  for k, entry in enumerate(entries):
    if entry.loss != "cross_entropy":
      rows = entry.predictions
      # Another temperature changes no top class.
      log_probs = special.log_softmax(6.0 * rows.log_probs, axis=-1)
      entries[k] = entry._replace(
        predictions=rows._replace(log_probs=log_probs)
      )
  assert _shape(_headline_of(entries).sentence) == (
    "logit_norm and squentropy are significantly better than cross_entropy on "
    "digits: logit_norm in accuracy (X), but significantly worse in NLL (X); "
    "squentropy in accuracy (X), but significantly worse in NLL (X)."
  )


def test_many_losses_are_counted():
  names = {f"loss{k}": 1.2 + 0.2 * k for k in range(6)}
  found = _headline_of(made.entries(**names, cross_entropy=1.0))
  assert found.sentence.startswith("loss5, loss4 and 4 more are significantly")


def test_loss_that_is_worse():
  found = _headline_of(
    made.entries(cross_entropy=1.0, squentropy=0.6, logit_norm=1.0)
  )
  assert _shape(found.sentence) == (
    "No loss is significantly better than cross_entropy on digits; squentropy "
    "is significantly worse in NLL (X) and accuracy (X)."
  )
  found = _headline_of(
    made.entries(cross_entropy=1.0, squentropy=0.6, logit_norm=0.5)
  )
  assert found.sentence.endswith(
    "; squentropy and logit_norm are significantly worse."
  )


def test_reference_may_be_the_best_loss():
  entries = [
    entry._replace(validation_nll=value)
    for entry, value in zip(
      made.entries(cross_entropy=1.0, squentropy=1.3), (0.5, 0.4), strict=True
    )
  ]
  found = _headline_of(entries, reference="best")
  assert found.sentence.startswith(
    "No loss is significantly better than squentropy on digits; cross_entropy "
    "is significantly worse in NLL"
  )
  assert found.further == (
    "squentropy has the lowest NLL and the highest accuracy.",
  )


def test_trees_that_win_by_far():
  entries = made.entries(cross_entropy=1.0, squentropy=1.01)
  trees = made.baseline("gradient-boosted trees", 2.0)
  found = _headline_of([*entries, trees])
  assert re.fullmatch(
    r"The baseline gradient-boosted trees is much better than every loss: "
    r"NLL 0\.\d{3} \(best loss 0\.\d{3}\) and accuracy \d\d\.\d % \(best loss "
    r"\d\d\.\d %\)\.",
    found.further[0],
  )
  # NLL that says little decides nothing.
  found = _headline.headline_of(
    _ranking.rank_entries([*entries, trees], None, "stopped"),
    "digits",
    warning="NLL says little.",
  )
  assert "every loss: accuracy" in found.further[1]
  near = made.baseline("gradient-boosted trees", 1.02)
  found = _headline_of([*entries, near])
  assert "baseline" not in str(found)
  assert "trees" not in found.sentence


def test_fixed_length_past_the_best_epoch():
  entries = made.entries(cross_entropy=1.0, squentropy=1.01)
  other = PAST._replace(label="squentropy")
  found = _headline_of(entries, [other, PAST])
  assert found.further[0] == (
    "The best epoch of cross_entropy is 5; at epoch 40 its NLL is 0.83 instead "
    "of 0.45."
  )
  # Without a warning on the reference, that on another loss is shown.
  (first, *_) = _headline_of(entries, [other]).further
  assert first.startswith("The best epoch of squentropy is 5")


class _Temperatures:
  """Results of three losses, one of them with a temperature at its bound."""

  settings = study.settings()
  methods = ("a", "b", "c")

  def label(self, method):
    return method

  def per_run(self, method, length, name):
    assert (length, name) == ("stopped", "temperature")
    low, high = map(np.float32, _evaluation.TEMPERATURES)
    return np.array([[1.3, low if method == "b" else high]])


def test_temperature_at_its_bound_is_said():
  warning = _headline.open_temperature(_Temperatures())
  assert warning.startswith("Some temperatures of b are at their lower bound ")
  ranking = _ranking.rank_entries(
    made.entries(cross_entropy=1.0, squentropy=1.3), None, "stopped"
  )
  found = _headline.headline_of(ranking, "digits", [PAST], warning)
  assert found.further[0] == warning


class _Epochs:
  """Results of two losses whose runs are stopped at these epochs."""

  settings = study.settings(seeds=4, max_epochs=50)
  methods = ("a", "b")

  def label(self, method):
    return method

  def epochs(self, method, length):
    assert length == "stopped"
    return np.array([[20, 45, 46, 50] if method == "b" else [3, 9, 30, 45]])


def test_best_epochs_near_the_bound_are_said():
  assert _headline.at_bound(_Epochs()) == (
    "The best epoch of 2 of 4 runs of b is in the last tenth of --max-epochs "
    "50. More epochs may lower the NLL; raise --max-epochs."
  )
  ranking = _ranking.rank_entries(
    made.entries(cross_entropy=1.0, squentropy=1.3), None, "stopped"
  )
  found = _headline.headline_of(ranking, "digits", bound="Train longer.")
  assert found.further[0] == "Train longer."


class _Evaluated:
  """Results of two losses with these validation accuracies of four runs."""

  settings = study.settings(seeds=4)

  def __init__(self, **accuracies):
    self.methods = tuple(accuracies)
    self.evaluations = {
      (method, "stopped"): types.SimpleNamespace(
        validation_accuracy=np.array(values)
      )
      for method, values in accuracies.items()
    }

  def label(self, method):
    return method


def test_nll_that_rests_on_the_added_row_is_said():
  assert _headline.all_correct(_Evaluated(a=[0.9] * 4, b=[0.8] * 4)) is None
  some = _Evaluated(a=[1.0, 0.9, 1.0, 1.0], b=[0.8] * 4, c=[1.0] * 4)
  assert _headline.all_correct(some) == (
    "In 3 of 4 runs of a and 4 of 4 runs of c, all validation rows are "
    "classified correctly. The temperature, and so the NLL, then depends on "
    "the misclassified row that the fit adds."
  )


@pytest.mark.parametrize(("rows", "signal"), [(20, 1.6), (60, 1.4)])
def test_baseline_is_compared_row_by_row(rows, signal):
  options = {"rows": rows}
  entries = made.entries(options=options, cross_entropy=1.0, squentropy=1.01)
  entries.append(made.baseline("trees", signal, **options))
  found = _headline_of(entries)
  # On 20 rows, a large difference may be one of chance.
  assert ("The baseline trees is much better" in str(found)) == (rows == 60)


def test_imbalanced_table():
  shares = (0.94, 0.06)
  found = _headline_of(made.entries(shares, cross_entropy=1.0, squentropy=2.0))
  assert "balanced accuracy" in found.sentence
  assert "average precision" in found.sentence
  assert " accuracy" not in found.sentence.replace("balanced accuracy", "")


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_are_tested_by_the_test_rows(seeds):
  options = {"seeds": seeds}
  found = _headline_of(
    made.entries(options=options, cross_entropy=1.0, squentropy=1.4)
  )
  assert found.sentence.startswith("squentropy is significantly better")


def test_losses_that_diverged_are_named():
  entries = made.entries(cross_entropy=1.0, squentropy=1.3, logit_norm=1.0)
  entries[1].predictions.log_probs[0, 0] = np.nan
  found = _headline_of(entries)
  assert "cannot be compared" in found.sentence
  assert found.further[0] == (
    "squentropy diverged (NaN or infinite values in at least one run) and is "
    "not ranked; try a lower learning rate."
  )
  entries[2].predictions.log_probs[0, 0] = np.nan
  found = _headline_of(entries)
  assert found.sentence == (
    "No losses are compared on digits, because only cross_entropy did not "
    "diverge."
  )
  assert "squentropy and logit_norm diverged" in found.further[0]
  entries[0].predictions.log_probs[0, 0] = np.nan
  found = _headline_of(entries)
  assert found.sentence == (
    "No losses are compared on digits, because every loss diverged."
  )


def test_reference_that_diverged_is_named():
  entries = made.entries(cross_entropy=1.0, squentropy=1.3, logit_norm=1.0)
  entries[0].predictions.log_probs[0, 0] = np.nan
  entries[2] = entries[2]._replace(validation_nll=0.1)
  found = _headline_of(entries)
  assert found.sentence.startswith(
    "squentropy is significantly better than logit_norm on digits"
  )
  assert found.further[1] == (
    "Because cross_entropy diverged, the other losses are compared with "
    "logit_norm, which has the lowest validation NLL."
  )
  (first, second, *_) = entries
  assert "compared with" not in str(_headline_of([first, second]))


def test_single_loss():
  found = _headline_of(made.entries(squentropy=1.0), [PAST])
  assert found.sentence == (
    "No losses are compared on digits, because only squentropy was trained."
  )
  assert found.further[0] == "Name two losses or more to compare them."
  assert "at epoch 40" in found.further[1]


def test_equal_predictions_cannot_be_tested():
  entries = made.entries(cross_entropy=1.0, squentropy=1.0)
  found = _headline_of(entries)
  assert found.sentence.startswith(
    "The losses cannot be compared on digits, because there are too few test"
  )
  assert found.further == ()


def test_points_of_accuracy():
  _, accuracy, _ = _ranking.rank_entries(
    made.entries(cross_entropy=1.0), None, "stopped"
  ).metrics

  def text(mean, low, high):
    found = Difference(mean, low, high, 0.5, 0.1, 0.1)
    return _headline.difference_text(found, accuracy)

  assert text(0.009, 0.004, 0.014) == "+0.9 points [0.4, 1.4]"
  assert text(0.01, -0.03, 0.05) == "+1 point [-3, 5]"
  assert text(-0.02, np.nan, np.nan) == "-2.0 points"
