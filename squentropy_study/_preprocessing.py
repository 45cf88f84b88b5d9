# SPDX-License-Identifier: Apache-2.0
"""What turns new rows into the features of a study, as a file of its folder."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from squentropy_study import _data, _folds, _scaling, _store
from squentropy_study._study_error import StudyError
from squentropy_study._table_encoder import TableEncoder


class Preprocessing(NamedTuple):
  """How the rows of a study became the features of its models.

  Attributes:
    classes: Names of the classes.
    shape: Shape of the features of a row.
    shift: Subtracted from the features, ``[columns]`` (for images
      ``[channels]``): the median over all rows of the study.
    scale: Multiplies the shifted features.
    encoder: Turns a table into features; None if the study had arrays.
    from_folder: Whether the study was trained on a folder of images.
  """

  classes: tuple[str, ...]
  shape: tuple[int, ...]
  shift: np.ndarray
  scale: np.ndarray
  encoder: TableEncoder | None
  from_folder: bool

  def standardized(self, features: np.ndarray) -> np.ndarray:
    """Returns features as :func:`_folds.fold` does, float32."""
    return _scaling.scaled(features, self.shift, self.scale)


def of_study(dataset: _data.Dataset, folds: _folds.Folds) -> Preprocessing:
  """Returns the preprocessing of a data set."""
  return Preprocessing(
    dataset.classes,
    dataset.features.shape[1:],
    folds.data_shift,
    folds.data_scale,
    dataset.encoder,
    Path(dataset.name).is_dir(),
  )


def write(out: Path, preprocessing: Preprocessing) -> None:
  """Writes the preprocessing to the folder of a study."""
  encoder = preprocessing.encoder
  fields = preprocessing._asdict() | {
    # JSON has the shortest text that restores each float64.
    "shift": preprocessing.shift.tolist(),
    "scale": preprocessing.scale.tolist(),
    "encoder": encoder and json.loads(encoder.to_json()),
  }
  text = json.dumps(fields, indent=1) + "\n"
  _store.write(out / _store.PREPROCESSING, text.encode())


def read(folder: Path, command: str) -> Preprocessing:
  """Reads the preprocessing of a study.

  Args:
    folder: The folder of the study.
    command: The command that wrote the folder.

  Returns:
    The preprocessing.

  Raises:
    StudyError: The file is missing or damaged.
  """
  path = folder / _store.PREPROCESSING
  again = f"run the study again, which trains only what is missing: {command}"
  if not path.exists():
    raise StudyError(
      f"{folder} has no {path.name}, so new rows cannot be encoded; {again}"
    )
  try:
    with _store.file_errors("read", path):
      fields = json.loads(path.read_bytes())
    encoder = fields["encoder"]
    return Preprocessing(
      tuple(fields["classes"]),
      tuple(fields["shape"]),
      np.array(fields["shift"], np.float64),
      np.array(fields["scale"], np.float64),
      encoder and TableEncoder.from_json(json.dumps(encoder)),
      fields["from_folder"],
    )
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    if isinstance(error, StudyError):
      raise
    raise StudyError(f"{path} is damaged ({error}); {again}") from None
