# SPDX-License-Identifier: Apache-2.0
"""The rows of ``results.csv``, and the titles of its columns."""

from collections.abc import Iterable
import csv
import io
from typing import NamedTuple

# The loss that others are compared with.
REFERENCE = "cross_entropy"


class Method(NamedTuple):
  """A loss, and the map from its logits to probabilities.

  Attributes:
    loss: The loss as text.
    probability_map: ``log_probs``, the loss's own probabilities, or
      ``softmax``.
  """

  loss: str
  probability_map: str


class ResultRow(NamedTuple):
  """A row of ``results.csv``; ``_scaled``: after temperature scaling.

  All metrics are of the test rows except ``train_accuracy``, which is of the
  training rows, and ``post_hoc_improvement``, which is ``nll`` minus
  ``nll_scaled``. The epochs of stopped training differ by run. The metrics of
  classes, such as ``auroc``, are after temperature scaling, which changes none
  of them for two classes.
  """

  data: str
  loss: str
  probability_map: str
  training_length: str
  epochs: float
  fold: int
  seed: int
  accuracy: float
  nll: float
  brier: float
  ece: float
  ace: float
  aurc: float
  train_accuracy: float
  temperature: float
  nll_scaled: float
  brier_scaled: float
  ece_scaled: float
  ace_scaled: float
  aurc_scaled: float
  post_hoc_improvement: float
  balanced_accuracy: float
  macro_f1: float
  auroc: float
  average_precision: float


class Measure(NamedTuple):
  """A column of ``results.csv`` with its titles.

  Attributes:
    name: Field of :class:`ResultRow`.
    title: Title of a table.
    short: Name within a sentence.
    decimals: Number of decimals shown where no error decides it.
    main: Whether it is shown first.
    gain: 1 if larger is better, -1 if smaller is better.
  """

  name: str
  title: str
  short: str
  decimals: int
  main: bool = False
  gain: int = -1


MEASURES = (
  Measure("nll", "Negative log-likelihood (NLL)", "NLL", 3, main=True),
  Measure("accuracy", "Accuracy", "accuracy", 4, main=True, gain=1),
  Measure("ece", "Expected calibration error (ECE)", "ECE", 4, main=True),
  Measure("temperature", "Fitted temperature", "temperature", 2, main=True),
  Measure(
    "nll_scaled", "NLL after temperature scaling", "scaled NLL", 3, main=True
  ),
  Measure(
    "ece_scaled", "ECE after temperature scaling", "scaled ECE", 4, main=True
  ),
  Measure("brier", "Brier score, summed over classes", "Brier", 3),
  Measure("ace", "ECE with bins of equal mass", "equal-mass ECE", 4),
  Measure("aurc", "Area under the risk-coverage curve (AURC)", "AURC", 4),
  Measure("brier_scaled", "Brier after temperature scaling", "scaled Brier", 3),
  Measure(
    "ace_scaled",
    "Equal-mass ECE after temperature scaling",
    "scaled equal-mass ECE",
    4,
  ),
  Measure("aurc_scaled", "AURC after temperature scaling", "scaled AURC", 4),
  Measure(
    "post_hoc_improvement",
    "Post-hoc improvement: NLL before minus after temperature scaling",
    "post-hoc improvement",
    3,
  ),
  Measure(
    "balanced_accuracy", "Balanced accuracy", "balanced accuracy", 4, gain=1
  ),
  Measure("macro_f1", "Macro F1", "macro F1", 4, gain=1),
  Measure("auroc", "AUROC, one class against the others", "AUROC", 4, gain=1),
  Measure(
    "average_precision", "Average precision", "average precision", 4, gain=1
  ),
)


def results_csv(rows: Iterable[ResultRow]) -> bytes:
  """Returns ``results.csv``, with enough digits to restore a float32."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator="\n")
  writer.writerow(ResultRow._fields)
  for row in rows:
    writer.writerow(
      f"{value:.9g}" if isinstance(value, float) else value for value in row
    )
  return buffer.getvalue().encode()
