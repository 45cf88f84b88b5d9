# SPDX-License-Identifier: Apache-2.0
"""The forms of the row sums agree, on one device and on meshes."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from squentropy_jax import losses, squentropy
from squentropy_jax._core import class_sums as _moments

RNG = np.random.default_rng(7)
FORMS = {
  "lanes": _moments.lane_moments,
  "blocks": _moments.block_moments,
  "iota": _moments.iota_moments,
}


def batch(num_classes, rows=4, scale=1.0):
  logits = RNG.normal(size=(rows, num_classes)).astype(np.float32) * scale
  labels = RNG.integers(0, num_classes, rows).astype(np.int32)
  labels[0], labels[-1] = 0, num_classes - 1
  return jnp.asarray(logits), jnp.asarray(labels)


def expected(logits, labels):
  """Moments in float64, row by row."""
  rows = []
  for row, label in zip(np.float64(logits), labels, strict=True):
    rest = np.delete(row, label)
    rest = rest[rest > -np.inf]
    top = rest.max(initial=-np.inf)
    shift = 0.0 if top == -np.inf else top
    mass = np.exp(rest - shift).sum()
    square = np.square(rest).sum()
    rows.append((row[label], shift, mass, rest.sum(), square, top, rest.size))
  return _moments.Moments(*np.transpose(rows))


def check(actual, logits, labels):
  size = np.where(np.isinf(logits), 0, np.abs(logits)).sum(-1)
  for name, got, want in zip(
    actual._fields, actual, expected(logits, labels), strict=True
  ):
    atol = 1e-6 * size if name == "rest_sum" else 0
    np.testing.assert_array_less(
      np.abs(np.where(got == want, 0.0, got - want)),
      2e-6 * np.abs(np.where(np.isinf(want), 0.0, want)) + atol + 1e-30,
      err_msg=name,
    )


# Lanes of 16 and 4096, a prime, a block and one more, few classes.
@pytest.mark.parametrize(
  "num_classes", [1, 2, 7, 512, 1000, 2048, 2049, 4099, 8192, 50257]
)
@pytest.mark.parametrize("form", FORMS)
def test_forms(form, num_classes):
  logits, labels = batch(num_classes)
  run = jax.jit(FORMS[form])
  check(run(logits, labels), logits, labels)
  if num_classes == 1:
    return
  # Impossible classes: some, all but the target, and the target itself.
  holes = np.array(logits)
  holes[0, 1::3] = -np.inf
  holes[1, np.arange(num_classes) != labels[1]] = -np.inf
  holes[2, labels[2]] = -np.inf
  check(run(jnp.asarray(holes), labels), holes, labels)


def test_lane_width_divides_and_avoids_extremes():
  for num_classes in (512, 1000, 32000, 32768, 50257, 128256, 131072, 262144):
    width = _moments.lane_width(num_classes)
    assert num_classes % width == 0
    assert 16 <= width <= 4096
  assert _moments.lane_width(50261) is None  # A prime.
  assert _moments.lane_width(100) is None


@pytest.mark.parametrize("form", FORMS)
def test_a_nan_or_infinity_off_the_target_is_never_lost(form):
  for bad in (np.nan, np.inf):
    logits, labels = batch(1024)
    logits = logits.at[1, 5].set(bad)
    out = jax.jit(FORMS[form])(logits, labels)
    assert np.isnan(out.mass[1])
    assert not np.isfinite(out.rest_sq[1])
    clean = np.delete(np.arange(4), 1)
    check(
      _moments.Moments(*(f[clean] for f in out)), logits[clean], labels[clean]
    )


def test_dropped_rows_do_not_send_the_batch_down_the_slow_path():
  logits, labels = batch(1024)
  keep = jnp.arange(4) != 2
  clean = jax.jit(_moments.moments)(logits, labels, keep)
  dirty = jax.jit(_moments.moments)(logits.at[2].set(jnp.nan), labels, keep)
  for a, b in zip(clean, dirty, strict=True):
    np.testing.assert_array_equal(a, b)


def test_dominant_target_takes_no_digit_of_the_rest():
  for num_classes in (10, 1000, 4096):
    logits = jnp.full((1, num_classes), 1e-2).at[0, 3].set(1e4)
    out = jax.jit(_moments.moments)(logits, jnp.array([3]), None)
    want = (num_classes - 1) * np.float64(np.float32(1e-2)) ** 2
    np.testing.assert_allclose(out.rest_sq, want, rtol=4e-7)


# On meshes. The class axis of explicitly sharded logits keeps its shards.

MESHES = {"8x1": (8, 1), "1x8": (1, 8), "2x4": (2, 4)}


@functools.cache
def sharded_batch():
  logits, labels = batch(1024, rows=8)
  return logits.at[1, 3:9].set(-jnp.inf), labels.at[1].set(2)


def mesh_of(shape, axis_type):
  return jax.make_mesh(MESHES[shape], ("data", "model"), (axis_type,) * 2)


@pytest.mark.parametrize("loss", [squentropy, losses.cross_entropy])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("shape", MESHES)
def test_sharded_equals_dense(shape, axis_type, loss):
  logits, labels = sharded_batch()
  run = jax.jit(jax.value_and_grad(lambda z, y: loss(z, y).sum()))
  value, slope = run(logits, labels)
  mesh = mesh_of(shape, axis_type)
  with jax.set_mesh(mesh):
    z = jax.device_put(logits, NamedSharding(mesh, P("data", "model")))
    y = jax.device_put(labels, NamedSharding(mesh, P("data")))
    sharded_value, sharded_slope = run(z, y)
    np.testing.assert_array_max_ulp(
      np.asarray(value), np.asarray(sharded_value), 4
    )
    np.testing.assert_allclose(
      slope, sharded_slope, rtol=1e-6, atol=1e-6 * np.abs(slope).max()
    )
    if axis_type is AxisType.Explicit:
      assert sharded_slope.sharding.spec == P("data", "model")
      text = run.lower(z, y).compile().as_text()
      assert "all-gather" not in text


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_soft_labels_and_masks(axis_type):
  logits, labels = sharded_batch()
  soft = jax.nn.one_hot(labels, 1024) * 0.75
  soft = soft.at[:, 0].add(0.25)
  keep = jnp.arange(8) != 3

  def total(z, p, w):
    return squentropy(z, p, where=w).sum()

  run = jax.jit(jax.value_and_grad(total))
  value, slope = run(logits, soft, keep)
  mesh = mesh_of("2x4", axis_type)
  with jax.set_mesh(mesh):
    both = NamedSharding(mesh, P("data", "model"))
    sharded_value, sharded_slope = run(
      jax.device_put(logits, both),
      jax.device_put(soft, both),
      jax.device_put(keep, NamedSharding(mesh, P("data"))),
    )
  np.testing.assert_allclose(value, sharded_value, rtol=1e-6)
  np.testing.assert_allclose(
    slope, sharded_slope, rtol=1e-5, atol=1e-6 * np.abs(slope).max()
  )


@pytest.mark.parametrize("spec", [P("data", None), P(None, "model")], ids=str)
def test_one_axis_sharded_explicitly(spec):
  logits, labels = sharded_batch()
  run = jax.jit(jax.value_and_grad(lambda z, y: squentropy(z, y).sum()))
  value, slope = run(logits, labels)
  mesh = mesh_of("2x4", AxisType.Explicit)
  with jax.set_mesh(mesh):
    z = jax.device_put(logits, NamedSharding(mesh, spec))
    y = jax.device_put(labels, NamedSharding(mesh, P(spec[0])))
    sharded_value, sharded_slope = run(z, y)
  np.testing.assert_allclose(value, sharded_value, rtol=1e-6)
  np.testing.assert_allclose(slope, sharded_slope, rtol=1e-5, atol=1e-8)


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
    dense = losses.dice(logits, np.ones(logits.shape, np.int32), axis=None)
    np.testing.assert_allclose(binary, dense, rtol=1e-6)


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

  run = jax.jit(jax.value_and_grad(lambda z: per_shard(z, labels).sum()))
  value, slope = run(logits)
  dense, dense_slope = jax.jit(
    jax.value_and_grad(lambda z: squentropy(z, labels).sum())
  )(logits)
  np.testing.assert_allclose(value, dense, rtol=1e-6)
  np.testing.assert_allclose(slope, dense_slope, rtol=1e-5, atol=1e-8)


# Memory, of the compiled program.


@pytest.mark.parametrize(
  "shape", [(1024, 32768), (256, 131072), (512, 50257)], ids=str
)
def test_value_and_gradient_take_little_memory(shape):
  logits = jax.ShapeDtypeStruct(shape, jnp.float32)
  labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
  keep = jax.ShapeDtypeStruct(shape[:1], jnp.bool_)

  def mean(z, y, w):
    return squentropy(z, y, where=w).mean()

  run = jax.jit(jax.value_and_grad(mean))
  for where in (None, keep):
    analysis = run.lower(logits, labels, where).compile().memory_analysis()
    assert analysis.temp_size_in_bytes <= 0.08 * 4 * shape[0] * shape[1]
