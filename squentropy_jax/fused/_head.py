# SPDX-License-Identifier: Apache-2.0
"""A linear head: what is static about it, and its arrays."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core.class_sums import RELATIVE, SUMS


class Head(NamedTuple):
  """What is static about a linear head and its loss.

  Attributes:
    class_axis: The class axis of the kernel, 0 or 1.
    soft_cap: Logits become ``soft_cap * tanh(logits / soft_cap)``, if not None.
    operand_dtype: That of features and kernel in the matrix products.
    reads: The fields of `ClassSums` that are computed.
    constant: Those of ``reads`` that are not differentiated.
    scaled: Whether the loss multiplies the logits of each row by a factor.
    tile_axes: Mesh axes over which each tile of the kernel is gathered.
    reduce_dtype: The dtype in which devices add up gradients, or None for that
      of the sums.
  """

  class_axis: int
  soft_cap: float | None
  operand_dtype: np.dtype
  reads: frozenset[str] = frozenset()
  constant: frozenset[str] = frozenset()
  scaled: bool = False
  tile_axes: tuple[str, ...] = ()
  reduce_dtype: np.dtype | None = None

  @property
  def sum_dtype(self) -> np.dtype:
    """The dtype of logits, sums and losses."""
    return checks.compute_dtype(self.operand_dtype)

  @property
  def sums(self) -> tuple[str, ...]:
    """The names in `SUMS` that are computed."""
    return tuple(name for name in SUMS if name in self.reads)

  @property
  def differentiable_sums(self) -> tuple[str, ...]:
    """The names in `SUMS` that are differentiated."""
    return tuple(name for name in self.sums if name not in self.constant)

  @property
  def has_exps(self) -> bool:
    """Whether the loss reads a sum of exponentials."""
    return bool(self.reads & RELATIVE)

  @property
  def has_max(self) -> bool:
    """Whether the largest logit is computed."""
    return self.has_exps or "max" in self.reads

  @property
  def has_max_id(self) -> bool:
    """Whether it is computed which class has the largest logit."""
    # Without a sum, NaN would be lost in the maximum over devices.
    constant = "max" in self.constant and bool(self.sums)
    return "max" in self.reads and not constant


def checked_cap(soft_cap: Any) -> float | None:
  """The soft cap as a number, or None."""
  if soft_cap is None:
    return None
  if isinstance(soft_cap, jax.core.Tracer):
    raise TypeError(
      "soft_cap must be a number, got a traced array. It is static: pass a "
      "Python float."
    )
  checks.check_real("soft_cap", soft_cap)
  cap = float(soft_cap)
  if not 0 < cap < math.inf:
    raise ValueError(
      f"soft_cap must be in (0, inf), got {cap}. Pass None for no cap."
    )
  return cap


def checked_dtype(name: str, dtype: Any) -> np.dtype | None:
  """The dtype of a setting, or None."""
  if dtype is None:
    return None
  try:
    # np.dtype of an array is that of its entries; a dtype has a shape too.
    is_array = hasattr(dtype, "shape") and not isinstance(dtype, np.dtype)
    found = None if is_array else np.dtype(dtype)
  except TypeError:
    found = None
  if found == np.float64 and not jax.config.read("jax_enable_x64"):
    raise TypeError(
      f"{name} must be float32 or narrower without jax_enable_x64, got "
      f"{dtype!r}."
    )
  if (
    found is None
    or not jnp.issubdtype(found, jnp.floating)
    or found.itemsize < 2
  ):
    raise TypeError(
      f"{name} must be a floating dtype of 16 bits or more, got {dtype!r}. "
      "Pass jnp.bfloat16 or jnp.float32."
    )
  return found


class Arrays(NamedTuple):
  """A head's arrays, or some rows or classes of them.

  All but the keys are differentiated. A class whose key is that of a row is
  impossible in this row, unless it is a target.

  Attributes:
    features: ``[R, d]``.
    kernel: ``[d, V]``, or ``[V, d]`` for class axis 0.
    bias: ``[V]``; ``-inf`` makes a class impossible.
    factor: ``[R]``; multiplies the capped logits of each row.
    row_keys: ``[R]``, integers, or None if no class has a key.
    class_keys: ``[V]``, integers, or None.
  """

  features: jax.Array
  kernel: jax.Array
  bias: jax.Array | None = None
  factor: jax.Array | None = None
  row_keys: jax.Array | None = None
  class_keys: jax.Array | None = None

  @property
  def differentiated(self) -> dict[str, Any]:
    """The arrays that may have a gradient, by name."""
    names = ("features", "kernel", "bias", "factor")
    found = {name: getattr(self, name) for name in names}
    return {name: x for name, x in found.items() if x is not None}

  @property
  def all_possible(self) -> bool:
    """Whether no class is impossible in any row."""
    return self.bias is None and self.class_keys is None


def operand_dtype(features: Any, kernel: Any) -> np.dtype:
  """The dtype that features and kernel have in the products by default."""
  # Eight bits are widened: no other type promotes with them.
  wide = [
    x.dtype if x.dtype.itemsize > 1 else np.dtype(np.float32)
    for x in (features, kernel)
  ]
  return np.dtype(jnp.promote_types(*wide))


# Cotangents of some of the `Arrays`, by name.
Gradient = dict[str, jax.Array]
# Cotangents of the target and of those fields of `ClassSums` that have one.
Cotangents = dict[str, jax.Array]
