# SPDX-License-Identifier: Apache-2.0
"""The class sums of a linear head, with a rule for their cotangents.

The rule lies around the shard_map that is made for a mesh, never inside it.
"""

from collections.abc import Callable
import functools
import logging
import math
from typing import Any, NamedTuple

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from squentropy_jax._core import varying
from squentropy_jax._core.class_sums import (
  SUMS,
  ClassSums,
  shift_of,
  shrink_factor,
)
from squentropy_jax.fused import (
  _mesh,
  _one_pass,
  _plan,
  _residuals,
  _tiles,
  _xla,
)
from squentropy_jax.fused._blocks import Blocks
from squentropy_jax.fused._mesh import Layout
from squentropy_jax.fused._tiles import (
  Arrays,
  Cotangents,
  Gradient,
  Head,
  RowSums,
)

_logger = logging.getLogger(__name__)


class Call(NamedTuple):
  """What is static about a call.

  Attributes:
    head: The head and what its loss reads.
    layout: How it is sharded over devices.
    mode: The mode asked for, or None.
    budget: Bytes of temporary memory on each device, or None.
  """

  head: Head
  layout: Layout
  mode: str | None = None
  budget: int | None = None


def _size(call: Call, arrays: Arrays) -> _plan.Size:
  """The size of the problem on one device."""
  layout = call.layout
  *batch, width = arrays.features.shape
  return _plan.Size(
    rows=-(-math.prod(batch) // layout.shards(layout.batch_axis)),
    classes=-(
      -_xla.num_classes(call.head, arrays) // layout.shards(layout.vocab_axis)
    ),
    width=width,
    operand=arrays.operand_dtype.itemsize,
    sum=arrays.sum_dtype.itemsize,
  )


def grad_in_forward_fits(call: Call, arrays: Arrays) -> bool:
  """Whether the gradient of a sum is best formed in the forward pass."""
  return _plan.grad_in_forward_fits(_size(call, arrays), call.budget)


def blocks_for(
  call: Call, mode: str, arrays: Arrays, differentiated: bool = True
) -> Blocks:
  """The blocks to work in, and a line in the log that says so."""
  size = _size(call, arrays)
  blocks = _plan.blocks_at_least(mode, size, call.budget)
  _logger.debug(
    "%s: mode %s, %d rows by %d classes in tiles of %d by %d, about %.1f MiB",
    "with its gradient" if differentiated else "without a gradient",
    mode,
    size.rows,
    size.classes,
    *blocks,
    _plan.temporary_bytes(mode, size, blocks) / 2**20,
  )
  return blocks


def flat(tree: Any, rank: int) -> Any:
  """Arrays ``[*batch, ...]`` as ``[N, ...]``, for a batch of that rank."""

  def one(x: jax.Array) -> jax.Array:
    return x.reshape(math.prod(x.shape[:rank]), *x.shape[rank:])

  return jax.tree.map(one, tree)


def shaped(tree: Any, batch: tuple[int, ...]) -> Any:
  """Arrays ``[N, ...]`` as ``[*batch, ...]``."""
  return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), tree)


def kernel_dtype(arrays: Arrays) -> jnp.dtype:
  """The dtype to collect the gradient of the kernel in."""
  # Parts of several devices are added in full precision; and a cotangent that
  # comes later may scale up what a type of few exponents has lost.
  several = varying.axes_of(arrays.features) - varying.axes_of(arrays.kernel)
  exponents = jnp.finfo(arrays.kernel.dtype).maxexp
  if several or exponents < jnp.finfo(jnp.float32).maxexp:
    return arrays.sum_dtype
  return arrays.kernel.dtype


def summed(gradient: Gradient, arrays: Arrays) -> Gradient:
  """The gradient added up over devices where its primals are the same."""
  return {
    name: _mesh.summed(g, getattr(arrays, name)) for name, g in gradient.items()
  }


def like(gradient: Gradient, arrays: Arrays) -> Gradient:
  """The gradient in the shapes and dtypes of its primals."""
  primals = {name: getattr(arrays, name) for name in gradient}
  return {
    name: g.reshape(primals[name].shape).astype(primals[name].dtype)
    for name, g in gradient.items()
  }


