# SPDX-License-Identifier: Apache-2.0
"""Squentropy: cross-entropy plus the mean square of the incorrect logits.

The square term pulls the logits of the incorrect classes towards 0. The logit
of the labelled class has no square term.
"""

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks, elementwise
from squentropy_jax._core.class_sums import RowStats, uniform_cross_entropy
from squentropy_jax._core.elementwise import softplus
from squentropy_jax._core.rows import row_loss


def _mean_square(stats: RowStats) -> jax.Array:
  # Without an incorrect class the mean is 0, not 0 / 0.
  return stats.rest_sq / jnp.maximum(stats.num_classes - 1.0, 1.0)


def _uniform(stats: RowStats, *, scale: jax.Array) -> jax.Array:
  # The square of a class is in the mean for each of the C - 1 other labels.
  square = stats.rest_sq + jnp.square(stats.target)
  square *= jnp.minimum(stats.num_classes - 1.0, 1.0) / stats.num_classes
  return uniform_cross_entropy(stats) + elementwise.weighted(scale, square)


@row_loss(domains={"scale": "[0, inf)"}, uniform=_uniform)
def _squentropy(stats: RowStats, *, scale: jax.Array) -> jax.Array:
  square = elementwise.weighted(scale, _mean_square(stats))
  return softplus(stats.log_odds) + square


@_squentropy.public
def squentropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  scale: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the squentropy loss of each example.

  Use when cross-entropy becomes over-confident in long training and no
  examples can be held out to fit a temperature. The study in
  ``docs/replication/README.md`` compares both on 47 data sets.

  Avoid when the training is short or is stopped on held-out examples, where
  that study found no significant advantage, or when probabilities are needed
  without recalibration. If only accuracy counts, try
  :func:`squentropy_jax.losses.rescaled_square`, which was more accurate there.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = -\log \frac{\exp z_y}{\sum_j \exp z_j}
                 + \frac{\text{scale}}{C - 1} \sum_{j \ne y} z_j^2 .

  Soft labels give the expected loss. For a ``scale`` above 0 the loss is
  strictly convex in the logits. At its optimum the most probable class has the
  largest logit, but the softmax is less confident than the true class
  probabilities. If the absolute value of an incorrect class's logit is above
  1e19, its square overflows float32. The loss is then ``inf``, and its gradient
  is still finite.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    scale: Factor of the square term, 0 or more: a scalar or one value for each
      example, shape ``[...]``. The paper uses 1; 0 is cross-entropy.
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
    >>> print(losses.squentropy(logits, jnp.array([0, 2])))
    [0.6698 2.3053]

  References:
    Hui, Belkin and Wright, `Cut your Losses with Squentropy
    <https://arxiv.org/abs/2302.03952>`_, ICML 2023, equation (1).

  .. seealso:: :func:`squentropy_jax.losses.cross_entropy`,
    :func:`squentropy_jax.losses.rescaled_square`
  """
  return _squentropy(logits, labels, scale=scale, axis=axis, where=where)


def squentropy_with_integer_labels(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the squentropy loss of each example from its class id.

  Use when a training step calls
  ``optax.softmax_cross_entropy_with_integer_labels``: this function is a
  drop-in replacement, with the same arguments in the same order.

  Avoid when labels are target distributions or the square term needs another
  factor. For these cases use :func:`squentropy_jax.squentropy`.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = -\log \frac{\exp z_y}{\sum_j \exp z_j}
                 + \frac{1}{C - 1} \sum_{j \ne y} z_j^2 .

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the logits' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete class id is out of
      range.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> labels = jnp.array([0, 2])
    >>> print(squentropy_with_integer_labels(logits, labels))
    [0.6698 2.3053]

  References:
    Hui, Belkin and Wright, `Cut your Losses with Squentropy
    <https://arxiv.org/abs/2302.03952>`_, ICML 2023, equation (1).

  .. seealso:: :func:`squentropy_jax.squentropy`
  """
  dtype = checks.as_array(labels, "labels").dtype
  if not jnp.issubdtype(dtype, jnp.integer):
    raise TypeError(
      f"labels must be integer class ids, got dtype {dtype}. Use squentropy "
      "for target distributions, or pass jnp.asarray(labels, jnp.int32)."
    )
  return _squentropy(logits, labels, scale=1.0, axis=axis, where=where)
