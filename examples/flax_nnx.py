# SPDX-License-Identifier: Apache-2.0
"""Flax NNX: optax's cross-entropy and squentropy in the same training step.

Needs flax, optax and scikit-learn. Run: python examples/flax_nnx.py
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import squentropy_jax

EPOCHS = 20
BATCH = 128


class Classifier(nnx.Module):
  """Two dense layers."""

  def __init__(self, rngs: nnx.Rngs):
    self.hidden = nnx.Linear(64, 128, rngs=rngs)
    self.out = nnx.Linear(128, 10, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits ``[batch, 10]`` of features ``[batch, 64]``."""
    return self.out(nnx.relu(self.hidden(x)))


@functools.partial(nnx.jit, static_argnames="loss")
def train_step(model, optimizer, features, labels, loss):
  """One step of Adam. Both losses take the same arguments."""

  def objective(model):
    return loss(model(features), labels).mean()

  value, grads = nnx.value_and_grad(objective)(model)
  optimizer.update(model, grads)
  return value


def train(loss, features, labels):
  """A classifier, and the loss of its last training step."""
  model = Classifier(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.adam(5e-3), wrt=nnx.Param)
  key = jax.random.key(0)
  for epoch in range(EPOCHS):
    order = jax.random.permutation(jax.random.fold_in(key, epoch), 1500)
    for rows in order[: 1500 // BATCH * BATCH].reshape(-1, BATCH):
      value = train_step(model, optimizer, features[rows], labels[rows], loss)
  return model, value


def main():
  """Trains on the first 1500 digits, tests on the other 297."""
  features, labels = load_digits(return_X_y=True)
  features = jnp.asarray(features / 16, jnp.float32)
  labels = jnp.asarray(labels)
  for loss in (
    optax.softmax_cross_entropy_with_integer_labels,
    squentropy_jax.squentropy_with_integer_labels,
  ):
    model, value = train(loss, features, labels)
    correct = model(features[1500:]).argmax(-1) == labels[1500:]
    print(
      f"{loss.__name__:44} training loss {value:.3f}"
      f"  test accuracy {correct.mean():.3f}"
    )


if __name__ == "__main__":
  main()
