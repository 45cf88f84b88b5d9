# SPDX-License-Identifier: Apache-2.0
"""A differentiable choice of k documents, and the loss of positives outside."""

import functools
import math

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks
from squentropy_jax._core.elementwise import sigmoid, softplus
from squentropy_jax._core.hyperparameters import (
  Domain,
  Hyperparameters,
  expanded,
)
from squentropy_jax._core.solvers import bisect
from squentropy_jax.retrieval._pairs import Pairs, as_similarities, pair_loss

_DOMAINS: dict[str, Domain] = {"k": "(0, inf)", "alpha": "(0, inf)"}


def _log_weights(x: jax.Array) -> jax.Array:
  """``log(q (1 - q))`` of ``q = sigmoid(x)``; it does not underflow."""
  return -softplus(x) - softplus(-x)


@jax.custom_jvp
def _shift(u: jax.Array, k: jax.Array) -> jax.Array:
  """Solves ``sum sigmoid(u + t) = k`` over the last axis, for ``t`` [..., 1].

  An entry of ``-inf`` is left out. There must be more than k others.
  """
  possible = u > -jnp.inf
  count = possible.sum(-1, keepdims=True, dtype=jnp.int32).astype(u.dtype)
  # With all scores equal to the largest or to the smallest, t would be exact.
  start = jnp.log(k) - jnp.log(count - k)
  highest = u.max(-1, keepdims=True)
  lowest = jnp.where(possible, u, jnp.inf).min(-1, keepdims=True)

  def is_past(t: jax.Array) -> jax.Array:
    return sigmoid(u + t).sum(-1, keepdims=True) > k

  # Enough halvings for a range of 1024 times the precision of one number.
  steps = jnp.finfo(u.dtype).nmant + 10
  return bisect(is_past, start - highest, start - lowest, steps)


