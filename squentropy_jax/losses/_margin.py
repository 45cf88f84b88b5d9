# SPDX-License-Identifier: Apache-2.0
"""Hinge losses: zero once the labelled class leads by a margin.

Only the squared one-vs-rest hinge predicts probabilities. The logits of the
others are scores to rank the classes by.
"""

import jax
import jax.numpy as jnp

from squentropy_jax._core import elementwise
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.distributions import (
  Target,
  distribution_loss,
  first_largest,
  possible_logits,
)
from squentropy_jax._core.rows import row_loss


@row_loss(domains={"margin": "[0, inf)"})
def _crammer_singer(stats: RowStats, *, margin: jax.Array) -> jax.Array:
  return jax.nn.relu(margin + (stats.rest_max - stats.target))


@_crammer_singer.public
def crammer_singer(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  margin: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the multi-class hinge loss of the strongest incorrect class.

  Use when each example should move two logits only, its own and that of the
  strongest competitor. The loss is ``optax.losses.multiclass_hinge_loss`` with
  a margin, masks and soft labels.

  Avoid when labels are noisy, when no class has most of the probability, or
  when probabilities are needed.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = \max \Bigl(0, \text{margin} + \max_{k \ne y} z_k - z_y \Bigr) .

  Soft labels give the expected loss. The gradient is sparse, so that training
  is slow with many classes. Among tied incorrect classes the first one gets the
  gradient. Unless one class has a probability above one half, the minimum need
  not rank the most probable class first. The loss is the limit of
  :func:`squentropy_jax.losses.ldr_kl` at temperature 0. The softmax of the
  logits is not an estimate of the class probabilities.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    margin: The lead that the labelled class should have, 0 or more: a scalar
      or one value for each example, shape ``[...]``.
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
    >>> print(losses.crammer_singer(logits, jnp.array([0, 2])))
    [0. 2.]

  References:
    Crammer and Singer, `On the Algorithmic Implementation of Multiclass
    Kernel-based Vector Machines <https://jmlr.org/papers/v2/crammer01a.html>`_,
    JMLR 2001.

  .. seealso:: :func:`squentropy_jax.losses.weston_watkins`,
    :func:`squentropy_jax.losses.ldr_kl`
  """
  return _crammer_singer(logits, labels, margin=margin, axis=axis, where=where)


@distribution_loss(domains={"margin": "[0, inf)"})
def _weston_watkins(
  z: jax.Array, target: Target, *, margin: jax.Array
) -> jax.Array:
  _, finite = possible_logits(z)

  def of_class(stats: RowStats, others: jax.Array) -> jax.Array:
    short = jax.nn.relu(margin + (finite - stats.target[..., None]))
    return jnp.where(others, short, jnp.zeros_like(short)).sum(-1)

  return target.expected(
    z, lambda stats: target.map_classes(z, stats, of_class)
  )


@_weston_watkins.public
def weston_watkins(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  margin: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the multi-class hinge loss summed over the incorrect classes.

  Use when a hinge loss should move every incorrect class within the margin,
  where :func:`squentropy_jax.losses.crammer_singer` moves the strongest alone.

  Avoid when labels are soft and classes are many, because each class costs one
  pass over the row, or when probabilities are needed.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = \sum_{k \ne y} \max (0, \text{margin} + z_k - z_y) .

  Soft labels give the expected loss. The loss is a sum. Other code may take
  the mean over the incorrect classes or over all classes, which is this loss
  divided by :math:`C - 1` or :math:`C`. The softmax of the logits is not an
  estimate of the class probabilities.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    margin: The lead that the labelled class should have, 0 or more: a scalar
      or one value for each example, shape ``[...]``.
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
    >>> print(losses.weston_watkins(logits, jnp.array([0, 2])))
    [0.  3.5]

  References:
    Weston and Watkins, `Support Vector Machines for Multi-Class Pattern
    Recognition <https://www.esann.org/proceedings/1999>`_, ESANN 1999.

  .. seealso:: :func:`squentropy_jax.losses.crammer_singer`,
    :func:`squentropy_jax.losses.one_vs_rest_hinge`
  """
  return _weston_watkins(logits, labels, margin=margin, axis=axis, where=where)


def _log_one_vs_rest(
  logits: jax.Array, *, squared: bool, margin: jax.Array
) -> jax.Array:
  # The squared loss is least at z = margin (2 p - 1). Without the square no
  # probability can be inferred, and the logits remain scores.
  if not squared:
    return logits
  _, finite = possible_logits(logits)
  # A margin of 0 is the limit, in which every logit is far from it.
  far = jnp.where(margin == 0, jnp.ones_like(margin), margin)
  probability = (1.0 + finite / far) / 2.0
  limit = (finite > 0).astype(finite.dtype)
  probability = jnp.where(margin == 0, limit, probability)
  return jnp.log(jnp.clip(probability, elementwise.PROBABILITY_FLOOR, 1.0))


@distribution_loss(
  domains={"squared": bool, "margin": "[0, inf)"}, log_probs=_log_one_vs_rest
)
def _one_vs_rest_hinge(
  z: jax.Array, target: Target, *, squared: bool, margin: jax.Array
) -> jax.Array:
  def hinge(x: jax.Array) -> jax.Array:
    short = jax.nn.relu(x)
    return jnp.square(short) if squared else short

  # Each term increases with its logit, so that of the largest is the largest.
  _, finite = possible_logits(z)
  others = target.sum_others(z, hinge(margin + finite), first_largest(z))
  return target.expected(z, lambda stats: hinge(margin - stats.target) + others)


@_one_vs_rest_hinge.public
def one_vs_rest_hinge(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  squared: bool = True,
  margin: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the hinge losses of one binary problem per class, summed.

  Use when a linear support vector machine per class should be trained on learnt
  features. Its penalty on the weights comes from the weight decay of the
  optimizer.

  Avoid when classes are many, because the terms of the incorrect classes then
  dominate the sum.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  signs :math:`t_y = 1`, :math:`t_k = -1` for :math:`k \ne y`,

  .. math::
    \ell(z, y) = \sum_k \max(0, \text{margin} - t_k z_k)^2 ,

  or the same without the square. Soft labels give the expected loss. The
  classes do not compete: adding a constant to all logits changes the loss. The
  prediction is the largest logit. The squared loss is least at
  :math:`z_k = \text{margin} \, (2 \pi_k - 1)` for class probabilities
  :math:`\pi`, and ``one_vs_rest_hinge.log_probs`` inverts this relation.
  Published code differs in the factor of the penalty and takes the sum or the
  mean over the batch. The squares of logits beyond 1e19 overflow float32: the
  loss is then ``inf``, or NaN with soft labels.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    squared: Whether the terms are squared, a static bool.
    margin: The distance that a logit should have to 0, on its own side, 0 or
      more: a scalar or one value for each example, shape ``[...]``.
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
    >>> print(losses.one_vs_rest_hinge(logits, jnp.array([0, 2])))
    [1.   7.25]

  References:
    Tang, `Deep Learning using Linear Support Vector Machines
    <https://arxiv.org/abs/1306.0239>`_, 2013.

  .. seealso:: :func:`squentropy_jax.losses.crammer_singer`,
    :func:`squentropy_jax.losses.weston_watkins`,
    :func:`squentropy_jax.losses.rescaled_square`
  """
  return _one_vs_rest_hinge(
    logits, labels, squared=squared, margin=margin, axis=axis, where=where
  )
