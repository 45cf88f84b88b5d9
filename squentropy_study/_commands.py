# SPDX-License-Identifier: Apache-2.0
"""The sub-commands of ``squentropy-study``."""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import difflib
import os
from pathlib import Path
import re
import shlex
import signal
import sys
import threading
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from squentropy_study import (
  _data,
  _fingerprint,
  _headline,
  _loss_specs,
  _loss_words,
  _predict_command,
  _progress_bar,
  _run,
  _run_files,
  _run_options,
  _summary_page,
  _terminal_table,
)
from squentropy_study._results import Results
from squentropy_study._settings import Settings
from squentropy_study._study_error import StudyError, unknown_name

_PROGRAM = "squentropy-study"


class _Terminated(KeyboardInterrupt):
  """Raised by SIGTERM, which stops a study as Ctrl-C does."""


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
  """Turns SIGTERM into an exception, so that files are closed and removed."""

  def terminate(*_: object) -> NoReturn:
    raise _Terminated

  # Only the main thread of a process may handle signals.
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGTERM, terminate)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


class _Parser(argparse.ArgumentParser):
  """A parser that raises StudyError, which is printed as one line."""

  def __init__(self, **keywords: Any) -> None:
    # An abbreviation can change its meaning in a later version.
    super().__init__(**{**keywords, "allow_abbrev": False})

  def error(self, message: str) -> NoReturn:
    """Raises StudyError, with the nearest option for an unknown one."""
    _, found, words = message.partition("unrecognized arguments: ")
    option = words.split()[0].partition("=")[0] if found else ""
    known = re.findall(r"--[a-z-]+", self.format_usage())
    if near := difflib.get_close_matches(option, known, n=1):
      raise unknown_name("option", option, near)
    raise StudyError(f"{message} (see {self.prog} --help)")

  def parse_known_args(self, *arguments: Any) -> Any:  # type: ignore[override]
    """Raises for unknown options of a sub-command, which knows its own."""
    found, unknown = super().parse_known_args(*arguments)
    if unknown:
      self.error(f"unrecognized arguments: {' '.join(unknown)}")
    return found, unknown


class _Version(argparse.Action):
  """Prints the versions that a report of a problem should name."""

  def __call__(
    self, parser: argparse.ArgumentParser, *_: object, **__: object
  ) -> None:
    versions = _fingerprint.versions()
    names = ("jax", "flax", "numpy", "scikit-learn", "python")
    listed = ", ".join(f"{name} {versions[name]}" for name in names)
    print(f"{_PROGRAM} {versions['squentropy_jax']} ({listed})")
    parser.exit()


def _parser() -> _Parser:
  parser = _Parser(
    prog=_PROGRAM,
    description="Trains a classifier with several losses and several seeds, "
    "and compares NLL, accuracy and calibration on your data.",
  )
  parser.add_argument(
    "--version", nargs=0, action=_Version, help="print the versions and exit"
  )
  commands = parser.add_subparsers(dest="command", required=True)

  run = commands.add_parser("run", help="train, compare and write a report")
  _run_options.add(run)

  report = commands.add_parser(
    "report",
    help="rewrite the report of a finished study, or compare several studies",
  )
  report.add_argument("folders", type=Path, nargs="+", metavar="DIR")
  report.add_argument(
    "--out",
    type=Path,
    metavar="DIR",
    help="folder for the summary of several studies (default: reports/summary)",
  )

  _predict_command.add(commands.add_parser)
  commands.add_parser("losses", help="list the losses with their defaults")
  commands.add_parser("data", help="list the bundled data sets")
  return parser


def _print_results(results: Results, out: Path, console: Console) -> None:
  console.print(_terminal_table.results_table(results), end="\n\n")
  headline = _headline.headline(results)
  console.print(Text(headline.sentence, "bold"), end="\n\n")
  for text in headline.further:
    console.print(Text(text), end="\n\n")
  for note in results.baseline_notes:
    _terminal_table.print_plain(f"Baselines: {note}", console)
  _terminal_table.print_plain(f"Report: {out / 'report.html'}", console)


