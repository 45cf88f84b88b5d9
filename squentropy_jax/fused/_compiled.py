# SPDX-License-Identifier: Apache-2.0
"""What the public functions compute, compiled, on checked arguments."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from squentropy_jax._core import varying
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax.fused import _grad_in_forward, _loss, _rules, _targets
from squentropy_jax.fused._arguments import HeadArguments
from squentropy_jax.fused._loss import HeadLoss, Numbers
from squentropy_jax.fused._rules import Call
from squentropy_jax.fused._targets import Targets
from squentropy_jax.fused._tiles import Arrays


def _num_classes(call: Call, kernel: jax.Array) -> int:
  """How many classes there are on all devices."""
  here = kernel.shape[call.head.class_axis]
  mesh, _, axes = call.layout
  return here * jax.lax.axis_size(axes) if mesh is None and axes else here


def _arrays(
  call: Call,
  arguments: HeadArguments,
  keep: jax.Array | None,
  factor: jax.Array | None,
) -> Arrays:
  """The arrays of the head, 0 in dropped rows, classes divisible by devices."""
  features, kernel, bias = arguments.features, arguments.kernel, arguments.bias
  axis, layout = call.head.class_axis, call.layout
  if keep is not None:
    # Before any product: 0 times NaN is NaN.
    features = jnp.where(keep[..., None], features, jnp.zeros_like(features))
  if call.mode == "frozen_kernel":
    kernel, bias = jax.lax.stop_gradient((kernel, bias))
  missing = -kernel.shape[axis] % layout.shards(layout.vocab_axis)
  if missing:
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, missing)
    # Not every narrow type has an infinity.
    wide = Arrays(features, kernel).sum_dtype
    if bias is None:
      bias = jnp.zeros(kernel.shape[axis], wide)
    kernel = jnp.pad(kernel, widths)
    bias = jnp.pad(bias.astype(wide), (0, missing), constant_values=-jnp.inf)
  arrays = Arrays(features, kernel, bias, factor)
  by_name = layout.by_name(axis)
  return Arrays._make(
    None if x is None else layout.place(x, by_name[name])
    for name, x in arrays._asdict().items()
  )


class ReadyCall(NamedTuple):
  """A call whose dropped rows hold placeholders.

  Attributes:
    call: What is static, with what the loss reads.
    arrays: What is differentiated.
    targets: Of the rows.
    keep: Which rows count, or None for all.
    numbers: Of the loss.
  """

  call: Call
  arrays: Arrays
  targets: Targets
  keep: jax.Array | None
  numbers: Numbers


def _ready(
  call: Call, loss: HeadLoss | None, arguments: HeadArguments
) -> ReadyCall:
  """What the rules of differentiation take."""
  layout, features = call.layout, arguments.features
  of_rows = ("features", "labels", "where", "weights", "numbers")
  arguments = arguments._replace(
    **{
      name: jax.tree.map(
        lambda x: layout.place(x, layout.rows) if x.ndim else x,
        getattr(arguments, name),
      )
      for name in of_rows
    }
  )
  keep, weights, numbers = arguments.where, arguments.weights, arguments.numbers
  if weights is not None:
    used = weights != 0
    keep = used if keep is None else keep & used
  factor = None
  reads = _loss.sums_read(frozenset(RowStats._fields))
  if loss is not None:
    if keep is not None:
      known = loss.loss.hyperparameters
      numbers = numbers._replace(
        values=known.placeholders(numbers.values, keep)
      )
    reads, factor = loss.reads(numbers), loss.factor(numbers)
  if factor is not None:
    # Varied before it is repeated: its gradient is summed, then sent.
    factor = varying.vary_like(factor, features)
    factor = layout.broadcast(factor, features.shape[:-1])
  arrays = _arrays(call, arguments, keep, factor)
  classes = _num_classes(call, arguments.kernel)
  if isinstance(arguments.labels, tuple):
    ids, probabilities = arguments.labels
    probabilities = probabilities.astype(arrays.sum_dtype)
    targets = _targets.sparse_targets(ids, probabilities, classes, keep)
  else:
    targets = _targets.hard_targets(arguments.labels, classes, keep)
  head = call.head._replace(reads=reads, scaled=factor is not None)
  return ReadyCall(call._replace(head=head), arrays, targets, keep, numbers)


# Compiled here, so that a call outside jit is one dispatch; inlined in a trace.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def stats(call: Call, arguments: HeadArguments) -> RowStats:
  """`linear_row_stats` on checked arguments."""
  ready = _ready(call, None, arguments)
  targets = ready.targets
  sums, count = _rules.linear_sums(ready.call, ready.arrays, targets.ids)
  used = targets.ids >= 0
  return RowStats(
    *(
      jnp.where(used, field, jnp.zeros_like(field))[..., 0]
      for field in _targets.row_stats(sums, count, targets)
    )
  )


def _row_losses(loss: HeadLoss, ready: ReadyCall) -> jax.Array:
  targets = ready.targets
  sums, count = _rules.linear_sums(ready.call, ready.arrays, targets.ids)
  return _loss.row_losses(loss, ready.numbers, sums, count, targets)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def losses(call: Call, loss: HeadLoss, arguments: HeadArguments) -> jax.Array:
  """`linear_loss` on checked arguments."""
  return _row_losses(loss, _ready(call, loss, arguments))


def _weighted_rows(
  ready: ReadyCall, weights: jax.Array
) -> _grad_in_forward.WeightedRows:
  """The rows with a value of each number, local to a device of a shard_map."""
  layout = ready.call.layout
  rows = _grad_in_forward.WeightedRows(ready.targets, weights, ready.numbers)
  axes = varying.axes_of(ready.arrays, rows) - frozenset(layout.vocab_axis)
  rows = varying.vary(rows, axes)
  return rows._replace(
    numbers=jax.tree.map(
      lambda x: layout.broadcast(x, weights.shape), rows.numbers
    )
  )


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def loss_sum(
  call: Call, loss: HeadLoss, arguments: HeadArguments
) -> tuple[jax.Array, jax.Array]:
  """`linear_loss_sum` on checked arguments."""
  ready = _ready(call, loss, arguments)
  call, arrays, keep = ready.call, ready.arrays, ready.keep
  weights = arguments.weights
  if weights is None:
    weights = jnp.ones(arguments.features.shape[:-1])
  weights = call.layout.place(weights, call.layout.rows)
  weights = weights.astype(arrays.sum_dtype)
  if keep is not None:
    weights = jnp.where(keep, weights, jnp.zeros_like(weights))
  if call.mode == "grad_in_forward" or (
    call.mode is None and _rules.grad_in_forward_fits(call, arrays)
  ):
    rows = _weighted_rows(ready, weights)
    total = _grad_in_forward.loss_sum(call, loss, arrays, rows)
  else:
    total = jnp.sum(_row_losses(loss, ready) * weights)
  return total, weights.sum()
