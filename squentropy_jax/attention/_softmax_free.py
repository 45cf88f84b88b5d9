# SPDX-License-Identifier: Apache-2.0
"""Attention with a Gaussian kernel of low rank (SOFT), and its landmarks."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax.attention import _shapes
from squentropy_jax.attention._newton_schulz import newton_schulz_inverse

# Products in float32 also where a device would round their factors.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _checked_where(
  where: ArrayLike | None, query: jax.Array
) -> jax.Array | None:
  """Checks the mask of tokens, of shape ``[..., T]``."""
  if where is None:
    return None
  array = checks.as_array(where, "where")
  if array.dtype != jnp.bool_:
    raise TypeError(
      f"where must be boolean, got dtype {array.dtype}. Pass where != 0."
    )
  if array.shape != query.shape[:-2]:
    raise ValueError(
      f"where must have the shape [..., T] = {query.shape[:-2]}, one entry for "
      f"each token, got {array.shape}. Nothing is broadcast."
    )
  return checks.as_jax(array)


@jax.custom_jvp
def _square_distances(a: jax.Array, b: jax.Array) -> jax.Array:
  """``[..., N, T, m]`` of ``[..., T, N, H]`` and ``[..., m, N, H]``.

  Close points have accurate distances, because the sum is one of differences.
  Compilers fuse it, so that no array has both T x m and H entries.
  """
  a, b = (jnp.moveaxis(x, -2, -3) for x in (a, b))
  return ((a[..., :, None, :] - b[..., None, :, :]) ** 2).sum(-1)


@_square_distances.defjvp
def _square_distances_jvp(
  primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  # Matrix products, whose transposes take no more memory than the distances.
  (a, b), (da, db) = primals, tangents
  center = jax.lax.stop_gradient(b.mean(-3, keepdims=True))
  x, y = a - center, b - center
  of_a = jnp.moveaxis((x * da).sum(-1), -1, -2)[..., :, None]
  of_b = jnp.moveaxis((y * db).sum(-1), -1, -2)[..., None, :]
  crossed = _einsum("...tnh,...mnh->...ntm", x, db)
  crossed += _einsum("...tnh,...mnh->...ntm", da, y)
  return _square_distances(a, b), 2.0 * (of_a + of_b - crossed)


@functools.partial(
  jax.jit, static_argnames=("normalize", "num_iters", "wide"), inline=True
)
def _softmax_free(
  query: jax.Array,
  value: jax.Array,
  landmarks: jax.Array,
  keep: jax.Array | None,
  ridge: jax.Array,
  *,
  normalize: bool,
  num_iters: int,
  wide: np.dtype,
) -> jax.Array:
  query, value, landmarks = (x.astype(wide) for x in (query, value, landmarks))
  if keep is not None:
    token = keep[..., None, None]
    query, value = (jnp.where(token, x, 0.0) for x in (query, value))
  factor = -0.5 / math.sqrt(query.shape[-1])
  similar = jnp.exp(factor * _square_distances(landmarks, landmarks))
  to_landmarks = jnp.exp(factor * _square_distances(query, landmarks))
  if keep is not None:
    to_landmarks = jnp.where(keep[..., None, :, None], to_landmarks, 0.0)
  if normalize:
    # At least 1: a landmark has similarity 1 to itself.
    to_landmarks *= jax.lax.rsqrt(similar.sum(-1))[..., None, :]
  eye = jnp.eye(similar.shape[-1], dtype=wide)
  eye = eye.reshape((1,) * (similar.ndim - 2) + eye.shape)
  inverse = newton_schulz_inverse(similar + ridge * eye, num_iters=num_iters)
  summed = _einsum("...ntm,...tnd->...nmd", to_landmarks, value)
  solved = _einsum("...nlm,...nmd->...nld", inverse, summed)
  return _einsum("...ntm,...nmd->...tnd", to_landmarks, solved)


def softmax_free_attention(
  query: ArrayLike,
  value: ArrayLike,
  *,
  landmarks: ArrayLike,
  where: ArrayLike | None = None,
  normalize: bool = True,
  ridge: ArrayLike = 0.0,
  num_iters: int = 20,
) -> jax.Array:
  r"""Computes attention with a Gaussian kernel in memory linear in the length.

  Use when sequences are long and every token may see every other one. Queries
  are also the keys. Avoid when attention must be causal.

  The kernel of queries of size :math:`d`,
  :math:`S(x, y) = e^{-\lVert x - y \rVert^2 / (2 \sqrt d)}`, is replaced by its
  Nystrom approximation with the landmarks :math:`L`. With
  :math:`P = S(Q, L)`, :math:`A = S(L, L)` and the row sums :math:`D` of
  :math:`A` on a diagonal, the outputs are

  .. math::
    P A^{-1} P^T V, \quad \text{or with normalize} \quad
    P D^{-1/2} A^{-1} D^{-1/2} P^T V .

  With the queries as landmarks and no normalisation this is :math:`S V`. The
  inverse is that of :func:`newton_schulz_inverse`. If landmarks may be close to
  each other, pass a ``ridge``, such as 0.01, and ``num_iters=30``.

  Args:
    query: Queries, which are also the keys, ``[..., T, N, H]``, any floating
      dtype.
    value: Values ``[..., T, N, D]``.
    landmarks: Points in the space of the queries, ``[..., m, N, H]``, such as
      those of :func:`average_landmarks`.
    where: Which tokens to keep, booleans ``[..., T]``. A dropped token gives 0,
      changes no other, and may hold any values.
    normalize: Whether to divide by :math:`D`, which bounds the kernel; static.
    ridge: A number of 0 or more that is added to the diagonal of :math:`A`
      before the inversion.
    num_iters: The number of iterations for the inverse, static.

  Returns:
    The outputs ``[..., T, N, D]``, in the dtype of queries and values.

  Raises:
    TypeError: If an input is not floating or ``where`` not boolean.
    ValueError: If shapes do not fit, or if ``ridge`` is negative.

  Examples:
    >>> query = jnp.array([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    >>> value = jnp.eye(3)[:, None, :]
    >>> out = attention.softmax_free_attention(
    ...   query, value, landmarks=query[:2], normalize=False
    ... )
    >>> print(out[:, 0])
    [[1.     0.7022 0.7022]
     [0.7022 1.     0.4931]
     [0.7022 0.4931 0.4931]]

  References:
    Lu et al., `Softmax-free Linear Transformers
    <https://arxiv.org/abs/2207.03341>`_, IJCV 2024.
  """
  q, v, points = (
    checks.as_floats(x, name)
    for name, x in (
      ("query", query),
      ("value", value),
      ("landmarks", landmarks),
    )
  )
  _shapes.check_rank("query", q, "T, N, H")
  *batch, rows, heads, width = q.shape
  like = f"query {q.shape}"
  _shapes.check_shape("value", v, (*batch, rows, heads, "D"), like)
  _shapes.check_shape("landmarks", points, (*batch, "m", heads, width), like)
  if points.shape[-3] == 0:
    raise ValueError(
      f"landmarks must be one point or more, got shape {points.shape}. Pass "
      "average_landmarks(query, num)."
    )
  wide = checks.compute_dtype(q.dtype, v.dtype, points.dtype)
  out = _softmax_free(
    q,
    v,
    points,
    _checked_where(where, q),
    checks.as_scalar("ridge", ridge, wide, "[0, inf)"),
    normalize=checks.as_flag("normalize", normalize),
    num_iters=checks.as_count("num_iters", num_iters),
    wide=wide,
  )
  return out.astype(_shapes.result_dtype(q, v))


@functools.partial(jax.jit, static_argnames="num", inline=True)
def _segment_means(
  query: jax.Array, keep: jax.Array | None, num: int
) -> jax.Array:
  wide = checks.compute_dtype(query.dtype)
  if keep is None:
    # With the sharding of the queries, which jnp.ones would not have.
    keep = jnp.ones_like(query, bool).all((-2, -1))
  query = jnp.where(keep[..., None, None], query.astype(wide), 0.0)
  # Segments of the kept tokens alone: padding moves no border.
  rank = jnp.cumsum(keep, -1, dtype=jnp.int32)[..., None, :] - 1
  size, more = jnp.divmod(keep.sum(-1, dtype=jnp.int32)[..., None], num)
  at = jnp.arange(num + 1, dtype=jnp.int32).reshape(
    *(1 for _ in query.shape[:-3]), num + 1
  )
  # The product of `at` and the number of tokens could overflow.
  border = at * size + at * more // num
  start = border[..., :-1, None]
  end = jnp.maximum(border[..., 1:, None], start + 1)
  inside = (rank >= start) & (rank < end) & keep[..., None, :]
  sums = _einsum("...mt,...tnh->...mnh", inside.astype(wide), query)
  count = jnp.maximum(inside.sum(-1), 1)[..., None, None]
  return sums / count.astype(wide)


def average_landmarks(
  query: ArrayLike, num: int, *, where: ArrayLike | None = None
) -> jax.Array:
  r"""Computes landmarks as means of consecutive queries.

  Use when :func:`softmax_free_attention` needs landmarks and the model has no
  layer that learns them. The :math:`n` kept tokens are divided into :math:`m`
  segments whose lengths differ by 1 at most,

  .. math::
    l_j = \frac{1}{|I_j|} \sum_{i \in I_j} q_i, \quad
    I_j = \bigl\{ i :
      \lfloor j n / m \rfloor \le i < \lfloor (j + 1) n / m \rfloor \bigr\} .

  A sequence with fewer kept tokens than landmarks has equal landmarks; pass a
  ``ridge`` to the attention. One without kept tokens has landmarks 0.

  Args:
    query: Queries ``[..., T, N, H]``, any floating dtype.
    num: :math:`m` between 1 and ``T``, static.
    where: Which tokens to keep, booleans ``[..., T]``.

  Returns:
    The landmarks ``[..., m, N, H]``, float32 or wider.

  Raises:
    TypeError: If ``query`` is not floating or ``where`` not boolean.
    ValueError: If shapes do not fit or ``num`` is not between 1 and ``T``.

  Examples:
    >>> query = jnp.array([0.0, 2.0, 5.0, 7.0]).reshape(4, 1, 1)
    >>> print(attention.average_landmarks(query, 2).ravel())
    [1. 6.]

  References:
    Xiong et al., `Nystromformer: A Nystrom-Based Algorithm for Approximating
    Self-Attention <https://arxiv.org/abs/2102.03902>`_, AAAI 2021.
  """
  q = checks.as_floats(query, "query")
  _shapes.check_rank("query", q, "T, N, H")
  num = checks.as_count("num", num)
  if num > q.shape[-3]:
    raise ValueError(
      f"num must be at most the number of tokens {q.shape[-3]}, got {num}."
    )
  return _segment_means(q, _checked_where(where, q), num)
