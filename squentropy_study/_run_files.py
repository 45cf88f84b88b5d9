# SPDX-License-Identifier: Apache-2.0
"""The files of each loss: run results, stopped models and checkpoints."""

from collections.abc import Sequence
import io
from pathlib import Path
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax

from squentropy_study import _store
from squentropy_study._program import TrainState
from squentropy_study._stopping import Best
from squentropy_study._study_error import StudyError
from squentropy_study._train import (
  RunResult,
  StoppedModels,
  Trained,
  TrainingProgress,
)

# Where the axis of runs of each array of a run result is.
_RUN_AXES = {
  "train_loss": 1,
  "curves": 3,
  "criterion": 2,
  "epochs": 2,
  "train_accuracy": 2,
  "validation_scores": 2,
  "test_scores": 2,
}
# Names of the arrays of a model begin with it.
_MODEL = "model/"


def _path(out: Path, loss: str, ending: str) -> Path:
  name = loss.replace(":", "-").replace(",", "_")
  return out / _store.RUNS / f"{name}{ending}"


def stored_seeds(out: Path, loss: str) -> list[int]:
  """Returns the seeds with which the training with a loss is finished."""
  path = _path(out, loss, ".npz")
  if not path.exists():
    return []
  return _store.read_arrays(path, lambda arrays: arrays["seeds"].tolist())


def read_run_result(out: Path, loss: str) -> RunResult:
  """Reads the run result of a loss."""
  return _store.read_arrays(
    _path(out, loss, ".npz"),
    lambda arrays: RunResult(*(arrays[name] for name in RunResult._fields)),
  )


def read_models(out: Path, loss: str) -> StoppedModels:
  """Reads the models of stopped training of a loss."""
  return _store.read_arrays(
    _path(out, loss, ".model.npz"),
    lambda arrays: StoppedModels(
      arrays["shift"],
      arrays["scale"],
      {
        name.removeprefix(_MODEL): arrays[name]
        for name in arrays.files
        if name.startswith(_MODEL)
      },
    ),
  )


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
  _store.write(path, buffer.getvalue())


def _joined(x: np.ndarray, y: np.ndarray, axis: int, folds: int) -> np.ndarray:
  """Joins runs of the same folds and of different seeds."""

  def by_fold(x: np.ndarray) -> np.ndarray:
    shape = x.shape
    return x.reshape(*shape[:axis], folds, -1, *shape[axis + 1 :])

  both = np.concatenate([by_fold(x), by_fold(y)], axis=axis + 1)
  return both.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def _padded(x: np.ndarray, points: int) -> np.ndarray:
  """Adds NaN to a curve that ended earlier than others."""
  missing = np.full((points - len(x), *x.shape[1:]), np.nan, x.dtype)
  return np.concatenate([x, missing])


def join(old: Trained, new: Trained) -> Trained:
  """Joins trainings with the same loss and with different seeds."""
  folds = len(old.result.test_rows) // len(old.result.seeds)
  results = [old.result, new.result]
  # A training ends with its last run, so one curve begins like the other.
  longest = max(results, key=lambda result: len(result.curve_epochs))
  fields: dict[str, np.ndarray] = {
    "seeds": np.concatenate([result.seeds for result in results]),
    "curve_epochs": longest.curve_epochs,
  }
  for name in RunResult._fields:
    if name in fields:
      continue
    x, y = (getattr(result, name) for result in results)
    if name in ("train_loss", "curves", "criterion"):
      points = len(longest.curve_epochs)
      x, y = _padded(x, points), _padded(y, points)
    fields[name] = _joined(x, y, _RUN_AXES.get(name, 0), folds)
  ours, theirs = old.models, new.models
  models = StoppedModels(
    _joined(ours.shift, theirs.shift, 0, folds),
    _joined(ours.scale, theirs.scale, 0, folds),
    {
      name: _joined(array, theirs.arrays[name], 1, folds)
      for name, array in ours.arrays.items()
    },
  )
  return Trained(RunResult(**fields), models)


def _first_seeds(models: StoppedModels, folds: int, size: int) -> StoppedModels:
  """Returns the models of the first seeds of each fold."""
  number = len(models.shift) // folds
  runs = np.arange(folds * number).reshape(folds, number)[:, :size].ravel()
  arrays = {name: array[:, runs] for name, array in models.arrays.items()}
  return StoppedModels(models.shift[runs], models.scale[runs], arrays)


