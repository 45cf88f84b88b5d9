# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy that keeps the softmax from becoming over-confident."""

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.distributions import (
  Target,
  distribution_loss,
  first_largest,
  possible_logits,
  row_unit,
)
from squentropy_jax._core.elementwise import softplus


def _normalized(logits: jax.Array, *, temperature: jax.Array) -> jax.Array:
  """The logits over their norm and the temperature."""
  possible, size = possible_logits(logits)
  # A division by the largest floats may become a product with a reciprocal
  # that is too small for a normal number.
  size = size * jnp.where(row_unit(logits) > 1.0, 2.0**-40, 1.0).astype(
    size.dtype
  )
  # Squares of numbers of at most 1 neither overflow nor all vanish.
  largest = lax.stop_gradient(jnp.abs(size).max(-1, keepdims=True))
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
    # The norm of a row whose target goes to -inf goes there with it.
    num_incorrect = jnp.maximum(stats.num_classes - 1.0, 1.0)
    limit = jnp.log(num_incorrect) + 1.0 / temperature
    impossible = stats.target == -jnp.inf
    return softplus(jnp.where(impossible, limit, stats.log_odds))

  return target.expected(_normalized(z, temperature=temperature), of_targets)


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


@_logit_norm_cross_entropy.public
def logit_norm_cross_entropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  temperature: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Cross-entropy of the logits divided by their norm.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = -\log \mathrm{softmax} \Bigl(
      \frac{z}{\text{temperature} \, \lVert z \rVert_2} \Bigr)_y .

  Training cannot lower it by making the logits longer, which keeps the network
  from becoming over-confident and helps to tell inputs of other distributions
  apart. The loss does not see the scale of the logits and has a positive lower
  bound. The model's probabilities are the softmax of
  ``logit_norm_cross_entropy.link(logits)``, the normalised logits. The
  direction of logits that are all 0 is undefined: the loss is
  :math:`\log C` there, its gradient that of a norm of 1. Soft labels :math:`p`
  give the expected loss :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    temperature: Length of the normalised logits, inverted; positive. The paper
      uses 0.04.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0; masked classes do not count in the norm.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating, or if integer ``labels`` look like
      one-hot rows or float ``labels`` like class ids.
    ValueError: If the shapes of ``labels`` or ``where`` fit neither form above;
      if a concrete class id is out of range (a traced one gives NaN); if a
      hyper-parameter that can be read is outside its domain.

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


@_confidence_penalty.public
def confidence_penalty(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  beta: jax.typing.ArrayLike = 0.1,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Cross-entropy less the entropy of the softmax.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = -\log p_y + \text{beta} \sum_k p_k \log p_k .

  The second term penalises confident predictions, as label smoothing does, but
  acts on the predicted distribution whatever the label. The loss may be
  negative. Its softmax at the optimum is less confident than the class
  probabilities. Soft labels :math:`p` give the expected loss
  :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    beta: Weight of the entropy, not negative. The paper uses 0.1 to 2.5, by
      task.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating, or if integer ``labels`` look like
      one-hot rows or float ``labels`` like class ids.
    ValueError: If the shapes of ``labels`` or ``where`` fit neither form above;
      if a concrete class id is out of range (a traced one gives NaN); if a
      hyper-parameter that can be read is outside its domain.

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
