# SPDX-License-Identifier: Apache-2.0
"""A convolutional network with an SVM as its last layer, against softmax.

The squared hinge of one binary problem per class, plus a penalty on the kernel
of the last layer, is the objective of linear support vector machines.

Needs flax, optax and scikit-learn. Run: python examples/cnn_svm.py
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from squentropy_jax import losses

EPOCHS = 15
BATCH = 125
# Weight of the mean square of the last kernel, with the SVM only.
PENALTY = 0.1


class Classifier(nnx.Module):
  """Two convolutions, of which the second halves the image, and one layer."""

  def __init__(self, rngs: nnx.Rngs):
    self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
    self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
    self.out = nnx.Linear(4 * 4 * 32, 10, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Logits ``[batch, 10]`` of images ``[batch, 8, 8, 1]``."""
    x = nnx.relu(self.second(nnx.relu(self.first(images))))
    return self.out(x.reshape(len(x), -1))


def svm(model, images, labels):
  """The mean hinge of the images, and the penalty of the last kernel."""
  hinge = losses.one_vs_rest_hinge(model(images), labels).mean()
  return hinge + PENALTY * (model.out.kernel[...] ** 2).mean()


def softmax(model, images, labels):
  """The mean cross-entropy of the images."""
  return losses.cross_entropy(model(images), labels).mean()


@functools.partial(nnx.jit, static_argnames="objective")
def train_step(model, optimizer, images, labels, objective):
  """One step of Adam."""
  grads = nnx.grad(objective)(model, images, labels)
  optimizer.update(model, grads)


def train(objective, images, labels):
  """A classifier that is trained with one of the objectives."""
  model = Classifier(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)
  for epoch in range(EPOCHS):
    key = jax.random.fold_in(jax.random.key(0), epoch)
    order = jax.random.permutation(key, len(images))
    for rows in order.reshape(-1, BATCH):
      train_step(model, optimizer, images[rows], labels[rows], objective)
  return model


def main():
  """Trains on the first 1500 digits, tests on the other 297."""
  features, labels = load_digits(return_X_y=True)
  images = jnp.asarray(features / 16, jnp.float32).reshape(-1, 8, 8, 1)
  labels = jnp.asarray(labels)
  for objective in (svm, softmax):
    model = train(objective, images[:1500], labels[:1500])
    # An SVM predicts the class with the largest score, as softmax does.
    correct = model(images[1500:]).argmax(-1) == labels[1500:]
    print(f"{objective.__name__:8} test accuracy {correct.mean():.3f}")


if __name__ == "__main__":
  main()
