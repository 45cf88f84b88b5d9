# SPDX-License-Identifier: Apache-2.0
"""The mode and the blocks of a head, by a closed rule and a budget."""

from collections.abc import Callable
import logging
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core import checks
from squentropy_jax.fused._head import Arrays, Head
from squentropy_jax.fused._mesh import Axes, Layout

_logger = logging.getLogger(__name__)

MODES = ("forward", "frozen_kernel", "grad_in_forward", "recompute")
# A tile of this many logits keeps a processor busy and stays in a large cache.
_TILE = 2**21
_CLASSES = 2048
_POWERS = tuple(2**i for i in range(7, 23))
_ROWS = tuple(p for p in _POWERS if p <= 4096)
# With fewer rows at a time, to compute the logits again costs less.
_LEAST_ROWS = 128
_LEAST_BUDGET = 16 * 2**20
# Smaller tiles take longer.
_FAST = (512, 1024)


class Plan(NamedTuple):
  """How a linear head does its work; the numbers do not depend on it.

  Pass it as ``plan=`` to the functions of ``fused`` to choose how the gradient
  is computed, or how much temporary memory may be used.

  Attributes:
    mode: ``None`` chooses from what is differentiated and from the budget.
      ``"forward"`` computes one matrix product and raises a ValueError if the
      result is differentiated. ``"frozen_kernel"`` treats kernel and bias as
      constants and computes the features' gradient in one pass, with two
      products. ``"grad_in_forward"`` computes the gradient in the forward pass,
      with three products. It needs `linear_loss_sum`. ``"recompute"`` computes
      the logits again for the gradient, with four products.
    memory_budget: A limit for the temporary memory on each device, in bytes.
      The size of the tiles is reduced until they fit, down to a smallest tile.
      If what does not depend on their size leaves little of the budget, a tile
      of 512 rows and 1024 classes is used anyway, unless the tile alone needs
      more than the budget. The default is 1.5 times the size of the gradients
      of features and kernel in float32, and at least 16 MiB.

  Examples:
    >>> fused.Plan("recompute", memory_budget=2**26)
    Plan(mode='recompute', memory_budget=67108864)
  """

  mode: str | None = None
  memory_budget: int | None = None


def checked_plan(plan: Any) -> Plan:
  """The plan, or an error that names what is wrong with it."""
  if plan is None:
    return Plan()
  if not isinstance(plan, Plan):
    raise TypeError(
      f"plan must be a fused.Plan, got {plan!r}. Pass fused.Plan(mode=..., "
      "memory_budget=...)."
    )
  if plan.mode is not None and plan.mode not in MODES:
    raise ValueError(
      f"mode of plan must be one of {MODES} or None, got {plan.mode!r}. None "
      "chooses by what is differentiated."
    )
  if plan.memory_budget is None:
    return plan
  budget = checks.as_count("memory_budget of plan", plan.memory_budget)
  return plan._replace(memory_budget=budget)


def refuse_grad_in_forward(plan: Plan) -> None:
  if plan.mode == "grad_in_forward":
    raise ValueError(
      "mode 'grad_in_forward' of plan needs one number to differentiate, got a "
      "result for each row. Use fused.linear_loss_sum, or mode 'recompute'."
    )


class Blocks(NamedTuple):
  """How many rows and how many classes a tile has."""

  rows: int
  classes: int


class Size(NamedTuple):
  """What the memory of a mode depends on, on one device.

  Attributes:
    rows: Number of rows.
    classes: Number of classes.
    width: Number of features.
    operand: Bytes of a number in the matrix products.
    sum: Bytes of a logit, a sum or a loss.
    gathered: Number of classes of a kernel that is gathered at once, or 0.
  """

  rows: int
  classes: int
  width: int
  operand: int
  sum: int
  gathered: int = 0

  def budget(self) -> int:
    """The two gradients in float32, and half as much again."""
    return max(_LEAST_BUDGET, 6 * self.width * (self.rows + self.classes))


