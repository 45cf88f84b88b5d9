# SPDX-License-Identifier: Apache-2.0
"""The Mann-Whitney loss: positives against the negatives of all queries."""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import checks
from squentropy_jax._core.elementwise import rounding_error, sigmoid
from squentropy_jax._core.labels import class_ids
from squentropy_jax._core.varying import axes_of, vary, vary_like
from squentropy_jax.retrieval._pairs import Pairs, as_similarities, pair_loss

_T = TypeVar("_T")
# Comparisons of a positive and a negative that are in memory at once.
_BLOCK = 2**16
# Factors between 1 and 2 in a product of which one logarithm is taken. The
# compiler splits reductions of 32 numbers, which takes longer.
_FACTORS = 16


class _Batch(NamedTuple):
  """The similarities of one batch on this device, ``[Q, D]``."""

  scores: jax.Array
  positives: jax.Array
  negatives: jax.Array


class _Blocks(NamedTuple):
  """The similarities of all devices in blocks, ``[blocks, size]``."""

  scores: jax.Array
  negatives: jax.Array


def _blocks(batch: _Batch, axis_name: Any) -> _Blocks:
  count = batch.scores.size
  size = max(1, min(count, _BLOCK // max(len(batch.scores), 1)))
  size -= size % min(size, _FACTORS)

  def split(x: jax.Array) -> jax.Array:
    x = x.ravel()
    if count % size:
      x = jnp.pad(x, (0, -count % size))
    x = x.reshape(-1, size)
    if axis_name is None:
      return x
    return jax.lax.all_gather(x, axis_name, tiled=True)

  return _Blocks(split(batch.scores), split(batch.negatives))


def _loop_over_positives(
  step: Callable[[_T, jax.Array], _T],
  start: _T,
  positives: jax.Array,
  is_diagonal: bool,
) -> _T:
  """Calls ``step`` with the column of a positive of each query, ``[Q]``.

  It ends with the positives of the query that has the most. The column is ``D``
  for a query that has no more.
  """
  rows, end = positives.shape

  def after(last: jax.Array) -> jax.Array:
    left = positives & (class_ids(positives) > last[:, None])
    found = jax.lax.argmax(left, 1, jnp.int32)  # 0 if there is none.
    exist = jnp.take_along_axis(positives, found[:, None], 1)[:, 0]
    return jnp.where(exist & (found > last), found, end)

  if is_diagonal:
    place = jnp.arange(rows, dtype=jnp.int32)
    return step(start, jnp.where(jnp.diagonal(positives), place, end))
  first = after(jnp.full(rows, -1, jnp.int32))

  def advance(state: tuple[_T, jax.Array]) -> tuple[_T, jax.Array]:
    return step(state[0], state[1]), after(state[1])

  # A loop has one type of carry, also for the column.
  first = vary_like(first, start)
  return jax.lax.while_loop(
    lambda state: (state[1] < end).any(), advance, (start, first)
  )[0]


def _scores_at(batch: _Batch, columns: jax.Array) -> tuple[jax.Array, ...]:
  """The scores in one column of each query, where it exists, and its place."""
  rows, width = batch.scores.shape
  inside = jnp.minimum(columns, width - 1)
  scores = jnp.take_along_axis(batch.scores, inside[:, None], -1)[:, 0]
  place = jnp.arange(rows, dtype=jnp.int32) * width + inside
  return scores, columns < width, place


def _add(sums: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[Any, Any]:
  """Adds to a sum and to its rounding error: there are many blocks."""
  total, lost = sums
  return total + x, lost + rounding_error(total, -x)


class _Sums(NamedTuple):
  """Sums of ``softplus((s_n - s_p) / tau)``, and how many were added, [Q]."""

  total: jax.Array
  positives: jax.Array
  negatives: jax.Array


def _sum_log1p(x: jax.Array) -> jax.Array:
  """Sums ``log(1 + x)`` over the first axis, for ``x`` in [0, 1].

  Products of the ``1 + x`` minus 1 stay accurate for small ``x``.
  """
  x = x.reshape(-1, min(len(x), _FACTORS), x.shape[1])
  zero = jnp.zeros((), x.dtype)
  products = jax.lax.reduce(x, zero, lambda a, b: a + b + a * b, (1,))
  return jnp.log1p(products).sum(0)


def _forward(
  batch: _Batch, inverse: jax.Array, is_diagonal: bool, axis_name: Any
) -> _Sums:
  """Sums over the positives of each query and all negatives."""
  blocks = _blocks(batch, axis_name)
  zero, none = vary_like(
    (jnp.zeros_like(inverse), jnp.zeros(inverse.shape, jnp.int32)),
    (batch, inverse, blocks),
  )

  def of_columns(sums: _Sums, columns: jax.Array) -> _Sums:
    scores, exist, _ = _scores_at(batch, columns)

    def add(carry: Any, block: _Blocks) -> tuple[Any, None]:
      sums, count = carry
      gap = (block.scores[:, None] - scores[None]) * inverse[None]
      marked = block.negatives[:, None]
      small = jnp.where(marked, jnp.exp(-jnp.abs(gap)), jnp.zeros_like(gap))
      large = jnp.where(marked, jnp.maximum(gap, 0.0), jnp.zeros_like(gap))
      count += block.negatives.sum(dtype=jnp.int32)
      return (_add(sums, large.sum(0) + _sum_log1p(small)), count), None

    start = ((zero, zero), none[:1])
    (value, count), _ = jax.lax.scan(add, start, blocks)
    return _Sums(
      sums.total + jnp.where(exist, sum(value), zero),
      sums.positives + exist.astype(jnp.int32),
      jnp.maximum(sums.negatives, count),
    )

  start = _Sums(zero, none, none)
  return _loop_over_positives(of_columns, start, batch.positives, is_diagonal)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _sums(
  batch: _Batch, inverse: jax.Array, is_diagonal: bool, axis_name: Any
) -> _Sums:
  """The same. For the gradient the blocks are computed again, not stored."""
  return _forward(batch, inverse, is_diagonal, axis_name)


def _sums_fwd(
  batch: _Batch, inverse: jax.Array, is_diagonal: bool, axis_name: Any
) -> tuple[_Sums, tuple[_Batch, jax.Array]]:
  # Not _sums, which has no forward mode, and would be differentiated again.
  return _forward(batch, inverse, is_diagonal, axis_name), (batch, inverse)


def _sums_bwd(
  is_diagonal: bool,
  axis_name: Any,
  saved: tuple[_Batch, jax.Array],
  cotangents: _Sums,
) -> tuple[Any, jax.Array]:
  batch, inverse = saved
  cotangent = cotangents.total
  blocks = _blocks(batch, axis_name)
  count, size = blocks.scores.shape
  zero, by_score = vary_like(
    (jnp.zeros_like(inverse), jnp.zeros_like(blocks.scores)),
    (batch, inverse, blocks, cotangent),
  )
  own: Any = 0  # Where the similarities of this device begin.
  if axis_name is not None:
    own = jax.lax.axis_index(axis_name) * (count * size)
    own //= jax.lax.axis_size(axis_name)

  def of_columns(
    sums: tuple[jax.Array, jax.Array], columns: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    by_score, by_inverse = sums
    scores, exist, place = _scores_at(batch, columns)
    weight = jnp.where(exist, cotangent, zero)

    def add(k: jax.Array, sums: Any) -> Any:
      by_score, mass, moment = sums
      gap = blocks.scores[k][:, None] - scores[None]
      derivative = sigmoid(gap * inverse[None])
      marked = blocks.negatives[k][:, None]
      derivative = jnp.where(marked, derivative, jnp.zeros_like(derivative))
      at_block = (derivative * (weight * inverse)[None]).sum(1)
      by_score = by_score.at[k].add(at_block)
      mass = _add(mass, derivative.sum(0))
      return by_score, mass, _add(moment, (derivative * gap).sum(0))

    start = (by_score, (zero, zero), (zero, zero))
    by_score, mass, moment = jax.lax.fori_loop(0, count, add, start)
    at_positive = -weight * inverse * sum(mass)
    flat = by_score.ravel().at[own + place].add(at_positive)
    return flat.reshape(count, size), by_inverse + weight * sum(moment)

  by_score, by_inverse = _loop_over_positives(
    of_columns, (by_score, zero), batch.positives, is_diagonal
  )
  if axis_name is not None:
    by_score = jax.lax.psum_scatter(by_score, axis_name, tiled=True)
  by_score = by_score.ravel()[: batch.scores.size].reshape(batch.scores.shape)
  none: Any = None  # Masks have no gradient.
  return _Batch(by_score, none, none), by_inverse


_sums.defvjp(_sums_fwd, _sums_bwd)


def _of_batch(
  pairs: Pairs, temperature: jax.Array, reduction: str, axis_name: Any
) -> jax.Array:
  batch = _Batch(pairs.similarities, pairs.positives, pairs.negatives)
  inverse = jnp.broadcast_to(1.0 / temperature, (len(batch.scores), 1))[:, 0]
  axes = axes_of(batch, inverse) | set(axis_name or ())
  # So that their cotangents may vary, which are then summed where needed.
  batch, inverse = vary((batch, inverse), frozenset(axes))
  sums = _sums(batch, inverse, pairs.is_diagonal, axis_name)
  count = jnp.maximum(sums.positives, 1)
  total = sums.total / count.astype(sums.total.dtype)
  if reduction == "mean":
    # Not a product of both, which could be above the largest int32.
    total /= jnp.maximum(sums.negatives, 1).astype(total.dtype)
  return total


def _diagonal_of_all(s: jax.Array, names: tuple[str, ...]) -> jax.Array:
  """The diagonal, of which this device has the rows of its queries."""
  queries, documents = s.shape[-2:]
  total = queries * jax.lax.axis_size(names)
  if documents < total:
    raise ValueError(
      "similarities must have a document for each query of all devices if the "
      f"positives are the diagonal, got {documents} documents for {total} "
      "queries. Pass positives=."
    )
  first = jax.lax.axis_index(names) * queries
  return class_ids(s) == class_ids(s, -2) + first


@pair_loss(
  domains={"temperature": "(0, inf)"},
  settings=("reduction", "axis_name"),
  in_blocks=True,
)
def _mann_whitney(
  pairs: Pairs, *, temperature: jax.Array, reduction: str, axis_name: Any
) -> jax.Array:
  of_batch = functools.partial(
    _of_batch, reduction=reduction, axis_name=axis_name
  )
  s = pairs.similarities
  if s.ndim == 2:
    return of_batch(pairs, temperature)
  temperature = jnp.broadcast_to(temperature, (*s.shape[:-1], 1))

  def of_one(arrays: tuple[jax.Array, ...]) -> jax.Array:
    scores, positives, negatives, tau = arrays
    one = Pairs(scores, positives, negatives, (), pairs.is_diagonal)
    return of_batch(one, tau)

  arrays = (s, pairs.positives, pairs.negatives, temperature)
  flat = tuple(x.reshape(-1, *x.shape[-2:]) for x in arrays)
  return jax.lax.map(of_one, flat).reshape(s.shape[:-1])


def mann_whitney(
  similarities: ArrayLike,
  positives: ArrayLike | None = None,
  *,
  temperature: ArrayLike = 0.01,
  reduction: str = "mean",
  where: ArrayLike | None = None,
  axis_name: str | Sequence[str] | None = None,
) -> jax.Array:
  r"""Computes the loss of positives against the negatives of the whole batch.

  Use when one threshold of similarity should separate the positives from the
  negatives of all queries. InfoNCE compares the documents of each query only,
  and does not change when a number is added to all similarities of a query.

  Avoid when the order of the documents of a query is all that matters, or a
  batch is so large that :math:`Q^2 D` comparisons take too long.

  With :math:`P_q` the positives of query :math:`q` and :math:`N` the negatives
  of all queries,

  .. math::
    \frac{1}{|P_q|} \sum_{p \in P_q} \frac{1}{|N|} \sum_{n \in N}
      \log\bigl(1 + e^{(s_n - s_p) / \tau}\bigr) .

  The paper has the sum over the negatives, ``reduction="sum"``, which grows
  with the square of the batch size. The default loss divided by :math:`\log 2`
  is an upper bound of the probability that a negative is more similar than a
  positive, which is 1 minus the area under the ROC curve.

  The comparisons are computed in blocks, and again for the gradient, so that
  the memory is proportional to the number of similarities. The time is
  proportional to ``Q * Q * D`` times the largest number of positives of a
  query. The loss supports reverse-mode differentiation, and forward mode over
  reverse mode.

  Args:
    similarities: Similarities ``[..., Q, D]``, any floating dtype. Leading axes
      are separate batches.
    positives: Which pairs are positive, booleans of the same shape. None is the
      diagonal.
    temperature: :math:`\tau`, above 0, a scalar or of shape ``[..., Q]``, one
      for the positives of each query.
    reduction: ``"mean"`` or ``"sum"`` over the negatives.
    where: Which pairs to keep, booleans of the same shape.
    axis_name: The axis of ``shard_map`` over which the queries are spread, or a
      tuple of axes. The negatives are then those of all devices. Without
      ``positives``, each device must have all documents, and the positives are
      the diagonal of the similarities of all devices.

  Returns:
    The loss of each query, ``[..., Q]``, float32 or wider; 0 without a positive
    in the query or a negative in the batch.

  Raises:
    TypeError: If ``similarities`` is not floating, a mask is not boolean, or
      ``axis_name`` is no name.
    ValueError: If shapes do not fit, ``reduction`` is unknown, or a concrete
      ``temperature`` is not above 0.

  Examples:
    >>> similarities = jnp.array([[0.8, 0.3], [0.5, 0.6]])
    >>> print(retrieval.mann_whitney(similarities, temperature=0.1))
    [0.0277 0.1809]

  References:
    Sheikholeslami, Hosseini, Bechard, Daruru and Rajeswar, `Optimizing What
    Matters: AUC-Driven Learning for Robust Neural Retrieval
    <https://arxiv.org/abs/2510.00137>`_, 2025, equation 3.

  .. seealso:: :func:`squentropy_jax.retrieval.info_nce`
  """
  if reduction not in ("mean", "sum"):
    raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}.')
  names = checks.as_axis_names(axis_name)
  if positives is None and names is not None:
    positives = _diagonal_of_all(as_similarities(similarities), names)
  return _mann_whitney(
    similarities,
    positives,
    temperature=temperature,
    where=where,
    settings={"reduction": reduction, "axis_name": names},
  )
