# SPDX-License-Identifier: Apache-2.0
"""Times the two-pass softmax and log-sum-exp against those with a maximum.

``python -m benchmarks two_pass`` prints the time of each as a ratio to
``jax.nn.softmax`` or ``jax.nn.logsumexp`` of the same array, and its temporary
memory as a share of the array. The arrays fit into a cache or do not. One peer
subtracts the maximum in the same blocks as the two-pass form, which shows how
much of a gain is due to the blocks. The last table is the log-normaliser of a
linear head in tiles of classes, and that of a kernel sharded over four devices
of this processor.
"""

from collections.abc import Callable
import statistics
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
import numpy as np

from benchmarks import runner
from squentropy_jax import special
from squentropy_jax._core import scaled_sums

SHAPES = {
  "in cache, few classes": (1024, 10),
  "in cache, many classes": (8, 4096),
  "out of cache, ImageNet": (32_768, 1000),
  "out of cache, a vocabulary": (512, 131_072),
  "out of cache, one row": (1, 67_108_864),
}
REPEATS = 15
# Short calls are repeated, so that one measurement takes about this long.
MILLISECONDS = 5.0
BLOCK = 2**16
Function = Callable[[jax.Array], jax.Array]


def max_shift_softmax(x: jax.Array) -> jax.Array:
  """The softmax in three passes, without the options of ``jax.nn``."""
  exps = jnp.exp(x - x.max(-1, keepdims=True))
  return exps / exps.sum(-1, keepdims=True)


def max_shift_logsumexp(x: jax.Array) -> jax.Array:
  """Log-sum-exp in two passes over the memory: the maximum, and the sum."""
  largest = x.max(-1, keepdims=True)
  total = jnp.exp(x - largest).sum(-1)
  return largest[:, 0] + jnp.log(total)


