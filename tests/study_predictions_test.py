# SPDX-License-Identifier: Apache-2.0
"""The predictions of each test row: the table, its file, and the ids."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets as sklearn_datasets
from support import study

import squentropy_study
from squentropy_study import (
  Settings,
  StudyError,
  _page_setup,
  _predictions,
  _run,
  load_data,
)

CLASSES = ("setosa", "versicolor", "virginica")
LOG_PROBS = [f"log_prob_{name}" for name in CLASSES]
TEST_ROWS = 38


def test_each_test_row_has_its_label_and_its_log_probabilities(finished_study):
  _, results = finished_study
  table = results.predictions()
  assert list(table) == ["row", "fold", "seed", "loss", "label", *LOG_PROBS]
  losses, baselines = results.settings.losses, list(results.baselines)
  seeds = dict.fromkeys(losses, 2) | dict.fromkeys(baselines, 1)
  assert table["loss"].value_counts(sort=False).to_dict() == {
    name: number * TEST_ROWS for name, number in seeds.items()
  }
  expected = sklearn_datasets.load_iris().target[table["row"]]
  assert list(table["label"]) == [CLASSES[k] for k in expected]
  assert set(table[LOG_PROBS].dtypes) == {np.dtype(np.float32)}
  total = np.exp(table[LOG_PROBS].to_numpy()).sum(axis=1)
  np.testing.assert_allclose(total, 1, rtol=1e-5)
  assert not table.duplicated(["loss", "seed", "row"]).any()


def test_metrics_of_the_table_are_those_of_the_results(finished_study):
  _, results = finished_study
  table = results.predictions()
  values = table[LOG_PROBS].to_numpy()
  labels = table["label"].cat.codes.to_numpy()
  table["nll"] = -values[np.arange(len(table)), labels]
  table["hit"] = values.argmax(axis=1) == labels
  for method in results.methods:
    if method == ("rescaled_square:target_value=10", "softmax"):
      continue  # The probabilities of the loss are those of the other map.
    of_loss = table[table["loss"] == method.loss].groupby("seed")
    for ours, name in (("nll", "nll_scaled"), ("hit", "accuracy")):
      expected = results.per_seed(method, "stopped", name)
      np.testing.assert_allclose(of_loss[ours].mean(), expected, rtol=1e-4)
  trees = table[table["loss"] == "gradient-boosted trees"]
  assert set(trees["seed"]) == {0}
  baseline = results.baselines["gradient-boosted trees"]
  expected = baseline.scaled_log_probs[0]
  np.testing.assert_allclose(trees[LOG_PROBS], expected, rtol=1e-5)


def test_folds_without_their_padding(finished_study):
  _, results = finished_study
  run_results = {}
  for loss, result in results.run_results.items():
    # The two runs become one seed in each of two folds.
    keep = result.test_keep.copy()
    keep[1, 30:] = False
    rows = np.stack([result.test_rows[0], result.test_rows[1][::-1]])
    run_results[loss] = result._replace(test_keep=keep, test_rows=rows)
  settings = study.settings(seeds=1, folds=3)
  results = dataclasses.replace(
    results, settings=settings, run_results=run_results, baselines={}
  )
  table = results.predictions()
  of_loss = table[table["loss"] == "squentropy"]
  assert of_loss.groupby("fold").size().to_dict() == {0: 38, 1: 30}
  rows = run_results["squentropy"].test_rows
  second = of_loss[of_loss["fold"] == 1]
  np.testing.assert_array_equal(second["row"], rows[1][:30])


def test_file(finished_study, tmp_path, monkeypatch):
  out, results = finished_study
  table = results.predictions()
  read = pd.read_parquet(out / "predictions.parquet")
  pd.testing.assert_frame_equal(read, table)
  # Without pyarrow.
  monkeypatch.setattr(
    _predictions.importlib.util, "find_spec", lambda name: None
  )
  (tmp_path / "predictions.parquet").write_text("of an earlier report")
  path = tmp_path / "predictions.csv.gz"
  _predictions.write(tmp_path, results)
  first = path.read_bytes()
  assert [path.name for path in tmp_path.iterdir()] == [path.name]
  read = pd.read_csv(path, dtype=dict.fromkeys(LOG_PROBS, np.float32))
  read = read.astype(table.dtypes)
  # The text of each float32 restores it.
  pd.testing.assert_frame_equal(read, table, check_categorical=False)
  np.testing.assert_array_equal(read[LOG_PROBS], table[LOG_PROBS])
  _predictions.write(tmp_path, results)
  assert path.read_bytes() == first
  assert "predictions.csv.gz" in _page_setup.files(results)


@pytest.mark.parametrize(
  ("most", "seeds"), [(2000, 2), (1368 + 341, 2), (1367, 2), (700, 1), (600, 0)]
)
def test_file_is_bounded(finished_study, tmp_path, monkeypatch, most, seeds):
  _, results = finished_study
  # 38 rows, 3 classes, 3 losses and 3 baselines.
  monkeypatch.setitem(_predictions._MOST, "predictions.parquet", most)
  expected = min((most - 342) // 342, 2)
  assert expected == seeds
  _predictions.write(tmp_path, results)
  files = _page_setup.files(results)
  if not seeds:
    assert list(tmp_path.iterdir()) == []
    assert "too many for a file" in files
    return
  table = pd.read_parquet(tmp_path / "predictions.parquet")
  assert set(table["seed"]) == set(range(seeds))
  assert table[LOG_PROBS].size == 342 * (seeds + 1)
  assert ("The file has 1 seed only" in files) == (seeds == 1)


@pytest.fixture
def path(tmp_path):
  rng = np.random.default_rng(0)
  rows = [f"{k:03},{rng.normal():.6f},{'ab'[k % 2]}" for k in range(40)]
  rows[3] = "003,1,"
  rows[5] = ",0.5,b"
  path = tmp_path / "orders.csv"
  path.write_text("\n".join(["order,size,paid", *rows]))
  return path


def test_ids_and_row_numbers_are_those_of_the_file(path, tmp_path, monkeypatch):
  found = []

  def write(out, rows):
    found.append(rows)
    raise StudyError("enough")

  write_rows = _predictions.write_data_rows
  monkeypatch.setattr(_predictions, "write_data_rows", write)
  for rows, column in ((None, "order"), (30, "order"), (30, None)):
    settings = Settings(str(path), label="paid", id=column, rows=rows, seeds=1)
    with pytest.raises(StudyError, match="enough"):
      _run.run(settings, tmp_path / f"out{rows}{column}")
  everything, sample, without = found
  numbers = [k for k in range(40) if k != 3]
  assert list(everything.numbers) == numbers
  assert everything.ids[4] == ""
  assert list(everything.ids[5:7]) == ["006", "007"]
  assert len(sample.numbers) == 30
  for number, name in zip(sample.numbers, sample.ids, strict=True):
    assert name == ("" if number == 5 else f"{number:03}")
  assert without.ids is None
  np.testing.assert_array_equal(without.numbers, sample.numbers)
  (tmp_path / "runs").mkdir()
  assert not _predictions.has_data_rows(tmp_path)
  for rows in found:
    write_rows(tmp_path, rows)
    read = _predictions.read_data_rows(tmp_path)
    assert read.classes == ("a", "b")
    np.testing.assert_array_equal(read.numbers, rows.numbers)
    np.testing.assert_array_equal(read.ids, rows.ids)
  (tmp_path / "runs" / "rows.npz").write_bytes(b"half")
  with pytest.raises(StudyError, match=r"rows.npz is damaged .*delete it"):
    _predictions.read_data_rows(tmp_path)


def test_id_is_no_feature(path):
  dataset = load_data(str(path), "paid", id="order")
  assert dataset.features.shape == (39, 1)
  assert "columns are left out as asked: order" in dataset.notes
  with pytest.raises(StudyError, match="for --id 'oder'; did you mean 'order'"):
    load_data(str(path), "paid", id="oder")
  with pytest.raises(StudyError, match="iris has no column for --id"):
    load_data("iris", id="order")


def test_ids_of_other_files_keep_their_type():
  def ids(values):
    return list(_predictions._ids(np.array(values, object)))

  assert ids([3, 1, 2]) == [3, 1, 2]
  assert ids([3.0, None, 2.5]) == ["3", "", "2.5"]
  assert ids([7, "a", None]) == ["7", "a", ""]
  assert ids([pd.Timestamp("2025-01-02"), float("nan")]) == ["2025-01-02", ""]


@pytest.mark.parametrize("kind", [int, str])
def test_ids_in_the_table(finished_study, tmp_path, kind):
  _, results = finished_study
  rows = results.data_rows
  ids = np.array([kind(1000 + k) for k in rows.numbers], object)
  results = dataclasses.replace(
    results,
    data_rows=rows._replace(ids=ids),
    settings=study.settings(id="order"),
  )
  table = results.predictions()
  assert list(table)[:2] == ["row", "id"]
  assert (table["id"] == (1000 + table["row"]).astype(kind)).all()
  _predictions.write(tmp_path, results)
  read = pd.read_parquet(tmp_path / "predictions.parquet")
  assert (read["id"] == table["id"]).all()
  assert "id is its value of order" in _page_setup.files(results)


def test_study_without_row_numbers(finished_study, study_copy):
  _, results = finished_study
  results = dataclasses.replace(results, data_rows=None)
  with pytest.raises(StudyError, match="read them with squentropy_study"):
    results.predictions()
  (study_copy / "runs" / "rows.npz").unlink()
  with pytest.raises(StudyError, match="numbers of the rows are missing"):
    squentropy_study.load(study_copy)
