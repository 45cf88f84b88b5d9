# SPDX-License-Identifier: Apache-2.0
"""The settings of a study."""

from collections.abc import Iterable, Sequence
import dataclasses
import itertools
import math
import operator
import shlex
from typing import Any

from squentropy_study import _loss_specs, _models, _own_losses, _splits
from squentropy_study._study_error import StudyError, unknown_name
from squentropy_study._table_options import TableOptions

# What decides the epoch at which a run is stopped, and the class weights.
STOPPING = ("refinement", "nll", "accuracy")
CLASS_WEIGHTS = {"balanced": "inverse", "effective": "effective_number"}
# The training length that is chosen on the validation rows.
STOPPED = "stopped"
# As the reference: the best loss.
BEST = "best"


# Settings that are several values, or whole numbers.
_TUPLES = ("losses", "epochs", "drop", "categorical", "numeric", "missing")
_INTEGERS = (
  "rows",
  "seeds",
  "max_epochs",
  "folds",
  "batch_size",
  "data_seed",
) + ("min_class", "merge_rare")


def _as_tuple(value: Any) -> tuple[Any, ...]:
  """Takes one value for a tuple of one, and None for an empty one."""
  if value is None:
    return ()
  if isinstance(value, str) or not isinstance(value, Iterable):
    return (value,)
  return tuple(value)


def _as_int(name: str, value: Any) -> int | None:
  """Returns an integer of Python, which JSON can hold."""
  if value is None:
    return None
  try:
    return operator.index(value)
  except TypeError:
    raise StudyError(f"{name} must be an integer, got {value!r}") from None


