# SPDX-License-Identifier: Apache-2.0
"""Class sums of dense logits.

The sums have two implementations, one for CPUs and one for accelerators. Both
share one derivative.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core import checks, strips
from squentropy_jax._core.class_sums import (
  RELATIVE,
  SUMS,
  ClassSums,
  no_classes,
  shift_of,
)
from squentropy_jax._core.labels import class_ids

Reads = frozenset[str]


class Saved(NamedTuple):
  """The arrays that the derivative needs in addition to the sums.

  Attributes:
    exps: ``exp(z - shift) / scale`` in the shape of the logits, 0 for a class
      that is left out. None if no sum is relative to the shift.
    scale: A constant of the batch shape.
  """

  exps: jax.Array | None
  scale: jax.Array | None


Sums = tuple[ClassSums, Saved | None]


def _masked(
  logits: jax.Array,
  ids: jax.Array,
  keep: jax.Array | None,
  *,
  axis: int,
  reads: Reads,
  save: bool,
) -> Sums:
  """Computes the sums in one masked pass, for accelerators.

  XLA fuses this form, and can partition it along any axis.
  """
  z = logits.astype(checks.compute_dtype(logits.dtype))
  is_target = class_ids(z, axis) == jnp.expand_dims(ids, axis)
  zero = jnp.zeros_like(z)
  target = jnp.where(is_target, z, zero).sum(axis)
  other = ~is_target & (z != -jnp.inf)
  if keep is not None:
    other &= jnp.expand_dims(keep, axis)
  below = jnp.where(other, z, -jnp.inf)
  largest = below.max(axis)
  shift = shift_of(largest)

  def exps_from(shift: jax.Array) -> jax.Array:
    return jnp.where(other, jnp.exp(z - jnp.expand_dims(shift, axis)), zero)

  # The target is masked before the sum of squares. To subtract its square from
  # the sum of all squares would be inaccurate if it dominates.
  kept, exps = jnp.where(other, z, zero), exps_from(shift)
  sums = no_classes(target, target)._replace(
    max=largest,
    num_others=other.sum(axis, dtype=jnp.int32).astype(z.dtype),
    **{
      name: jnp.where(other, rule.term(kept, exps), zero).sum(axis)
      for name, rule in SUMS.items()
      if name in reads
    },
  )
  if not save:
    return sums, None
  if not reads & RELATIVE:
    return sums, Saved(None, None)
  # Without the barrier, XLA reuses the exponentials of the sums for the
  # derivative, and therefore keeps a copy as large as the logits.
  exps = exps_from(lax.optimization_barrier(shift))
  return sums, Saved(exps, jnp.ones_like(largest))


@functools.cache
def _in_strips(axis: int, reads: Reads, save: bool) -> Callable[..., Sums]:
  """Returns the form for CPUs, with a rule for `jax.vmap`."""

  @jax.custom_batching.custom_vmap
  def form(logits: jax.Array, ids: jax.Array, keep: jax.Array | None) -> Sums:
    sums, saved = strips.class_sums(
      logits, ids, keep, axis=axis, reads=reads, save=save
    )
    return sums, Saved(*saved) if save else None

  # Without the rule, `jax.vmap` would run both branches of a `lax.cond`.
  @form.def_vmap
  def batched(size: int, is_batched: Any, *arguments: Any) -> Any:
    def repeat(is_batched: bool, array: jax.Array) -> jax.Array:
      if is_batched:
        return array
      return jnp.broadcast_to(array, (size, *array.shape))

    arguments = jax.tree.map(repeat, tuple(is_batched), arguments)
    out = _in_strips(axis + 1, reads, save)(*arguments)
    return out, jax.tree.map(lambda _: True, out)

  return form


def _evaluate(
  logits: jax.Array,
  ids: jax.Array,
  keep: jax.Array | None,
  axis: int,
  reads: Reads,
  save: bool,
) -> Sums:
  masked = functools.partial(_masked, axis=axis, reads=reads, save=save)
  if checks.explicit_sharding(logits) is not None:
    sums, saved = masked(logits, ids, keep)
  else:
    in_strips = _in_strips(axis, reads, save)
    sums, saved = lax.platform_dependent(
      logits, ids, keep, cpu=in_strips, default=masked
    )
  # No integers: inside a shard_map a rule cannot give their tangents.
  sums = sums._replace(max_id=None)  # type: ignore[arg-type]
  if keep is None:
    return sums, saved
  sums = jax.tree.map(lambda x: jnp.where(keep, x, jnp.ones_like(x)), sums)
  if saved is not None and saved.scale is not None:
    # The exponentials of dropped rows are 0 already. The scale may be NaN.
    saved = saved._replace(
      scale=jnp.where(keep, saved.scale, jnp.ones_like(saved.scale))
    )
  return sums, saved


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _sums(
  logits: jax.Array,
  ids: jax.Array,
  keep: jax.Array | None,
  axis: int,
  reads: Reads,
) -> ClassSums:
  return _evaluate(logits, ids, keep, axis, reads, False)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _sums_and_saved(
  logits: jax.Array,
  ids: jax.Array,
  keep: jax.Array | None,
  axis: int,
  reads: Reads,
) -> tuple[ClassSums, Saved]:
  sums, saved = _evaluate(logits, ids, keep, axis, reads, True)
  assert saved is not None
  return sums, saved


def _with_tangents(
  axis: int, reads: Reads, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[tuple[ClassSums, Saved], tuple[ClassSums, Saved]]:
  logits, ids, keep = primals
  sums, saved = _sums_and_saved(logits, ids, keep, axis, reads)
  dtype = sums.target.dtype
  z, dz = logits.astype(dtype), tangents[0].astype(dtype)
  class_id = class_ids(z, axis)
  is_target = class_id == jnp.expand_dims(ids, axis)
  left_out = is_target | (z == -jnp.inf)
  if keep is not None:
    is_target &= jnp.expand_dims(keep, axis)
    left_out |= ~jnp.expand_dims(keep, axis)
  zero = jnp.zeros_like(dz)
  dother = jnp.where(left_out, zero, dz)
  other = jnp.where(left_out, zero, z)
  exps, dsaved = other, Saved(None, None)
  if saved.exps is not None and saved.scale is not None:
    exps = saved.exps
    dsaved = dsaved._replace(
      exps=exps * dother, scale=jnp.zeros_like(saved.scale)
    )
    exps *= jnp.expand_dims(saved.scale, axis)
  tangent = jax.tree.map(jnp.zeros_like, sums)._replace(
    target=jnp.where(is_target, dz, zero).sum(axis),
    **{
      # The factor comes last, or its product with a huge logit would overflow.
      name: rule.factor * (rule.derivative(other, exps) * dother).sum(axis)
      for name, rule in SUMS.items()
      if name in reads
    },
  )
  if "max" in reads:
    below = jnp.where(left_out, -jnp.inf, z)
    first = jnp.argmax(below, axis=axis).astype(class_id.dtype)
    is_max = class_id == jnp.expand_dims(first, axis)
    tangent = tangent._replace(max=jnp.where(is_max, dother, zero).sum(axis))
  return (sums, saved), (tangent, dsaved)


@_sums.defjvp
def _sums_jvp(
  axis: int, reads: Reads, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[ClassSums, ClassSums]:
  out, tangent = _with_tangents(axis, reads, primals, tangents)
  return out[0], tangent[0]


_sums_and_saved.defjvp(_with_tangents)


def class_sums(
  logits: jax.Array,
  ids: jax.Array,
  *,
  axis: int,
  keep: jax.Array | None,
  reads: Reads,
) -> ClassSums:
  """Computes the sums over the classes other than ``ids``.

  The logits are read in place: the class axis is not moved, and the caller need
  not widen them.

  Args:
    logits: Logits of any float type.
    ids: int32 class ids in ``[0, C)``, of the batch shape.
    axis: The class axis, not negative.
    keep: Booleans of the batch shape, or None to keep all rows. Dropped rows
      may have any logits: their sums are finite constants with gradient 0.
    reads: The fields of `ClassSums` to compute in addition to the target and
      the number of others. The remaining fields have arbitrary finite values.

  Returns:
    The class sums.
  """
  sums = _sums(logits, ids, keep, axis, reads)
  return sums._replace(max_id=no_classes(sums.target, sums.target).max_id)
