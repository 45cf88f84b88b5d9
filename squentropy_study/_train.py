# SPDX-License-Identifier: Apache-2.0
"""Trains all runs of one loss, every seed in every fold, until all stop."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_study import (
  _evaluation,
  _folds,
  _models,
  _program,
  _stopping,
)
from squentropy_study._evaluation import HeldOutLogits
from squentropy_study._loss_specs import LossSpec
from squentropy_study._program import TrainState
from squentropy_study._settings import Settings


class RunResult(NamedTuple):
  """What the training with one loss leaves: all that a report needs.

  Runs are numbered fold by fold: run ``r`` is in fold ``r // len(seeds)`` and
  has the seed ``seeds[r % len(seeds)]``. The first training length is stopped
  training, which may end at another epoch in each run; the fixed lengths
  follow. Scores are those of a probability map: their softmax is the predicted
  distribution.

  Attributes:
    seeds: ``[seeds]``, the numbers of the seeds.
    curve_epochs: ``[points]``, epochs at which the runs were evaluated.
    train_loss: ``[points, runs]``, mean training loss of the epoch before, or
      since the evaluation before if that is less. NaN where a run had ended.
    curves: ``[points, maps, metrics, runs]`` on the test rows, in the order of
      the loss's probability maps and of ``_evaluation.METRICS``.
    criterion: ``[points, maps, runs]``, what stopping minimises on the
      validation rows.
    epochs: ``[lengths, maps, runs]``, epochs of training.
    train_accuracy: ``[lengths, maps, runs]`` on the training rows.
    validation_scores: ``[lengths, maps, runs, rows, classes]``.
    validation_rows: ``[runs, rows]``, row numbers in the data set.
    validation_labels: ``[runs, rows]``.
    validation_keep: ``[runs, rows]``, False where an entry is padding.
    test_scores: ``[lengths, maps, runs, rows, classes]``.
    test_rows: ``[runs, rows]``.
    test_labels: ``[runs, rows]``.
    test_keep: ``[runs, rows]``.
  """

  seeds: np.ndarray
  curve_epochs: np.ndarray
  train_loss: np.ndarray
  curves: np.ndarray
  criterion: np.ndarray
  epochs: np.ndarray
  train_accuracy: np.ndarray
  validation_scores: np.ndarray
  validation_rows: np.ndarray
  validation_labels: np.ndarray
  validation_keep: np.ndarray
  test_scores: np.ndarray
  test_rows: np.ndarray
  test_labels: np.ndarray
  test_keep: np.ndarray


class TrainingProgress(NamedTuple):
  """An unfinished training, from which it can be resumed.

  Attributes:
    state: After the last segment.
    best: The best evaluations so far, one entry per probability map.
    train_loss: One ``[runs]`` per evaluation so far.
    curves: One ``[maps, metrics, runs]`` per evaluation so far.
    criterion: One ``[maps, runs]`` per evaluation so far.
    train_accuracy: One ``[maps, runs]`` per fixed length so far.
    scores: One ``[maps, runs, held-out rows, classes]`` per fixed length so
      far.
  """

  state: TrainState
  best: tuple[_stopping.Best, ...]
  train_loss: list[np.ndarray]
  curves: list[np.ndarray]
  criterion: list[np.ndarray]
  train_accuracy: list[np.ndarray]
  scores: list[np.ndarray]


class StoppedModels(NamedTuple):
  """The models of stopped training.

  Attributes:
    shift: What each run subtracts from the features, ``[runs, columns]``.
    scale: What each run multiplies the shifted features with.
    arrays: Weights and statistics by name, ``[maps, runs, ...]``.
  """

  shift: np.ndarray
  scale: np.ndarray
  arrays: dict[str, np.ndarray]


class Trained(NamedTuple):
  """What :func:`train` returns."""

  result: RunResult
  models: StoppedModels


class _HeldOut(NamedTuple):
  """A part of the held-out rows, ``[runs, rows]``."""

  rows: np.ndarray
  labels: np.ndarray
  keep: np.ndarray


class _Training:
  """The data of a training, and its evaluations."""

  def __init__(
    self,
    settings: Settings,
    loss: LossSpec,
    folds: _folds.Folds,
    seeds: Sequence[int],
  ):
    self.settings, self.loss, self.seeds = settings, loss, seeds
    self.static = static_settings(settings, folds)
    self.keys, self.data = _program.run_data(settings, loss, folds, seeds)
    self.validation = self._held_out(folds, folds.validation)
    self.test = self._held_out(folds, folds.test)
    self.maps = list(loss.probability_maps().values())
    steps = self.data.train.shape[1] // self.static.batch_size
    self.points = _stopping.schedule(
      steps, settings.max_epochs, settings.epochs
    )
    self.bounds = _stopping.search_bounds(steps, settings.max_epochs)

  def _held_out(self, folds: _folds.Folds, part: _folds.FoldRows) -> _HeldOut:
    rows, keep = (np.repeat(x, len(self.seeds), axis=0) for x in part)
    return _HeldOut(rows, folds.labels[rows], keep)

  def parts(self, scores: Any) -> tuple[Any, Any]:
    """Cuts ``[..., held-out rows, classes]`` into validation and test rows."""
    first = self.validation.rows.shape[1]
    return scores[..., :first, :], scores[..., first:, :]

  def train_accuracy(self, model: Any, number: int) -> np.ndarray:
    """Returns the accuracy on the training rows with a probability map."""
    rows = self.data.train
    logits = _program.predict(self.static, model, self.data, rows)
    labels = self.data.labels[rows]
    keep = jnp.ones(labels.shape, bool)
    scores = self.maps[number](logits)
    return np.asarray(_evaluation.accuracy(HeldOutLogits(scores, labels, keep)))

  def advance(self, progress: TrainingProgress) -> TrainingProgress:
    """Trains up to the next evaluation."""
    number = len(progress.train_loss)
    first = self.points[number - 1].step if number else 0
    step, epoch, candidate = self.points[number]
    state, loss, logits = _program.segment(
      self.static,
      self.loss,
      progress.state,
      jnp.asarray(first),
      jnp.asarray(step - first),
      self.data,
    )
    model = (state.parameters, state.statistics)
    all_scores = [scores(logits) for scores in self.maps]
    criteria, curves, best = [], [], []
    for number, scores in enumerate(all_scores):
      validation, test = self.parts(scores)
      criterion = np.asarray(
        _stopping.criterion(
          self.settings.stopping,
          HeldOutLogits(validation, *self.validation[1:]),
        )
      )
      criteria.append(criterion)
      metrics, _ = _evaluation.measure(HeldOutLogits(test, *self.test[1:]))
      curves.append(np.stack(metrics))
      old = progress.best[number] if progress.best else None
      if candidate:
        best.append(
          _stopping.update(old, criterion, epoch, self.bounds, scores, model)
        )
    progress = progress._replace(state=state)
    if candidate:
      progress = progress._replace(best=tuple(best))
    progress.train_loss.append(np.asarray(loss))
    progress.curves.append(np.stack(curves))
    progress.criterion.append(np.stack(criteria))
    if epoch in self.settings.epochs:
      accuracy = [self.train_accuracy(model, k) for k in range(len(self.maps))]
      progress.train_accuracy.append(np.stack(accuracy))
      progress.scores.append(np.stack(all_scores))
    return progress

  def ended(self, progress: TrainingProgress) -> bool:
    """Returns whether all runs are finished and all fixed lengths reached."""
    if not progress.best:
      return False
    epoch = self.points[len(progress.train_loss) - 1].epoch
    fixed = epoch >= max(self.settings.epochs, default=0)
    return fixed and all(best.finished.all() for best in progress.best)

  def result(self, progress: TrainingProgress) -> Trained:
    """Returns the results of a training that has ended."""
    bests = progress.best
    accuracy = [self.train_accuracy(b.model, k) for k, b in enumerate(bests)]
    stopped = np.stack([best.epoch for best in bests])
    fixed = (np.full_like(stopped, epoch) for epoch in self.settings.epochs)
    scores = np.stack([best.scores for best in bests])
    validation, test = self.parts(np.stack([scores, *progress.scores]))
    points = self.points[: len(progress.train_loss)]
    result = RunResult(
      np.asarray(self.seeds),
      np.asarray([point.epoch for point in points]),
      np.stack(progress.train_loss),
      np.stack(progress.curves),
      np.stack(progress.criterion),
      np.stack([stopped, *fixed]),
      np.stack([np.stack(accuracy), *progress.train_accuracy]),
      validation,
      *self.validation,
      test,
      *self.test,
    )
    names = _program.leaf_names(bests[0].model)
    leaves = zip(*(jax.tree.leaves(best.model) for best in bests), strict=True)
    arrays = {
      name: np.stack(of_maps)
      for name, of_maps in zip(names, leaves, strict=True)
    }
    shift, scale = np.asarray(self.data.shift), np.asarray(self.data.scale)
    return Trained(result, StoppedModels(shift, scale, arrays))


def static_settings(
  settings: Settings, folds: _folds.Folds
) -> _program.StaticSettings:
  """Returns what the programs of a study are specialised to."""
  shape = folds.features.shape[1:]
  _models.check_shape(settings.model, settings.data, shape)
  return _program.StaticSettings(
    settings.model,
    shape,
    folds.num_classes,
    settings.optimizer,
    min(settings.batch_size, folds.train.shape[1]),
    settings.learning_rate,
  )


def train(
  settings: Settings,
  loss: LossSpec,
  folds: _folds.Folds,
  on_evaluation: Callable[[float, float], None] = lambda epoch, loss: None,
  *,
  seeds: Sequence[int] | None = None,
  restore: Callable[[TrainState], TrainingProgress | None] = lambda state: None,
  save: Callable[[int, TrainingProgress], None] = lambda step, progress: None,
) -> Trained:
  """Trains a model with one loss, for every seed in every fold.

  The training ends when every run is finished (see :func:`_stopping.update`)
  and every fixed length is reached.

  Args:
    settings: The settings of the study.
    loss: The loss to train with.
    folds: The rows.
    on_evaluation: Called after each evaluation with the number of epochs so
      far and the mean training loss.
    seeds: The seeds; None takes all seeds of the settings.
    restore: Takes an initial state and returns the progress of an earlier
      call, or None.
    save: Called after each evaluation with the number of steps so far and the
      progress.

  Returns:
    The scores of the held-out rows at every training length, curves, and the
    models of stopped training.
  """
  seeds = range(settings.seeds) if seeds is None else seeds
  training = _Training(settings, loss, folds, seeds)
  initial = _program.initialize(training.static, training.keys)
  progress = restore(initial) or TrainingProgress(
    initial, (), [], [], [], [], []
  )
  while not training.ended(progress):
    progress = training.advance(progress)
    step, epoch, _ = training.points[len(progress.train_loss) - 1]
    on_evaluation(epoch, float(progress.train_loss[-1].mean()))
    save(step, progress)
  return training.result(progress)


def predict(
  static: _program.StaticSettings,
  loss: LossSpec,
  models: StoppedModels,
  features: np.ndarray,
) -> np.ndarray:
  """Returns the scores that the stopped models give to rows.

  Args:
    static: As returned by :func:`static_settings`.
    loss: The loss of the models.
    models: The models.
    features: ``[rows, ...]``, scaled as in :class:`_folds.Folds`.

  Returns:
    ``[maps, runs, rows, classes]``; their softmax is the prediction.
  """
  runs = len(models.shift)
  rows = jnp.broadcast_to(jnp.arange(len(features)), (runs, len(features)))
  nothing = jnp.zeros(runs)
  data = _program.RunData(
    jnp.asarray(features),
    rows[0],
    jnp.asarray(models.shift),
    jnp.asarray(models.scale),
    rows,
    rows,
    nothing,
    None,
    None,
  )
  like = _program.model_like(static)
  structure = jax.tree.structure(like)
  names = _program.leaf_names(like)
  result = []
  for number, scores in enumerate(loss.probability_maps().values()):
    leaves = [jnp.asarray(models.arrays[name][number]) for name in names]
    model = jax.tree.unflatten(structure, leaves)
    result.append(
      np.asarray(scores(_program.predict(static, model, data, rows)))
    )
  return np.stack(result)
