# SPDX-License-Identifier: Apache-2.0
"""Predictions of the stopped models of a study for new rows."""

from collections.abc import Iterator
import math
from pathlib import Path
from typing import Any, NamedTuple
import warnings

import numpy as np
import pandas as pd

from squentropy_study import (
  _loss_specs,
  _model_average,
  _new_rows,
  _number_text,
  _preprocessing,
  _program,
  _run,
  _run_files,
  _store,
  _train,
)
from squentropy_study._label_column import row_count
from squentropy_study._model_average import ModelAverage
from squentropy_study._preprocessing import Preprocessing
from squentropy_study._results import Results
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

  average: ModelAverage
  models: StoppedModels
  static: _program.StaticSettings


def _ensemble(
  folder: Path, results: Results, loss: str | None, known: Preprocessing
) -> _Ensemble:
  method = _model_average.best_method(results, loss)
  settings = results.settings
  static = _program.StaticSettings(
    settings.model,
    known.shape,
    len(known.classes),
    settings.optimizer,
    settings.batch_size,
    settings.learning_rate,
  )
  models = _run_files.read_models(folder, method.loss)
  return _Ensemble(_model_average.fit(results, method), models, static)


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
  method = ensemble.average.method
  loss = _loss_specs.parse(method.loss)
  number = list(loss.probability_maps()).index(method.probability_map)
  blocks = []
  for block in _chunks(features, ensemble.average.of_models.size):
    scores = _train.predict(ensemble.static, loss, ensemble.models, block)
    blocks.append(_model_average.of_all(ensemble.average, scores[number]))
  return np.concatenate(blocks)[: len(features)]


def _summary(
  average: ModelAverage, log_probs: np.ndarray, labels: np.ndarray | None
) -> str:
  models = _number_text.counted(average.of_models.size, "model")
  text = f"{models} trained with {average.method.loss} predicted "
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
    id=results.settings.id,
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
  summary = _summary(ensemble.average, log_probs, rows.labels)
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
  loss. Each model has the temperature that was fitted on its validation rows,
  and so has the mean over the seeds of a fold. The report of the study has the
  metrics of that mean for the test rows of the fold. The rows are encoded and
  standardised like those of the study. Values that the study cannot encode,
  such as a new category, are counted in a warning.

  Args:
    folder: The folder of the study.
    data: The path of a file, a DataFrame, or, if the study was trained on
      arrays, an array ``[rows, ...]`` or a folder of images. Columns are found
      by name, and columns that the study does not use are ignored. The label
      may be among them.
    loss: A loss of the study; None takes the one with the lowest NLL of the
      validation rows.
    encoding: The encoding of a text without a byte order mark; None is UTF-8.
    header: Whether the first line of a text or workbook names the columns.

  Returns:
    A table with one row for each row of the data. ``row`` is the number of the
    row from 0. ``id`` is its value in the id column of the study, if the data
    have that column, or the path of an image within its folder. ``predicted``
    is the most probable class, and ``probability_CLASS`` is the probability of
    each class.

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
