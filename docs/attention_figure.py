# SPDX-License-Identifier: Apache-2.0
"""The figure of docs/attention.md; `page_figures` draws it.

Left: the weights of one row. Right: the weight of one key that is similar to
the query, as the number of other keys grows.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import figures
import jax
import jax.numpy as jnp

from squentropy_jax import attention

WIDTH = 64
SIMILAR = 0.8
LENGTHS = (16, 64, 256, 1024, 4096, 16384)

lssa = attention.softplus_attention
FUNCTIONS: Mapping[str, Callable[..., jax.Array]] = {
  "softmax": jax.nn.dot_product_attention,
  "softplus": lssa,
  "softplus, power 3": functools.partial(lssa, power=3.0),
  "softplus, power 15": functools.partial(lssa, power=15.0),
}


def query() -> jax.Array:
  """A query along the first axis, of the size that normal entries have."""
  return WIDTH**0.5 * jnp.eye(1, WIDTH)


def keys_at(cosines: jax.Array) -> jax.Array:
  """Keys of the same size with these cosines to the query."""
  others = jnp.sqrt(1.0 - cosines**2)
  keys = jnp.zeros((len(cosines), WIDTH)).at[:, 0].set(cosines)
  return WIDTH**0.5 * keys.at[:, 1].set(others)


def weights(function: Callable[..., jax.Array], keys: jax.Array) -> jax.Array:
  """The weights of the keys: the gradient of the output in the values."""

  def output(values: jax.Array) -> jax.Array:
    q, k, v = (x[None, :, None] for x in (query(), keys, values))
    return function(q, k, v)[0, 0, 0, 0]

  return jax.grad(output)(jnp.zeros_like(keys))[:, 0]


def row(function: Callable[..., jax.Array]) -> tuple[jax.Array, jax.Array]:
  """Cosines that are spread evenly, and their weights."""
  cosines = jnp.linspace(-1.0, 1.0, 201)
  return cosines, weights(function, keys_at(cosines))


def by_length(
  function: Callable[..., jax.Array],
) -> tuple[tuple[int, ...], list[jax.Array]]:
  """The weight of one similar key among normal ones, for each length."""
  found = []
  for length in LENGTHS:
    others = jax.random.normal(jax.random.key(0), (length - 1, WIDTH))
    keys = jnp.concatenate([keys_at(jnp.array([SIMILAR])), others])
    found.append(weights(function, keys)[0])
  return LENGTHS, found


def draw(panels: Any) -> None:
  """Weights by cosine, and by the number of keys."""
  for style, (name, function) in enumerate(FUNCTIONS.items()):
    line = {
      "color": figures.COLOURS[style],
      "linestyle": figures.DASHES[style],
      "lw": 1.6,
    }
    panels[0].plot(*row(function), label=name, **line)
    panels[1].plot(*by_length(function), **line)
  panels[0].legend(fontsize=7, frameon=False)
  panels[0].set_ylim(-0.005, 0.2)
  panels[0].set_xticks([-1.0, -0.5, 0.0, 0.5, 1.0])
  panels[0].set_xlabel("cosine of key and query", fontsize=8)
  panels[0].set_title("weight, 201 keys", fontsize=9)
  panels[1].set_xscale("log", base=2)
  panels[1].set_xlabel("number of keys", fontsize=8)
  panels[1].set_title("weight of one similar key", fontsize=9)
