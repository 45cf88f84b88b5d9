# SPDX-License-Identifier: Apache-2.0
"""Losses of a whole row of logits against a target distribution.

For losses which are not the expectation of a loss over the target's classes.
The laws about axes, dtypes, masks and bad labels are those of `_rows`.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks as _checks
from squentropy_jax._core import class_sums as _moments


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _evaluate(
  formula: Callable[..., jax.Array],
  axis: int,
  logits: jax.Array,
  targets: jax.Array,
  where: jax.Array | None,
  hyperparameters: dict[str, jax.Array],
) -> jax.Array:
  """`evaluate` on checked arguments."""
  z = jnp.moveaxis(logits, axis, -1)
  z = z.astype(_checks.compute_dtype(z.dtype))
  keep, mask = where, None
  if where is not None and where.ndim == z.ndim:
    mask = jnp.moveaxis(where, axis, -1)
    keep = mask.any(-1)
    z = jnp.where(mask, z, -jnp.inf)
  bad = jnp.all(z == -jnp.inf, axis=-1) | jnp.any(z == jnp.inf, axis=-1)
  if jnp.issubdtype(targets.dtype, jnp.integer):
    # Compared in their own type: a narrower one would turn bad ids into good.
    last = min(z.shape[-1] - 1, jnp.iinfo(targets.dtype).max)
    bad |= (targets < 0) | (targets > last)
    ids = jnp.clip(targets, 0, last).astype(jnp.int32)
    p = (_moments.class_ids(z) == ids[..., None]).astype(z.dtype)
  else:
    p = jnp.moveaxis(targets, axis, -1).astype(z.dtype)
  if mask is not None:
    bad |= jnp.any((p != 0) & ~mask, axis=-1)
  if keep is not None:
    bad &= keep
    z = jnp.where(keep[..., None], z, jnp.zeros_like(z))
    p = jnp.where(keep[..., None], p, jnp.zeros_like(p))
  loss = formula(z, p, **hyperparameters)
  loss *= jnp.where(bad, jnp.nan, 1.0).astype(z.dtype)
  return loss if keep is None else jnp.where(keep, loss, jnp.zeros_like(loss))


def evaluate(
  formula: Callable[..., jax.Array],
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
  **hyperparameters: tuple[Any, str],
) -> jax.Array:
  """The per-example loss ``formula(logits, targets, **hyperparameters)``.

  The formula gets the class axis last, logits of ``-inf`` on impossible
  classes, and targets of the logits' shape and dtype, one-hot for class ids.
  """
  array, targets, axis, where = _checks.as_examples(logits, labels, axis, where)
  dtype = _checks.compute_dtype(array.dtype)
  scalars = _checks.as_scalars(hyperparameters, dtype)
  return _evaluate(formula, axis, array, jnp.asarray(targets), where, scalars)
