# SPDX-License-Identifier: Apache-2.0
"""Class sums of dense logits (placeholder form: one masked pass)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks
from squentropy_jax._core import class_sums as sums_of
from squentropy_jax._core.class_sums import SUMS, ClassSums
from squentropy_jax._core.labels import class_ids


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _masked(
  logits: jax.Array,
  ids: jax.Array,
  keep: jax.Array | None,
  axis: int,
  reads: frozenset[str],
) -> ClassSums:
  z = logits.astype(checks.compute_dtype(logits.dtype))
  is_target = class_ids(z, axis) == jnp.expand_dims(ids, axis)
  zero = jnp.zeros_like(z)
  target = jnp.where(is_target, z, zero).sum(axis)
  other = ~is_target & (z != -jnp.inf)
  largest = jnp.where(other, z, -jnp.inf).max(axis)
  shift = jnp.expand_dims(sums_of.shift_of(largest), axis)
  exps = jnp.where(other, jnp.exp(z - shift), zero)
  kept = jnp.where(other, z, zero)
  out = sums_of.no_classes(target, target)._replace(
    max=largest,
    num_others=other.sum(axis, dtype=jnp.int32).astype(z.dtype),
    **{
      name: jnp.where(other, rule.term(kept, exps), zero).sum(axis)
      for name, rule in SUMS.items()
      if name in reads
    },
  )
  if keep is None:
    return out
  return ClassSums(*(jnp.where(keep, f, jnp.ones_like(f)) for f in out))


@_masked.defjvp
def _masked_jvp(
  axis: int,
  reads: frozenset[str],
  primals: tuple[Any, ...],
  tangents: tuple[Any, ...],
) -> tuple[ClassSums, ClassSums]:
  logits, ids, keep = primals
  dtype = checks.compute_dtype(logits.dtype)
  z, dz = logits.astype(dtype), tangents[0].astype(dtype)
  out = _masked(logits, ids, keep, axis, reads)
  shift = jax.lax.optimization_barrier(sums_of.shift_of(out.max))
  shift = jnp.expand_dims(shift, axis)
  class_id = class_ids(z, axis)
  is_target = class_id == jnp.expand_dims(ids, axis)
  left_out = is_target | (z == -jnp.inf)
  if keep is not None:
    is_target &= jnp.expand_dims(keep, axis)
    left_out |= ~jnp.expand_dims(keep, axis)
  zero = jnp.zeros_like(dz)
  dother = jnp.where(left_out, zero, dz)
  # An entry that is left out holds the shift: finite, and its tangent is 0.
  other = jnp.where(left_out, shift, z)
  exps = jnp.exp(other - shift)
  first = jnp.argmax(jnp.where(left_out, -jnp.inf, z), axis=axis)
  is_max = class_id == jnp.expand_dims(first, axis).astype(class_id.dtype)
  tangent = jax.tree.map(jnp.zeros_like, out)._replace(
    target=jnp.where(is_target, dz, zero).sum(axis),
    max_id=jnp.zeros(out.max_id.shape, jax.dtypes.float0),
    **{
      # Multiplied last, the factor does not overflow a huge finite logit.
      name: rule.factor * (rule.derivative(other, exps) * dother).sum(axis)
      for name, rule in SUMS.items()
      if name in reads
    },
  )
  if "max" in reads:
    tangent = tangent._replace(max=jnp.where(is_max, dother, zero).sum(axis))
  return out, tangent


def class_sums(
  logits: jax.Array,
  ids: jax.Array,
  *,
  axis: int,
  keep: jax.Array | None,
  reads: frozenset[str],
) -> ClassSums:
  """The sums of ``logits`` around valid class ids of the batch shape.

  Rows outside ``keep`` may hold anything: their sums are finite constants with
  gradient 0. Fields that are not in ``reads`` may be 0.
  """
  return _masked(logits, ids, keep, axis, reads)
