# SPDX-License-Identifier: Apache-2.0
"""Dense losses on meshes: explicitly sharded classes stay sharded."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support.contract import jit

from squentropy_jax import losses, squentropy

MESHES = {"8x1": (8, 1), "1x8": (1, 8), "2x4": (2, 4)}


@functools.cache
def sharded_batch():
  rng = np.random.default_rng(7)
  logits = jnp.asarray(rng.normal(size=(8, 1024)).astype(np.float32))
  labels = jnp.asarray(rng.integers(0, 1024, 8).astype(np.int32))
  return logits.at[1, 3:9].set(-jnp.inf), labels.at[1].set(2)


@functools.cache
def evaluated(loss):
  return jit(jax.value_and_grad(lambda z, y: loss(z, y).sum()))


@functools.cache
def dense(loss):
  return evaluated(loss)(*sharded_batch())


def mesh_of(shape, axis_type):
  return jax.make_mesh(MESHES[shape], ("data", "model"), (axis_type,) * 2)


@pytest.mark.parametrize("loss", [squentropy, losses.cross_entropy])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("shape", MESHES)
def test_sharded_equals_dense(shape, axis_type, loss):
  logits, labels = sharded_batch()
  value, gradient = dense(loss)
  mesh = mesh_of(shape, axis_type)
  with jax.set_mesh(mesh):
    z = jax.device_put(logits, NamedSharding(mesh, P("data", "model")))
    y = jax.device_put(labels, NamedSharding(mesh, P("data")))
    program = evaluated(loss).lower(z, y).compile()
    sharded_value, sharded_gradient = program(z, y)
    np.testing.assert_array_max_ulp(
      np.asarray(value), np.asarray(sharded_value), 4
    )
    np.testing.assert_allclose(
      gradient, sharded_gradient, rtol=1e-6, atol=1e-6 * np.abs(gradient).max()
    )
    if axis_type is AxisType.Explicit:
      assert sharded_gradient.sharding.spec == P("data", "model")
      assert "all-gather" not in program.as_text()


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_soft_labels_and_masks(axis_type):
  logits, labels = sharded_batch()
  soft = jax.nn.one_hot(labels, 1024) * 0.75
  soft = soft.at[:, 0].add(0.25)
  keep = jnp.arange(8) != 3

  def total(z, p, w):
    return squentropy(z, p, where=w).sum()

  run = jit(jax.value_and_grad(total))
  value, gradient = run(logits, soft, keep)
  mesh = mesh_of("2x4", axis_type)
  with jax.set_mesh(mesh):
    both = NamedSharding(mesh, P("data", "model"))
    sharded_value, sharded_gradient = run(
      jax.device_put(logits, both),
      jax.device_put(soft, both),
      jax.device_put(keep, NamedSharding(mesh, P("data"))),
    )
  np.testing.assert_allclose(value, sharded_value, rtol=1e-6)
  np.testing.assert_allclose(
    gradient, sharded_gradient, rtol=1e-5, atol=1e-6 * np.abs(gradient).max()
  )


@pytest.mark.parametrize("spec", [P("data", None), P(None, "model")], ids=str)
def test_one_axis_sharded_explicitly(spec):
  logits, labels = sharded_batch()
  value, gradient = dense(squentropy)
  mesh = mesh_of("2x4", AxisType.Explicit)
  with jax.set_mesh(mesh):
    z = jax.device_put(logits, NamedSharding(mesh, spec))
    y = jax.device_put(labels, NamedSharding(mesh, P(spec[0])))
    sharded_value, sharded_gradient = evaluated(squentropy)(z, y)
  np.testing.assert_allclose(value, sharded_value, rtol=1e-6)
  np.testing.assert_allclose(gradient, sharded_gradient, rtol=1e-5, atol=1e-8)


def test_unsharded_labels_are_cut_up_and_otherwise_sharded_ones_refused():
  logits, labels = sharded_batch()
  keep = np.arange(8) != 3
  want = squentropy(logits, labels, where=keep)
  mesh = mesh_of("2x4", AxisType.Explicit)
  with jax.set_mesh(mesh):
    z = jax.device_put(logits, NamedSharding(mesh, P("data", "model")))
    for where in (keep, keep[:, None] & np.ones(logits.shape, bool)):
      loss = squentropy(z, np.asarray(labels), where=where)
      assert loss.sharding.spec == P("data")
      np.testing.assert_allclose(loss, want, rtol=1e-6)
    y = jax.device_put(labels, NamedSharding(mesh, P("model")))
    with pytest.raises(ValueError, match="labels must be sharded as"):
      squentropy(z, y)
    binary = losses.dice(z, np.ones(logits.shape, np.int32), axis=None)
    expected = losses.dice(logits, np.ones(logits.shape, np.int32), axis=None)
    np.testing.assert_allclose(binary, expected, rtol=1e-6)


def test_inside_a_shard_map_of_the_user():
  logits, labels = sharded_batch()
  mesh = mesh_of("8x1", AxisType.Auto)

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P("data"), P("data")),
    out_specs=P("data"),
  )
  def per_shard(z, y):
    return squentropy(z, y)

  run = jit(jax.value_and_grad(lambda z: per_shard(z, labels).sum()))
  value, gradient = run(logits)
  expected, expected_gradient = dense(squentropy)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-8)
