# SPDX-License-Identifier: Apache-2.0
"""Trains the language model of train_lm.py in Flax Linen.

Only the model differs from train_lm.py. Run on one machine:
python examples/pods/train_lm_linen.py --steps 200
"""

from decoder import Sizes, attention
from flax import linen as nn
import jax
import jax.numpy as jnp
import lm_step
import lm_training


class Block(nn.Module):
  """Attention and a feed-forward layer, each after a norm."""

  heads: int
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array, segments: jax.Array) -> jax.Array:
    """Maps ``[batch, length, width]`` to the same shape."""

    def linear(features: int, name: str) -> nn.Dense:
      return nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)

    width = x.shape[-1]
    qkv = linear(3 * width, "qkv")(nn.RMSNorm(dtype=self.dtype)(x))
    x = x + linear(width, "out")(attention(qkv, segments, self.heads))
    up = linear(4 * width, "up")(nn.RMSNorm(dtype=self.dtype)(x))
    return x + linear(width, "down")(nn.gelu(up))


class Decoder(nn.Module):
  """Features of every position; the embedding is also the output layer."""

  sizes: Sizes
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """Maps tokens and the numbers of their files to features."""
    sizes = self.sizes
    table = self.param(
      "embedding",
      nn.initializers.normal(sizes.width**-0.5),
      (sizes.vocab, sizes.width),
    )
    x = table.astype(self.dtype)[tokens]
    for number in range(sizes.layers):
      # The backward pass computes the block again instead of storing it.
      block = nn.remat(Block)(sizes.heads, self.dtype, name=f"block{number}")
      x = block(x, segments)
    return nn.RMSNorm(dtype=self.dtype)(x)


def linen_model(sizes: Sizes, dtype: jax.typing.DTypeLike) -> lm_step.Model:
  """Returns the functions of the Linen decoder."""
  module = Decoder(sizes, dtype)
  tokens = jnp.zeros((1, 8), jnp.int32)
  return lm_step.Model(
    lambda key: module.init(key, tokens, tokens)["params"],
    lambda params, tokens, segments: module.apply(
      {"params": params}, tokens, segments
    ),
    lambda params: params["embedding"],
  )


if __name__ == "__main__":
  lm_training.main(linen_model)
