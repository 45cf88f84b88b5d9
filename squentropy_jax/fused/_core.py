# SPDX-License-Identifier: Apache-2.0
"""The sums of a linear head, with a rule for their cotangents.

The rule lies around the shard_map that is made for a mesh, never inside it.
"""

from collections.abc import Callable, Iterable
import functools
import logging
import math
from typing import Any, NamedTuple

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from squentropy_jax._core import varying
from squentropy_jax.fused import _one_pass, _plan, _sharded, _tiles, _xla
from squentropy_jax.fused._blocks import Blocks
from squentropy_jax.fused._sharded import Layout
from squentropy_jax.fused._tiles import Arrays, Gradient, Head, Slopes, Sums

_logger = logging.getLogger(__name__)


class Call(NamedTuple):
  """What is fixed while tracing.

  Attributes:
    head: The head and what its loss reads.
    layout: How it is spread over devices.
    way: The way asked for, or None.
    budget: Bytes of temporary memory on each device, or None.
  """

  head: Head
  layout: Layout
  way: str | None = None
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


def keeps(call: Call, arrays: Arrays) -> bool:
  """Whether the gradient of a sum is best formed in the forward pass."""
  return _plan.keeps(_size(call, arrays), call.budget)


def blocks_for(
  call: Call, way: str, arrays: Arrays, differentiated: bool = True
) -> Blocks:
  """The blocks to work in, and a line in the log that says so."""
  size = _size(call, arrays)
  blocks = _plan.blocks_at_least(way, size, call.budget)
  _logger.debug(
    "%s: way %s, %d rows by %d classes in tiles of %d by %d, about %.1f MiB",
    "with its gradient" if differentiated else "without a gradient",
    way,
    size.rows,
    size.classes,
    *blocks,
    _plan.temporary_bytes(way, size, blocks) / 2**20,
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
    name: _sharded.summed(g, getattr(arrays, name))
    for name, g in gradient.items()
  }


def like(gradient: Gradient, arrays: Arrays) -> Gradient:
  """The gradient in the shapes and dtypes of its primals."""
  primals = {name: getattr(arrays, name) for name in gradient}
  return {
    name: g.reshape(primals[name].shape).astype(primals[name].dtype)
    for name, g in gradient.items()
  }


def as_cotangent(gradient: Gradient) -> Arrays:
  """The gradient in the structure of its primals, None for no gradient."""
  return Arrays._make(gradient.get(name) for name in Arrays._fields)


def specs(call: Call, arrays: Arrays) -> Arrays:
  """How the arrays are spread."""
  by_name = call.layout.by_name(call.head.class_axis)
  return Arrays._make(
    None if x is None else by_name[name] for name, x in arrays._asdict().items()
  )


def gradient_specs(
  call: Call, wanted: frozenset[str]
) -> dict[str, PartitionSpec]:
  """How the gradients of what is wanted are spread."""
  by_name = call.layout.by_name(call.head.class_axis)
  return {name: by_name[name] for name in sorted(wanted)}


def wanted_of(arrays: Arrays, symbolic: bool) -> frozenset[str]:
  """The names of what is differentiated, of what may be if it is unknown."""
  return frozenset(
    name
    for name, x in arrays._asdict().items()
    if x is not None and (not symbolic or x.perturbed)
  )


# JAX keeps one tree for the residuals of a rule, whatever is differentiated. So
# the tree is always the same, and what was decided for a call stands in the
# shapes of arrays without elements.


def note(chosen: frozenset[str], names: Iterable[str]) -> dict[str, jax.Array]:
  """Which of the names were chosen, as residuals."""
  return {name: jnp.zeros((int(name in chosen), 0)) for name in names}


def noted(notes: dict[str, jax.Array]) -> frozenset[str]:
  """What `note` was told."""
  return frozenset(name for name, x in notes.items() if x.shape[0])


def filled(
  found: dict[str, jax.Array], names: Iterable[str]
) -> dict[str, jax.Array]:
  """What was found by name, and an array without elements for the others."""
  return {name: found.get(name, jnp.zeros((0,))) for name in names}


def values(tree: Any) -> Any:
  """The arrays in what ``symbolic_zeros`` gives to a rule."""
  return jax.tree.map(
    lambda x: x.value, tree, is_leaf=lambda x: hasattr(x, "perturbed")
  )


def run_forward(
  call: Call, way: str, arrays: Arrays, ids: jax.Array
) -> tuple[Sums, jax.Array, dict[str, jax.Array]]:
  """Sums over all devices, the count of classes, what `frozen_sums` adds."""
  head, layout = call.head, call.layout
  blocks = blocks_for(call, way, arrays, way != "value")

  def on_device(
    arrays: Arrays, ids: jax.Array
  ) -> tuple[Sums, jax.Array, dict[str, jax.Array]]:
    batch = arrays.features.shape[:-1]
    features, ids = flat((arrays.features, ids), len(batch))
    rows = arrays._replace(features=features)
    first = _sharded.first_class(layout, head, arrays)
    by: dict[str, jax.Array] = {}
    if way == "frozen":
      part, by = _one_pass.frozen_sums(head, blocks, rows, ids - first)
    else:
      part = _xla.row_sums(head, blocks, rows, ids - first)
    part = part._replace(top_id=part.top_id + first)
    sums = _sharded.add_up(layout, head, part)
    if "mass" in by:
      shrink = _tiles.shrink_of(part.top, _tiles.shift_of(sums.top))
      by["mass"] *= shrink[:, None]
    by = {name: x[None] for name, x in by.items()}
    count = _sharded.count_possible(layout, head, arrays)
    return shaped(sums, batch), count, by

  return layout.map(
    on_device,
    (specs(call, arrays), layout.rows),
    (layout.rows, layout.everywhere, layout.parts),
  )(arrays, ids)