@_shift.defjvp
def _shift_jvp(
  primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  # By the implicit function theorem. The sum of q (1 - q) underflows where all
  # q are 0 or 1, so that its terms are normalised in log space.
  u, k = primals
  du, dk = tangents
  t = _shift(u, k)
  log_weights = _log_weights(u + t)
  total = jax.nn.logsumexp(log_weights, axis=-1, keepdims=True)
  most = math.log(float(jnp.finfo(u.dtype).max)) / 2.0
  by_k = jnp.exp(jnp.minimum(-total, most))
  weights = jnp.exp(log_weights - total)
  dt = -(weights * du).sum(-1, keepdims=True) + by_k * dk
  return t, dt


def _scores(
  s: jax.Array, keep: jax.Array, k: jax.Array, alpha: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns scores whose sigmoid are the probabilities, and where all are 1."""
  count = keep.sum(-1, keepdims=True, dtype=jnp.int32).astype(s.dtype)
  is_all = count <= k
  # Placeholders where the equation has no solution.
  keep |= is_all
  s = jnp.where(is_all, jnp.zeros_like(s), s)
  width = jnp.asarray(s.shape[-1], s.dtype)
  k = jnp.where(is_all, width / 2.0, k)
  top = jax.lax.stop_gradient(
    jnp.where(keep, s, -jnp.inf).max(-1, keepdims=True)
  )
  u = jnp.where(keep, alpha * (s - top), -jnp.inf)
  return jnp.where(keep, u, jnp.zeros_like(u)) + _shift(u, k), is_all


@functools.partial(jax.jit, inline=True)
def _probabilities(
  similarities: jax.Array, numbers: dict[str, jax.Array]
) -> jax.Array:
  s = similarities.astype(numbers["alpha"].dtype)
  keep = s != -jnp.inf
  finite = jnp.where(keep, s, jnp.zeros_like(s))
  x, is_all = _scores(finite, keep, **numbers)
  q = jnp.where(is_all, jnp.ones_like(x), sigmoid(x))
  return jnp.where(keep, q, jnp.zeros_like(q))


def soft_top_k(
  similarities: jax.typing.ArrayLike,
  k: jax.typing.ArrayLike,
  *,
  alpha: jax.typing.ArrayLike = 2.0,
) -> jax.Array:
  r"""Computes the probability that a document is among the k best of a query.

  Use when a choice of k documents must be differentiable.

  Avoid when the number of documents is at most k, because every probability is
  then 1.

  The probabilities of a query sum to k,

  .. math::
    q_j = \frac{1}{1 + e^{-\alpha (s_j + t)}}, \qquad \sum_j q_j = k .

  The number :math:`t` is found by bisection, and its derivatives by the
  implicit function theorem. For large :math:`\alpha` the probabilities approach
  1 for the k best documents and 0 for the others. For small :math:`\alpha` all
  approach :math:`k` divided by the number of documents.

  Args:
    similarities: Similarities, shape ``[..., queries, documents]``, any
      floating dtype. Those of ``-inf`` have probability 0.
    k: The sum of the probabilities of a query, above 0 and below the number of
      documents: a scalar or one value for each query, shape ``[..., queries]``.
    alpha: The sharpness, above 0: a scalar or one value for each query.

  Returns:
    The probabilities, of the similarities' shape, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete ``k`` or ``alpha`` is
      out of range.

  Examples:
    >>> similarities = jnp.array([[3.0, 1.0, 2.0, -1.0, 0.5]])
    >>> print(retrieval.soft_top_k(similarities, 2))
    [[0.9457 0.2417 0.7019 0.0058 0.1049]]

  References:
    Gupta et al., `Dual-Encoders for Extreme Multi-Label Classification
    <https://arxiv.org/abs/2310.10636>`_, ICLR 2024.

  .. seealso:: :func:`squentropy_jax.retrieval.soft_top_k_loss`
  """
  array = as_similarities(similarities)
  domains = _DOMAINS | {"k": f"(0, {array.shape[-1]})"}
  numbers = Hyperparameters(domains, {}).as_arrays(
    {"k": k, "alpha": alpha},
    checks.compute_dtype(array.dtype),
    array.shape[:-1],
  )
  return _probabilities(array, expanded(numbers))


@pair_loss(domains=_DOMAINS)
def _soft_top_k_loss(
  pairs: Pairs, *, k: jax.Array, alpha: jax.Array
) -> jax.Array:
  x, is_all = _scores(pairs.similarities, pairs.keep, k, alpha)
  loss = jnp.where(is_all, jnp.zeros_like(x), softplus(-x))
  return pairs.mean_over_positives(loss)


def soft_top_k_loss(
  similarities: jax.typing.ArrayLike,
  positives: jax.typing.ArrayLike | None = None,
  *,
  k: jax.typing.ArrayLike = 5,
  alpha: jax.typing.ArrayLike = 2.0,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the cross-entropy of positives being among the k best documents.

  Use when the set of the first k documents matters and their order does not,
  for example if a reranker follows.

  Avoid when the similarities are cosines, unless they are divided by a
  temperature first.

  For a query with positives :math:`P` and the probabilities :math:`q` of
  :func:`squentropy_jax.retrieval.soft_top_k`,

  .. math::
    \ell = -\frac{1}{|P|} \sum_{p \in P} \log q_p .

  The positives compete with each other for the k places. With two documents,
  :math:`k = 1` and :math:`\alpha = 2`, the loss is the softmax cross-entropy. A
  query with at most k kept documents has loss 0.

  Args:
    similarities: Similarities, shape ``[..., queries, documents]``, any
      floating dtype.
    positives: Which pairs are positive, booleans of the similarities' shape.
      None is the diagonal; further documents are negatives.
    k: The number of places, above 0 and below the number of documents: a scalar
      or one value for each query, shape ``[..., queries]``.
    alpha: The sharpness, above 0: a scalar or one value for each query.
    where: Which pairs to keep, booleans of the similarities' shape.

  Returns:
    The loss of each query, shape ``[..., queries]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete ``k`` or ``alpha`` is
      out of range.

  Examples:
    >>> similarities = jnp.array([[3.0, 1.0, 2.0, -1.0, 0.5]])
    >>> positives = jnp.array([[True, False, True, False, False]])
    >>> print(retrieval.soft_top_k_loss(similarities, positives, k=2))
    [0.2049]

  References:
    Gupta et al., `Dual-Encoders for Extreme Multi-Label Classification
    <https://arxiv.org/abs/2310.10636>`_, ICLR 2024.

  .. seealso:: :func:`squentropy_jax.retrieval.decoupled_softmax`
  """
  documents = as_similarities(similarities).shape[-1]
  return _soft_top_k_loss(
    similarities,
    positives,
    where=where,
    domains={"k": f"(0, {documents})"},
    k=k,
    alpha=alpha,
  )
