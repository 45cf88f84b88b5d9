# SPDX-License-Identifier: Apache-2.0
"""Compares recalibrators with temperature scaling on data of the replication.

``python -m benchmarks.recalibration data/studies`` reads the studies that
``make replicate`` left in ``data/studies``. It fits every recalibrator on the
validation rows of each network that was trained with cross-entropy, and writes
the scores of the test rows to ``benchmarks/results/recalibration.csv``. It then
prints the table of docs/recalibration.md. Without an argument it prints the
table of the file as it is.
"""

import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pandas as pd
from scipy import stats

from squentropy_jax import calibration
import squentropy_study as study

PATH = pathlib.Path(__file__).parent / "results" / "recalibration.csv"
LOSS = "cross_entropy"
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


def _recalibrated(fit: Any, z: Any, y: Any, where: Any, new: Any) -> Any:
  return calibration.apply(fit(z, y, where=where), new)


# All networks of a data set at once: 3 seeds in each of 4 folds.
_RECALIBRATE = jax.jit(
  jax.vmap(_recalibrated, in_axes=(None, 0, 0, 0, 0)), static_argnums=0
)
# Rows are padded to this number, so that data sets share a program.
_ROWS = 672


def padded(x: np.ndarray) -> np.ndarray:
  """Adds zeros to ``[runs, rows, ...]``."""
  return np.pad(x, [(0, 0), (0, _ROWS - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])


def scores(
  logits: np.ndarray, y: np.ndarray, keep: np.ndarray
) -> tuple[float, float]:
  """NLL with probabilities of at least 1e-6, and Brier score."""
  p = np.asarray(jax.nn.softmax(logits), np.float64)[keep]
  y = y[keep]
  of_label = np.maximum(p[np.arange(len(y)), y], 1e-6)
  brier = np.square(p - np.eye(p.shape[1])[y]).sum(-1).mean()
  return -np.log(of_label).mean(), brier


def of_study(folder: pathlib.Path) -> list[dict[str, object]]:
  """The scores of every recalibrator on one data set: means over its runs."""
  run = study.load(folder).run_results[LOSS]
  # Stopped training, softmax.
  fit_on = (
    run.validation_scores[0, 0],
    run.validation_labels,
    run.validation_keep,
  )
  z, y, keep = map(padded, fit_on)
  new, labels, kept = map(
    padded, (run.test_scores[0, 0], run.test_labels, run.test_keep)
  )
  classes = z.shape[-1]
  rows = []
  for name in ("none", *ANY, *(BINARY if classes == 2 else ())):
    out = new
    if name != "none":
      out = _RECALIBRATE((ANY | BINARY)[name], z, y, keep, new)
    of_runs = [scores(*each) for each in zip(out, labels, kept, strict=True)]
    nll, brier = np.mean(of_runs, axis=0)
    rows.append(
      {
        "data": folder.name,
        "classes": classes,
        "fit_rows": int(fit_on[2][0].sum()),
        "recalibrator": name,
        "nll": nll,
        "brier": brier,
      }
    )
  return rows


def measure(root: pathlib.Path) -> None:
  """Writes the scores of every finished study in a folder."""
  rows = []
  for folder in sorted(root.iterdir()):
    rows += of_study(folder)
    print(folder.name, flush=True)
  pd.DataFrame(rows).to_csv(
    PATH, index=False, float_format="%.6f", lineterminator="\n"
  )


def table(scored: pd.DataFrame) -> str:
  """Win rates against temperature scaling, by the number of classes."""
  lines = [
    "| recalibrator | data sets | NLL: win rate | median change | mean change "
    "| p | Brier: win rate | p |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for is_binary in (False, True):
    chosen = scored[(scored["classes"] == 2) == is_binary]
    if chosen.empty:
      continue
    kind = "two classes" if is_binary else "three classes or more"
    lines.append(f"| **{kind}** | | | | | | | |")
    tables = {
      score: chosen.pivot(index="data", columns="recalibrator", values=score)
      for score in ("nll", "brier")
    }
    for name in ("none", *ANY, *(BINARY if is_binary else ())):
      if name == "temperature":
        continue
      cells = [name, str(len(tables["nll"]))]
      for score, values in tables.items():
        change = (values[name] - values["temperature"]).to_numpy()
        wins = np.mean((change < 0) + (change == 0) / 2)
        cells.append(f"{wins:.0%}")
        if score == "nll":
          cells += [f"{np.median(change):+.3f}", f"{change.mean():+.3f}"]
        p_value = stats.wilcoxon(change).pvalue
        cells.append(f"{p_value:.2g}" if p_value >= 1e-4 else "< 0.0001")
      lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


if __name__ == "__main__":
  if len(sys.argv) > 1:
    measure(pathlib.Path(sys.argv[1]))
  print(table(pd.read_csv(PATH)))
