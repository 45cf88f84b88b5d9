# SPDX-License-Identifier: Apache-2.0
"""The command ``squentropy-study``."""

import argparse
from collections.abc import Sequence
import contextlib
import dataclasses
from pathlib import Path
import shlex
import sys
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from squentropy_jax.study import (
  _data,
  _losses,
  _progress,
  _run,
  _store,
  _table,
  _verdict,
)
from squentropy_jax.study._errors import StudyError
from squentropy_jax.study._results import Results
from squentropy_jax.study._settings import Settings

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


def _parser() -> _Parser:
  parser = _Parser(
    prog=_PROGRAM,
    description="Trains a classifier with several losses from several seeds "
    "and reports accuracy, likelihood and calibration.",
  )
  commands = parser.add_subparsers(dest="command", required=True)

  run = commands.add_parser("run", help="train, compare and report")
  run.add_argument("data", help="a data set; squentropy-study data lists them")
  run.add_argument(
    "--losses",
    nargs="+",
    default=_DEFAULTS["losses"],
    metavar="LOSS",
    help="losses with hyper-parameters, as in squentropy:scale=0.5 "
    "(default: %(default)s; squentropy-study losses lists them)",
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
    "--batch-size", type=int, default=_DEFAULTS["batch_size"], metavar="ROWS"
  )
  run.add_argument(
    "--learning-rate",
    type=float,
    default=_DEFAULTS["learning_rate"],
    metavar="RATE",
    help="constant learning rate of Adam (default: %(default)s)",
  )
  run.add_argument(
    "--data-seed",
    type=int,
    default=_DEFAULTS["data_seed"],
    metavar="SEED",
    help="seed of the train, calibration and test split (default: 0)",
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
  run.add_argument("--quiet", action="store_true", help="print errors only")

  report = commands.add_parser(
    "report", help="write the report of a finished study anew"
  )
  report.add_argument("out", type=Path, metavar="DIR")

  commands.add_parser("losses", help="list the losses with their defaults")
  commands.add_parser("data", help="list the data sets")
  return parser


def _show(results: Results, out: Path, console: Console) -> None:
  console.print(_table.table(results))
  for title, text in _verdict.verdict(results):
    console.print(Text.assemble((f"{title}.", "bold"), " ", text), end="\n\n")
  console.print(f"Report: {out / 'report.html'}", soft_wrap=True)


def _interrupted(settings: Settings, out: Path) -> str:
  """What a person who pressed Ctrl-C wants to know."""
  kept = [spec for spec in settings.losses if _store.has_cell(out, spec)]
  if not kept:
    return f"Interrupted; no loss was finished yet, so {out} keeps no results."
  return (
    f"Interrupted; finished and kept in {out}: {', '.join(kept)}. The same "
    "command without --fresh goes on from there."
  )


def _run_study(arguments: argparse.Namespace, command: str) -> None:
  fields = [field.name for field in dataclasses.fields(Settings)]
  values = {name: getattr(arguments, name) for name in fields}
  settings = Settings(**{**values, "losses": tuple(values["losses"])})
  out = arguments.out or Path("reports") / settings.data
  errors = Console(stderr=True)
  with contextlib.ExitStack() as stack:
    on_progress = (
      (lambda progress: None)
      if arguments.quiet
      else stack.enter_context(_progress.ProgressBar(settings, errors))
    )
    try:
      results = _run.run(
        settings,
        out,
        command=command,
        fresh=arguments.fresh,
        on_progress=on_progress,
      )
    except KeyboardInterrupt:
      raise KeyboardInterrupt(_interrupted(settings, out)) from None
  if not arguments.quiet:
    _show(results, out, Console())


def _dispatch(words: Sequence[str]) -> None:
  arguments = _parser().parse_args(words)
  if arguments.command == "run":
    _run_study(arguments, shlex.join([_PROGRAM, *words]))
  elif arguments.command == "report":
    _show(_run.report(arguments.out), arguments.out, Console())
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