def size_of(head: Head, layout: Layout, arrays: Arrays) -> Size:
  """The size of the problem on one device."""

  def here(n: int, axes: Axes, gathered: Axes) -> int:
    n = -(-n // layout.shards(axes))
    if layout.mesh is None:
      return n * (lax.axis_size(gathered) if gathered else 1)
    return n * layout.shards(gathered)

  *batch, width = arrays.features.shape
  over = tuple(a for a in layout.classes if a not in layout.class_axes)
  rows = math.prod(
    here(n, axes, tuple(a for a in axes if a in layout.gathered_rows))
    for n, axes in zip(batch, layout.rows or ((),) * len(batch), strict=True)
  )
  classes = here(arrays.kernel.shape[head.class_axis], layout.classes, over)
  if layout.mesh is None and layout.width:
    width *= lax.axis_size(layout.width)
  moved = bool(over or layout.kernel_width)
  return Size(
    rows=rows,
    classes=classes,
    width=width,
    operand=head.operand_dtype.itemsize,
    sum=head.sum_dtype.itemsize,
    gathered=classes if moved and not head.tile_axes else 0,
  )


def fixed_bytes(mode: str, size: Size, rows: int) -> int:
  """The part of `temporary_bytes` that does not depend on the classes."""
  n, v, d, operand, wide, gathered = size
  narrow = operand < wide
  fixed = gathered * d * operand
  if mode == "frozen_kernel":
    # A sum of products for each of two fields.
    return fixed + 2 * n * d * wide
  if mode in ("grad_in_forward", "recompute") and narrow:
    fixed += n * d * wide
  if mode == "grad_in_forward":
    apart = v * d * wide if narrow and rows < n else 0
    fixed += rows * v * wide + rows * d * wide + apart
  return fixed


def temporary_bytes(mode: str, size: Size, blocks: Blocks) -> int:
  """What a mode needs in addition to its arguments and results, at least."""
  rows, classes = blocks
  _, _, d, operand, wide, _ = size
  tile = rows * classes * wide
  part = (rows + classes) * d * operand
  part += rows * classes * (operand if operand < wide else 0)
  part += fixed_bytes(mode, size, rows)
  if mode == "forward":
    return 2 * tile + part
  if mode == "frozen_kernel":
    # A tile for the derivative of a sum.
    return 3 * tile + part
  gradient = (rows + classes) * d * wide
  return (2 if mode == "recompute" else 1) * tile + part + gradient


def _balanced(total: int, most: int) -> int:
  """The size of the fewest blocks of at most that many, made even."""
  count = max(1, -(-total // most))
  return max(1, -(-total // count))


def blocks_within(
  mode: str, size: Size, budget: int | None, whole_rows: bool = False
) -> Blocks | None:
  """The blocks that waste least within the budget; None if none is within."""
  rows_of = {_balanced(size.rows, p) for p in _ROWS}
  found = [
    Blocks(rows, classes)
    for rows in ({size.rows} if whole_rows else rows_of)
    for classes in {min(p, size.classes) for p in _POWERS}
    if classes <= max(_CLASSES, _TILE // rows)
  ]
  budget = size.budget() if budget is None else budget
  found = [b for b in found if temporary_bytes(mode, size, b) <= budget]
  # The cost of a tile is the sums of its rows and the kernel of its classes.
  return min(found, key=lambda b: (1 / b.rows + 1 / b.classes, b), default=None)


def blocks_for(
  mode: str, size: Size, budget: int | None, whole_rows: bool = False
) -> Blocks:
  """`blocks_within`, or for a small budget the least that is fast."""
  smallest = Blocks(
    size.rows if whole_rows else _balanced(size.rows, _ROWS[0]),
    min(_POWERS[0], size.classes),
  )
  budget = size.budget() if budget is None else budget
  # What no tile makes smaller is no reason for tiles that take longer.
  rows, classes = _FAST
  if whole_rows or mode == "grad_in_forward":
    rows = smallest.rows
  fast = Blocks(min(rows, size.rows), min(classes, size.classes))
  fixed = fixed_bytes(mode, size, smallest.rows)
  tile = temporary_bytes(mode, size, fast) - fixed
  budget = max(budget, fixed + min(budget, tile))
  return blocks_within(mode, size, budget, whole_rows) or smallest


def log(
  mode: str, size: Size, blocks: Blocks, differentiated: bool = True
) -> None:
  """Writes a line to the log that says how the work is done."""
  _logger.debug(
    "%s: mode %s, %d rows by %d classes in tiles of %d by %d, about %.1f MiB",
    "with its gradient" if differentiated else "without a gradient",
    mode,
    size.rows,
    size.classes,
    *blocks,
    temporary_bytes(mode, size, blocks) / 2**20,
  )


def grad_in_forward_fits(size: Size, budget: int | None) -> bool:
  """Whether a gradient of a sum is best formed in the forward pass."""
  blocks = blocks_within("grad_in_forward", size, budget)
  return blocks is not None and blocks.rows >= min(size.rows, _LEAST_ROWS)


def over_blocks(
  step: Callable[..., tuple[Any, Any]],
  carry: Any,
  total: int,
  size: int,
  xs: tuple[Any, Any] = (None, None),
) -> tuple[Any, tuple[Any, Any]]:
  """Folds ``carry, y = step(carry, start, width, x)`` over ``total`` in blocks.

  The last block may be narrower. ``xs``, and what is returned with the carry,
  are the values of the full blocks, stacked, and that of the narrow one.
  """
  full, tail = divmod(total, size)
  stacked = last = None
  if full > 1:
    starts = size * jnp.arange(full, dtype=jnp.int32)
    carry, stacked = lax.scan(
      lambda c, x: step(c, x[0], size, x[1]), carry, (starts, xs[0])
    )
  elif full:
    # A loop of one turn would hide from the compiler that the carry is 0.
    only = jax.tree.map(lambda x: x[0], xs[0])
    carry, y = step(carry, 0, size, only)
    stacked = jax.tree.map(lambda y: y[None], y)
  if tail or not full:
    carry, last = step(carry, size * full, tail, xs[1])
  return carry, (stacked, last)


def cut(tree: Any, start: jax.Array | int, width: int) -> Any:
  """Cuts ``width`` rows from ``start`` on out of every array."""
  return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, width), tree)


def over_rows(
  step: Callable[..., tuple[Any, Any]], carry: Any, arrays: Any, size: int
) -> tuple[Any, Any]:
  """Folds ``carry, y = step(carry, rows)``; the ``y`` are put together."""
  total = jax.tree.leaves(arrays)[0].shape[0]
  carry, (stacked, last) = over_blocks(
    lambda carry, start, width, _: step(carry, cut(arrays, start, width)),
    carry,
    total,
    size,
  )
  parts = [jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), stacked), last]
  parts = [part for part in parts if part is not None]
  return carry, jax.tree.map(lambda *ys: jnp.concatenate(ys), *parts)
