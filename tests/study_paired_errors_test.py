# SPDX-License-Identifier: Apache-2.0
"""Intervals cover as often as they say, and p-values are corrected."""

import math

import numpy as np
import pytest
from scipy import special

from squentropy_study import _metric_samples, _number_text, _paired_errors
from squentropy_study._paired_errors import Sample
from squentropy_study._test_rows import Predictions


def _simulated(generator, rows, seeds, row_noise, seed_noise, both_noise):
  """A difference with mean 0: effects of rows, of seeds, and of both."""
  values = (
    row_noise * generator.standard_normal(rows)
    + seed_noise * generator.standard_normal((seeds, 1))
    + both_noise * generator.standard_normal((seeds, rows))
  )
  return Sample(values.mean(axis=1), (values.mean(axis=0),), None, rows)


@pytest.mark.parametrize(
  ("seeds", "row_noise", "seed_noise", "both_noise"),
  [(5, 1.0, 0.0, 0.0), (5, 1.0, 0.2, 0.5), (3, 0.5, 0.2, 0.0), (1, 1, 0, 1)],
)
def test_intervals_cover_the_truth_in_95_of_100_studies(
  seeds, row_noise, seed_noise, both_noise
):
  generator = np.random.default_rng(0)
  covered, rejected = [], []
  for _ in range(2000):
    sample = _simulated(generator, 60, seeds, row_noise, seed_noise, both_noise)
    found = _paired_errors.estimate(sample)
    covered.append(found.low <= 0 <= found.high)
    rejected.append(found.p_value < 0.05)
    assert (found.sign != 0) == (found.p_value < 0.05)
  # An effect of both counts twice, so the interval may be too wide. With three
  # seeds Welch and Satterthwaite's degrees of freedom are a little too high.
  assert (0.92 if seeds == 3 else 0.935) <= np.mean(covered) <= 0.99
  assert np.mean(rejected) == pytest.approx(1 - np.mean(covered))


def test_spread_over_seeds_alone_misses_the_test_rows():
  # The interval of Student's t over seeds, which does not see the test rows.
  generator = np.random.default_rng(1)
  covered = []
  for _ in range(1000):
    sample = _simulated(generator, 60, 5, 1.0, 0.05, 0.0)
    reach = 2.776445 * sample.per_seed.std(ddof=1) / math.sqrt(5)
    covered.append(abs(sample.mean) <= reach)
  assert np.mean(covered) < 0.6


def test_interval_by_hand():
  per_seed, rows = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 2.0, 4.0])
  found = _paired_errors.estimate(Sample(per_seed, (rows,), None, 4))
  # Variances of the means: 1 / 3 over seeds and (8 / 3) / 4 over rows.
  assert found.seeds_error == pytest.approx(math.sqrt(1 / 3))
  assert found.rows_error == pytest.approx(math.sqrt(2 / 3))
  freedom = 1 / ((1 / 3) ** 2 / 2 + (2 / 3) ** 2 / 3)
  reach = special.stdtrit(freedom, 0.975)
  assert (found.low, found.high) == pytest.approx((2 - reach, 2 + reach))
  assert found.p_value == pytest.approx(2 * special.stdtr(freedom, -2))


def test_one_or_two_seeds_use_the_test_rows_alone():
  rows = np.array([0.0, 2.0, 2.0, 4.0])
  found = _paired_errors.estimate(
    Sample(np.array([1.0, 3.0]), (rows,), None, 4)
  )
  assert np.isnan(found.seeds_error)
  reach = special.stdtrit(3, 0.975) * math.sqrt(2 / 3)
  assert (found.low, found.high) == pytest.approx((2 - reach, 2 + reach))


def test_no_interval_without_variation():
  same = Sample(np.zeros(5), (np.zeros(9),), None, 9)
  found = _paired_errors.estimate(same)
  assert found.mean == 0
  assert np.isnan([found.low, found.high, found.p_value]).all()
  assert found.sign == 0
  # One test row of a class says nothing about the recall of the class.
  one = Sample(np.arange(5.0), (np.ones(9), np.ones(1)), None, 1)
  assert np.isnan(_paired_errors.estimate(one).low)


