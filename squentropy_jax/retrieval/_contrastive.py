# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses: each positive against documents of its query."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.elementwise import softplus
from squentropy_jax._core.hyperparameters import Hyperparameters, expanded
from squentropy_jax._core.rows import row_loss
from squentropy_jax._core.transform import Transform
from squentropy_jax.retrieval._pairs import (
  Pairs,
  any_of,
  as_mask,
  as_positives,
  as_similarities,
  diagonal,
  masked_logsumexp,
  negative_log_softmax,
  pair_loss,
)

_TEMPERATURE = {"temperature": "(0, inf)"}
_THRESHOLD = Hyperparameters({"ratio": "[0, inf]", "margin": "[0, inf)"}, {})


@pair_loss(domains=_TEMPERATURE)
def _info_nce(pairs: Pairs, *, temperature: jax.Array) -> jax.Array:
  z = pairs.similarities / temperature
  return pairs.mean_over_positives(negative_log_softmax(z, pairs.keep))


# The loss of one positive for each query, also in a fused head.
@row_loss(domains=_TEMPERATURE, transform=Transform(divide_by="temperature"))
def _row(stats: RowStats, *, temperature: jax.Array) -> jax.Array:
  return softplus(stats.log_odds)


def _diagonal(
  similarities: jax.typing.ArrayLike,
  temperature: jax.typing.ArrayLike,
  where: jax.typing.ArrayLike | None,
) -> jax.Array:
  """The loss of the diagonal, by the fast sums of the row losses."""
  array = as_similarities(similarities)
  as_positives(None, array)
  *batch, queries, _ = array.shape
  ids = np.broadcast_to(np.arange(queries, dtype=np.int32), (*batch, queries))
  if where is not None:
    where = as_mask(where, "where", array)
    # A query without its positive has no loss.
    where = where & any_of(where & diagonal(array))[..., None]
  return _row(array, ids, temperature=temperature, where=where)