def _interrupted(settings: Settings, out: Path) -> str:
  """Returns the message after Ctrl-C."""
  done = [
    loss
    for loss in settings.losses
    if {*range(settings.seeds)} <= {*_run_files.stored_seeds(out, loss)}
  ]
  return (
    f"Interrupted. Finished losses: {', '.join(done) or 'none'}. To resume "
    f"from {out}, run the same command again without --fresh."
  )


def _run_study(arguments: argparse.Namespace, command: str) -> None:
  fields = [field.name for field in dataclasses.fields(Settings)]
  values = {name: getattr(arguments, name) for name in fields}
  for name, value in values.items():
    if isinstance(value, list):
      values[name] = tuple(value)
  settings = Settings(**values)
  out = arguments.out or Path("reports") / _data.short_name(settings.data)
  errors = Console(stderr=True)
  with contextlib.ExitStack() as stack:
    hooks: dict[str, Any] = {}
    if not arguments.quiet:
      bar = _progress_bar.ProgressBar(settings, errors)
      hooks["on_progress"] = stack.enter_context(bar)
      hooks["on_stage"] = bar.stage
      hooks["on_note"] = lambda note: _terminal_table.print_plain(
        f"Data: {note}", errors
      )
    try:
      results = _run.run(
        settings,
        out,
        command=command,
        fresh=arguments.fresh,
        save_every=arguments.save_every,
        **hooks,
      )
    except KeyboardInterrupt as interrupt:
      raise type(interrupt)(_interrupted(settings, out)) from None
  if not arguments.quiet:
    _print_results(results, out, Console())


def _report_studies(arguments: argparse.Namespace, command: str) -> None:
  """Rewrites the report of one study, or compares several studies."""
  folders, console = arguments.folders, Console()
  if len(folders) == 1:
    if arguments.out:
      raise StudyError(
        "--out is for the summary of several studies, but only one folder was "
        "named. The report of one study is written to the folder of the study; "
        "omit --out"
      )
    _print_results(_run.report(folders[0]), folders[0], console)
    return
  out = arguments.out or Path("reports/summary")
  summary = _summary_page.write(folders, out, command)
  console.print(_summary_page.table(summary), end="\n\n")
  for text in (summary.conclusion, *summary.statements):
    console.print(Text(text), end="\n\n")
  _terminal_table.print_plain(f"Report: {out / 'summary.html'}", console)


def _dispatch(words: Sequence[str]) -> None:
  arguments = _parser().parse_args(words)
  if arguments.command == "run":
    _run_study(arguments, shlex.join([_PROGRAM, *words]))
  elif arguments.command == "report":
    _report_studies(arguments, shlex.join([_PROGRAM, *words]))
  elif arguments.command == "predict":
    _predict_command.run(arguments)
  elif arguments.command == "losses":
    for name in _loss_specs.names():
      print(f"{_loss_specs.signature(name)}\n    {_loss_words.purpose(name)}")
    print(
      "Every loss also takes smoothing=0.1 (label smoothing) and adjustment=1 "
      "(logit adjustment to the class frequencies)."
    )
  else:
    print(*map(_data.describe, _data.names()), sep="\n")


def main(words: Sequence[str]) -> int:
  """Runs the command and prints user errors as one line.

  Args:
    words: The arguments.

  Returns:
    The exit status: 0 for success, 1 if nobody reads the output to its end, 2
    for a user error, 130 after Ctrl-C, 143 after SIGTERM.
  """
  # Losses of the user are imported from the working folder too.
  if "" not in sys.path:
    sys.path.append("")
  try:
    with _sigterm_as_interrupt():
      _dispatch(words)
      sys.stdout.flush()
  except BrokenPipeError:
    # The reader, such as head, has ended. Python would fail again at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except StudyError as error:
    print(f"{_PROGRAM}: error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt as interrupt:
    print(str(interrupt) or "Interrupted.", file=sys.stderr)
    return 143 if isinstance(interrupt, _Terminated) else 130
  return 0
