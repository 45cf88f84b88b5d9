# SPDX-License-Identifier: Apache-2.0
"""The command ``squentropy-study``."""

import argparse
from collections.abc import Sequence
import contextlib
import dataclasses
import math
from pathlib import Path
import shlex
import sys
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from squentropy_study import (
  _data,
  _losses,
  _models,
  _overview,
  _progress,
  _run,
  _store,
  _table,
  _verdict,
)
from squentropy_study._errors import StudyError
from squentropy_study._results import Results
from squentropy_study._settings import Settings

_PROGRAM = "squentropy-study"
_DEFAULTS = {
  field.name: field.default for field in dataclasses.fields(Settings)
}


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are one line, like all others."""

  def error(self, message: str) -> NoReturn:
    raise StudyError(f"{message} (see {self.prog} --help)")


def _epochs(text: str) -> tuple[int, ...]:
  try:
    return tuple(int(item) for item in text.split(","))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"needs rising numbers as in 40,300, got {text!r}"
    ) from None


def _seconds(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 <= value < math.inf:
    raise argparse.ArgumentTypeError(f"needs 0 or more seconds, got {text}")
  return value


def _parser() -> _Parser:
  parser = _Parser(
    prog=_PROGRAM,
    description="Trains a classifier with several losses from several seeds "
    "and reports accuracy, likelihood and calibration.",
  )
  commands = parser.add_subparsers(dest="command", required=True)

  run = commands.add_parser("run", help="train, compare and report")
  run.add_argument(
    "data",
    help="a data set (squentropy-study data lists them), a .csv, .tsv, "
    ".parquet, .npz, .arff, .dat or .rda file, or a folder of IDX files",
  )
  run.add_argument(
    "--label", metavar="COLUMN", help="column of classes of a table"
  )
  run.add_argument(
    "--rows",
    type=int,
    metavar="N",
    help="draw so many rows at most, each class by its share (default: all)",
  )
  run.add_argument(
    "--losses",
    nargs="+",
    default=_DEFAULTS["losses"],
    metavar="LOSS",
    help="losses with hyper-parameters, as in squentropy:scale=0.5 "
    f"(default: {' '.join(_losses.DEFAULT)}; squentropy-study losses "
    "lists them; those of target distributions also take smoothing=, for label "
    "smoothing)",
  )
  run.add_argument(
    "--seeds",
    type=int,
    default=_DEFAULTS["seeds"],
    help="number of seeds (default: %(default)s)",
  )
  run.add_argument(
    "--epochs",
    type=_epochs,
    default=_DEFAULTS["epochs"],
    metavar="N,N",
    help="training lengths to report, rising (default: 40,300)",
  )
  run.add_argument(
    "--folds",
    type=int,
    default=_DEFAULTS["folds"],
    help="1: a quarter of the rows to test on; 3 or more: cross-validation "
    "(default: %(default)s)",
  )
  run.add_argument(
    "--model",
    default=_DEFAULTS["model"],
    help=f"{', '.join(_models.MODELS)} (default: %(default)s)",
  )
  run.add_argument(
    "--optimizer",
    default=_DEFAULTS["optimizer"],
    help=f"{', '.join(_models.OPTIMIZERS)} (default: %(default)s)",
  )
  run.add_argument(
    "--batch-size",
    type=int,
    default=_DEFAULTS["batch_size"],
    metavar="ROWS",
    help="rows per step (default: %(default)s)",
  )
  run.add_argument(
    "--learning-rate",
    type=float,
    default=_DEFAULTS["learning_rate"],
    metavar="RATE",
    help="constant learning rate (default: %(default)s)",
  )
  run.add_argument(
    "--data-seed",
    type=int,
    default=_DEFAULTS["data_seed"],
    metavar="SEED",
    help="seed of the rows drawn and of the folds (default: %(default)s)",
  )
  run.add_argument(
    "--out",
    type=Path,
    metavar="DIR",
    help="folder for the results (default: reports/DATA)",
  )
  run.add_argument(
    "--fresh",
    action="store_true",
    help="replace the study in the folder instead of going on with it",
  )
  run.add_argument(
    "--save-every",
    type=_seconds,
    default=10.0,
    metavar="SECONDS",
    help="how often to keep a training under way (default: %(default)g)",
  )
  run.add_argument("--quiet", action="store_true", help="print errors only")

  report = commands.add_parser(
    "report",
    help="write the report of a finished study anew, or compare several",
  )
  report.add_argument("folders", type=Path, nargs="+", metavar="DIR")
  report.add_argument(
    "--out",
    type=Path,
    metavar="DIR",
    help="folder for what several studies say together "
    "(default: reports/summary)",
  )

  commands.add_parser("losses", help="list the losses with their defaults")
  commands.add_parser("data", help="list the data sets")
  return parser


def _say(text: str, console: Console) -> None:
  """Prints a line as it is: a path may hold what looks like markup."""
  console.print(text, markup=False, highlight=False, soft_wrap=True)


def _show(results: Results, out: Path, console: Console) -> None:
  console.print(_table.table(results))
  for title, text in _verdict.verdict(results):
    console.print(Text.assemble((f"{title}.", "bold"), " ", text), end="\n\n")
  _say(f"Report: {out / 'report.html'}", console)


def _interrupted(settings: Settings, out: Path) -> str:
  """What a person who pressed Ctrl-C wants to know."""
  kept = [spec for spec in settings.losses if _store.has_cell(out, spec)]
  finished = f"finished so far: {', '.join(kept) or 'no loss'}"
  return (
    f"Interrupted; {finished}. The same command without --fresh goes on from "
    f"what is kept in {out}."
  )


def _run_study(arguments: argparse.Namespace, command: str) -> None:
  fields = [field.name for field in dataclasses.fields(Settings)]
  values = {name: getattr(arguments, name) for name in fields}
  settings = Settings(**{**values, "losses": tuple(values["losses"])})
  out = arguments.out or Path("reports") / Path(settings.data).stem
  errors = Console(stderr=True)
  with contextlib.ExitStack() as stack:
    hooks: dict[str, Any] = {}
    if not arguments.quiet:
      bar = _progress.ProgressBar(settings, errors)
      hooks["on_progress"] = stack.enter_context(bar)
      hooks["on_note"] = lambda note: _say(f"Data: {note}", errors)
    try:
      results = _run.run(
        settings,
        out,
        command=command,
        fresh=arguments.fresh,
        save_every=arguments.save_every,
        **hooks,
      )
    except KeyboardInterrupt:
      raise KeyboardInterrupt(_interrupted(settings, out)) from None
  if not arguments.quiet:
    _show(results, out, Console())


def _report(arguments: argparse.Namespace, command: str) -> None:
  """One study: its own report. Several: what they say together."""
  folders, console = arguments.folders, Console()
  if len(folders) == 1:
    if arguments.out:
      raise StudyError(
        "--out is for what several studies say; one has its report in its own "
        "folder"
      )
    _show(_run.report(folders[0]), folders[0], console)
    return
  out = arguments.out or Path("reports/summary")
  comparisons = _overview.write(folders, out, command)
  console.print(_overview.table(comparisons))
  _say(f"Report: {out / 'summary.html'}", console)


def _dispatch(words: Sequence[str]) -> None:
  arguments = _parser().parse_args(words)
  if arguments.command == "run":
    _run_study(arguments, shlex.join([_PROGRAM, *words]))
  elif arguments.command == "report":
    _report(arguments, shlex.join([_PROGRAM, *words]))
  elif arguments.command == "losses":
    print(*map(_losses.signature, _losses.names()), sep="\n")
  else:
    print(*map(_data.describe, _data.names()), sep="\n")


def main(words: Sequence[str] | None = None) -> int:
  """Runs the command.

  Args:
    words: The arguments; those of the process without.

  Returns:
    The exit status: 0, 2 for a mistake of the caller, 130 after Ctrl-C.
  """
  try:
    _dispatch(sys.argv[1:] if words is None else words)
  except StudyError as error:
    print(f"{_PROGRAM}: error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt as interrupt:
    print(str(interrupt) or "Interrupted.", file=sys.stderr)
    return 130
  return 0
