# SPDX-License-Identifier: Apache-2.0
"""Finite logits of any size in a fused head: right, or documented NaN."""

from cases import CLASS_CASES
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.contract import jit

from squentropy_jax import fused

F32 = np.float32
# Squares and sums of squares near the largest float are NaN in these.
NAN = ("spherical_softmax", "taylor_softmax", "zscore")
SIZES = np.repeat([3e15, 3e16, 1e18, 1e19, 1e30, 3e38], 5)
SHAPES = (
  [1.0, 0.0, -0.5, 0.0],
  [0.0, 1.0, 0.0, -1.0],
  [1.0, 1.0, 0.0, 1 / 3],
  [-1.0, 0.0, 0.0, 0.0],
  [1e-3, 0.0, -1.0, 0.0],
)
SMALL = (0.0, 0.5, 2.0, 1.0)
LOGITS = (SIZES[:, None] * np.tile(SHAPES, (6, 1)) + SMALL).astype(F32)
HARD = jnp.zeros(len(LOGITS), jnp.int32)
# The products of this kernel are exactly the features.
KERNEL = jnp.eye(4, dtype=jnp.float32)


def fused_loss(loss):
  return lambda z: fused.linear_loss(loss, z, KERNEL, HARD)


def dense_loss(loss):
  return lambda z: loss(z, HARD)


@pytest.mark.parametrize(
  "case", [c for c in CLASS_CASES if hasattr(c.loss, "row")], ids=repr
)
def test_head_is_as_the_dense_loss_or_nan(case):
  @jit
  def both(z):
    found = []
    for form in (fused_loss, dense_loss):
      value, pull = jax.vjp(form(case.loss), z)
      found.append((value, pull(jnp.ones_like(value))[0]))
    return found

  (value, gradient), (expected, by_logit) = jax.tree.map(
    np.asarray, both(LOGITS)
  )
  undefined = np.isnan(value)
  assert np.isnan(gradient).any(-1)[undefined & ~np.isnan(expected)].all()
  if case.name in NAN:
    assert undefined[SIZES >= 1e18].all()
    assert not undefined[SIZES <= 3e16].any()
  else:
    np.testing.assert_array_equal(undefined, np.isnan(expected))
  value, expected, z, gradient, by_logit = (
    x[~undefined] for x in (value, expected, LOGITS, gradient, by_logit)
  )
  finite = np.isfinite(expected)
  np.testing.assert_array_equal(value[~finite], expected[~finite])
  # A loss that is a difference of logits has their rounding error.
  size = np.abs(np.float64(expected[finite]))
  if case.size is not None:
    size += [abs(case.size(np.float64(row), 0)) for row in z[finite]]
  error = np.abs(np.float64(value[finite]) - expected[finite])
  np.testing.assert_array_less(error, 4e-6 * size + 1e-37)
  # Terms of 1 over the largest logit cancel.
  terms = np.abs(by_logit).max(-1) + 1 / np.abs(z).max(-1)
  np.testing.assert_array_less(
    np.abs(np.float64(gradient) - by_logit).max(-1), 4e-6 * terms + 1e-37
  )
