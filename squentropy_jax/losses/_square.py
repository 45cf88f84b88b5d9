# SPDX-License-Identifier: Apache-2.0
"""Square losses on logits."""

import jax
import jax.numpy as jnp

from squentropy_jax._core import elementwise
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.rows import row_loss


def linear(
  logits: jax.Array,
  *,
  target_weight: jax.typing.ArrayLike = 1.0,
  target_value: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
  """Inverts the minimiser, ``k M p / (k p + 1 - p)`` for a probability ``p``.

  ``k`` is the weight and ``M`` the target value, both above 0.
  """
  share = jnp.clip(logits / target_value, 0.0, 1.0)
  probability = share / (target_weight + (1.0 - target_weight) * share)
  return jnp.log(jnp.maximum(probability, elementwise.PROBABILITY_FLOOR))


def _uniform(
  stats: RowStats, *, target_weight: jax.Array, target_value: jax.Array
) -> jax.Array:
  n = stats.num_classes
  square = stats.rest_sq + jnp.square(stats.target)
  total = stats.rest_sum + stats.target
  on_target = square - 2.0 * target_value * total + n * target_value**2
  return (target_weight * on_target + (n - 1.0) * square) / (n * n)


@row_loss(
  domains={"target_weight": "[0, inf)", "target_value": "(-inf, inf)"},
  log_probs=linear,
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
  r"""Square loss with a weight on the labelled class and a larger target.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = \frac{1}{C} \Bigl(
      \text{target\_weight} \, (z_y - \text{target\_value})^2
      + \sum_{j \ne y} z_j^2 \Bigr) .

  With both at 1 it is the plain square loss. Its minimiser with weight 1 is
  ``target_value`` times the class probabilities, so ``logits / target_value``
  is the calibrated readout; a softmax over the logits is not.
  ``rescaled_square.link(logits)`` reads it so, for any weight. Soft labels
  :math:`p` give the expected loss, which differs from the square distance to
  :math:`p` by a constant of the logits.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    target_weight: Weight of the labelled class, 0 or more, ``k`` in the paper.
    target_value: Target of the labelled logit, ``M`` in the paper.
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
      if a concrete class id is out of range (a traced one gives NaN); if a
      hyper-parameter that can be read is outside its domain.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(losses.rescaled_square(logits, jnp.array([0, 2])))
    [0.6667 0.75  ]

  References:
    Hui and Belkin, `Evaluation of Neural Architectures Trained with Square Loss
    vs Cross-Entropy in Classification Tasks
    <https://arxiv.org/abs/2006.07322>`_, ICLR 2021.

  .. seealso:: :func:`squentropy_jax.squentropy`
  """
  return _rescaled_square(
    logits,
    labels,
    target_weight=target_weight,
    target_value=target_value,
    axis=axis,
    where=where,
  )
