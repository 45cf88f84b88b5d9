# SPDX-License-Identifier: Apache-2.0
"""Writes docs/pod_memory.csv: memory of a training step on each device.

The state comes from the shapes and the PartitionSpecs of examples/pods:
parameters, gradients and Adam's two averages in float32. The head is compiled
for the devices, of which none is needed. The activations are the bfloat16
inputs of the blocks, which rematerialisation keeps. They are computed, not
compiled, and the work space of one block comes in addition.

Run after `make test-compile`: PYTHONPATH=. .venv/bin/python docs/pod_memory.py
It compiles the heads with .venv-compile, which has no Flax.
"""

import csv
import importlib
import json
import math
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from squentropy_jax import fused, losses

ROOT = pathlib.Path(__file__).parents[1]
COMPILER = ROOT / ".venv-compile" / "bin" / "python"
CLASSES = 128_256
# Tokens of a step on each device.
TOKENS = 8192
# Width and number of blocks.
MODELS = {"1B": (2048, 16), "8B": (4096, 32), "70B": (8192, 80)}
# Memory of a device in GiB, and the number of devices for each model.
DEVICES = {
  "v5e": (16, {"1B": "v5e:2x2", "8B": "v5e:4x4", "70B": "v5e:8x16"}),
  "v5p": (95, {"1B": "v5p:2x2x1", "8B": "v5p:2x2x2", "70B": "v5p:2x4x4"}),
  "H100": (80, {"1B": "1x1x4", "8B": "1x1x8", "70B": "1x8x8"}),
}
# Sizes of the axes fsdp and vocab: vocab is 4, and fsdp is the rest.
VOCAB = 4
HEAD_WIDTH = 128
PATH = pathlib.Path(__file__).with_name("pod_memory.csv")
GIB = 2**30


def example() -> SimpleNamespace:
  """Returns the modules of examples/pods that this script needs."""
  sys.path.insert(0, str(ROOT / "examples" / "pods"))
  names = ("decoder", "lm_step", "train_lm")
  return SimpleNamespace(**{x: importlib.import_module(x) for x in names})


def parameters(pods: SimpleNamespace, width: int, blocks: int) -> Any:
  """Returns the shapes of all parameters of the example's decoder."""
  sizes = pods.decoder.Sizes(CLASSES, width, blocks, width // HEAD_WIDTH)
  model = pods.train_lm.nnx_model(sizes, jnp.bfloat16)
  return jax.eval_shape(model.init, jax.random.key(0))


def axes_of(devices: int) -> dict[str, int]:
  """Returns the sizes of the mesh axes of the example."""
  return {"data": 1, "fsdp": devices // VOCAB, "context": 1, "vocab": VOCAB}


def state_bytes(pods: SimpleNamespace, params: Any, devices: int) -> int:
  """Returns what the example stores on each device: 4 arrays in float32."""
  axes = axes_of(devices)
  mesh = AbstractMesh(
    tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes)
  )
  shapes = jax.tree.map(
    lambda leaf, sharding: sharding.shard_shape(leaf.shape),
    params,
    pods.lm_step.shardings(params, mesh),
  )
  each = jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple))
  return 16 * sum(map(math.prod, each))


def mesh_of(kind: str, topology: str) -> Mesh:
  """Returns a mesh of devices that are not there."""
  if kind == "H100":
    # Only this environment has the compilers that the test needs.
    h100 = importlib.import_module("tests.compile_test").H100
    options = {"topology_name": "", "topology": topology, "target_config": h100}
    found = topologies.get_topology_desc(platform="cuda", **options)
  else:
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
  axes = axes_of(len(found.devices))
  devices = np.array(found.devices).reshape(tuple(axes.values()))
  return Mesh(devices, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def head_bytes(mesh: Mesh, width: int, rows_of: list, table_of: list) -> int:
  """Returns the temporary memory of the gradient of the fused head."""
  specs = {"features": P(tuple(rows_of), None), "table": P(*table_of)}

  def loss(
    features: jax.Array, table: jax.Array, labels: jax.Array
  ) -> jax.Array:
    sums = fused.linear_loss_sum(
      losses.cross_entropy,
      features,
      table,
      labels,
      class_axis=0,
      compute_dtype=jnp.bfloat16,
      mesh=mesh,
      features_spec=specs["features"],
      kernel_spec=specs["table"],
    )
    return sums.loss / sums.weight

  rows = TOKENS * mesh.size
  arguments = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    for shape, dtype, spec in (
      ((rows, width), jnp.bfloat16, specs["features"]),
      ((CLASSES, width), jnp.float32, specs["table"]),
      ((rows,), jnp.int32, P(tuple(rows_of))),
    )
  ]
  gradient = jax.value_and_grad(loss, (0, 1))
  compiled = jax.jit(gradient).trace(*arguments).lower().compile()
  return compiled.memory_analysis().temp_size_in_bytes


def compile_heads() -> None:
  """Reads which heads to compile, and prints the memory of each."""
  jax.config.update("jax_platforms", "cpu")
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  heads = json.load(sys.stdin)
  print(
    json.dumps(
      [
        head_bytes(mesh_of(kind, topology), *others)
        for kind, topology, *others in heads
      ]
    )
  )


def main() -> None:
  """Compiles all heads and writes the table."""
  pods = example()
  cases = [
    (kind, memory, model, topology)
    for kind, (memory, shapes) in DEVICES.items()
    for model, topology in shapes.items()
  ]
  specs = (pods.lm_step.ROWS, tuple(pods.lm_step.TABLE))
  heads = [
    (kind, topology, MODELS[model][0], *specs)
    for kind, _, model, topology in cases
  ]
  compiled = subprocess.run(
    [COMPILER, __file__, "heads"],
    input=json.dumps(heads),
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  rows = []
  found = json.loads(compiled.stdout.splitlines()[-1])
  for (kind, memory, model, topology), head in zip(cases, found, strict=True):
    width, blocks = MODELS[model]
    devices = math.prod(map(int, topology.rpartition(":")[2].split("x")))
    params = parameters(pods, width, blocks)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    state = state_bytes(pods, params, devices) / GIB
    kept = 2 * TOKENS * width * blocks / GIB
    head = head / GIB
    # Logits in float32 and their gradient in bfloat16, on one device.
    logits = 6 * TOKENS * CLASSES / GIB
    rows.append(
      {
        "device": kind,
        "memory": memory,
        "devices": devices,
        "model": model,
        "parameters": f"{count / 1e9:.2f}e9",
        "state": f"{state:.2f}",
        "activations": f"{kept:.2f}",
        "fused_head": f"{head:.2f}",
        "sum": f"{state + kept + head:.2f}",
        "full_logits_instead": f"{logits:.2f}",
      }
    )
  with PATH.open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
  compile_heads() if sys.argv[1:] == ["heads"] else main()
