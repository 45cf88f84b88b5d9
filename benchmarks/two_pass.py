# SPDX-License-Identifier: Apache-2.0
"""Times the two-pass softmax and log-sum-exp against those with a maximum.

``python -m benchmarks two_pass`` prints the time of each as a ratio to
``jax.nn.softmax`` or ``jax.nn.logsumexp`` of the same array, and its temporary
memory as a share of the array. The arrays fit into a cache or do not. One peer
subtracts the maximum in the same blocks as the two-pass form, which shows how
much of a gain is due to the blocks.
"""

from collections.abc import Callable
import statistics
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from benchmarks import runner
from squentropy_jax import special

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
