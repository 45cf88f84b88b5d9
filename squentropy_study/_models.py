# SPDX-License-Identifier: Apache-2.0
"""Networks and optimisers by name."""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from squentropy_study._errors import StudyError


def _flat(x: jax.Array) -> jax.Array:
  return x.reshape(x.shape[0], -1)


class Linear(nnx.Module):
  """One linear map."""

  def __init__(self, shape: tuple[int, ...], classes: int, *, rngs: nnx.Rngs):
    self.logits = nnx.Linear(math.prod(shape), classes, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[rows, ...]`` to logits ``[rows, classes]``."""
    return self.logits(_flat(x))


class MLP(nnx.Module):
  """A multi-layer perceptron with two hidden layers of 256 units."""

  def __init__(self, shape: tuple[int, ...], classes: int, *, rngs: nnx.Rngs):
    self.hidden1 = nnx.Linear(math.prod(shape), 256, rngs=rngs)
    self.hidden2 = nnx.Linear(256, 256, rngs=rngs)
    self.logits = nnx.Linear(256, classes, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[rows, ...]`` to logits ``[rows, classes]``."""
    x = nnx.relu(self.hidden1(_flat(x)))
    return self.logits(nnx.relu(self.hidden2(x)))


class BatchNormMLP(nnx.Module):
  """Three hidden layers of 256 units, a batch normalisation before each map."""

  def __init__(self, shape: tuple[int, ...], classes: int, *, rngs: nnx.Rngs):
    widths = (math.prod(shape), 256, 256, 256)
    self.norms = nnx.List(
      # A short run has few steps to forget the first statistics in.
      nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
      for width in widths
    )
    self.maps = nnx.List(
      nnx.Linear(width, after, rngs=rngs)
      for width, after in zip(widths, (*widths[1:], classes), strict=True)
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[rows, ...]`` to logits ``[rows, classes]``."""
    x = self.maps[0](self.norms[0](_flat(x)))
    for norm, linear in zip(self.norms[1:], self.maps[1:], strict=True):
      x = linear(norm(nnx.relu(x)))
    return x


class Convolution(nnx.Module):
  """A 3x3 convolution, ReLU, and the maximum of each 2x2 square.

  Runs train together under ``vmap``, each with weights of its own, for which
  XLA has no fast convolution on CPU; a product with the patches is one.
  """

  def __init__(self, channels: int, features: int, *, rngs: nnx.Rngs):
    self.linear = nnx.Linear(9 * channels, features, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[rows, height, width, channels]`` to half the height and width."""
    rows, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
      x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)
    ]
    x = nnx.relu(self.linear(jnp.concatenate(shifted, axis=-1)))
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width]
    return x.reshape(rows, height, 2, width, 2, -1).max(axis=(2, 4))


class CNN(nnx.Module):
  """Two convolutions of 16 and 32 channels, each pooled, and 128 units."""

  def __init__(self, shape: tuple[int, ...], classes: int, *, rngs: nnx.Rngs):
    height, width, channels = shape
    self.conv1 = Convolution(channels, 16, rngs=rngs)
    self.conv2 = Convolution(16, 32, rngs=rngs)
    self.hidden = nnx.Linear(32 * (height // 4) * (width // 4), 128, rngs=rngs)
    self.logits = nnx.Linear(128, classes, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[rows, height, width, channels]`` to ``[rows, classes]``."""
    x = _flat(self.conv2(self.conv1(x)))
    return self.logits(nnx.relu(self.hidden(x)))


class Model(NamedTuple):
  """A network as the report speaks of it."""

  build: Callable[..., nnx.Module]
  description: str


MODELS = {
  "mlp": Model(
    MLP, "multi-layer perceptron, two hidden layers of 256 units, ReLU"
  ),
  "bn-mlp": Model(
    BatchNormMLP,
    "multi-layer perceptron, three hidden layers of 256 units, ReLU, batch "
    "normalisation before each layer",
  ),
  "cnn": Model(
    CNN, "two convolutions (16 and 32 channels, 3x3, pooled) and 128 units"
  ),
  "linear": Model(Linear, "one linear layer"),
}

OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
  "adam": optax.adam,
  "adamw": functools.partial(optax.adamw, weight_decay=1e-2),
  "sgd": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
}
OPTIMIZER_NOTES = {
  "adam": "Adam, no weight decay",
  "adamw": "AdamW, weight decay 0.01",
  "sgd": "gradient descent with Nesterov momentum 0.9, no weight decay",
}


def check_shape(model: str, data: str, shape: tuple[int, ...]) -> None:
  """Raises unless a network takes rows of that shape."""
  if model == "cnn" and (len(shape) != 3 or min(shape[:2]) < 4):
    raise StudyError(
      f"cnn needs images (rows, height, width, channels) of 4 x 4 or more, and "
      f"a row of {data} has shape {shape}; use --model mlp, or give the images "
      "as a folder of IDX files or as x of an .npz file"
    )
