# SPDX-License-Identifier: Apache-2.0
"""Writes docs/pod_memory.csv: memory of a training step on each device.

The state comes from the shapes of a decoder like that of examples/pods:
parameters, gradients and Adam's two averages in float32, divided by all
devices.
The head is compiled for the devices, of which none is needed. The activations
are the bfloat16 inputs of the blocks, which rematerialisation keeps. They are
computed, not compiled, and the work space of one block comes in addition.

Run after `make test-compile`: PYTHONPATH=. .venv-compile/bin/python
docs/pod_memory.py
"""

import csv
import math
import os
import pathlib

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from squentropy_jax import fused, losses
from tests.compile_test import H100

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
# The classes are sharded over this many devices, the rest shares the rows.
VOCAB = 4
PATH = pathlib.Path(__file__).with_name("pod_memory.csv")
GIB = 2**30


def parameters(width: int, blocks: int) -> int:
  """Returns the number of parameters, from the shapes of all arrays."""

  def init() -> dict[str, jax.Array]:
    block = {
      "qkv": (width, 3 * width),
      "out": (width, width),
      "up": (width, 4 * width),
      "down": (4 * width, width),
      "norms": (2, width),
    }
    shapes = {f"{k} {i}": s for i in range(blocks) for k, s in block.items()}
    shapes |= {"embedding": (CLASSES, width), "norm": (width,)}
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}

  leaves = jax.tree.leaves(jax.eval_shape(init))
  return sum(math.prod(leaf.shape) for leaf in leaves)


def mesh_of(kind: str, topology: str) -> Mesh:
  """Returns a mesh of devices that are not there."""
  if kind == "H100":
    options = {"topology_name": "", "topology": topology, "target_config": H100}
    found = topologies.get_topology_desc(platform="cuda", **options)
  else:
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
  devices = np.array(found.devices).reshape(-1, VOCAB)
  return Mesh(devices, ("fsdp", "vocab"), axis_types=(AxisType.Auto,) * 2)


def head_bytes(mesh: Mesh, width: int) -> int:
  """Returns the temporary memory of the gradient of the fused head."""
  specs = {"features": P(("fsdp", "vocab"), None), "table": P("vocab", "fsdp")}

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
      ((rows,), jnp.int32, P(("fsdp", "vocab"))),
    )
  ]
  gradient = jax.value_and_grad(loss, (0, 1))
  compiled = jax.jit(gradient).trace(*arguments).lower().compile()
  return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
  """Compiles all heads and writes the table."""
  jax.config.update("jax_platforms", "cpu")
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  rows = []
  for kind, (memory, shapes) in DEVICES.items():
    for model, topology in shapes.items():
      width, blocks = MODELS[model]
      mesh = mesh_of(kind, topology)
      state = 16 * parameters(width, blocks) / mesh.size / GIB
      kept = 2 * TOKENS * width * blocks / GIB
      head = head_bytes(mesh, width) / GIB
      # Logits in float32 and their gradient in bfloat16, on one device.
      logits = 6 * TOKENS * CLASSES / GIB
      row = {
        "device": kind,
        "memory": memory,
        "devices": mesh.size,
        "model": model,
        "parameters": f"{parameters(width, blocks) / 1e9:.2f}e9",
        "state": f"{state:.2f}",
        "activations": f"{kept:.2f}",
        "fused_head": f"{head:.2f}",
        "sum": f"{state + kept + head:.2f}",
        "full_logits_instead": f"{logits:.2f}",
      }
      print(row, flush=True)
      rows.append(row)
  with PATH.open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
  main()
