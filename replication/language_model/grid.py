# SPDX-License-Identifier: Apache-2.0
"""The losses, learning rates and runs of docs/language_model/plan.md."""

from typing import NamedTuple


class Scales(NamedTuple):
  """Scales of the terms that are added to the cross-entropy of a token.

  Attributes:
    z: Scale of the square of the log-normaliser.
    mean: Scale of the square of the mean logit.
    square: Scale of the mean square of the incorrect classes' logits.
  """

  z: float = 0.0
  mean: float = 0.0
  square: float = 0.0


CROSS_ENTROPY = "cross_entropy"
Z_LOSS = "z_loss"
# In the order of their value, because the last ones may not be trained.
LOSSES = {
  CROSS_ENTROPY: Scales(),
  Z_LOSS: Scales(z=1e-4),
  "mean_logit": Scales(mean=1e-4),
  "square_1e-4": Scales(square=1e-4),
  "square_1e-2": Scales(square=1e-2),
  "square_1e-3": Scales(square=1e-3),
  "square_1e-1": Scales(square=1e-1),
  "square_1e-5": Scales(square=1e-5),
  "square_1": Scales(square=1.0),
}
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
VOCAB = 16_384
LARGE_VOCAB = 49_152
# All runs together stop after this many hours of processor time.
HOURS = 6.0


class Run(NamedTuple):
  """What distinguishes one run from the others."""

  vocab: int
  loss: str
  learning_rate: float
  seed: int


def _of_seed(seed: int) -> list[Run]:
  return [Run(VOCAB, loss, rate, seed) for loss in LOSSES for rate in RATES]


_LARGE = [
  Run(LARGE_VOCAB, loss, rate, 0)
  for loss in (CROSS_ENTROPY, Z_LOSS, "square_1e-4", "square_1e-2")
  for rate in (1e-2, 1e-1)
]
# In the order in which they are trained.
RUNS = (*_of_seed(0), *_of_seed(1), *_LARGE, *_of_seed(2))


class Setup(NamedTuple):
  """What all runs have in common."""

  width: int = 128
  layers: int = 2
  heads: int = 4
  length: int = 64
  batch: int = 8
  steps: int = 600
  warm_up: int = 60
  cooldown: int = 120
  # Sequences of a block of the evaluation, and the number of blocks. One more
  # block fits the temperature.
  block: int = 32
  blocks: int = 8


PLAN = Setup()


def rate_at(step: int, setup: Setup) -> float:
  """Returns the learning rate of a step, relative to the largest one.

  Args:
    step: The number of the step, from 0.
    setup: The lengths of the warm-up, the training and the cooldown.
  """
  up = (step + 1) / setup.warm_up
  down = (setup.steps - step) / setup.cooldown
  return min(1.0, up, down)
