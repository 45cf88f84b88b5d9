# SPDX-License-Identifier: Apache-2.0
"""What the public heads compute, on checked arguments."""

import functools

import jax
import jax.numpy as jnp

from squentropy_jax._core import rows as _rows
from squentropy_jax.fused import _core, _formula, _kept
from squentropy_jax.fused._arguments import Inputs, Settings
from squentropy_jax.fused._formula import Hyper, RowLoss, Targets
from squentropy_jax.fused._tiles import Arrays, Head


def _num_classes(settings: Settings, inputs: Inputs) -> int:
  """How many classes there are on all devices."""
  here = inputs.kernel.shape[settings.class_axis]
  mesh, _, axes = settings.layout
  return here * jax.lax.axis_size(axes) if mesh is None and axes else here


def _arrays(
  settings: Settings,
  inputs: Inputs,
  keep: jax.Array | None,
  scale: jax.Array | None,
) -> Arrays:
  """The arrays of the head, 0 in dropped rows, classes divisible by devices."""
  features, kernel, bias = inputs.features, inputs.kernel, inputs.bias
  if keep is not None:
    # Before any product: 0 times NaN is NaN.
    zero = jnp.zeros_like(features)
    features = jnp.where(keep[..., None], features, zero)
  if settings.way == "frozen":
    kernel, bias = jax.lax.stop_gradient((kernel, bias))
  classes = kernel.shape[settings.class_axis]
  missing = -classes % settings.layout.shards(settings.layout.vocab_axis)
  if missing:
    widths = [(0, 0), (0, 0)]
    widths[settings.class_axis] = (0, missing)
    # Not every narrow type has an infinity.
    wide = Arrays(features, kernel).sum_dtype
    bias = jnp.zeros(classes, wide) if bias is None else bias.astype(wide)
    kernel = jnp.pad(kernel, widths)
    bias = jnp.pad(bias, (0, missing), constant_values=-jnp.inf)
  arrays = Arrays(features, kernel, bias, scale)
  by_name = settings.layout.by_name(settings.class_axis)
  return Arrays._make(
    None if x is None else settings.layout.place(x, by_name[name])
    for name, x in arrays._asdict().items()
  )


def _placed(settings: Settings, inputs: Inputs) -> Inputs:
  """What has rows, spread as the rows are."""
  layout = settings.layout
  rows = (inputs.features, inputs.labels, inputs.where, inputs.weights)
  features, labels, where, weights = jax.tree.map(
    lambda x: layout.place(x, layout.rows), rows
  )
  return inputs._replace(
    features=features, labels=labels, where=where, weights=weights
  )


def _prepared(
  settings: Settings,
  inputs: Inputs,
  reads: frozenset[str],
  scale: jax.Array | None = None,
) -> tuple[_core.Call, Arrays, Targets]:
  """What `_core` needs."""
  inputs = _placed(settings, inputs)
  keep, weights = inputs.where, inputs.weights
  if weights is not None:
    used = weights != 0
    keep = used if keep is None else keep & used
  arrays = _arrays(settings, inputs, keep, scale)
  classes = _num_classes(settings, inputs)
  if isinstance(inputs.labels, tuple):
    ids, probabilities = inputs.labels
    probabilities = probabilities.astype(arrays.sum_dtype)
    targets = _formula.sparse_targets(ids, probabilities, classes, keep)
  else:
    targets = _formula.hard_targets(inputs.labels, classes, keep)
  head = Head(settings.class_axis, settings.soft_cap, reads, scale is not None)
  call = _core.Call(head, settings.layout, settings.way, settings.budget)
  return call, arrays, targets


def _scale(loss: RowLoss, hyper: Hyper) -> jax.Array | None:
  if loss.logit_scale is None:
    return None
  return jnp.asarray(loss.logit_scale(**hyper.row))


# Compiled here, so that a call outside jit is one dispatch; inlined in a trace.
_compiled = functools.partial(jax.jit, static_argnums=(0, 1), inline=True)


@_compiled
def stats(
  settings: Settings, reads: frozenset[str], inputs: Inputs
) -> _rows.RowStats:
  """`linear_row_stats` on checked arguments."""
  call, arrays, targets = _prepared(settings, inputs, reads)
  sums, count = _core.linear_sums(call, arrays, targets.ids)
  used = targets.ids >= 0
  return _rows.RowStats(
    *(
      jnp.where(used, field, jnp.zeros_like(field))[..., 0]
      for field in _formula.row_stats(sums, count, targets)
    )
  )


@_compiled
def losses(
  settings: Settings, loss: RowLoss, inputs: Inputs, hyper: Hyper
) -> jax.Array:
  """`linear_loss` on checked arguments."""
  reads = _formula.fields_read(loss, tuple(hyper.row))
  scale = _scale(loss, hyper)
  call, arrays, targets = _prepared(settings, inputs, reads, scale)
  sums, count = _core.linear_sums(call, arrays, targets.ids)
  return _formula.row_losses(loss, hyper, sums, count, targets)


@_compiled
def loss_sum(
  settings: Settings, loss: RowLoss, inputs: Inputs, hyper: Hyper
) -> tuple[jax.Array, jax.Array]:
  """`linear_loss_sum` on checked arguments."""
  reads = _formula.fields_read(loss, tuple(hyper.row))
  scale = _scale(loss, hyper)
  call, arrays, targets = _prepared(settings, inputs, reads, scale)
  weights = inputs.weights
  if weights is None:
    weights = jnp.ones(inputs.features.shape[:-1])
  weights = settings.layout.place(weights, settings.layout.rows)
  weights = weights.astype(arrays.sum_dtype)
  if targets.keep is not None:
    weights = jnp.where(targets.keep, weights, jnp.zeros_like(weights))
  keep = call.way is None and _core.keeps(call, arrays)
  if keep or call.way == "keep":
    rows = _kept.Rows(targets, weights)
    total = _kept.kept_loss_sum(call, loss, arrays, rows, hyper)
  else:
    sums, count = _core.linear_sums(call, arrays, targets.ids)
    each = _formula.row_losses(loss, hyper, sums, count, targets)
    total = jnp.sum(each * weights)
  return total, weights.sum()
