# SPDX-License-Identifier: Apache-2.0
"""Heads in blocks of rows: products, memory, meshes and debug flags."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support.blocked import (
  FEATURES,
  KEEP,
  LABELS,
  PARAMS,
  WEIGHTS,
  assert_close,
  blocked,
  head,
  loss_sum,
)
from support.heads import jit

from squentropy_jax import losses, rows


def _compiled(argnums):
  arrays = (
    jax.ShapeDtypeStruct((64, 1024), np.float32),
    jax.ShapeDtypeStruct((2000, 64), np.float32),
    jax.ShapeDtypeStruct((2000,), np.int32),
  )
  f = functools.partial(loss_sum, block_rows=128)
  f = f if argnums is None else jax.value_and_grad(f, argnums)
  return jax.jit(f).lower(*arrays).compile()


@pytest.mark.parametrize(
  ("argnums", "products"), [(None, 1), (1, 2), ((0, 1), 3)]
)
def test_matrix_products(argnums, products):
  text = _compiled(argnums).as_text()
  assert text.count(" dot(") + text.count("custom-call(") == products, text


@pytest.mark.parametrize("argnums", [None, (0, 1)])
def test_logits_of_all_rows_are_never_in_memory(argnums):
  used = _compiled(argnums).memory_analysis().temp_size_in_bytes
  logits, block = 4 * 2000 * 1024, 4 * 128 * 1024
  inputs_and_gradients = 4 * 2 * (2048 * 64 + 64 * 1024)
  assert used <= inputs_and_gradients + 4 * block < logits


def test_rows_sharded_in_shard_map():
  mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
  labels, features = LABELS[:6], FEATURES[:6]
  arrays = {k: v for k, v in PARAMS.items() if k != "step"}

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P(), P("data"), P("data")),
    out_specs=(P(), (P(), P("data"))),
  )
  def sharded(params, features, labels):
    def total(params, features):
      found = blocked(
        losses.squentropy,
        params,
        features,
        labels,
        block_rows=2,
        metrics={"z": rows.z_loss},
      )
      found = jax.lax.psum(found, "data")
      return found.loss / found.weight

    gradient = jax.grad(total, (0, 1))(params, features)
    return total(params, features), gradient

  def dense(params, features):
    return losses.squentropy(head(params, features), labels).mean()

  want = jit(jax.value_and_grad(dense, (0, 1)))(arrays, features)
  assert_close(jit(sharded)(arrays, features, labels), want)


def test_kernel_with_some_classes_is_refused_in_shard_map():
  mesh = jax.make_mesh((2,), ("vocab",), axis_types=(AxisType.Auto,))

  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P(None, "vocab"), out_specs=P("vocab")
  )
  def sharded(kernel):
    return loss_sum(kernel, FEATURES, LABELS, 4)[None]

  with pytest.raises(ValueError, match=r"params must not vary .*\['vocab'\]"):
    jax.eval_shape(sharded, PARAMS["kernel"])


def test_no_nan_and_no_leak_with_a_dropped_row():
  dirty = jnp.where(KEEP[:, None], FEATURES, jnp.nan)
  labels = np.where(KEEP, LABELS, -100)
  weights = jnp.where(KEEP, WEIGHTS, jnp.inf)

  def total(params):
    return blocked(
      losses.squentropy,
      params,
      dirty,
      labels,
      weights=weights,
      where=KEEP,
      metrics={"z": rows.z_loss},
    ).loss

  gradient = jax.grad(total, allow_int=True)
  with jax.debug_nans(True):
    found = jit(gradient)(PARAMS)
  assert np.isfinite(found["kernel"]).all()
  with jax.checking_leaks():
    jax.eval_shape(gradient, PARAMS)
