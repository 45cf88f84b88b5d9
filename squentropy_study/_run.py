# SPDX-License-Identifier: Apache-2.0
"""Runs a study, from settings to report."""

from collections.abc import Callable
import dataclasses
from pathlib import Path
from typing import NamedTuple

from squentropy_study import (
  _baselines,
  _charts,
  _data,
  _folds,
  _loss_specs,
  _models,
  _predictions,
  _preprocessing,
  _reliability,
  _report_page,
  _result_rows,
  _results,
  _run_files,
  _store,
  _table_checks,
  _train,
)
from squentropy_study._results import Results
from squentropy_study._settings import BEST, Settings
from squentropy_study._study_error import StudyError


class Progress(NamedTuple):
  """The progress of the training with one loss.

  Attributes:
    loss: The loss as text.
    number: Number of the loss, from 1.
    losses: Number of losses of the study.
    epoch: Number of epochs so far; may be fractional.
    value: Mean training loss over the runs; None if an earlier call finished
      the training.
    finished: Whether the training with this loss has ended.
  """

  loss: str
  number: int
  losses: int
  epoch: float
  value: float | None
  finished: bool


def _grown(out: Path, settings: Settings, *, fresh: bool) -> Settings:
  """Adds the finished losses and seeds of a folder to the settings."""
  config = None if fresh else _store.read_config(out)
  losses, seeds = settings.losses, settings.seeds
  if config is not None:
    earlier = _store.read_settings(out, config)
    if settings.reference is None:
      settings = dataclasses.replace(settings, reference=earlier.reference)
    stored = {
      loss: len(_run_files.stored_seeds(out, loss))
      for loss in dict.fromkeys((*earlier.losses, *losses))
    }
    # In the order in which the losses were first named.
    losses = tuple(x for x, size in stored.items() if size or x in losses)
    seeds = max(seeds, *stored.values())
  if settings.reference not in (None, BEST, *losses):
    raise StudyError(
      f"reference {settings.reference!r} is not among the losses "
      f"{', '.join(losses)}; add it to them, or name one of them or {BEST!r}"
    )
  return dataclasses.replace(settings, losses=losses, seeds=seeds)


def _train_loss(
  settings: Settings,
  number: int,
  folds: _folds.Folds,
  out: Path,
  save_every: float,
  on_progress: Callable[[Progress], None],
) -> None:
  """Trains with the seeds that are missing, and saves the results."""
  text = settings.losses[number]
  finished = _run_files.stored_seeds(out, text)
  seeds = [seed for seed in range(settings.seeds) if seed not in finished]
  last = Progress(text, number + 1, len(settings.losses), 0.0, None, not seeds)
  if not seeds:
    on_progress(last)
    return

  def on_evaluation(epoch: float, value: float) -> None:
    nonlocal last
    last = last._replace(epoch=epoch, value=value)
    on_progress(last)

  checkpoint = _run_files.Checkpoint(out, text, seeds, save_every)
  trained = _train.train(
    settings,
    _loss_specs.parse(text),
    folds,
    on_evaluation,
    seeds=seeds,
    restore=checkpoint.restore,
    save=checkpoint.save,
  )
  _run_files.write_trained(out, text, trained)
  checkpoint.remove()
  on_progress(last._replace(finished=True))


def _fit_baselines(
  folds: _folds.Folds, out: Path, on_stage: Callable[[str], None]
) -> None:
  """Fits the baselines and saves them, unless an earlier call did."""
  if not _baselines.has_baselines(out):
    on_stage("fitting the baselines")
    _baselines.write_baselines(out, _baselines.fit_baselines(folds))