@_row.public
def info_nce(
  similarities: jax.typing.ArrayLike,
  positives: jax.typing.ArrayLike | None = None,
  *,
  temperature: jax.typing.ArrayLike = 0.05,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the cross-entropy of each positive against all documents.

  Use when you train two encoders on pairs and take the other documents of the
  batch as negatives.

  Avoid when a query has many positives, which then compete for probability:
  :func:`squentropy_jax.retrieval.decoupled_softmax` compares each positive with
  the negatives only.

  For a query with similarities :math:`s` and positives :math:`P`,

  .. math::
    \ell = \frac{1}{|P|} \sum_{p \in P}
      \log \sum_j e^{(s_j - s_p) / \text{temperature}} ,

  where :math:`j` runs over all documents. With one positive for each query, the
  loss is the softmax cross-entropy with the logits
  :math:`s / \text{temperature}`. A fused head computes it without storing the
  similarities:
  ``fused.linear_loss(functools.partial(retrieval.info_nce, temperature=0.05),
  queries, documents, ids, class_axis=0)``.

  Args:
    similarities: Similarities, shape ``[..., queries, documents]``, any
      floating dtype.
    positives: Which pairs are positive, booleans of the similarities' shape.
      None is the diagonal; further documents are negatives.
    temperature: Divides the similarities, above 0: a scalar or one value for
      each query, shape ``[..., queries]``.
    where: Which pairs to keep, booleans of the similarities' shape.

  Returns:
    The loss of each query, shape ``[..., queries]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete temperature is out of
      range.

  Examples:
    >>> similarities = jnp.array([[0.8, 0.3], [0.5, 0.6]])
    >>> print(retrieval.info_nce(similarities, temperature=1.0))
    [0.4741 0.6444]

  References:
    van den Oord, Li and Vinyals, `Representation Learning with Contrastive
    Predictive Coding <https://arxiv.org/abs/1807.03748>`_, 2018.

  .. seealso:: :func:`squentropy_jax.retrieval.decoupled_softmax`,
    :func:`squentropy_jax.retrieval.soft_contrastive`
  """
  if positives is None:
    return _diagonal(similarities, temperature, where)
  return _info_nce(
    similarities, positives, temperature=temperature, where=where
  )


@pair_loss(domains=_TEMPERATURE)
def _decoupled_softmax(pairs: Pairs, *, temperature: jax.Array) -> jax.Array:
  z = pairs.similarities / temperature
  negatives = masked_logsumexp(z, pairs.negatives)[..., None]
  return pairs.mean_over_positives(softplus(negatives - z))


def decoupled_softmax(
  similarities: jax.typing.ArrayLike,
  positives: jax.typing.ArrayLike | None = None,
  *,
  temperature: jax.typing.ArrayLike = 0.05,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the cross-entropy of each positive against the negatives alone.

  Use when queries have several positives, as in classification with many
  labels: a positive is not pushed away from its query by another one.

  Avoid when each query has one positive, because the loss is then
  :func:`squentropy_jax.retrieval.info_nce`.

  For a query with similarities :math:`s`, positives :math:`P` and negatives
  :math:`N`,

  .. math::
    \ell = \frac{1}{|P|} \sum_{p \in P} \log \Bigl(
      1 + \sum_{n \in N} e^{(s_n - s_p) / \text{temperature}} \Bigr) .

  A query without a negative has loss 0.

  Args:
    similarities: Similarities, shape ``[..., queries, documents]``, any
      floating dtype.
    positives: Which pairs are positive, booleans of the similarities' shape.
      None is the diagonal; further documents are negatives.
    temperature: Divides the similarities, above 0: a scalar or one value for
      each query, shape ``[..., queries]``.
    where: Which pairs to keep, booleans of the similarities' shape.

  Returns:
    The loss of each query, shape ``[..., queries]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete temperature is out of
      range.

  Examples:
    >>> similarities = jnp.array([[0.15, 0.05, 0.1, -0.05, 0.025]])
    >>> positives = jnp.array([[True, False, True, False, False]])
    >>> print(retrieval.decoupled_softmax(similarities, positives))
    [0.3534]

  References:
    Gupta et al., `Dual-Encoders for Extreme Multi-Label Classification
    <https://arxiv.org/abs/2310.10636>`_, ICLR 2024.

  .. seealso:: :func:`squentropy_jax.retrieval.soft_top_k_loss`
  """
  if positives is None:
    return _diagonal(similarities, temperature, where)
  return _decoupled_softmax(
    similarities, positives, temperature=temperature, where=where
  )


def positive_aware_negatives(
  similarities: jax.typing.ArrayLike,
  positives: jax.typing.ArrayLike | None = None,
  *,
  ratio: jax.typing.ArrayLike = 0.95,
  margin: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes which negatives are less similar than the positives.

  Use when some negatives may be unlabelled positives. A negative that is about
  as similar as the positive is left out:
  ``where=positives | positive_aware_negatives(similarities, positives)``.

  Avoid when training has just begun, because the similarities are not yet
  reliable.

  With :math:`s_+` the lowest similarity of the query's positives, a negative is
  usable if

  .. math::
    s_n < s_+ - (1 - \text{ratio}) \, |s_+|
    \qquad \text{or} \qquad s_n < s_+ - \text{margin} .

  For a positive similarity, the first rule is
  :math:`s_n < \text{ratio} \cdot s_+`. The absolute value keeps the threshold
  below a negative :math:`s_+`. All negatives of a query without a positive are
  usable.

  Args:
    similarities: Similarities, shape ``[..., queries, documents]``, any
      floating dtype.
    positives: Which pairs are positive, booleans of the similarities' shape.
      None is the diagonal; further documents are negatives.
    ratio: Share of the positive's similarity below which a negative is usable,
      0 or more: a scalar or one value for each query. Infinity keeps all.
    margin: If given, the second rule is used instead, with this margin, 0 or
      more: a scalar or one value for each query.

  Returns:
    Booleans of the similarities' shape, False on the positives.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete ratio or margin is out
      of range.

  Examples:
    >>> similarities = jnp.array([[0.8, 0.79, 0.5]])
    >>> print(retrieval.positive_aware_negatives(similarities))
    [[False False  True]]

  References:
    de Souza P. Moreira et al., `NV-Retriever: Improving Text Embedding Models
    with Effective Hard-Negative Mining <https://arxiv.org/abs/2407.15831>`_,
    2024.

  .. seealso:: :func:`squentropy_jax.retrieval.info_nce`
  """
  array = as_similarities(similarities)
  mask = as_positives(positives, array)
  name, value = ("ratio", ratio) if margin is None else ("margin", margin)
  numbers = _THRESHOLD.as_arrays(
    {name: value}, checks.compute_dtype(array.dtype), array.shape[:-1]
  )
  return _usable(array, mask, expanded(numbers))


@functools.partial(jax.jit, inline=True)
def _usable(
  similarities: jax.Array,
  positives: jax.Array | None,
  numbers: dict[str, jax.Array],
) -> jax.Array:
  is_positive = diagonal(similarities) if positives is None else positives
  (value,) = numbers.values()
  s = similarities.astype(value.dtype)
  lowest = jnp.where(is_positive, s, jnp.inf).min(-1, keepdims=True)
  below = value
  if "ratio" in numbers:
    # Also at 0, where the product with infinity would be NaN.
    size = jnp.where(value == jnp.inf, 1.0, jnp.abs(lowest))
    below = size * (1.0 - value)
  some = is_positive.any(-1, keepdims=True)
  threshold = jnp.where(some, lowest - below, jnp.inf)
  return ~is_positive & (s < threshold)
