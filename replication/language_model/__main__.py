# SPDX-License-Identifier: Apache-2.0
"""``make replicate-lm``: trains missing runs, then writes tables and figures.

Each finished run is a row of ``docs/language_model/results.csv.gz``, and is not
trained again. A run that is interrupted starts again. No further run
starts once all runs together have used the processor time of the plan.
"""

import argparse
from concurrent import futures
import multiprocessing
import os
import pathlib
import sys

import pandas as pd
from rich.console import Console

from replication import ONE_THREAD, records
from replication.language_model import glosses, grid, grid_page, one_run


def _pool(processes: int) -> futures.Executor:
  os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + ONE_THREAD
  context = multiprocessing.get_context("spawn")
  return futures.ProcessPoolExecutor(processes, mp_context=context)


def _done() -> tuple[set[grid.Run], float]:
  """Returns the finished runs, and the seconds that they took."""
  if not grid_page.RESULTS.exists():
    return set(), 0.0
  rows = grid_page.read(grid_page.RESULTS)
  keys = rows[list(grid.Run._fields)].itertuples(index=False, name=None)
  return {grid.Run(*key) for key in keys}, float(rows["cpu_seconds"].sum())


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog="python -m replication.language_model")
  parser.add_argument(
    "--folder",
    type=pathlib.Path,
    default=records.ROOT / "data",
    help="where the text is kept; default: data",
  )
  parser.add_argument(
    "--processes",
    type=int,
    default=2,
    help="how many models are trained at the same time; default: 2",
  )
  parser.add_argument(
    "--runs",
    type=int,
    default=len(grid.RUNS),
    help="stop after this many runs; default: no limit",
  )
  return parser.parse_args()


def _train(
  left: list[grid.Run], seconds: float, arguments: argparse.Namespace
) -> list[str]:
  """Trains runs until the time of the plan is over; returns the failures."""
  console = Console(markup=False)
  paths = {
    vocab: glosses.prepare(arguments.folder, vocab)
    for vocab in dict.fromkeys(run.vocab for run in left)
  }
  budget = grid.HOURS * 3600
  queue, failed, number = iter(left), [], 0
  under_way: dict[futures.Future, grid.Run] = {}
  with _pool(arguments.processes) as pool:
    try:
      while True:
        while len(under_way) < arguments.processes and seconds < budget:
          run = next(queue, None)
          if run is None:
            break
          future = pool.submit(one_run.train, run, grid.PLAN, paths[run.vocab])
          under_way[future] = run
        if not under_way:
          break
        done, _ = futures.wait(under_way, return_when=futures.FIRST_COMPLETED)
        for future in done:
          run, number = under_way.pop(future), number + 1
          text = f"{number}/{len(left)} {run.loss} {run.learning_rate:g} "
          text += f"seed {run.seed}, {run.vocab} classes: "
          if (error := future.exception()) is not None:
            failed.append(f"{run.loss} {run.learning_rate:g} {run.seed}")
            text += f"failed: {error}"
          else:
            row = future.result()
            seconds += row["cpu_seconds"]
            records.append(
              grid_page.RESULTS, pd.DataFrame([row]), keys=grid.Run._fields
            )
            text += f"NLL {row['nll']:.4f}, {row['cpu_seconds']:.0f} s"
          console.print(text, soft_wrap=True)
    except futures.BrokenExecutor as error:
      sys.exit(
        f"A training process was stopped: {error} Run make replicate-lm again "
        "to continue, or python -m replication.language_model --processes 1 "
        "if the memory is too small."
      )
    except KeyboardInterrupt:
      pool.shutdown(cancel_futures=True)
      sys.exit("Interrupted. Run make replicate-lm again to continue.")
  if seconds >= budget:
    console.print(f"All runs together have used the {grid.HOURS:g} hours.")
  return failed


def main() -> None:
  """Trains the runs of the plan that have no row yet."""
  arguments = _arguments()
  finished, seconds = _done()
  left = [run for run in grid.RUNS if run not in finished][: arguments.runs]
  failed = _train(left, seconds, arguments)
  if grid_page.RESULTS.exists():
    grid_page.write(grid_page.DOCS, grid_page.read(grid_page.RESULTS))
  if failed:
    sys.exit(
      f"These runs failed: {', '.join(failed)}. Run make replicate-lm again "
      "to retry them."
    )


if __name__ == "__main__":
  main()
