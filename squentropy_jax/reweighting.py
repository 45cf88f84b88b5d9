# SPDX-License-Identifier: Apache-2.0
"""Weights of examples, as arrays that a loss takes."""

import functools

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks, elementwise, entries
from squentropy_jax._core.hyperparameters import Hyperparameters

# Keeps every derivative below 0, which makes the loss calibrated.
_MARGIN_BELOW_ZERO = 1e-6
_HYPERPARAMETERS = Hyperparameters(
  {"box_cox": "(-inf, inf)", "clip": "(0, inf)", "tail": bool}, {}
)


def _inverse_box_cox(draws: jax.Array, box_cox: jax.Array) -> jax.Array:
  """``(1 + box_cox z)^(1 / box_cox)``, ``exp(z)`` at 0; of 0 its limit."""
  outside = 1.0 + box_cox * draws <= 0.0
  limit = jnp.where(box_cox < 0, jnp.inf, 0.0).astype(draws.dtype)
  inside = jnp.where(outside, jnp.zeros_like(draws), draws)
  scale = jnp.broadcast_to(box_cox, draws.shape)
  value = jnp.exp(elementwise.log1p_over(inside, scale))
  return jnp.where(outside, limit, value)


@functools.partial(jax.jit, static_argnums=5, inline=True)
def _assigned(
  draws: jax.Array,
  margins: jax.Array,
  keep: jax.Array | None,
  box_cox: jax.Array,
  clip: jax.Array,
  tail: bool,
) -> jax.Array:
  """Derivatives made of the draws, the largest for the smallest margin."""
  sizes = _inverse_box_cox(draws, box_cox).ravel()
  if keep is None:
    order = jnp.argsort(margins.ravel())
  else:
    # The dropped last, so that the kept entries share the kept draws.
    sizes = jnp.where(keep.ravel(), sizes, -jnp.inf)
    order = jnp.lexsort((margins.ravel(), ~keep.ravel()))
  sizes = -jnp.sort(-sizes)
  ranks = jnp.argsort(order)
  derivatives = -jnp.minimum(sizes[ranks].reshape(margins.shape), clip)
  if tail:
    beyond = margins > 1.0
    derivatives /= jnp.where(beyond, margins, jnp.ones_like(margins))
  derivatives -= _MARGIN_BELOW_ZERO
  return derivatives if keep is None else jnp.where(keep, derivatives, 0.0)


def calibrated_loss_derivatives(
  key: jax.Array,
  margins: jax.typing.ArrayLike,
  *,
  box_cox: jax.typing.ArrayLike = 0.0,
  clip: jax.typing.ArrayLike = 1.0,
  tail: bool = True,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Draws the derivatives of a random convex, calibrated loss for a batch.

  Use when you write a training step of your own around
  :func:`squentropy_jax.losses.ensloss`, which multiplies the margins by these
  derivatives.

  Draws :math:`g_i \sim N(0, 1)` are made positive and sorted. The largest goes
  to the smallest of the margins :math:`s_i`,

  .. math::
    d_i = -\min\bigl((1 + \lambda g)^{1 / \lambda}_{(i)}, \text{clip}\bigr)
          \cdot \min(1, 1 / s_i)^{[\text{tail}]} - 10^{-6} .

  Up to margin 1 the derivatives increase with the margin, as those of a convex
  loss do. All are negative, which makes the loss calibrated. Each depends on
  the order of all margins of the batch.

  Args:
    key: A key of :func:`jax.random.key`, a new one for every step.
    margins: Scores times the sign of the label, any shape, any floating dtype;
      all entries are one batch.
    box_cox: :math:`\lambda` of the inverse Box-Cox transformation; 0 is the
      exponential function.
    clip: Bound of the absolute derivatives, above 0.
    tail: Whether derivatives decrease as one over the margin beyond 1.
    where: Which entries to keep, booleans of the same shape. Dropped ones get 0
      and use no draw.

  Returns:
    The derivatives, of the margins' shape, float32 or wider; constants to
    differentiation.

  Raises:
    TypeError: If ``key`` is not a key or ``margins`` not floating.
    ValueError: If the shape of ``where`` differs or a concrete ``clip`` is not
      above 0.

  Examples:
    >>> margins = jnp.array([-2.0, 0.5, 3.0, -1.0])
    >>> derivatives = reweighting.calibrated_loss_derivatives(
    ...   jax.random.key(0), margins
    ... )
    >>> print(jnp.argsort(derivatives))
    [0 3 1 2]

  References:
    Dai, `EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing
    Overfitting in Classification <https://arxiv.org/abs/2409.00908>`_, ICML
    2025.

  .. seealso:: :func:`squentropy_jax.losses.ensloss`
  """
  checks.check_key(key)
  (array,), keep = entries.checked_arrays({"margins": margins}, where)
  numbers, static = entries.checked_numbers(
    _HYPERPARAMETERS,
    {"box_cox": box_cox, "clip": clip, "tail": tail},
    array,
    keep,
  )
  array = jax.lax.stop_gradient(array)
  draws = jax.random.normal(key, array.shape, array.dtype)
  return jax.lax.stop_gradient(
    _assigned(
      draws,
      array,
      keep,
      numbers["box_cox"],
      numbers["clip"],
      dict(static)["tail"],
    )
  )
