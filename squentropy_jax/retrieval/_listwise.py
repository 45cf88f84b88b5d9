# SPDX-License-Identifier: Apache-2.0
"""Losses that compare a query's list of documents with scores of a teacher."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.elementwise import softplus, weighted
from squentropy_jax._core.rows import row_loss
from squentropy_jax.retrieval._pairs import (
  Pairs,
  negative_log_softmax,
  pair_loss,
)


@pair_loss(
  domains={"temperature": "(0, inf)", "teacher_temperature": "(0, inf)"}
)
def _soft_contrastive(
  pairs: Pairs, *, temperature: jax.Array, teacher_temperature: jax.Array
) -> jax.Array:
  (teacher,) = pairs.more
  z = teacher / teacher_temperature
  log_targets = -_negative_log_softmax(z, pairs.keep)
  loss = negative_log_softmax(pairs.similarities / temperature, pairs.keep)
  return (jnp.exp(log_targets) * loss).sum(-1)


def _negative_log_softmax(z: jax.Array, keep: jax.Array) -> jax.Array:
  """The same for scores that may be ``-inf``; ``inf`` there and if dropped."""
  finite = keep & (z > -jnp.inf)
  value = negative_log_softmax(jnp.where(finite, z, jnp.zeros_like(z)), finite)
  return jnp.where(finite, value, jnp.inf)


def soft_contrastive(
  similarities: jax.typing.ArrayLike,
  teacher_scores: jax.typing.ArrayLike,
  *,
  temperature: jax.typing.ArrayLike = 0.05,
  teacher_temperature: jax.typing.ArrayLike = 1.0,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the cross-entropy of the documents against a teacher's scores.

  Use when a slower model, such as a reranker, has scored the documents of each
  query, and several of them may be relevant.

  Avoid when the scores of different queries have different scales, because one
  teacher temperature does not fit all of them.

  For a query with similarities :math:`s` and teacher scores :math:`r`,

  .. math::
    \ell = -\sum_j t_j \log \operatorname{softmax}_j \Bigl(
      \frac{s}{\text{temperature}} \Bigr), \qquad
    t = \operatorname{softmax} \Bigl(
      \frac{r}{\text{teacher temperature}} \Bigr) .

  A teacher score of 0 for one document and ``-inf`` for the others gives
  :func:`squentropy_jax.retrieval.info_nce`. The paper does not state which loss
  it uses for soft labels. This one is the usual choice. Gradients flow into the
  teacher scores: apply :func:`jax.lax.stop_gradient` if the teacher is trained
  too.

  Args:
    similarities: Similarities, shape ``[..., queries, documents]``, any
      floating dtype.
    teacher_scores: The teacher's scores, floats of the similarities' shape. A
      document with the score ``-inf`` has probability 0.
    temperature: Divides the similarities, above 0: a scalar or one value for
      each query, shape ``[..., queries]``.
    teacher_temperature: Divides the teacher's scores, above 0: a scalar or one
      value for each query.
    where: Which pairs to keep, booleans of the similarities' shape.

  Returns:
    The loss of each query, shape ``[..., queries]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete temperature is out of
      range.

  Examples:
    >>> scores = jnp.array([[0.8, 0.5, 0.1]])
    >>> teacher = jnp.array([[2.0, 1.0, -1.0]])
    >>> print(retrieval.soft_contrastive(scores, teacher, temperature=0.5))
    [0.7901]

  References:
    LG AI Research, `LG-ANNA-Embedding technical report
    <https://arxiv.org/abs/2506.07438>`_, 2025.

  .. seealso:: :func:`squentropy_jax.retrieval.symmetric_kl`
  """
  return _soft_contrastive(
    similarities,
    where=where,
    more={"teacher_scores": teacher_scores},
    labelled=False,
    temperature=temperature,
    teacher_temperature=teacher_temperature,
  )


@pair_loss(domains={"temperature": "(0, inf)"})
def _symmetric_kl(pairs: Pairs, *, temperature: jax.Array) -> jax.Array:
  (judge,) = pairs.more
  zero = jnp.zeros_like(judge)
  log_p = -negative_log_softmax(pairs.similarities / temperature, pairs.keep)
  log_q = -_negative_log_softmax(judge / temperature, pairs.keep)
  # Where q is 0 the term is infinite, unless p is 0 too.
  possible = log_q > -jnp.inf
  log_q = jnp.where(possible, log_q, zero)
  log_p = jnp.where(pairs.keep, log_p, zero)
  p, q = jnp.exp(log_p), jnp.where(possible, jnp.exp(log_q), zero)
  ratio = log_p - log_q
  # Both factors have the same sign, so that no terms cancel.
  terms = jnp.where(possible, (p - q) * ratio, weighted(p, zero + jnp.inf))
  return jnp.where(pairs.keep, terms, zero).sum(-1) / 2.0


