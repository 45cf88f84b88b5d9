# SPDX-License-Identifier: Apache-2.0
"""Linear heads against float64 on full logits, and what heads got wrong."""

import functools
import unittest.mock

import cases
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import fused_cells, heads
from support.heads import CLASSES, COTANGENT, FEATURES, KERNEL, LABELS

from squentropy_jax import fused, losses
from squentropy_jax._core import rows as _rows
from squentropy_jax.fused import _plan
from squentropy_jax.fused._blocks import Blocks


@pytest.mark.parametrize("cell", fused_cells.covering(most=24), ids=str)
def test_pairs_of_settings(cell):
  fused_cells.check(cell)


@pytest.mark.full
@pytest.mark.parametrize("cell", fused_cells.every_cell(), ids=str)
def test_every_setting(cell):
  fused_cells.check(cell)


@pytest.mark.x64
@pytest.mark.parametrize("way", fused_cells.AXES["way"])
def test_float64_stays(way):
  cell = (way, "float64", "ragged", True, True, 5.0, False, "squentropy", 0)
  fused_cells.check(fused_cells.Cell(*cell))


# Every loss.

WEIGHTS = np.float64(COTANGENT)
ROW_CASES = [case for case in cases.CASES if hasattr(case.loss, "row")]


@pytest.mark.x64
@pytest.mark.parametrize("case", ROW_CASES, ids=repr)
def test_every_row_loss(case):
  """The same formula on the same statistics, in three tiles of classes.

  No digit of float64 is lost.
  """
  features = np.float64(FEATURES) * 1.1
  kernel = np.random.default_rng(3).normal(size=(KERNEL.shape[0], 300))
  hyper = dict(case.hyperparameters)

  def dense(features, kernel, hyper):
    loss = case.loss(features @ kernel, LABELS, **hyper)
    return (loss * WEIGHTS).sum(), loss

  def stream(features, kernel, hyper):
    loss = fused.linear_loss(
      case.loss, features, kernel, LABELS, memory_budget=1, **hyper
    )
    return (loss * WEIGHTS).sum(), loss

  def keep(features, kernel, hyper):
    return fused.linear_loss_sum(
      case.loss,
      features,
      kernel,
      LABELS,
      weights=WEIGHTS,
      way="keep",
      memory_budget=1,
      **hyper,
    )

  @heads.jit
  def every(*arguments):
    return [
      jax.value_and_grad(f, (0, 1, 2), has_aux=True)(*arguments)
      for f in (dense, stream, keep)
    ]

  (expected, slopes), *others = every(features, kernel, hyper)
  for (total, _), found in others:
    np.testing.assert_allclose(total, expected[0], rtol=1e-12, atol=1e-12)
    for one, other in zip(
      jax.tree.leaves(found), jax.tree.leaves(slopes), strict=True
    ):
      np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
  np.testing.assert_allclose(others[0][0][1], expected[1], rtol=1e-12)


@pytest.mark.x64
def test_loss_may_scale_its_logits():
  @_rows.with_row(losses.squentropy.row, lambda scale: 2.0 - scale)
  def scaled(logits, labels, *, scale=1.0):
    return losses.squentropy(logits * (2.0 - scale), labels, scale=scale)

  bias = np.where(np.arange(CLASSES) == 7, -np.inf, 0.25)

  def run(f, way):
    arguments = np.float64(FEATURES), np.float64(KERNEL), np.float64(0.3)
    return jax.value_and_grad(f, (0, 2) if way == "frozen" else (0, 1, 2))(
      *arguments
    )

  def dense(h, w, scale):
    logits = (2.0 - scale) * 3.0 * jnp.tanh((h @ w + 0.25) / 3.0)
    logits = jnp.where(bias > -np.inf, logits, -np.inf)
    return losses.squentropy(logits, LABELS, scale=scale) @ WEIGHTS

  for way in ("frozen", "stream", "keep"):

    def head(h, w, scale, way=way):
      return fused.linear_loss_sum(
        scaled,
        h,
        w,
        LABELS,
        bias=bias,
        soft_cap=3.0,
        weights=WEIGHTS,
        way=way,
        scale=scale,
      )[0]

    for one, other in zip(
      jax.tree.leaves(run(head, way)),
      jax.tree.leaves(run(dense, way)),
      strict=True,
    ):
      np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.x64
@pytest.mark.parametrize("way", ["stream", "keep"])
def test_products_with_the_hessian(way):
  def dense(h, w):
    return losses.squentropy(h @ w, LABELS) @ WEIGHTS

  def head(h, w):
    return fused.linear_loss_sum(
      losses.squentropy, h, w, LABELS, weights=WEIGHTS, way=way
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
  rows, width, classes = (data.draw(COUNTS) for _ in range(3))
  tile = Blocks(data.draw(COUNTS), data.draw(COUNTS))
  rng = np.random.default_rng(data.draw(st.integers(0, 99)))
  h = jnp.asarray(rng.normal(size=(rows, width)), dtype)
  w = jnp.asarray(rng.normal(size=(width, classes)), dtype)
  labels = rng.integers(0, classes, rows)
  weights = rng.uniform(-1, 1, rows).astype(np.float32)
  exact = heads.truth(name, h, w, labels)
  cast = 2.0**-8 if dtype == jnp.bfloat16 else 0.0
  slopes = heads.gradients(exact, h, w, weights, cast=cast)

  def head(h, w, way):
    return fused.linear_loss_sum(
      getattr(losses, name),
      h,
      w,
      labels,
      weights=weights,
      way=way,
      # A key of the caches of jit, which do not see the tile.
      memory_budget=100 * tile.rows + tile.classes,
    )[0]

  @heads.jit
  def every(h, w):
    return {
      way: jax.value_and_grad(functools.partial(head, way=way), (0, 1))(h, w)
      for way in ("stream", "keep")
    } | {"frozen": jax.value_and_grad(head)(h, w, "frozen")}

  def smaller(way, size, budget):
    return Blocks(*map(min, tile, (size.rows, size.classes)))

  with unittest.mock.patch.object(_plan, "blocks_at_least", smaller):
    found = every(h, w)
  for way, (total, gradients) in found.items():
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    error = np.abs(weights) @ (exact.loss_error + rows * 2.0**-24 * exact.loss)
    heads.assert_close(total, weights @ exact.loss, error)
    for gradient, expected in zip(gradients, slopes.values(), strict=False):
      # A kept gradient is scaled by the cotangent after it was rounded.
      heads.assert_close(gradient, *expected, 1 + (way == "keep"))
