# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # First steps
#
# A loss takes logits and labels, and returns one number for each example.

# %%
import jax
import jax.numpy as jnp

from squentropy_jax import losses

logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
labels = jnp.array([0, 2])
print(losses.squentropy(logits, labels))

# %% [markdown]
# Squentropy is cross-entropy plus the mean square of the incorrect classes'
# logits. `scale` multiplies the square term, for all examples or for each one.

# %%
print(losses.cross_entropy(logits, labels))
print(losses.squentropy(logits, labels, scale=0.0))
print(losses.squentropy(logits, labels, scale=jnp.array([0.0, 1.0])))

# %% [markdown]
# The gradient of the square term pulls the logits of the incorrect classes
# towards 0. Cross-entropy pushes them down without a limit. The first example
# here is confident: the gradient of cross-entropy is almost 0, and that of
# squentropy is not.

# %%


def gradient(loss):
  """The gradient of the sum over examples."""
  return jax.grad(lambda z: loss(z, labels).sum())(10 * logits)


with jnp.printoptions(precision=3, suppress=True):
  print(gradient(losses.cross_entropy))
  print(gradient(losses.squentropy))

# %% [markdown]
# ## Labels and masks
#
# Labels are class ids, or target distributions of the logits' shape. `where`
# drops examples or classes.

# %%
smooth = 0.9 * jax.nn.one_hot(labels, 3) + 0.1 / 3
keep = jnp.array([True, False])
print(losses.squentropy(logits, smooth))
each = losses.squentropy(logits, jnp.array([0, -100]), where=keep)
print("mean of the kept examples:", each.sum() / keep.sum())

# %% [markdown]
# A label out of range is an error that names the row.

# %%
try:
  losses.squentropy(logits, jnp.array([0, 3]))
except ValueError as error:
  print(error)

# %% [markdown]
# ## Confident examples
#
# The loss of a confident example is small, and it is not rounded to 0. A sum of
# exponentials that includes the labelled class would round it.

# %%
confident = jnp.array([20.0, 0.0, 0.0])
print("this library:", losses.cross_entropy(confident, 0))
print("plain JAX:   ", -jax.nn.log_softmax(confident)[0])