def symmetric_kl(
  similarities: jax.typing.ArrayLike,
  judge_scores: jax.typing.ArrayLike,
  *,
  temperature: jax.typing.ArrayLike = 0.02,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the symmetric divergence of similarities and a judge's scores.

  Use when a judge, such as a large language model, has scored the documents of
  each query on the scale of the similarities, so that one temperature fits
  both.

  Avoid when a judge's score may be ``-inf``, because the loss is then infinite.
  Use :func:`squentropy_jax.retrieval.soft_contrastive`, which has one of the
  two divergences.

  With :math:`p` and :math:`q` the softmax of the similarities and of the
  judge's scores, both divided by the temperature,

  .. math::
    \ell = \frac{1}{2} \bigl( \operatorname{KL}(p \,\|\, q)
      + \operatorname{KL}(q \,\|\, p) \bigr)
      = \frac{1}{2} \sum_j (p_j - q_j) \log \frac{p_j}{q_j} .

  The loss is half of the Jeffreys divergence, not the Jensen-Shannon
  divergence. The logarithms are exact: the authors' code adds 1e-8 inside them,
  which changes the loss at low temperatures. Gradients flow into the judge's
  scores: apply :func:`jax.lax.stop_gradient` if the judge is trained too.

  Args:
    similarities: Similarities, shape ``[..., queries, documents]``, any
      floating dtype.
    judge_scores: The judge's scores, floats of the similarities' shape.
    temperature: Divides similarities and scores, above 0: a scalar or one value
      for each query, shape ``[..., queries]``.
    where: Which pairs to keep, booleans of the similarities' shape.

  Returns:
    The loss of each query, shape ``[..., queries]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete temperature is out of
      range.

  Examples:
    >>> scores = jnp.array([[0.8, 0.5, 0.1]])
    >>> judge = jnp.array([[0.95, 0.6, 0.05]])
    >>> print(retrieval.symmetric_kl(scores, judge, temperature=0.1))
    [0.0053]

  References:
    Gu et al., `UniME-V2: MLLM-as-a-Judge for Universal Multimodal Embedding
    Learning <https://arxiv.org/abs/2510.13515>`_, AAAI 2026.

  .. seealso:: :func:`squentropy_jax.retrieval.soft_contrastive`
  """
  return _symmetric_kl(
    similarities,
    where=where,
    more={"judge_scores": judge_scores},
    labelled=False,
    temperature=temperature,
  )


@row_loss
def _position(stats: RowStats) -> jax.Array:
  return softplus(stats.log_odds)


def rerank(
  positive_logits: jax.typing.ArrayLike,
  negative_logits: jax.typing.ArrayLike,
  list_logits: jax.typing.ArrayLike,
  position: jax.typing.ArrayLike,
) -> jax.Array:
  r"""Computes the loss of a language model that reranks documents.

  Use when a language model is trained as a reranker, with one prompt that asks
  whether a document answers a query, and one that asks for the best document of
  a list.

  Avoid when the model gives one score to each document: use
  :func:`squentropy_jax.retrieval.info_nce`.

  The loss is the sum of three cross-entropies: of the answer yes for the
  positive document, of no for the hardest negative, and of the positive's
  position in the list. For yes and no logits :math:`a`, :math:`b` and list
  logits :math:`c`,

  .. math::
    \ell = \log(1 + e^{a_\text{no} - a_\text{yes}})
      + \log(1 + e^{b_\text{yes} - b_\text{no}})
      + \log \sum_j e^{c_j - c_\text{position}} .

  Args:
    positive_logits: Logits of yes and no, in this order, for the query and its
      positive document, shape ``[..., 2]``, any floating dtype.
    negative_logits: The same for the query and its hardest negative.
    list_logits: Logits of the positions in the list, shape ``[..., list]``.
    position: The position of the positive, integers of shape ``[...]``.

  Returns:
    The loss of each query, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete position is out of
      range.

  Examples:
    >>> loss = retrieval.rerank(
    ...   jnp.array([[2.0, 0.0]]),
    ...   jnp.array([[-1.0, 1.0]]),
    ...   jnp.array([[1.0, 0.0, 0.0]]),
    ...   jnp.array([0]),
    ... )
    >>> print(loss)
    [0.8053]

  References:
    Gu et al., `UniME-V2: MLLM-as-a-Judge for Universal Multimodal Embedding
    Learning <https://arxiv.org/abs/2510.13515>`_, AAAI 2026.

  .. seealso:: :func:`squentropy_jax.retrieval.symmetric_kl`
  """
  listed = checks.as_logits(list_logits, "list_logits")
  batch = listed.shape[:-1]
  if listed.shape[-1] == 1:
    raise ValueError(
      f"list_logits must have two positions or more, got {listed.shape}. "
      "Leave lists of one document out of the call."
    )
  answers = []
  for name, x in (
    ("positive_logits", positive_logits),
    ("negative_logits", negative_logits),
  ):
    array = checks.as_logits(x, name)
    if array.shape != (*batch, 2):
      raise ValueError(
        f"{name} must have the shape {(*batch, 2)}, the logits of yes and no "
        f"for each row of list_logits, got {array.shape}."
      )
    answers.append(checks.shard_alike(name, array, listed))
  ids = checks.as_array(position, "position")
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(
      f"position must be integers, got dtype {ids.dtype}. Pass "
      "jnp.asarray(position, jnp.int32)."
    )
  if np.shape(ids) != batch:
    raise ValueError(
      f"position must have the shape {batch}, one number for each row of "
      f"list_logits, got {np.shape(ids)}."
    )
  readable = checks.is_concrete(used_with=(listed, *answers))
  ids = prelude.read_ids(
    ids,
    listed.shape[-1],
    None,
    readable,
    "position",
    advice="Leave padded lists out of the call.",
  )
  picked = _position(listed, ids)
  return _answered(picked, *answers)


@functools.partial(jax.jit, inline=True)
def _answered(
  picked: jax.Array, positive: jax.Array, negative: jax.Array
) -> jax.Array:
  wide = checks.compute_dtype(picked.dtype, positive.dtype, negative.dtype)

  def lead(x: jax.Array) -> jax.Array:
    x = x.astype(wide)
    return x[..., 0] - x[..., 1]

  answers = softplus(-lead(positive)) + softplus(lead(negative))
  return picked.astype(wide) + answers
