# SPDX-License-Identifier: Apache-2.0
"""Flax NNX: the loss is the one line that changes.

Needs flax, optax and scikit-learn. Run: python examples/flax_nnx.py
"""

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


def objective(model, features, labels):
  """Before: optax.softmax_cross_entropy_with_integer_labels, same arguments."""
  logits = model(features)
  return squentropy_jax.squentropy_with_integer_labels(logits, labels).mean()


@nnx.jit
def train_step(model, optimizer, features, labels):
  """One step of Adam."""
  loss, grads = nnx.value_and_grad(objective)(model, features, labels)
  optimizer.update(model, grads)
  return loss


def main():
  """Trains on the first 1500 digits, tests on the rest."""
  features, labels = load_digits(return_X_y=True)
  features = jnp.asarray(features / 16, jnp.float32)
  labels = jnp.asarray(labels)
  model = Classifier(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.adam(5e-3), wrt=nnx.Param)
  key = jax.random.key(0)
  for epoch in range(EPOCHS):
    order = jax.random.permutation(jax.random.fold_in(key, epoch), 1500)
    for rows in order[: 1500 // BATCH * BATCH].reshape(-1, BATCH):
      loss = train_step(model, optimizer, features[rows], labels[rows])
  correct = model(features[1500:]).argmax(-1) == labels[1500:]
  print(f"loss {loss:.3f}  test accuracy {correct.mean():.3f}")


if __name__ == "__main__":
  main()
