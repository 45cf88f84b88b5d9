# SPDX-License-Identifier: Apache-2.0
"""One tile of logits, some rows by some classes: its sums and its cotangent."""

from collections.abc import Mapping
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core.class_sums import (
  RELATIVE,
  SUMS,
  ClassSums,
  Sum,
  merge,
  no_classes,
  shift_of,
)


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
    found = np.dtype(dtype) if not hasattr(dtype, "shape") else None
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
  """What is differentiated: a head's arrays, or some rows or classes of them.

  Attributes:
    features: ``[R, d]``.
    kernel: ``[d, V]``, or ``[V, d]`` for class axis 0.
    bias: ``[V]``; ``-inf`` makes a class impossible.
    factor: ``[R]``; multiplies the capped logits of each row.
  """

  features: jax.Array
  kernel: jax.Array
  bias: jax.Array | None = None
  factor: jax.Array | None = None


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


def product(
  a: jax.Array, b: jax.Array, axis_a: int, axis_b: int, dtype: jnp.dtype
) -> jax.Array:
  """The matrix product that sums over the named axes."""
  dimensions = (((axis_a,), (axis_b,)), ((), ()))
  return lax.dot_general(a, b, dimensions, preferred_element_type=dtype)


def rounded(g: jax.Array, dtype: np.dtype) -> jax.Array:
  """A sum over devices, cast to a narrower dtype."""
  narrow, wide = jnp.finfo(dtype), jnp.finfo(g.dtype)
  if narrow.bits < wide.bits and narrow.nexp == wide.nexp:
    # Else a TPU takes the cast before the sum.
    g = lax.reduce_precision(g, narrow.nexp, narrow.nmant)
  return g.astype(dtype)


def columns(ids: jax.Array, start: jax.Array | int, width: int) -> jax.Array:
  """Where class ids stand in a tile; ``width`` and more if they do not."""
  outside = width + lax.broadcasted_iota(jnp.int32, ids.shape, ids.ndim - 1)
  local = ids - start
  return jnp.where((local >= 0) & (local < width), local, outside)


# A scatter costs a CPU nothing, and a compare with every class id does; on
# accelerators the compare joins the pass that reads the tile.


def _hits(tile: jax.Array, cols: jax.Array, k: int) -> jax.Array:
  ids = lax.broadcasted_iota(jnp.int32, tile.shape, 1)
  return ids == cols[:, k : k + 1]


def _places(cols: jax.Array) -> tuple[jax.Array, jax.Array]:
  return lax.broadcasted_iota(jnp.int32, cols.shape, 0), cols


def pick(tile: jax.Array, cols: jax.Array) -> jax.Array:
  """The entries at ``cols`` ``[R, K]``; 0 for columns outside the tile."""

  def by_compare(tile: jax.Array, cols: jax.Array) -> jax.Array:
    zero = jnp.zeros_like(tile)
    found = [
      jnp.where(_hits(tile, cols, k), tile, zero).sum(-1)
      for k in range(cols.shape[1])
    ]
    return jnp.stack(found, axis=-1)

  def by_gather(tile: jax.Array, cols: jax.Array) -> jax.Array:
    return tile.at[_places(cols)].get(mode="fill", fill_value=0)

  return lax.platform_dependent(tile, cols, cpu=by_gather, default=by_compare)


def mark(tile: jax.Array, cols: jax.Array, values: jax.Array) -> jax.Array:
  """The tile with ``values`` ``[R, K]`` at ``cols``."""

  def by_compare(
    tile: jax.Array, cols: jax.Array, values: jax.Array
  ) -> jax.Array:
    for k in range(cols.shape[1]):
      tile = jnp.where(_hits(tile, cols, k), values[:, k : k + 1], tile)
    return tile

  def by_scatter(
    tile: jax.Array, cols: jax.Array, values: jax.Array
  ) -> jax.Array:
    return tile.at[_places(cols)].set(values, mode="drop", unique_indices=True)

  return lax.platform_dependent(
    tile, cols, values, cpu=by_scatter, default=by_compare
  )


def finite(tile: jax.Array) -> jax.Array:
  """The tile with 0 for ``-inf``; NaN and inf become NaN."""
  return jnp.where(tile == -jnp.inf, jnp.zeros_like(tile), tile + 0.0 * tile)


def logits(head: Head, arrays: Arrays) -> jax.Array:
  """The tile of logits, in the dtype of sums."""
  dtype = head.operand_dtype
  z = product(
    arrays.features.astype(dtype),
    arrays.kernel.astype(dtype),
    1,
    1 - head.class_axis,
    head.sum_dtype,
  )
  if arrays.bias is not None:
    z += arrays.bias.astype(z.dtype)[None]
  if head.soft_cap is not None:
    z = head.soft_cap * jnp.tanh(z / head.soft_cap)
  if arrays.factor is not None:
    z *= arrays.factor[:, None]
  if arrays.bias is not None:
    # Neither a cap nor a factor makes an impossible class possible.
    z = jnp.where((arrays.bias == -jnp.inf)[None], -jnp.inf, z)
  return z


