# SPDX-License-Identifier: Apache-2.0
"""EnsLoss: a new random loss in every step.

Each step draws the derivatives of another convex, calibrated loss. They are
assigned to the examples of the batch by the order of their margins.
"""

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks, entries
from squentropy_jax.reweighting import calibrated_loss_derivatives


def ensloss(
  key: jax.Array,
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  box_cox: jax.typing.ArrayLike = 0.0,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes a surrogate whose gradient is that of a loss drawn at random.

  Use when a binary classifier overfits: it is to loss functions what dropout
  is to units. Pass a new key in every step.

  Avoid when you watch the loss: only its gradient has a meaning. Watch the
  accuracy, and recalibrate before you read probabilities from the logits.

  For margins :math:`s_i = (2 y_i - 1) z_i`, positive where the prediction is
  right,

  .. math::
    \ell_i = d_i s_i ,

  with derivatives :math:`d_i` of
  :func:`squentropy_jax.reweighting.calibrated_loss_derivatives`, constants to
  differentiation. The derivatives depend on the order of all margins of the
  batch, so the losses of two halves of a batch are not those of the batch.

  Args:
    key: A key of :func:`jax.random.key`, a new one for every step.
    logits: Scores, any shape, any floating dtype; all entries are one batch.
    labels: Booleans or the integers 0 and 1, of the same shape.
    box_cox: Parameter of the distribution of derivatives; 0 is log-normal.
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
    >>> key = jax.random.key(0)
    >>> grads = jax.grad(lambda z: losses.ensloss(key, z, labels).sum())(logits)
    >>> print(grads < 0)
    [ True  True False]

  References:
    Dai, `EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing
    Overfitting in Classification <https://arxiv.org/abs/2409.00908>`_, ICML
    2025.

  .. seealso:: :func:`squentropy_jax.reweighting.calibrated_loss_derivatives`
  """
  dtype = checks.as_array(labels, "labels").dtype
  if jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(
      f"labels must be 0 or 1, integers, got dtype {dtype}. The loss has no "
      "soft labels: pass jnp.asarray(labels, jnp.int32)."
    )
  z, y, keep = entries.checked_entries(logits, labels, where)
  margins = (2.0 * y - 1.0) * z
  derivatives = calibrated_loss_derivatives(
    key, margins, box_cox=box_cox, where=keep
  )
  return derivatives * margins
