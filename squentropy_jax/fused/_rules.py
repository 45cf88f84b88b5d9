# SPDX-License-Identifier: Apache-2.0
"""What the heads compute, and how it is differentiated.

Both rules lie around the shard_map that is made for a mesh, never inside it:
`sums` for the class sums of every row, and `total` for a weighted sum of
losses, with its gradient formed in the forward pass.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp

from squentropy_jax._core import varying
from squentropy_jax._core.class_sums import (
  SUMS,
  ClassSums,
  shift_of,
  shrink_factor,
)
from squentropy_jax.fused import (
  _mesh,
  _mesh_sums,
  _plan,
  _residuals,
  _row_values,
  _tiles,
  _xla,
)
from squentropy_jax.fused._arguments import Call
from squentropy_jax.fused._head import Arrays, Cotangents, Gradient
from squentropy_jax.fused._mesh import Layout
from squentropy_jax.fused._plan import Blocks
from squentropy_jax.fused._row_values import (
  HeadLoss,
  Numbers,
  RowGradients,
  Totals,
  WeightedRows,
)
from squentropy_jax.fused._targets import Targets
from squentropy_jax.fused._tiles import RowSums

# Another back end has a record of passes of its own, and a memory model.
PASSES = _xla.PASSES


# What the two rules share.


def _blocks(
  call: Call, mode: str, arrays: Arrays, differentiated: bool = True
) -> Blocks:
  """The blocks to work in."""
  budget = call.plan.memory_budget
  size = _plan.size_of(call.head, call.layout, arrays)
  # Every block of rows would gather the kernel again.
  whole = mode in ("forward", "recompute") and bool(call.head.tile_axes)
  blocks = _plan.blocks_for(mode, size, budget, whole_rows=whole)
  _plan.log(mode, size, blocks, differentiated)
  return blocks


def like_primals(call: Call, gradient: Gradient, arrays: Arrays) -> Gradient:
  """The gradient in the shapes and dtypes of its primals."""
  primals = {name: getattr(arrays, name) for name in gradient}
  return {
    name: _mesh.cast(
      call.layout, g.reshape(primals[name].shape), primals[name].dtype
    )
    for name, g in gradient.items()
  }


def specs_of(call: Call, arrays: Arrays) -> Arrays:
  """How the arrays are sharded."""
  by_name = call.layout.by_name(call.head.class_axis)
  return Arrays._make(
    None if x is None else by_name[name] for name, x in arrays._asdict().items()
  )


def gradient_specs(call: Call, wanted: frozenset[str]) -> dict[str, Any]:
  by_name = call.layout.by_name(call.head.class_axis)
  return {name: by_name[name] for name in sorted(wanted)}


def _differentiable(call: Call) -> tuple[str, ...]:
  """The fields of `ClassSums` through which a loss is differentiated."""
  head = call.head
  largest = ("max",) if "max" in head.reads - head.constant else ()
  return ("target", *largest, *head.differentiable_sums)


# The sums of every row.


class Forward(NamedTuple):
  """What a forward pass over all devices gives.

  Attributes:
    sums: The sums of the rows ``[...]``.
    num_classes: How many classes are possible, on all devices. With keys it
      has the shape of the rows.
    by_features: The derivatives of `frozen_sums`, ``[devices, N, d]``.
  """

  sums: RowSums
  num_classes: jax.Array
  by_features: dict[str, jax.Array]


def _forward(call: Call, mode: str, arrays: Arrays, ids: jax.Array) -> Forward:
  """The forward pass of a mode."""
  head, layout = call.head, call.layout
  blocks = _blocks(call, mode, arrays, mode != "forward")

  def on_device(arrays: Arrays, ids: jax.Array) -> Forward:
    found = _mesh.local(layout, head, arrays, ids)
    some, ids, first, batch = found
    by_features: dict[str, jax.Array] = {}
    if mode == "frozen_kernel":
      here, by_features = PASSES.frozen_sums(head, blocks, some, ids)
    else:
      here = PASSES.sums(head, blocks, some, ids)
    sums = _mesh_sums.add_up(layout, head, here, first)
    shift = shift_of(sums.classes.max)
    shrink = shrink_factor(here.classes.max, shift)[:, None]
    by_features = {
      name: (x * shrink if SUMS[name].relative else x)[None]
      for name, x in by_features.items()
    }
    count = _mesh_sums.count_possible(layout, head, arrays, found)
    if count.ndim:
      count = _mesh.own_rows(layout, _mesh.shaped(count, batch))
    sums = _mesh.own_rows(layout, _mesh.shaped(sums, batch))
    return Forward(sums, count, by_features)

  rows = layout.row_spec
  of_count = jax.P() if arrays.row_keys is None else rows
  return layout.map(
    on_device,
    (specs_of(call, arrays), rows),
    Forward._make((rows, of_count, layout.parts)),
  )(arrays, ids)


def _backward(
  call: Call,
  mode: str,
  wanted: frozenset[str],
  arrays: Arrays,
  ids: jax.Array,
  saved: Forward,
  cotangents: Cotangents,
) -> Gradient:
  """The gradient of what is wanted from the cotangents of the sums."""
  head, layout = call.head, call.layout
  size = _plan.size_of(head, layout, arrays)
  blocks = _plan.blocks_for("recompute", size, call.plan.memory_budget)

  def on_device(
    arrays: Arrays,
    ids: jax.Array,
    sums: RowSums,
    by_features: dict[str, jax.Array],
    cotangents: Cotangents,
  ) -> Gradient:
    some, ids, first, batch = _mesh.local(layout, head, arrays, ids)
    of_rows = _mesh.gather_rows(layout, (sums, cotangents))
    sums, cotangents = _mesh.flat(of_rows, len(batch))
    classes = sums.classes._replace(max_id=sums.classes.max_id - first)
    gradient: Gradient = {}
    if mode == "frozen_kernel":
      by_features = {name: x[0] for name, x in by_features.items()}
      gradient["features"] = PASSES.frozen_gradient(
        head, some, ids, classes, by_features, cotangents
      )
    elif wanted != {"factor"}:
      gradient = PASSES.recomputed_gradient(
        head,
        blocks,
        some,
        ids,
        classes,
        cotangents,
        wanted - {"factor"},
        _mesh.kernel_dtype(layout, head, some, arrays.kernel.dtype, True),
        layout.kernel_width,
      )
    if some.factor is not None and "factor" in wanted:
      gradient["factor"] = _tiles.factor_gradient(some.factor, sums, cotangents)
    of_rows = {n: gradient[n] for n in gradient if n in ("features", "factor")}
    gradient |= _mesh.shaped(of_rows, batch)
    gradient = _mesh.reduced(layout, head, gradient, arrays, True)
    return like_primals(call, gradient, arrays)

  rows = layout.row_spec
  return layout.map(
    on_device,
    (specs_of(call, arrays), rows, rows, layout.parts, rows),
    gradient_specs(call, wanted),
  )(arrays, ids, saved.sums, saved.by_features, cotangents)


def _cotangents(
  call: Call, cotangent: ClassSums, sums: ClassSums
) -> Cotangents:
  """The cotangents of the sums that have one."""
  found = {name: getattr(cotangent, name) for name in _differentiable(call)}
  if isinstance(found["target"], SymbolicZero):
    found["target"] = jnp.zeros_like(sums.target)
  return {n: g for n, g in found.items() if not isinstance(g, SymbolicZero)}


def mode_for(call: Call, wanted: frozenset[str]) -> str:
  """The mode for a gradient of what is wanted."""
  if call.plan.mode == "forward":
    raise ValueError(
      "mode='forward' computes no gradient, but the result is differentiated. "
      "Leave mode out of fused.Plan, or pass features, kernel and bias through "
      "jax.lax.stop_gradient."
    )
  if call.plan.mode is not None:
    return call.plan.mode
  # With a third product to sum up, to compute the logits again is as good.
  num_sums = len(call.head.differentiable_sums)
  one_pass = wanted <= {"features", "factor"} and num_sums <= 2
  one_pass = one_pass and not call.head.tile_axes
  return "frozen_kernel" if one_pass else "recompute"


@_residuals.with_symbolic_zeros
def sums(symbolic: bool) -> Callable[..., tuple[ClassSums, jax.Array]]:
  """The class sums of the rows ``[...]``, and the count of classes.

  The targets ``ids`` ``[..., K]`` are left out of the sums.
  """

  @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
  def sums_of(call, arrays, ids):
    out = _forward(call, "forward", arrays, ids)
    return out.sums.classes, out.num_classes

  def forward(call, arrays, ids):
    wanted = _residuals.names_wanted(arrays, symbolic)
    if symbolic:
      arrays, ids = _residuals.values_of((arrays, ids))
    mode = mode_for(call, wanted)
    if mode == "frozen_kernel":
      wanted = frozenset({"features"}) | (wanted & {"factor"})
    out = _forward(call, mode, arrays, ids)
    notes = _residuals.as_notes(
      wanted | {mode}, (*Arrays._fields, "frozen_kernel")
    )
    names = call.head.differentiable_sums
    saved = out._replace(by_features=_residuals.filled(out.by_features, names))
    return (out.sums.classes, out.num_classes), (arrays, ids, saved, notes)

  def backward(call, residuals, cotangent):
    arrays, ids, saved, notes = residuals
    chosen = _residuals.read_notes(notes)
    wanted = chosen - {"frozen_kernel"}
    mode = "frozen_kernel" if chosen - wanted else "recompute"
    if mode == "recompute":
      saved = saved._replace(by_features={})
    cotangents = _cotangents(call, cotangent[0], saved.sums.classes)
    gradient = _backward(call, mode, wanted, arrays, ids, saved, cotangents)
    return _residuals.as_cotangent(gradient), None

  sums_of.defvjp(forward, backward, symbolic_zeros=symbolic)
  return sums_of


# The sum of the losses, its gradient formed in the forward pass.


def vary_rows(
  layout: Layout, arrays: Arrays, rows: WeightedRows
) -> WeightedRows:
  """The rows, which vary over the axes of any row, but of no other class."""
  others = {*layout.classes} - {*layout.shared}
  return varying.vary(rows, varying.axes_of(arrays, rows) - others)


def _total_and_gradient(
  call: Call,
  loss: HeadLoss,
  wanted: frozenset[str],
  arrays: Arrays,
  rows: WeightedRows,
) -> tuple[Totals, Gradient, RowGradients]:
  """The sums over the rows of all devices of a mesh, and their gradients."""
  head, layout = call.head, call.layout
  blocks = _blocks(call, "grad_in_forward", arrays)

  def on_device(
    arrays: Arrays, rows: WeightedRows
  ) -> tuple[Totals, Gradient, RowGradients]:
    ids = rows.targets.ids
    found = _mesh.local(layout, head, arrays, ids)
    some, ids, first, batch = found
    count = _mesh_sums.count_possible(layout, head, arrays, found)
    rows = vary_rows(layout, arrays, rows)
    every_row = _mesh.flat(_mesh.gather_rows(layout, rows), len(batch))
    # A count for each row is cut into blocks as the rows are.
    counts = count if count.ndim else None

    def finish(
      here: RowSums,
      factor: jax.Array | None,
      some_rows: tuple[WeightedRows, jax.Array | None],
    ) -> tuple[ClassSums, Cotangents, Any]:
      rows, counts = some_rows
      possible = count if counts is None else counts
      every = _mesh_sums.add_up(layout, head, here, first)
      # Else a cotangent would be summed over the devices of the rows here.
      every = varying.vary(every, varying.axes_of(rows))
      sums = every.classes

      def losses_of(
        fields: Cotangents, probabilities: jax.Array | None, numbers: Numbers
      ) -> tuple[jax.Array, dict[str, jax.Array]]:
        targets = rows.targets._replace(probabilities=probabilities)
        found = sums._replace(**fields)
        return _row_values.row_values(loss, numbers, found, possible, targets)

      losses, vjp, metrics = jax.vjp(
        losses_of,
        {name: getattr(sums, name) for name in _differentiable(call)},
        rows.targets.probabilities,
        rows.numbers,
        has_aux=True,
      )
      cotangents, by_probability, by_numbers = vjp(rows.weights)
      by_factor = {}
      if factor is not None and "factor" in wanted:
        by_factor["factor"] = _tiles.factor_gradient(factor, every, cotangents)
      by_rows = RowGradients(losses, by_probability, by_numbers)
      sums = sums._replace(max_id=sums.max_id - first)
      return sums, cotangents, (by_factor, by_rows, metrics)

    gradient, ys = PASSES.gradient_in_forward(
      head,
      blocks,
      some,
      ids,
      (every_row, counts),
      finish,
      wanted - {"factor"},
      _mesh.kernel_dtype(layout, head, some, arrays.kernel.dtype, False),
    )
    by_factor, by_rows, metrics = _mesh.shaped(ys, batch)
    by_rows, metrics = _mesh.own_rows(layout, (by_rows, metrics))
    total = _row_values.weighted_sums(by_rows.weights, metrics, rows.weights)
    gradient |= by_factor
    if "features" in gradient:
      gradient |= _mesh.shaped({"features": gradient["features"]}, batch)
    if layout.mesh is not None:
      # One cotangent for all devices will come, so the parts are added here.
      gradient = _mesh.reduced(layout, head, gradient, arrays, False)
      total = lax.psum(total, layout.row_axes) if layout.row_axes else total
    return total, gradient, by_rows

  rows_spec = layout.row_spec
  return layout.map(
    on_device,
    (specs_of(call, arrays), rows_spec),
    (jax.P(), gradient_specs(call, wanted), rows_spec),
  )(arrays, rows)


@_residuals.with_symbolic_zeros
def total(symbolic: bool) -> Callable[..., Totals]:
  """The weighted sums of the losses and the metrics of rows.

  With a mesh they are over the rows of all devices. Only the sum of the losses
  has a gradient.
  """

  @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
  def total_of(call, loss, arrays, rows):
    out = _forward(call, "forward", arrays, rows.targets.ids)
    found = _row_values.row_values(
      loss, rows.numbers, out.sums.classes, out.num_classes, rows.targets
    )
    return _row_values.weighted_sums(*found, rows.weights)

  def forward(call, loss, arrays, rows):
    wanted = _residuals.names_wanted(arrays, symbolic)
    if symbolic:
      arrays, rows = _residuals.values_of((arrays, rows))
    total, gradient, by_rows = _total_and_gradient(
      call, loss, wanted, arrays, rows
    )
    notes = _residuals.as_notes(wanted, Arrays._fields)
    gradient = _residuals.filled(gradient, Arrays._fields)
    return total, (gradient, by_rows, notes, arrays)

  def backward(call, loss, residuals, cotangents):
    gradient, by_rows, notes, arrays = residuals
    gradient = {name: gradient[name] for name in _residuals.read_notes(notes)}
    # A number of Python has no dtype.
    cotangent = jnp.asarray(cotangents[0], by_rows.weights.dtype)
    gradient, by_rows = jax.tree.map(
      lambda x: x.astype(cotangent.dtype) * cotangent, (gradient, by_rows)
    )
    if call.layout.mesh is None:
      gradient = _mesh.reduced(call.layout, call.head, gradient, arrays, False)
    gradient = like_primals(call, gradient, arrays)
    targets = Targets._make((None, by_rows.probabilities, None, None))
    of_rows = WeightedRows(targets, by_rows.weights, by_rows.numbers)
    return _residuals.as_cotangent(gradient), of_rows

  total_of.defvjp(forward, backward, symbolic_zeros=symbolic)
  return total_of
