# SPDX-License-Identifier: Apache-2.0
"""Predictions of the stopped models of a study for new rows."""

from collections.abc import Iterator
import math
from pathlib import Path
from typing import Any, NamedTuple
import warnings

import numpy as np
import pandas as pd
from scipy import special

from squentropy_study import (
  _loss_specs,
  _new_rows,
  _number_text,
  _preprocessing,
  _program,
  _ranking,
  _run,
  _run_files,
  _settings,
  _store,
  _train,
)
from squentropy_study._label_column import row_count
from squentropy_study._preprocessing import Preprocessing
from squentropy_study._results import Method, Results
from squentropy_study._study_error import StudyError, unknown_name
from squentropy_study._train import StoppedModels

# Bounds of the rows that are predicted at a time, and of their features.
_MOST_ROWS = 8192
_MOST_VALUES = 2**25


class Predicted(NamedTuple):
  """Predictions for new rows.

  Attributes:
    frame: As returned by :func:`predict`.
    notes: Sentences on how the file was read.
    warnings: Sentences on values that are unlike those of the study.
    summary: A sentence on the models, and one on accuracy and NLL if there are
      labels.
  """

  frame: pd.DataFrame
  notes: tuple[str, ...]
  warnings: tuple[str, ...]
  summary: str


class _Ensemble(NamedTuple):
  """The models of one method, one per fold and seed."""

  method: Method
  models: StoppedModels
  temperature: np.ndarray
  static: _program.StaticSettings


def _chosen(results: Results, loss: str | None) -> Method:
  """Returns the best method, or the better probability map of a loss."""
  if loss is not None and loss not in results.settings.losses:
    raise unknown_name("loss of the study", loss, results.settings.losses)
  methods = [
    entry.method
    for entry in _ranking.rank(results, _settings.STOPPED).losses
    if entry.method is not None and loss in (None, entry.method.loss)
  ]
  if not methods:
    raise StudyError(
      "the training diverged with "
      + ("every loss" if loss is None else f"{loss}; name another loss")
    )
  return methods[0]


def _ensemble(
  folder: Path, results: Results, loss: str | None, known: Preprocessing
) -> _Ensemble:
  settings, method = results.settings, _chosen(results, loss)
  evaluation = results.evaluations[method, _settings.STOPPED]
  static = _program.StaticSettings(
    settings.model,
    known.shape,
    len(known.classes),
    settings.optimizer,
    settings.batch_size,
    settings.learning_rate,
  )
  models = _run_files.read_models(folder, method.loss)
  return _Ensemble(method, models, np.asarray(evaluation.temperature), static)


