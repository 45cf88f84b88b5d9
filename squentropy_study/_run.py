# SPDX-License-Identifier: Apache-2.0
"""Runs a study, from settings to report."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from squentropy_study import (
  _charts,
  _data,
  _loss_specs,
  _models,
  _reliability,
  _report_page,
  _results,
  _store,
  _train,
)
from squentropy_study._results import Results
from squentropy_study._settings import Settings
from squentropy_study._study_error import StudyError


class Progress(NamedTuple):
  """The progress of the training with one loss.

  Attributes:
    loss: The loss as text.
    epoch: The last finished epoch.
    value: Mean training loss over the runs in that epoch; None if an earlier
      call finished the training.
  """

  loss: str
  epoch: int
  value: float | None


def _reporter(
  on_progress: Callable[[Progress], None], loss: str
) -> Callable[[int, float], None]:
  return lambda epoch, value: on_progress(Progress(loss, epoch, value))


def run(
  settings: Settings,
  out: str | Path,
  *,
  command: str | None = None,
  fresh: bool = False,
  save_every: float = 10.0,
  on_progress: Callable[[Progress], None] = lambda progress: None,
  on_note: Callable[[str], None] = lambda note: None,
) -> Results:
  """Trains with every loss and every seed, and writes the report.

  The folder keeps every finished loss and checkpoints of an unfinished one. If
  the process is interrupted or killed, a call with the same settings resumes
  the study and gives the same numbers. A call with more losses trains only
  the new ones.

  Args:
    settings: The settings of the study.
    out: Folder for the results; new, empty, or of the same study.
    command: The command line to record; None records an equivalent one.
    fresh: Replace an earlier study in the folder.
    save_every: Seconds between two checkpoints.
    on_progress: Called about sixty times per loss.
    on_note: Called before the training with each note on the data, such as
      how many rows are dropped.

  Returns:
    The numbers.

  Raises:
    StudyError: The settings do not fit the data, or the folder cannot be
      written or holds files of another kind.

  Examples:
    >>> import squentropy_study as study
    >>> settings = study.Settings("iris", seeds=2, epochs=(2,))
    >>> results = study.run(settings, "report")  # doctest: +SKIP
    >>> results.rows[0].accuracy  # doctest: +SKIP
    0.7
  """
  out = Path(out)
  losses = [_loss_specs.parse(loss) for loss in settings.losses]
  dataset = _data.load_data(settings.data, settings.label)
  if settings.rows is not None:
    dataset = _data.draw(dataset, settings.rows, settings.data_seed)
  shape = dataset.features.shape[1:]
  _models.check_shape(settings.model, settings.data, shape)
  folds = _data.fold(dataset, settings.folds, settings.data_seed)
  _store.prepare(
    out,
    settings,
    command or settings.command(str(out)),
    folds.row_counts,
    dataset.class_counts,
    dataset.notes,
    _data.digest(dataset),
    fresh=fresh,
  )
  for note in dataset.notes:
    on_note(note)
  for loss in losses:
    if _store.has_run_result(out, loss.text):
      on_progress(Progress(loss.text, settings.epochs[-1], None))
      continue
    checkpoint = _store.Checkpoint(out, loss.text, save_every)
    result = _train.train(
      settings,
      loss,
      folds,
      _reporter(on_progress, loss.text),
      restore=checkpoint.restore,
      save=checkpoint.save,
    )
    _store.write_run_result(out, loss.text, result)
    checkpoint.remove()
  return report(out)


def _load(folder: Path) -> tuple[Results, dict]:
  """Evaluates a finished study; also returns its configuration."""
  config = _store.read_config(folder)
  if config is None:
    raise StudyError(
      f"{folder} holds no study; run one with squentropy-study run"
    )
  settings = _store.read_settings(folder, config)
  missing = [s for s in settings.losses if not _store.has_run_result(folder, s)]
  if missing:
    raise StudyError(
      f"the study in {folder} is unfinished ({missing[0]} is missing); resume "
      f"it with: {config['command']}"
    )
  run_results = {
    loss: _store.read_run_result(folder, loss) for loss in settings.losses
  }
  return _results.collect(settings, run_results), config


def load(folder: str | Path) -> Results:
  """Evaluates a finished study and writes nothing.

  Args:
    folder: The folder of the study.

  Returns:
    The numbers.

  Raises:
    StudyError: The folder holds no study or an unfinished one.
  """
  results, _ = _load(Path(folder))
  return results


def report(out: str | Path) -> Results:
  """Evaluates a finished study and rewrites its table, figures and page.

  Args:
    out: The folder of the study.

  Returns:
    The numbers.

  Raises:
    StudyError: The folder holds no study or an unfinished one, or cannot be
      written.
  """
  out = Path(out)
  results, config = _load(out)
  _store.write(out / "results.csv", _results.results_csv(results))
  _store.write(
    out / "reliability.png", _reliability.reliability(results, "light")
  )
  _store.write(out / "training.png", _charts.training(results, "light"))
  _store.write(out / "report.html", _report_page.html(results, config))
  return results
