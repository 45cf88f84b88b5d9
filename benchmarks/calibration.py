# SPDX-License-Identifier: Apache-2.0
"""Times calibration metrics and recalibrators against a softmax of the array.

``python -m benchmarks calibration`` prints the time of each as a ratio to
``jax.nn.softmax``, and its temporary memory as a share of the array. The same
table has the metrics of scikit-learn, and of torchmetrics and netcal if they
are installed (the extra ``peers`` of setup.cfg).
"""

from collections.abc import Callable
import functools
import importlib.util
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
import sklearn.metrics

from benchmarks import runner
from squentropy_jax import calibration

SHAPES = {
  "ImageNet validation": (50_000, 1000),
  "CIFAR test": (10_000, 10),
}
REPEATS = 7
BASE = "softmax"
# Peers that need not be installed.
OPTIONAL = ("netcal", "torchmetrics")
Function = Callable[[Any, Any], Any]


def stats_errors(p: jax.Array, y: jax.Array) -> list[jax.Array]:
  """The three errors that share one pass over the rows."""
  stats = calibration.bin_stats(p, y)
  return [
    calibration.expected_calibration_error(stats),
    calibration.maximum_calibration_error(stats),
    calibration.debiased_calibration_error(stats),
  ]


SCALARS: dict[str, Function] = {
  "ECE, MCE, debiased": stats_errors,
  "adaptive": calibration.adaptive_calibration_error,
  "smooth": calibration.smooth_calibration_error,
  "Brier": calibration.brier_score,
  "NLL": calibration.negative_log_likelihood,
  "AURC": calibration.area_under_risk_coverage,
  "excess AURC": calibration.excess_area_under_risk_coverage,
  "AUROC": calibration.confidence_auroc,
  "accuracy": calibration.accuracy,
  "top-5": functools.partial(calibration.top_k_accuracy, k=5),
}
OTHERS: dict[str, Function] = {
  "class-wise": calibration.classwise_calibration_error,
  "Brier decomposition": calibration.brier_decomposition,
  "fit temperature": calibration.fit_temperature,
  "fit histogram": calibration.fit_histogram_binning,
}


def every_scalar(p: jax.Array, y: jax.Array) -> list[Any]:
  """All scalar metrics except the class-wise one, in one program."""
  return [metric(p, y) for metric in SCALARS.values()]


def _on_numpy(f: Function) -> Function:
  return lambda p, y: f(np.asarray(p), np.asarray(y))


def peers(shape: tuple[int, int]) -> dict[str, Function]:
  """The same metrics of the other libraries that are installed."""
  classes = shape[1]

  def auroc(p: np.ndarray, y: np.ndarray) -> float:
    return sklearn.metrics.roc_auc_score(p.argmax(-1) == y, p.max(-1))

  found: dict[str, Function] = {
    "scikit-learn, NLL": lambda p, y: sklearn.metrics.log_loss(
      y, p, labels=range(classes)
    ),
    "scikit-learn, AUROC": auroc,
    "scikit-learn, top-5": lambda p, y: sklearn.metrics.top_k_accuracy_score(
      y, p, k=5, labels=range(classes)
    ),
  }
  if importlib.util.find_spec("netcal"):
    error = importlib.import_module("netcal.metrics").ECE(15)
    found["netcal, ECE"] = error.measure
  if importlib.util.find_spec("torchmetrics"):
    torch = importlib.import_module("torch")
    functional = importlib.import_module(
      "torchmetrics.functional.classification"
    )

    def ece(p: np.ndarray, y: np.ndarray) -> Any:
      return functional.multiclass_calibration_error(
        torch.from_numpy(p), torch.from_numpy(y), num_classes=classes
      )

    found["torchmetrics, ECE"] = ece
  return {name: _on_numpy(f) for name, f in found.items()}


def measure(shape: tuple[int, int]) -> list[dict[str, Any]]:
  """Returns a row of the table for each function."""
  key_z, key_y = jax.random.split(jax.random.key(0))
  p = jax.nn.softmax(2 * jax.random.normal(key_z, shape), axis=-1)
  y = jax.random.categorical(key_y, jnp.log(p)).astype(jnp.int32)
  functions = {
    BASE: lambda p, y: jax.nn.softmax(p, axis=-1),
    "every scalar metric": every_scalar,
  }
  compiled = runner.compile_all(functions | SCALARS | OTHERS, (p, y))
  seconds = runner.interleaved(compiled | peers(shape), (p, y), REPEATS)
  rows = []
  for name, values in seconds.items():
    memory = ""
    if name in compiled:
      memory = f"{runner.temporary_bytes(compiled[name]) / p.nbytes:.4f}"
    rows.append(
      {
        "rows": shape[0],
        "classes": shape[1],
        "function": name,
        "milliseconds": f"{1e3 * statistics.median(values):.3f}",
        "ratio_to_softmax": f"{runner.ratio(values, seconds[BASE]):.3f}",
        "temporary_share_of_array": memory,
      }
    )
  return rows


def main() -> None:
  """Measures every shape, prints a table for each and appends to the CSV."""
  console = Console(width=100)
  for name in OPTIONAL:
    if not importlib.util.find_spec(name):
      console.print(f"{name} is not installed: its ECE is left out.")
  columns = {
    "function": "function",
    "milliseconds": "ms",
    "ratio_to_softmax": "ratio to softmax",
    "temporary_share_of_array": "temporary/array",
  }
  for title, shape in SHAPES.items():
    title = f"{title}: {shape[0]} x {shape[1]}, float32"
    runner.report("calibration", title, measure(shape), columns)
