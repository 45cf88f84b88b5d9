# SPDX-License-Identifier: Apache-2.0
"""Trains on some classes, adds others without training, and scales up.

A network learns eight of the ten digits with an angular loss. The two others
get the mean direction of their features. Then a fused angular head learns
100 000 classes, without the cosines of a batch in memory.

Needs optax and scikit-learn. Run: python examples/angular_head.py
"""

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

from squentropy_jax import fused, heads, losses

TRAINED, DIGITS, WIDTH = 8, 10, 64
STEPS = 100
CLASSES, MANY_WIDTH, ROWS, MANY_STEPS = 100_000, 16, 256, 10


def load():
  """Images in [0, 1] and digits, for training and test."""
  images, digits = load_digits(return_X_y=True)
  images = (images / 16).astype(np.float32)
  return (images[::2], digits[::2]), (images[1::2], digits[1::2])


def embed(params, images):
  """The features of a network with one hidden layer."""
  return jax.nn.relu(images @ params["w1"]) @ params["w2"]


def accuracy(params, kernel, images, digits):
  """The share of images that are closest to the vector of their digit."""
  cosines = heads.cosine_logits(embed(params, images), kernel)
  return (cosines.argmax(-1) == digits).mean()


def train(images, digits):
  """Parameters and kernel, after a projection of the kernel in every step."""
  keys = jax.random.split(jax.random.key(0), 3)
  params = {
    "w1": jax.random.normal(keys[0], (64, 128)) / 8,
    "w2": jax.random.normal(keys[1], (128, WIDTH)) / 11,
    "kernel": heads.unit_columns(jax.random.normal(keys[2], (WIDTH, TRAINED))),
  }
  optimizer = optax.adam(3e-3)

  def objective(params):
    cosines = heads.cosine_logits(embed(params, images), params["kernel"])
    return losses.normalized_softmax(cosines, digits).mean()

  def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(objective)(params), state)
    params = optax.apply_updates(params, updates)
    params["kernel"] = heads.unit_columns(params["kernel"])
    return (params, state), None

  carry = params, optimizer.init(params)
  (params, _), _ = jax.lax.scan(step, carry, length=STEPS)
  return params


def digits_added_later():
  """Learns eight digits, then adds two."""
  (images, digits), (test_images, test_digits) = load()
  known, test_known = digits < TRAINED, test_digits < TRAINED
  params = jax.jit(train)(images[known], digits[known])
  kernel = params["kernel"]
  found = accuracy(
    params, kernel, test_images[test_known], test_digits[test_known]
  )
  print(f"eight digits: accuracy {found:.3f}")
  for digit in range(TRAINED, DIGITS):
    features = embed(params, images[digits == digit])
    kernel = heads.extend_classes(kernel, features)
  found = accuracy(params, kernel, test_images, test_digits)
  print(f"ten digits, two of them without training: accuracy {found:.3f}")


def many_classes():
  """Ten steps of a fused ArcFace head with 100 000 classes."""
  keys = jax.random.split(jax.random.key(1), 3)
  # Each class has features close to a direction of its own.
  centres = heads.normalize(jax.random.normal(keys[0], (ROWS, MANY_WIDTH)))
  labels = jax.random.choice(keys[1], CLASSES, (ROWS,), replace=False)
  kernel = jax.random.normal(keys[2], (MANY_WIDTH, CLASSES))

  def objective(kernel):
    loss = fused.linear_loss(
      losses.arcface, centres, heads.unit_columns(kernel), labels
    )
    return loss.mean()

  @jax.jit
  def step(kernel):
    value, gradient = jax.value_and_grad(objective)(kernel)
    return kernel - 20.0 * gradient, value

  memory = step.lower(kernel).compile().memory_analysis().temp_size_in_bytes
  for number in range(MANY_STEPS):
    kernel, value = step(kernel)
    if number in (0, MANY_STEPS - 1):
      print(f"step {number + 1:2}: loss {value:6.2f}")
  cosines = heads.cosine_logits(centres, kernel)
  found = (cosines.argmax(-1) == labels).mean()
  print(f"{CLASSES} classes: accuracy {found:.3f}")
  print(
    f"Temporary memory of a step {memory / 2**20:.0f} MiB; the cosines take "
    f"{ROWS * CLASSES * 4 / 2**20:.0f} MiB."
  )


if __name__ == "__main__":
  digits_added_later()
  many_classes()
