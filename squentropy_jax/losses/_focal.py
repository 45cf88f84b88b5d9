# SPDX-License-Identifier: Apache-2.0
"""Focal losses: cross-entropy weighted by the probability of the label.

The weight of an example depends on how well the model fits it already.
"""

import jax
import jax.numpy as jnp

from squentropy_jax._core import elementwise
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.distributions import (
  Target,
  distribution_loss,
  per_row,
  possible_logits,
)
from squentropy_jax._core.elementwise import sigmoid, softplus
from squentropy_jax._core.rows import row_loss


@row_loss(domains={"gamma": "[0, inf)"})
def _focal(stats: RowStats, *, gamma: jax.Array) -> jax.Array:
  log_missing = -softplus(-stats.log_odds)  # The logarithm of 1 - p.
  weight = elementwise.power(log_missing, gamma)
  return elementwise.weighted(weight, softplus(stats.log_odds))


@_focal.public
def focal(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  gamma: jax.typing.ArrayLike = 2.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the focal loss of each example.

  Use when easy examples are very many, as in detection, or when cross-entropy
  becomes over-confident.

  Avoid when labels are noisy, because incorrect labels make hard examples,
  which have the largest weight, or when probabilities are needed without
  recalibration.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = -(1 - p_y)^{\text{gamma}} \log p_y .

  A ``gamma`` of 0 is cross-entropy. A larger ``gamma`` reduces the weight of
  examples that the model fits already. The loss is not proper: the softmax at
  its optimum is less confident than the class probabilities. Soft labels give
  the expected loss.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    gamma: Focusing exponent, 0 or more: a scalar or one value for each example,
      shape ``[...]``. The paper uses 2 for detection; 3 is common for
      calibration.
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
    >>> print(losses.focal(logits, jnp.array([0, 2])))
    [0.0041 1.1125]

  References:
    Lin, Goyal, Girshick, He and Dollar, `Focal Loss for Dense Object Detection
    <https://arxiv.org/abs/1708.02002>`_, ICCV 2017.

  .. seealso:: :func:`squentropy_jax.losses.dual_focal`,
    :func:`squentropy_jax.losses.poly1`
  """
  return _focal(logits, labels, gamma=gamma, axis=axis, where=where)


@distribution_loss(domains={"gamma": "[0, inf)"})
def _dual_focal(z: jax.Array, target: Target, *, gamma: jax.Array) -> jax.Array:
  _, logits = possible_logits(z)
  gamma = per_row(gamma)

  def of_class(stats: RowStats, others: jax.Array) -> jax.Array:
    gap = logits - stats.target[..., None]
    lower = others & (gap < 0)
    nearest = jnp.where(lower, gap, -jnp.inf).max(-1)
    # log(1 - p_y + p_j), where p_j = p_y exp(z_j - z_y).
    none = nearest == -jnp.inf
    log_missing = -softplus(-stats.log_odds)
    log_present = -softplus(jnp.minimum(stats.log_odds, elementwise.HUGE))
    log_next = log_present + jnp.where(none, jnp.zeros_like(nearest), nearest)
    finite = jnp.where(none, jnp.zeros_like(log_missing), log_missing)
    log_base = jnp.where(none, log_missing, jnp.logaddexp(finite, log_next))
    weight = elementwise.power(log_base, gamma)
    return elementwise.weighted(weight, softplus(stats.log_odds))

  return target.expected(
    z, lambda stats: target.map_classes(z, stats, of_class)
  )


@_dual_focal.public
def dual_focal(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  gamma: jax.typing.ArrayLike = 2.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the dual focal loss of each example.

  Use when calibration counts and the focal loss makes the model too little
  confident.

  Avoid when the optimiser needs a continuous loss, because the loss jumps
  where another class passes the labelled one. Soft labels are slow: they cost
  one pass over the row for each class.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = -(1 - p_y + p_j)^{\text{gamma}} \log p_y,
    \qquad p_j = \max \{p_k : p_k < p_y\} ,

  and :math:`p_j = 0` if no class is less probable than the labelled one. If
  the labelled class is the most probable one, :math:`p_j` belongs to the
  second most probable class, and the loss asks for a gap between the two. If
  it is not, :math:`p_j` belongs to the next class *below* the labelled one, not
  to the predicted class. A ``gamma`` of 0 is cross-entropy. Soft labels give
  the expected loss.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    gamma: Focusing exponent, 0 or more: a scalar or one value for each example,
      shape ``[...]``. The paper tunes it.
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
    >>> print(losses.dual_focal(logits, jnp.array([0, 2])))
    [0.0124 1.1125]

  References:
    Tao, Dong and Xu, `Dual Focal Loss for Calibration
    <https://arxiv.org/abs/2305.13665>`_, ICML 2023.

  .. seealso:: :func:`squentropy_jax.losses.focal`
  """
  return _dual_focal(logits, labels, gamma=gamma, axis=axis, where=where)


@row_loss(domains={"epsilon": "[-1, inf)"})
def _poly1(stats: RowStats, *, epsilon: jax.Array) -> jax.Array:
  return softplus(stats.log_odds) + epsilon * sigmoid(stats.log_odds)


@_poly1.public
def poly1(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  epsilon: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the poly-1 loss of each example.

  Use when cross-entropy is to be adjusted with one hyper-parameter at no cost:
  a positive one raises the gradient of confident examples, a negative one
  lowers it.

  Avoid when a robust or calibrated loss is needed: the loss changes
  cross-entropy by a bounded term only.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = -\log p_y + \text{epsilon} \, (1 - p_y) .

  Cross-entropy is the series :math:`\sum_{j \ge 1} (1 - p_y)^j / j`, and the
  loss changes the weight of its first term. An ``epsilon`` of 0 is
  cross-entropy. Below -1 the loss would no longer be least at :math:`p_y = 1`.
  Soft labels give the expected loss.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    epsilon: Added weight of the first term, -1 or more: a scalar or one value
      for each example, shape ``[...]``. The paper uses 2 for ImageNet and -1
      for detection.
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
    >>> print(losses.poly1(logits, jnp.array([0, 2])))
    [0.3261 2.4939]

  References:
    Leng et al., `PolyLoss: A Polynomial Expansion Perspective of Classification
    Loss Functions <https://arxiv.org/abs/2204.12511>`_, ICLR 2022.

  .. seealso:: :func:`squentropy_jax.losses.focal`
  """
  return _poly1(logits, labels, epsilon=epsilon, axis=axis, where=where)
