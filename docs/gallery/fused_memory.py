# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Memory of a fused head
#
# An output layer with many classes needs more memory for its logits than for
# its weights. `fused.linear_loss_sum` computes the same loss and gradients in
# tiles. The compiler says how much temporary memory each program needs.

# %%
import jax
import jax.numpy as jnp
from matplotlib import pyplot as plt

from squentropy_jax import fused, losses

WIDTH, CLASSES = 64, 16384


def full(features, kernel, labels):
  """The mean loss from all logits."""
  return losses.squentropy(features @ kernel, labels).mean()


def in_tiles(features, kernel, labels):
  """The same mean, without all logits."""
  sums = fused.linear_loss_sum(losses.squentropy, features, kernel, labels)
  return sums.loss / sums.weight


# %% [markdown]
# ## The same result

# %%
keys = jax.random.split(jax.random.key(0), 3)
features = jax.random.normal(keys[0], (256, WIDTH))
kernel = jax.random.normal(keys[1], (WIDTH, CLASSES)) / 8
labels = jax.random.randint(keys[2], (256,), 0, CLASSES)
for function in (full, in_tiles):
  step = jax.jit(jax.value_and_grad(function, (0, 1)))
  value, gradients = step(features, kernel, labels)
  norm = jnp.linalg.norm(gradients[1])
  print(f"{function.__name__:9} loss {value:.5f}, kernel gradient {norm:.5f}")

# %% [markdown]
# ## Memory against the number of tokens
#
# Nothing is computed here: the programs are only compiled.

# %%
TOKENS = (512, 1024, 2048, 4096)


def temporary_mib(function, tokens):
  """Temporary memory of value and gradients."""
  shapes = (
    jax.ShapeDtypeStruct((tokens, WIDTH), jnp.float32),
    jax.ShapeDtypeStruct((WIDTH, CLASSES), jnp.float32),
    jax.ShapeDtypeStruct((tokens,), jnp.int32),
  )
  compiled = jax.jit(jax.value_and_grad(function, (0, 1))).lower(*shapes)
  return compiled.compile().memory_analysis().temp_size_in_bytes / 2**20


figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for function, label in ((full, "all logits"), (in_tiles, "fused head")):
  mib = [temporary_mib(function, tokens) for tokens in TOKENS]
  axes.plot(TOKENS, mib, marker="o", label=label)
  print(label, [round(m) for m in mib], "MiB")
axes.set_xlabel("tokens")
axes.set_ylabel("temporary memory, MiB")
_ = axes.legend(frameon=False)

# %% [markdown]
# `fused.Plan` chooses the mode and the memory budget:
# [Large vocabularies](../fused.md) describes both.
