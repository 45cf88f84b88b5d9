# SPDX-License-Identifier: Apache-2.0
"""Asymmetric losses: bounded losses for noisy labels.

They keep the minimum of clean labels as long as clean labels are the majority
for every input.
"""

import jax
import jax.numpy as jnp

from squentropy_jax._core import elementwise
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.elementwise import sigmoid, softplus
from squentropy_jax._core.rows import row_loss


@row_loss(domains={"a": "(0, inf)", "q": "[0, inf)"})
def _asymmetric_generalized_cross_entropy(
  stats: RowStats,
  *,
  a: jax.Array,
  q: jax.Array,
) -> jax.Array:
  # a + p = (a + 1) (1 - (1 - p) / (a + 1)).
  fall = jnp.log1p(-sigmoid(stats.log_odds) / (a + 1.0))
  return -((a + 1.0) ** q) * elementwise.expm1_over(fall, q)


@_asymmetric_generalized_cross_entropy.public
def asymmetric_generalized_cross_entropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  a: jax.typing.ArrayLike = 1.0,
  q: jax.typing.ArrayLike = 2.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the asymmetric generalised cross-entropy of each example.

  Use when label noise is not uniform. The paper uses the loss alone, and with
  ``a`` of 3 and ``q`` of 1.5 in a sum with
  :func:`squentropy_jax.losses.normalized_cross_entropy`.

  Avoid when labels are clean and the classes are many: the gradient is small
  wherever the model is incorrect.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = \frac{(a + 1)^q - (a + p_y)^q}{q} .

  The loss is bounded. It keeps the minimum of clean labels if these are the
  majority and its asymmetry ratio allows it. Soft labels give the expected
  loss.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    a: Shift of the probability, above 0: a scalar or one value for each
      example, shape ``[...]``.
    q: Exponent, 0 or more: a scalar or one value for each example, shape
      ``[...]``. A value of 0 gives the limit
      :math:`\log \frac{a + 1}{a + p_y}`.
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
    >>> print(losses.asymmetric_generalized_cross_entropy(logits, labels))
    [0.3002 1.2963]

  References:
    Zhou, Liu, Jiang, Gao and Ji, `Asymmetric Loss Functions for Learning with
    Noisy Labels <https://arxiv.org/abs/2106.03110>`_, ICML 2021.

  .. seealso:: :func:`squentropy_jax.losses.asymmetric_unhinged`,
    :func:`squentropy_jax.losses.generalized_cross_entropy`
  """
  return _asymmetric_generalized_cross_entropy(
    logits, labels, a=a, q=q, axis=axis, where=where
  )


@row_loss(domains={"a": "(1, inf)", "q": "[0, inf)"})
def _asymmetric_unhinged(
  stats: RowStats,
  *,
  a: jax.Array,
  q: jax.Array,
) -> jax.Array:
  # a - p = (a - 1) (1 + (1 - p) / (a - 1)).
  rise = jnp.log1p(sigmoid(stats.log_odds) / (a - 1.0))
  return (a - 1.0) ** q * elementwise.expm1_over(rise, q)


@_asymmetric_unhinged.public
def asymmetric_unhinged(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  a: jax.typing.ArrayLike = 1.5,
  q: jax.typing.ArrayLike = 0.9,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the asymmetric unhinged loss of each example.

  Use when label noise is not uniform. The paper uses the loss alone, and with
  ``a`` of 6 and ``q`` of 1.5 in a sum with
  :func:`squentropy_jax.losses.normalized_cross_entropy`.

  Avoid when ``a`` would be close to 1 with ``q`` below 1: the gradient of a
  confident example then has no bound.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = \frac{(a - p_y)^q - (a - 1)^q}{q} .

  The loss is bounded and 0 at :math:`p_y = 1`. A ``q`` of 1 is the mean
  absolute error. Soft labels give the expected loss.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    a: Shift of the probability, above 1: a scalar or one value for each
      example, shape ``[...]``.
    q: Exponent, 0 or more: a scalar or one value for each example, shape
      ``[...]``. A value of 0 gives the limit
      :math:`\log \frac{a - p_y}{a - 1}`.
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
    >>> print(losses.asymmetric_unhinged(logits, jnp.array([0, 2])))
    [0.1651 0.8249]

  References:
    Zhou, Liu, Jiang, Gao and Ji, `Asymmetric Loss Functions for Learning with
    Noisy Labels <https://arxiv.org/abs/2106.03110>`_, ICML 2021.

  .. seealso::
    :func:`squentropy_jax.losses.asymmetric_generalized_cross_entropy`,
    :func:`squentropy_jax.losses.mean_absolute_error`
  """
  return _asymmetric_unhinged(logits, labels, a=a, q=q, axis=axis, where=where)


@row_loss(domains={"pi": "(0, 1)"})
def _jensen_shannon(stats: RowStats, *, pi: jax.Array) -> jax.Array:
  pi = jnp.asarray(pi).astype(stats.target.dtype)
  of_softmax, log_of_softmax = 1.0 - pi, jnp.log1p(-pi)
  one = jnp.ones_like(stats.target)
  missing = sigmoid(stats.log_odds)  # 1 - p.
  present = sigmoid(-stats.log_odds)
  # log(m / p), without the rounding of p to 1.
  log_odds = jnp.minimum(stats.log_odds, elementwise.HUGE)
  log_ratio = softplus(log_odds + jnp.log(pi))
  # log(m), from the smaller of m and 1 - m.
  likely = of_softmax * missing < 0.5
  log_m = jnp.where(
    likely,
    jnp.log1p(-of_softmax * jnp.where(likely, missing, 0.5 * one)),
    jnp.log(pi + of_softmax * jnp.where(likely, one, present)),
  )
  from_label = -pi * log_m
  from_softmax = -of_softmax * (present * log_ratio + missing * log_of_softmax)
  return (from_label + from_softmax) / (-of_softmax * log_of_softmax)


@_jensen_shannon.public
def jensen_shannon(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  pi: jax.typing.ArrayLike = 0.5,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the scaled Jensen-Shannon divergence of label and softmax.

  Use when labels are noisy and one hyper-parameter should lead from
  cross-entropy (``pi`` towards 0) to the mean absolute error (towards 1).

  Avoid when soft labels should give the divergence from the target
  distribution: they give the expected loss, as in all row losses.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = \frac{\text{pi} \, \mathrm{KL}(e_y \Vert m)
                       + (1 - \text{pi}) \, \mathrm{KL}(p \Vert m)}
                      {-(1 - \text{pi}) \log (1 - \text{pi})},
    \qquad m = \text{pi} \, e_y + (1 - \text{pi}) \, p ,

  where :math:`e_y` is the one-hot label. The limits are cross-entropy for
  ``pi`` to 0 and the mean absolute error for ``pi`` to 1. The loss is bounded
  for every ``pi`` between them.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    pi: Weight of the label, strictly between 0 and 1: a scalar or one value for
      each example, shape ``[...]``. The paper tunes it among 0.1, 0.3, 0.5, 0.7
      and 0.9.
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
    >>> print(losses.jensen_shannon(logits, jnp.array([0, 2])))
    [0.1658 1.2559]

  References:
    Englesson and Azizpour, `Generalized Jensen-Shannon Divergence Loss for
    Learning with Noisy Labels <https://arxiv.org/abs/2105.04522>`_, NeurIPS
    2021.

  .. seealso:: :func:`squentropy_jax.losses.generalized_cross_entropy`
  """
  return _jensen_shannon(logits, labels, pi=pi, axis=axis, where=where)
