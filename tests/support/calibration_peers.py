# SPDX-License-Identifier: Apache-2.0
"""Computes the values of other libraries and writes a table of them.

``python tests/support/calibration_peers.py`` writes
tests/data/calibration_peers.npz, which `calibration_agreement_test` reads. It
needs an environment with the extra ``peers`` of setup.cfg. Inputs are float32
numbers. All libraries compute in float64, except those that use torch.
"""

from collections.abc import Callable
import importlib
import importlib.metadata
import pathlib
from typing import Any

import numpy as np

TABLE = pathlib.Path(__file__).parents[1] / "data" / "calibration_peers.npz"
NUM_BINS = {"random": 15, "ties": 8}
PENALTY, OFF_DIAGONAL, INTERCEPT = 0.3, 0.5, 1e-2


def peer(name: str) -> Any:
  """Imports a library that only this generator needs."""
  return importlib.import_module(name)


def has_ties(p: np.ndarray) -> bool:
  return len(np.unique(p.max(-1))) < len(p)


def inputs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Logits or probabilities, float32, and labels of each data set."""
  rng = np.random.default_rng(11)
  data = {}
  for name, classes in (("random", 5), ("two", 2)):
    z = (rng.normal(size=(300, classes)) * 1.5).astype(np.float32)
    y = (0.6 * z + rng.gumbel(size=z.shape)).argmax(-1)
    data[name] = z, y
  # Sixteenths: on the edges of 8 bins, full of ties, exact in every type.
  first = rng.integers(5, 16, 300) / 16
  rest = rng.dirichlet(np.ones(3), 300)
  rest = np.floor(rest * (1 - first)[:, None] * 16) / 16
  rest[:, 0] += 1 - first - rest.sum(-1)
  p = np.concatenate([first[:, None], rest], -1).astype(np.float32)
  y = np.array([rng.choice(4, p=q) for q in p * 0.5 + 0.125])
  data["ties"] = p, y
  return data


def softmax(z: np.ndarray) -> np.ndarray:
  p = np.exp(z - z.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def torchmetrics_values(p: np.ndarray, y: np.ndarray, m: int) -> dict:
  torch = peer("torch")
  functional = peer("torchmetrics.functional.classification")
  tied = has_ties(p)
  p, y = torch.tensor(p), torch.tensor(y)
  classes = p.shape[-1]
  values = {
    name: functional.multiclass_calibration_error(
      p, y, num_classes=classes, n_bins=m, norm=norm
    )
    for name, norm in (("ece", "l1"), ("ece2", "l2"), ("mce", "max"))
  }
  for name, k in (("accuracy", 1), ("top2", 2)):
    # It breaks ties arbitrarily.
    if k == 1 or not tied:
      values[name] = functional.multiclass_accuracy(
        p, y, num_classes=classes, average="micro", top_k=k
      )
  return values


def netcal_values(p: np.ndarray, y: np.ndarray, m: int) -> dict:
  metrics = peer("netcal.metrics")
  return {
    "ece": metrics.ECE(m).measure(p, y),
    "mce": metrics.MCE(m).measure(p, y),
    "mmce": np.square(metrics.MMCE().measure(p, y)),
  }


def sklearn_values(p: np.ndarray, y: np.ndarray, m: int) -> dict:
  del m
  metrics = peer("sklearn.metrics")
  hit, confidence = p.argmax(-1) == y, p.max(-1)
  values = {
    "brier": metrics.brier_score_loss(
      np.eye(p.shape[-1])[y], p, scale_by_half=False
    ),
    "auroc": metrics.roc_auc_score(hit, confidence),
  }
  # Logarithms and a softmax, as a recalibrator takes them, would break ties.
  if not has_ties(p):
    model = peer("sklearn.isotonic").IsotonicRegression()
    values["isotonic"] = model.fit_transform(confidence, hit)
  return values


def torch_uncertainty_values(p: np.ndarray, y: np.ndarray, m: int) -> dict:
  torch = peer("torch")
  metrics = peer("torch_uncertainty.metrics.classification")
  classes, tied = p.shape[-1], has_ties(p)
  p, y = torch.tensor(p), torch.tensor(y)

  def value(metric: Any) -> Any:
    metric.update(p, y)
    return metric.compute()

  multiclass = {"task": "multiclass", "num_classes": classes}
  values = {
    "ece": value(metrics.CalibrationError(**multiclass, num_bins=m)),
    "brier": value(metrics.BrierScore(num_classes=classes)),
    "classwise": value(
      metrics.ClasswiseCalibrationError(num_classes=classes, num_bins=m)
    ),
  }
  if not tied:
    # It ranks tied rows in any order.
    values["adaptive"] = value(
      metrics.AdaptiveCalibrationError(**multiclass, num_bins=m)
    )
    values["aurc_by_trapezoids"] = value(metrics.AURC())
  return values


def relplot_values(p: np.ndarray, y: np.ndarray, m: int) -> dict:
  del m
  hit = (p.argmax(-1) == y).astype(float)
  return {"smooth": peer("relplot").smECE(p.max(-1), hit, eps=1e-6)}


def _root(
  gradient: Callable[[np.ndarray], np.ndarray], start: np.ndarray
) -> Any:
  """Where the gradient of a convex objective is 0, to float64."""
  found = peer("scipy.optimize").root(gradient, start, tol=1e-15)
  assert np.abs(found.fun).max() < 1e-12
  return found.x


def scipy_values(z: np.ndarray, y: np.ndarray) -> dict:
  """Recalibrated probabilities, from the gradients of the objectives."""
  n, c = z.shape
  hit = np.eye(c)[y]

  def temperature(x: np.ndarray) -> np.ndarray:
    return ((softmax(x[0] * z) - hit) * z).sum().reshape(1) / n

  beta = _root(temperature, np.ones(1))
  values = {"temperature": softmax(beta * z)}

  scale = np.sort(np.diff(np.sort(z)[:, -2:]), axis=None)[(n - 1) // 2]

  def vector(x: np.ndarray) -> np.ndarray:
    w, b = x.reshape(2, c)
    error = (softmax(w * z + b) - hit) / n
    penalty = 2 * PENALTY / (n * c)
    weight = (error * z).sum(0) + penalty * scale**2 * (w - beta)
    return np.append(weight, error.sum(0) + penalty * b)

  x = _root(vector, np.append(beta * np.ones(c), np.zeros(c)))
  values["vector"] = softmax(x[:c] * z + x[c:])

  gamma = max(float(beta[0]), 1 / scale)
  logp = np.log(softmax(gamma * z))

  def matrix(x: np.ndarray) -> np.ndarray:
    w, b = x[: c * c].reshape(c, c), x[c * c :]
    error = (softmax(logp @ w.T + b) - hit) / n
    off = 2 * OFF_DIAGONAL * c * (c - 1) / n * w * (1 - np.eye(c))
    weight = error.T @ logp + off
    return np.append(weight, error.sum(0) + 2 * INTERCEPT * c / n * b)

  x = _root(matrix, np.append(beta / gamma * np.eye(c), np.zeros(c)))
  w, b = x[: c * c].reshape(c, c), x[c * c :]
  values["matrix"] = softmax(logp @ w.T + b)
  return values


def logistic_values(z: np.ndarray, y: np.ndarray) -> dict:
  """Beta calibration: logistic regression on two logarithms."""
  logp = np.log(softmax(z))
  features = np.stack([logp[:, 1], -logp[:, 0]], -1)
  model = peer("sklearn.linear_model").LogisticRegression(
    C=np.inf, solver="newton-cholesky", tol=1e-14, max_iter=1000
  )
  model.fit(features, y)
  assert np.all(model.coef_ > 0)
  return {"beta": model.predict_proba(features)}


def main() -> None:
  """Writes inputs and values as ``library/what/data``."""
  arrays = {}
  for data, (x, y) in inputs().items():
    arrays[f"inputs/{data}"], arrays[f"labels/{data}"] = x, y
    p = x if data == "ties" else softmax(x.astype(np.float64))
    p = p.astype(np.float32)
    arrays[f"probabilities/{data}"] = p
    z = x.astype(np.float64)
    if data == "two":
      found = {"scikit-learn": logistic_values(z, y)}
    else:
      wide, m = p.astype(np.float64), NUM_BINS[data]
      found = {
        "torchmetrics": torchmetrics_values(wide, y, m),
        "netcal": netcal_values(wide, y, m),
        "scikit-learn": sklearn_values(wide, y, m),
        "torch-uncertainty": torch_uncertainty_values(wide, y, m),
        "relplot": relplot_values(wide, y, m),
      }
    if data == "random":
      found["scipy"] = scipy_values(z, y)
    for library, values in found.items():
      for name, value in values.items():
        arrays[f"{library}/{name}/{data}"] = np.asarray(value, np.float64)
  for library in ("torchmetrics", "netcal", "scikit-learn", "scipy"):
    print(library, importlib.metadata.version(library))
  np.savez_compressed(TABLE, allow_pickle=False, **arrays)


if __name__ == "__main__":
  main()
