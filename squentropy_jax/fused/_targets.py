# SPDX-License-Identifier: Apache-2.0
"""The targets of rows, and the statistics of a row for each of its targets."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from squentropy_jax._core import class_sums
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.class_sums import SUMS, ClassSums, RowStats


class Targets(NamedTuple):
  """The targets of the rows ``[...]``, by `hard_targets` or `sparse_targets`.

  Attributes:
    ids: Class ids ``[..., K]``, different within a row; -1 for an unused one.
    probabilities: Their weights ``[..., K]``, or None for class ids.
    invalid: Which are out of range, ``[..., K]``.
  """

  ids: jax.Array
  probabilities: jax.Array | None
  invalid: jax.Array


def hard_targets(
  labels: jax.Array, num_classes: int, keep: jax.Array | None
) -> Targets:
  """Targets for one class id per row."""
  ids, invalid = prelude.split_ids(labels[..., None], num_classes)
  if keep is not None:
    ids = jnp.where(keep[..., None], ids, -1)
    invalid &= keep[..., None]
  return Targets(ids, None, invalid)


def sparse_targets(
  ids: jax.Array,
  probabilities: jax.Array,
  num_classes: int,
  keep: jax.Array | None,
) -> Targets:
  """Targets for some class ids per row; equal ids are put together."""
  ids, invalid = prelude.split_ids(ids, num_classes)
  used = probabilities != 0
  if keep is not None:
    used &= keep[..., None]
  invalid &= used
  probabilities = jnp.where(used, probabilities, jnp.zeros_like(probabilities))
  # Sorted, equal ids are neighbours, and the first has all their probability.
  ids = jnp.where(used, ids, -1)
  order = jnp.argsort(ids, axis=-1)
  ids, probabilities = (
    jnp.take_along_axis(x, order, axis=-1) for x in (ids, probabilities)
  )
  before = jnp.concatenate([ids[..., :1] - 1, ids[..., :-1]], axis=-1)
  first = ids != before
  starts = jax.lax.cummax(
    jnp.where(
      first, jax.lax.broadcasted_iota(jnp.int32, ids.shape, ids.ndim - 1), 0
    ),
    axis=ids.ndim - 1,
  )

  @functools.partial(jnp.vectorize, signature="(k),(k)->(k)")
  def merged(starts: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.zeros_like(values).at[starts].add(values)

  return Targets(
    ids=jnp.where(first, ids, -1),
    probabilities=merged(starts, probabilities),
    # The row is NaN, also where the id was put together with a valid one.
    invalid=jnp.any(invalid, axis=-1, keepdims=True),
  )


def _of_one_class(z: jax.Array, possible: jax.Array) -> ClassSums:
  """The class sums over one class, of logit ``z`` where it is possible."""
  zero = jnp.zeros_like(z)
  clean = jnp.where(possible, z, zero)
  largest = jnp.where(possible, z, -jnp.inf)
  exps = jnp.exp(largest - class_sums.shift_of(largest))
  return class_sums.no_classes(z, z)._replace(
    max=largest,
    **{name: rule.term(clean, exps) for name, rule in SUMS.items()},
  )


def _of_others(each: ClassSums) -> ClassSums:
  """For every target ``[..., K]`` the sums over the others of its row."""
  axis = each.max.ndim - 1
  none = class_sums.no_classes(each.target[..., :1], each.max[..., :1])

  def shifted(x: jax.Array, end: jax.Array, reverse: bool) -> jax.Array:
    parts = [x[..., 1:], end] if reverse else [end, x[..., :-1]]
    return jnp.concatenate(parts, axis=-1)

  before, after = (
    jax.lax.associative_scan(
      class_sums.merge,
      ClassSums(*(shifted(x, e, r) for x, e in zip(each, none, strict=True))),
      reverse=r,
      axis=axis,
    )
    for r in (False, True)
  )
  return class_sums.merge(before, after)


def row_stats(
  sums: ClassSums, num_classes: jax.Array, targets: Targets
) -> RowStats:
  """Statistics ``[..., K]`` of each target; those of unused ones are finite.

  ``num_classes`` counts the possible ones. The other targets of a row are among
  the other classes of each.
  """
  z = sums.target
  used = targets.ids >= 0
  possible = used & (z != -jnp.inf)
  rest = sums._replace(target=z[..., 0])
  rest = jax.tree.map(lambda x: x[..., None], rest)
  if targets.probabilities is not None:
    rest = class_sums.merge(rest, _of_others(_of_one_class(z, possible)))
  others = num_classes - possible.astype(jnp.int32)
  rest = rest._replace(target=z, num_others=others.astype(z.dtype))
  rest = jax.tree.map(lambda x: jnp.where(used, x, jnp.ones_like(x)), rest)
  # An infinite logit makes a sum NaN, also where no maximum is computed.
  undefined = functools.reduce(
    jnp.logical_or, (jnp.isnan(getattr(sums, name)) for name in SUMS)
  )
  invalid = targets.invalid | (undefined[..., None] & used)
  return class_sums.set_nan(class_sums.row_stats(rest), invalid)
