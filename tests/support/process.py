# SPDX-License-Identifier: Apache-2.0
"""One of two processes of four devices, started by `tests/processes_test.py`.

Its arguments are its number and the port of the coordinator. It prints what it
found as JSON: the largest errors in units of what they may be, and which rows
are NaN where one process alone has an invalid label.
"""

import json
import sys

import jax

# Before the imports below, which must not touch a device.
if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 4)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1])
  )

from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

import squentropy_jax
from squentropy_jax import calibration, fused, losses

BATCH, LENGTH, WIDTH, CLASSES = 4, 4, 8, 32
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
KERNEL = RNG.normal(size=(WIDTH, CLASSES)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, (BATCH, LENGTH))


def shared(array, mesh, spec):
  """An array of all processes, whose value every process has."""
  sharding = NamedSharding(mesh, spec)
  return jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])


def error(found, expected):
  """The largest error on this process, relative to the largest number."""
  size = np.abs(expected).max()
  return max(
    float(np.abs(shard.data - expected[shard.index]).max() / size)
    for shard in found.addressable_shards
  )


def errors(mesh, features_spec, kernel_spec, mode):
  """Of the sum and both gradients against dense ones."""

  def dense(features, kernel):
    return losses.squentropy(features @ kernel, LABELS).sum()

  with jax.default_device(jax.local_devices()[0]):
    expected = jax.value_and_grad(dense, (0, 1))(FEATURES, KERNEL)
    expected = jax.tree.map(np.asarray, expected)
  explicit = AxisType.Explicit in mesh.axis_types
  specs = {"features_spec": features_spec, "kernel_spec": kernel_spec}

  def head(features, kernel, labels):
    return fused.linear_loss_sum(
      losses.squentropy,
      features,
      kernel,
      labels,
      plan=fused.Plan(mode),
      **{} if explicit else {"mesh": mesh, **specs},
    )[0]

  arguments = [
    shared(FEATURES, mesh, features_spec),
    shared(KERNEL, mesh, kernel_spec),
    shared(LABELS, mesh, P(*features_spec[:2])),
  ]
  found = jax.jit(jax.value_and_grad(head, (0, 1)))(*arguments)
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
  return [error(a, b) for a, b in pairs]


def nan_rows(array):
  """How many rows of the shards on this process are NaN."""
  return sum(int(np.isnan(s.data).sum()) for s in array.addressable_shards)


def main():
  """Prints what was found."""
  devices = np.array(jax.devices())
  assert devices.size == 8
  found = {}
  three = ("data", "fsdp", "vocab")
  layout = P(("data", "fsdp")), P("fsdp", "vocab")
  for name, order in {"rows": (0, 1, 2), "classes": (1, 2, 0)}.items():
    # The processes have different rows, or different classes.
    grid = devices.reshape(2, 2, 2).transpose(order)
    for kind in (AxisType.Auto, AxisType.Explicit):
      mesh = Mesh(grid, three, axis_types=(kind,) * 3)
      for mode in ("grad_in_forward", "recompute"):
        key = f"{name} {kind.name} {mode}"
        found[key] = errors(mesh, *layout, mode)
  # One process alone has an invalid label, in calls outside of jit. An error on
  # it would leave the other waiting.
  labels = LABELS.copy()
  if jax.process_index() == 1:
    labels[-1, -1] = -1  # A row of that process, where rows are sharded.
  mesh = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
  features = shared(FEATURES, mesh, P())
  kernel = shared(KERNEL, mesh, P())
  logits = shared(FEATURES @ KERNEL, mesh, P())
  specs = {"features_spec": P(), "kernel_spec": P()}
  arrays = {"the arrays": (features, kernel), "the mesh": (FEATURES, KERNEL)}
  for name, both in arrays.items():
    each = fused.linear_loss(
      losses.squentropy, *both, labels, mesh=mesh, **specs
    )
    found[f"nan of a head, {name}"] = nan_rows(each)
  found["nan of a dense loss"] = nan_rows(
    squentropy_jax.squentropy(logits, labels)
  )
  probabilities = shared(np.full((16, 4), 0.25, np.float32), mesh, P("data"))
  flat = labels.reshape(-1) // 8
  stats = calibration.bin_stats(probabilities, flat)
  found["invalid of bins"] = int(stats.invalid.addressable_shards[0].data)
  print(json.dumps(found))


if __name__ == "__main__":
  main()