def blocked_logsumexp(x: jax.Array) -> jax.Array:
  """Log-sum-exp with a maximum for each block that a cache holds."""
  rows, classes = x.shape
  width = min(BLOCK, classes)
  height = min(max(BLOCK // width, 1), rows)
  # The shapes above are divisible, so that no block overlaps another one.
  parts = classes // width if classes % width == 0 else 1
  width = classes // parts

  def of(start: Any, first: Any) -> jax.Array:
    return max_shift_logsumexp(
      lax.dynamic_slice(x, (start, first), (height, width))
    )

  def step(k: Any, out: jax.Array) -> jax.Array:
    start = jnp.minimum(k * height, rows - height)
    found = of(start, 0)
    if parts > 1:
      found = lax.fori_loop(
        1,
        parts,
        lambda j, total: jnp.logaddexp(total, of(start, j * width)),
        found,
      )
    return lax.dynamic_update_slice(out, found, (start,))

  return lax.fori_loop(0, -(-rows // height), step, jnp.zeros(rows, x.dtype))


def blocked_softmax(x: jax.Array) -> jax.Array:
  """The softmax from the log-sum-exp in blocks."""
  return jnp.exp(x - blocked_logsumexp(x)[:, None])


FUNCTIONS: dict[str, dict[str, Function]] = {
  "softmax": {
    "jax.nn": lambda x: jax.nn.softmax(x, axis=-1),
    "max-shift": max_shift_softmax,
    "max-shift in blocks": blocked_softmax,
    "two-pass": special.two_pass_softmax,
  },
  "logsumexp": {
    "jax.nn": lambda x: jax.nn.logsumexp(x, axis=-1),
    "max-shift": max_shift_logsumexp,
    "max-shift in blocks": blocked_logsumexp,
    "two-pass": special.two_pass_logsumexp,
  },
}


# Rows, width, classes and classes of a tile.
HEAD = (1024, 128, 32_768, 2048)


def tile_with_maximum(z: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The maximum and the sum of exponentials of a tile of logits."""
  largest = z.max(-1)
  return largest, jnp.exp(z - largest[:, None]).sum(-1)


def add_with_maximum(a: Any, b: Any) -> tuple[jax.Array, jax.Array]:
  """Adds two sums of exponentials that have different maxima."""
  largest = jnp.maximum(a[0], b[0])
  return largest, sum(s * jnp.exp(m - largest) for m, s in (a, b))


def tile_of_pairs(z: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The sum of the exponentials of a tile of logits, as a pair."""
  mantissa, exponent = scaled_sums.sum_of(special.scaled_exp(z), -1)
  return mantissa[:, 0], exponent[:, 0]


def head_sums(tile: Any, add: Any, h: jax.Array, kernel: jax.Array) -> Any:
  """Adds up the tiles of a head; the logits of one tile are in memory."""
  width = HEAD[-1]

  def of(k: Any) -> Any:
    return tile(h @ lax.dynamic_slice_in_dim(kernel, k * width, width, 1))

  tiles = kernel.shape[1] // width
  return lax.fori_loop(1, tiles, lambda k, sums: add(sums, of(k)), of(0))


def head_with_maximum(h: jax.Array, kernel: jax.Array) -> jax.Array:
  """The log-normaliser of a head from maxima and sums of exponentials."""
  largest, total = head_sums(tile_with_maximum, add_with_maximum, h, kernel)
  return largest + jnp.log(total)


def head_of_pairs(h: jax.Array, kernel: jax.Array) -> jax.Array:
  """The log-normaliser of a head from pairs."""
  return scaled_sums.log(
    head_sums(tile_of_pairs, special.scaled_add, h, kernel)
  )


def sharded_with_maximum(h: jax.Array, kernel: jax.Array) -> jax.Array:
  """The log-normaliser over devices, by a pmax and a psum."""
  largest, total = head_sums(tile_with_maximum, add_with_maximum, h, kernel)
  first = lax.pmax(largest, "vocab")
  return first + jnp.log(lax.psum(total * jnp.exp(largest - first), "vocab"))


def sharded_of_pairs(h: jax.Array, kernel: jax.Array) -> jax.Array:
  """The log-normaliser over devices, by a pmax of exponents and a psum."""
  mantissa, exponent = head_sums(tile_of_pairs, special.scaled_add, h, kernel)
  first = lax.pmax(exponent, "vocab")
  total = lax.psum(mantissa * jnp.exp2(exponent - first), "vocab")
  return scaled_sums.log((total, first))


def head_functions() -> dict[str, dict[str, Callable[..., jax.Array]]]:
  """Heads on one device, and sharded over four if there are so many."""
  functions: dict[str, dict[str, Callable[..., jax.Array]]] = {
    "head": {"max-shift": head_with_maximum, "two-pass": head_of_pairs}
  }
  if jax.device_count() >= 4:
    mesh = Mesh(
      np.array(jax.devices()[:4]), ("vocab",), axis_types=(AxisType.Auto,)
    )
    functions["head on 4 devices"] = {
      name: jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(P(), P(None, "vocab")),
        out_specs=P(),
        check_vma=False,
      )
      for name, function in (
        ("max-shift", sharded_with_maximum),
        ("two-pass", sharded_of_pairs),
      )
    }
  return functions


def measure_heads(repeats: int = REPEATS) -> list[dict[str, Any]]:
  """Returns a row for each head; ratios are to the form with a maximum."""
  rows, width, classes, _ = HEAD
  keys = jax.random.split(jax.random.key(0))
  h = jax.random.normal(keys[0], (rows, width))
  kernel = jax.random.normal(keys[1], (width, classes)) / width**0.5
  found = []
  for result, functions in head_functions().items():
    compiled = runner.compile_all(functions, (h, kernel))
    outputs = [np.asarray(f(h, kernel)) for f in compiled.values()]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-5)
    seconds = runner.interleaved(compiled, (h, kernel), repeats)
    found += [
      {
        "rows": rows,
        "classes": classes,
        "result": result,
        "function": name,
        "milliseconds": f"{1e3 * statistics.median(values):.4f}",
        "ratio_to_max_shift": (
          f"{runner.ratio(values, seconds['max-shift']):.3f}"
        ),
        "temporary_bytes": runner.temporary_bytes(compiled[name]),
      }
      for name, values in seconds.items()
    ]
  return found


def _repeated(compiled: Any, count: int) -> Function:
  def call(x: jax.Array) -> Any:
    for _ in range(count):
      out = compiled(x)
    return out

  return call


def measure(
  shape: tuple[int, int], repeats: int = REPEATS
) -> list[dict[str, Any]]:
  """Returns a row of the table for each function."""
  x = 5 * jax.random.normal(jax.random.key(0), shape)
  rows = []
  for result, functions in FUNCTIONS.items():
    compiled = runner.compile_all(functions, (x,))
    once = runner.interleaved(compiled, (x,), 3)
    typical = 1e3 * statistics.median(once["jax.nn"])
    count = max(1, int(MILLISECONDS / typical))
    calls = {name: _repeated(f, count) for name, f in compiled.items()}
    seconds = runner.interleaved(calls, (x,), repeats)
    rows += [
      {
        "rows": shape[0],
        "classes": shape[1],
        "result": result,
        "function": name,
        "milliseconds": f"{1e3 * statistics.median(values) / count:.4f}",
        "ratio_to_jax_nn": f"{runner.ratio(values, seconds['jax.nn']):.3f}",
        "temporary_share_of_array": (
          f"{runner.temporary_bytes(compiled[name]) / x.nbytes:.4f}"
        ),
      }
      for name, values in seconds.items()
    ]
  return rows


def main() -> None:
  """Measures every shape, prints a table for each and appends to the CSV."""
  columns = {
    "result": "result",
    "function": "function",
    "milliseconds": "ms",
    "ratio_to_jax_nn": "ratio to jax.nn",
    "temporary_share_of_array": "memory",
  }
  for title, shape in SHAPES.items():
    title = f"{title}: {shape[0]} x {shape[1]}, float32"
    runner.report("two_pass", title, measure(shape), columns)
  columns = {
    "result": "result",
    "function": "function",
    "milliseconds": "ms",
    "ratio_to_max_shift": "ratio to max-shift",
    "temporary_bytes": "temporary bytes",
  }
  title = f"log-normaliser of a head, {HEAD[0]} x {HEAD[1]} x {HEAD[2]}"
  runner.report("two_pass_heads", title, measure_heads(), columns)
