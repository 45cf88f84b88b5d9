# SPDX-License-Identifier: Apache-2.0
"""Losses against over-confidence: they do not reward scaling up the logits.

If a model classifies its training set without error, scaling up its logits
always lowers cross-entropy. These losses remove that incentive.
"""

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.distributions import (
  Target,
  distribution_loss,
  first_largest,
  possible_logits,
)
from squentropy_jax._core.elementwise import softplus


def _normalized(logits: jax.Array, *, temperature: jax.Array) -> jax.Array:
  possible, size = possible_logits(logits)
  largest = lax.stop_gradient(jnp.abs(size).max(-1, keepdims=True))
  # The reciprocal of a float32 above 1e38 is no normal number, and a compiled
  # division may use it.
  shrink = jnp.where(largest > 2.0**40, 2.0**-40, 1.0).astype(size.dtype)
  size, largest = size * shrink, largest * shrink
  # Squares of numbers of at most 1 neither overflow nor all vanish.
  is_zero = largest == 0
  scale = jnp.where(is_zero, jnp.ones_like(largest), largest)
  unit = size / scale
  square = jnp.square(unit).sum(-1, keepdims=True)
  norm = jnp.sqrt(jnp.where(is_zero, jnp.ones_like(square), square))
  return jnp.where(possible, unit / norm / temperature, logits)


@distribution_loss(domains={"temperature": "(0, inf)"}, log_probs=_normalized)
def _logit_norm_cross_entropy(
  z: jax.Array, target: Target, *, temperature: jax.Array
) -> jax.Array:
  def of_targets(stats: RowStats) -> jax.Array:
    # The norm of a row goes to infinity together with a target of -inf.
    num_incorrect = jnp.maximum(stats.num_classes - 1.0, 1.0)
    limit = jnp.log(num_incorrect) + 1.0 / temperature
    impossible = stats.target == -jnp.inf
    return softplus(jnp.where(impossible, limit, stats.log_odds))

  return target.expected(_normalized(z, temperature=temperature), of_targets)


@_logit_norm_cross_entropy.public
def logit_norm_cross_entropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  temperature: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes cross-entropy of the logits divided by their Euclidean norm.

  Use when the model's confidence should separate inputs of the training
  distribution from others.

  Avoid when later code takes the softmax of the raw logits as probabilities, or
  when the loss must come close to 0: with a temperature of 1 it cannot.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = -\log \mathrm{softmax} \Bigl(
      \frac{z}{\text{temperature} \, \lVert z \rVert_2} \Bigr)_y .

  Soft labels give the expected loss. The loss does not depend on the scale of
  the logits and has a positive lower bound.
  ``logit_norm_cross_entropy.log_probs`` returns the log-softmax of the
  normalised logits. If all logits are 0, their direction is undefined: the loss
  is :math:`\log C`, and its gradient is that of a norm of 1. Masked classes do
  not count in the norm.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    temperature: The inverse of the norm that the logits are scaled to,
      positive: a scalar or one value for each example, shape ``[...]``. The
      paper uses 0.04.
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
    >>> print(losses.logit_norm_cross_entropy(logits, jnp.array([0, 2])))
    [0.513  1.6114]

  References:
    Wei et al., `Mitigating Neural Network Overconfidence with Logit
    Normalization <https://arxiv.org/abs/2205.09310>`_, ICML 2022.

  .. seealso:: :func:`squentropy_jax.losses.cross_entropy`,
    :func:`squentropy_jax.losses.confidence_penalty`
  """
  return _logit_norm_cross_entropy(
    logits, labels, temperature=temperature, axis=axis, where=where
  )


@distribution_loss(domains={"beta": "[0, inf)"})
def _confidence_penalty(
  z: jax.Array, target: Target, *, beta: jax.Array
) -> jax.Array:
  possible, finite = possible_logits(z)
  is_top = first_largest(z)
  zero = jnp.zeros_like(z)
  top = jnp.where(is_top, finite, zero).sum(-1, keepdims=True)
  below = jnp.where(possible, finite - top, zero)
  # An infinite difference times a probability of 0 would be NaN.
  below = jnp.maximum(below, float(jnp.finfo(z.dtype).min))
  others = jnp.where(possible & ~is_top, jnp.exp(below), zero)
  surprise = jnp.log1p(others.sum(-1, keepdims=True)) - below  # -log p.
  terms = jnp.where(possible, surprise * jnp.exp(-surprise), zero)
  entropy = terms.sum(-1, keepdims=True)
  return target.expected(
    z, lambda stats: softplus(stats.log_odds) - beta * entropy
  )


@_confidence_penalty.public
def confidence_penalty(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  beta: jax.typing.ArrayLike = 0.1,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes cross-entropy minus the scaled entropy of the softmax.

  Use when label smoothing helps, but the penalty should depend on the predicted
  distribution and not on the label.

  Avoid when values of the loss are compared, because they may be negative, or
  when probabilities are needed: with a large ``beta`` the softmax is less
  confident than the class probabilities.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = -\log p_y + \text{beta} \sum_k p_k \log p_k .

  Soft labels give the expected loss. The second term penalises confident
  predictions.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    beta: Weight of the entropy, 0 or more: a scalar or one value for each
      example, shape ``[...]``. The paper uses 0.1 to 2.5, depending on the
      task.
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
    >>> print(losses.confidence_penalty(logits, jnp.array([0, 2])))
    [0.1174 1.5783]

  References:
    Pereyra et al., `Regularizing Neural Networks by Penalizing Confident Output
    Distributions <https://arxiv.org/abs/1701.06548>`_, 2017.

  .. seealso:: :func:`squentropy_jax.losses.cross_entropy`,
    :func:`squentropy_jax.losses.logit_norm_cross_entropy`
  """
  return _confidence_penalty(logits, labels, beta=beta, axis=axis, where=where)
