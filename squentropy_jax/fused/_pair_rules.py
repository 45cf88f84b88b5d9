# SPDX-License-Identifier: Apache-2.0
"""The divergence of a student's head from its teacher's, and its gradient."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax.fused import (
  _mesh,
  _mesh_sums,
  _pair_passes,
  _plan,
  _residuals,
  _rules,
)
from squentropy_jax.fused._arguments import Call, HeadArguments, prepared
from squentropy_jax.fused._head import Arrays, Gradient
from squentropy_jax.fused._pair_passes import Pair
from squentropy_jax.fused._plan import Blocks
from squentropy_jax.fused._row_values import Statistics


class PairCall(NamedTuple):
  """What is static about a call.

  Attributes:
    student: The student's head. Its layout is that of the rows and classes.
    teacher: The teacher's head.
    divergence: A name in `_pair_passes.DIVERGENCES`.
  """

  student: Call
  teacher: Call
  divergence: str

  @property
  def heads(self) -> Pair:
    """The heads, which read the log-normalizers of their rows."""
    reads = frozenset({"sum_exp"})
    return Pair(*(c.head._replace(reads=reads) for c in self[:2]))


def _blocks(call: PairCall, mode: str, arrays: Pair) -> Blocks:
  """The blocks to work in, so that a tile of each head fits."""
  sizes = [
    _plan.size_of(c.head, c.layout, a)
    for c, a in zip(call[:2], arrays, strict=True)
  ]
  size = sizes[0]._replace(
    width=sum(s.width for s in sizes),
    operand=max(s.operand for s in sizes),
    sum=max(s.sum for s in sizes),
    gathered=max(s.gathered for s in sizes),
  )
  whole = mode == "forward" and any(h.tile_axes for h in call.heads)
  budget = call.student.plan.memory_budget
  blocks = _plan.blocks_for(mode, size, budget, whole_rows=whole)
  # Two tiles of half the classes take the memory of one.
  return blocks._replace(classes=-(-blocks.classes // 2))


class Saved(NamedTuple):
  """What is known of the rows ``[...]`` after the forward pass.

  Attributes:
    normalizers: Of student and teacher.
    halves: The halves of the divergence, ``[..., 2]``.
  """

  normalizers: Pair
  halves: jax.Array


def _local(
  call: PairCall, heads: Pair, arrays: Pair
) -> tuple[list[_mesh.Local], Pair]:
  """What a device works with, of both heads, and the arrays of it."""
  found = []
  for c, head, some in zip(call[:2], heads, arrays, strict=True):
    # The passes take one target or more: -1 is no class.
    ids = jnp.full((*some.features.shape[:-1], 1), -1, jnp.int32)
    found.append(_mesh.local(c.layout, head, some, ids))
  return found, Pair(*(x.arrays for x in found))


def _pair_specs(call: PairCall, arrays: Pair) -> Pair:
  return Pair(
    *(_rules.specs_of(c, a) for c, a in zip(call[:2], arrays, strict=True))
  )


def _forward(call: PairCall, arrays: Pair) -> Saved:
  """The log-normalizers, then the divergence: two products of each head."""
  heads, layout = call.heads, call.student.layout
  blocks = _blocks(call, "forward", arrays)

  def on_device(arrays: Pair) -> Saved:
    found, some = _local(call, heads, arrays)
    normalizers = []
    for c, head, x in zip(call[:2], heads, found, strict=True):
      sums = _rules.PASSES.sums(head, blocks, x.arrays, x.ids)
      sums = _mesh_sums.add_up(c.layout, head, sums, x.first)
      normalizers.append(_pair_passes.normalizer(sums.classes))
    known = Pair(*normalizers)
    rows = _pair_passes.rows_of(some, known)
    halves = _pair_passes.halves(heads, call.divergence, blocks, some, rows)
    if layout.class_axes:
      halves = lax.psum(halves, layout.class_axes)
    saved = _mesh.shaped(Saved(known, halves), found[0].batch)
    return _mesh.own_rows(layout, saved)

  return layout.map(on_device, (_pair_specs(call, arrays),), layout.row_spec)(
    arrays
  )


def _backward(
  call: PairCall,
  wanted: frozenset[str],
  arrays: Pair,
  saved: Saved,
  cotangent: jax.Array,
) -> Gradient:
  """The gradient of what is wanted of the student, and of the factor."""
  heads, layout = call.heads, call.student.layout
  blocks = _blocks(call, "recompute", arrays)

  def on_device(arrays: Pair, saved: Saved, cotangent: jax.Array) -> Gradient:
    found, some = _local(call, heads, arrays)
    batch = found[0].batch
    of_rows = _mesh.gather_rows(layout, (saved, cotangent))
    saved, cotangent = _mesh.flat(of_rows, len(batch))
    gradient = _pair_passes.gradient(
      heads,
      call.divergence,
      blocks,
      some,
      _pair_passes.rows_of(some, saved.normalizers),
      saved.halves,
      cotangent,
      wanted,
      _mesh.kernel_dtype(
        layout, heads.student, some.student, arrays.student.kernel.dtype, True
      ),
      layout.kernel_width,
    )
    if "factor" in gradient and layout.class_axes:
      gradient["factor"] = lax.psum(gradient["factor"], layout.class_axes)
    names = wanted & {"features", "factor"}
    gradient |= _mesh.shaped({n: gradient[n] for n in names}, batch)
    gradient = _mesh.reduced(
      layout, heads.student, gradient, arrays.student, True
    )
    return _rules.like_primals(call.student, gradient, arrays.student)

  rows = layout.row_spec
  return layout.map(
    on_device,
    (_pair_specs(call, arrays), rows, rows),
    _rules.gradient_specs(call.student, wanted),
  )(arrays, saved, cotangent)


@_residuals.with_symbolic_zeros
def _divergences(symbolic: bool) -> Callable[..., jax.Array]:
  """The divergence of the rows ``[...]``; the teacher has no gradient."""

  @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
  def divergences_of(call, student, teacher):
    return _forward(call, Pair(student, teacher)).halves.sum(-1)

  def forward(call, student, teacher):
    wanted = _residuals.names_wanted(student, symbolic)
    if symbolic:
      student, teacher = _residuals.values_of((student, teacher))
    _rules.mode_for(call.student, wanted)
    arrays = Pair(student, teacher)
    saved = _forward(call, arrays)
    notes = _residuals.as_notes(wanted, Arrays._fields)
    return saved.halves.sum(-1), (arrays, saved, notes)

  def backward(call, residuals, cotangent):
    arrays, saved, notes = residuals
    wanted = _residuals.read_notes(notes)
    gradient = _backward(call, wanted, arrays, saved, cotangent)
    return _residuals.as_cotangent(gradient), None

  divergences_of.defvjp(forward, backward, symbolic_zeros=symbolic)
  return divergences_of


@functools.partial(jax.jit, static_argnums=0, inline=True)
def divergences(
  call: PairCall, student: HeadArguments, teacher: HeadArguments
) -> jax.Array:
  """`linear_distillation` on checked arguments."""
  ready = [
    prepared(c, Statistics(), arguments)
    for c, arguments in zip(call[:2], (student, teacher), strict=True)
  ]
  ours, theirs = (r.arrays for r in ready)
  # Not the factor: the temperature is no constant, also in second derivatives.
  features, kernel, bias = lax.stop_gradient(theirs[:3])
  each = _divergences(call, ours, Arrays(features, kernel, bias, theirs.factor))
  keep = ready[0].keep
  if keep is not None:
    each = jnp.where(keep, each, jnp.zeros_like(each))
  return call.student.layout.result_rows(each, student.features.shape[:-1])
