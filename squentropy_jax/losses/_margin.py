# SPDX-License-Identifier: Apache-2.0
"""Hinge losses: 0 once the labelled class leads by a margin."""

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


def one_vs_rest(
  logits: jax.Array,
  *,
  squared: bool = True,
  margin: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
  """Inverts the minimiser, ``margin (2 p - 1)`` for a probability ``p``.

  Without the square there is none to invert, and logits remain scores.
  """
  if not squared:
    return logits
  probability = (1.0 + logits / margin) / 2.0
  return jnp.log(jnp.clip(probability, elementwise.PROBABILITY_FLOOR, 1.0))


@distribution_loss(
  domains={"squared": bool, "margin": "[0, inf)"}, log_probs=one_vs_rest
)
def _one_vs_rest_hinge(
  z: jax.Array, target: Target, *, squared: bool, margin: jax.Array
) -> jax.Array:
  def hinge(x: jax.Array) -> jax.Array:
    short = jax.nn.relu(x)
    return jnp.square(short) if squared else short

  # Each term increases with its logit, so that of the top class is largest.
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
  r"""Hinge losses of one binary problem per class, summed.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  signs :math:`t_y = 1`, :math:`t_k = -1` for :math:`k \ne y`,

  .. math::
    \ell(z, y) = \sum_k \max(0, \text{margin} - t_k z_k)^2 ,

  or the same without the square. It is the loss of a linear support vector
  machine per class; its authors add a penalty on the weights, which is left to
  the optimiser. The classes do not compete: raising all logits alike matters,
  and a prediction is the largest logit. Squared, its minimum is
  :math:`z_k = \text{margin} \, (2 \pi_k - 1)` for class probabilities
  :math:`\pi`: ``one_vs_rest_hinge.link(logits)`` reads them off. The wrong
  classes' terms dominate where there are many classes. Not to be confused with
  :func:`squentropy_jax.losses.crammer_singer`. Soft labels :math:`p` give the
  expected loss :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    squared: Whether the terms are squared, a static bool.
    margin: By how much a logit is to be on its side of 0, not negative.
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


@_crammer_singer.public
def crammer_singer(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  margin: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Multi-class hinge: the margin to the strongest wrong class.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = \max \Bigl(0, \text{margin} + \max_{k \ne y} z_k - z_y \Bigr) .

  It is 0 once the labelled class leads by the margin, and its slope reaches two
  logits only: a sparse gradient, and a slow one where there are many classes.
  No class probabilities can be read off it, and unless one class has most of
  the probability its minimum need not rank it first. It is the limit of
  :func:`squentropy_jax.losses.ldr_kl` at temperature 0. Soft labels :math:`p`
  give the expected loss :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    margin: Lead that the labelled class is to have, not negative.
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


@_weston_watkins.public
def weston_watkins(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  margin: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Multi-class hinge: the margins to all wrong classes, summed.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = \sum_{k \ne y} \max (0, \text{margin} + z_k - z_y) .

  A sum over the wrong classes: some code takes their mean, or that over all
  classes, which is this loss over :math:`C - 1` or :math:`C`. Every class
  within the margin pulls, where :func:`squentropy_jax.losses.crammer_singer`
  sees the strongest alone. Soft labels :math:`p` give the expected loss
  :math:`\sum_k p_k\, \ell(z, k)`. They cost one pass over the row for each
  class.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    margin: Lead that the labelled class is to have, not negative.
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
    >>> print(losses.weston_watkins(logits, jnp.array([0, 2])))
    [0.  3.5]

  References:
    Weston and Watkins, `Support Vector Machines for Multi-Class Pattern
    Recognition <https://www.esann.org/proceedings/1999>`_, ESANN 1999.

  .. seealso:: :func:`squentropy_jax.losses.crammer_singer`,
    :func:`squentropy_jax.losses.one_vs_rest_hinge`
  """
  return _weston_watkins(logits, labels, margin=margin, axis=axis, where=where)
