# SPDX-License-Identifier: Apache-2.0
"""Losses whose values over the labels add up to a constant, or nearly so."""

import jax
import jax.numpy as jnp

from squentropy_jax._core import elementwise
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.elementwise import sigmoid, softplus
from squentropy_jax._core.rows import Transform, row_loss


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


@row_loss(transform=Transform(subtract="mean"))
def _normalized_cross_entropy(stats: RowStats) -> jax.Array:
  num_wrong = stats.num_classes - 1.0
  own = jnp.minimum(softplus(stats.log_odds), elementwise.HUGE)
  # Of the wrong classes: log sum exp z less each of their logits.
  alone = num_wrong == 0
  rest_lse = jnp.where(alone, jnp.zeros_like(own), stats.rest_lse)
  above_rest = softplus(-jnp.where(alone, own, stats.log_odds))
  others = num_wrong * (rest_lse + above_rest) - stats.rest_sum
  total = own + others
  return own / jnp.where(total == 0, jnp.ones_like(total), total)


@row_loss(transform=Transform(subtract="mean"))
def _unhinged(stats: RowStats) -> jax.Array:
  num_wrong = stats.num_classes - 1.0
  return (stats.rest_sum - num_wrong * stats.target) / stats.num_classes


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
  r"""Cross-entropy plus reverse cross-entropy, for noisy labels.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = -\text{alpha} \, \log p_y
                 - \text{beta} \, \text{log\_clip} \, (1 - p_y) .

  The second term is the cross-entropy of the label under the model, with the
  logarithm of the label's zeros clipped. It is a mean absolute error, robust
  and slow; the first term makes it learn. A ``beta`` of 0 is cross-entropy
  times ``alpha``. Soft labels :math:`p` give the expected loss
  :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    alpha: Weight of cross-entropy, not negative.
    beta: Weight of the reverse term, not negative. The paper uses 0.1 and 1 for
      ``alpha`` and ``beta`` on CIFAR-10, 6 and 0.1 on CIFAR-100.
    log_clip: What stands for the logarithm of 0, at most 0.
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


@_normalized_cross_entropy.public
def normalized_cross_entropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Cross-entropy over its sum over all labels, for noisy labels.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = \frac{\log p_y}{\sum_k \log p_k} .

  Its values over the labels add up to 1 whatever the logits are, so that
  uniform label noise does not move its minimum. It lies in :math:`[0, 1]` and
  underfits on its own; the paper adds a second loss, such as
  :func:`squentropy_jax.losses.mean_absolute_error`. Soft labels :math:`p` give
  the expected loss :math:`\sum_k p_k\, \ell(z, k)`.

  The logits are centred first. The row form alone, as a fused head uses it, has
  an error that grows with the common part of the logits: some roundings of
  :math:`\max_k |z_k|` in the denominator.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0; masked classes do not count in the sum.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating, or if integer ``labels`` look like
      one-hot rows or float ``labels`` like class ids.
    ValueError: If the shapes of ``labels`` or ``where`` fit neither form above;
      if a concrete class id is out of range (a traced one gives NaN).

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


@_unhinged.public
def unhinged(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Mean logit less the labelled one: a loss linear in the logits.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = \frac{1}{C} \sum_k z_k - z_y .

  The loss is cross-entropy less its mean over the labels, and the one linear
  loss whose values over the labels add up to a constant, 0. It has no lower
  bound and a constant gradient: use it with normalised or strongly regularised
  logits only. The multi-class coefficients follow from that symmetry; other
  scalings of it are in use. Soft labels :math:`p` give the expected loss
  :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0; masked classes do not count in :math:`C`.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating, or if integer ``labels`` look like
      one-hot rows or float ``labels`` like class ids.
    ValueError: If the shapes of ``labels`` or ``where`` fit neither form above;
      if a concrete class id is out of range (a traced one gives NaN).

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
