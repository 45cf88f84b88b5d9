# SPDX-License-Identifier: Apache-2.0
"""The sums of a linear head, with a rule for their cotangents.

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

from squentropy_jax.fused import _one_pass, _plan, _sharded, _tiles, _xla
from squentropy_jax.fused._blocks import Blocks, varying
from squentropy_jax.fused._sharded import Layout
from squentropy_jax.fused._tiles import Arrays, Head, Slopes, Sums

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
    "differentiated" if differentiated else "not differentiated",
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
  # comes later may scale up what float16 has lost.
  several = varying(arrays.features) - varying(arrays.kernel)
  if several or arrays.kernel.dtype == jnp.float16:
    return arrays.sum_dtype
  return arrays.kernel.dtype


def summed(gradient: Arrays, arrays: Arrays) -> Arrays:
  """The gradient added up over devices where its primals are the same."""
  return _sharded.summed(gradient, _matching(arrays, gradient))


def like(gradient: Arrays, arrays: Arrays) -> Arrays:
  """The gradient in the shapes and dtypes of its primals."""
  return jax.tree.map(
    lambda g, x: g.reshape(x.shape).astype(x.dtype),
    gradient,
    _matching(arrays, gradient),
  )


def _matching(arrays: Arrays, gradient: Arrays) -> Arrays:
  names = [n for n, g in gradient._asdict().items() if g is not None]
  return only(arrays, names)


def only(arrays: Arrays, names: Any) -> Arrays:
  """The arrays with None in the place of those not in ``names``."""
  return Arrays(
    *(x if n in names else None for n, x in arrays._asdict().items())
  )


def specs(call: Call, arrays: Arrays) -> Arrays:
  """How the arrays are spread."""
  return _matching(call.layout.arrays(call.head), arrays)


def wanted_of(arrays: Arrays, symbolic: bool) -> frozenset[str]:
  """The names of what is differentiated, of what may be if it is unknown."""
  return frozenset(
    name
    for name, x in arrays._asdict().items()
    if x is not None and (not symbolic or x.perturbed)
  )


def values(tree: Any) -> Any:
  """The arrays in what ``symbolic_zeros`` gives to a rule."""
  return jax.tree.map(
    lambda x: x.value, tree, is_leaf=lambda x: hasattr(x, "perturbed")
  )


def run_forward(
  call: Call, way: str, arrays: Arrays, ids: jax.Array
) -> tuple[Sums, jax.Array, Slopes | None]:
  """Sums over all devices, the count of classes, what `frozen_sums` adds."""
  head, layout = call.head, call.layout
  blocks = blocks_for(call, way, arrays, way != "value")

  def on_device(arrays: Arrays, ids: jax.Array):
    batch = arrays.features.shape[:-1]
    features, ids = flat((arrays.features, ids), len(batch))
    rows = arrays._replace(features=features)
    first = _sharded.first_class(layout, head, arrays)
    by = None
    if way == "frozen":
      part, by = _one_pass.frozen_sums(head, blocks, rows, ids - first)
    else:
      part = _xla.row_sums(head, blocks, rows, ids - first)
    part = part._replace(top_id=part.top_id + first)
    sums = _sharded.add_up(layout, head, part)
    if by is not None and by.mass is not None:
      shrink = _tiles.shrink_of(part.top, _tiles.shift_of(sums.top))
      by = by._replace(mass=by.mass * shrink[:, None])
    by = jax.tree.map(lambda x: x[None], by)
    count = _sharded.count_possible(layout, head, arrays)
    return shaped(sums, batch), count, by

  return layout.map(
    on_device,
    (specs(call, arrays), layout.rows),
    (layout.rows, layout.everywhere, layout.parts),
  )(arrays, ids)


def _run_backward(
  call: Call,
  wanted: frozenset[str],
  arrays: Arrays,
  ids: jax.Array,
  sums: Sums,
  by: Slopes | None,
  slopes: Slopes,
) -> Arrays:
  """The gradient of what is wanted from the slopes of `run_forward`'s sums."""
  head, layout = call.head, call.layout
  size = _size(call, arrays)
  blocks = _plan.blocks_at_least("stream", size, call.budget)

  def on_device(
    arrays: Arrays,
    ids: jax.Array,
    sums: Sums,
    by: Slopes | None,
    slopes: Slopes,
  ) -> Arrays:
    per_row = (arrays.features, ids, sums, slopes)
    features, ids, sums, slopes = flat(per_row, arrays.features.ndim - 1)
    rows = arrays._replace(features=features)
    first = _sharded.first_class(layout, head, arrays)
    ids -= first
    sums = sums._replace(top_id=sums.top_id - first)
    gradient = Arrays()
    if by is not None:
      by = jax.tree.map(lambda x: x[0], by)
      found = _one_pass.frozen_gradient(head, rows, ids, sums, by, slopes)
      gradient = Arrays(features=found)
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
    if "scale" in wanted:
      by_scale = _xla.slope_by_scale(rows, sums, slopes)
      gradient = gradient._replace(scale=by_scale)
    return like(summed(gradient, rows), arrays)

  return layout.map(
    on_device,
    (specs(call, arrays), layout.rows, layout.rows, layout.parts, layout.rows),
    only(layout.arrays(head), wanted),
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
      wanted &= {"features", "scale"}
    sums, count, by = run_forward(call, way, arrays, ids)
    # As keys of a dict, names are a part of the type.
    return (sums, count), (arrays, ids, sums, by, dict.fromkeys(wanted))

  def backward(call, residuals, cotangent):
    arrays, ids, sums, by, wanted = residuals
    slopes = _slopes(cotangent[0], sums)
    gradient = _run_backward(
      call, frozenset(wanted), arrays, ids, sums, by, slopes
    )
    return gradient, None

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
