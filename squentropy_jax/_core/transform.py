# SPDX-License-Identifier: Apache-2.0
"""What a row loss does to the logits before their statistics."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from squentropy_jax._core.distributions import possible_logits, row_unit


class Transform(NamedTuple):
  """Transforms the logits before their statistics are computed.

  Attributes:
    divide_by: The hyper-parameter that divides the logits, or None.
    multiply_by: The hyper-parameter that multiplies the logits, or None. At
      most one of both is given.
    subtract: ``"max"`` or ``"mean"`` of the row is subtracted, or None. It is
      for losses that do not change if a constant is added to all logits, and
      avoids cancellation in dense losses. A fused head does not subtract it.
    rescale: Whether a row with logits above 1e12 is first divided by a unit, so
      that no square overflows. The formula then has a second positional
      argument ``unit`` with the default 1. A fused head does not rescale.
  """

  divide_by: str | None = None
  subtract: str | None = None
  rescale: bool = False
  multiply_by: str | None = None

  def __call__(self, z: jax.Array, numbers: dict[str, jax.Array]) -> jax.Array:
    """Transforms logits with the class axis last; ``-inf`` is unchanged.

    A logit that overflows becomes the smallest finite number, so that its class
    remains possible.
    """
    possible, finite = possible_logits(z)
    if self.rescale:
      finite = finite / row_unit(z)
    if self.subtract == "max":
      top = jax.lax.stop_gradient(z.max(-1, keepdims=True))
      # An infinite logit would make the derivative in the divisor NaN.
      finite = jnp.where(possible, z - top, jnp.zeros_like(z))
    elif self.subtract == "mean":
      count = jnp.maximum(possible.sum(-1, keepdims=True, dtype=jnp.int32), 1)
      mean = finite.sum(-1, keepdims=True) / count.astype(z.dtype)
      # If the mean overflows, no sum is accurate, so nothing is subtracted.
      mean = jnp.where(jnp.isinf(mean), jnp.zeros_like(mean), mean)
      finite = finite - jax.lax.stop_gradient(mean)
    lost = finite == -jnp.inf
    finite = jnp.where(lost, jnp.zeros_like(z), finite)
    if self.divide_by is not None:
      finite = finite / numbers[self.divide_by]
      lost |= finite == -jnp.inf
    if self.multiply_by is not None:
      finite = finite * numbers[self.multiply_by]
      lost |= finite == -jnp.inf
    finite = jnp.where(lost, float(jnp.finfo(z.dtype).min), finite)
    return jnp.where(possible, finite, z)

  def factor(self, numbers: Mapping[str, jax.Array]) -> jax.Array | None:
    """Returns the factor of the logits in a fused head; None means 1."""
    if self.multiply_by is not None:
      return numbers[self.multiply_by]
    return None if self.divide_by is None else 1.0 / numbers[self.divide_by]

  @property
  def scaled_by(self) -> str | None:
    """The hyper-parameter that divides or multiplies the logits, or None."""
    return self.multiply_by if self.divide_by is None else self.divide_by
