# SPDX-License-Identifier: Apache-2.0
"""Compares losses on data in memory."""

from collections.abc import Callable, Iterable, Sequence
import contextlib
import dataclasses
from pathlib import Path
import tempfile
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from squentropy_study import (
  _arrays,
  _data,
  _encoding,
  _loss_words,
  _own_losses,
  _progress_bar,
  _run,
)
from squentropy_study._data import Dataset
from squentropy_study._raw_table import RawTable
from squentropy_study._results import Results
from squentropy_study._settings import Settings
from squentropy_study._study_error import StudyError, unknown_name

# Settings that say which file is read.
_OF_FILES = ("data", "label", "encoding", "header")


def _settings(losses: Any, seeds: int, settings: dict[str, Any]) -> Settings:
  """Returns settings of data without a name."""
  fields = {field.name for field in dataclasses.fields(Settings)}
  for name in settings:
    if name in _OF_FILES:
      raise StudyError(
        f"{name} is a setting of files, but x and y are in memory; leave out "
        f"{name}"
      )
    if name not in fields:
      known = sorted(fields - {*_OF_FILES} | {"out", "fresh", "quiet"})
      raise unknown_name("setting", name, known)
  several = isinstance(losses, Iterable) and not isinstance(losses, str)
  words = map(_own_losses.text_of, losses if several else [losses])
  values: dict[str, Any] = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in settings.items()
  }
  return Settings(
    "data", losses=_loss_words.split(words), seeds=seeds, **values
  )


def _table(x: pd.DataFrame, y: Any) -> tuple[pd.DataFrame, str]:
  """Returns features and labels as one table, and the column of the labels."""
  if isinstance(y, str):
    return x, y
  if isinstance(y, pd.Series) and not y.index.equals(x.index):
    raise StudyError(
      "x and y have different indexes, so it is not clear which label belongs "
      "to which row; align them, or pass y.to_numpy()"
    )
  if np.ndim(y) != 1 or len(y) != len(x):
    raise StudyError(
      f"y must hold one label for each of the {len(x)} rows of x, got shape "
      f"{np.shape(y)}; reshape it"
    )
  name = getattr(y, "name", None)
  label = "label" if name is None else str(name)
  if label in map(str, x.columns):
    raise StudyError(
      f"x has a column {label!r}, which is also the name of y; drop this "
      "column if it holds the labels, or rename it"
    )
  labels = pd.Series(y).set_axis(x.index)
  return pd.concat([x, labels.rename(label)], axis=1), label


def _dataset(x: Any, y: Any, settings: Settings) -> tuple[Dataset, Settings]:
  """Returns the rows, and the settings with a name of the data."""
  options = settings.table_options
  columns = {
    "time": settings.time,
    "group": settings.group,
    "id": settings.id,
  }
  if isinstance(x, pd.DataFrame):
    frame, label = _table(x, y)
    settings = dataclasses.replace(settings, label=label)
    dataset = _data.from_table(
      "x",
      RawTable(frame),
      label,
      options=options,
      columns=columns,
    )
  elif isinstance(y, str):
    raise StudyError(
      f"y = {y!r} names a column, but x is not a DataFrame; pass the labels as "
      "an array"
    )
  else:
    _data.check_no_columns("x", columns)
    encoded = _arrays.encoded(np.asarray(x), np.asarray(y), "the data")
    dataset = Dataset("x", *_encoding.apply_options("x", encoded, options))
  # A name for the report, with which two data sets are distinguished.
  name = f"data-{_data.digest(dataset)[:8]}"
  return dataset, dataclasses.replace(settings, data=name)


def _call(out: str | Path | None) -> Callable[[Settings], str]:
  """Returns what writes the call that a folder records."""

  def write(settings: Settings) -> str:
    changed = {"losses": settings.losses, "seeds": settings.seeds}
    for field in dataclasses.fields(settings):
      value = getattr(settings, field.name)
      if field.name not in _OF_FILES and value != field.default:
        changed[field.name] = value
    changed["out"] = None if out is None else str(out)
    arguments = (f"{name}={value!r}" for name, value in changed.items())
    return f"squentropy_study.compare(x, y, {', '.join(arguments)})"

  return write


def compare(
  x: Any,
  y: Any,
  *,
  losses: Sequence[str | Callable[..., Any]] = Settings.losses,
  seeds: int = Settings.seeds,
  out: str | Path | None = None,
  fresh: bool = False,
  quiet: bool = False,
  **settings: Any,
) -> Results:
  """Trains a network with each loss on data in memory, and compares the losses.

  The study is that of the command ``squentropy-study run``. Columns of a
  DataFrame are encoded like those of a Parquet file. An array is used as
  features without encoding.

  Args:
    x: A DataFrame, or an array ``[rows, ...]`` of numbers.
    y: Labels, ``[rows]``: numbers or text, or the name of a column of x.
    losses: Losses with hyper-parameters, such as ``squentropy:scale=0.5``, or
      functions of logits and labels that return the loss of each row, such as
      those that ``squentropy_jax.row_loss`` makes. A function must be defined
      at the top of a module or notebook; ``functools.partial`` binds its
      hyper-parameters.
    seeds: Number of seeds.
    out: A folder for the results and the report. A call with the same data
      resumes the study in this folder, and :func:`predict` uses it to predict
      new rows. None keeps no files.
    fresh: Replace an earlier study in the folder.
    quiet: Print no progress and no notes on the data.
    **settings: Other fields of :class:`Settings`, such as ``folds=4``.

  Returns:
    The results. ``.table()`` returns the ranking of the losses, ``.plot()``
    draws it, and ``.predictions()`` returns the probabilities of each test row.

  Raises:
    StudyError: The settings do not fit the data, or the folder cannot be
      written or holds another study.

  Examples:
    >>> from sklearn.datasets import load_iris
    >>> import squentropy_study as study
    >>> x, y = load_iris(return_X_y=True, as_frame=True)
    >>> results = study.compare(
    ...   x,
    ...   y,
    ...   losses=["cross_entropy", "squentropy"],
    ...   seeds=2,
    ...   epochs=(),
    ...   max_epochs=10,
    ...   baselines=False,
    ...   quiet=True,
    ... )
    >>> sorted(results.table()["loss"])
    ['cross_entropy', 'squentropy']
  """
  dataset, chosen = _dataset(x, y, _settings(losses, seeds, settings))
  with contextlib.ExitStack() as stack:
    hooks: dict[str, Any] = {}
    if not quiet:
      console = Console(stderr=True)
      bar = _progress_bar.ProgressBar(chosen, console)
      hooks["on_progress"] = stack.enter_context(bar)
      hooks["on_stage"] = bar.stage
      hooks["on_note"] = lambda note: console.print(
        f"Data: {note}", markup=False, highlight=False, soft_wrap=True
      )
    if out is None:
      folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    else:
      folder = Path(out)
    _run.run_rows(
      dataset, chosen, folder, write_command=_call(out), fresh=fresh, **hooks
    )
    # Without a folder, the report is not needed.
    return _run.load(folder) if out is None else _run.report(folder)
