# SPDX-License-Identifier: Apache-2.0
"""A small decoder-only transformer in Flax NNX, without its output layer."""

from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp


class Sizes(NamedTuple):
  """The sizes of the model."""

  vocab: int
  width: int
  layers: int
  heads: int


# replication/language_model/transformer.py has the same formula. It is kept
# twice, because this folder can be copied without the rest of the repository.
def rotate(x: jax.Array) -> jax.Array:
  """Adds rotary position embeddings to ``[batch, length, heads, size]``."""
  half = x.shape[-1] // 2
  frequencies = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
  position = jnp.arange(x.shape[1], dtype=jnp.float32)
  angles = (position[:, None] * frequencies)[None, :, None, :]
  cos, sin = (f(angles).astype(x.dtype) for f in (jnp.cos, jnp.sin))
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def attention(qkv: jax.Array, segments: jax.Array, heads: int) -> jax.Array:
  """Causal attention within each file; ``qkv`` is ``[..., 3 * width]``."""
  batch, length, _ = qkv.shape
  query, key, value = jnp.split(qkv.reshape(batch, length, 3 * heads, -1), 3, 2)
  same_file = segments[:, None, :, None] == segments[:, None, None, :]
  mixed = jax.nn.dot_product_attention(
    rotate(query), rotate(key), value, mask=same_file, is_causal=True
  )
  return mixed.reshape(batch, length, -1)


class Block(nnx.Module):
  """Attention and a feed-forward layer, each after a norm."""

  def __init__(self, sizes: Sizes, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs):
    def linear(inside: int, outside: int) -> nnx.Linear:
      return nnx.Linear(inside, outside, use_bias=False, dtype=dtype, rngs=rngs)

    width = sizes.width
    self.heads = sizes.heads
    self.norm1 = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
    self.qkv = linear(width, 3 * width)
    self.out = linear(width, width)
    self.norm2 = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
    self.up = linear(width, 4 * width)
    self.down = linear(4 * width, width)

  def __call__(self, x: jax.Array, segments: jax.Array) -> jax.Array:
    """Maps ``[batch, length, width]`` to the same shape."""
    mixed = attention(self.qkv(self.norm1(x)), segments, self.heads)
    x = x + self.out(mixed)
    return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Decoder(nnx.Module):
  """Features of every position; the embedding is also the output layer."""

  def __init__(self, sizes: Sizes, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs):
    scale = nnx.initializers.normal(sizes.width**-0.5)
    table = scale(rngs.params(), (sizes.vocab, sizes.width), jnp.float32)
    self.embedding = nnx.Param(table)
    self.blocks = nnx.List(
      Block(sizes, dtype, rngs) for _ in range(sizes.layers)
    )
    self.norm = nnx.RMSNorm(sizes.width, dtype=dtype, rngs=rngs)
    self.dtype = dtype

  def __call__(self, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """Maps tokens and the numbers of their files to features."""
    x = self.embedding[...].astype(self.dtype)[tokens]
    for block in self.blocks:
      # The backward pass computes the block again instead of storing it.
      x = nnx.remat(Block.__call__)(block, x, segments)
    return self.norm(x)
