# SPDX-License-Identifier: Apache-2.0
"""Softplus attention (LSSA), and its re-weighted form (LSSAR)."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core.elementwise import softplus
from squentropy_jax.attention import _shapes

# Scores of a row that differ by so many times their rounding error are equal.
_ULPS = 4.0


def _check_mask(mask: Any, shape: tuple[int, ...]) -> Any:
  """Checks that a mask is of booleans or of 0 and 1, and that it broadcasts."""
  array = checks.as_array(mask, "mask")
  if array.ndim != len(shape) or any(
    have not in (1, want) for have, want in zip(array.shape, shape, strict=True)
  ):
    raise ValueError(
      f"mask must broadcast to [..., N, T, S] = {shape}, with as many axes, "
      f"got {array.shape}. Pass mask[:, None, None, :] for a mask [B, S] of "
      "keys."
    )
  if array.dtype != jnp.bool_ and checks.is_concrete(array):
    values = np.asarray(array)
    if not np.all((values == 0) | (values == 1)):
      raise ValueError(
        "mask must be True or 1 where a key is seen and False or 0 elsewhere, "
        "got other values. Pass bias == 0 for a bias of 0 and -inf."
      )
  return array


@functools.partial(
  jax.jit, static_argnames=("is_causal", "wide", "precision"), inline=True
)
def _softplus_weights(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array | None,
  power: jax.Array | None,
  offset_start: jax.Array,
  *,
  is_causal: bool,
  wide: np.dtype,
  precision: Any,
) -> tuple[jax.Array, jax.Array]:
  """The weights ``[..., K, G, T, S]`` and the values without unseen keys."""
  *batch, rows, heads, width = query.shape
  columns, groups = key.shape[-3:-1]
  invalid = None
  visible = jnp.ones((*(1 for _ in batch), 1, 1, rows, columns), bool)
  if is_causal:
    visible = jnp.tril(visible)
  if mask is not None:
    per_head = (1, 1) if mask.shape[-3] == 1 else (groups, heads // groups)
    mask = mask.reshape(*mask.shape[:-3], *per_head, *mask.shape[-2:])
    if mask.dtype != jnp.bool_:
      invalid = ((mask != 0) & (mask != 1)).any(-1, keepdims=True)
      mask = mask != 0
    visible &= mask
  # What no row sees, and rows that see nothing, may hold NaN.
  seen = jnp.moveaxis(visible.any((-3, -2)), -1, -2)[..., None]
  sees = jnp.moveaxis(visible.any(-1), -1, -3)[..., None]
  query = query.reshape(*batch, rows, groups, heads // groups, width)
  query = _unit(jnp.where(sees, query.astype(wide), 0.0))
  key = _unit(jnp.where(seen, key.astype(wide), 0.0))
  value = jnp.where(seen, value.astype(wide), 0.0)
  cosines = jnp.einsum(
    "...tkgh,...skh->...kgts", query, key, precision=precision
  )
  count = jnp.maximum(visible.sum(-1, keepdims=True), 1).astype(wide)
  scale = math.log(width) * jnp.log(count)
  scores = jnp.where(visible, softplus(scale * cosines), 0.0)
  if power is not None:
    mean = scores.sum(-1, keepdims=True) / count
    mean = jnp.where(count > offset_start, mean, 0.0)
    excess = jnp.where(visible, scores - mean, 0.0)
    top = jax.lax.stop_gradient(excess.max(-1, keepdims=True))
    # Rounding errors would decide which entry of a uniform row gets all.
    error = _ULPS * jnp.finfo(wide).eps * (1.0 + scale)
    is_uniform = (mean > 0) & (top <= error * mean)
    # NaN counts as above, and so reaches the output.
    above = visible & ~(excess <= 0)
    # The power of the ratio to the largest entry does not underflow there.
    top = jnp.where(top > 0, top, 1.0)
    ratio = jnp.where(above & ~is_uniform, excess / top, 1.0)
    sharp = jnp.where(above, ratio**power, 0.0)
    scores = jnp.where(is_uniform, scores, sharp)
  total = scores.sum(-1, keepdims=True)
  weights = scores / jnp.where(total == 0, 1.0, total)
  if invalid is not None:
    weights *= jnp.where(invalid, jnp.nan, 1.0).astype(wide)
  return weights, value


def _unit(x: jax.Array) -> jax.Array:
  """Rows of length 1, and 0 for a row of zeros, with gradient 0."""
  size = jax.lax.stop_gradient(jnp.abs(x).max(-1, keepdims=True))
  is_zero = size == 0
  x = x / jnp.where(is_zero, 1.0, size)
  square = (x * x).sum(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.where(is_zero, 1.0, square))


def softplus_attention(
  query: ArrayLike,
  key: ArrayLike,
  value: ArrayLike,
  *,
  is_causal: bool = False,
  mask: ArrayLike | None = None,
  power: ArrayLike | None = None,
  offset_start: ArrayLike = 3,
  dropout_rng: Any = None,
  dropout_rate: float = 0.0,
  broadcast_dropout: bool = True,
  deterministic: bool = False,
  dtype: Any = None,
  precision: Any = None,
  module: Any = None,
) -> jax.Array:
  r"""Computes attention with softplus and a scale that grows with the length.

  Use when a model must read sequences longer than those it was trained on, as
  ``attention_fn`` of ``MultiHeadAttention`` of Flax NNX or Linen. It takes the
  keywords that Flax passes.

  Avoid when the weights do not fit in memory: each head has T x S of them.

  With :math:`N_i` the number of keys that row :math:`i` sees and :math:`d` the
  size of a head,

  .. math::
    s_{ij} = \log(1 + e^{\log d \, \log N_i \cos(q_i, k_j)}), \quad
    A_{ij} = \frac{s_{ij}}{\sum_j s_{ij}}, \quad
    B_{ij} \propto \max(0, N_i A_{ij} - O_i)^p

  where :math:`j` runs over these keys. The weights are :math:`A` (LSSA), or
  with ``power`` :math:`B`, which add up to 1 in each row (LSSAR). :math:`O_i`
  is 0 for :math:`N_i \le` ``offset_start`` and 1 above. A row whose :math:`A`
  is uniform up to rounding errors has no entry above its mean, and keeps its
  :math:`A`. In heads of size 1, every row is uniform. A row that sees no key
  gives 0.

  Args:
    query: Queries ``[..., T, N, H]``, any floating dtype.
    key: Keys ``[..., S, K, H]``, where ``N`` is a multiple of ``K``.
    value: Values ``[..., S, K, D]``.
    is_causal: Whether row ``i`` sees only the keys up to ``i``; static.
    mask: Which keys a row sees, booleans or the numbers 0 and 1, with the axes
      ``[..., N, T, S]``, each of full length or 1. Keys that no row sees may
      hold any values.
    power: :math:`p` of 1 or more. None for :math:`A`.
    offset_start: The largest number of keys for which :math:`O_i` is 0.
    dropout_rng: Ignored, as there is no dropout.
    dropout_rate: Must be 0 unless ``deterministic`` is True.
    broadcast_dropout: Ignored, as there is no dropout.
    deterministic: Whether dropout is off.
    dtype: The dtype of the result; by default that of the inputs.
    precision: Of the matrix products, as in :func:`jax.numpy.einsum`.
    module: A Flax module that records the weights ``[..., N, T, S]`` as the
      intermediate ``attention_weights``.

  Returns:
    The outputs ``[..., T, N, D]``.

  Raises:
    TypeError: If an input or ``dtype`` is not floating.
    ValueError: If shapes do not fit, if ``power`` is below 1, if dropout is
      active, or if a concrete mask holds numbers other than 0 and 1. With a
      traced mask such rows are NaN.

  Examples:
    >>> keys = jnp.eye(4)[None, :, None, :]
    >>> query = keys[:, :1]
    >>> weights = attention.softplus_attention(query, keys, keys)
    >>> print(weights[0, 0, 0])
    [0.4975 0.1675 0.1675 0.1675]
    >>> weights = attention.softplus_attention(query, keys, keys, power=15)
    >>> print(weights[0, 0, 0])
    [1. 0. 0. 0.]

  References:
    Gao and Spratling, `Softplus Attention with Re-weighting Boosts Length
    Extrapolation in Large Language Models
    <https://arxiv.org/abs/2501.13428>`_, 2025.
  """
  del dropout_rng, broadcast_dropout
  if dropout_rate and not deterministic:
    raise ValueError(
      f"dropout_rate must be 0 in training, got {dropout_rate}. "
      "softplus_attention has no dropout of its weights. Pass "
      "deterministic=True, or drop entries of its output."
    )
  q, k, v = (
    checks.as_floats(x, name)
    for name, x in (("query", query), ("key", key), ("value", value))
  )
  _shapes.check_rank("query", q, "T, N, H")
  *batch, rows, heads, width = q.shape
  _shapes.check_shape("key", k, (*batch, "S", "K", width), f"query {q.shape}")
  columns, groups = k.shape[-3:-1]
  _shapes.check_shape(
    "value", v, (*batch, columns, groups, "D"), f"key {k.shape}"
  )
  if not groups or heads % groups:
    raise ValueError(
      f"key must have a number of heads that divides the {heads} heads of "
      f"query, got {groups}."
    )
  if mask is not None:
    mask = _check_mask(mask, (*batch, heads, rows, columns))
    mask = checks.as_jax(mask)
  dtype = _shapes.result_dtype(q, k, v) if dtype is None else jnp.dtype(dtype)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(f"dtype must be floating point, got {dtype}.")
  wide = checks.compute_dtype(q.dtype, k.dtype, v.dtype, dtype)
  if power is not None:
    power = checks.as_scalar("power", power, wide, "[1, inf)")
  weights, v = _softplus_weights(
    q,
    k,
    v,
    mask,
    power,
    checks.as_scalar("offset_start", offset_start, wide, "[0, inf)"),
    is_causal=checks.as_flag("is_causal", is_causal),
    wide=wide,
    precision=precision,
  )
  if module is not None:
    full = weights.reshape(*batch, heads, rows, columns)
    module.sow("intermediates", "attention_weights", full.astype(dtype))
  out = jnp.einsum("...kgts,...skd->...tkgd", weights, v, precision=precision)
  return out.reshape(*batch, rows, heads, v.shape[-1]).astype(dtype)
