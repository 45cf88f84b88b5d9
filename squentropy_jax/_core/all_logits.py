# SPDX-License-Identifier: Apache-2.0
"""Losses that no row statistics can give: formulas that see every logit.

They obey the laws of the row losses, because `_rows` evaluates them too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from squentropy_jax._core import class_sums as _moments
from squentropy_jax._core import rows as _rows


def is_top(logits: jax.Array, possible: jax.Array) -> jax.Array:
  """The first of the largest possible logits."""
  top = jnp.argmax(jnp.where(possible, logits, -jnp.inf), axis=-1)
  ids = _moments.class_ids(logits)
  return ids == top[..., None].astype(ids.dtype)


class Whole(NamedTuple):
  """A row, and the classes to be taken as its target.

  There is one target for class ids; for soft labels every class is one. What
  has a value per target has the shape ``[..., targets]``.

  Attributes:
    stats: Row statistics of each target.
    logits: The logits ``[..., C]``, 0 where the class is impossible.
    possible: Whether a class is neither masked nor of logit ``-inf``.
    targets: Class ids ``[..., targets]``.
  """

  stats: _rows.RowStats
  logits: jax.Array
  possible: jax.Array
  targets: jax.Array

  def is_top(self) -> jax.Array:
    """The first of the largest possible logits."""
    return is_top(self.logits, self.possible)

  def sum_rest(self, terms: jax.Array, is_largest: jax.Array) -> jax.Array:
    """For each target the sum of the other, possible classes' ``terms``."""
    zero = jnp.zeros_like(terms)
    terms = jnp.where(self.possible, terms, zero)
    if self.targets.shape[-1] > 1:
      return _rows.leave_one_out(terms, is_largest)
    own = _moments.class_ids(terms) == self.targets
    return jnp.where(own, zero, terms).sum(-1, keepdims=True)

  def map_targets(
    self, loss: Callable[[_rows.RowStats, jax.Array], jax.Array]
  ) -> jax.Array:
    """``loss(stats, others)`` of one target after the other.

    ``others`` ``[..., C]`` says which classes are possible and not the target.
    No array has an entry for each pair of classes.
    """

    def of_target(target: tuple[_rows.RowStats, jax.Array]) -> jax.Array:
      stats, index = target
      own = _moments.class_ids(self.logits) == index[..., None]
      return loss(stats, self.possible & ~own)

    arguments = (self.stats, self.targets)
    if self.targets.shape[-1] == 1:
      first = jax.tree.map(lambda x: x[..., 0], arguments)
      return of_target(first)[..., None]
    each = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), arguments)
    return jnp.moveaxis(jax.lax.map(jax.checkpoint(of_target), each), 0, -1)


def _apply(
  formula: Callable[..., jax.Array],
  stats: _rows.RowStats,
  z: jax.Array,
  targets: jax.Array,
  hyperparameters: dict[str, jax.Array],
) -> jax.Array:
  # Row statistics of a bad row are NaN; so must be every slope of its loss.
  bad = jnp.isnan(stats.log_odds).any(-1, keepdims=True)
  factor = jnp.where(bad, jnp.nan, 1.0).astype(z.dtype)
  possible = z != -jnp.inf
  logits = jnp.where(possible, z, jnp.zeros_like(z)) * factor
  whole = Whole(stats, logits, possible, targets)
  return formula(whole, **hyperparameters) * factor


def evaluate(
  formula: Callable[..., jax.Array],
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
  **hyperparameters: tuple[Any, str],
) -> jax.Array:
  """The per-example loss ``formula(whole, **hyperparameters)``."""
  return _rows.evaluate(
    formula,
    logits,
    labels,
    axis=axis,
    where=where,
    prepare=None,
    apply=_apply,
    **hyperparameters,
  )
