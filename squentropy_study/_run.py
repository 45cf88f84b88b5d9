# SPDX-License-Identifier: Apache-2.0
"""A study from settings to report."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from squentropy_study import (
  _data,
  _figures,
  _losses,
  _models,
  _report,
  _results,
  _store,
  _train,
)
from squentropy_study._errors import StudyError
from squentropy_study._results import Results
from squentropy_study._settings import Settings


class Progress(NamedTuple):
  """How far the training with one loss is.

  Attributes:
    loss: The loss as named.
    epoch: The last epoch finished.
    value: Mean training loss in that epoch over the seeds; None where an
      earlier call has finished the training and kept it.
  """

  loss: str
  epoch: int
  value: float | None


def _reporter(
  on_progress: Callable[[Progress], None], spec: str
) -> Callable[[int, float], None]:
  return lambda epoch, value: on_progress(Progress(spec, epoch, value))


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
  """Trains every loss from every seed and writes the report.

  What is finished is kept in the folder, and so is a training under way, every
  few seconds. The same settings go on from there after an interruption, even
  a kill, and end with the same numbers; with other losses the study grows.

  Args:
    settings: What to run.
    out: Folder for the results; new, empty, or of the same study.
    command: The command line to record; by default one which does the same.
    fresh: Replace what an earlier study left in the folder.
    save_every: Seconds between two savings of a training under way.
    on_progress: Called about sixty times per loss.
    on_note: Called before the training with each sentence on what was done to
      the data, such as rows that were dropped.

  Returns:
    The numbers.

  Raises:
    StudyError: The settings cannot be run on the data, or the folder holds
      something else or cannot be written.

  Examples:
    >>> from squentropy_jax import study
    >>> settings = study.Settings("iris", seeds=2, epochs=(2,))
    >>> results = study.run(settings, "report")  # doctest: +SKIP
    >>> results.rows[0].accuracy  # doctest: +SKIP
    0.7
  """
  out = Path(out)
  losses = [_losses.parse(spec) for spec in settings.losses]
  dataset = _data.load(settings.data, settings.label)
  if settings.rows is not None:
    dataset = _data.draw(dataset, settings.rows, settings.data_seed)
  shape = dataset.features.shape[1:]
  _models.check_shape(settings.model, settings.data, shape)
  folds = _data.fold(dataset, settings.folds, settings.data_seed)
  _store.prepare(
    out,
    settings,
    command or settings.command(str(out)),
    folds.rows,
    dataset.notes,
    _data.digest(dataset),
    fresh=fresh,
  )
  for note in dataset.notes:
    on_note(note)
  for loss in losses:
    if _store.has_cell(out, loss.spec):
      on_progress(Progress(loss.spec, settings.epochs[-1], None))
      continue
    checkpoint = _store.Checkpoint(out, loss.spec, save_every)
    cell = _train.train(
      settings,
      loss,
      folds,
      _reporter(on_progress, loss.spec),
      restore=checkpoint.restore,
      save=checkpoint.save,
    )
    _store.write_cell(out, loss.spec, cell)
    checkpoint.remove()
  return report(out)


def report(out: str | Path) -> Results:
  """Writes table, figures and page anew from what a study has kept.

  Args:
    out: Folder of a finished study.

  Returns:
    The numbers.

  Raises:
    StudyError: The folder holds no study or an unfinished one.
  """
  out = Path(out)
  config = _store.read_config(out)
  if config is None:
    raise StudyError(
      f"{out} holds no study; make one with squentropy-study run"
    )
  settings = _store.read_settings(out, config)
  missing = [s for s in settings.losses if not _store.has_cell(out, s)]
  if missing:
    raise StudyError(
      f"the study in {out} is unfinished ({missing[0]} is missing); go on "
      f"with: {config['command']}"
    )
  cells = {spec: _store.read_cell(out, spec) for spec in settings.losses}
  results = _results.collect(settings, cells)
  _store.write(out / "results.csv", _results.to_csv(results))
  _store.write(out / "reliability.png", _figures.reliability(results, "light"))
  _store.write(out / "training.png", _figures.training(results, "light"))
  _store.write(out / "report.html", _report.html(results, config))
  return results