def _run_backward(
  call: Call,
  way: str,
  wanted: frozenset[str],
  arrays: Arrays,
  ids: jax.Array,
  sums: Sums,
  by: dict[str, jax.Array],
  slopes: Slopes,
) -> Gradient:
  """The gradient of what is wanted from the slopes of `run_forward`'s sums."""
  head, layout = call.head, call.layout
  size = _size(call, arrays)
  blocks = _plan.blocks_at_least("stream", size, call.budget)

  def on_device(
    arrays: Arrays,
    ids: jax.Array,
    sums: Sums,
    by: dict[str, jax.Array],
    slopes: Slopes,
  ) -> Gradient:
    per_row = (arrays.features, ids, sums, slopes)
    features, ids, sums, slopes = flat(per_row, arrays.features.ndim - 1)
    rows = arrays._replace(features=features)
    first = _sharded.first_class(layout, head, arrays)
    ids -= first
    sums = sums._replace(top_id=sums.top_id - first)
    gradient: Gradient = {}
    if way == "frozen":
      by = {name: x[0] for name, x in by.items()}
      gradient["features"] = _one_pass.frozen_gradient(
        head, rows, ids, sums, by, slopes
      )
    elif wanted != {"scale"}:
      gradient = _xla.stream_gradient(
        head,
        blocks,
        rows,
        ids,
        sums,
        slopes,
        wanted - {"scale"},
        kernel_dtype(rows),
      )
    if rows.scale is not None and "scale" in wanted:
      gradient["scale"] = _xla.slope_by_scale(rows.scale, sums, slopes)
    return like(summed(gradient, rows), arrays)

  return layout.map(
    on_device,
    (specs(call, arrays), layout.rows, layout.rows, layout.parts, layout.rows),
    gradient_specs(call, wanted),
  )(arrays, ids, sums, by, slopes)


def _slopes(cotangent: Sums, sums: Sums) -> Slopes:
  """The cotangents of sums as arrays."""

  def array(name: str) -> jax.Array:
    g = getattr(cotangent, name)
    is_zero = isinstance(g, SymbolicZero)
    return jnp.zeros_like(getattr(sums, name)) if is_zero else g

  return Slopes(*(array(name) for name in Slopes._fields))


def _way(call: Call, wanted: frozenset[str]) -> str:
  """The way for a gradient of what is wanted."""
  if call.way == "value":
    raise ValueError(
      "way='value' gives no gradient; leave way out, or pass features, kernel "
      "and bias through jax.lax.stop_gradient."
    )
  if call.way is not None:
    return call.way
  reads = call.head.reads
  products = call.head.mass + ("rest_sum" in reads) + ("rest_sq" in reads)
  # With a third product to sum up, to compute the logits again is as good.
  one_pass = wanted <= {"features", "scale"} and products <= 2
  return "frozen" if one_pass else "stream"


def _rule(symbolic: bool) -> Callable[..., tuple[Sums, jax.Array]]:
  """`linear_sums`, with or without asking what is differentiated."""

  @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
  def sums_of(call, arrays, ids):
    return run_forward(call, "value", arrays, ids)[:2]

  def forward(call, arrays, ids):
    wanted = wanted_of(arrays, symbolic)
    if symbolic:
      arrays, ids = values((arrays, ids))
    way = _way(call, wanted)
    if way == "frozen":
      wanted = frozenset({"features"}) | (wanted & {"scale"})
    sums, count, by = run_forward(call, way, arrays, ids)
    by = filled(by, _one_pass.fields_with_products(call.head))
    notes = note(wanted | {way}, (*Arrays._fields, "frozen"))
    return (sums, count), (arrays, ids, sums, by, notes)

  def backward(call, residuals, cotangent):
    arrays, ids, sums, by, notes = residuals
    chosen = noted(notes)
    wanted = chosen - {"frozen"}
    way, by = ("frozen", by) if "frozen" in chosen else ("stream", {})
    slopes = _slopes(cotangent[0], sums)
    gradient = _run_backward(call, way, wanted, arrays, ids, sums, by, slopes)
    return as_cotangent(gradient), None

  sums_of.defvjp(forward, backward, symbolic_zeros=symbolic)
  return sums_of


_RULES = {symbolic: _rule(symbolic) for symbolic in (False, True)}


def may_ask() -> bool:
  """Whether a rule can ask what is differentiated: not inside a shard_map."""
  return not jax.sharding.get_abstract_mesh().manual_axes


def linear_sums(
  call: Call, arrays: Arrays, ids: jax.Array
) -> tuple[Sums, jax.Array]:
  """The sums of the rows ``[..., d]`` of features, and the count of classes.

  ``ids`` ``[..., K]`` are the targets, which are left out of the sums.
  """
  return _RULES[may_ask()](call, arrays, ids)