def write_trained(out: Path, loss: str, trained: Trained) -> None:
  """Saves what a training left, and joins it with the seeds of earlier ones."""
  if stored_seeds(out, loss):
    old, models = read_run_result(out, loss), read_models(out, loss)
    seeds = len(old.seeds)
    # A process that was killed here may have left more models than results.
    models = _first_seeds(models, len(old.test_rows) // seeds, seeds)
    trained = join(Trained(old, models), trained)
  result, models = trained
  arrays = {f"{_MODEL}{key}": array for key, array in models.arrays.items()}
  _write(
    _path(out, loss, ".model.npz"),
    {"shift": models.shift, "scale": models.scale, **arrays},
  )
  # The last one, because a loss with a run result is not trained again.
  _write(_path(out, loss, ".npz"), result._asdict())


class Checkpoint:
  """Saves an unfinished training, so that a killed study can be resumed."""

  def __init__(self, out: Path, loss: str, seeds: Sequence[int], every: float):
    """Names the checkpoint of a loss.

    Args:
      out: Folder of the study.
      loss: The loss.
      seeds: The seeds of the training.
      every: Seconds between two checkpoints.
    """
    self._path = _path(out, loss, _store.CHECKPOINT).absolute()
    self._seeds = np.asarray(seeds)
    self._every = every
    self._last = time.monotonic()

  def _manager(self) -> orbax.CheckpointManager:
    # orbax deletes the earlier step only after the next one is complete.
    options = orbax.CheckpointManagerOptions(
      max_to_keep=1, enable_async_checkpointing=False
    )
    return orbax.CheckpointManager(self._path, options=options)

  def restore(self, initial: TrainState) -> TrainingProgress | None:
    """Returns the saved progress with the tree structure of a state.

    Args:
      initial: A state of the same runs.

    Returns:
      The progress; None without a checkpoint, or with one of other seeds.

    Raises:
      StudyError: The checkpoint is damaged.
    """
    if not self._path.exists():
      return None
    try:
      with self._manager() as manager:
        step = manager.latest_step()
        if step is None:
          return None
        saved = manager.restore(step, args=orbax.args.StandardRestore())
      if not np.array_equal(saved["seeds"], self._seeds):
        self.remove()
        return None
      return _progress(saved, initial)
    # Many libraries read a checkpoint, each with errors of its own.
    except Exception as error:
      reason = str(error).partition("\n")[0] or type(error).__name__
      raise StudyError(
        f"{self._path} is damaged ({reason}); delete this folder and run the "
        "same command again"
      ) from None

  def save(self, step: int, progress: TrainingProgress) -> None:
    """Saves the progress, if the last checkpoint is old enough."""
    if time.monotonic() - self._last < self._every:
      return
    leaves = {
      "state": jax.tree.leaves(progress.state),
      "best": jax.tree.leaves(progress.best),
      "seeds": self._seeds,
    }
    parts = {**progress._asdict(), **leaves}
    # orbax does not restore empty lists.
    parts = {name: value for name, value in parts.items() if len(value)}
    with _store.file_errors("write", self._path), self._manager() as manager:
      manager.save(step, args=orbax.args.StandardSave(parts))
    self._last = time.monotonic()

  def remove(self) -> None:
    """Deletes the checkpoint after the training with the loss is finished."""
    shutil.rmtree(self._path, ignore_errors=True)


def _progress(saved: dict[str, Any], initial: TrainState) -> TrainingProgress:
  """Returns a progress from its saved arrays."""

  def unflatten(like: Any, arrays: Sequence[np.ndarray]) -> Any:
    leaves, structure = jax.tree.flatten(like)
    result = []
    for x, leaf in zip(arrays, leaves, strict=True):
      if np.shape(x) != leaf.shape:
        raise ValueError(f"shape {np.shape(x)} instead of {leaf.shape}")
      result.append(jnp.asarray(x, leaf.dtype))
    return jax.tree.unflatten(structure, result)

  model = (initial.parameters, initial.statistics)
  # Its last field is the model, of several arrays.
  numbers = len(Best._fields) - 1
  size = numbers + len(jax.tree.leaves(model))
  flat = saved.get("best") or []
  best = []
  for start in range(0, len(flat), size):
    values = flat[start : start + size]
    criterion, epoch, finished, scores = map(np.asarray, values[:numbers])
    best.append(
      Best(
        criterion,
        epoch,
        finished,
        jnp.asarray(scores),
        unflatten(model, values[numbers:]),
      )
    )
  lists = {
    name: list(map(np.asarray, saved.get(name) or []))
    for name in TrainingProgress._fields
    if name not in ("state", "best")
  }
  state = unflatten(initial, saved["state"])
  return TrainingProgress(state, tuple(best), **lists)
