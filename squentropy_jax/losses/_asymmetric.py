# SPDX-License-Identifier: Apache-2.0
"""Bounded losses that keep the minimum of clean labels under label noise."""

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


@row_loss(domains={"pi": "(0, 1)"})
def _jensen_shannon(stats: RowStats, *, pi: jax.Array) -> jax.Array:
  pi = jnp.asarray(pi).astype(stats.target.dtype)
  rest, log_rest = 1.0 - pi, jnp.log1p(-pi)
  one = jnp.ones_like(stats.target)
  missing = sigmoid(stats.log_odds)  # 1 - p.
  present = sigmoid(-stats.log_odds)
  # log(m / p), without the rounding of p to 1.
  log_odds = jnp.minimum(stats.log_odds, elementwise.HUGE)
  log_ratio = softplus(log_odds + jnp.log(pi))
  # log(m) in the digits of the smaller of m and 1 - m.
  likely = rest * missing < 0.5
  log_m = jnp.where(
    likely,
    jnp.log1p(-rest * jnp.where(likely, missing, 0.5 * one)),
    jnp.log(pi + rest * jnp.where(likely, one, present)),
  )
  of_label = -pi * log_m
  of_model = -rest * (present * log_ratio + missing * log_rest)
  return (of_label + of_model) / (-rest * log_rest)


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
  r"""A concave power of the labelled class's probability, for noisy labels.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = \frac{(a + 1)^q - (a + p_y)^q}{q} .

  The loss keeps the minimum of clean labels as long as these are the majority,
  where its asymmetry ratio allows; it is bounded, and slow on its own: the
  paper also adds it to :func:`squentropy_jax.losses.normalized_cross_entropy`.
  Soft labels :math:`p` give the expected loss :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    a: Shift of the probability, positive.
    q: Exponent, not negative; 0 stands for the limit,
      :math:`\log \frac{a + 1}{a + p_y}`.
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
  r"""A power of one minus the probability and a shift, for noisy labels.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = \frac{(a - p_y)^q - (a - 1)^q}{q} .

  Bounded, zero at :math:`p_y = 1`, and the mean absolute error for ``q`` of 1.
  The paper uses it alone or added to
  :func:`squentropy_jax.losses.normalized_cross_entropy`. Soft labels :math:`p`
  give the expected loss :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    a: Shift of the probability, above 1.
    q: Exponent, not negative; 0 stands for the limit,
      :math:`\log \frac{a - p_y}{a - 1}`.
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


@_jensen_shannon.public
def jensen_shannon(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  pi: jax.typing.ArrayLike = 0.5,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Generalised Jensen-Shannon divergence of label and softmax, scaled.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = \frac{\text{pi} \, \mathrm{KL}(e_y \Vert m)
                       + (1 - \text{pi}) \, \mathrm{KL}(p \Vert m)}
                      {-(1 - \text{pi}) \log (1 - \text{pi})},
    \qquad m = \text{pi} \, e_y + (1 - \text{pi}) \, p ,

  :math:`e_y` being the one-hot label. It goes to cross-entropy as ``pi`` goes
  to 0 and to the mean absolute error as it goes to 1, and is bounded in
  between. Soft labels :math:`p` give the expected loss
  :math:`\sum_k p_k\, \ell(z, k)`, which is not the divergence from :math:`p`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    pi: Weight of the label, strictly between 0 and 1. The paper tunes it among
      0.1, 0.3, 0.5, 0.7 and 0.9.
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
    >>> print(losses.jensen_shannon(logits, jnp.array([0, 2])))
    [0.1658 1.2559]

  References:
    Englesson and Azizpour, `Generalized Jensen-Shannon Divergence Loss for
    Learning with Noisy Labels <https://arxiv.org/abs/2105.04522>`_, NeurIPS
    2021.

  .. seealso:: :func:`squentropy_jax.losses.generalized_cross_entropy`
  """
  return _jensen_shannon(logits, labels, pi=pi, axis=axis, where=where)
