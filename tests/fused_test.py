# SPDX-License-Identifier: Apache-2.0
"""Linear heads against float64 on full logits."""

import functools
import unittest.mock

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import fused_settings, heads
from support.heads import COTANGENT, FEATURES, KERNEL, LABELS

from squentropy_jax import fused, losses
from squentropy_jax.fused import _plan
from squentropy_jax.fused._plan import Blocks


@pytest.mark.parametrize("setting", fused_settings.covering(24), ids=str)
def test_pairs_of_settings(setting):
  fused_settings.check(setting)


@pytest.mark.full
@pytest.mark.parametrize("setting", fused_settings.every_setting(), ids=str)
def test_every_setting(setting):
  fused_settings.check(setting)


@pytest.mark.x64
@pytest.mark.parametrize("mode", fused_settings.AXES["mode"])
def test_float64_stays(mode):
  fused_settings.check(
    fused_settings.Setting(
      mode, "float64", "ragged", True, True, 5.0, False, "squentropy", 0
    )
  )


# Second derivatives.

WEIGHTS = np.float64(COTANGENT)


@pytest.mark.x64
@pytest.mark.parametrize("mode", ["recompute", "grad_in_forward"])
def test_products_with_the_hessian(mode):
  def dense(h, w):
    return losses.squentropy(h @ w, LABELS) @ WEIGHTS

  def head(h, w):
    return fused.linear_loss_sum(
      losses.squentropy, h, w, LABELS, weights=WEIGHTS, plan=fused.Plan(mode)
    )[0]

  at = np.float64(FEATURES), np.float64(KERNEL)
  towards = tuple(np.cos(np.arange(x.size)).reshape(x.shape) for x in at)
  expected = jax.jvp(jax.grad(dense, (0, 1)), at, towards)
  found = jax.jvp(jax.grad(head, (0, 1)), at, towards)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


# Shapes and tiles.

COUNTS = st.integers(1, 9)


# Every example compiles; to shrink one would take minutes.
@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    ("squentropy", jnp.float32),
    ("squentropy", jnp.bfloat16),
    ("rescaled_square", jnp.float32),
    ("rescaled_square", jnp.bfloat16),
  ],
)
@hypothesis.settings(max_examples=3, phases=[hypothesis.Phase.generate])
@hypothesis.given(st.data())
def test_any_shape_in_any_tiles(name, dtype, data):
  rows, width = (data.draw(COUNTS) for _ in range(2))
  classes = data.draw(COUNTS.filter(lambda count: count > 1))
  tile = Blocks(data.draw(COUNTS), data.draw(COUNTS))
  rng = np.random.default_rng(data.draw(st.integers(0, 99)))
  h = jnp.asarray(rng.normal(size=(rows, width)), dtype)
  w = jnp.asarray(rng.normal(size=(width, classes)), dtype)
  labels = rng.integers(0, classes, rows)
  weights = rng.uniform(-1, 1, rows).astype(np.float32)
  exact = heads.truth(name, h, w, labels)
  cast = 2.0**-8 if dtype == jnp.bfloat16 else 0.0
  exact_gradients = heads.gradients(exact, h, w, weights, cast=cast)

  def head(h, w, mode):
    return fused.linear_loss_sum(
      getattr(losses, name),
      h,
      w,
      labels,
      weights=weights,
      # A key of the caches of jit, which do not see the tile.
      plan=fused.Plan(mode, 100 * tile.rows + tile.classes),
    )[0]

  @heads.jit
  def every(h, w):
    return {
      mode: jax.value_and_grad(functools.partial(head, mode=mode), (0, 1))(h, w)
      for mode in ("recompute", "grad_in_forward")
    } | {"frozen_kernel": jax.value_and_grad(head)(h, w, "frozen_kernel")}

  def smaller(mode, size, budget, whole_rows=False):
    return Blocks(*map(min, tile, (size.rows, size.classes)))

  with unittest.mock.patch.object(_plan, "blocks_for", smaller):
    found = every(h, w)
  for mode, (total, gradients) in found.items():
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    error = np.abs(weights) @ (exact.loss_error + rows * 2.0**-24 * exact.loss)
    heads.assert_close(total, weights @ exact.loss, error)
    # A gradient of the forward pass is cast twice.
    casts = 1 + (mode == "grad_in_forward")
    for gradient, expected in zip(
      gradients, exact_gradients.values(), strict=False
    ):
      heads.assert_close(gradient, *expected, casts)
