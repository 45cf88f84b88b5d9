# SPDX-License-Identifier: Apache-2.0
"""``make replicate``: runs what is missing of the plan, then writes the page.

A data set whose rows stand in ``docs/replication/results.csv`` is skipped; one
that was interrupted goes on where it was, or starts afresh if the code or its
data have changed since.
"""

import argparse
from concurrent import futures
import os
import pathlib
import shlex
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
from rich.console import Console

from replication import page, plan, sources
from squentropy_study import _evaluate, _losses, _store

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs" / "replication"
RESULTS, CURVES = DOCS / "results.csv", DOCS / "curves.csv"
SETS = DOCS / "sets.csv"
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


def _read(path: pathlib.Path) -> pd.DataFrame:
  """One of the three tables; a digest of digits alone stays a text."""
  return pd.read_csv(path, dtype={"source": str, "data_sha256": str})


def _append(path: pathlib.Path, rows: pd.DataFrame) -> None:
  """Puts rows in the place of those of their data sets.

  The file holds all of them afterwards, or is left as it was.
  """
  if path.exists():
    before = _read(path)
    others = before[~before["data"].isin(rows["data"])]
    rows = pd.concat([others, rows], ignore_index=True)
  # Nine digits give a float32 back exactly.
  text = rows.to_csv(index=False, float_format="%.9g")
  _store.write(path, text.encode())


def _study(path: pathlib.Path, out: pathlib.Path) -> None:
  """Runs the study of one data set in a process of its own."""
  words = shlex.split(plan.settings(path.stem).command(str(out.absolute())))
  command = [sys.executable, "-m", "squentropy_study", *words[1:]]
  # Two processes share two cores better than two threads of each would.
  flags = os.environ.get("XLA_FLAGS", "")
  flags += " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
  environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}

  def run(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
      [*command, "--quiet", *options],
      cwd=path.parent,
      env=environment,
      check=False,
      stderr=subprocess.PIPE,
      text=True,
    )

  done = run()
  # Refused: what is there is of other code or other data.
  if done.returncode == 2 and _store.read_config(out) is not None:
    done = run("--fresh")
  if done.returncode:
    lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
    raise RuntimeError(lines[-1])


def _set(path: pathlib.Path, out: pathlib.Path) -> pd.DataFrame:
  """A row on a data set: its size, and what code and which data were run."""
  with np.load(path) as arrays:
    x, y = arrays["x"], arrays["y"]
  config = _store.read_config(out) or {}
  return pd.DataFrame(
    {
      "data": path.stem,
      "rows": y.size,
      "features": x[0].size,
      "classes": np.unique(y).size,
      "source": config["versions"]["source"],
      "data_sha256": config["data_sha256"],
    },
    index=[0],
  )


def _longest_first(paths: list[pathlib.Path]) -> list[pathlib.Path]:
  """So that two processes end at about the same time; images take longest."""

  def length(path: pathlib.Path) -> tuple[bool, int]:
    with np.load(path) as arrays:
      return path.stem in plan.IMAGES, arrays["y"].size

  return sorted(paths, key=length, reverse=True)


def main() -> None:
  """Runs every set of the plan that has no results yet."""
  parser = argparse.ArgumentParser(prog="python -m replication")
  parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "data")
  parser.add_argument(
    "--sets",
    nargs="+",
    choices=sources.NAMES,
    default=sources.NAMES,
    metavar="NAME",
    help="only these; default: all of the plan",
  )
  parser.add_argument("--processes", type=int, default=2)
  arguments = parser.parse_args()
  console = Console(markup=False)
  done = set(_read(RESULTS)["data"]) if RESULTS.exists() else set()
  names = [name for name in arguments.sets if name not in done]
  console.print(f"{len(names)} of {len(arguments.sets)} data sets are left")
  left = _longest_first(
    [sources.fetch(name, arguments.folder) for name in names]
  )
  appending = threading.Lock()

  def run(path: pathlib.Path) -> None:
    out = arguments.folder / "studies" / path.stem
    _study(path, out)
    settings = plan.settings(path.stem)
    about = _set(path, out)
    curves = _curves(out, path.stem, settings.losses)
    rows = pd.read_csv(out / "results.csv").assign(data=path.stem)
    with appending:
      _append(SETS, about)
      _append(CURVES, curves)
      # Last: a set counts as finished once its results are here.
      _append(RESULTS, rows)

  failed = []
  with futures.ThreadPoolExecutor(arguments.processes) as pool:
    under_way = {pool.submit(run, path): path.stem for path in left}
    try:
      for number, future in enumerate(futures.as_completed(under_way), 1):
        name, error = under_way[future], future.exception()
        said = f"{number}/{len(left)} {name}"
        if error is not None:
          failed.append(name)
          said += f" failed: {error}"
        console.print(said, soft_wrap=True)
    except KeyboardInterrupt:
      pool.shutdown(cancel_futures=True)
      sys.exit("stopped; make replicate goes on")
  if RESULTS.exists():
    page.write(DOCS, *map(_read, (RESULTS, CURVES, SETS)))
    console.print(f"Results: {DOCS / 'tables.md'}")
  if failed:
    sys.exit(f"failed: {', '.join(failed)}; make replicate tries them again")


if __name__ == "__main__":
  main()
