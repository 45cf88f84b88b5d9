# SPDX-License-Identifier: Apache-2.0
"""Sums over blocks of rows, their gradient formed in the forward pass."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks, varying
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.hyperparameters import Static, expanded
from squentropy_jax._core.rows import RowLoss
from squentropy_jax._core.transform import Transform

Sums = tuple[jax.Array, dict[str, jax.Array]]


class Shared(NamedTuple):
  """What all blocks share.

  Attributes:
    params: The parameters of the head.
    closure: The traced arrays that the function of the head closes over.
    numbers: The hyper-parameters that are scalars.
  """

  params: Any
  closure: list[jax.Array]
  numbers: dict[str, jax.Array]


class Rows(NamedTuple):
  """What each row has, ``[N, ...]``.

  Attributes:
    features: What the head computes logits from.
    labels: Class ids, distributions, or pairs of ids and probabilities.
    numbers: The hyper-parameters with a value for each row.
    weights: The weights of the rows, or None for 1.
    keep: Which rows to keep, or None for all.
  """

  features: jax.Array
  labels: Any
  numbers: dict[str, jax.Array]
  weights: jax.Array | None
  keep: jax.Array | None


class Block(NamedTuple):
  """What is static about a block.

  Attributes:
    head: ``head(params, features, closure)`` returns logits ``[rows, V]``.
    dtype: The dtype of the sums.
    loss: The row loss.
    static: Its static settings.
    metrics: Row losses with the formulas of the metrics.
  """

  head: Callable[..., jax.Array]
  dtype: np.dtype
  loss: RowLoss[Any]
  static: Static
  metrics: dict[str, RowLoss[Any]]

  def sums(self, shared: Shared, rows: Rows, filler: jax.Array) -> Sums:
    """The weighted sums of the losses and of the metrics."""
    features, labels, of_rows, weights, keep = rows
    if keep is not None:
      trailing = (1,) * (features.ndim - 1)
      features = jnp.where(keep.reshape(-1, *trailing), features, filler)
    z = self.head(shared.params, features, shared.closure)
    if isinstance(labels, tuple):
      ids, probabilities = labels
      labels = _distributions(ids, probabilities, keep, z)
    numbers = shared.numbers | of_rows
    values = numbers | dict(self.static)
    loss = self.loss.evaluate(z, labels, where=keep, **values)
    z, labels = lax.stop_gradient((z, labels))
    transform = self.loss.transform
    if self.metrics and transform and transform.scaled_by:
      # Fused heads have the statistics of the scaled logits, and no others.
      scaling = Transform(
        transform.divide_by, multiply_by=transform.multiply_by
      )
      z = scaling(z.astype(self.dtype), expanded(numbers))
    found = {
      name: metric.evaluate(z, labels, where=keep)
      for name, metric in self.metrics.items()
    }
    if weights is not None:
      loss *= weights
      found = {name: x * weights for name, x in found.items()}
    return loss.sum(), {n: lax.stop_gradient(x.sum()) for n, x in found.items()}


def _distributions(
  ids: jax.Array,
  probabilities: jax.Array,
  keep: jax.Array | None,
  z: jax.Array,
) -> jax.Array:
  """The target distributions ``[rows, V]`` of the pairs ``[rows, K]``."""
  used = probabilities != 0
  if keep is not None:
    used &= keep[:, None]
  ids, outside = prelude.split_ids(ids, z.shape[1])
  dtype = checks.compute_dtype(z.dtype)
  p = probabilities.astype(dtype) * prelude.nan_factor(outside & used, dtype)
  # Last, so that the gradient of an entry that is not used is 0.
  p = jnp.where(used, p, jnp.zeros_like(p))
  row = jnp.arange(z.shape[0], dtype=jnp.int32)[:, None]
  zeros = varying.vary_like(jnp.zeros(z.shape, dtype), (z, p))
  return zeros.at[row, ids].add(p)


class Leaves(NamedTuple):
  """The arrays of a tree: those that have a derivative, and the others."""

  floats: list[jax.Array]
  others: list[jax.Array] | None


def _split(tree: Any) -> tuple[Leaves, Callable[..., Any]]:
  """Splits a tree into its arrays; also returns the inverse function."""
  leaves, structure = jax.tree.flatten(tree)
  is_float = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]

  def join(floats: list[jax.Array], others: list[jax.Array]) -> Any:
    parts = iter(floats), iter(others)
    arrays = [next(parts[not f]) for f in is_float]
    return jax.tree.unflatten(structure, arrays)

  pairs = list(zip(leaves, is_float, strict=True))
  floats = [x for x, f in pairs if f]
  return Leaves(floats, [x for x, f in pairs if not f]), join


def _widened(x: jax.Array) -> jax.Array:
  """A gradient in the dtype in which gradients are added up."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x  # Complex numbers are wide already.
  return x.astype(checks.compute_dtype(x.dtype))


