# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses: each positive against the other documents."""

import jax
import jax.numpy as jnp

from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.distributions import first_largest
from squentropy_jax._core.elementwise import softplus
from squentropy_jax._core.rows import Transform, row_loss
from squentropy_jax.retrieval._pairs import Pairs, masked_logsumexp, pair_loss


@pair_loss(domains={"temperature": "(0, inf)"})
def _info_nce(pairs: Pairs, *, temperature: jax.Array) -> jax.Array:
  z = pairs.similarities / temperature
  zero = jnp.zeros_like(z)
  masked = jnp.where(pairs.keep, z, -jnp.inf)
  # The largest entry is left out of the sum, which avoids cancellation.
  is_top = first_largest(masked) & pairs.keep
  top = jnp.where(is_top, z, zero).sum(-1, keepdims=True)
  others = jnp.where(is_top, zero, jnp.exp(masked - top)).sum(-1, keepdims=True)
  short = jnp.where(is_top, zero, top - z)
  return pairs.mean_over_positives(short + jnp.log1p(others))


# The same loss in a fused head, whose labels are ids of documents.
@row_loss(
  domains={"temperature": "(0, inf)"},
  transform=Transform(divide_by="temperature"),
)
def _row(stats: RowStats, *, temperature: jax.Array) -> jax.Array:
  return softplus(stats.log_odds)


@_row.public
def info_nce(
  similarities: jax.typing.ArrayLike,
  positives: jax.typing.ArrayLike | None = None,
  *,
  temperature: jax.typing.ArrayLike = 0.05,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the cross-entropy of each positive against all documents."""
  return _info_nce(
    similarities, positives, temperature=temperature, where=where
  )
