# SPDX-License-Identifier: Apache-2.0
"""The plan in numbers; docs/replication/plan.md says why."""

from squentropy_study import Settings

SQUENTROPY = "squentropy"
# What it is compared with beside cross-entropy.
SQUARE = "rescaled_square:target_value=10"
SMOOTHED = "cross_entropy:smoothing=0.1"
LOSSES: tuple[str, ...] = (
  "cross_entropy",
  SQUENTROPY,
  SQUARE,
  SMOOTHED,
)
IMAGES = ("fashion_mnist",)
# From 42 classes on the square loss is rescaled, so a grid of both constants.
MANY_CLASSES = tuple(
  f"rescaled_square:target_weight={weight},target_value={value}"
  for weight in (1, 15)
  for value in (15, 30)
)


def settings(name: str) -> Settings:
  """The study of one data set, read in the folder that holds its file."""
  losses = LOSSES
  if name == "wordnet":
    losses = tuple(x for x in LOSSES if "target_value" not in x) + MANY_CLASSES
  images = name in IMAGES
  return Settings(
    f"{name}.npz",
    losses=losses,
    seeds=3,
    epochs=(6, 60) if images else (30, 300),
    folds=4,
    model="cnn" if images else "bn-mlp",
    optimizer="adam",
    batch_size=64,
    learning_rate=1e-3,
  )