def _blocks_of(rows: Rows, num_blocks: int) -> Rows:
  """The rows as ``[num_blocks, rows of a block, ...]``."""
  return jax.tree.map(lambda x: x.reshape(num_blocks, -1, *x.shape[1:]), rows)


def _filler(rows: Rows) -> jax.Array:
  """Features ``[1, ...]`` for the rows that are dropped.

  They are those of a kept row, because a head may have no derivative at zeros.
  """
  if rows.keep is None:
    return rows.features[:1]
  first = jnp.argmax(rows.keep)
  return lax.dynamic_slice_in_dim(rows.features, first, 1)


def sums_over_blocks(
  block: Block, shared: Shared, rows: Rows, num_blocks: int
) -> Sums:
  """The sums over the blocks; ``num_blocks`` divides the number of rows.

  The gradient is formed in the forward pass, while the logits of a block are
  in memory. The backward pass scales it.
  """
  axes = varying.axes_of(shared, rows)
  some, join_shared = _split(shared)
  each, join_rows = _split(_blocks_of(rows, num_blocks))
  axes_of_some = [varying.axes_of(x) for x in some.floats]
  is_used = None if rows.keep is None else jnp.any(rows.keep)

  def sums_of(
    some_floats: list[jax.Array],
    floats: list[jax.Array],
    some: Leaves,
    each: Leaves,
    filler: jax.Array,
  ) -> Sums:
    return block.sums(
      join_shared(some_floats, some.others),
      join_rows(floats, each.others),
      filler,
    )

  def start() -> Sums:
    zero = jnp.zeros((), block.dtype)
    return varying.vary((zero, dict.fromkeys(block.metrics, zero)), axes)

  def added(carry: Any, found: Any) -> Any:
    return jax.tree.map(jnp.add, carry, varying.vary(found, axes))

  @jax.custom_vjp
  def sums(
    some: Leaves, each: Leaves, filler: jax.Array, is_used: jax.Array | None
  ) -> Sums:
    some = varying.vary(some, axes)

    def step(carry: Sums, each: Leaves) -> tuple[Sums, None]:
      found = sums_of(some.floats, each.floats, some, each, filler)
      return added(carry, found), None

    return lax.scan(step, start(), each)[0]

  def forward(
    some: Leaves, each: Leaves, filler: jax.Array, is_used: jax.Array | None
  ) -> tuple[Sums, Any]:
    # A number of Python is no array here. Varied, so that the gradients of a
    # device are added up once, at the end.
    some = varying.vary(jax.tree.map(jnp.asarray, some), axes)
    gradients_of = jax.value_and_grad(sums_of, (0, 1), has_aux=True)

    def step(carry: Any, each: Leaves) -> tuple[Any, list[jax.Array]]:
      found, (by_some, by_rows) = gradients_of(
        some.floats, each.floats, some, each, filler
      )
      return added(carry, (found, list(map(_widened, by_some)))), by_rows

    zeros = [jnp.zeros_like(_widened(x)) for x in some.floats]
    (found, by_some), by_rows = lax.scan(
      step, (start(), varying.vary(zeros, axes)), each
    )
    like = [jnp.zeros((0,), x.dtype) for x in some.floats]
    return found, (by_some, by_rows, like, is_used)

  def backward(residuals: Any, cotangents: Any) -> Any:
    by_some, by_rows, like, is_used = residuals
    # A number of Python has no dtype.
    cotangent = jnp.asarray(cotangents[0], block.dtype)

    def scaled(g: jax.Array) -> jax.Array:
      wide = _widened(g)
      return wide * cotangent.astype(wide.dtype)

    floats = []
    for g, own_axes, x in zip(by_some, axes_of_some, like, strict=True):
      total = scaled(g)
      if is_used is not None:
        # Without a kept row, the rows are copies of a dropped one.
        total = jnp.where(is_used, total, jnp.zeros_like(total))
      missing = tuple(sorted(varying.axes_of(total) - own_axes))
      total = lax.psum(total, missing) if missing else total
      floats.append(total.astype(x.dtype))
    by_rows = [scaled(g).astype(g.dtype) for g in by_rows]
    return Leaves(floats, None), Leaves(by_rows, None), None, None

  sums.defvjp(forward, backward)
  return sums(some, each, _filler(rows), is_used)