def specs(call: Call, arrays: Arrays) -> Arrays:
  """How the arrays are sharded."""
  by_name = call.layout.by_name(call.head.class_axis)
  return Arrays._make(
    None if x is None else by_name[name] for name, x in arrays._asdict().items()
  )


def gradient_specs(
  call: Call, wanted: frozenset[str]
) -> dict[str, PartitionSpec]:
  """How the gradients of what is wanted are sharded."""
  by_name = call.layout.by_name(call.head.class_axis)
  return {name: by_name[name] for name in sorted(wanted)}


def row_arrays(arrays: Arrays, ids: jax.Array) -> _xla.Rows:
  """What of a head has rows ``[...]``, with rows ``[N]``."""
  rows = _xla.Rows(arrays.features, arrays.factor, ids)
  return flat(rows, arrays.features.ndim - 1)


class Forward(NamedTuple):
  """What a forward pass over all devices gives.

  Attributes:
    sums: The sums of the rows ``[...]``.
    num_classes: How many classes are possible, on all devices.
    by_features: The derivatives of `frozen_sums`, ``[devices, N, d]``.
  """

  sums: RowSums
  num_classes: jax.Array
  by_features: dict[str, jax.Array]


def run_forward(
  call: Call, mode: str, arrays: Arrays, ids: jax.Array
) -> Forward:
  """The forward pass of a mode."""
  head, layout = call.head, call.layout
  blocks = blocks_for(call, mode, arrays, mode != "forward")

  def on_device(arrays: Arrays, ids: jax.Array) -> Forward:
    batch = arrays.features.shape[:-1]
    rows = row_arrays(arrays, ids)
    some = _xla.with_rows(arrays, rows)
    first = _mesh.first_class(layout, head, arrays)
    by_features: dict[str, jax.Array] = {}
    if mode == "frozen_kernel":
      here, by_features = _one_pass.frozen_sums(
        head, blocks, some, rows.ids - first
      )
    else:
      here = _xla.row_sums(head, blocks, some, rows.ids - first)
    largest = here.classes.max
    classes = here.classes._replace(max_id=here.classes.max_id + first)
    sums = _mesh.add_up(layout, head, here._replace(classes=classes))
    shrink = shrink_factor(largest, shift_of(sums.classes.max))[:, None]
    for name, x in by_features.items():
      relative = x * shrink if SUMS[name].relative else x
      by_features[name] = relative[None]
    count = _mesh.count_possible(layout, head, arrays)
    return Forward(shaped(sums, batch), count, by_features)

  return layout.map(
    on_device,
    (specs(call, arrays), layout.rows),
    Forward._make((layout.rows, layout.everywhere, layout.parts)),
  )(arrays, ids)


def _run_backward(
  call: Call,
  mode: str,
  wanted: frozenset[str],
  arrays: Arrays,
  ids: jax.Array,
  forward: Forward,
  cotangents: Cotangents,
) -> Gradient:
  """The gradient of what is wanted from the cotangents of the sums."""
  head, layout = call.head, call.layout
  size = _size(call, arrays)
  blocks = _plan.blocks_at_least("recompute", size, call.budget)

  def on_device(
    arrays: Arrays,
    ids: jax.Array,
    sums: RowSums,
    by_features: dict[str, jax.Array],
    cotangents: Cotangents,
  ) -> Gradient:
    rank = arrays.features.ndim - 1
    rows = row_arrays(arrays, ids)
    sums, cotangents = flat((sums, cotangents), rank)
    some = _xla.with_rows(arrays, rows)
    first = _mesh.first_class(layout, head, arrays)
    classes = sums.classes._replace(max_id=sums.classes.max_id - first)
    local_ids = rows.ids - first
    gradient: Gradient = {}
    if mode == "frozen_kernel":
      by_features = {name: x[0] for name, x in by_features.items()}
      gradient["features"] = _one_pass.frozen_gradient(
        head, some, local_ids, classes, by_features, cotangents
      )
    elif wanted != {"factor"}:
      gradient = _xla.recomputed_gradient(
        head,
        blocks,
        some,
        local_ids,
        classes,
        cotangents,
        wanted - {"factor"},
        kernel_dtype(some),
      )
    if some.factor is not None and "factor" in wanted:
      gradient["factor"] = _tiles.factor_gradient(some.factor, sums, cotangents)
    return like(summed(gradient, some), arrays)

  rows = layout.rows
  return layout.map(
    on_device,
    (specs(call, arrays), rows, rows, layout.parts, rows),
    gradient_specs(call, wanted),
  )(arrays, ids, forward.sums, forward.by_features, cotangents)