def _chunks(features: np.ndarray, runs: int) -> Iterator[np.ndarray]:
  """Yields blocks of rows of one shape, so that one program is compiled."""
  values = runs * math.prod(features.shape[1:])
  size = min(max(_MOST_VALUES // values, 1), _MOST_ROWS, len(features))
  for start in range(0, len(features), size):
    block = features[start : start + size]
    yield np.pad(
      block, [(0, size - len(block)), *[(0, 0)] * (features.ndim - 1)]
    )


def _log_probs(ensemble: _Ensemble, features: np.ndarray) -> np.ndarray:
  """Returns the logarithm of the mean probabilities, ``[rows, classes]``."""
  loss = _loss_specs.parse(ensemble.method.loss)
  number = list(loss.probability_maps()).index(ensemble.method.probability_map)
  runs = len(ensemble.temperature)
  blocks = []
  for block in _chunks(features, runs):
    scores = _train.predict(ensemble.static, loss, ensemble.models, block)
    scaled = scores[number].astype(np.float64)
    scaled /= ensemble.temperature[:, None, None]
    log_probs = special.log_softmax(scaled, axis=-1)
    blocks.append(special.logsumexp(log_probs, axis=0) - np.log(runs))
  return np.concatenate(blocks)[: len(features)]


def _summary(
  ensemble: _Ensemble, log_probs: np.ndarray, labels: np.ndarray | None
) -> str:
  runs = len(ensemble.temperature)
  models = "1 model" if runs == 1 else f"{runs} models"
  text = f"{models} trained with {ensemble.method.loss} predicted "
  text += row_count(len(log_probs))
  has_label = np.zeros(0, bool) if labels is None else labels >= 0
  if labels is None or not has_label.any():
    return f"{text}."
  of_rows = log_probs[has_label], labels[has_label]
  accuracy = np.mean(of_rows[0].argmax(axis=-1) == of_rows[1])
  nll = -np.take_along_axis(of_rows[0], of_rows[1][:, None], axis=-1).mean()
  return (
    f"{text}. On {row_count(int(has_label.sum()))} with a label, the accuracy "
    f"is {_number_text.fixed(100 * accuracy, 1)} % and the NLL is "
    f"{_number_text.fixed(nll, 3)}."
  )


def predict_rows(
  folder: str | Path,
  data: Any,
  loss: str | None = None,
  *,
  encoding: str | None = None,
  header: bool = True,
) -> Predicted:
  """Predicts new rows and says how; see :func:`predict`."""
  folder = Path(folder)
  results = _run.load(folder)
  config = _store.read_config(folder) or {}
  known = _preprocessing.read(folder, config.get("command", ""))
  rows = _new_rows.read(
    data,
    known,
    merge_case=results.settings.merge_case,
    id_column=results.settings.id_column,
    encoding=encoding,
    header=header,
  )
  ensemble = _ensemble(folder, results, loss, known)
  log_probs = _log_probs(ensemble, known.standardized(rows.features))
  names = np.array(known.classes, object)
  frame = pd.DataFrame(
    {
      "row": np.arange(len(log_probs)),
      **({} if rows.ids is None else {"id": rows.ids}),
      "predicted": names[log_probs.argmax(axis=-1)],
      **{
        f"probability_{name}": np.exp(column)
        for name, column in zip(names, log_probs.T, strict=True)
      },
    },
    index=rows.row_index,
  )
  summary = _summary(ensemble, log_probs, rows.labels)
  return Predicted(frame, rows.notes, rows.warnings, summary)


def predict(
  folder: str | Path,
  data: Any,
  loss: str | None = None,
  *,
  encoding: str | None = None,
  header: bool = True,
) -> pd.DataFrame:
  """Predicts new rows with the stopped models of a finished study.

  The probabilities are the mean over the models of all folds and seeds of one
  loss. Each model has the temperature that was fitted on its validation rows.
  The rows are encoded and standardised like those of the study. Values that the
  study cannot encode, such as a new category, are counted in a warning.

  Args:
    folder: The folder of the study.
    data: The path of a file, a DataFrame, or, if the study was trained on
      arrays, an array ``[rows, ...]``. Columns are found by name, and columns
      that the study does not use are ignored. The label may be among them.
    loss: A loss of the study; None takes the one with the lowest NLL.
    encoding: The encoding of a text without a byte order mark; None is UTF-8.
    header: Whether the first line of a text or workbook names the columns.

  Returns:
    A table with one row for each row of the data. ``row`` is the number of the
    row from 0. ``id`` is its value in the id column of the study, if the data
    have that column. ``predicted`` is the most probable class, and
    ``probability_CLASS`` is the probability of each class.

  Raises:
    StudyError: The folder holds no finished study, or the rows are not like
      those of the study.

  Examples:
    >>> import squentropy_study as study
    >>> study.predict("report", "new.csv")  # doctest: +SKIP
  """
  predicted = predict_rows(folder, data, loss, encoding=encoding, header=header)
  for text in predicted.warnings:
    warnings.warn(text, stacklevel=2)
  return predicted.frame


def write_csv(frame: pd.DataFrame, path: Path) -> None:
  """Writes predictions with enough digits to restore a float32."""
  text = frame.to_csv(index=False, float_format="%.9g", lineterminator="\n")
  _store.write(path, text.encode())
