# SPDX-License-Identifier: Apache-2.0
"""Losses that count examples by how well they are fitted."""

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
  log_missing = -softplus(-stats.log_odds)  # Of 1 - p.
  weight = elementwise.power(log_missing, gamma)
  return elementwise.weighted(weight, softplus(stats.log_odds))


@distribution_loss(domains={"gamma": "[0, inf)"})
def _dual_focal(z: jax.Array, target: Target, *, gamma: jax.Array) -> jax.Array:
  _, logits = possible_logits(z)
  gamma = per_row(gamma)

  def of_class(stats: RowStats, others: jax.Array) -> jax.Array:
    gap = logits - stats.target[..., None]
    lower = others & (gap < 0)
    nearest = jnp.where(lower, gap, -jnp.inf).max(-1)
    # log(1 - p_y + p_j), p_j being p_y exp(z_j - z_y).
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


@row_loss(domains={"epsilon": "[-1, inf)"})
def _poly1(stats: RowStats, *, epsilon: jax.Array) -> jax.Array:
  return softplus(stats.log_odds) + epsilon * sigmoid(stats.log_odds)


@_focal.public
def focal(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  gamma: jax.typing.ArrayLike = 2.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Cross-entropy that counts confident examples less.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = -(1 - p_y)^{\text{gamma}} \log p_y .

  A ``gamma`` of 0 is cross-entropy. The larger it is the less an example counts
  that is fitted already, which helps where easy examples are very many, and
  which keeps the softmax from becoming over-confident. It is not proper: the
  softmax at the optimum is less confident than the class probabilities. Soft
  labels :math:`p` give the expected loss :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    gamma: Focusing exponent, not negative. The paper uses 2 for detection; 3 is
      common for calibration.
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
    >>> print(losses.focal(logits, jnp.array([0, 2])))
    [0.0041 1.1125]

  References:
    Lin, Goyal, Girshick, He and Dollar, `Focal Loss for Dense Object Detection
    <https://arxiv.org/abs/1708.02002>`_, ICCV 2017.

  .. seealso:: :func:`squentropy_jax.losses.dual_focal`,
    :func:`squentropy_jax.losses.poly1`
  """
  return _focal(logits, labels, gamma=gamma, axis=axis, where=where)


@_dual_focal.public
def dual_focal(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  gamma: jax.typing.ArrayLike = 2.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Focal loss that also sees the runner-up of the labelled class.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = -(1 - p_y + p_j)^{\text{gamma}} \log p_y,
    \qquad p_j = \max \{p_k : p_k < p_y\} ,

  and :math:`p_j = 0` if no class is less probable than the labelled one. Where
  the label ranks first, :math:`p_j` is the runner-up, and the loss asks for a
  gap between the two; where it does not, :math:`p_j` is the next class *below*
  the label and not the winner. The loss jumps where a class passes the labelled
  one. A ``gamma`` of 0 is cross-entropy. Soft labels :math:`p` give the
  expected loss :math:`\sum_k p_k\, \ell(z, k)`. They cost one pass over the row
  for each class.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    gamma: Focusing exponent, not negative. The paper tunes it.
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
    >>> print(losses.dual_focal(logits, jnp.array([0, 2])))
    [0.0124 1.1125]

  References:
    Tao, Dong and Xu, `Dual Focal Loss for Calibration
    <https://arxiv.org/abs/2305.13665>`_, ICML 2023.

  .. seealso:: :func:`squentropy_jax.losses.focal`
  """
  return _dual_focal(logits, labels, gamma=gamma, axis=axis, where=where)


@_poly1.public
def poly1(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  epsilon: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Cross-entropy with another weight on its first polynomial term.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = -\log p_y + \text{epsilon} \, (1 - p_y) .

  Cross-entropy is :math:`\sum_{j \ge 1} (1 - p_y)^j / j`; this changes the
  weight of :math:`j = 1`. An ``epsilon`` of 0 is cross-entropy; a positive one
  keeps pushing confident examples, a negative one, at least -1, lets them go.
  Soft labels :math:`p` give the expected loss :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    epsilon: Added weight. The paper uses 2 for ImageNet and -1 for detection.
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
    >>> print(losses.poly1(logits, jnp.array([0, 2])))
    [0.3261 2.4939]

  References:
    Leng et al., `PolyLoss: A Polynomial Expansion Perspective of Classification
    Loss Functions <https://arxiv.org/abs/2204.12511>`_, ICLR 2022.

  .. seealso:: :func:`squentropy_jax.losses.focal`
  """
  return _poly1(logits, labels, epsilon=epsilon, axis=axis, where=where)
