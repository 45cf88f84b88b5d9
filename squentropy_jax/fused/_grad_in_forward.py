# SPDX-License-Identifier: Apache-2.0
"""The sum of the losses of a head, its gradient formed in the forward pass."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core import varying
from squentropy_jax._core.class_sums import ClassSums
from squentropy_jax.fused import _mesh, _one_pass, _residuals, _rules, _tiles
from squentropy_jax.fused._loss import HeadLoss, Numbers, row_losses
from squentropy_jax.fused._rules import Call
from squentropy_jax.fused._targets import Targets
from squentropy_jax.fused._tiles import Arrays, Cotangents, Gradient, RowSums


class WeightedRows(NamedTuple):
  """What a sum of losses knows of its rows ``[...]``, all of that shape."""

  targets: Targets
  weights: jax.Array
  numbers: Numbers


class RowGradients(NamedTuple):
  """The gradients of the sum by what its rows have."""

  weights: jax.Array
  probabilities: jax.Array | None
  numbers: Numbers


def _run_forward(
  call: Call,
  loss: HeadLoss,
  wanted: frozenset[str],
  arrays: Arrays,
  rows: WeightedRows,
) -> tuple[jax.Array, Gradient, RowGradients]:
  """The sum of the losses, over all devices of a mesh, and its gradients."""
  head, layout = call.head, call.layout
  blocks = _rules.blocks_for(call, "grad_in_forward", arrays)

  def on_device(
    arrays: Arrays, rows: WeightedRows
  ) -> tuple[jax.Array, Gradient, RowGradients]:
    batch = arrays.features.shape[:-1]
    first = _mesh.first_class(layout, head, arrays)
    count = _mesh.count_possible(layout, head, arrays)
    of_head = _rules.row_arrays(arrays, rows.targets.ids)
    some = arrays._replace(features=of_head.features, factor=of_head.factor)
    axes = varying.axes_of(arrays, rows) - frozenset(layout.vocab_axis)
    flat = varying.vary(_rules.flat(rows, len(batch)), axes)

    def finish(
      here: RowSums, factor: jax.Array | None, rows: WeightedRows
    ) -> tuple[ClassSums, Cotangents, Any, jax.Array]:
      classes = here.classes._replace(max_id=here.classes.max_id + first)
      every = _mesh.add_up(layout, head, here._replace(classes=classes))
      sums = every.classes

      def losses_of(
        fields: Cotangents, probabilities: jax.Array | None, numbers: Numbers
      ) -> jax.Array:
        targets = rows.targets._replace(probabilities=probabilities)
        own_sums = sums._replace(**fields)
        return row_losses(loss, numbers, own_sums, count, targets)

      names = _rules.differentiable(head)
      losses, vjp = jax.vjp(
        losses_of,
        {name: getattr(sums, name) for name in names},
        rows.targets.probabilities,
        rows.numbers,
      )
      cotangents, by_probability, by_numbers = vjp(rows.weights)
      by_factor = {}
      if factor is not None and "factor" in wanted:
        by_factor["factor"] = _tiles.factor_gradient(factor, every, cotangents)
      by_rows = RowGradients(losses, by_probability, by_numbers)
      sums = sums._replace(max_id=sums.max_id - first)
      total = jnp.sum(losses * rows.weights)
      return sums, cotangents, (by_factor, by_rows), total

    zero = varying.vary(jnp.zeros((), rows.weights.dtype), axes)
    gradient, ys, total = _one_pass.gradient_in_forward(
      head,
      blocks,
      some,
      of_head.ids - first,
      flat,
      finish,
      zero,
      wanted - {"factor"},
      _rules.kernel_dtype(some),
    )
    by_factor, by_rows = _rules.shaped(ys, batch)
    gradient |= by_factor
    if layout.mesh is not None:
      # One cotangent for all devices will come, so the parts are added here.
      gradient = _rules.summed(gradient, some)
      total = lax.psum(total, layout.batch_axis) if layout.batch_axis else total
    if "features" in gradient:
      by_features = gradient["features"].reshape(arrays.features.shape)
      gradient["features"] = by_features
    return total, gradient, by_rows

  everywhere, of_rows = layout.everywhere, layout.rows
  return layout.map(
    on_device,
    (_rules.specs(call, arrays), of_rows),
    (everywhere, _rules.gradient_specs(call, wanted), of_rows),
  )(arrays, rows)


def _rule(symbolic: bool) -> Callable[..., jax.Array]:
  """`loss_sum`, with or without asking what is differentiated."""

  @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
  def sum_of(call, loss, arrays, rows):
    out = _rules.run_forward(call, "forward", arrays, rows.targets.ids)
    sums, count = out.sums.classes, out.num_classes
    losses = row_losses(loss, rows.numbers, sums, count, rows.targets)
    return jnp.sum(losses * rows.weights)

  def forward(call, loss, arrays, rows):
    wanted = _residuals.wanted_of(arrays, symbolic)
    if symbolic:
      arrays, rows = _residuals.values((arrays, rows))
    total, gradient, by_rows = _run_forward(call, loss, wanted, arrays, rows)
    notes = _residuals.note(wanted, Arrays._fields)
    gradient = _residuals.filled(gradient, Arrays._fields)
    return total, (gradient, by_rows, notes, arrays)

  def backward(call, loss, residuals, cotangent):
    gradient, by_rows, notes, arrays = residuals
    gradient = {name: gradient[name] for name in _residuals.noted(notes)}
    # A number of Python has no dtype.
    cotangent = jnp.asarray(cotangent, by_rows.weights.dtype)
    gradient, by_rows = jax.tree.map(
      lambda x: x.astype(cotangent.dtype) * cotangent, (gradient, by_rows)
    )
    gradient = _rules.like(_rules.summed(gradient, arrays), arrays)
    targets = Targets._make((None, by_rows.probabilities, None))
    of_rows = WeightedRows(targets, by_rows.weights, by_rows.numbers)
    return _residuals.as_cotangent(gradient), of_rows

  sum_of.defvjp(forward, backward, symbolic_zeros=symbolic)
  return sum_of


_RULES = {symbolic: _rule(symbolic) for symbolic in (False, True)}


def loss_sum(
  call: Call, loss: HeadLoss, arrays: Arrays, rows: WeightedRows
) -> jax.Array:
  """The weighted sum of the losses of rows, over all devices of a mesh."""
  return _RULES[_residuals.may_ask()](call, loss, arrays, rows)
