# SPDX-License-Identifier: Apache-2.0
"""The bi-tempered loss: cross-entropy with a tempered logarithm and softmax.

One temperature bounds the loss of outliers, the other one gives the
probabilities heavy tails.
"""

from collections.abc import Callable
import math

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core import elementwise
from squentropy_jax._core.distributions import (
  Target,
  distribution_loss,
  first_largest,
  possible_logits,
)


def _log_tempered(x: jax.Array, t: jax.Array) -> jax.Array:
  """The logarithm of the tempered exponential of ``x``."""
  return elementwise.log1p_over(x, 1.0 - t)


def _sum(keep: jax.Array, terms: jax.Array) -> jax.Array:
  kept = jnp.where(keep, terms, jnp.zeros_like(terms))
  return kept.sum(-1, keepdims=True)


def _log_probabilities(
  logits: jax.Array, possible: jax.Array, t: jax.Array, num_iters: int
) -> Callable[[jax.Array], jax.Array]:
  """The logarithm of the tempered probability, as a function of the logit.

  The normaliser exceeds the largest logit by ``excess``: the tempered
  exponentials of ``logits - top - excess`` add up to 1. The tempered
  logarithm of their sum is nearly linear in ``excess``, so that Newton's
  method converges in a few steps.
  """
  zero = jnp.zeros_like(logits)
  is_top = first_largest(jnp.where(possible, logits, -jnp.inf))
  top = jnp.where(is_top, logits, zero).sum(-1, keepdims=True)
  top = lax.stop_gradient(top)
  others = possible & ~is_top
  below = jnp.where(others, logits - top, zero)
  top_below = jnp.where(is_top, logits - top, zero)
  top_below = top_below.sum(-1, keepdims=True)  # 0, but with a gradient.

  def step(
    excess: jax.Array, below: jax.Array, top_below: jax.Array, t: jax.Array
  ) -> jax.Array:
    log_top = _log_tempered(top_below - excess, t)
    log_rest = _log_tempered(below - excess, t)
    # 1 is subtracted from the largest probability, not from the sum: the
    # result is accurate also if the other probabilities are tiny.
    surplus = jnp.expm1(log_top) + _sum(others, jnp.exp(log_rest))
    log_sum = jnp.log1p(surplus)
    derivative = jnp.exp(t * log_top)
    derivative += _sum(others, elementwise.power(log_rest, t))
    log_t_sum = elementwise.expm1_over(log_sum, 1.0 - t)
    return excess + log_t_sum * jnp.exp(t * log_sum) / derivative

  fixed = lax.stop_gradient((below, top_below, t))
  excess = lax.fori_loop(
    0, num_iters, lambda _, x: step(x, *fixed), jnp.zeros_like(top)
  )
  # A Newton step at a root gives it its first derivatives, two its second.
  for _ in range(2):
    excess = step(excess, below, top_below, t)
  return lambda z: _log_tempered(z - top - excess, t)


def _target_divergence(log_p: jax.Array, t: jax.Array) -> jax.Array:
  """``-log_t(p) + (p^(2 - t) - 1) / (2 - t)``, about ``(1 - p)^2 / 2``."""
  small = jnp.abs(log_p) < 0.03
  x = jnp.where(small, log_p, jnp.zeros_like(log_p))
  series, high, low = jnp.zeros_like(x), 2.0 - t, 1.0 - t
  for n in range(9, 1, -1):
    coefficient = (high ** (n - 1) - low ** (n - 1)) / math.factorial(n)
    series = series * x + coefficient
  far = jnp.where(small, jnp.full_like(log_p, -1.0), log_p)
  direct = elementwise.expm1_over(far, high) - elementwise.expm1_over(far, low)
  return jnp.where(small, series * x * x, direct)


def _log_probs(
  logits: jax.Array, *, t1: jax.Array, t2: jax.Array, num_iters: int
) -> jax.Array:
  del t1
  possible, z = possible_logits(logits)
  return _log_probabilities(z, possible, t2, num_iters)(z)


@distribution_loss(
  domains={"t1": "[0, 2)", "t2": "(0, inf)", "num_iters": int},
  log_probs=_log_probs,
)
def _bi_tempered_logistic(
  z: jax.Array, target: Target, *, t1: jax.Array, t2: jax.Array, num_iters: int
) -> jax.Array:
  possible, finite = possible_logits(z)
  log_p = _log_probabilities(finite, possible, t2, num_iters)
  each = elementwise.power(log_p(finite), 2.0 - t1)
  others = target.sum_others(z, each, first_largest(z)) / (2.0 - t1)
  return target.expected(
    z, lambda stats: _target_divergence(log_p(stats.target), t1) + others
  )


@_bi_tempered_logistic.public
def bi_tempered_logistic(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  t1: jax.typing.ArrayLike,
  t2: jax.typing.ArrayLike,
  num_iters: int = 5,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the bi-tempered logistic loss of each example.

  Use when some labels are wrong far from the class boundary (a ``t1`` below 1)
  or near it (a ``t2`` above 1), and probabilities are needed.

  Avoid when later code takes the softmax of the logits as probabilities, or
  when the loss must be cheap: it costs about seven passes over each row.

  With the tempered logarithm :math:`\log_t x = \frac{x^{1 - t} - 1}{1 - t}`,
  its inverse :math:`\exp_t x = [1 + (1 - t) x]_+^{1 / (1 - t)}` and the
  probabilities :math:`p_k = \exp_{t_2} (z_k - \lambda)`, where :math:`\lambda`
  makes them add up to 1,

  .. math::
    \ell(z, y) = -\log_{t_1} p_y
                 - \frac{1 - \sum_k p_k^{2 - t_1}}{2 - t_1} .

  Soft labels :math:`p` give the expected loss :math:`\sum_k p_k\, \ell(z, k)`.
  The divergence from :math:`p` in the paper is smaller by a constant of the
  logits. If both temperatures are 1, the loss is softmax cross-entropy. A
  ``t1`` below 1 bounds the loss of an outlier by :math:`\frac{1}{1 - t_1}`. A
  ``t2`` above 1 gives the probabilities heavy tails. A ``t2`` below 1 makes
  small probabilities exactly 0. Together with a ``t1`` of 1 or more it gives an
  infinite loss at ordinary logits, so avoid that pair. The loss is a Bregman
  divergence and proper for its tempered probabilities, which
  ``bi_tempered_logistic.log_probs`` returns.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    t1: Temperature of the logarithm, in [0, 2): a scalar or one value for each
      example, shape ``[...]``. The paper uses values below 1.
    t2: Temperature of the probabilities, positive: a scalar or one value for
      each example, shape ``[...]``. The paper uses values above 1.
    num_iters: Steps of Newton's method for :math:`\lambda`, a static int. Five
      are enough for float64, except for a ``t2`` of 0.5 or less with a thousand
      classes or more.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the logits' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label or
      hyper-parameter is out of range.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> labels = jnp.array([0, 2])
    >>> print(losses.bi_tempered_logistic(logits, labels, t1=0.8, t2=1.2))
    [0.16   1.1713]

  References:
    Amid, Warmuth, Anil and Koren, `Robust Bi-Tempered Logistic Loss Based on
    Bregman Divergences <https://arxiv.org/abs/1906.03361>`_, NeurIPS 2019.

  .. seealso:: :func:`squentropy_jax.losses.generalized_cross_entropy`
  """
  return _bi_tempered_logistic(
    logits,
    labels,
    t1=t1,
    t2=t2,
    num_iters=num_iters,
    axis=axis,
    where=where,
  )
