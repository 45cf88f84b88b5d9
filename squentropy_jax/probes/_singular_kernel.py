# SPDX-License-Identifier: Apache-2.0
"""The singular-kernel (Hilbert) classifier, in blocks of distances."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from squentropy_jax._core import checks
from squentropy_jax._core.varying import vary_like, without_explicit_axes
from squentropy_jax.probes._read_examples import (
  as_features,
  as_num_classes,
  product,
  read_examples,
)

# Queries and points of a block: their distances take 4 MiB in float32.
_QUERIES, _POINTS = 256, 4096


class _Sums(NamedTuple):
  """Sums over points for each query and class, ``[queries, C]``.

  Attributes:
    largest: The largest log weight; ``-inf`` without a point.
    total: The sum of the weights, divided by the largest.
    coinciding: The number of points at distance 0.
  """

  largest: jax.Array
  total: jax.Array
  coinciding: jax.Array


class _Block(NamedTuple):
  points: jax.Array  # [points, d]
  labels: jax.Array  # [points]
  keep: jax.Array  # [points]


def _log_distances(
  queries: jax.Array, points: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Logarithms of distances ``[queries, points]``; also which are 0.

  The sum of squares is that of differences in units of the largest, so that it
  neither underflows nor overflows. A loop over the features needs no array
  ``[queries, points, d]``.
  """
  features = queries.T, points.T
  zero = jnp.zeros((len(queries), len(points)), queries.dtype)
  zero = vary_like(zero, features)

  def difference(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    return pair[0][:, None] - pair[1][None, :]

  def maximum(largest: jax.Array, pair: Any) -> tuple[jax.Array, None]:
    return jnp.maximum(largest, jnp.abs(difference(pair))), None

  constants = jax.lax.stop_gradient(features)
  largest = jax.lax.scan(maximum, zero, constants)[0]
  is_zero = largest == 0
  unit = jnp.where(is_zero, 1, largest)

  @jax.checkpoint
  def add(total: jax.Array, pair: Any) -> tuple[jax.Array, None]:
    return total + jnp.square(difference(pair) / unit), None

  square = jax.lax.scan(add, zero, features)[0]
  square = jnp.where(is_zero, 1, square)
  return jnp.log(unit) + 0.5 * jnp.log(square), is_zero


def _add_block(
  sums: _Sums, block: _Block, queries: jax.Array, exponent: jax.Array
) -> _Sums:
  num_classes = sums.largest.shape[1]
  log_distance, is_zero = _log_distances(queries, block.points)
  counts = ~is_zero & block.keep[None, :]
  log_weight = jnp.where(counts, -exponent[:, None] * log_distance, -jnp.inf)
  constant = jax.lax.stop_gradient(log_weight)
  largest = jax.ops.segment_max(constant.T, block.labels, num_classes).T
  largest = jnp.maximum(largest, sums.largest)
  safe = jnp.where(largest == -jnp.inf, 0, largest)
  # A product with a one-hot matrix has the same bits on every run.
  classes = jnp.arange(num_classes, dtype=jnp.int32)
  one_hot = (block.labels[:, None] == classes[None, :]).astype(queries.dtype)
  weight = jnp.exp(log_weight - safe[:, block.labels])
  coincide = (is_zero & block.keep[None, :]).astype(queries.dtype)
  return _Sums(
    largest,
    sums.total * jnp.exp(sums.largest - safe) + product(weight, one_hot),
    sums.coinciding + product(coincide, one_hot),
  )


def _of_queries(
  queries: jax.Array, exponent: jax.Array, blocks: _Block, num_classes: int
) -> jax.Array:
  zero = jnp.zeros((len(queries), num_classes), queries.dtype)
  start = vary_like(
    _Sums(jnp.full_like(zero, -jnp.inf), zero, zero), (queries, blocks)
  )

  # The derivative computes the distances again instead of storing them.
  @jax.checkpoint
  def add(sums: _Sums, block: _Block) -> tuple[_Sums, None]:
    return _add_block(sums, block, queries, exponent), None

  sums = jax.lax.scan(add, start, blocks)[0]
  is_empty = sums.total == 0
  score = sums.largest + jnp.log(jnp.where(is_empty, 1, sums.total))
  score = jnp.where(is_empty, -jnp.inf, score)
  decided = jnp.any(sums.coinciding > 0, axis=1, keepdims=True)
  votes = jnp.log(sums.coinciding)
  return jax.nn.log_softmax(jnp.where(decided, votes, score), axis=-1)


def _pad(x: jax.Array, size: int) -> jax.Array:
  """Blocks of ``size`` rows, ``[blocks, size, ...]``, padded with zeros."""
  extra = -len(x) % size
  x = jnp.pad(x, ((0, extra),) + ((0, 0),) * (x.ndim - 1))
  return x.reshape(-1, size, *x.shape[1:])


def _log_probs(
  num_classes: int,
  queries: jax.Array,
  exponent: jax.Array,
  block: _Block,
  invalid: jax.Array,
) -> jax.Array:
  batch = queries.shape[:-1]
  exponent = jnp.broadcast_to(exponent, batch).reshape(-1)
  queries = queries.reshape(-1, queries.shape[-1])
  n, m = block.points.shape[0], queries.shape[0]
  sizes = min(m, _QUERIES), min(n, _POINTS)
  blocks = _Block(*(_pad(x, sizes[1]) for x in block))
  out = jax.lax.map(
    lambda pair: _of_queries(pair[0], pair[1], blocks, num_classes),
    (_pad(queries, sizes[0]), _pad(exponent, sizes[0])),
  )
  out = out.reshape(-1, num_classes)[:m].reshape(*batch, num_classes)
  return jnp.where(invalid, jnp.nan, out)


_log_probs_jit = jax.jit(_log_probs, static_argnums=0)


def singular_kernel_log_probs(
  queries: ArrayLike,
  points: ArrayLike,
  labels: ArrayLike,
  num_classes: int,
  *,
  exponent: ArrayLike,
  where: ArrayLike | None = None,
) -> jax.Array:
  r"""Computes log-probabilities of classes from distances to labelled points.

  Use it as a classifier without training, or to see what an infinitely deep
  network computes (:func:`infinite_depth_limit`). It is consistent if
  ``exponent`` is the dimension of the data.

  .. math::
    \log \frac{\sum_{i : y_i = c} \lVert q - x_i \rVert^{-\alpha}}
      {\sum_i \lVert q - x_i \rVert^{-\alpha}}

  A large :math:`\alpha` gives the nearest neighbour, and a small one the
  majority vote. If points coincide with the query, they alone decide, with
  equal weights. Distances are computed from differences in blocks, so that
  close points are accurate and memory does not grow with their product.

  Args:
    queries: What to classify, shape ``[..., d]``, any floating dtype.
    points: The labelled points, shape ``[n, d]``, any floating dtype.
    labels: Class ids of the points, integers of shape ``[n]``.
    num_classes: The number of classes, a static int.
    exponent: :math:`\alpha` above 0: a scalar, or one value for each query.
    where: Which points to include, booleans of shape ``[n]``.

  Returns:
    Log-probabilities, shape ``[..., num_classes]``, float32 or wider; ``-inf``
    for classes without points, and NaN if there is no point or if a traced
    label is out of range. They are differentiable in ``queries``, ``points``
    and ``exponent``, except where points coincide with the query.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape is wrong, or a concrete label or ``exponent`` is out
      of range.

  Examples:
    >>> points = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> log_probs = probes.singular_kernel_log_probs(
    ...   jnp.array([0.5, 0.5]), points, jnp.array([0, 1, 1]), 2, exponent=2.0
    ... )
    >>> print(jnp.exp(log_probs))
    [0.4545 0.5455]

  References:
    Devroye, Györfi and Krzyżak, `The Hilbert Kernel Regression Estimate
    <https://doi.org/10.1006/jmva.1997.1725>`_, 1998.

    Radhakrishnan, Belkin and Uhler, `Wide and Deep Neural Networks Achieve
    Optimality for Classification <https://arxiv.org/abs/2204.14126>`_, 2022.
  """
  classes = as_num_classes(num_classes)
  x = as_features(points, "points")
  if x.ndim != 2 or len(x) == 0:
    raise ValueError(
      f"points must have shape [n, d] with n of 1 or more, got {x.shape}."
    )
  q = as_features(queries, "queries")
  if q.shape[-1] != x.shape[1]:
    raise ValueError(
      f"queries must have the {x.shape[1]} features of points, got shape "
      f"{q.shape}."
    )
  dtype = checks.compute_dtype(x.dtype, q.dtype)
  checks.check_interval("exponent", exponent, "(0, inf)", dtype)
  power: Any = checks.as_jax(checks.as_array(exponent, "exponent"), dtype)
  if power.shape not in ((), q.shape[:-1]):
    raise ValueError(
      f"exponent must be a scalar or have shape {q.shape[:-1]}, one value for "
      f"each query, got {power.shape}."
    )
  examples = read_examples(x.astype(dtype), labels, classes, where, "points")
  q = q.astype(dtype)
  block = _Block(examples.features, examples.labels, examples.keep)
  if q.size == 0:
    return jnp.zeros((*q.shape[:-1], classes), dtype)
  log_probs = functools.partial(_log_probs_jit, classes)
  spec = P(*jax.typeof(q).sharding.spec[: q.ndim - 1])
  return without_explicit_axes(
    log_probs, spec, q, power, block, examples.invalid
  )
