# SPDX-License-Identifier: Apache-2.0
"""Learning to rank by the pairs of a list."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.elementwise import softplus


def pairwise_ranking(
  predictions: ArrayLike,
  targets: ArrayLike,
  *,
  where: ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the logistic loss of the order of each pair of a list.

  Use when only the order of the predictions matters, for example if a model
  predicts the losses of image patches. It is the loss of RankNet.

  Avoid when the best few of a long list matter most: use
  :func:`squentropy_jax.retrieval.soft_top_k_loss`.

  With the pairs :math:`P`,

  .. math::
    \frac{1}{|P|} \sum_{(i, j) \in P} \log\bigl(1 + e^{x_j - x_i}\bigr),
    \qquad P = \{(i, j) : y_i > y_j\}

  Pairs of equal targets are left out. Each other pair counts once. The loss
  depends only on the order of the targets, not on their values. It is
  :math:`\log 2` for equal predictions, and 0 if all targets are equal. Time and
  memory are proportional to ``L * L`` for a list.

  Args:
    predictions: Scores :math:`x`, ``[..., L]``, any floating dtype.
    targets: Numbers :math:`y` of the same shape, integers or floats; their
      gradient is 0.
    where: Which entries to keep, booleans of the same shape. Dropped ones have
      gradient 0.

  Returns:
    The loss of each list, ``[...]``, float32 or wider. It is NaN if a kept
    target is NaN.

  Raises:
    TypeError: If ``predictions`` is not floating, ``targets`` are not numbers,
      or ``where`` is not boolean.
    ValueError: If shapes do not fit.

  Examples:
    >>> predictions = jnp.array([0.2, -0.1, 0.5])
    >>> loss = retrieval.pairwise_ranking(predictions, jnp.array([1, 2, 3]))
    >>> print(f"{loss:.4f}")
    0.6154

  References:
    Burges, Shaked, Renshaw, Lazier, Deeds, Hamilton and Hullender, `Learning to
    Rank using Gradient Descent
    <https://icml.cc/Conferences/2005/proceedings/papers/012_LearningToRank_BurgesEtAl.pdf>`_,
    ICML 2005. Wang, Song, Fan, Wang, Xie and Zhang, `Hard Patches Mining for
    Masked Image Modeling <https://arxiv.org/abs/2304.05919>`_, CVPR 2023.
  """
  x = checks.as_floats(predictions, "predictions")
  if x.ndim == 0:
    raise ValueError(
      "predictions must be lists of shape [..., L], got a scalar. Pass the "
      "scores of all entries of a list as one array."
    )
  y = checks.as_array(targets, "targets")
  real = jnp.issubdtype(y.dtype, jnp.floating)
  if not (real or jnp.issubdtype(y.dtype, jnp.integer)):
    raise TypeError(
      f"targets must be integers or floats, got dtype {y.dtype}. Pass "
      "jnp.asarray(targets, jnp.float32)."
    )
  if y.shape != x.shape:
    raise ValueError(
      f"targets must have the shape of predictions {x.shape}, got {y.shape}. "
      "Nothing is broadcast."
    )
  if where is not None:
    where = jnp.asarray(prelude.as_where(where, x.shape, x.shape))
    where = checks.shard_alike("where", where, x)
  order = jnp.asarray(y) if real else prelude.as_distinct("targets", y)
  y = checks.shard_alike("targets", order, x)
  return _pairwise_ranking(x, y, where)


@functools.partial(jax.jit, inline=True)
def _pairwise_ranking(
  x: jax.Array, y: jax.Array, keep: jax.Array | None
) -> jax.Array:
  x = x.astype(checks.compute_dtype(x.dtype))
  if keep is not None:
    x = jnp.where(keep, x, jnp.zeros_like(x))
    y = jnp.where(keep, y, jnp.zeros_like(y))
  pairs = y[..., :, None] > y[..., None, :]
  if keep is not None:
    pairs &= keep[..., :, None] & keep[..., None, :]
  each = softplus(x[..., None, :] - x[..., :, None])
  total = jnp.where(pairs, each, jnp.zeros_like(each)).sum((-2, -1))
  count = jnp.maximum(pairs.sum((-2, -1), dtype=jnp.int32), 1)
  # Comparisons with NaN are False, and would leave the entry out.
  invalid = (y != y).any(-1) | ~jnp.isfinite(x).all(-1)
  factor = prelude.nan_factor(invalid, x.dtype)
  return total / count.astype(x.dtype) * factor