def differentiable(head: Head) -> tuple[str, ...]:
  """The fields of `ClassSums` through which a loss is differentiated."""
  return ("target", *(("max",) if "max" in head.reads else ()), *head.sums)


def _cotangents(
  head: Head, cotangent: ClassSums, sums: ClassSums
) -> Cotangents:
  """The cotangents of the sums that have one."""
  found = {name: getattr(cotangent, name) for name in differentiable(head)}
  if isinstance(found["target"], SymbolicZero):
    found["target"] = jnp.zeros_like(sums.target)
  return {n: g for n, g in found.items() if not isinstance(g, SymbolicZero)}


def _mode(call: Call, wanted: frozenset[str]) -> str:
  """The mode for a gradient of what is wanted."""
  if call.mode == "forward":
    raise ValueError(
      "mode='forward' computes no gradient, but the result is differentiated. "
      "Leave mode out, or pass features, kernel and bias through "
      "jax.lax.stop_gradient."
    )
  if call.mode is not None:
    return call.mode
  # With a third product to sum up, to compute the logits again is as good.
  one_pass = wanted <= {"features", "factor"} and len(call.head.sums) <= 2
  return "frozen_kernel" if one_pass else "recompute"


def _rule(symbolic: bool) -> Callable[..., tuple[ClassSums, jax.Array]]:
  """`linear_sums`, with or without asking what is differentiated."""

  @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
  def sums_of(call, arrays, ids):
    out = run_forward(call, "forward", arrays, ids)
    return out.sums.classes, out.num_classes

  def forward(call, arrays, ids):
    wanted = _residuals.wanted_of(arrays, symbolic)
    if symbolic:
      arrays, ids = _residuals.values((arrays, ids))
    mode = _mode(call, wanted)
    if mode == "frozen_kernel":
      wanted = frozenset({"features"}) | (wanted & {"factor"})
    out = run_forward(call, mode, arrays, ids)
    notes = _residuals.note(wanted | {mode}, (*Arrays._fields, "frozen_kernel"))
    saved = out._replace(
      by_features=_residuals.filled(out.by_features, call.head.sums)
    )
    return (out.sums.classes, out.num_classes), (arrays, ids, saved, notes)

  def backward(call, residuals, cotangent):
    arrays, ids, saved, notes = residuals
    chosen = _residuals.noted(notes)
    wanted = chosen - {"frozen_kernel"}
    mode = "frozen_kernel" if chosen - wanted else "recompute"
    if mode == "recompute":
      saved = saved._replace(by_features={})
    cotangents = _cotangents(call.head, cotangent[0], saved.sums.classes)
    gradient = _run_backward(call, mode, wanted, arrays, ids, saved, cotangents)
    return _residuals.as_cotangent(gradient), None

  sums_of.defvjp(forward, backward, symbolic_zeros=symbolic)
  return sums_of


_RULES = {symbolic: _rule(symbolic) for symbolic in (False, True)}


def linear_sums(
  call: Call, arrays: Arrays, ids: jax.Array
) -> tuple[ClassSums, jax.Array]:
  """The sums of the rows ``[..., d]`` of features, and the count of classes.

  ``ids`` ``[..., K]`` are the targets, which are left out of the sums.
  """
  return _RULES[_residuals.may_ask()](call, arrays, ids)
