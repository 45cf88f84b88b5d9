# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Angular margins and new classes
#
# A network learns eight of the ten digits by the angles between embeddings and
# class vectors. The two other digits are added after the training.

# %%
import functools

import jax
import jax.numpy as jnp
from matplotlib import pyplot as plt
import optax
from sklearn.datasets import load_digits

from squentropy_jax import heads, losses

images, digits = map(jnp.asarray, load_digits(return_X_y=True))
images = images / 16
# Every second image is for tests.
train_x, train_y = images[::2], digits[::2]
test_x, test_y = images[1::2], digits[1::2]
known = train_y < 8


def embed(params, x):
  """Embeddings of 32 numbers."""
  return jax.nn.relu(x @ params["w1"]) @ params["w2"]


@functools.partial(jax.jit, static_argnames="loss")
def trained(loss):
  """Parameters after 300 steps of Adam on the known digits."""
  keys = jax.random.split(jax.random.key(0), 3)
  params = {
    "w1": jax.random.normal(keys[0], (64, 128)) / 8,
    "w2": jax.random.normal(keys[1], (128, 32)) / 11,
    "kernel": jax.random.normal(keys[2], (32, 8)),
  }
  optimizer = optax.adam(1e-2)

  def objective(params):
    cosines = heads.cosine_logits(embed(params, train_x), params["kernel"])
    each = loss(cosines, train_y % 8, scale=16.0, where=known)
    return each.sum() / known.sum()

  def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(objective)(params), state)
    return (optax.apply_updates(params, updates), state), None

  carry = params, optimizer.init(params)
  return jax.lax.scan(step, carry, length=300)[0][0]


# %% [markdown]
# ## Training without and with a margin
#
# The margin of `cosface` lowers the cosine of the labelled class in the
# training. The cosines with the labelled class and with the others become more
# different. One run on 721 test images does not show which accuracy is better.

# %%
_, panels = plt.subplots(
  1, 2, figsize=(8, 3.2), sharey=True, layout="constrained"
)
seen = test_y < 8
for panel, loss in zip(
  panels, (losses.normalized_softmax, losses.cosface), strict=True
):
  params = trained(loss)
  cosines = heads.cosine_logits(embed(params, test_x), params["kernel"])[seen]
  is_own = jax.nn.one_hot(test_y[seen], 8, dtype=bool)
  for name, rows in (("labelled class", is_own), ("other classes", ~is_own)):
    panel.hist(cosines[rows], bins=40, range=(-1, 1), density=True, label=name)
  panel.set_title(loss.__name__)
  panel.set_xlabel("cosine")
  accuracy = (cosines.argmax(-1) == test_y[seen]).mean()
  print(f"{loss.__name__:18} accuracy {accuracy:.3f}")
_ = panels[0].legend(frameon=False)

# %% [markdown]
# ## Classes that are added later
#
# `heads.extend_classes` appends the mean direction of the embeddings of a new
# class to the kernel. It trains nothing, so the new digits are recognised less
# often than the known ones.

# %%
kernel = heads.unit_columns(params["kernel"])
for digit in (8, 9):
  examples = embed(params, train_x[train_y == digit])
  kernel = heads.extend_classes(kernel, examples)
predicted = heads.cosine_logits(embed(params, test_x), kernel).argmax(-1)
for name, rows in (("known", test_y < 8), ("new", test_y >= 8)):
  print(f"accuracy of {name} digits {(predicted == test_y)[rows].mean():.3f}")

# %% [markdown]
# [Angular heads](../angular_heads.md) describes the losses, margins that change
# during the training, and fused heads.
