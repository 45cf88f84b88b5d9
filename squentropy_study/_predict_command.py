# SPDX-License-Identifier: Apache-2.0
"""The sub-command that predicts new rows."""

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from squentropy_study import _data_options, _predict, _terminal_table
from squentropy_study._study_error import StudyError


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the sub-command that predicts new rows."""
  predict = add_parser(
    "predict", help="predict new rows with the models of a finished study"
  )
  predict.add_argument(
    "folder", type=Path, metavar="DIR", help="folder of the study"
  )
  predict.add_argument(
    "data",
    help="a file with the columns of the table of the study, in any order, or "
    "an .npz file with an array x; the label may be among them. If the study "
    "was trained on images, a folder of images",
  )
  predict.add_argument(
    "--loss",
    metavar="LOSS",
    help="the loss of the models (default: the one with the lowest "
    "validation NLL)",
  )
  predict.add_argument(
    "--out",
    type=Path,
    metavar="FILE",
    default=Path("predictions.csv"),
    help="the file to write (default: %(default)s)",
  )
  predict.add_argument(
    "--overwrite",
    action="store_true",
    help="replace the file if it exists",
  )
  _data_options.add_text_options(predict)


def run(arguments: argparse.Namespace) -> None:
  """Writes the predictions for new rows."""
  out = arguments.out
  if out.resolve() == Path(arguments.data).resolve():
    raise StudyError(
      f"--out {out} is the file of the new rows; name another file"
    )
  if out.exists() and not arguments.overwrite:
    raise StudyError(
      f"{out} exists; name another file with --out, or add --overwrite"
    )
  predicted = _predict.predict_rows(
    arguments.folder,
    arguments.data,
    arguments.loss,
    encoding=arguments.encoding,
    header=arguments.header,
  )
  odd = (f"warning: {text}" for text in predicted.warnings)
  for note in (*predicted.notes, *odd):
    _terminal_table.print_plain(f"Data: {note}", Console(stderr=True))
  _predict.write_csv(predicted.frame, out)
  console = Console()
  _terminal_table.print_plain(predicted.summary, console)
  _terminal_table.print_plain(f"Predictions: {out}", console)
