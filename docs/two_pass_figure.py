# SPDX-License-Identifier: Apache-2.0
"""The figure of docs/two_pass.md; `page_figures` draws it.

Left: the largest error of a softmax. Right: the measured times.
"""

from collections.abc import Callable, Mapping
import csv
import pathlib
from typing import Any

from figures import COLOURS, DASHES
import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax import special

SIZES = (1.0, 10.0, 100.0, 1e3, 1e4)
FUNCTIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
  "jax.nn.softmax": jax.nn.softmax,
  "two_pass_softmax": special.two_pass_softmax,
}
TIMES = {"softmax": "softmax", "logsumexp": "log-sum-exp"}
RESULTS = pathlib.Path(__file__).parents[1] / "benchmarks/results/two_pass.csv"


def largest_error(
  function: Callable[[jax.Array], jax.Array], size: float
) -> float:
  """In ulp, of the normal probabilities of 200 rows of 64 logits."""
  rng = np.random.default_rng(0)
  x = rng.uniform(-size, size, (200, 1)) + rng.uniform(-40, 40, (200, 64))
  x = np.clip(x, -size, size).astype(np.float32)
  exps = np.exp(np.float64(x) - x.max(1, keepdims=True))
  true = exps / exps.sum(1, keepdims=True)
  error = np.abs(np.float64(function(jnp.asarray(x))) - true)
  normal = true >= np.finfo(np.float32).tiny
  return float((error / np.spacing(np.float32(true)))[normal].max())


def draw(panels: Any) -> None:
  """Errors by the size of the logits, and times by the shape."""
  left, right = panels
  for style, (name, function) in enumerate(FUNCTIONS.items()):
    line = {"color": COLOURS[style], "linestyle": DASHES[style], "lw": 1.6}
    errors = [largest_error(function, size) for size in SIZES]
    left.semilogx(SIZES, errors, label=name, marker="o", ms=4, **line)
  left.set_ylim(0.0, 75.0)
  left.set_title("largest error, ulp", fontsize=9)
  left.set_xlabel("largest logit", fontsize=8)
  left.legend(fontsize=7, frameon=False)
  with RESULTS.open(encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  for style, (result, name) in enumerate(TIMES.items()):
    found = [
      row
      for row in rows
      if row["result"] == result and row["function"] == "two-pass"
    ]
    right.plot(
      [float(row["ratio_to_jax_nn"]) for row in found],
      [f"{row['rows']} x {row['classes']}" for row in found],
      "os"[style],
      color=COLOURS[style],
      ms=5,
      label=name,
    )
  right.axvline(1.0, color="0.8", lw=0.8, zorder=0)
  right.set_xlim(0.0, 6.5)
  right.invert_yaxis()
  right.set_title("time of two-pass / jax.nn, two CPU cores", fontsize=9)
  right.set_xlabel("ratio", fontsize=8)
  right.legend(fontsize=7, frameon=False)
