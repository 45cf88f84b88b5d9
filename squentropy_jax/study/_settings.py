# SPDX-License-Identifier: Apache-2.0
"""What a study is: everything that decides its numbers."""

import dataclasses
import itertools
import math
import shlex

from squentropy_jax.study import _losses
from squentropy_jax.study._errors import StudyError


@dataclasses.dataclass(frozen=True)
class Settings:
  """Everything that decides the numbers of a study.

  Attributes:
    data: Name of the data set.
    losses: Losses as text, such as ``rescaled_square:target_value=10``.
    seeds: How many seeds, numbered from 0. A seed decides the initial weights
      and the order of the rows, alike for every loss.
    epochs: When to report, rising. Training ends with the last; an earlier one
      is the same run read sooner, which is exact because the learning rate is
      constant and nothing else depends on the length of the run.
    batch_size: Rows per step; all training rows if there are fewer.
    learning_rate: Constant learning rate of Adam.
    data_seed: Seed of the train, calibration and test split.
  """

  data: str
  losses: tuple[str, ...] = _losses.DEFAULT
  seeds: int = 5
  epochs: tuple[int, ...] = (40, 300)
  batch_size: int = 128
  learning_rate: float = 1e-3
  data_seed: int = 0

  def __post_init__(self) -> None:
    """Refuses settings that cannot be run."""
    if not self.losses:
      raise StudyError("losses: name at least one loss")
    for spec in self.losses:
      _losses.parse(spec)
    repeated = {spec for spec in self.losses if self.losses.count(spec) > 1}
    if repeated:
      raise StudyError(f"losses: {min(repeated)!r} is named twice")
    if self.seeds < 1:
      raise StudyError(f"seeds must be at least 1, got {self.seeds}")
    rising = all(a < b for a, b in itertools.pairwise(self.epochs))
    if not self.epochs or self.epochs[0] < 1 or not rising:
      raise StudyError(
        "epochs must be rising numbers from 1, as in 40,300; got "
        + (",".join(map(str, self.epochs)) or "none")
      )
    if self.batch_size < 1:
      raise StudyError(f"batch size must be at least 1, got {self.batch_size}")
    if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
      raise StudyError(
        f"learning rate must be above 0, got {self.learning_rate}"
      )
    if not 0 <= self.data_seed < 2**32:
      raise StudyError(
        f"data seed must be in 0 .. 2**32 - 1, got {self.data_seed}"
      )

  @property
  def regimes(self) -> dict[str, int]:
    """Names of the training lengths, and their epochs."""
    if len(self.epochs) == 1:
      return {"single": self.epochs[0]}
    middle = [f"epoch_{epoch}" for epoch in self.epochs[1:-1]]
    return dict(zip(["short", *middle, "long"], self.epochs, strict=True))

  def command(self, out: str) -> str:
    """The command line that runs this study, every option written out."""
    options = {
      "--losses": self.losses,
      "--seeds": [self.seeds],
      "--epochs": [",".join(map(str, self.epochs))],
      "--batch-size": [self.batch_size],
      "--learning-rate": [self.learning_rate],
      "--data-seed": [self.data_seed],
      "--out": [out],
    }
    words = ["squentropy-study", "run", self.data]
    for option, values in options.items():
      words += [option, *map(str, values)]
    return shlex.join(words)
