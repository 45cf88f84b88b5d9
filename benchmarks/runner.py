# SPDX-License-Identifier: Apache-2.0
"""One way to time things: interleaved repeats, medians, compiled memory."""

from collections.abc import Callable, Mapping, Sequence
import csv
import datetime
import importlib.metadata
import os
import pathlib
import re
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

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


def report(
  name: str,
  title: str,
  rows: Sequence[Mapping[str, Any]],
  columns: Mapping[str, str],
) -> None:
  """Adds rows to results/NAME.csv and prints them as a table.

  ``columns`` has the name in the CSV of each column that is printed, and its
  heading. Shares are printed in percent. Call it for each shape: an interrupted
  run keeps what it has measured.
  """
  table = Table(title=title)
  for column, heading in columns.items():
    side = "right" if _is_number(rows, column) else "left"
    table.add_column(heading, justify=side)
  for row in rows:
    table.add_row(*(_shown(column, row[column]) for column in columns))
  console = Console(width=140)
  console.print(table)
  console.print(f"Added to {append(name, rows)}")


def _is_number(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
  """Whether a column has numbers, of which some may be missing."""
  return all(
    re.fullmatch(r"[-+.\de]*", str(row[column])) is not None for row in rows
  )


def _shown(column: str, value: Any) -> str:
  is_share = column.startswith("temporary_share") and value != ""
  return f"{100 * float(value):.1f} %" if is_share else str(value)
