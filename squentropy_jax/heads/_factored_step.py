# SPDX-License-Identifier: Apache-2.0
"""The factors of an output layer, and what a step of SGD does to them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class FactoredOutput(NamedTuple):
  r"""A kernel of :math:`D` classes as a product that SGD can update.

  With :math:`W` the transposed kernel, of shape ``[D, d]``,

  .. math::
    W = V U + 1 \omega^T .

  A step of gradient descent changes a few rows of :math:`V`, and the small
  arrays. `factored_init` returns a `FactoredOutput`.

  Attributes:
    rows: :math:`V`, shape ``[D, d]``.
    mix: :math:`U`, shape ``[d, d]``.
    mix_inverse: The inverse of :math:`U`, shape ``[d, d]``.
    gram: :math:`W^T W`, shape ``[d, d]``.
    shift: :math:`\omega`, shape ``[d]``.
    row_sum: The sum of the rows of :math:`W`, shape ``[d]``.
  """

  rows: jax.Array
  mix: jax.Array
  mix_inverse: jax.Array
  gram: jax.Array
  shift: jax.Array
  row_sum: jax.Array


def product(a: jax.Array, b: jax.Array) -> jax.Array:
  """Multiplies matrices without a rounding of the operands."""
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def forward(
  state: FactoredOutput, h: jax.Array, ids: jax.Array, invalid: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Outputs of the classes ``ids``, and sums over all classes."""
  some = jnp.take(state.rows, ids, axis=0)
  mixed = product(h, state.mix.T)
  outputs = jnp.einsum(
    "mkd,md->mk", some, mixed, precision=jax.lax.Precision.HIGHEST
  )
  outputs += product(h, state.shift)[:, None]
  outputs = jnp.where(invalid, jnp.nan, outputs)
  total_sq = (h * product(h, state.gram)).sum(-1)
  # It is a sum of squares, whatever rounding makes of it.
  return outputs, product(h, state.row_sum), jnp.maximum(total_sq, 0.0)


def update(
  state: FactoredOutput,
  h: jax.Array,
  ids: jax.Array,
  by_output: jax.Array,
  by_total: jax.Array,
  by_total_sq: jax.Array,
  rate: jax.Array,
) -> tuple[jax.Array, FactoredOutput]:
  """The gradient of the features, and the factors after a step."""
  num_classes = state.rows.shape[0]
  # The derivative by the outputs of all classes is
  # twice * outputs + by_total + (by_output at the ids).
  twice = 2.0 * by_total_sq
  scaled = twice[:, None] * h
  sum_output = by_output.sum(-1)

  some = jnp.take(state.rows, ids, axis=0)
  of_ids = jnp.einsum(
    "mk,mkd->md", by_output, some, precision=jax.lax.Precision.HIGHEST
  )
  rest = product(of_ids, state.mix) + jnp.outer(sum_output, state.shift)
  rest += jnp.outer(by_total, state.row_sum)
  grad = product(scaled, state.gram) + rest

  places = _first_places(ids)
  flat = (by_output[..., None] * h[:, None]).reshape(-1, h.shape[1])
  # What each named row of the kernel gets, at the first place that names it.
  changes = jnp.zeros_like(flat).at[places].add(flat)
  outer = product(h.T, scaled)
  inverse = _moved_inverse(state.mix_inverse, h, scaled, outer, rate)
  # What is written is computed from what was read, so that XLA can update the
  # array in place.
  written = (
    some.reshape(-1, h.shape[1]) - rate * product(changes, inverse)[places]
  )

  # The Gram matrix of the derivative by the kernel.
  from_total, from_output = product(by_total, h), product(sum_output, h)
  mixed = product(outer, product(rest.T, h)) + jnp.outer(
    from_total, from_output
  )
  of_step = product(product(outer, state.gram), outer) + mixed + mixed.T
  of_step += num_classes * jnp.outer(from_total, from_total)
  of_step += product(changes.T, changes)
  step = product(grad.T, h)
  gram = state.gram - rate * (step + step.T) + jnp.square(rate) * of_step

  def moved(v: jax.Array, more: jax.Array) -> jax.Array:
    return v - rate * product(twice * product(h, v) + more, h)

  return grad, FactoredOutput(
    rows=state.rows.at[ids.reshape(-1)].set(written),
    mix=state.mix - rate * product(product(state.mix, h.T), scaled),
    mix_inverse=inverse,
    gram=gram,
    shift=moved(state.shift, by_total),
    row_sum=moved(state.row_sum, num_classes * by_total + sum_output),
  )


def _moved_inverse(
  inverse: jax.Array,
  h: jax.Array,
  scaled: jax.Array,
  outer: jax.Array,
  rate: jax.Array,
) -> jax.Array:
  """``(1 - rate * outer)^-1 inverse``, where ``outer`` is ``h^T scaled``."""
  m, d = h.shape
  if m >= d:
    return jnp.linalg.solve(jnp.eye(d, dtype=h.dtype) - rate * outer, inverse)
  # By Woodbury's identity, a system of m equations.
  system = jnp.eye(m, dtype=h.dtype) - rate * product(h, scaled.T)
  solved = jnp.linalg.solve(system, product(h, inverse))
  return inverse + rate * product(scaled.T, solved)


def _first_places(ids: jax.Array) -> jax.Array:
  """For each of the flat ids the first place with an equal id."""
  flat = ids.reshape(-1)
  order = jnp.argsort(flat, stable=True)
  in_order = flat[order]
  is_first = jnp.concatenate(
    [in_order[:1] == in_order[:1], in_order[1:] != in_order[:-1]]
  )
  place = jnp.arange(flat.size, dtype=jnp.int32)
  start = jax.lax.cummax(jnp.where(is_first, place, 0))
  return jnp.zeros_like(place).at[order].set(order[start].astype(jnp.int32))
