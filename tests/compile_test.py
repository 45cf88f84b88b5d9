# SPDX-License-Identifier: Apache-2.0
"""Programs for TPUs and a GPU, compiled on a machine that has neither.

They cannot be run, and nothing here is about speed: what is read off is what
they hold, what they send and in which types they compute. `make test-compile`
brings the compilers.
"""

import functools
import importlib.util
import os
import re

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

import squentropy_jax
from squentropy_jax import fused, losses

# A public data sheet's figures of an H100; XLA fills in the rest.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000
  l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
TARGETS = {
  "v5e": ("tpu", {"topology_name": "v5e:2x2"}),
  "v6e": ("tpu", {"topology_name": "v6e:2x2"}),
  "h100": (
    "cuda",
    {"topology_name": "", "topology": "1x1x4", "target_config": H100},
  ),
}
MODULES = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda13"}
ROWS, WIDTH, CLASSES = 2048, 512, 32768
LOGITS = (4096, 128256)


@functools.cache
def mesh_of(target):
  """Two by two devices of a kind, none of which is there."""
  platform, arguments = TARGETS[target]
  try:
    there = importlib.util.find_spec(MODULES[platform])
  except ModuleNotFoundError:
    there = None
  if there is None:
    pytest.skip(f"{MODULES[platform]} is not installed: make test-compile")
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  description = topologies.get_topology_desc(platform=platform, **arguments)
  devices = np.array(description.devices).reshape(2, 2)
  return Mesh(devices, ("data", "vocab"), axis_types=(AxisType.Auto,) * 2)


def compiled(target, function, specs):
  """The program for all devices; of features, kernel and labels, or logits."""
  mesh = mesh_of(target)
  shapes = {
    "features": ((ROWS, WIDTH), jax.numpy.bfloat16),
    "kernel": ((WIDTH, CLASSES), jax.numpy.bfloat16),
    "logits": (LOGITS, jax.numpy.bfloat16),
    "labels": ((ROWS,), np.int32),
    "labels of logits": (LOGITS[:1], np.int32),
  }
  arguments = [
    jax.ShapeDtypeStruct(*shapes[name], sharding=NamedSharding(mesh, spec))
    for name, spec in specs.items()
  ]
  program = jax.jit(function).trace(*arguments).lower().compile()
  assert "f64[" not in program.as_text()
  return program


def temporary(program):
  return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("target", TARGETS)
def test_dense_gradient_holds_no_copy_of_the_logits(target):
  def mean(logits, labels):
    return squentropy_jax.squentropy(logits, labels).mean()

  program = compiled(
    target, jax.value_and_grad(mean), {"logits": P(), "labels of logits": P()}
  )
  # On a GPU the three sums of a row are split into parts of 256 logits: twelve
  # bytes for each part.
  share = 0.025 if target == "h100" else 0.02
  assert temporary(program) < share * 2 * LOGITS[0] * LOGITS[1]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
  "mode", ["forward", "frozen_kernel", "recompute", "grad_in_forward"]
)
def test_fused_head_stays_within_its_budget(target, mode):
  budget = {
    "grad_in_forward": 160,
    "recompute": 32,
    "frozen_kernel": 32,
    "forward": 32,
  }[mode] * 2**20

  def head(features, kernel, labels):
    return fused.linear_loss_sum(
      losses.squentropy,
      features,
      kernel,
      labels,
      plan=fused.Plan(mode, budget),
    )[0]

  function = head
  if mode != "forward":
    function = jax.value_and_grad(
      head, 0 if mode == "frozen_kernel" else (0, 1)
    )
  specs = {"features": P(), "kernel": P(), "labels": P()}
  assert temporary(compiled(target, function, specs)) <= budget


def sharded_gradient(target, mode, loss, kernel_spec):
  """The program of the gradient by features and kernel on a mesh."""

  def head(features, kernel, labels):
    return fused.linear_loss_sum(
      loss,
      features,
      kernel,
      labels,
      plan=fused.Plan(mode),
      mesh=mesh_of(target),
      features_spec=P("data"),
      kernel_spec=kernel_spec,
    )[0]

  specs = {"features": P("data"), "kernel": kernel_spec, "labels": P("data")}
  return compiled(target, jax.grad(head, (0, 1)), specs).as_text()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mode", ["recompute", "grad_in_forward"])
def test_vocabulary_on_several_devices_is_not_gathered(target, mode):
  text = sharded_gradient(target, mode, losses.squentropy, P(None, "vocab"))
  assert re.search(r" all-reduce(-start)?\(", text)
  assert not re.search(r" all-gather(-start)?\(", text)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mode", ["recompute", "grad_in_forward"])
def test_gradients_of_bfloat16_are_added_up_in_float32(target, mode):
  """Fault 9: XLA took the cast to bfloat16 before the sum over devices."""
  text = sharded_gradient(
    target, mode, losses.cross_entropy, P("data", "vocab")
  )
  sums = re.findall(
    r" = (.*?) (?:all-reduce|reduce-scatter)(?:-start)?\(", text
  )
  gathered = re.findall(r" = (.*?) all-gather(?:-start)?\(", text)
  assert sums
  assert gathered
  assert not any("bf16[" in shapes for shapes in sums)
  # The kernel is gathered as it is, and never its gradient or the features.
  assert all("f32[" not in shapes for shapes in gathered)
