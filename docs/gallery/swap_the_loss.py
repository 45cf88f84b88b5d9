# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Swap the loss in a training loop
#
# A convolutional network in Flax NNX learns small colour images, as it would
# learn CIFAR-10. The images are made here, so that nothing is downloaded: each
# class is a grating with an angle and a colour, under noise. One argument of
# the training step is the loss.

# %%
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from squentropy_jax import calibration, losses

CLASSES, SIZE = 10, 16


def images(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """Noisy gratings ``[count, 16, 16, 3]`` and their classes."""
  keys = jax.random.split(key, 4)
  labels = jax.random.randint(keys[0], (count,), 0, CLASSES)
  turn = 0.2 * jax.random.normal(keys[1], (count,))
  angle = (jnp.pi * labels / CLASSES + turn)[:, None, None]
  phase = jax.random.uniform(keys[2], (count, 1, 1), maxval=2 * jnp.pi)
  y, x = jnp.mgrid[:SIZE, :SIZE] * 0.9
  wave = jnp.sin(jnp.cos(angle) * x[None] + jnp.sin(angle) * y[None] + phase)
  colour = jax.nn.one_hot(labels % 3, 3)[:, None, None]
  noise = 0.7 * jax.random.normal(keys[3], (count, SIZE, SIZE, 3))
  return wave[..., None] * (0.6 + 0.4 * colour) + noise, labels


train_x, train_y = images(jax.random.key(0), 1024)
test_x, test_y = images(jax.random.key(1), 1024)

# %% [markdown]
# ## Model and training step

# %%


class Network(nnx.Module):
  """Two convolutions with strides, and a dense layer."""

  def __init__(self, rngs: nnx.Rngs):
    self.first = nnx.Conv(3, 16, (3, 3), strides=2, rngs=rngs)
    self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
    self.out = nnx.Linear(32 * 16, CLASSES, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits ``[batch, 10]`` of images ``[batch, 16, 16, 3]``."""
    x = nnx.relu(self.second(nnx.relu(self.first(x))))
    return self.out(x.reshape(len(x), -1))


@functools.partial(nnx.jit, static_argnames="loss")
def train_step(model, optimizer, x, y, loss):
  """One step of Adam with any loss of logits and labels."""

  def objective(model):
    return loss(model(x), y).mean()

  value, gradients = nnx.value_and_grad(objective)(model)
  optimizer.update(model, gradients)
  return value


def trained(loss, epochs=20, batch=64):
  """A network after some epochs."""
  model = Network(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)
  rng = np.random.default_rng(0)
  for _ in range(epochs):
    for rows in rng.permutation(len(train_x)).reshape(-1, batch):
      train_step(model, optimizer, train_x[rows], train_y[rows], loss)
  return model


# %% [markdown]
# ## Three losses
#
# `log_probs` returns the probabilities that a loss predicts. Those of the
# rescaled square loss are not the softmax.

# %%
for loss in (losses.cross_entropy, losses.squentropy, losses.rescaled_square):
  logits = trained(loss)(test_x)
  probabilities = jnp.exp(loss.log_probs(logits))
  stats = calibration.bin_stats(probabilities, test_y)
  print(
    f"{loss.__name__:16}"
    f" accuracy {calibration.accuracy(probabilities, test_y):.3f}"
    f"  ECE {calibration.expected_calibration_error(stats):.3f}"
  )

# %% [markdown]
# One seed and one data set prove nothing about the losses:
# [compare them on your data](compare_losses.py) with several seeds.
