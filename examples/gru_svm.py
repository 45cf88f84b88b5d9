# SPDX-License-Identifier: Apache-2.0
"""A recurrent network whose last layer is an SVM, against cross-entropy.

The task: sequences of random symbols. The label says whether the symbol 0 is
more frequent than the symbol 1.

Needs flax and optax. Run: python examples/gru_svm.py
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from squentropy_jax import losses

LENGTH = 32
SYMBOLS = 4
STEPS = 100
BATCH = 128
# Half of it is the weight of the squared last kernel, with the SVM only.
PENALTY = 1e-3


@functools.partial(jax.jit, static_argnames="num")
def sequences(key, num):
  """Symbols ``[num, LENGTH]``, and labels that are 0 or 1."""
  symbols = jax.random.randint(key, (num, LENGTH), 0, SYMBOLS)
  counts = [(symbols == symbol).sum(-1) for symbol in (0, 1)]
  return symbols, (counts[0] > counts[1]).astype(jnp.int32)


class Classifier(nnx.Module):
  """A layer of gated recurrent units, and one score of its last state."""

  def __init__(self, rngs: nnx.Rngs):
    self.units = nnx.RNN(nnx.GRUCell(SYMBOLS, 32, rngs=rngs), rngs=rngs)
    self.out = nnx.Linear(32, 1, rngs=rngs)

  def __call__(self, symbols: jax.Array) -> jax.Array:
    """Logits ``[batch, 2]``, which are ``-score`` and ``score``."""
    states = self.units(jax.nn.one_hot(symbols, SYMBOLS))
    score = self.out(states[:, -1])
    return jnp.concatenate([-score, score], axis=-1)


def svm(model, symbols, labels):
  """The mean hinge, and the penalty of an SVM on the last kernel.

  The logits of two classes differ in sign only, so that the loss of an example
  is twice the squared hinge of its score.
  """
  hinge = losses.one_vs_rest_hinge(model(symbols), labels).mean() / 2
  return hinge + PENALTY / 2 * (model.out.kernel[...] ** 2).sum()


def cross_entropy(model, symbols, labels):
  """The mean logistic loss."""
  return losses.cross_entropy(model(symbols), labels).mean()


@functools.partial(nnx.jit, static_argnames="objective")
def train_step(model, optimizer, key, objective):
  """One step of Adam on new sequences."""
  grads = nnx.grad(objective)(model, *sequences(key, BATCH))
  optimizer.update(model, grads)


def train(objective):
  """A classifier that is trained with one of the objectives."""
  model = Classifier(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
  for key in jax.random.split(jax.random.key(0), STEPS):
    train_step(model, optimizer, key, objective)
  return model


def main():
  """Trains on new sequences in every step, tests on 2000 others."""
  symbols, labels = sequences(jax.random.key(1), 2000)
  for objective in (svm, cross_entropy):
    correct = train(objective)(symbols).argmax(-1) == labels
    print(f"{objective.__name__:14} test accuracy {correct.mean():.3f}")


if __name__ == "__main__":
  main()