def test_strata_have_equal_weight():
  few, many = np.array([0.0, 1.0]), np.tile([0.0, 1.0], 50)
  found = _paired_errors.estimate(Sample(np.full(3, 0.5), (few, many), None, 2))
  expected = (few.var(ddof=1) / 2 + many.var(ddof=1) / 100) / 4
  assert found.rows_error == pytest.approx(math.sqrt(expected))


def test_few_equal_rows_do_not_show_that_methods_agree():
  # Four rows of a rare class, all equal, and many of the other class.
  rare, other = np.zeros(4), np.zeros(1000)
  other[:7] = 1
  sample = Sample(np.full(3, 0.003), (rare, other), None, 4, is_share=True)
  found = _paired_errors.estimate(sample)
  # Variance 1 / 5 of six rows, halved for two classes.
  assert found.rows_error == pytest.approx(math.sqrt(1 / 5 / 6) / 2, rel=1e-2)
  assert found.low < -0.15
  assert found.high > 0.15


def test_holm_by_hand():
  # 0.01 * 4, 0.02 * 3, 0.03 * 2, then 0.04 * 1, which may not be smaller.
  adjusted = _paired_errors.holm([0.03, 0.01, math.nan, 0.04, 0.02])
  np.testing.assert_allclose(adjusted, [0.06, 0.04, np.nan, 0.06, 0.06])
  np.testing.assert_allclose(_paired_errors.holm([0.9, 0.8]), [1.0, 1.0])
  assert _paired_errors.holm([]).size == 0


def test_holm_keeps_the_family_wise_error():
  generator = np.random.default_rng(2)
  p_values = generator.random((2000, 6))
  any_found = [(_paired_errors.holm(row) < 0.05).any() for row in p_values]
  assert np.mean(any_found) == pytest.approx(0.05, abs=0.015)
  assert (p_values < 0.05).any(axis=1).mean() > 0.2


def _calibrated(generator, rows, seeds=1, shift=0.0):
  """Two classes; the confidence is too high by a shift."""
  chance = generator.uniform(0.55, 0.9, rows)
  labels = (generator.random(rows) < chance).astype(int)
  stated = np.clip(chance + shift, 0.5, 0.99)
  log_probs = np.log(np.stack([1 - stated, stated], axis=-1))
  return Predictions(
    np.broadcast_to(log_probs, (1, seeds, rows, 2)).copy(),
    labels[None],
    np.ones((1, rows), bool),
  )


def test_bootstrap_error_of_ece_is_that_of_new_test_rows():
  generator = np.random.default_rng(3)
  found = [
    _metric_samples.ece(_calibrated(generator, 200, shift=0.08))
    for _ in range(150)
  ]
  truth = np.std([sample.mean for sample in found], ddof=1)
  errors = [_paired_errors.estimate(sample).rows_error for sample in found]
  assert np.mean(errors) == pytest.approx(truth, rel=0.25)


def test_bootstrap_pairs_the_rows():
  generator = np.random.default_rng(4)
  predictions = _calibrated(generator, 200, seeds=3, shift=0.05)
  sample = _metric_samples.ece(predictions)
  assert sample.draws.shape == (1000,)
  same = sample - _metric_samples.ece(predictions)
  assert _paired_errors.estimate(same).rows_error == 0


@pytest.mark.parametrize(
  ("numbers", "text"),
  [
    ((0.9, 0.4, 1.4), "+0.9 [0.4, 1.4]"),
    ((0.0002, -0.0001, 0.0005), "+0.0002 [-0.0001, 0.0005]"),
    ((-0.0123, -0.03, 0.0054), "-0.012 [-0.030, 0.005]"),
    ((-0.01, -2.0, 1.98), "0.0 [-2.0, 2.0]"),
    ((12.3, -10.0, 40.0), "+12 [-10, 40]"),
    ((0.5, math.nan, math.nan), "+0.500"),
    ((0.0, math.nan, math.nan), "0.000"),
  ],
)
def test_digits_follow_the_interval(numbers, text):
  assert " ".join(_number_text.with_interval(*numbers)).rstrip() == text


def test_lists_of_names():
  names = list("abcde")
  assert _number_text.listed([]) == ""
  assert _number_text.listed(names[:1]) == "a"
  assert _number_text.listed(names[:3]) == "a, b and c"
  assert _number_text.listed(names) == "a, b and 3 more"
