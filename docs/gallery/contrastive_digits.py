# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Contrastive learning
#
# Which lower half belongs to which upper half of a handwritten digit? Two
# linear towers map the halves to vectors of length 1. InfoNCE makes the
# similarity of the two halves of an image larger than that of halves of
# different images.

# %%
import functools

import jax
import jax.numpy as jnp
from matplotlib import pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from squentropy_jax import heads, retrieval

pixels = load_digits().images / 16
images = jnp.asarray(pixels - pixels.mean(axis=0))
order = np.random.default_rng(0).permutation(len(images))
upper, lower = images[:, :4].reshape(-1, 32), images[:, 4:].reshape(-1, 32)
train, test = order[:1536], order[1536:]


def similarities(params, rows):
  """Cosines of all upper and lower halves."""
  queries = heads.normalize(jnp.tanh(upper[rows] @ params["q1"]) @ params["q2"])
  documents = heads.normalize(
    jnp.tanh(lower[rows] @ params["d1"]) @ params["d2"]
  )
  return queries @ documents.T


# %% [markdown]
# ## Training
#
# The positives are the diagonal, so `positives` is left out. `temperature`
# divides the cosines. Both directions are trained.

# %%
loss = functools.partial(retrieval.info_nce, temperature=0.1)


def objective(params, rows):
  """The mean of both directions."""
  s = similarities(params, rows)
  return (loss(s) + loss(s.T)).mean() / 2


optimizer = optax.adam(3e-3)


@jax.jit
def epoch(params, state, batches):
  """One step for each batch of rows."""

  def step(carry, rows):
    params, state = carry
    value, grads = jax.value_and_grad(objective)(params, rows)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(params, updates), state), value

  (params, state), values = jax.lax.scan(step, (params, state), batches)
  return params, state, values.mean()


@jax.jit
def recall(params):
  """How often the most similar lower half is the right one, of 261."""
  s = similarities(params, test)
  return (s.argmax(axis=-1) == jnp.arange(len(test))).mean()


keys = jax.random.split(jax.random.key(0), 4)
params = {
  name: jax.random.normal(key, shape) / shape[0] ** 0.5
  for name, key, shape in zip(
    ("q1", "d1", "q2", "d2"), keys, [(32, 64)] * 2 + [(64, 32)] * 2, strict=True
  )
}
state = optimizer.init(params)
print(f"before: recall@1 {recall(params):.3f}")
rng = np.random.default_rng(0)
for number in range(1, 41):
  batches = rng.permutation(train).reshape(-1, 128)
  params, state, value = epoch(params, state, batches)
  if number % 10 == 0:
    print(f"epoch {number}: loss {value:.3f}, recall@1 {recall(params):.3f}")

# %% [markdown]
# Recall@1 is how often the most similar lower half is the right one. Chance is
# 1 in 261. The picture shows ten upper halves, each with its own lower half and
# with the lower half that the towers find.

# %%
found = similarities(params, test).argmax(axis=-1)
_, panels = plt.subplots(2, 10, figsize=(8, 2.2), layout="constrained")
for column, (own, other) in enumerate(
  zip(test[:10], test[np.asarray(found[:10])], strict=True)
):
  for panel, half in zip(panels[:, column], (own, other), strict=True):
    both = np.concatenate([pixels[own, :4], pixels[half, 4:]])
    panel.imshow(both, cmap="gray_r")
    panel.axhline(3.5, color="tab:red", lw=1)
    panel.set(xticks=[], yticks=[])
panels[0, 0].set_ylabel("own")
_ = panels[1, 0].set_ylabel("found")

# %% [markdown]
# ## Several positives
#
# `positives` is a mask of the similarities' shape. Here all images of the same
# digit are positives of each other, and `where` leaves out the image itself.

# %%
digits = jnp.asarray(load_digits().target)[test]
vectors = heads.normalize(jnp.tanh(lower[test] @ params["d1"]) @ params["d2"])
same = digits[:, None] == digits[None]
each = loss(vectors @ vectors.T, same, where=~jnp.eye(len(test), dtype=bool))
print(each.mean())

# %% [markdown]
# [Retrieval losses](../losses/retrieval.md) lists the others, and
# [mining](../mining.md) makes batches with difficult negatives.
