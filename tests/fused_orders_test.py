# SPDX-License-Identifier: Apache-2.0
"""A gradient of a linear head does not depend on the gradients before it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import heads
from support.heads import COTANGENT, FEATURES, KERNEL, LABELS

from squentropy_jax import fused, losses


def each(**settings):
  return lambda h, w: (
    COTANGENT @ fused.linear_loss(losses.squentropy, h, w, LABELS, **settings)
  )


def total(**settings):
  return lambda h, w: fused.linear_loss_sum(
    losses.squentropy, h, w, LABELS, weights=COTANGENT, **settings
  )[0]


def by_stats(h, w):
  stats = fused.linear_row_stats(h, w, LABELS)
  return COTANGENT @ losses.squentropy.row(stats)


HEADS = {
  "linear_loss": each(),
  "linear_loss, recompute": each(plan=fused.Plan("recompute")),
  "linear_loss, frozen_kernel": each(plan=fused.Plan("frozen_kernel")),
  "linear_loss_sum": total(),
  "linear_loss_sum, recompute": total(plan=fused.Plan("recompute")),
  "linear_row_stats": by_stats,
}


@pytest.mark.parametrize("name", HEADS)
def test_gradients_in_any_order(name):
  """JAX keeps one rule for one trace, whatever is differentiated by."""
  exact = heads.gradients(
    heads.truth("squentropy", FEATURES, KERNEL, LABELS),
    FEATURES,
    KERNEL,
    COTANGENT,
  )
  frozen = name.endswith("frozen_kernel")

  def check(by_features, by_kernel):
    heads.assert_close(by_features, *exact["features"])
    if frozen:
      assert not np.any(by_kernel)
    else:
      heads.assert_close(by_kernel, *exact["kernel"])

  def one_by_one(head, h, w):
    first, by_kernel, again = (jax.grad(head, i)(h, w) for i in (0, 1, 0))
    return [(first, by_kernel), (again, by_kernel)]

  def both_alive(head, h, w):
    _, one = jax.vjp(lambda h: head(h, w), h)
    _, other = jax.vjp(lambda w: head(h, w), w)
    return [one(jnp.float32(1)) + other(jnp.float32(1))]

  def together(head, h, w):
    _, along = jax.linearize(head, h, w)
    transposed = jax.linear_transpose(along, h, w)(jnp.float32(1))
    return [jax.grad(head, (0, 1))(h, w), transposed]

  chosen = HEADS[name]

  @heads.jit
  def in_a_program(h, w):
    # A jit of the user's has one trace, and so have the calls of one shape.
    return both_alive(jax.jit(lambda *a: chosen(*a)), h, w) + together(
      chosen, h, w
    )

  for found in (
    *one_by_one(chosen, FEATURES, KERNEL),
    *in_a_program(FEATURES, KERNEL),
  ):
    check(*found)
