# SPDX-License-Identifier: Apache-2.0
"""Models and optimizers by name."""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from squentropy_study._study_error import StudyError


def _flat(x: jax.Array) -> jax.Array:
  return x.reshape(x.shape[0], -1)


class Linear(nnx.Module):
  """One linear layer."""

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
  """Three hidden layers of 256 units, batch normalisation before each layer."""

  def __init__(self, shape: tuple[int, ...], classes: int, *, rngs: nnx.Rngs):
    widths = (math.prod(shape), 256, 256, 256)
    self.norms = nnx.List(
      # The default momentum of 0.99 adapts too slowly for short training.
      nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
      for width in widths
    )
    self.layers = nnx.List(
      nnx.Linear(width, after, rngs=rngs)
      for width, after in zip(widths, (*widths[1:], classes), strict=True)
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[rows, ...]`` to logits ``[rows, classes]``."""
    x = self.layers[0](self.norms[0](_flat(x)))
    for norm, linear in zip(self.norms[1:], self.layers[1:], strict=True):
      x = linear(norm(nnx.relu(x)))
    return x


class Convolution(nnx.Module):
  """A 3x3 convolution, ReLU and 2x2 max pooling.

  All runs train under one ``vmap`` with separate weights. XLA has no fast
  convolution for that on CPU, so it is written as a product with patches.
  """

  def __init__(self, channels: int, features: int, *, rngs: nnx.Rngs):
    self.linear = nnx.Linear(9 * channels, features, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[rows, height, width, channels]`` to half height and width."""
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
  """Two pooled convolutions of 16 and 32 channels, and 128 hidden units."""

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
  """A model and its description in the report."""

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
    CNN,
    "two 3x3 convolutions (16 and 32 channels), each with 2x2 max pooling, and "
    "one hidden layer of 128 units",
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
  "sgd": "SGD with Nesterov momentum 0.9, no weight decay",
}


def check_shape(model: str, data: str, shape: tuple[int, ...]) -> None:
  """Raises unless a model takes rows of that shape."""
  if model == "cnn" and (len(shape) != 3 or min(shape[:2]) < 4):
    raise StudyError(
      "model cnn needs images of shape (height, width, channels), at least 4 x "
      f"4; a row of {data} has shape {shape}. Use --model mlp, or store images "
      "as array x of an .npz file"
    )
