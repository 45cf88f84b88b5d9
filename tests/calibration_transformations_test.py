# SPDX-License-Identifier: Apache-2.0
"""Metrics under vmap, on meshes, in blocks, and what they compile to."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support.calibration_metrics import (
  ADAPTIVE,
  CLASSWISE,
  ECE,
  FUNCTIONS,
  METRICS,
  ONE_OF_EACH_KIND,
  assert_close,
  data,
  evaluate,
  every_metric,
  jit,
)

from squentropy_jax import calibration
from squentropy_jax.calibration import (
  _metrics_adaptive,
  _metrics_bin_stats,
  _metrics_classwise,
  _metrics_scores,
)


def test_vmap_over_seeds_equals_a_loop():
  p, y = data("random")
  seeds = np.stack([p, p[::-1] ** 1]), np.stack([y, (y[::-1] + 1) % 4])
  got = jit(jax.vmap(functools.partial(every_metric, names=ONE_OF_EACH_KIND)))(
    *seeds
  )
  for i in range(2):
    want = evaluate(seeds[0][i], seeds[1][i])
    one = {name: value[i] for name, value in got.items()}
    assert_close(one, {name: want[name] for name in ONE_OF_EACH_KIND})


def test_statistics_add_across_devices():
  p, y = data("random")
  p, y = p[:256], y[:256]
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

  @jit
  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P()
  )
  def stats(p, y):
    return jax.lax.psum(calibration.bin_stats(p, y), "data")

  whole = calibration.bin_stats(p, y)
  total = calibration.merge(
    stats(p, y), jax.tree.map(jnp.zeros_like, whole)
  )  # psum does not carry the digits; merge and the errors do.
  jax.tree.map(np.testing.assert_array_equal, total, whole)
  np.testing.assert_array_equal(ECE(stats(p, y)), ECE(whole))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_arrays(kind):
  p, y = data("random")
  p, y = p[:256], y[:256]
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
  sharded = (
    jax.device_put(p, NamedSharding(mesh, P("data", "model"))),
    jax.device_put(y, NamedSharding(mesh, P("data"))),
  )
  got = jit(functools.partial(every_metric, names=ONE_OF_EACH_KIND))(*sharded)
  want = evaluate(p, y)
  assert_close(got, {name: want[name] for name in ONE_OF_EACH_KIND})


def test_metrics_run_on_the_rows_of_a_device():
  # Large inputs take loops, whose carry must vary over the mesh too.
  mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
  n = 2 * 9000
  p = np.tile(np.float32([[0.1, 0.6, 0.3] + [0] * 30]), (n, 1))
  y = np.tile(np.int32([1, 2]), n // 2)

  @jit
  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P("data")
  )
  def metrics(p, y):
    return jax.tree.map(
      lambda x: x[None], every_metric(p, y, names=ONE_OF_EACH_KIND)
    )

  got = metrics(p, y)
  # The same rows over and over: every mean is that of six of them.
  rows = p[:6], y[:6]
  for name in ONE_OF_EACH_KIND:
    atol = {"smooth": 1e-4, "nll": 7e-5}.get(name, 2e-6)
    want = np.full(2, METRICS[name][1](*rows))
    if name == "aurc":  # Ties share their hits: the risk is flat.
      want = np.full(2, 1 - np.mean(p[:6].argmax(-1) == y[:6]))
    np.testing.assert_allclose(got[name], want, atol=atol, err_msg=name)


def test_blocks_of_rows_and_classes_change_nothing():
  # More rows and classes than one block holds, and neither a multiple of it.
  n, c = 1031, 2100
  z = jax.random.normal(jax.random.key(0), (n, c)) * 3
  p, y = np.asarray(jax.nn.softmax(z)), np.arange(n) % c
  y[::2] = p.argmax(-1)[::2]
  names = ("ece", "classwise", "brier", "accuracy", "top2", "nll")
  got = jit(lambda p, y: {k: FUNCTIONS[k](p, y) for k in names})(p, y)
  for name in names:
    want = METRICS[name][1](p, y)
    np.testing.assert_allclose(got[name], want, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_metrics_lower_for_accelerators(platform):
  p = jax.ShapeDtypeStruct((300, 40), jnp.float32)
  y = jax.ShapeDtypeStruct((300,), jnp.int32)
  assert jax.jit(every_metric).trace(p, y).lower(lowering_platforms=(platform,))


@pytest.mark.parametrize("name", ["ece", "classwise", "brier", "nll", "top2"])
def test_no_intermediate_array_of_the_size_of_the_input(name):
  p = jax.ShapeDtypeStruct((3000, 100_000), jnp.float32)
  y = jax.ShapeDtypeStruct((3000,), jnp.int32)
  metric = FUNCTIONS[name]
  if name == "nll":
    metric = calibration.negative_log_likelihood
  memory = jax.jit(metric).lower(p, y).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 0.06 * 4 * 3000 * 100_000


def test_a_second_call_does_not_trace_again():
  rows = np.full((19, 4), 0.25, np.float32), np.zeros(19, np.int32)
  for metric, compiled in (
    (calibration.bin_stats, _metrics_bin_stats._bin_stats),
    (ADAPTIVE, _metrics_adaptive._adaptive),
    (CLASSWISE, _metrics_classwise._classwise),
    (calibration.brier_score, _metrics_scores._brier_score),
  ):
    size = compiled._cache_size()
    metric(*rows)
    metric(*rows)
    assert compiled._cache_size() == size + 1, metric
