# SPDX-License-Identifier: Apache-2.0
"""Label smoothing, mixtures, masks and gradient accumulation with any loss.

Needs optax. Run: python examples/optax_composition.py
"""

import jax
import jax.numpy as jnp
import optax

import squentropy_jax
from squentropy_jax import losses

NUM_CLASSES = 10
MICRO = 64  # Rows in one micro-batch.
STEPS = 200


def smoothed(logits, labels, amount=0.1):
  """Squentropy with smoothed labels: a loss takes target distributions."""
  one_hot = jax.nn.one_hot(labels, NUM_CLASSES, dtype=logits.dtype)
  return squentropy_jax.squentropy(logits, optax.smooth_labels(one_hot, amount))


def mixed(logits, labels, share=0.5):
  """A weighted sum of two losses."""
  return share * losses.cross_entropy(logits, labels) + (
    1 - share
  ) * losses.rescaled_square(logits, labels, target_value=5.0)


def masked_mean(loss, logits, labels, where):
  """The mean over kept rows, or 0 if there is none; the loss takes the mask."""
  total = loss(logits, labels, where=where).sum()
  return total / jnp.maximum(where.sum(), 1)


def make_data(key, rows):
  """Random points around one centre for each class."""
  centres = jax.random.normal(jax.random.key(7), (NUM_CLASSES, 32))
  label_key, noise_key = jax.random.split(key)
  labels = jax.random.randint(label_key, (rows,), 0, NUM_CLASSES)
  noise = jax.random.normal(noise_key, (rows, 32))
  return centres[labels] + noise, labels


def train(objective):
  """Trains a linear classifier, with gradients averaged over 4 micro-batches.

  The mean of the micro-batches' means is right because they have equally many
  rows. With masks, sum the losses and the counts, and divide once.
  """
  optimizer = optax.MultiSteps(optax.adam(3e-2), every_k_schedule=4)
  kernel = jnp.zeros((32, NUM_CLASSES))

  def step(carry, key):
    kernel, state = carry
    features, labels = make_data(key, MICRO)
    value, grads = jax.value_and_grad(
      lambda kernel: objective(features @ kernel, labels).mean()
    )(kernel)
    updates, state = optimizer.update(grads, state, kernel)
    return (optax.apply_updates(kernel, updates), state), value

  keys = jax.random.split(jax.random.key(0), STEPS)
  (kernel, _), values = jax.lax.scan(
    step, (kernel, optimizer.init(kernel)), keys
  )
  return kernel, values


def main():
  """Trains with each objective, then shows what a mask does."""
  test_x, test_y = make_data(jax.random.key(1), 1000)
  objectives = {
    "squentropy": squentropy_jax.squentropy,
    "smoothed labels": smoothed,
    "half cross-entropy, half square": mixed,
  }
  for name, objective in objectives.items():
    kernel, values = train(objective)
    accuracy = ((test_x @ kernel).argmax(-1) == test_y).mean()
    print(
      f"{name:32} training loss {values[0]:.2f} -> {values[-1]:.2f}"
      f"  test accuracy {accuracy:.3f}"
    )

  logits = (test_x @ kernel)[:4].at[3].set(jnp.nan)
  labels, where = test_y[:4].at[3].set(-100), jnp.arange(4) < 3
  value, grads = jax.value_and_grad(masked_mean, argnums=1)(
    squentropy_jax.squentropy, logits, labels, where
  )
  assert jnp.isfinite(value)
  assert not grads[3].any()
  print(
    f"mean loss of 3 rows, with a fourth of NaN masked: {value:.3f}; the "
    "gradient is finite"
  )


if __name__ == "__main__":
  main()
