# SPDX-License-Identifier: Apache-2.0
"""``make replicate``: runs what is missing of the plan, then writes the page.

A data set whose rows stand in ``docs/replication/results.csv`` is skipped; one
that was interrupted goes on where it was.
"""

import argparse
from concurrent import futures
import os
import pathlib
import subprocess
import sys
import threading

import pandas as pd
from rich.console import Console

from replication import page, plan, sources
from squentropy_jax.study import _evaluate, _losses, _store

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs" / "replication"
RESULTS, CURVES = DOCS / "results.csv", DOCS / "curves.csv"
# Points of a curve that are kept; the study reads about sixty.
_EVERY = 3


def _curves(
  out: pathlib.Path, name: str, losses: tuple[str, ...]
) -> pd.DataFrame:
  """Means over the runs of what the study read while it trained."""
  rows = []
  for spec in losses:
    cell = _store.read_cell(out, spec)
    means = cell.curves.mean(axis=-1)
    for index, readout in enumerate(_losses.readouts(_losses.parse(spec))):
      for point in range(_EVERY - 1, len(cell.curve_epochs), _EVERY):
        values = dict(zip(_evaluate.METRICS, means[point, index], strict=True))
        key = (name, spec, readout, cell.curve_epochs[point])
        rows.append((*key, values["accuracy"], values["nll"], values["ece"]))
  columns = ["data", "loss", "readout", "epoch", "accuracy", "nll", "ece"]
  return pd.DataFrame(rows, columns=columns)


def _append(path: pathlib.Path, rows: pd.DataFrame) -> None:
  """Adds rows, so that the file holds all of them or is left as it was."""
  if path.exists():
    rows = pd.concat([pd.read_csv(path), rows], ignore_index=True)
  text = rows.to_csv(index=False, float_format="%.6g")
  _store.write(path, text.encode())


def _study(path: pathlib.Path, out: pathlib.Path) -> None:
  """Runs the study of one data set in a process of its own."""
  words = plan.settings(path.stem).command(str(out.absolute())).split()
  module = [sys.executable, "-m", "squentropy_jax.study"]
  # Two processes share two cores better than two threads of each would.
  flags = os.environ.get("XLA_FLAGS", "")
  flags += " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
  environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
  subprocess.run(
    [*module, *words[1:], "--quiet"],
    cwd=path.parent,
    env=environment,
    check=True,
  )


def main() -> None:
  """Runs every set of the plan that has no results yet."""
  parser = argparse.ArgumentParser(prog="python -m replication")
  parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "data")
  parser.add_argument("--sets", nargs="+", help="only these; default: all")
  parser.add_argument("--processes", type=int, default=2)
  arguments = parser.parse_args()
  console = Console()
  paths = sources.fetch(arguments.folder)
  if arguments.sets:
    paths = [path for path in paths if path.stem in arguments.sets]
  done = set(pd.read_csv(RESULTS)["data"]) if RESULTS.exists() else set()
  left = [path for path in paths if path.stem not in done]
  console.print(f"{len(left)} of {len(paths)} data sets are left")
  appending = threading.Lock()

  def run(path: pathlib.Path) -> str:
    out = arguments.folder / "studies" / path.stem
    _study(path, out)
    settings = plan.settings(path.stem)
    rows = pd.read_csv(out / "results.csv").assign(data=path.stem)
    curves = _curves(out, path.stem, settings.losses)
    with appending:
      _append(CURVES, curves)
      # Last: a set counts as finished once its results are here.
      _append(RESULTS, rows)
    return path.stem

  with futures.ThreadPoolExecutor(arguments.processes) as pool:
    try:
      for number, name in enumerate(pool.map(run, left), 1):
        console.print(f"{number}/{len(left)} {name}")
    except (KeyboardInterrupt, subprocess.CalledProcessError) as error:
      pool.shutdown(cancel_futures=True)
      sys.exit(f"stopped ({error or 'interrupted'}); make replicate goes on")
  page.write(DOCS, pd.read_csv(RESULTS), pd.read_csv(CURVES))
  console.print(f"Results: {DOCS / 'README.md'}")


if __name__ == "__main__":
  main()
