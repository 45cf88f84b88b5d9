# SPDX-License-Identifier: Apache-2.0
"""One way to time things: interleaved repeats, medians, compiled memory."""

from collections.abc import Callable, Mapping, Sequence
import csv
import datetime
import importlib.metadata
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

import squentropy_jax

RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = ("jax", "optax")


def compile_all(
  functions: Mapping[str, Callable[..., Any]], arguments: Sequence[Any]
) -> dict[str, Any]:
  """Compiles each function for the arguments, once."""
  return {
    name: jax.jit(function).lower(*arguments).compile()
    for name, function in functions.items()
  }


def temporary_bytes(compiled: Any) -> int:
  """Temporary memory, by the compiler's own account."""
  return compiled.memory_analysis().temp_size_in_bytes


def interleaved(
  compiled: Mapping[str, Callable[..., Any]],
  arguments: Sequence[Any],
  repeats: int,
) -> dict[str, np.ndarray]:
  """Seconds of every repeat; the functions take turns, so noise is shared."""
  for function in compiled.values():
    jax.block_until_ready(function(*arguments))
  seconds: dict[str, list[float]] = {name: [] for name in compiled}
  for _ in range(repeats):
    for name, function in compiled.items():
      start = time.perf_counter()
      jax.block_until_ready(function(*arguments))
      seconds[name].append(time.perf_counter() - start)
  return {name: np.array(values) for name, values in seconds.items()}


def ratio(seconds: np.ndarray, base: np.ndarray) -> float:
  """Median over the repeats of the ratio within a repeat."""
  return float(np.median(seconds / base))


def environment() -> dict[str, str]:
  """What a row must say to be compared with another."""
  device = jax.devices()[0]
  versions = {
    f"{name}_version": importlib.metadata.version(name) for name in PACKAGES
  }
  versions["squentropy_jax_version"] = squentropy_jax.__version__
  return {
    "date": datetime.date.today().isoformat(),
    "platform": device.platform,
    "device": device.device_kind,
    "cores": str(os.cpu_count()),
  } | versions


def append(name: str, rows: Sequence[Mapping[str, Any]]) -> pathlib.Path:
  """Adds rows, with the environment, to results/NAME.csv."""
  RESULTS.mkdir(exist_ok=True)
  path = RESULTS / f"{name}.csv"
  full = [environment() | dict(row) for row in rows]
  fresh = not path.exists()
  with path.open("a", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, list(full[0]), lineterminator="\n")
    if fresh:
      writer.writeheader()
    writer.writerows(full)
  return path
