# SPDX-License-Identifier: Apache-2.0
"""The decoder of the experiment, without its output layer, in plain JAX."""

from typing import Any

import jax
import jax.numpy as jnp

from replication.language_model import grid

# The standard deviation of the initial output layer.
_HEAD = 0.02

Params = dict[str, Any]


def init(key: jax.Array, vocab: int, setup: grid.Setup) -> Params:
  """Returns initial weights.

  Args:
    key: A random key.
    vocab: The number of classes.
    setup: The sizes of the model.

  Returns:
    ``embedding`` and ``head``, both ``[vocab, width]``, ``norm`` ``[width]``
    and the list ``blocks``.
  """
  width = setup.width
  keys = iter(jax.random.split(key, 2 + 4 * setup.layers))

  def normal(rows: int, columns: int, scale: float) -> jax.Array:
    return scale * jax.random.normal(next(keys), (rows, columns), jnp.float32)

  ones = jnp.ones(width, jnp.float32)
  params: Params = {
    "embedding": normal(vocab, width, width**-0.5),
    "head": normal(vocab, width, _HEAD),
    "norm": ones,
    "blocks": [],
  }
  for _ in range(setup.layers):
    block = {
      "norm1": ones,
      "query": jnp.ones(width // setup.heads, jnp.float32),
      "key": jnp.ones(width // setup.heads, jnp.float32),
      "qkv": normal(width, 3 * width, width**-0.5),
      "out": normal(width, width, width**-0.5),
      "norm2": ones,
      "up": normal(width, 4 * width, width**-0.5),
      "down": normal(4 * width, width, (4 * width) ** -0.5),
    }
    params["blocks"].append(block)
  return params


def _normalise(x: jax.Array, gain: jax.Array) -> jax.Array:
  square = jnp.mean(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(square + 1e-6) * jnp.broadcast_to(gain, x.shape)


# rotate of examples/pods/decoder.py is the same formula. It is kept twice,
# because the example can be copied without the rest of the repository.
def _rotate(x: jax.Array) -> jax.Array:
  """Adds rotary positions to ``[batch, length, heads, size]``."""
  half = x.shape[-1] // 2
  frequencies = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
  positions = jnp.arange(x.shape[1], dtype=jnp.float32)
  angles = jnp.outer(positions, frequencies)[None, :, None, :]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _attend(x: jax.Array, block: Params, heads: int) -> jax.Array:
  batch, length, width = x.shape
  qkv = (x @ block["qkv"]).reshape(batch, length, 3 * heads, -1)
  query, key, value = jnp.split(qkv, 3, axis=2)
  mixed = jax.nn.dot_product_attention(
    _rotate(_normalise(query, block["query"])),
    _rotate(_normalise(key, block["key"])),
    value,
    is_causal=True,
  )
  return mixed.reshape(batch, length, width) @ block["out"]


def features(params: Params, tokens: jax.Array, heads: int) -> jax.Array:
  """Computes the inputs of the output layer.

  Args:
    params: The weights.
    tokens: Token ids ``[batch, length]``.
    heads: The number of heads of the attention.

  Returns:
    Features ``[batch, length, width]``.
  """
  x = params["embedding"][tokens]
  for block in params["blocks"]:
    x = x + _attend(_normalise(x, block["norm1"]), block, heads)
    up = jax.nn.gelu(_normalise(x, block["norm2"]) @ block["up"])
    x = x + up @ block["down"]
  return _normalise(x, params["norm"])
