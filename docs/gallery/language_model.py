# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # A language model
#
# A small model predicts the next character of Python source from the eight
# characters before it. The text is that of modules of the standard library.
# The fused head computes loss and metrics without the logits of all positions.

# %%
import argparse
import inspect
import json
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax

from squentropy_jax import fused, losses, row_loss, rows

text = "".join(map(inspect.getsource, (argparse, json, textwrap)))
letters = sorted(set(text))
ids = np.array([letters.index(letter) for letter in text], np.int32)
CONTEXT, WIDTH, CLASSES = 8, 64, len(letters)
windows = np.lib.stride_tricks.sliding_window_view(ids, CONTEXT + 1)
train, test = windows[:-4096], windows[-4096:]
print(f"{len(ids)} characters, {CLASSES} different ones")
shares = np.bincount(ids, minlength=CLASSES) / len(ids)
print(
  f"without context: NLL {-np.log(shares[test[:, -1]]).mean():.3f},"
  f" accuracy {(test[:, -1] == shares.argmax()).mean():.3f}"
)

# %% [markdown]
# ## Loss and metrics in one pass
#
# The loss is squentropy with a z-loss, declared in three lines. `metrics` are
# row formulas whose sums come from the same pass over the tiles.

# %%


@row_loss
def with_z_loss(stats):
  """Squentropy with a small scale, and a z-loss."""
  squentropy = losses.squentropy.row(stats, scale=0.1)
  return squentropy + 1e-4 * rows.z_loss(stats)


METRICS = {"nll": losses.cross_entropy.row, "accuracy": rows.correct}


def sums(params, batch):
  """Sums over the rows of a batch."""
  context = params["embedding"][batch[:, :-1]].reshape(len(batch), -1)
  hidden = jnp.tanh(context @ params["mix"])
  features = hidden @ params["project"]
  # The embedding is also the kernel of the head, of shape [classes, width].
  return fused.linear_loss_sum(
    with_z_loss,
    features,
    params["embedding"],
    batch[:, -1],
    class_axis=0,
    metrics=METRICS,
  )


def objective(params, batch):
  """The mean loss, and the means of the metrics."""
  found = sums(params, batch)
  metrics = {name: x / found.weight for name, x in found.metrics.items()}
  return found.loss / found.weight, metrics


optimizer = optax.adam(3e-3)


@jax.jit
def train_steps(params, state, batches):
  """One step of Adam for each batch."""

  def step(carry, batch):
    params, state = carry
    grads, metrics = jax.grad(objective, has_aux=True)(params, batch)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(params, updates), state), metrics

  (params, state), metrics = jax.lax.scan(step, (params, state), batches)
  return params, state, metrics


keys = jax.random.split(jax.random.key(0), 3)
shapes = {
  "embedding": (CLASSES, WIDTH),
  "mix": (CONTEXT * WIDTH, 128),
  "project": (128, WIDTH),
}
params = {
  name: jax.random.normal(key, shape) / shape[0] ** 0.5
  for (name, shape), key in zip(shapes.items(), keys, strict=True)
}
state = optimizer.init(params)
rng = np.random.default_rng(0)
for epoch in range(4):
  batches = train[rng.integers(0, len(train), (250, 256))]
  params, state, _ = train_steps(params, state, batches)
  _, metrics = jax.jit(objective)(params, test)
  print(
    f"step {250 * (epoch + 1)}: held-out NLL {metrics['nll']:.3f},"
    f" accuracy {metrics['accuracy']:.3f}"
  )

# %% [markdown]
# ## Log-probabilities
#
# `fused.linear_log_probs` gives the log-probability of each label, for
# perplexities or reinforcement learning.

# %%


@jax.jit
def log_probs(params, batch):
  """Log-probabilities of the last character of each row."""
  context = params["embedding"][batch[:, :-1]].reshape(len(batch), -1)
  features = jnp.tanh(context @ params["mix"]) @ params["project"]
  return fused.linear_log_probs(
    features, params["embedding"], batch[:, -1], class_axis=0
  )


found = log_probs(params, test)
print(f"perplexity {jnp.exp(-found.log_prob.mean()):.2f} of {CLASSES}")

# %% [markdown]
# ## A sample
#
# The model continues the last eight characters of the training text.

# %%


@jax.jit
def sample(params, key):
  """Draws the next 300 characters, one after the other."""

  def step(context, key):
    vectors = params["embedding"][context].reshape(-1)
    features = jnp.tanh(vectors @ params["mix"]) @ params["project"]
    drawn = jax.random.categorical(key, params["embedding"] @ features)
    return jnp.append(context[1:], drawn), drawn

  return jax.lax.scan(step, train[-1, 1:], jax.random.split(key, 300))[1]


drawn = np.asarray(sample(params, jax.random.key(1)))
print("".join(letters[i] for i in drawn))

# %% [markdown]
# [examples/pods](../pods.md) is a decoder with attention that trains over many
# devices.
