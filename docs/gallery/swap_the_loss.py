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
from matplotlib import pyplot as plt
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
held_out_x, held_out_y = images(jax.random.key(1), 512)
test_x, test_y = images(jax.random.key(2), 1024)

_, panels = plt.subplots(2, 5, figsize=(6, 2.6), layout="constrained")
for number, panel in enumerate(panels.flat):
  image = train_x[jnp.argmax(train_y == number)]
  panel.imshow(jnp.clip(0.5 + image / 5, 0.0, 1.0))
  panel.set_title(f"class {number}", fontsize=8)
  panel.axis("off")

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


def trained(loss, seed, epochs=8, batch=64):
  """A network after some epochs."""
  model = Network(nnx.Rngs(seed))
  optimizer = nnx.Optimizer(model, optax.adam(4e-3), wrt=nnx.Param)
  rng = np.random.default_rng(seed)
  for _ in range(epochs):
    for rows in rng.permutation(len(train_x)).reshape(-1, batch):
      train_step(model, optimizer, train_x[rows], train_y[rows], loss)
  return model


# %% [markdown]
# ## Three losses, three seeds
#
# `log_probs` returns the logarithms of the probabilities that a loss predicts.
# Those of the rescaled square loss are not the softmax. The last column is the
# calibration error (ECE) after a temperature that is fitted on held-out images.

# %%


def row(loss, seed):
  """Accuracy, ECE, and ECE after a temperature, on the test images."""
  model = trained(loss, seed)
  logits = model(test_x)
  temperature = calibration.fit_temperature(model(held_out_x), held_out_y)
  scaled = calibration.apply(temperature, logits)
  errors = [
    calibration.expected_calibration_error(calibration.bin_stats(p, test_y))
    for p in (jnp.exp(loss.log_probs(logits)), jax.nn.softmax(scaled))
  ]
  return calibration.accuracy(jax.nn.softmax(logits), test_y), *errors


print(
  f"{'mean (range over seeds)':24}{'accuracy':>21}{'ECE':>21}{'scaled':>21}"
)
for loss in (losses.cross_entropy, losses.squentropy, losses.rescaled_square):
  found = np.array([row(loss, seed) for seed in range(3)])
  print(f"{loss.__name__:24}", end="")
  for low, mean, high in zip(
    found.min(axis=0), found.mean(axis=0), found.max(axis=0), strict=True
  ):
    print(f"  {mean:.3f} ({low:.3f}-{high:.3f})", end="")
  print()

# %% [markdown]
# After so short a training, the probabilities of squentropy and of the square
# loss are not confident enough, and a temperature corrects them. Three seeds on
# one data set are no evidence for any loss: [compare them on your
# data](compare_losses.py).