def run(
  settings: Settings,
  out: str | Path,
  *,
  command: str | None = None,
  fresh: bool = False,
  save_every: float = 10.0,
  on_progress: Callable[[Progress], None] = lambda progress: None,
  on_note: Callable[[str], None] = lambda note: None,
  on_stage: Callable[[str], None] = lambda stage: None,
) -> Results:
  """Trains with every loss and every seed, and writes the report.

  The folder keeps every finished loss and checkpoints of an unfinished one. If
  the process is interrupted or killed, a call with the same settings resumes
  the study and gives the same numbers. A call with other losses or more seeds
  trains what is missing. The results are those of all losses that the folder
  holds, each with the largest number of seeds.

  Args:
    settings: The settings of the study.
    out: Folder for the results; new, empty, or of the same study.
    command: The command line to record; None records an equivalent one.
    fresh: Replace an earlier study in the folder.
    save_every: Seconds between two checkpoints.
    on_progress: Called after each evaluation of a training, and at its end.
    on_note: Called before the training with each note on the data, such as
      how many rows are dropped.
    on_stage: Called with what is done after the training, when it begins.

  Returns:
    The numbers.

  Raises:
    StudyError: The settings do not fit the data, or the folder cannot be
      written or holds files of another kind.

  Examples:
    >>> import squentropy_study as study
    >>> settings = study.Settings("iris", seeds=2, max_epochs=20)
    >>> results = study.run(settings, "report")  # doctest: +SKIP
    >>> results.rows[0].accuracy  # doctest: +SKIP
    0.9
  """
  out = Path(out)
  config = None if fresh else _store.read_config(out)
  if config is not None and settings.id is None:
    # A call that only adds losses keeps the column.
    earlier = _store.read_settings(out, config)
    settings = dataclasses.replace(settings, id=earlier.id)
  dataset = _data.load_data(
    settings.data,
    settings.label,
    options=settings.table_options,
    encoding=settings.encoding,
    header=settings.header,
    time=settings.time,
    group=settings.group,
    id=settings.id,
  )

  def write_command(grown: Settings) -> str:
    # A command that names only what is new does not reproduce the study.
    whole = command is not None and grown == settings
    return str(command) if whole else grown.command(str(out))

  run_rows(
    dataset,
    settings,
    out,
    write_command=write_command,
    fresh=fresh,
    save_every=save_every,
    on_progress=on_progress,
    on_note=on_note,
    on_stage=on_stage,
  )
  on_stage("writing the report")
  return report(out)


def run_rows(
  dataset: _data.Dataset,
  settings: Settings,
  out: Path,
  *,
  write_command: Callable[[Settings], str],
  fresh: bool = False,
  save_every: float = 10.0,
  on_progress: Callable[[Progress], None] = lambda progress: None,
  on_note: Callable[[str], None] = lambda note: None,
  on_stage: Callable[[str], None] = lambda stage: None,
) -> None:
  """Trains with every loss on rows that were read; see :func:`run`.

  Args:
    dataset: The rows.
    settings: The settings of the study.
    out: Folder for the results.
    write_command: Returns what the folder records as its command, given the
      settings with the losses and seeds that the folder holds.
    fresh: Replace an earlier study in the folder.
    save_every: Seconds between two checkpoints.
    on_progress: Called after each evaluation.
    on_note: Called with each note on the data.
    on_stage: Called with what is done after the training, when it begins.
  """
  if settings.rows is not None:
    dataset = _data.draw(dataset, settings.rows, settings.data_seed)
  shape = dataset.features.shape[1:]
  _models.check_shape(settings.model, settings.data, shape)
  folds = _folds.fold(
    dataset,
    settings.folds,
    settings.data_seed,
    times=dataset.times,
    groups=dataset.groups,
  )
  settings = _grown(out, settings, fresh=fresh)
  repeats = _table_checks.repeats_note(dataset.features, dataset.labels, folds)
  warnings = [f"warning: {text}" for text in dataset.warnings]
  notes = (*dataset.notes, *folds.notes, *repeats, *warnings)
  _store.prepare(
    out,
    settings,
    write_command(settings),
    folds.row_counts,
    dataset.class_counts,
    notes,
    _data.digest(dataset),
    fresh=fresh,
  )
  _preprocessing.write(out, _preprocessing.of_study(dataset, folds))
  _predictions.write_data_rows(out, _predictions.data_rows(dataset))
  for note in notes:
    on_note(note)
  for number in range(len(settings.losses)):
    _train_loss(settings, number, folds, out, save_every, on_progress)
  if settings.baselines:
    _fit_baselines(folds, out, on_stage)


def _load(folder: Path) -> tuple[Results, dict]:
  """Evaluates a finished study; also returns its configuration."""
  config = _store.read_config(folder)
  if config is None:
    raise StudyError(
      f"{folder} holds no study; run one with squentropy-study run"
    )
  settings = _store.read_settings(folder, config)
  missing = [
    f"runs of {loss}"
    for loss in settings.losses
    if len(_run_files.stored_seeds(folder, loss)) < settings.seeds
  ]
  if settings.baselines and not _baselines.has_baselines(folder):
    missing.append("baselines")
  if not _predictions.has_data_rows(folder):
    missing.append("numbers of the rows")
  if missing:
    raise StudyError(
      f"the study in {folder} is unfinished ({missing[0]} are "
      f"missing); resume it with: {config['command']}"
    )
  run_results = {
    loss: _run_files.read_run_result(folder, loss) for loss in settings.losses
  }
  fitted = _baselines.read_baselines(folder) if settings.baselines else {}
  rows = _predictions.read_data_rows(folder)
  return _results.collect(settings, run_results, fitted, rows), config


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
  _store.write(out / "results.csv", _result_rows.results_csv(results.rows))
  _predictions.write(out, results)
  _store.write(
    out / "reliability.png", _reliability.reliability(results, "light")
  )
  _store.write(out / "training.png", _charts.training(results, "light"))
  _store.write(out / "report.html", _report_page.html(results, config))
  return results
