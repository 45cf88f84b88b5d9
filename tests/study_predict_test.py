# SPDX-License-Identifier: Apache-2.0
"""The stopped models of a study predict new rows."""

import shutil
import warnings

from matplotlib import image
import numpy as np
import pandas as pd
import pytest
from scipy import special
from support import study

import squentropy_study
from squentropy_study import (
  StudyError,
  _cli,
  _evaluation,
  _model_average,
  _predict,
  _preprocessing,
)

ROWS = 160
CLASSES = ["probability_no", "probability_yes"]


def _table():
  rng = np.random.default_rng(0)
  size = rng.normal(size=ROWS).round(3)
  kind = rng.choice(["a", "b", "c"], ROWS)
  chance = size + (kind == "a") + rng.normal(size=ROWS)
  day = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(ROWS), "D")
  return pd.DataFrame(
    {
      "size": np.where(np.arange(ROWS) % 9, size, np.nan),
      "kind": np.where(np.arange(ROWS) % 11, kind, None),
      "price": [f"{1500 + x:,.2f} €" for x in 900 * size],
      "day": day.strftime("%Y-%m-%d"),
      "y": np.where(chance > 0.4, "yes", "no"),
    }
  )


def _settings(data, **changes):
  fields = {"label": "y", "losses": ("cross_entropy", "squentropy")}
  fields |= {"seeds": 2, "epochs": (), "max_epochs": 12, "model": "linear"}
  fields |= {"baselines": False, "learning_rate": 0.02, **changes}
  return squentropy_study.Settings(str(data), **fields)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The folder, the results and the file of a study."""
  folder = tmp_path_factory.mktemp("predict")
  path, out = folder / "table.csv", folder / "study"
  _table().to_csv(path, index=False)
  with pytest.MonkeyPatch.context() as patch:
    study.skip_figures(patch)
    return out, squentropy_study.run(_settings(path), out), path


def _stored(results, loss, runs=slice(None)):
  """Rows and probabilities of the models of a fold, from what was kept."""
  kept = results.run_results[loss]
  validation = _evaluation.HeldOutLogits(
    kept.validation_scores[0, 0], kept.validation_labels, kept.validation_keep
  )
  temperature, scores = _evaluation.recalibrate(
    validation, kept.test_scores[0, 0]
  )
  assert np.asarray(temperature).std() > 0
  _, own = _evaluation.recalibrate(validation, validation.scores)

  def mean(scores):
    return np.log(special.softmax(scores[runs], axis=-1).mean(axis=0))

  of_fold = validation._replace(
    scores=mean(own)[None],
    labels=validation.labels[runs][:1],
    keep=validation.keep[runs][:1],
  )
  _, scaled = _evaluation.recalibrate(of_fold, mean(scores)[None])
  rows, keep = kept.test_rows[runs][0], kept.test_keep[runs][0]
  return rows[keep], special.softmax(np.asarray(scaled[0]), axis=-1)[keep]


@pytest.mark.parametrize("loss", ["cross_entropy", "squentropy"])
def test_rows_of_the_study_have_the_probabilities_of_the_study(finished, loss):
  out, results, path = finished
  frame = squentropy_study.predict(out, path, loss)
  rows, expected = _stored(results, loss)
  np.testing.assert_allclose(
    frame.loc[rows, CLASSES], expected, rtol=2e-5, atol=1e-7
  )
  assert list(frame.columns) == ["row", "predicted", *CLASSES]
  assert frame["row"].tolist() == list(range(ROWS))
  names = np.array(["no", "yes"])[frame[CLASSES].to_numpy().argmax(axis=1)]
  assert frame["predicted"].tolist() == names.tolist()


def _of_arrays(out, results, features):
  """The ensemble of squentropy, and features as its models take them."""
  known = _preprocessing.read(out, "")
  ensemble = _predict._ensemble(out, results, "squentropy", known)
  return ensemble, known.standardized(features)


def _of_fold(ensemble, fold, seeds):
  """The ensemble of the models of one fold."""
  runs = slice(seeds * fold, seeds * (fold + 1))
  models = ensemble.models
  arrays = {name: x[:, runs] for name, x in models.arrays.items()}
  models = models._replace(
    shift=models.shift[runs], scale=models.scale[runs], arrays=arrays
  )
  average = ensemble.average._replace(
    of_models=ensemble.average.of_models[fold : fold + 1],
    of_folds=ensemble.average.of_folds[fold : fold + 1],
  )
  return ensemble._replace(models=models, average=average)


def test_models_of_all_folds_are_averaged(tmp_path, monkeypatch):
  study.skip_figures(monkeypatch)
  settings = _settings("iris", label=None, losses=("squentropy",), folds=3)
  results = squentropy_study.run(settings, tmp_path / "out")
  data = squentropy_study.load_data("iris")
  arrays = tmp_path / "new.npz"
  np.savez(arrays, x=data.features, y=np.array(data.classes)[data.labels])
  frames = [
    squentropy_study.predict(tmp_path / "out", x)
    for x in (arrays, data.features)
  ]
  pd.testing.assert_frame_equal(*frames)
  ensemble, features = _of_arrays(tmp_path / "out", results, data.features)
  by_fold = []
  for fold in range(3):
    log_probs = _predict._log_probs(_of_fold(ensemble, fold, 2), features)
    by_fold.append(np.exp(log_probs))
    runs = slice(2 * fold, 2 * fold + 2)
    rows, expected = _stored(results, "squentropy", runs)
    np.testing.assert_allclose(by_fold[-1][rows], expected, rtol=1e-3)
  np.testing.assert_allclose(
    frames[0].iloc[:, 2:], np.mean(by_fold, axis=0), rtol=1e-5
  )
  with pytest.raises(StudyError, match=r"shape \(rows, 4\) .* got \(150, 3\)"):
    squentropy_study.predict(tmp_path / "out", data.features[:, :3])
  with pytest.raises(StudyError, match=r"shape \(rows, 4\), .* is a table"):
    squentropy_study.predict(tmp_path / "out", pd.DataFrame(data.features))


def test_metrics_of_the_mean_are_those_of_its_predictions(finished):
  out, results, path = finished
  method = results.methods[0]
  found = _model_average.measure(results, _model_average.fit(results, method))
  rows, probabilities = _stored(results, method.loss)
  labels = _table()["y"].to_numpy()[rows] == "yes"
  of_label = probabilities[np.arange(rows.size), labels.astype(int)]
  values = {metric.name: value.mean for metric, value in found.items()}
  assert values["nll"] == pytest.approx(-np.log(of_label).mean(), rel=1e-4)
  assert values["accuracy"] == pytest.approx((of_label > 0.5).mean())
  page = (out / "report.html").read_text()
  assert "the mean prediction of its 2 models has NLL" in page
  assert squentropy_study.predict(out, path, method.loss).shape[0] == ROWS


def test_best_loss_is_that_of_the_validation_rows(finished):
  out, results, path = finished
  nll = {
    method.loss: np.mean(evaluation.validation_nll)
    for (method, _), evaluation in results.evaluations.items()
  }
  best = min(nll, key=nll.get)
  pd.testing.assert_frame_equal(
    squentropy_study.predict(out, path),
    squentropy_study.predict(out, path, best),
  )


def test_only_the_names_of_columns_matter(finished):
  out, _, path = finished
  expected = squentropy_study.predict(out, path, "squentropy")
  frame = pd.read_csv(path)
  frame["size"] = frame["size"].astype(object)
  frame = frame.drop(columns="y")[::-1][["day", "price", "kind", "size"]]
  frame.insert(1, "more", "x")
  found = squentropy_study.predict(out, frame, "squentropy")
  assert found.index.equals(frame.index)
  pd.testing.assert_frame_equal(
    found[CLASSES], expected[CLASSES][::-1], rtol=1e-5
  )


def test_rows_in_blocks_have_the_same_probabilities(finished, monkeypatch):
  out, _, path = finished
  whole = squentropy_study.predict(out, path, "squentropy")
  monkeypatch.setattr(_predict, "_MOST_ROWS", 70)
  blocks = squentropy_study.predict(out, path, "squentropy")
  pd.testing.assert_frame_equal(blocks, whole, rtol=1e-5)


def _probabilities(out, **cells):
  row = {"size": "0.5", "kind": "a", "price": "1,500.00 €", "day": "2024-02-01"}
  frame = pd.DataFrame([row | cells])
  return squentropy_study.predict(out, frame, "squentropy")[CLASSES].to_numpy()


def test_unknown_categories_and_missing_values_are_predicted(finished):
  out, _, _ = finished
  known = _probabilities(out)
  with pytest.warns(UserWarning, match="'kind': the value of 1 row, such as"):
    unknown = _probabilities(out, kind="z")
  missing = _probabilities(out, kind="")
  np.testing.assert_array_equal(unknown, missing)
  assert abs(unknown - known).max() > 1e-3
  # The mean of the training rows, and the mark of a missing value.
  size = [_probabilities(out, size=x) for x in (None, "?", "n/a")]
  np.testing.assert_array_equal(size[0], size[1])
  assert np.isfinite(size[0]).all()
  assert abs(size[0] - known).max() > 1e-3


def test_command_writes_a_table_and_prints_accuracy(finished, tmp_path, capsys):
  out, _, path = finished
  frame = pd.read_csv(path, dtype=str).iloc[:40]
  frame.loc[0, "y"], frame.loc[1, "y"] = "", "maybe"
  frame.loc[2, "kind"], frame.loc[3, "size"] = "violet", "much"
  new, written = tmp_path / "new.csv", tmp_path / "p.csv"
  frame.to_csv(new, index=False)
  words = ["predict", str(out), str(new), "--loss", "cross_entropy", "--out"]
  assert _cli.main([*words, str(written)]) == 0
  assert _cli.main([*words, str(written)]) == 2
  assert "exists; name another file with --out" in capsys.readouterr().err
  assert _cli.main([*words, str(written), "--overwrite"]) == 0
  found = pd.read_csv(written)
  with pytest.warns(UserWarning, match="such as") as warned:
    expected = squentropy_study.predict(out, new, "cross_entropy")
  assert len(warned) == 3
  pd.testing.assert_frame_equal(found, expected, rtol=1e-8)
  printed, said = capsys.readouterr()
  has_label = frame["y"].isin(["no", "yes"]).to_numpy()
  right = (found["predicted"] == frame["y"])[has_label]
  of_label = [
    found.loc[k, f"probability_{frame['y'][k]}"] for k in range(2, 40)
  ]
  assert printed.startswith(
    "2 models trained with cross_entropy predicted 40 rows. On 38 rows with a "
    f"label, the accuracy is {100 * right.mean():.1f} % and the NLL is "
    f"{-np.log(of_label).mean():.3f}.\n"
  )
  for text in (
    "column 'kind': the value of 1 row, such as 'violet', is not a category",
    "column 'size': the value of 1 row, such as 'much', is not a number",
    "the label of 1 row, such as 'maybe', is not a class of the study",
  ):
    assert f"Data: warning: {text}" in said
  before = new.read_bytes()
  assert _cli.main([*words, str(new)]) == 2
  assert "is the file of the new rows" in capsys.readouterr().err
  assert new.read_bytes() == before


def test_marks_of_decimals_may_differ(finished, tmp_path):
  out, _, path = finished
  frame = pd.read_csv(path, dtype=str).drop(columns="y")
  swap = str.maketrans(",.", ".,")
  for name in ("size", "price"):
    frame[name] = frame[name].str.translate(swap)
  frame.to_csv(tmp_path / "comma.csv", index=False, sep=";")
  pd.testing.assert_frame_equal(
    squentropy_study.predict(out, tmp_path / "comma.csv", "squentropy"),
    squentropy_study.predict(out, path, "squentropy"),
  )


def test_file_without_header_has_the_columns_of_the_study(
  tmp_path, monkeypatch
):
  study.skip_figures(monkeypatch)
  table = _table()[["kind", "size", "y"]]
  path, out = tmp_path / "table.csv", tmp_path / "out"
  table.to_csv(path, index=False, header=False)
  losses = ("squentropy",)
  settings = _settings(path, label="column3", header=False, losses=losses)
  squentropy_study.run(settings, out)
  expected = squentropy_study.predict(out, path, header=False)
  new = tmp_path / "new.csv"
  table.drop(columns="y").to_csv(new, index=False, header=False)
  found = squentropy_study.predict(out, new, header=False)
  pd.testing.assert_frame_equal(found, expected)
  with pytest.raises(StudyError, match="add --no-header"):
    squentropy_study.predict(out, new)
  table[["size"]].to_csv(new, index=False, header=False)
  with pytest.raises(StudyError, match=r"has 1 columns, .* had 3"):
    squentropy_study.predict(out, new, header=False)


def test_folders_that_cannot_predict_raise(finished, tmp_path):
  out, _, path = finished
  predict = squentropy_study.predict
  with pytest.raises(StudyError, match="holds no study; run one"):
    predict(tmp_path, path)
  with pytest.raises(StudyError, match="unknown loss of the study 'focal'"):
    predict(out, path, "focal")
  copy = shutil.copytree(out, tmp_path / "copy")
  file = copy / "preprocessing.json"
  file.write_text(file.read_text()[:-20])
  with pytest.raises(StudyError, match=r"json is damaged .*: squentropy-study"):
    predict(copy, path)
  file.unlink()
  with pytest.raises(StudyError, match=r"no preprocessing\.json, so new rows"):
    predict(copy, path)
  (copy / "runs" / "squentropy.npz").unlink()
  with pytest.raises(StudyError, match="unfinished"):
    predict(copy, path)


def test_rows_unlike_those_of_the_study_raise(finished, tmp_path):
  out, _, path = finished
  frame = pd.read_csv(path)
  for data, message in (
    (frame.drop(columns=["kind", "size"]), "no column 'size', 'kind'; add"),
    (frame[:0], "the table has no rows"),
    (frame.assign(day="never"), "'day' held dates .* such as 'never'"),
    (frame.to_numpy()[:, :1].astype(float), "is an array without names"),
    (tmp_path / "absent.csv", "there is no file"),
    (tmp_path, "is a folder, but the study was not trained on a folder"),
  ):
    with pytest.raises(StudyError, match=message):
      squentropy_study.predict(out, data, "squentropy")


def _save(folder, names, brightness):
  rng = np.random.default_rng(0)
  for number, name in enumerate(names):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.uniform(0, 0.3, (4, 4, 3)) + brightness[number % 2]
    image.imsave(path, pixels)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """The folder of a study of images of two classes."""
  folder = tmp_path_factory.mktemp("images")
  names = [f"{'ab'[k % 2]}/{k}.png" for k in range(40)]
  _save(folder / "data", names, (0.1, 0.6))
  settings = _settings(folder / "data", label=None, seeds=1)
  with pytest.MonkeyPatch.context() as patch:
    study.skip_figures(patch)
    squentropy_study.run(settings, folder / "out")
  return folder / "out"


def test_images_are_predicted_from_folders(images, tmp_path):
  _save(tmp_path / "flat", ["0.png", "1.png"], (0.1, 0.6))
  frame = squentropy_study.predict(images, tmp_path / "flat")
  assert frame["id"].tolist() == ["0.png", "1.png"]
  assert frame["predicted"].tolist() == ["a", "b"]
  _save(tmp_path / "deep", ["a/0.png", "b/1.png"], (0.1, 0.6))
  predicted = _predict.predict_rows(images, tmp_path / "deep")
  assert predicted.frame["id"].tolist() == ["a/0.png", "b/1.png"]
  assert "On 2 rows with a label, the accuracy is 100.0 %" in predicted.summary
  _save(tmp_path / "mixed", ["0.png"], (0.1,) * 2)
  image.imsave(tmp_path / "mixed" / "1.png", np.zeros((3, 4, 3)))
  with pytest.raises(
    StudyError, match=r"4 x 3 pixels, but the images of the study"
  ):
    squentropy_study.predict(images, tmp_path / "mixed")


@pytest.mark.parametrize("factor", [255, 1 / 255])
def test_arrays_of_another_scale_give_a_warning(images, factor):
  pixels = np.random.default_rng(0).random((30, 4, 4, 3))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert len(squentropy_study.predict(images, pixels)) == 30
  with pytest.warns(UserWarning, match=r"differently .* in 3 features; scale"):
    squentropy_study.predict(images, factor * pixels)


def test_rare_and_constant_values_give_no_warning(tmp_path, monkeypatch):
  study.skip_figures(monkeypatch)
  rng = np.random.default_rng(0)
  x = rng.lognormal(0, 2, (200, 2))
  path = tmp_path / "x.npz"
  np.savez(path, x=x, y=x[:, 0] > 1)
  settings = _settings(path, label=None, seeds=1, losses=("cross_entropy",))
  squentropy_study.run(settings, tmp_path / "out")
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for new in (rng.lognormal(0, 2, (40, 2)), np.ones((40, 2)), x[:3] * 1e4):
      squentropy_study.predict(tmp_path / "out", new)


def test_folders_that_hold_no_images_of_the_study(images, finished, tmp_path):
  _save(tmp_path / "both", ["0.png", "a/1.png"], (0.1, 0.6))
  with pytest.raises(StudyError, match="holds both images and folders"):
    squentropy_study.predict(images, tmp_path / "both")
  (tmp_path / "empty").mkdir()
  with pytest.raises(StudyError, match=r"has no images \(\.png"):
    squentropy_study.predict(images, tmp_path / "empty")
  data = np.random.default_rng(0).random((40, 4, 4, 3))
  np.savez(tmp_path / "a.npz", x=data, y=np.arange(40) % 2)
  settings = _settings(tmp_path / "a.npz", label=None, seeds=1)
  with pytest.MonkeyPatch.context() as patch:
    study.skip_figures(patch)
    squentropy_study.run(settings, tmp_path / "arrays")
  _save(tmp_path / "flat", ["0.png"], (0.1,) * 2)
  with pytest.raises(StudyError, match="not trained on a folder of images"):
    squentropy_study.predict(tmp_path / "arrays", tmp_path / "flat")
