# SPDX-License-Identifier: Apache-2.0
r"""Masks for masked autoencoders that hide difficult patches.

A teacher sees the whole input and predicts the loss of every patch. The masks
hide the patches with the largest predicted losses. The teacher is the moving
average of the trained parameters,
``optax.incremental_update(params, teacher, 1 - decay)``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core.hyperparameters import Hyperparameters

_HYPERPARAMETERS = Hyperparameters({"hard_fraction": "[0, 1]"}, {})


def _floor(x: Any, xp: Any, error: float = 1.0) -> Any:
  """The integer part of a product, which may be rounded to below an integer.

  ``error`` is the relative error of the factors, in ulp of float32.
  """
  near = xp.round(x)
  tolerance = 4 * float(np.finfo(np.float32).eps) * error
  return xp.where(abs(x - near) <= tolerance * x, near, xp.floor(x))


def _num_hidden(num_patches: int, mask_ratio: float) -> int:
  if not checks.is_concrete(mask_ratio) or np.ndim(mask_ratio) != 0:
    raise TypeError(
      "mask_ratio must be one Python float and is static, got "
      f"{mask_ratio!r}. Under jax.jit bind it with functools.partial."
    )
  checks.check_interval("mask_ratio", mask_ratio, "[0, 1]")
  share = 1 - float(mask_ratio)
  # 1 - 0.9 is slightly less than 0.1.
  visible = _floor(num_patches * share, np, 1 / share if share else 1.0)
  return num_patches - int(visible)


@jax.jit
def _hidden(
  keys: jax.Array,
  losses: jax.Array,
  num_hidden: jax.Array,
  hard_fraction: jax.Array,
) -> jax.Array:
  place = jax.lax.broadcasted_iota(jnp.int32, losses.shape, losses.ndim - 1)
  ties, others = (jax.random.uniform(key, losses.shape) for key in keys)
  # The hardest first. NaN would be the last of either order.
  hardness = jnp.where(jnp.isnan(losses), -jnp.inf, losses)
  *_, order = jax.lax.sort((-hardness, ties, place), num_keys=2)
  wanted = num_hidden.astype(hard_fraction.dtype) * hard_fraction
  num_hard = _floor(wanted, jnp).astype(jnp.int32)
  if num_hard.ndim:
    num_hard = num_hard[..., None]
  # The hardest patches stay first, and the others follow in random order.
  rank = jnp.where(place < num_hard, -1.0, others)
  _, order = jax.lax.sort((rank, order), num_keys=1)
  _, hidden = jax.lax.sort((order, place < num_hidden), num_keys=1)
  return hidden


def hard_patch_mask(
  key: jax.Array,
  predicted_losses: jax.typing.ArrayLike,
  *,
  mask_ratio: float = 0.75,
  hard_fraction: jax.typing.ArrayLike,
) -> jax.Array:
  r"""Draws masks that hide the patches with the largest predicted losses.

  Use to train a masked autoencoder on patches that are difficult to
  reconstruct, with a ``hard_fraction`` that rises during the training (see
  :func:`hard_fraction`). With ``hard_fraction=0``, the masks are uniformly
  random.

  Of :math:`L` patches, :math:`M` are hidden. :math:`H` of them are those with
  the largest predicted losses, with ties broken at random. The others are drawn
  uniformly without replacement:

  .. math::
    M = L - \lfloor L (1 - \text{mask\_ratio}) \rfloor, \qquad
    H = \lfloor M \cdot \text{hard\_fraction} \rfloor

  A product within a few ulp of an integer is rounded to that integer.

  Args:
    key: A key of :func:`jax.random.key`, a new one for every step.
    predicted_losses: Predictions of a teacher that sees the whole input, shape
      ``[..., L]``, any floating dtype.
    mask_ratio: The share of hidden patches, in [0, 1], a static float.
    hard_fraction: The share of the hidden patches that are the most difficult
      ones, in [0, 1]: a scalar or one value for each mask, shape ``[...]``.

  Returns:
    The mask, booleans of shape ``[..., L]``, True for hidden patches. Exactly
    :math:`M` entries of each row are True. NaN ranks as the smallest loss. A
    traced ``hard_fraction`` is clipped to [0, 1], and NaN is taken as 0.

  Raises:
    TypeError: If the dtype of an argument does not fit, or ``mask_ratio`` is
      traced.
    ValueError: If a shape does not fit, or a concrete number is outside [0, 1].

  Examples:
    >>> losses = jnp.array([0.1, 0.9, 0.3, 0.7, 0.2, 0.5, 0.4, 0.6])
    >>> mask = masking.hard_patch_mask(
    ...   jax.random.key(0), losses, mask_ratio=0.5, hard_fraction=1.0
    ... )
    >>> print(jnp.flatnonzero(mask))
    [1 3 5 7]

  References:
    Wang et al., `Bootstrap Masked Visual Modeling via Hard Patches Mining
    <https://arxiv.org/abs/2312.13714>`_, 2023.
  """
  checks.check_key(key)
  losses = checks.as_floats(predicted_losses, "predicted_losses")
  if losses.ndim == 0 or losses.shape[-1] == 0:
    raise ValueError(
      "predicted_losses must have the shape [..., L] with at least one patch, "
      f"got {losses.shape}."
    )
  num_hidden = _num_hidden(losses.shape[-1], mask_ratio)
  dtype = checks.compute_dtype(losses.dtype)
  fraction = _HYPERPARAMETERS.as_arrays(
    {"hard_fraction": hard_fraction}, dtype, losses.shape[:-1]
  )["hard_fraction"]
  fraction = jnp.clip(jnp.nan_to_num(fraction), 0.0, 1.0)
  return _hidden(
    jax.random.split(key),
    jax.lax.stop_gradient(losses),
    jnp.int32(num_hidden),
    jax.lax.stop_gradient(fraction),
  )


def hard_fraction(
  step: jax.typing.ArrayLike, num_steps: jax.typing.ArrayLike
) -> jax.Array:
  r"""Computes the share of difficult patches at a step of the training.

  Use as the ``hard_fraction`` of :func:`hard_patch_mask`. It rises linearly to
  a half, so that a part of every mask stays random.

  .. math:: \frac{\min(\text{step} + 1, \text{num\_steps})}
                 {2 \, \text{num\_steps}}

  Args:
    step: The step or epoch, counted from 0; a scalar, which may be traced.
    num_steps: The number of steps or epochs of the training, above 0.

  Returns:
    A scalar in (0, 0.5], float32.

  Raises:
    TypeError: If an argument is not a real number.
    ValueError: If an argument is not a scalar, or a concrete one is out of
      range.

  Examples:
    >>> print(masking.hard_fraction(199, 800))
    0.125

  References:
    Wang et al., `Bootstrap Masked Visual Modeling via Hard Patches Mining
    <https://arxiv.org/abs/2312.13714>`_, 2023.
  """
  dtype = np.dtype(np.float32)
  now = checks.as_scalar("step", step, dtype, "[0, inf)")
  last = checks.as_scalar("num_steps", num_steps, dtype, "(0, inf)")
  return jnp.minimum(now + 1.0, last) / (2.0 * last)
