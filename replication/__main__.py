# SPDX-License-Identifier: Apache-2.0
"""``make replicate``: trains what is missing, then writes tables and figures.

A data set that has rows of all three training lengths in
``docs/replication/results.csv.gz`` is skipped. If only the stopped training is
missing, nothing else is trained. An interrupted data set continues where it
stopped. It starts again if its data or the numerics of the library changed.
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

from replication import ONE_THREAD, page, plan, records, sources
import squentropy_study as study

# A curve is kept at this many points, equally spaced up to the longest length.
_POINTS = 20


def _curves(results: study.Results, name: str) -> pd.DataFrame:
  """Means over runs of what the study measured during training."""
  rows = []
  metrics = ("accuracy", "nll", "ece")
  for method in results.methods:
    epochs = results.curve_epochs(method.loss)
    ends = results.settings.epochs[-1] * np.arange(1, _POINTS + 1) / _POINTS
    # The last evaluation up to each end; none at all before the first one.
    points = np.searchsorted(epochs, ends, side="right") - 1
    means = [results.curve(method, metric).mean(axis=-1) for metric in metrics]
    for point in dict.fromkeys(points[points >= 0]):
      key = (name, *method, epochs[point])
      rows.append((*key, *(mean[point] for mean in means)))
  columns = ["data", "loss", "probability_map", "epoch", *metrics]
  return pd.DataFrame(rows, columns=columns)


def _reason(done: subprocess.CompletedProcess) -> str:
  """The last line of an error, without the note of jax after a traceback."""
  lines = done.stderr.strip().splitlines()
  lines = [x for x in lines if not x.startswith(("---", "For simplicity, JAX"))]
  return lines[-1] if lines else f"exit code {done.returncode}"


def _missing() -> dict[str, set[str]]:
  """Returns the training lengths without results, by data set."""
  missing = {name: set(plan.LENGTHS) for name in sources.NAMES}
  if records.RESULTS.exists():
    rows = records.read(records.RESULTS)[["data", "training_length"]]
    for name, length in rows.drop_duplicates().itertuples(index=False):
      missing[name].discard(length)
  return missing


def _run_study(path: pathlib.Path, out: pathlib.Path, *, fixed: bool) -> None:
  """Runs the study of one data set in a new process."""
  settings = plan.settings(path.stem, fixed=fixed)
  words = shlex.split(settings.command(str(out.absolute())))
  command = [sys.executable, "-m", "squentropy_study", *words[1:]]
  flags = os.environ.get("XLA_FLAGS", "") + ONE_THREAD
  root = str(records.ROOT)
  environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": root}

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
  # The study refuses to resume with other data or other numerics.
  if done.returncode == 2 and study.read_config(out) is not None:
    done = run("--fresh")
  if done.returncode:
    raise RuntimeError(_reason(done))


def _about(
  path: pathlib.Path, out: pathlib.Path, *, fixed: bool
) -> pd.DataFrame:
  """The row of a data set: its size, its digest, and the code that was run.

  The code of the fixed lengths stays as it was if they were not trained again.
  """
  with np.load(path) as arrays:
    x, y = arrays["x"], arrays["y"]
  config = study.read_config(out) or {}
  versions = config["versions"]
  code = "squentropy_jax {squentropy_jax}, numerics {numerics}".format(
    **versions
  )
  before = code
  if not fixed:
    sets = records.read(records.SETS).set_index("data")
    before = sets.loc[path.stem, "code"]
    if sets.loc[path.stem, "data_sha256"] != config["data_sha256"]:
      raise RuntimeError(
        "its data differ from those of the fixed lengths; move results.csv.gz "
        "away to train everything again"
      )
  return pd.DataFrame(
    {
      "data": path.stem,
      "rows": y.size,
      "features": x[0].size,
      "classes": np.unique(y).size,
      "code": before,
      "stopped_code": code,
      "data_sha256": config["data_sha256"],
    },
    index=[0],
  )


def _longest_first(paths: list[pathlib.Path]) -> list[pathlib.Path]:
  """Sorts by training time, so that two processes end at about the same time.

  Images take longest, then data sets with many rows.
  """

  def length(path: pathlib.Path) -> tuple[bool, int]:
    with np.load(path) as arrays:
      return path.stem in plan.IMAGES, arrays["y"].size

  return sorted(paths, key=length, reverse=True)


def main() -> None:
  """Trains on every data set of the plan that has no results yet."""
  parser = argparse.ArgumentParser(prog="python -m replication")
  parser.add_argument(
    "--folder",
    type=pathlib.Path,
    default=records.ROOT / "data",
    help="where downloads and studies are kept; default: data",
  )
  parser.add_argument(
    "--sets",
    nargs="+",
    choices=sources.NAMES,
    default=sources.NAMES,
    metavar="NAME",
    help="train on these data sets only; default: all of the plan",
  )
  parser.add_argument(
    "--processes",
    type=int,
    default=2,
    help="how many data sets are trained at the same time; default: 2",
  )
  arguments = parser.parse_args()
  console = Console(markup=False)
  missing = _missing()
  names = [name for name in arguments.sets if missing[name]]
  console.print(f"{len(names)} of {len(arguments.sets)} data sets to train")
  left = _longest_first(
    [sources.fetch(name, arguments.folder) for name in names]
  )
  appending = threading.Lock()

  def run(path: pathlib.Path) -> None:
    fixed = bool(missing[path.stem] & set(plan.FIXED))
    kind = "studies" if fixed else "stopped"
    out = arguments.folder / kind / path.stem
    _run_study(path, out, fixed=fixed)
    about = _about(path, out, fixed=fixed)
    rows = pd.read_csv(out / "results.csv")[list(records.COLUMNS)]
    with appending:
      records.append(records.SETS, about)
      if fixed:
        curves = _curves(study.load(out), path.stem)
        records.append(records.CURVES, curves)
      # The last one, because a data set with results is skipped next time.
      records.append(
        records.RESULTS,
        rows.assign(data=path.stem),
        keys=["data", "training_length"],
      )

  failed = []
  with futures.ThreadPoolExecutor(arguments.processes) as pool:
    under_way = {pool.submit(run, path): path.stem for path in left}
    try:
      for number, future in enumerate(futures.as_completed(under_way), 1):
        name, error = under_way[future], future.exception()
        text = f"{number}/{len(left)} {name}"
        if error is not None:
          failed.append(name)
          text += f" failed: {error}"
        console.print(text, soft_wrap=True)
    except KeyboardInterrupt:
      pool.shutdown(cancel_futures=True)
      sys.exit("Interrupted. Run make replicate again to continue.")
  if records.RESULTS.exists():
    page.main()
    console.print(f"Results: {records.DOCS / 'tables.md'}")
  if failed:
    sys.exit(
      f"These data sets failed: {', '.join(failed)}. Run make replicate again "
      "to retry them."
    )


if __name__ == "__main__":
  main()
