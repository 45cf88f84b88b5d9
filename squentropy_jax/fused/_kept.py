# SPDX-License-Identifier: Apache-2.0
"""The sum of the losses of a head, its gradient formed in the forward pass."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core import varying
from squentropy_jax.fused import _core, _one_pass, _sharded, _xla
from squentropy_jax.fused._core import Call
from squentropy_jax.fused._formula import Hyper, RowLoss, Targets, row_losses
from squentropy_jax.fused._tiles import Arrays, Gradient, Slopes, Sums


class Rows(NamedTuple):
  """What a sum of losses knows of its rows ``[...]``."""

  targets: Targets
  weights: jax.Array


class Kept(NamedTuple):
  """What the forward pass leaves for the backward pass to scale."""

  gradient: Gradient
  losses: jax.Array
  probabilities: jax.Array | None
  hyper: Hyper


def _run_forward(
  call: Call,
  loss: RowLoss,
  wanted: frozenset[str],
  arrays: Arrays,
  rows: Rows,
  hyper: Hyper,
) -> tuple[jax.Array, Kept]:
  """The sum of the losses, over all devices of a mesh, and its gradient."""
  head, layout = call.head, call.layout
  blocks = _core.blocks_for(call, "keep", arrays)

  def on_device(
    arrays: Arrays, rows: Rows, hyper: Hyper
  ) -> tuple[jax.Array, Kept]:
    batch = arrays.features.shape[:-1]
    features, flat = _core.flat((arrays.features, rows), len(batch))
    some = arrays._replace(features=features)
    first = _sharded.first_class(layout, head, arrays)
    count = _sharded.count_possible(layout, head, arrays)
    axes = varying.axes_of(arrays, rows, hyper) - frozenset(layout.vocab_axis)
    # Made local, so that cotangents cross devices once, not every block.
    numbers = varying.vary((hyper, arrays.scale), axes)
    flat = varying.vary(flat, axes)

    def finish(sums: Sums, rows: Rows) -> tuple[Sums, Slopes, Any, Any]:
      sums = sums._replace(top_id=sums.top_id + first)
      sums = _sharded.add_up(layout, head, sums)

      def losses_of(
        fields: Slopes, probabilities: jax.Array | None, hyper: Hyper
      ) -> jax.Array:
        own_sums = sums._replace(**fields._asdict())
        targets = rows.targets._replace(probabilities=probabilities)
        return row_losses(loss, hyper, own_sums, count, targets)

      fields = Slopes(*(getattr(sums, name) for name in Slopes._fields))
      losses, vjp = jax.vjp(
        losses_of, fields, rows.targets.probabilities, numbers[0]
      )
      slopes, by_probability, by_hyper = vjp(rows.weights)
      by_scale = {}
      if arrays.scale is not None and "scale" in wanted:
        by_scale["scale"] = _xla.slope_by_scale(numbers[1], sums, slopes)
      more = (jnp.sum(losses * rows.weights), by_hyper, by_scale)
      sums = sums._replace(top_id=sums.top_id - first)
      return sums, slopes, (losses, by_probability), more

    nothing = (
      jnp.zeros((), rows.weights.dtype),
      hyper,
      {"scale": arrays.scale} if "scale" in wanted else {},
    )
    gradient, ys, (total, by_hyper, by_scale) = _one_pass.keep_gradient(
      head,
      blocks,
      some,
      flat.targets.ids - first,
      flat,
      finish,
      varying.vary(jax.tree.map(jnp.zeros_like, nothing), axes),
      wanted - {"scale"},
      _core.kernel_dtype(some),
    )
    gradient |= by_scale
    if layout.mesh is not None:
      # One cotangent for all devices will come, so the parts are added here.
      gradient = _core.summed(gradient, some)
      by_hyper = _sharded.summed(by_hyper, hyper)
      total = lax.psum(total, layout.batch_axis) if layout.batch_axis else total
    if "features" in gradient:
      by_features = gradient["features"].reshape(arrays.features.shape)
      gradient["features"] = by_features
    losses, by_probability = _core.shaped(ys, batch)
    return total, Kept(gradient, losses, by_probability, by_hyper)

  everywhere, of_rows = layout.everywhere, layout.rows
  by_wanted = _core.gradient_specs(call, wanted)
  return layout.map(
    on_device,
    (_core.specs(call, arrays), of_rows, everywhere),
    (everywhere, Kept._make((by_wanted, of_rows, of_rows, everywhere))),
  )(arrays, rows, hyper)


def _rule(symbolic: bool) -> Callable[..., jax.Array]:
  """`kept_loss_sum`, with or without asking what is differentiated."""

  @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
  def loss_sum(call, loss, arrays, rows, hyper):
    sums, count, _ = _core.run_forward(call, "value", arrays, rows.targets.ids)
    losses = row_losses(loss, hyper, sums, count, rows.targets)
    return jnp.sum(losses * rows.weights)

  def forward(call, loss, arrays, rows, hyper):
    wanted = _core.wanted_of(arrays, symbolic)
    if symbolic:
      arrays, rows, hyper = _core.values((arrays, rows, hyper))
    total, kept = _run_forward(call, loss, wanted, arrays, rows, hyper)
    notes = _core.note(wanted, Arrays._fields)
    gradient = _core.filled(kept.gradient, Arrays._fields)
    kept = kept._replace(gradient=gradient)
    of_rows = rows.targets.probabilities, rows.weights
    return total, (kept, notes, arrays, of_rows, hyper)

  def backward(call, loss, residuals, cotangent):
    kept, notes, arrays, of_rows, hyper = residuals
    gradient = {name: kept.gradient[name] for name in _core.noted(notes)}
    # A number of Python has no dtype.
    cotangent = jnp.asarray(cotangent, kept.losses.dtype)
    kept = jax.tree.map(
      lambda x: x.astype(cotangent.dtype) * cotangent,
      kept._replace(gradient=gradient),
    )
    gradient = _core.like(_core.summed(kept.gradient, arrays), arrays)
    probabilities, losses = _sharded.summed(
      (kept.probabilities, kept.losses), of_rows
    )
    targets = Targets._make((None, probabilities, None, None))
    by_hyper = _sharded.summed(kept.hyper, hyper)
    return _core.as_cotangent(gradient), Rows(targets, losses), by_hyper

  loss_sum.defvjp(forward, backward, symbolic_zeros=symbolic)
  return loss_sum


_RULES = {symbolic: _rule(symbolic) for symbolic in (False, True)}


def kept_loss_sum(
  call: Call, loss: RowLoss, arrays: Arrays, rows: Rows, hyper: Hyper
) -> jax.Array:
  """The weighted sum of the losses of rows, over all devices of a mesh."""
  return _RULES[_core.may_ask()](call, loss, arrays, rows, hyper)
