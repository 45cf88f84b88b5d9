# SPDX-License-Identifier: Apache-2.0
"""Square losses: regression of the logits on a scaled one-hot label."""

import jax
import jax.numpy as jnp

from squentropy_jax._core import elementwise
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.distributions import possible_logits
from squentropy_jax._core.rows import row_loss


def _log_scores(
  logits: jax.Array,
  *,
  target_weight: jax.typing.ArrayLike = 1.0,
  target_value: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
  """Inverts the minimiser, ``k M p / (k p + 1 - p)`` for a probability ``p``.

  ``k`` is the weight and ``M`` the target value, both above 0.
  """
  _, finite = possible_logits(logits)
  share = jnp.clip(finite / target_value, 0.0, 1.0)
  probability = share / (target_weight + (1.0 - target_weight) * share)
  return jnp.log(jnp.maximum(probability, elementwise.PROBABILITY_FLOOR))


def _uniform(
  stats: RowStats, *, target_weight: jax.Array, target_value: jax.Array
) -> jax.Array:
  n = stats.num_classes
  sum_sq = stats.rest_sq + jnp.square(stats.target)
  sum_z = stats.rest_sum + stats.target
  as_target = sum_sq - 2.0 * target_value * sum_z + n * target_value**2
  return (target_weight * as_target + (n - 1.0) * sum_sq) / (n * n)


@row_loss(
  domains={"target_weight": "[0, inf)", "target_value": "(-inf, inf)"},
  log_probs=_log_scores,
  uniform=_uniform,
)
def _rescaled_square(
  stats: RowStats,
  *,
  target_weight: jax.Array,
  target_value: jax.Array,
) -> jax.Array:
  residual = stats.target - target_value
  return (
    target_weight * residual * residual + stats.rest_sq
  ) / stats.num_classes


@_rescaled_square.public
def rescaled_square(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  target_weight: jax.typing.ArrayLike = 1.0,
  target_value: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the rescaled square loss of each example.

  Use when accuracy counts and the classes are few. With many classes the paper
  raises both hyper-parameters.

  Avoid when probabilities are read off the softmax of the logits. Read them
  off ``rescaled_square.log_probs(logits)`` instead.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = \frac{1}{C} \Bigl(
      \text{target\_weight} \, (z_y - \text{target\_value})^2
      + \sum_{j \ne y} z_j^2 \Bigr) .

  With both hyper-parameters at 1 it is the plain square loss. With weight 1
  its minimiser is ``target_value`` times the class probabilities. Soft labels
  give the expected loss, which differs from the square distance to the target
  distribution by a constant. If a logit is beyond 1e19, its square overflows
  float32: the loss is then ``inf`` and its gradient stays finite.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    target_weight: Weight of the labelled class, 0 or more, ``k`` in the paper:
      a scalar or one value for each example, shape ``[...]``.
    target_value: Target of the labelled logit, ``M`` in the paper: a scalar or
      one value for each example, shape ``[...]``.
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
    >>> print(losses.rescaled_square(logits, jnp.array([0, 2])))
    [0.6667 0.75  ]

  References:
    Hui and Belkin, `Evaluation of Neural Architectures Trained with Square Loss
    vs Cross-Entropy in Classification Tasks
    <https://arxiv.org/abs/2006.07322>`_, ICLR 2021.

  .. seealso:: :func:`squentropy_jax.losses.squentropy`,
    :func:`squentropy_jax.losses.brier`
  """
  return _rescaled_square(
    logits,
    labels,
    target_weight=target_weight,
    target_value=target_value,
    axis=axis,
    where=where,
  )
