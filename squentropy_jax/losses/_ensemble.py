# SPDX-License-Identifier: Apache-2.0
"""EnsLoss: a fresh calibrated loss for every step, by its derivatives."""

import jax
import jax.numpy as jnp

from squentropy_jax._core import labels as prelude
from squentropy_jax.reweighting import calibrated_loss_derivatives


def ensloss(
  key: jax.Array,
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  box_cox: jax.typing.ArrayLike = 0.0,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Batch statistic: a surrogate with the gradient of a loss drawn at random.

  For margins :math:`s_i = \pm z_i`, positive where the label is 1,

  .. math::
    \ell_i = d_i s_i ,

  with :math:`d_i` of :func:`calibrated_loss_derivatives`, constants to
  differentiation. It is to loss functions what dropout is to units. **Its value
  means nothing**: only its gradient does. Watch the accuracy, and calibrate
  before you read off probabilities. All entries are one set, so the losses of
  two halves of a batch are not those of the batch.

  Args:
    key: A key of :func:`jax.random.key`, a new one for every step.
    logits: Scores, any shape, any floating dtype.
    labels: The integers 0 and 1, of the same shape.
    box_cox: Shape of the distribution of derivatives; 0 is log-normal.
    where: Which entries to keep, booleans of the same shape. Dropped ones have
      value and gradient 0.

  Returns:
    The surrogate of each entry, of the logits' shape, float32 or wider.

  Raises:
    TypeError: If ``key`` is not a key, ``logits`` not floating, or ``labels``
      not integers.
    ValueError: If shapes differ, or if a concrete label is neither 0 nor 1 (a
      traced one gives NaN).

  Examples:
    >>> logits, labels = jnp.array([0.5, -1.0, 2.0]), jnp.array([1, 1, 0])
    >>> def loss(logits):
    ...   return losses.ensloss(jax.random.key(0), logits, labels).mean()
    >>> print(jax.grad(loss)(logits) < 0)
    [ True  True False]

  References:
    Dai, `EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing
    Overfitting in Classification <https://arxiv.org/abs/2409.00908>`_, ICML
    2025.

  .. seealso:: :func:`squentropy_jax.losses.calibrated_loss_derivatives`
  """
  if not jnp.issubdtype(jnp.asarray(labels).dtype, jnp.integer):
    raise TypeError(
      "labels must be 0 or 1, integers, got dtype "
      f"{jnp.asarray(labels).dtype}; the loss has no soft labels."
    )
  z, y, keep = prelude.checked_entries(logits, labels, where)
  margins = (2.0 * y - 1.0) * z
  slopes = calibrated_loss_derivatives(
    key, margins, box_cox=box_cox, where=keep
  )
  return slopes * margins
