# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Your own loss
#
# A formula over the statistics of one row defines a loss. This one is
# cross-entropy plus a penalty if the labelled logit exceeds the largest other
# logit by less than a margin.

# %%
import functools

import jax
import jax.numpy as jnp
from matplotlib import pyplot as plt

from squentropy_jax import fused, row_loss


@row_loss(domains={"weight": "[0, inf)", "margin": "[0, inf)"})
def with_margin(stats, *, weight=0.5, margin=2.0):
  """Cross-entropy plus a hinge on the largest incorrect logit."""
  violation = jax.nn.relu(margin + stats.rest_max - stats.target)
  return jax.nn.softplus(stats.log_odds) + weight * violation


# %% [markdown]
# ## What follows from the formula
#
# The loss takes class ids, soft labels, masks, and one hyper-parameter for each
# example. It checks all of them.

# %%
logits = jax.random.normal(jax.random.key(0), (4, 6))
labels = jnp.array([0, 1, 2, 3])
print(with_margin(logits, labels))
print(with_margin(logits, jax.nn.one_hot(labels, 6)))
print(with_margin(logits, labels, margin=jnp.array([0.0, 1.0, 2.0, 3.0])))
print(with_margin(logits, labels, where=jnp.array([True, True, False, True])))

# %%
try:
  with_margin(logits, labels, margin=-1.0)
except ValueError as error:
  print(error)

# %% [markdown]
# It also works in the fused head, which never stores the logits.

# %%
keys = jax.random.split(jax.random.key(1))
features = jax.random.normal(keys[0], (4, 8))
kernel = jax.random.normal(keys[1], (8, 1000))
loss = functools.partial(with_margin, margin=1.0)
print(fused.linear_loss(loss, features, kernel, labels))
print(loss(features @ kernel, labels))

# %% [markdown]
# ## A picture of it

# %%
target = jnp.linspace(-4.0, 6.0, 200)
others = jnp.broadcast_to(jnp.array([0.0, -1.0, -2.0]), (200, 3))
rows = jnp.concatenate([target[:, None], others], axis=1)
_, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for weight in (0.0, 0.5, 1.0):
  each = with_margin(rows, jnp.zeros(200, int), weight=weight)
  axes.plot(target, each, label=f"weight {weight:g}")
axes.set_xlabel("logit of the labelled class")
axes.set_ylabel("loss")
_ = axes.legend(frameon=False)

# %% [markdown]
# [Your own loss in five lines](../own_loss.md) lists the statistics, and
# explains transforms of the logits and label smoothing.
