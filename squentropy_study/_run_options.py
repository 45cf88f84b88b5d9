# SPDX-License-Identifier: Apache-2.0
"""The options of ``squentropy-study run``."""

import argparse
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

from squentropy_study import _data_options, _loss_specs, _loss_words, _models
from squentropy_study._settings import CLASS_WEIGHTS, STOPPING, Settings

_DEFAULTS: dict[str, Any] = {
  field.name: field.default for field in dataclasses.fields(Settings)
}


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


def _seconds(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 <= value < math.inf:
    raise argparse.ArgumentTypeError(f"expected 0 or more seconds, got {text}")
  return value


def add(run: argparse.ArgumentParser) -> None:
  """Adds all options."""
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
    "--stopping",
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
