# SPDX-License-Identifier: Apache-2.0
"""Squentropy: cross-entropy plus the mean square of the wrong logits."""

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks
from squentropy_jax._core.class_sums import RowStats, uniform_cross_entropy
from squentropy_jax._core.elementwise import softplus
from squentropy_jax._core.rows import row_loss


def _mean_square(stats: RowStats) -> jax.Array:
  # A single possible class has no incorrect ones: 0 / 1, not 0 / 0.
  return stats.rest_sq / jnp.maximum(stats.num_classes - 1.0, 1.0)


def _uniform(stats: RowStats, *, scale: jax.Array) -> jax.Array:
  # Each class is incorrect for all others, so its square counts C - 1 times.
  square = stats.rest_sq + jnp.square(stats.target)
  square *= jnp.minimum(stats.num_classes - 1.0, 1.0) / stats.num_classes
  return uniform_cross_entropy(stats) + scale * square


@row_loss(domains={"scale": "[0, inf)"}, uniform=_uniform)
def _squentropy(stats: RowStats, *, scale: jax.Array) -> jax.Array:
  return softplus(stats.log_odds) + scale * _mean_square(stats)


@row_loss
def _squentropy_of_ids(stats: RowStats) -> jax.Array:
  return softplus(stats.log_odds) + _mean_square(stats)


@_squentropy.public
def squentropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  scale: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Cross-entropy plus the mean square of the logits of the wrong classes.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = -\log \frac{\exp z_y}{\sum_j \exp z_j}
                 + \frac{\text{scale}}{C - 1} \sum_{j \ne y} z_j^2 .

  Soft labels :math:`p` give the expected loss
  :math:`\sum_k p_k\, \ell(z, k)`. The loss is argmax-consistent but not proper:
  the softmax at its optimum is less confident than the class probabilities, so
  fit a temperature before you read probabilities off it.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    scale: Factor of the square term, 0 or more. The paper uses 1; 0 is
      cross-entropy, as long as the squares of the logits are finite.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0; masked classes do not count in :math:`C`.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating, or if integer ``labels`` look like
      one-hot rows or float ``labels`` like class ids.
    ValueError: If the shapes of ``labels`` or ``where`` fit neither form above,
      if a concrete class id is out of range (a traced one gives NaN), or if a
      concrete ``scale`` is negative.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(squentropy_jax.squentropy(logits, jnp.array([0, 2])))
    [0.6698 2.3053]

  References:
    Hui, Belkin and Wright, `Cut your Losses with Squentropy
    <https://arxiv.org/abs/2302.03952>`_, ICML 2023, equation (1).

  .. seealso:: :func:`squentropy_jax.losses.rescaled_square`
  """
  return _squentropy(logits, labels, scale=scale, axis=axis, where=where)


@_squentropy_of_ids.public
def squentropy_with_integer_labels(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Squentropy of class ids, in the place of optax's integer cross-entropy.

  .. math::
    \ell(z, y) = -\log \frac{\exp z_y}{\sum_j \exp z_j}
                 + \frac{1}{C - 1} \sum_{j \ne y} z_j^2

  Arguments stand where
  ``optax.softmax_cross_entropy_with_integer_labels`` has them, so that a
  training step changes by one name.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating or ``labels`` are not integers.
    ValueError: If the shape of ``labels`` or ``where`` does not fit, or if a
      concrete class id is out of range (a traced one gives NaN).

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(squentropy_with_integer_labels(logits, jnp.array([0, 2])))
    [0.6698 2.3053]

  References:
    Hui, Belkin and Wright, `Cut your Losses with Squentropy
    <https://arxiv.org/abs/2302.03952>`_, ICML 2023, equation (1).

  .. seealso:: :func:`squentropy_jax.squentropy`
  """
  dtype = checks.as_array(labels, "labels").dtype
  if not jnp.issubdtype(dtype, jnp.integer):
    raise TypeError(
      f"labels must be integer class ids, got dtype {dtype}; squentropy takes "
      "target distributions."
    )
  return _squentropy_of_ids(logits, labels, axis=axis, where=where)
