# SPDX-License-Identifier: Apache-2.0
"""The comparison of recalibrators on the data of the replication."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import recalibration
from squentropy_jax import calibration


def test_scores_of_a_study_are_means_over_its_runs(finished_study, monkeypatch):
  out, results = finished_study
  monkeypatch.setattr(recalibration, "_ROWS", 48)
  fits = {"temperature": calibration.fit_temperature}
  monkeypatch.setattr(recalibration, "ANY", fits)
  none, scaled = recalibration.of_study(out)
  assert none["classes"] == 3
  assert none["fit_rows"] == 38
  run = results.run_results["cross_entropy"]
  before, after = [], []
  for seed in range(2):
    z, y = run.test_scores[0, 0, seed], run.test_labels[seed]
    params = calibration.fit_temperature(
      run.validation_scores[0, 0, seed], run.validation_labels[seed]
    )
    for found, logits in (
      (before, z),
      (after, calibration.apply(params, z)),
    ):
      found.append(calibration.negative_log_likelihood(logits, y))
  assert none["nll"] == pytest.approx(np.mean(before), rel=1e-5)
  assert scaled["nll"] == pytest.approx(np.mean(after), rel=1e-3)


def test_table_counts_data_sets(monkeypatch):
  monkeypatch.setattr(recalibration, "ANY", {"temperature": 0, "vector": 0})
  monkeypatch.setattr(recalibration, "BINARY", {"beta": 0})
  rows = []
  for number in range(8):
    of_names = {"none": 0.6, "temperature": 0.5, "vector": 0.4, "beta": 0.45}
    for name, nll in of_names.items():
      wins = name != "vector" or number < 6
      rows.append(
        {
          "data": f"set{number}",
          "classes": 2,
          "recalibrator": name,
          "nll": nll + 0.01 * number * (name == "none") + 0.2 * (not wins),
          "brier": nll,
        }
      )
  lines = recalibration.table(pd.DataFrame(rows)).splitlines()
  (vector,) = (line for line in lines if line.startswith("| vector |"))
  assert vector.startswith("| vector | 8 | 75% | -0.100 | -0.050 |")
  (none,) = (line for line in lines if line.startswith("| none |"))
  assert none.startswith("| none | 8 | 0% | +0.135 | +0.135 | 0.0078 |")