@dataclasses.dataclass(frozen=True)
class Settings:
  """Everything that decides the numbers of a study, apart from the data.

  Attributes:
    data: Name of a bundled data set, or path of a file or folder of images.
    label: The column of a table with the classes.
    encoding: The encoding of a text without a byte order mark; None is UTF-8.
    header: Whether the first line of a text or workbook names the columns.
    time: The column of a table with times: training is on the past, and there
      is one fold.
    group: The column of a table with groups, which are not split.
    id: The column of a table that identifies the rows in the file of
      predictions, and is no feature.
    rows: Size of a stratified sample of the rows; None uses all rows.
    losses: Losses as text, such as ``rescaled_square:target_value=10``, or
      functions of logits and labels; the setting holds all of them as text.
    seeds: Number of seeds, numbered from 0. A seed decides the initial weights
      and the order of the rows, and is the same for every loss.
    epochs: Fixed training lengths to report in addition to stopped training,
      increasing; may be empty. There is one training; an earlier length is
      evaluated on the way. This is exact because nothing in the training
      depends on its length: the learning rate is constant.
    max_epochs: Bound of the search for the epoch at which a run is stopped.
    stopping: What decides that epoch on the validation rows: ``refinement``,
      the least negative log-likelihood after a fitted temperature (arXiv
      2501.19195); ``nll``, the least negative log-likelihood; or
      ``accuracy``, the highest accuracy.
    class_weights: Weights of the losses of the examples: ``balanced``,
      inverse to the number of training rows of the class; ``effective``, by
      the effective number of rows (arXiv 1901.05555); or None. The mean over
      the training rows is 1.
    reference: The loss that the others are compared with: a loss of the study,
      or ``best``, the one with the lowest validation NLL; None takes
      cross-entropy if it is trained, else the best.
    baselines: Whether classifiers that are no networks are fitted as well.
    folds: 1, or 3 and more for cross-validation. Each fold has its own test
      part, fits the temperature on the next part and trains on the others.
    model: Name of the model.
    optimizer: Name of the optimizer.
    batch_size: Rows per step; all training rows if there are fewer.
    learning_rate: Constant learning rate.
    data_seed: Seed of the sample of rows and of the folds.
    drop: Columns of a table to leave out.
    categorical: Columns to one-hot encode, whatever they look like.
    numeric: Columns to read as numbers, whatever they look like.
    missing: Values that mean a missing value, in addition to empty cells.
    min_class: Drop the rows of classes with fewer rows.
    merge_rare: Pool the classes with fewer rows in one class.
    merge_case: Merge labels that differ only in upper and lower case.
    dedupe: Keep only the first of several rows with equal features and label.
  """

  data: str
  label: str | None = None
  encoding: str | None = None
  header: bool = True
  rows: int | None = None
  losses: tuple[str, ...] = _loss_specs.DEFAULT
  seeds: int = 5
  epochs: tuple[int, ...] = (40,)
  max_epochs: int = 300
  stopping: str = "refinement"
  class_weights: str | None = None
  reference: str | None = None
  baselines: bool = True
  folds: int = 1
  model: str = "mlp"
  optimizer: str = "adam"
  batch_size: int = 128
  learning_rate: float = 1e-3
  data_seed: int = 0
  drop: tuple[str, ...] = ()
  categorical: tuple[str, ...] = ()
  numeric: tuple[str, ...] = ()
  missing: tuple[str, ...] = ()
  min_class: int | None = None
  merge_rare: int | None = None
  merge_case: bool = False
  dedupe: bool = False
  time: str | None = None
  group: str | None = None
  id: str | None = None

  def __post_init__(self) -> None:
    """Raises StudyError for settings that cannot be run."""
    for name in _TUPLES:
      object.__setattr__(self, name, _as_tuple(getattr(self, name)))
    for name in _INTEGERS:
      object.__setattr__(self, name, _as_int(name, getattr(self, name)))
    losses = tuple(map(_own_losses.text_of, self.losses))
    object.__setattr__(self, "losses", losses)
    if self.reference is not None:
      reference = _own_losses.text_of(self.reference)
      object.__setattr__(self, "reference", reference)
    epochs = tuple(_as_int("epochs", epoch) for epoch in self.epochs)
    object.__setattr__(self, "epochs", epochs)
    if not self.losses:
      raise StudyError("losses must name at least one loss, got none")
    for loss in self.losses:
      _loss_specs.parse(loss)
    repeated = {loss for loss in self.losses if self.losses.count(loss) > 1}
    if repeated:
      raise StudyError(
        f"losses must differ, got {min(repeated)!r} twice; remove one"
      )
    if self.reference not in (None, BEST):
      _loss_specs.parse(self.reference)
    if self.seeds < 1:
      raise StudyError(f"seeds must be at least 1, got {self.seeds}")
    increasing = all(a < b for a, b in itertools.pairwise(self.epochs))
    if min(self.epochs, default=1) < 1 or not increasing:
      raise StudyError(
        "epochs must be increasing integers from 1, such as 40,300; got "
        + ",".join(map(str, self.epochs))
      )
    if self.max_epochs < 1:
      raise StudyError(f"max epochs must be at least 1, got {self.max_epochs}")
    if self.stopping not in STOPPING:
      raise unknown_name("stopping criterion", self.stopping, STOPPING)
    if self.class_weights not in (None, *CLASS_WEIGHTS):
      raise unknown_name(
        "class weights", str(self.class_weights), CLASS_WEIGHTS
      )
    if self.rows is not None and self.rows < 1:
      raise StudyError(f"rows must be at least 1, got {self.rows}")
    if self.folds != 1 and self.folds < 3:
      raise StudyError(
        "folds must be 1, or 3 and more (one part to test, one for the "
        f"temperature, the others to train); got {self.folds}"
      )
    _splits.check_options(
      self.folds, time=self.time is not None, group=self.group is not None
    )
    if self.model not in _models.MODELS:
      raise unknown_name("model", self.model, _models.MODELS)
    if self.optimizer not in _models.OPTIMIZERS:
      raise unknown_name("optimizer", self.optimizer, _models.OPTIMIZERS)
    if self.batch_size < 1:
      raise StudyError(f"batch size must be at least 1, got {self.batch_size}")
    if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
      raise StudyError(
        f"learning rate must be above 0, got {self.learning_rate}"
      )
    if not 0 <= self.data_seed < 2**32:
      raise StudyError(
        f"data seed must be between 0 and 2**32 - 1, got {self.data_seed}"
      )
    _ = self.table_options  # Raises for options that contradict each other.

  @property
  def table_options(self) -> TableOptions:
    """How a table is turned into features and labels."""
    names = [field.name for field in dataclasses.fields(TableOptions)]
    return TableOptions(**{name: getattr(self, name) for name in names})

  @property
  def runs(self) -> int:
    """Number of training runs per loss: one per seed and fold."""
    return self.seeds * self.folds

  @property
  def repeats(self) -> str:
    """The runs in words."""
    seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
    return f"{self.folds} folds x {seeds}" if self.folds > 1 else seeds

  @property
  def training_lengths(self) -> dict[str, int | None]:
    """Names of the training lengths and their epochs; None for stopped."""
    middle = [f"epoch_{epoch}" for epoch in self.epochs[1:-1]]
    names = ["short", *middle, "long"] if len(self.epochs) > 1 else ["fixed"]
    return {STOPPED: None, **dict(zip(names, self.epochs, strict=False))}

  def command(self, out: str) -> str:
    """Returns the command line of this study, with every option."""

    def optional(value: object) -> list[object]:
      return [] if value is None else [value]

    options: dict[str, Sequence[object]] = {
      "--label": optional(self.label),
      "--encoding": optional(self.encoding),
      "--time": optional(self.time),
      "--group": optional(self.group),
      "--id": optional(self.id),
      "--rows": optional(self.rows),
      "--losses": self.losses,
      "--seeds": [self.seeds],
      "--epochs": [",".join(map(str, self.epochs)) or "none"],
      "--max-epochs": [self.max_epochs],
      "--stopping": [self.stopping],
      "--class-weights": optional(self.class_weights),
      "--reference": optional(self.reference),
      "--folds": [self.folds],
      "--model": [self.model],
      "--optimizer": [self.optimizer],
      "--batch-size": [self.batch_size],
      "--learning-rate": [self.learning_rate],
      "--data-seed": [self.data_seed],
      "--out": [out],
    }
    words = ["squentropy-study", "run", self.data]
    for option, values in options.items():
      if values:
        words += [option, *map(str, values)]
    if not self.baselines:
      words.append("--no-baselines")
    if not self.header:
      words.append("--no-header")
    words += self.table_options.words()
    return shlex.join(words)
