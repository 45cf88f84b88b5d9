# SPDX-License-Identifier: Apache-2.0
"""Comp-sum losses: functions of the probability of the labelled class."""

import jax

from squentropy_jax import _rows


def _cross_entropy(stats: _rows.RowStats) -> jax.Array:
  return _rows.softplus(stats.log_odds)


@_rows.with_row(_cross_entropy)
def cross_entropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Softmax cross-entropy, exact where the target dominates.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = -\log \frac{\exp z_y}{\sum_j \exp z_j}
               = \log \Bigl(1 + \sum_{j \ne y} \exp (z_j - z_y)\Bigr) .

  It is computed in the second form: a confident example keeps its digits, in
  the loss and in the gradient, where the difference of a log-sum-exp and a
  logit rounds to 0. Soft labels :math:`p` give the expected loss
  :math:`-\sum_k p_k \log \mathrm{softmax}(z)_k`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0.

  Returns:
    The loss of each example in nats, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating, or if integer ``labels`` look like
      one-hot rows or float ``labels`` like class ids.
    ValueError: If the shapes of ``labels`` or ``where`` fit neither form above,
      or if a concrete class id is out of range (a traced one gives NaN).

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(losses.cross_entropy(logits, jnp.array([0, 2])))
    [0.1698 1.6803]

  References:
    Good, `Rational Decisions <https://www.jstor.org/stable/2984087>`_, 1952.

  .. seealso:: :func:`squentropy_jax.squentropy`
  """
  return _rows.evaluate(_cross_entropy, logits, labels, axis=axis, where=where)
