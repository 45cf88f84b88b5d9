# SPDX-License-Identifier: Apache-2.0
"""Margin losses of the hardest documents of each query."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core.varying import vary_like
from squentropy_jax.retrieval._pairs import Pairs, pair_loss

# Replaces the logit of a pair that is beyond the margin.
_BEYOND_MARGIN = -100.0


def _check_count(name: str, count: int, documents: int) -> None:
  if count >= documents:
    raise ValueError(
      f"{name} must be below the number of documents {documents}, got {count}. "
      + (
        f"Pass {name}={documents - 1} or less."
        if documents > 1
        else "Pass more documents."
      )
    )


def _hardest(
  scores: jax.Array, marked: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
  """The largest marked scores, and which of the ``count`` exist."""
  fixed = jnp.where(marked, jax.lax.stop_gradient(scores), -jnp.inf)
  _, ids = jax.lax.top_k(fixed, count)
  return (
    jnp.take_along_axis(scores, ids, axis=-1),
    jnp.take_along_axis(marked, ids, axis=-1),
  )


def _violations(excess: jax.Array, exist: jax.Array) -> jax.Array:
  """``max(0, excess)``, NaN of NaN, with derivative 0 at 0 and if absent."""
  return jnp.where(exist & ~(excess <= 0), excess, jnp.zeros_like(excess))


def _weighted_mean(
  positives: jax.Array,
  negatives: jax.Array,
  exist: jax.Array,
  temperature: jax.Array | None,
) -> jax.Array:
  """The mean over negatives for each positive, ``[..., Q, P]``.

  The arguments are the positives minus the margin ``[..., Q, P]``, and the
  negatives in decreasing order ``[..., Q, N]``. Nothing of shape ``[.., P, N]``
  is stored, also not for the gradient.
  """
  count = negatives.shape[-1]
  zero = jnp.zeros_like(positives)
  logits = negatives if temperature is None else negatives / temperature

  def violated(k: int) -> jax.Array:
    excess = negatives[..., k, None] - positives
    return exist[..., k, None] & ~(excess <= 0)

  # The largest logit: those that are violated come first, the others are 0.
  top = jnp.where(violated(0), logits[..., :1], zero)
  top = jnp.where(violated(count - 1), top, jnp.maximum(top, zero))
  top = jax.lax.stop_gradient(top)

  def add(
    sums: tuple[jax.Array, jax.Array], one: tuple[jax.Array, ...]
  ) -> tuple[tuple[jax.Array, jax.Array], None]:
    s, logit, exists = (x[..., None] for x in one)
    values = _violations(s - positives, exists)
    if temperature is None:
      return (sums[0] + values, sums[1]), None
    weights = jnp.exp(jnp.where(values != 0, logit, zero) - top)
    return (sums[0] + weights * values, sums[1] + weights), None

  each = tuple(jnp.moveaxis(x, -1, 0) for x in (negatives, logits, exist))
  start = vary_like((zero, zero), (positives, each, top))
  body = jax.checkpoint(add, prevent_cse=False)
  (total, norm), _ = jax.lax.scan(body, start, each)
  if temperature is not None:
    total = total / norm
  return total / count


def _mean_over_positives(
  pairs: Pairs, margin: jax.Array, count: int, temperature: jax.Array | None
) -> jax.Array:
  s = pairs.similarities
  _check_count("num_negatives", count, s.shape[-1])
  negatives, exist = _hardest(s, pairs.negatives, count)
  thresholds = pairs.at_positives(s) - margin
  each = _weighted_mean(thresholds, negatives, exist, temperature)
  return pairs.mean_over_positives(each)


@pair_loss(domains={"margin": "[0, inf)", "num_negatives": int})
def _plain(pairs: Pairs, *, margin: jax.Array, num_negatives: int) -> jax.Array:
  return _mean_over_positives(pairs, margin, num_negatives, None)


@pair_loss(
  domains={
    "margin": "[0, inf)",
    "temperature": "(0, inf)",
    "num_negatives": int,
  }
)
def _weighted(
  pairs: Pairs,
  *,
  margin: jax.Array,
  temperature: jax.Array,
  num_negatives: int,
) -> jax.Array:
  return _mean_over_positives(pairs, margin, num_negatives, temperature)


def top_k_margin(
  similarities: ArrayLike,
  positives: ArrayLike | None = None,
  *,
  margin: ArrayLike = 0.3,
  num_negatives: int = 10,
  temperature: ArrayLike | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the margin loss of each positive against the hardest negatives.

  Use when a batch has hard negatives, for example because it consists of
  clusters of similar items, and easy negatives should not contribute.

  Avoid when all negatives are easy: if no negative is within the margin, the
  gradient is 0.

  With the :math:`k` largest similarities :math:`s_j` of negatives,

  .. math::
    \frac{1}{k} \sum_{j=1}^{k} w_j \ell_j, \qquad
    \ell_j = \max(0,\, s_j - s_+ + m) .

  Without ``temperature`` all :math:`w_j` are 1. With ``temperature``, :math:`w`
  is the softmax of :math:`s_j / \tau \cdot [\ell_j > 0]`, through which the
  gradient flows. Negatives beyond the margin take part in this softmax with
  logit 0. The loss of a query with several positives is the mean over them. The
  choice of the hardest negatives is not differentiated. The divisor is
  :math:`k` also where fewer negatives exist.

  Args:
    similarities: Similarities ``[..., Q, D]``, any floating dtype.
    positives: Which pairs are positive, booleans of the same shape. None is the
      diagonal.
    margin: :math:`m`, at least 0, a scalar or of shape ``[..., Q]``.
    num_negatives: :math:`k`, static, at least 1 and below ``D``.
    temperature: :math:`\tau`, above 0, a scalar or of shape ``[..., Q]``.
    where: Which pairs to keep, booleans of the same shape. Drop known positives
      that should not be trained on.

  Returns:
    The loss of each query, ``[..., Q]``, float32 or wider; 0 without a positive
    or a negative.

  Raises:
    TypeError: If ``similarities`` is not floating, a mask is not boolean, or
      ``num_negatives`` is not an int.
    ValueError: If shapes do not fit, ``num_negatives`` is out of range, or a
      concrete hyper-parameter is out of its domain.

  Examples:
    >>> similarities = jnp.array([[0.8, 0.6, 0.1], [0.2, 0.7, 0.65]])
    >>> print(retrieval.top_k_margin(similarities, num_negatives=1))
    [0.1  0.25]
    >>> loss = retrieval.top_k_margin(
    ...   similarities, num_negatives=2, temperature=0.1, margin=0.3
    ... )
    >>> print(loss)
    [0.0499 0.1248]

  References:
    Dahiya and 18 others, `NGAME: Negative Mining-aware Mini-batching for
    Extreme Classification <https://arxiv.org/abs/2207.04452>`_, WSDM 2023.

  .. seealso:: :func:`squentropy_jax.retrieval.multi_positive_margin`
  """
  values: dict[str, Any] = {"margin": margin, "num_negatives": num_negatives}
  loss = _plain
  if temperature is not None:
    loss, values = _weighted, values | {"temperature": temperature}
  return loss(similarities, positives, where=where, **values)


