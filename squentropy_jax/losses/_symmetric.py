# SPDX-License-Identifier: Apache-2.0
"""Symmetric losses: the values of all possible labels add up to a constant.

Under uniform label noise such a loss has the minimum of clean labels. Alone it
trains slowly, so it is combined with another loss.
"""

import jax
import jax.numpy as jnp

from squentropy_jax._core import elementwise
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.elementwise import sigmoid, softplus
from squentropy_jax._core.rows import row_loss
from squentropy_jax._core.transform import Transform


@row_loss(
  domains={"alpha": "[0, inf)", "beta": "[0, inf)", "log_clip": "(-inf, 0]"}
)
def _symmetric_cross_entropy(
  stats: RowStats,
  *,
  alpha: jax.Array,
  beta: jax.Array,
  log_clip: jax.Array,
) -> jax.Array:
  forward = softplus(stats.log_odds)
  reverse = -log_clip * sigmoid(stats.log_odds)
  return elementwise.weighted(alpha, forward) + beta * reverse


@_symmetric_cross_entropy.public
def symmetric_cross_entropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  alpha: jax.typing.ArrayLike = 0.1,
  beta: jax.typing.ArrayLike = 1.0,
  log_clip: jax.typing.ArrayLike = -4.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the symmetric cross-entropy of each example.

  Use when labels are noisy. Cross-entropy makes the model learn fast, and the
  reverse term limits the influence of incorrect labels.

  Avoid when values are compared between implementations: the clipped logarithm
  is a convention, -4 here and :math:`\log 10^{-4}` elsewhere.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = -\text{alpha} \, \log p_y
                 - \text{beta} \, \text{log\_clip} \, (1 - p_y) .

  The second term is the cross-entropy of the label under the model, where the
  logarithm of the label's zeros is clipped. It is a multiple of the mean
  absolute error. A ``beta`` of 0 is cross-entropy times ``alpha``. Soft labels
  give the expected loss.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    alpha: Weight of cross-entropy, 0 or more: a scalar or one value for each
      example, shape ``[...]``.
    beta: Weight of the reverse term, 0 or more: a scalar or one value for each
      example, shape ``[...]``. For ``alpha`` and ``beta`` the paper uses 0.1
      and 1 on CIFAR-10, 6 and 0.1 on CIFAR-100.
    log_clip: Replaces the logarithm of 0, at most 0: a scalar or one value for
      each example, shape ``[...]``.
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
    >>> print(losses.symmetric_cross_entropy(logits, jnp.array([0, 2])))
    [0.6418 3.4227]

  References:
    Wang et al., `Symmetric Cross Entropy for Robust Learning with Noisy Labels
    <https://arxiv.org/abs/1908.06112>`_, ICCV 2019.

  .. seealso:: :func:`squentropy_jax.losses.generalized_cross_entropy`,
    :func:`squentropy_jax.losses.mean_absolute_error`
  """
  return _symmetric_cross_entropy(
    logits,
    labels,
    alpha=alpha,
    beta=beta,
    log_clip=log_clip,
    axis=axis,
    where=where,
  )


# Relative to the largest logit no sum below has terms of both signs.
@row_loss(transform=Transform(subtract="max"))
def _normalized_cross_entropy(stats: RowStats) -> jax.Array:
  num_others = stats.num_classes - 1.0
  impossible = stats.target == -jnp.inf
  log_odds = jnp.where(
    impossible, jnp.zeros_like(stats.log_odds), stats.log_odds
  )
  of_target = softplus(log_odds)
  # The cross-entropies of the other labels: log sum exp z minus their logits.
  alone = num_others == 0
  rest_lse = jnp.where(alone, jnp.zeros_like(of_target), stats.rest_lse)
  above_rest = softplus(-jnp.where(alone, of_target, log_odds))
  of_others = num_others * (rest_lse + above_rest) - stats.rest_sum
  total = of_target + of_others
  total = jnp.where(total == 0, jnp.ones_like(total), total)
  # Sums of logits near the largest float overflow; 0 would be a wrong value.
  total = elementwise.nan_if_infinite(total)
  share = elementwise.quotient(of_target, total)
  return jnp.where(impossible, jnp.ones_like(share), share)


@_normalized_cross_entropy.public
def normalized_cross_entropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the normalised cross-entropy of each example.

  Use when labels have uniform noise, in a sum with a second loss such as
  :func:`squentropy_jax.losses.mean_absolute_error`.

  Avoid when it would be the only loss, because it underfits.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = \frac{\log p_y}{\sum_k \log p_k} .

  The loss lies in :math:`[0, 1]`. The losses of all possible labels add up to 1
  for any logits, so uniform label noise does not move the minimum. Soft labels
  give the expected loss.

  The mean of the logits is subtracted first. ``normalized_cross_entropy.row``
  and fused heads do not subtract it. Their denominator has an error of a few
  ulp of :math:`\max_k |z_k|`, which grows with the mean of the logits. If a sum
  of logits overflows, in float32 near 3e38, the loss is NaN.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the logits' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label is out of
      range.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(losses.normalized_cross_entropy(logits, jnp.array([0, 2])))
    [0.0308 0.4745]

  References:
    Ma et al., `Normalized Loss Functions for Deep Learning with Noisy Labels
    <https://arxiv.org/abs/2006.13554>`_, ICML 2020, equation (5).

  .. seealso:: :func:`squentropy_jax.losses.mean_absolute_error`,
    :func:`squentropy_jax.losses.unhinged`
  """
  return _normalized_cross_entropy(logits, labels, axis=axis, where=where)


@row_loss(transform=Transform(subtract="mean"))
def _unhinged(stats: RowStats) -> jax.Array:
  num_others = stats.num_classes - 1.0
  value = (stats.rest_sum - num_others * stats.target) / stats.num_classes
  # Only an impossible target has an infinite loss; other sums overflowed.
  overflow = jnp.isinf(value) & (stats.target != -jnp.inf)
  return value * jnp.where(overflow, jnp.nan, 1.0).astype(value.dtype)


@_unhinged.public
def unhinged(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the unhinged loss of each example, which is linear in the logits.

  Use when the logits are bounded, as those of normalised features, and labels
  have uniform noise.

  Avoid when nothing bounds the logits: the loss has no lower bound, and its
  gradient is constant.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = \frac{1}{C} \sum_k z_k - z_y .

  The loss is cross-entropy minus the mean cross-entropy over all labels. It is
  the only linear loss whose values over the labels add up to 0 and which
  treats all classes alike, up to a factor. Other factors are in use. Soft
  labels give the expected loss. If a sum of logits overflows, in float32 near
  3e38, the loss is NaN.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the logits' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label is out of
      range.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(losses.unhinged(logits, jnp.array([0, 2])))
    [-1.6667  0.5   ]

  References:
    van Rooyen, Menon and Williamson, `Learning with Symmetric Label Noise: The
    Importance of Being Unhinged <https://arxiv.org/abs/1505.07634>`_, NeurIPS
    2015, for two classes.
    Zhou et al., `On the Dynamics Under the Unhinged Loss and Beyond
    <https://arxiv.org/abs/2312.07841>`_, JMLR 2023.

  .. seealso:: :func:`squentropy_jax.losses.ldr_kl`,
    :func:`squentropy_jax.losses.normalized_cross_entropy`
  """
  return _unhinged(logits, labels, axis=axis, where=where)
