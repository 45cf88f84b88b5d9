# SPDX-License-Identifier: Apache-2.0
"""Losses ranked over several studies, and the conclusion in sentences."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from squentropy_study import (
  MethodAtLength,
  StudyError,
  _average_ranks,
  _comparisons,
  _summary_page,
  _summary_text,
)

LOSSES = ("cross_entropy", "squentropy", "focal")
COLUMNS = tuple(measure.name for measure in _summary_text.MEASURES)


def _table(values, metric="nll_scaled", length="stopped"):
  """Means of each loss: ``values`` is [losses, data sets]."""
  return {
    MethodAtLength(loss, "softmax", length): pd.DataFrame({metric: row})
    for loss, row in zip(LOSSES, np.asarray(values, float), strict=False)
  }


def _rows(values, lengths=("stopped", "short")):
  """Rows of results.csv with the same value in every metric."""
  rows = []
  for length in lengths:
    for loss, row in zip(LOSSES, values, strict=False):
      for number, value in enumerate(row):
        rows.append(
          {
            "data": f"set{number}",
            "loss": loss,
            "probability_map": "softmax",
            "training_length": length,
            "fold": 0,
            "seed": 0,
            **dict.fromkeys(COLUMNS, value),
          }
        )
  return pd.DataFrame(rows)


def test_ranks_and_win_rates_by_hand():
  values = [
    [0.1, 0.2, 0.3, 0.5],
    [0.2, 0.15, 0.1, 0.5],
    [0.3, 0.3, np.nan, 0.5],
  ]
  ranking = _average_ranks.rank(_table(values), "stopped", "nll_scaled")
  assert ranking.losses == ("squentropy", "cross_entropy", "focal")
  # A loss that diverged has the last rank, and equal losses share theirs.
  np.testing.assert_allclose(ranking.ranks, [6 / 4, 7 / 4, 11 / 4])
  np.testing.assert_allclose(ranking.win_rates, [0.75, 0.625, 0.125])
  np.testing.assert_array_equal(ranking.best, [3, 2, 1])
  np.testing.assert_allclose(
    ranking.beats,
    [[0.5, 0.625, 0.875], [0.375, 0.5, 0.875], [0.125, 0.125, 0.5]],
  )
  # Four data sets are too few for a test.
  assert math.isnan(ranking.p_value)
  assert math.isnan(ranking.critical_difference)
  by_accuracy = _average_ranks.rank(
    _table(values, "accuracy"), "stopped", "accuracy"
  )
  assert by_accuracy.losses[0] == "focal"


def test_friedman_and_nemenyi():
  values = np.random.default_rng(0).normal(size=(3, 12))
  ranking = _average_ranks.rank(_table(values), "stopped", "nll_scaled")
  expected = stats.friedmanchisquare(*np.round(values, 6)).pvalue
  assert ranking.p_value == pytest.approx(expected, rel=1e-9)
  # Demsar (2006), table 5a: q is 2.343 for three classifiers.
  difference = 2.343 * math.sqrt(3 * 4 / (6 * 12))
  assert ranking.critical_difference == pytest.approx(difference, rel=1e-3)
  equal = _average_ranks.rank(_table(np.ones((3, 6))), "stopped", "nll_scaled")
  assert equal.p_value == 1
  two = _average_ranks.rank(_table(values[:2]), "stopped", "nll_scaled")
  assert math.isnan(two.p_value)


def test_losses_on_other_data_sets_raise():
  table = _table(np.ones((3, 6)))
  method = MethodAtLength("focal", "softmax", "stopped")
  table[method] = table[method].iloc[:4]
  with pytest.raises(StudyError, match="focal is missing on some data sets"):
    _average_ranks.rank(table, "stopped", "nll_scaled")


def _summary(values, lengths=("stopped", "short")):
  return _summary_text.summarize(_rows(values, lengths))


def test_conclusion_names_the_significant_loss():
  base = np.linspace(0.3, 0.6, 10)
  steps = 0.01 * np.arange(1, 11)
  summary = _summary([base, base - steps, base + steps])
  assert summary.reference == ("cross_entropy", "softmax")
  # 1 / 512 is the least p-value of ten pairs, and four tests are made.
  assert summary.conclusion == (
    "Over 10 data sets with stopped training, squentropy is significantly "
    "better than cross_entropy in NLL after temperature scaling, on 10 of 10 "
    "data sets (Wilcoxon signed-rank with Holm's correction, p = "
    "0.0078), and significantly worse in accuracy."
  )
  # All metrics have the same values, and a larger accuracy is better.
  lead, accuracy, _ = summary.statements
  assert "squentropy has the best average rank (1.0), then cross_" in lead
  assert "Friedman test, p < 0.0001" in lead
  assert "focal has the best average rank (1.0)" in accuracy
  lengths = [r.training_length for r in summary.rankings]
  assert lengths == ["stopped"] * 3 + ["short"] * 3


def test_conclusion_without_a_significant_loss():
  base = np.linspace(0.3, 0.6, 10)
  signs = np.where(np.arange(10) % 2, 1, -1)
  summary = _summary([base, base + 0.01 * signs * np.arange(1, 11)])
  assert (
    "no loss is significantly better than cross_entropy in NLL after temp"
    in (summary.conclusion)
  )
  assert "Friedman" not in " ".join(summary.statements)


def test_loss_that_diverged_is_not_called_better():
  base = np.linspace(0.3, 0.6, 12)
  ours = base - 0.01 * np.arange(1, 13)
  ours[0] = np.nan
  summary = _summary([base, ours])
  assert "no loss is significantly better" in summary.conclusion
  assert "worse on 1 of 12 data sets and diverged on 1" in summary.statements[0]


def test_few_data_sets_are_said_and_not_tested():
  base = np.linspace(0.3, 0.6, 3)
  summary = _summary([base, base - 0.01])
  assert summary.conclusion.startswith("3 data sets are too few for a test")
  assert "squentropy has the best average rank" in summary.conclusion
  text = " ".join(summary.statements)
  assert "[" not in text
  assert "p =" not in text
  page = _summary_page.html(_rows([base, base - 0.01]), summary, "x").decode()
  assert "too few</td>" in page
  assert "There are too few data sets for a" in page
  assert "nan" not in page.split("<style>")[1].split("base64")[0]


def test_reference_without_cross_entropy_is_the_best_loss():
  base = np.linspace(0.3, 0.6, 7)
  rows = _rows([base + 1, base, base - 0.01])
  rows = rows[rows["loss"] != "cross_entropy"]
  summary = _summary_text.summarize(rows)
  assert summary.reference == ("focal", "softmax")
  assert {c.against for c in summary.comparisons} == {"focal"}


@pytest.mark.parametrize(
  ("mean", "low", "high", "expected"),
  [
    (0.0123, 0.0101, 0.0144, "+0.0123 [+0.0101, +0.0144]"),
    (-0.5, -1.5, 0.5, "-0.5 [-1.5, +0.5]"),
    (0.0001234, 0.00005, 0.0002, "+0.000123 [+0.000050, +0.000200]"),
    (0.01234, math.nan, math.nan, "+0.012"),
    (0.0, math.nan, math.nan, "+0.0000"),
  ],
)
def test_digits_follow_the_interval(mean, low, high, expected):
  method = MethodAtLength("squentropy", "softmax", "stopped")
  c = _comparisons.compare_values(method, "nll", np.zeros(1), np.zeros(1))
  c = c._replace(mean=mean, low=low, high=high)
  assert _summary_text.differences(c)[0] == expected


def test_ranks_are_written_as_a_table():
  table = _table(np.ones((3, 6)))
  ranking = _average_ranks.rank(table, "stopped", "nll_scaled")
  lines = _average_ranks.rankings_csv([ranking]).decode().splitlines()
  assert lines[0] == (
    "training_length,metric,sets,loss,average_rank,win_rate,best"
  )
  assert lines[1] == "stopped,nll_scaled,6,cross_entropy,2,0.5,6"
