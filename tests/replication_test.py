# SPDX-License-Identifier: Apache-2.0
"""The replication: its plan can be run, and its tables say what rows say."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from replication import page, plan, sources
from squentropy_jax.study import _results
from squentropy_jax.study._summary import Comparison

SETS = 12


def _rows(gain, spread):
  """Results in which squentropy gains so much in each metric."""
  noise = np.random.default_rng(0).normal(size=(SETS, 4, 3))
  rows = []
  for loss, data, fold, seed in itertools.product(
    ("cross_entropy", "squentropy"), range(SETS), range(4), range(3)
  ):
    ours = loss == "squentropy"
    value = 0.5 + 0.001 * data + ours * gain * (1 + 0.1 * data)
    accuracy = value + (spread if ours else 0.01) * noise[data, fold, seed]
    numbers = [accuracy] + [value] * (len(_results.Row._fields) - 8)
    key = (f"set{data}", loss, "softmax", "long", 300, fold, seed)
    rows.append((*key, *numbers))
  return pd.DataFrame(rows, columns=_results.Row._fields)


def test_tables_say_what_the_rows_say():
  said = page.compare(_rows(-0.02, spread=0.03))
  by_metric = {c.metric: c for c in said}
  assert by_metric["ece"].wins == SETS
  assert page.judgement(by_metric["ece"]) == "holds"
  assert page.judgement(by_metric["spread"]) == "fails"
  noise = np.random.default_rng(0).normal(size=(SETS, 4, 3))
  # Three times the spread of the baseline, so twice it more.
  expected = 0.02 * noise.std(axis=2, ddof=1).mean()
  assert by_metric["spread"].mean == pytest.approx(expected, rel=1e-6)
  text = page.tables(said)
  assert "### Spread of the accuracy over seeds" in text
  assert "| `squentropy` | long | 12 | 12 | 0 | 0 | -0.0310" in text
  assert "holds |" in text


@pytest.mark.parametrize(
  ("metric", "low", "high", "p", "expected"),
  [
    ("accuracy", 0.1, 0.2, 0.01, "holds"),
    ("accuracy", -0.2, -0.1, 0.01, "fails"),
    ("ece", 0.1, 0.2, 0.01, "fails"),
    ("ece", -0.2, -0.1, 0.01, "holds"),
    ("ece", -0.2, 0.1, 0.01, "not told apart"),
    ("ece", -0.2, -0.1, 0.05, "not told apart"),
    ("ece", np.nan, np.nan, 1.0, "not told apart"),
  ],
)
def test_judgement_is_the_rule_of_the_plan(metric, low, high, p, expected):
  counts = (10, 5, 0, 5)
  method = ("squentropy", "softmax", "long")
  comparison = Comparison(*method, metric, *counts, 0.0, low, high, p)
  assert page.judgement(comparison) == expected


def test_page_is_written_from_rows_alone(tmp_path):
  results = _rows(0.01, spread=0.01)
  curves = results[["data", "loss", "readout", "accuracy", "nll", "ece"]]
  curves = curves.assign(epoch=results["seed"] + 1)
  page.write(tmp_path, results, curves)
  names = {path.name for path in tmp_path.iterdir()}
  pictures = {"differences.png", "by_epoch.png"}
  assert names == {"summary.csv", "tables.md"} | pictures


@pytest.mark.parametrize("name", ["vehicle", "wordnet", "fashion_mnist"])
def test_plan_is_a_study(name):
  settings = plan.settings(name)
  assert settings.data == f"{name}.npz"
  assert "squentropy" in settings.losses
  json.dumps(settings.losses)
  grid = [x for x in settings.losses if "target_weight" in x]
  assert len(grid) == (4 if name == "wordnet" else 0)


def test_cut_leaves_out_rare_classes_and_keeps_the_shares():
  y = np.repeat([0, 1, 2], [5000, 2970, 30])
  x = np.arange(y.size)[:, None]
  kept, labels = sources._cut(x, y)
  np.testing.assert_array_equal(y[kept[:, 0]], labels)
  # 30 of 8000 rows would be 7.5 of 2000.
  np.testing.assert_array_equal(np.bincount(labels), [1255, 745])
  few = sources._cut(x[4990:5020], y[4990:5020])
  np.testing.assert_array_equal(np.bincount(few[1]), [10, 20])
