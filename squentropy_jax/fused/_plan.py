# SPDX-License-Identifier: Apache-2.0
"""The mode and the blocks of a head, by a closed rule and a budget."""

from typing import NamedTuple

from squentropy_jax.fused._blocks import Blocks

MODES = ("forward", "frozen_kernel", "grad_in_forward", "recompute")
# A tile of this many logits keeps a processor busy and stays in a large cache.
_TILE = 2**21
_CLASSES = 2048
_POWERS = tuple(2**i for i in range(7, 23))
_ROWS = tuple(p for p in _POWERS if p <= 4096)
# With fewer rows at a time, to compute the logits again costs less.
_LEAST_ROWS = 128
_LEAST_BUDGET = 16 * 2**20


class Size(NamedTuple):
  """What the memory of a mode depends on, on one device.

  Attributes:
    rows: Number of rows.
    classes: Number of classes.
    width: Number of features.
    operand: Bytes of a number in the matrix products.
    sum: Bytes of a logit, a sum or a loss.
  """

  rows: int
  classes: int
  width: int
  operand: int
  sum: int

  def budget(self) -> int:
    """The two gradients in float32, and half as much again."""
    return max(_LEAST_BUDGET, 6 * self.width * (self.rows + self.classes))


def temporary_bytes(mode: str, size: Size, blocks: Blocks) -> int:
  """What a mode needs in addition to its arguments and results, at least."""
  rows, classes = blocks
  n, v, d, operand, wide = size
  narrow = operand if operand < wide else 0
  tile = rows * classes * wide
  part = (rows + classes) * d * operand + rows * classes * narrow
  if mode == "forward":
    return 2 * tile + part
  if mode == "frozen_kernel":
    # A sum of products for each of two fields, and a tile for one of them.
    return 3 * tile + part + 2 * n * d * wide
  gradient = (rows + classes) * d * wide + (n * d * wide if narrow else 0)
  if mode == "recompute":
    return 2 * tile + part + gradient
  apart = v * d * wide if narrow and rows < n else 0
  return rows * v * wide + tile + part + gradient + rows * d * wide + apart


def _balanced(total: int, most: int) -> int:
  """The size of the fewest blocks of at most that many, made even."""
  count = max(1, -(-total // most))
  return max(1, -(-total // count))


def blocks_within(mode: str, size: Size, budget: int | None) -> Blocks | None:
  """The blocks that waste least within the budget; None if none is within."""
  found = [
    Blocks(rows, classes)
    for rows in {_balanced(size.rows, p) for p in _ROWS}
    for classes in {min(p, size.classes) for p in _POWERS}
    if classes <= max(_CLASSES, _TILE // rows)
  ]
  budget = size.budget() if budget is None else budget
  found = [b for b in found if temporary_bytes(mode, size, b) <= budget]
  # The cost of a tile is the sums of its rows and the kernel of its classes.
  return min(found, key=lambda b: (1 / b.rows + 1 / b.classes, b), default=None)


def blocks_at_least(mode: str, size: Size, budget: int | None) -> Blocks:
  """`blocks_within`, or the smallest there are."""
  smallest = Blocks(
    _balanced(size.rows, _ROWS[0]), min(_POWERS[0], size.classes)
  )
  return blocks_within(mode, size, budget) or smallest


def grad_in_forward_fits(size: Size, budget: int | None) -> bool:
  """Whether a gradient of a sum is best formed in the forward pass."""
  blocks = blocks_within("grad_in_forward", size, budget)
  return blocks is not None and blocks.rows >= min(size.rows, _LEAST_ROWS)