def logit_derivative(
  head: Head, factor: jax.Array | None, z: jax.Array
) -> jax.Array:
  """The derivative of the logits ``z`` by the products plus bias.

  ``factor`` has the shape of ``z`` or broadcasts to it.
  """
  out = (
    jnp.ones_like(z) if factor is None else jnp.broadcast_to(factor, z.shape)
  )
  if head.soft_cap is not None:
    capped = finite(z) if factor is None else finite(z) / factor
    # The cap has no derivative at NaN, nor at an impossible class.
    one = jnp.where(z == -jnp.inf, 0.0, 1.0) + 0.0 * capped
    out *= one - jnp.square(capped / head.soft_cap)
  return out


def as_column(factor: jax.Array | None) -> jax.Array | None:
  """The factor of each row with a class axis of length 1."""
  return None if factor is None else factor[:, None]


def sum_derivative(rule: Sum, z: jax.Array, exps: jax.Array) -> jax.Array:
  """The derivative of a sum by every logit, 0 for ``-inf``, over its factor."""
  derivative = rule.derivative(finite(z), exps)
  # A mask that is not needed would take the memory of a tile.
  if rule.constant:
    derivative = jnp.where(z == -jnp.inf, jnp.zeros_like(z), derivative)
  return derivative


class Tile(NamedTuple):
  """A tile of logits whose sums are known.

  Attributes:
    logits: The logits, ``-inf`` at the targets.
    exps: Their exponentials relative to the largest logit so far.
    arrays: The rows and classes of the tile.
  """

  logits: jax.Array
  exps: jax.Array
  arrays: Arrays


class RowSums(NamedTuple):
  """The class sums of rows, and how they change with the factor.

  Attributes:
    classes: The sums over the classes that are no target of the row.
    by_factor: Has for each sum the sum of its derivative by each logit, times
      that logit. Its ``max`` is that of ``classes``. None if the loss has no
      factor.
  """

  classes: ClassSums
  by_factor: ClassSums | None


def no_row_sums(head: Head, rows: int, targets: int) -> RowSums:
  """The sums over no class."""
  dtype = head.sum_dtype
  none = no_classes(jnp.zeros((rows, targets), dtype), jnp.zeros(rows, dtype))
  return RowSums(none, none if head.scaled else None)


def add_tile(
  head: Head,
  before: RowSums,
  part: Arrays,
  ids: jax.Array,
  start: jax.Array | int,
) -> tuple[RowSums, Tile]:
  """The sums with one more tile of classes, and the tile."""
  z = logits(head, part)
  sums = before.classes
  cols = columns(ids, start, z.shape[1])
  target = sums.target + pick(z, cols)
  z = mark(z, cols, jnp.full_like(target, -jnp.inf))
  found = no_classes(target, sums.max)
  exps = jnp.zeros_like(z)
  if head.has_max:
    # Relative to the largest logit of all tiles, so `merge` rescales one side.
    found = found._replace(max=jnp.maximum(sums.max, z.max(-1)))
  if head.has_exps:
    exps = jnp.exp(z - shift_of(found.max)[:, None])
  if head.has_max_id:
    max_id = start + jnp.argmax(z, axis=-1).astype(jnp.int32)
    found = found._replace(max_id=max_id)
  clean = finite(z)
  terms = {name: SUMS[name].term(clean, exps) for name in head.sums}
  after = merge(
    sums._replace(target=target),
    found._replace(**{name: x.sum(-1) for name, x in terms.items()}),
  )
  by_factor = before.by_factor
  if by_factor is not None:
    rates = {
      name: clean * SUMS[name].derivative(clean, exps) for name in head.sums
    }
    by_factor = merge(
      by_factor,
      found._replace(**{name: x.sum(-1) for name, x in rates.items()}),
    )
  return RowSums(after, by_factor), Tile(z, exps, part)


def cotangent(
  head: Head,
  part: Arrays,
  z: jax.Array,
  sums: ClassSums,
  cotangents: Cotangents,
  ids: jax.Array,
  start: jax.Array | int,
) -> jax.Array:
  """The cotangent of products plus bias, for logits ``z`` and their sums.

  The cotangent of ``target`` is that of its product plus bias already, and
  ``z`` may hold anything at the targets.
  """
  g = exps = jnp.zeros_like(z)
  if any(name in RELATIVE for name in cotangents):
    exps = jnp.exp(z - shift_of(sums.max)[:, None])
  for name, rule in SUMS.items():
    if name in cotangents:
      by_row = (rule.factor * cotangents[name])[:, None]
      if part.bias is None:  # No class is impossible.
        g += by_row * rule.derivative(z, exps)
      else:
        g += by_row * sum_derivative(rule, z, exps)
  if "max" in cotangents:
    largest = columns(sums.max_id[:, None], start, z.shape[1])
    g = mark(g, largest, pick(g, largest) + cotangents["max"][:, None])
  g *= logit_derivative(head, as_column(part.factor), z)
  return mark(g, columns(ids, start, z.shape[1]), cotangents["target"])


def factor_gradient(
  factor: jax.Array, sums: RowSums, cotangents: Mapping[str, jax.Array]
) -> jax.Array:
  """The gradient of the factor of each row, from the sums over all classes."""
  assert sums.by_factor is not None
  target = finite(sums.classes.target)
  by_row = (cotangents["target"] * target).sum(-1)
  if "max" in cotangents:
    by_row += cotangents["max"] * finite(sums.classes.max)
  for name, rule in SUMS.items():
    if name in cotangents:
      by_row += rule.factor * cotangents[name] * getattr(sums.by_factor, name)
  return by_row / factor