@pair_loss(
  domains={"margin": "[0, inf)", "num_positives": int, "num_negatives": int}
)
def _multi_positive_margin(
  pairs: Pairs,
  *,
  margin: jax.Array,
  num_positives: int,
  num_negatives: int,
) -> jax.Array:
  s = pairs.similarities
  _check_count("num_positives", num_positives, s.shape[-1])
  _check_count("num_negatives", num_negatives, s.shape[-1])
  lowest, given = _hardest(-s, pairs.positives, num_positives)
  negatives, exist = _hardest(s, pairs.negatives, num_negatives)
  threshold = jnp.expand_dims(-lowest - margin, -1)
  excess = jnp.expand_dims(negatives, -2) - threshold
  values = _violations(excess, jnp.expand_dims(exist, -2))
  logits = jnp.where(values != 0, values, _BEYOND_MARGIN)
  weights = jax.nn.softmax(logits, axis=-1)
  each = (weights * values).sum(-1)
  each = jnp.where(given, each, jnp.zeros_like(each))
  return each.sum(-1) / (num_positives * num_negatives)


def multi_positive_margin(
  similarities: ArrayLike,
  positives: ArrayLike | None = None,
  *,
  margin: ArrayLike = 0.2,
  num_positives: int = 3,
  num_negatives: int = 5,
  where: ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the margin loss of the hardest positives and negatives.

  Use when a query has many positives, and the few that are ranked lowest matter
  most.

  Avoid when each query has one positive: use
  :func:`squentropy_jax.retrieval.top_k_margin`.

  With the :math:`P` lowest similarities :math:`s_i` of positives and the
  :math:`N` largest similarities :math:`s_j` of negatives,

  .. math::
    \frac{1}{P N} \sum_{i=1}^{P} \sum_{j=1}^{N} w_{ij} \ell_{ij}, \qquad
    \ell_{ij} = \max(0,\, s_j - s_i + m), \qquad
    w_{ij} = \mathrm{softmax}_j(\ell_{ij}) .

  Pairs with :math:`\ell_{ij} = 0` have the logit -100 in the softmax, through
  which the gradient flows. The divisor is :math:`P N` also where fewer
  positives or negatives exist. The choice of the hardest documents is not
  differentiated.

  Args:
    similarities: Similarities ``[..., Q, D]``, any floating dtype.
    positives: Which pairs are positive, booleans of the same shape. None is the
      diagonal.
    margin: :math:`m`, at least 0, a scalar or of shape ``[..., Q]``.
    num_positives: :math:`P`, static, at least 1 and below ``D``.
    num_negatives: :math:`N`, static, at least 1 and below ``D``.
    where: Which pairs to keep, booleans of the same shape.

  Returns:
    The loss of each query, ``[..., Q]``, float32 or wider; 0 without a positive
    or a negative.

  Raises:
    TypeError: If ``similarities`` is not floating, a mask is not boolean, or a
      number of documents is not an int.
    ValueError: If shapes do not fit, a number of documents is out of range, or
      a concrete ``margin`` is below 0.

  Examples:
    >>> similarities = jnp.array([[0.8, 0.4, 0.5, 0.1]])
    >>> positives = jnp.array([[True, True, False, False]])
    >>> loss = retrieval.multi_positive_margin(
    ...   similarities, positives, num_positives=2, num_negatives=2
    ... )
    >>> print(loss)
    [0.075]

  References:
    Dahiya and 18 others, `NGAME: Negative Mining-aware Mini-batching for
    Extreme Classification <https://arxiv.org/abs/2207.04452>`_, WSDM 2023.

  .. seealso:: :func:`squentropy_jax.retrieval.top_k_margin`
  """
  return _multi_positive_margin(
    similarities,
    positives,
    margin=margin,
    num_positives=num_positives,
    num_negatives=num_negatives,
    where=where,
  )
