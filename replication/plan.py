# SPDX-License-Identifier: Apache-2.0
"""The settings of the plan. docs/replication/plan.md explains them."""

from squentropy_study import Settings

SQUENTROPY = "squentropy"
# The losses that it is compared with, in addition to cross-entropy.
SQUARE = "rescaled_square:target_value=10"
SMOOTHED = "cross_entropy:smoothing=0.1"
LOSSES: tuple[str, ...] = (
  "cross_entropy",
  SQUENTROPY,
  SQUARE,
  SMOOTHED,
)
IMAGES = ("fashion_mnist",)
# With 42 classes or more the square loss needs other constants: this is a grid.
MANY_CLASSES = tuple(
  f"rescaled_square:target_weight={weight},target_value={value}"
  for weight in (1, 15)
  for value in (15, 30)
)


FIXED = ("short", "long")
LENGTHS = ("stopped", *FIXED)


def settings(name: str, *, fixed: bool = True) -> Settings:
  """Returns the settings for a data set, to run in the folder of its file.

  Args:
    name: The data set.
    fixed: Whether to train to the two fixed lengths, in addition to stopped
      training.

  Returns:
    The settings.
  """
  losses = LOSSES
  if name == "wordnet":
    losses = tuple(x for x in LOSSES if "target_value" not in x) + MANY_CLASSES
  images = name in IMAGES
  epochs = (6, 60) if images else (30, 300)
  return Settings(
    f"{name}.npz",
    losses=losses,
    seeds=3,
    epochs=epochs if fixed else (),
    max_epochs=epochs[-1],
    baselines=False,
    folds=4,
    model="cnn" if images else "bn-mlp",
    optimizer="adam",
    batch_size=64,
    learning_rate=1e-3,
  )
