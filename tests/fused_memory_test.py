# SPDX-License-Identifier: Apache-2.0
"""Temporary memory by the compiler's account: nothing is run or timed."""

import functools

import jax
import numpy as np
import pytest

from squentropy_jax import fused, losses
from squentropy_jax.fused import _plan

MIB = 2**20
# Rows, features, classes: the logits of the first would take 256 MiB.
SHAPES = {"A": (2048, 512, 32768), "B": (512, 256, 131072)}
LOSSES = [losses.cross_entropy, losses.squentropy]


@functools.cache
def temporary(loss, mode, shape, budget=None, *, targets=None, class_axis=1):
  """Bytes of value and gradients, as `linear_loss_sum` or `linear_loss`.

  For class ids, or for so many sparse targets of each row.
  """
  rows, width, classes = shape
  of_kernel = (width, classes) if class_axis else (classes, width)
  labels = jax.ShapeDtypeStruct((rows,), np.int32)
  if targets is not None:
    pair = ((rows, targets), np.int32), ((rows, targets), np.float32)
    labels = tuple(jax.ShapeDtypeStruct(*x) for x in pair)
  arguments = (
    jax.ShapeDtypeStruct((rows, width), np.float32),
    jax.ShapeDtypeStruct(of_kernel, np.float32),
    labels,
  )

  def head(features, kernel, labels):
    settings = {
      "plan": fused.Plan(mode, budget),
      "class_axis": class_axis,
    }
    if mode == "grad_in_forward":
      return fused.linear_loss_sum(loss, features, kernel, labels, **settings)[
        0
      ]
    return fused.linear_loss(loss, features, kernel, labels, **settings).sum()

  if mode != "forward":
    head = jax.value_and_grad(head, 0 if mode == "frozen_kernel" else (0, 1))
  compiled = jax.jit(head).lower(*arguments).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize(
  ("name", "mode", "budget", "most"),
  [
    ("A", "grad_in_forward", None, 100),
    ("A", "grad_in_forward", 45, 45),
    ("A", "recompute", 16, 16),
    ("A", "frozen_kernel", 36, 36),
    ("B", "grad_in_forward", None, 260),
    ("B", "grad_in_forward", 140, 140),
    ("B", "recompute", 13, 13),
    ("B", "frozen_kernel", 20, 20),
  ],
)
def test_figures_that_are_promised(loss, name, mode, budget, most):
  if budget is not None:
    budget *= MIB
  assert temporary(loss, mode, SHAPES[name], budget) <= most * MIB


BUDGETS = {
  "grad_in_forward": 45 * MIB,
  "recompute": 16 * MIB,
  "frozen_kernel": 36 * MIB,
}


@pytest.mark.parametrize("mode", ["recompute", "frozen_kernel"])
def test_sparse_targets_take_some_numbers_each(mode):
  """Not the features of each, nor pairs of them: 256 and 32 MiB here."""
  targets, (rows, *_) = 64, SHAPES["A"]
  used = temporary(
    losses.squentropy, mode, SHAPES["A"], BUDGETS[mode], targets=targets
  )
  # Sorted ids and probabilities, logits, gradients, and sums over the others.
  assert used <= BUDGETS[mode] + 8 * 4 * rows * targets


@pytest.mark.parametrize("mode", BUDGETS)
def test_kernel_of_either_layout_is_read_as_it_lies(mode):
  """A transposed copy of it would take 64 MiB."""
  one, other = (
    temporary(losses.squentropy, mode, SHAPES["A"], BUDGETS[mode], **layout)
    for layout in ({}, {"class_axis": 0})
  )
  assert abs(one - other) <= MIB


@pytest.mark.parametrize("mode", _plan.MODES)
def test_memory_grows_with_the_tile_and_not_with_rows_times_classes(mode):
  """Logits of 8 and of 128 MiB, in one budget, less what is per row."""
  small, large = (512, 64, 4096), (2048, 64, 16384)
  budget = 8 * MIB if mode != "grad_in_forward" else 12 * MIB
  for shape in (small, large):
    used = temporary(losses.squentropy, mode, shape, budget)
    # Sums and gradients of each row come on top of the budget.
    assert used <= budget + 64 * 4 * shape[0]
    assert used >= budget / 8


def test_budget_gives_smaller_tiles_down_to_a_smallest():
  size = _plan.Size(rows=4096, classes=2**17, width=1024, operand=4, sum=4)
  for mode in _plan.MODES:
    found = []
    fixed = _plan.fixed_bytes(mode, size, 128)
    for exponent in range(16, 34):
      blocks = _plan.blocks_for(mode, size, 2**exponent)
      needed = _plan.temporary_bytes(mode, size, blocks)
      # At most twice the budget, and not more than a tile above it.
      assert needed <= max(
        2**exponent, fixed + min(2**exponent, 2**25)
      ) or tuple(blocks) == (128, 128)
      found.append(1 / blocks.rows + 1 / blocks.classes)
    assert found == sorted(found, reverse=True)
    assert found[0] == 2 / 128
    assert found[-1] < found[0]


@pytest.mark.parametrize("mode", _plan.MODES)
@pytest.mark.parametrize("operand", [2, 4])
def test_budget_below_the_fixed_parts_gives_no_smaller_tiles(mode, operand):
  """Fault 10: below 1.5 GiB the tiles here were of 128 by 128."""
  size = _plan.Size(32768, 32768, 4096, operand, 4)
  for exponent in range(27, 33):
    blocks = _plan.blocks_for(mode, size, 2**exponent)
    # All logits of the rows are kept: fewer rows take less memory.
    assert blocks.rows >= (128 if mode == "grad_in_forward" else 512)
    assert blocks.classes >= 512
