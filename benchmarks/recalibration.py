# SPDX-License-Identifier: Apache-2.0
"""Compares recalibrators with temperature scaling on held-out folds.

``python -m benchmarks.recalibration`` trains logistic regression and a network
of scikit-learn on the data sets that it ships, fits every recalibrator on rows
that were not used for training, and writes the scores of further rows to
``benchmarks/results/recalibration.csv``. It then prints the table of
docs/recalibration.md. ``--table`` prints the table of the file as it is.
"""

import csv
import functools
import pathlib
import statistics
import sys
import warnings

import jax
import numpy as np
from sklearn import (
  datasets,
  linear_model,
  model_selection,
  neural_network,
  preprocessing,
)

from squentropy_jax import calibration

PATH = pathlib.Path(__file__).parent / "results" / "recalibration.csv"
FOLDS, REPEATS = 5, 2
# The rows of the largest fit. Smaller ones are padded: few programs compile.
SIZE = 480
BINARY = {
  "beta": calibration.fit_beta_calibration,
  "quadratic": calibration.fit_quadratic_scaling,
  "spline": calibration.fit_spline_scaling,
}
ANY = {
  "temperature": calibration.fit_temperature,
  "ensemble temperature": calibration.fit_ensemble_temperature,
  "vector": calibration.fit_vector_scaling,
  "matrix": calibration.fit_matrix_scaling,
  "structured vector": calibration.fit_structured_vector_scaling,
  "structured matrix": calibration.fit_structured_matrix_scaling,
  "histogram binning": calibration.fit_histogram_binning,
  "isotonic regression": calibration.fit_isotonic_regression,
}
FITS = {name: jax.jit(fit) for name, fit in (ANY | BINARY).items()}
FIELDS = ("data", "model", "run", "recalibrator", "nll", "brier", "accuracy")


def data_sets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Features and labels; some sets also with two classes made of several."""
  iris, wine, digits, cancer = (
    load(return_X_y=True)
    for load in (
      datasets.load_iris,
      datasets.load_wine,
      datasets.load_digits,
      datasets.load_breast_cancer,
    )
  )
  return {
    "iris": iris,
    "wine": wine,
    "digits": digits,
    "breast cancer": cancer,
    "iris, versicolor or not": (iris[0], iris[1] == 1),
    "digits, odd or even": (digits[0], digits[1] % 2),
    "digits, above 4 or not": (digits[0], digits[1] > 4),
  }


MODELS = {
  "logistic regression": functools.partial(
    linear_model.LogisticRegression, C=10.0, max_iter=2000
  ),
  "network": functools.partial(
    neural_network.MLPClassifier, (64,), alpha=1e-5, max_iter=150
  ),
}


def padded(z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
  """Logits, labels and ``where`` of a fit, in a fixed shape."""
  more = SIZE - len(y)
  return (
    np.pad(z, ((0, more), (0, 0))),
    np.pad(y, (0, more)),
    np.arange(SIZE) < len(y),
  )


def scores(logits: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
  """NLL with probabilities of at least 1e-6, Brier score and accuracy."""
  p = np.asarray(jax.nn.softmax(logits), np.float64)
  of_label = np.maximum(p[np.arange(len(y)), y], 1e-6)
  brier = np.square(p - np.eye(p.shape[1])[y]).sum(-1).mean()
  return -np.log(of_label).mean(), brier, np.mean(p.argmax(-1) == y)


def rows_of_run(
  x: np.ndarray, y: np.ndarray, model: str, train: np.ndarray, test: np.ndarray
) -> list[tuple[str, float, float, float]]:
  """The scores of every recalibrator on the test rows of one fold."""
  train, held_out = model_selection.train_test_split(
    train, test_size=1 / 3, stratify=y[train], random_state=0
  )
  scaler = preprocessing.StandardScaler().fit(x[train])
  keywords = {"random_state": 0} if model == "network" else {}
  classifier = MODELS[model](**keywords)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    classifier.fit(scaler.transform(x[train]), y[train])

  def logits(rows: np.ndarray) -> np.ndarray:
    p = classifier.predict_log_proba(scaler.transform(x[rows]))
    return np.maximum(p, -1e4).astype(np.float32)

  z, new = logits(held_out), logits(test)
  out = [("none", *scores(new, y[test]))]
  for name in ANY | (BINARY if z.shape[1] == 2 else {}):
    zs, ys, where = padded(z, y[held_out])
    params = FITS[name](zs, ys, where=where)
    out.append((name, *scores(calibration.apply(params, new), y[test])))
  return out


def measure() -> None:
  """Writes the scores of every run."""
  with PATH.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(FIELDS)
    for data, (x, y) in data_sets().items():
      folds = model_selection.RepeatedStratifiedKFold(
        n_splits=FOLDS, n_repeats=REPEATS, random_state=0
      )
      for run, (train, test) in enumerate(folds.split(x, y)):
        for model in MODELS:
          rows = rows_of_run(x, np.asarray(y, np.int32), model, train, test)
          for name, *values in rows:
            numbers = [f"{value:.5f}" for value in values]
            writer.writerow([data, model, run, name, *numbers])
      file.flush()
      print(data)


def table() -> str:
  """Win rates against temperature scaling, by the number of classes."""
  with PATH.open(encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  binary = {row["data"] for row in rows if row["recalibrator"] == "beta"}
  lines = [
    "| recalibrator | runs | NLL: win rate | median change | mean change "
    "| Brier: win rate |",
    "|---|---|---|---|---|---|",
  ]
  for is_binary in (False, True):
    kind = "two classes" if is_binary else "3 or 10 classes"
    lines.append(f"| **{kind}** | | | | | |")
    runs: dict[tuple, dict[str, dict]] = {}
    for row in rows:
      if (row["data"] in binary) == is_binary:
        key = row["data"], row["model"], row["run"]
        runs.setdefault(key, {})[row["recalibrator"]] = row
    for name in ("none", *ANY, *(BINARY if is_binary else ())):
      if name == "temperature":
        continue
      wins, changes = {"nll": 0.0, "brier": 0.0}, []
      for run in runs.values():
        for score in wins:
          gap = float(run[name][score]) - float(run["temperature"][score])
          wins[score] += (gap < 0) + (gap == 0) / 2
          if score == "nll":
            changes.append(gap)
      shares = [f"{wins[score] / len(runs):.0%}" for score in wins]
      middle = f"{statistics.median(changes):+.3f}"
      mean = f"{statistics.mean(changes):+.3f}"
      lines.append(
        f"| {name} | {len(runs)} | {shares[0]} | {middle} | {mean} "
        f"| {shares[1]} |"
      )
  return "\n".join(lines)


if __name__ == "__main__":
  if "--table" not in sys.argv:
    measure()
  print(table())
