# SPDX-License-Identifier: Apache-2.0
"""Times a step of the factored output layer against SGD on the whole kernel.

``python -m benchmarks factored`` prints the time and the memory of a step for
several numbers of classes. The state of both is donated, so that it is updated
in place.
"""

import statistics
import time
from typing import Any

import jax

from benchmarks import runner
from squentropy_jax import heads, losses

WIDTH, ROWS = 128, 128
CLASSES = (10_000, 100_000, 1_000_000)
REPEATS = 7
RATE = 1e-3


def dense_step(kernel: jax.Array, h: jax.Array, ids: jax.Array) -> Any:
  """One step of SGD on the kernel, and the gradient of the features."""

  def total(kernel: jax.Array, h: jax.Array) -> jax.Array:
    return losses.zscore(h @ kernel, ids[:, 0]).sum()

  by_kernel, by_h = jax.grad(total, (0, 1))(kernel, h)
  return kernel - RATE * by_kernel, by_h


def factored_step(
  state: heads.FactoredOutput, h: jax.Array, ids: jax.Array
) -> Any:
  """The same with the factored layer."""
  found = heads.factored_forward(state, h, ids)
  num_classes = state.rows.shape[0]

  def total(outputs: jax.Array, total: jax.Array, sq: jax.Array) -> jax.Array:
    return losses.zscore.spherical(outputs[:, 0], total, sq, num_classes).sum()

  by = jax.grad(total, (0, 1, 2))(*found)
  by_h, state = heads.factored_update(state, h, ids, *by, RATE)
  return state, by_h


def measure(classes: int) -> list[dict[str, Any]]:
  """Returns a row of the table for each kind of step."""
  keys = jax.random.split(jax.random.key(0), 3)
  kernel = jax.random.normal(keys[0], (WIDTH, classes)) / WIDTH**0.5
  h = jax.random.normal(keys[1], (ROWS, WIDTH))
  ids = jax.random.randint(keys[2], (ROWS, 1), 0, classes)
  states: dict[str, Any] = {
    "factored": heads.factored_init(kernel),
    "dense": kernel,
  }
  steps = {"factored": factored_step, "dense": dense_step}
  compiled = {
    name: jax.jit(step, donate_argnums=0).lower(states[name], h, ids).compile()
    for name, step in steps.items()
  }
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for repeat in range(REPEATS + 1):
    for name, step in compiled.items():
      start = time.perf_counter()
      states[name], by_h = jax.block_until_ready(step(states[name], h, ids))
      if repeat:
        seconds[name].append(time.perf_counter() - start)
      del by_h
  base = statistics.median(seconds["dense"])
  return [
    {
      "classes": classes,
      "width": WIDTH,
      "rows": ROWS,
      "step": name,
      "milliseconds": f"{1e3 * statistics.median(seconds[name]):.3f}",
      "ratio_to_dense": f"{statistics.median(seconds[name]) / base:.4f}",
      "temporary_mib": (
        f"{runner.temporary_bytes(compiled[name]) / 2**20:.2f}"
      ),
    }
    for name in steps
  ]


def main() -> None:
  """Measures every number of classes, prints tables and appends to the CSV."""
  columns = {
    "classes": "classes",
    "step": "step",
    "milliseconds": "ms",
    "ratio_to_dense": "ratio to dense",
    "temporary_mib": "temporary MiB",
  }
  title = f"A step of {ROWS} rows of width {WIDTH}, float32"
  for classes in CLASSES:
    runner.report("factored", title, measure(classes), columns)
