# SPDX-License-Identifier: Apache-2.0
"""The sub-commands of ``squentropy-study``."""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import itertools
import math
from pathlib import Path
import shlex
import signal
import sys
import threading
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from squentropy_study import (
  _data,
  _data_options,
  _fingerprint,
  _headline,
  _loss_specs,
  _loss_words,
  _models,
  _predict_command,
  _progress_bar,
  _run,
  _run_files,
  _summary_page,
  _terminal_table,
)
from squentropy_study._results import Results
from squentropy_study._settings import CLASS_WEIGHTS, STOPPING, Settings
from squentropy_study._study_error import StudyError

_PROGRAM = "squentropy-study"
_DEFAULTS: dict[str, Any] = {
  field.name: field.default for field in dataclasses.fields(Settings)
}


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

  def error(self, message: str) -> NoReturn:
    raise StudyError(f"{message} (see {self.prog} --help)")


def _epochs(text: str) -> tuple[int, ...]:
  if text == "none":
    return ()
  try:
    return tuple(int(item) for item in text.split(",") if item)
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"expected increasing integers such as 40 300, or none; got {text!r}"
    ) from None


class _Join(argparse.Action):
  """Joins the values of several words into one tuple."""

  def __call__(
    self,
    parser: argparse.ArgumentParser,
    namespace: argparse.Namespace,
    values: Any,
    option: str | None = None,
  ) -> None:
    setattr(namespace, self.dest, tuple(itertools.chain.from_iterable(values)))


class _Losses(argparse.Action):
  """Reads losses with spaces or commas between them."""

  def __call__(
    self,
    parser: argparse.ArgumentParser,
    namespace: argparse.Namespace,
    values: Any,
    option: str | None = None,
  ) -> None:
    # Not as a type, for which argparse replaces the message of the error.
    setattr(namespace, self.dest, _loss_words.split(values))


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


def _seconds(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 <= value < math.inf:
    raise argparse.ArgumentTypeError(f"expected 0 or more seconds, got {text}")
  return value


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
  run.add_argument(
    "data",
    help="a bundled data set (listed by: squentropy-study data), a file "
    "(delimited text as .csv, .tsv, .tab, .txt or .data, or .arff, .parquet, "
    ".xlsx or .npz; compressed files end in .gz, .zip, .bz2 or .xz), or a "
    "folder with one folder of images per class",
  )
  run.add_argument(
    "--label", metavar="COLUMN", help="the column of a table to predict"
  )
  _data_options.add_text_options(run)
  run.add_argument(
    "--time",
    metavar="COLUMN",
    help="train on earlier rows: the test rows are the last quarter in the "
    "order of this column, and the validation rows are the quarter before",
  )
  run.add_argument(
    "--group",
    metavar="COLUMN",
    help="keep the rows with the same value in this column, such as those of a "
    "customer, in the same part of the split",
  )
  run.add_argument(
    "--id",
    dest="id_column",
    metavar="COLUMN",
    help="write this column to the file of predictions, and do not train on it",
  )
  run.add_argument(
    "--rows",
    type=int,
    metavar="N",
    help="use a stratified sample of at most N rows (default: all rows)",
  )
  run.add_argument(
    "--losses",
    nargs="+",
    action=_Losses,
    default=_DEFAULTS["losses"],
    metavar="LOSS",
    help="losses with hyper-parameters, for example squentropy:scale=0.5, "
    "with spaces or commas between them (default: "
    f"{' '.join(_loss_specs.DEFAULT)}; listed by: squentropy-study "
    "losses). Every loss also takes label smoothing, such as smoothing=0.1, "
    "and logit adjustment to class frequencies, such as adjustment=1.",
  )
  run.add_argument(
    "--seeds",
    type=int,
    default=_DEFAULTS["seeds"],
    help="number of seeds (default: %(default)s)",
  )
  run.add_argument(
    "--epochs",
    nargs="+",
    type=_epochs,
    action=_Join,
    default=_DEFAULTS["epochs"],
    metavar="N",
    help="report these fixed training lengths too, in epochs and in increasing "
    "order; none reports stopped training only (default: "
    f"{Settings.epochs[0]})",
  )
  run.add_argument(
    "--max-epochs",
    type=int,
    default=_DEFAULTS["max_epochs"],
    metavar="N",
    help="largest number of epochs of stopped training (default: %(default)s)",
  )
  run.add_argument(
    "--stop-by",
    dest="stopping",
    choices=STOPPING,
    default=_DEFAULTS["stopping"],
    help="how stopped training chooses its epoch on the validation rows: by "
    "the lowest NLL after temperature scaling (refinement), the lowest NLL, or "
    "the highest accuracy (default: %(default)s)",
  )
  run.add_argument(
    "--class-weights",
    choices=tuple(CLASS_WEIGHTS),
    help="weight the losses of the examples by class: inverse to the number of "
    "rows (balanced), or by the effective number of rows (default: no weights)",
  )
  run.add_argument(
    "--reference",
    metavar="LOSS",
    help="the loss that the others are compared with, or best (default: "
    "cross_entropy, or best if cross_entropy is not trained)",
  )
  run.add_argument(
    "--no-baselines",
    dest="baselines",
    action="store_false",
    help="do not fit the majority class, logistic regression and trees",
  )
  run.add_argument(
    "--folds",
    type=int,
    default=_DEFAULTS["folds"],
    help="number of folds: 1 tests on a quarter of the rows, 3 or more is "
    "cross-validation (default: %(default)s)",
  )
  run.add_argument(
    "--model",
    default=_DEFAULTS["model"],
    help=f"network: {', '.join(_models.MODELS)} (default: %(default)s)",
  )
  run.add_argument(
    "--optimizer",
    default=_DEFAULTS["optimizer"],
    help=f"one of {', '.join(_models.OPTIMIZERS)} (default: %(default)s)",
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
    help="seed for the sample of rows and for the folds (default: %(default)s)",
  )
  _data_options.add_table_options(run)
  run.add_argument(
    "--out",
    type=Path,
    metavar="DIR",
    help="folder for the results (default: reports/DATA)",
  )
  run.add_argument(
    "--fresh",
    action="store_true",
    help="replace the study in the folder instead of resuming it",
  )
  run.add_argument(
    "--save-every",
    type=_seconds,
    default=10.0,
    metavar="SECONDS",
    help="time between two checkpoints (default: %(default)g)",
  )
  run.add_argument("--quiet", action="store_true", help="print errors only")

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
  else:
    print(*map(_data.describe, _data.names()), sep="\n")


def main(words: Sequence[str]) -> int:
  """Runs the command and prints user errors as one line.

  Args:
    words: The arguments.

  Returns:
    The exit status: 0 for success, 2 for a user error, 130 after Ctrl-C, 143
    after SIGTERM.
  """
  try:
    with _sigterm_as_interrupt():
      _dispatch(words)
  except StudyError as error:
    print(f"{_PROGRAM}: error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt as interrupt:
    print(str(interrupt) or "Interrupted.", file=sys.stderr)
    return 143 if isinstance(interrupt, _Terminated) else 130
  return 0
