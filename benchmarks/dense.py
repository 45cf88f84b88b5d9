# SPDX-License-Identifier: Apache-2.0
"""Losses on logits against optax's integer cross-entropy.

``python -m benchmarks dense`` prints, for the value and for value and gradient
of the mean, the time as a ratio to optax and the temporary memory as a share of
the logits. It also times the paths that may be slower than the plain call: a
batch mask, an impossible class in the batch, a class mask, ``vmap`` over the
first axis, and bfloat16 logits (against optax on the same logits).
"""

from collections.abc import Callable
import functools
import math
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import runner
import squentropy_jax
from squentropy_jax import losses

# The shape of the logits and the class axis.
SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
  "digits, small batch": ((128, 10), -1),
  "digits": ((8192, 10), -1),
  "digits, large batch": ((65536, 10), -1),
  "100 classes": ((8192, 100), -1),
  "segmentation": ((8, 128, 128, 21), -1),
  "segmentation, channels first": ((8, 21, 128, 128), 1),
  "ImageNet head": ((1024, 1000), -1),
  "ImageNet head, large batch": ((4096, 1000), -1),
  "5000 classes": ((512, 5000), -1),
  "32k vocabulary": ((1024, 32768), -1),
  "50k vocabulary": ((512, 50257), -1),
  "131k vocabulary": ((256, 131072), -1),
  "prime class count": ((512, 50261), -1),
}
# Smaller shapes get more repeats, up to this many.
MOST_REPEATS = 201
ENTRIES = 40_000_000
PEER = "optax cross-entropy"
# Of losses that have no defaults.
REQUIRED = {"bi_tempered_logistic": {"t1": 0.8, "t2": 1.2}}


def _names_with(attribute: str) -> list[str]:
  return [n for n in dir(losses) if hasattr(getattr(losses, n), attribute)]


def mean_of(loss: Callable[..., jax.Array], **arguments: Any) -> Any:
  """The batch mean of a loss, as a function of logits and labels."""
  return lambda z, y: loss(z, y, **arguments).mean()


def with_class_mask(axis: int) -> Callable[..., jax.Array]:
  """Every seventh class is masked, except targets."""

  def mean(z: jax.Array, y: jax.Array) -> jax.Array:
    at = axis % z.ndim
    classes = jax.lax.broadcasted_iota(jnp.int32, z.shape, at)
    mask = (classes % 7 != 3) | (classes == jnp.expand_dims(y, at))
    return squentropy_jax.squentropy(z, y, axis=axis, where=mask).mean()

  return mean


def variants(
  shape: tuple[int, ...], axis: int
) -> dict[str, Callable[..., jax.Array]]:
  """Means over the batch, of ``(logits, labels)``."""
  squentropy = squentropy_jax.squentropy
  names = ["squentropy", "cross_entropy", "rescaled_square"]
  # Every loss of class ids has a row at one small shape, and every row loss at
  # a large shape as well.
  if shape == SHAPES["ImageNet head"][0]:
    names = _names_with("log_probs")
  elif shape == SHAPES["32k vocabulary"][0]:
    names = _names_with("row")
  batch = list(shape)
  batch.pop(axis)
  keep = jnp.arange(math.prod(batch)).reshape(batch) > 0
  functions = {
    PEER: mean_of(optax.softmax_cross_entropy_with_integer_labels, axis=axis)
  }
  for name in names:
    arguments = REQUIRED.get(name, {})
    functions[name] = mean_of(getattr(losses, name), axis=axis, **arguments)
  functions["squentropy, batch mask"] = mean_of(
    squentropy, axis=axis, where=keep
  )
  functions["cross_entropy, batch mask"] = mean_of(
    losses.cross_entropy, axis=axis, where=keep
  )
  functions["squentropy, class mask"] = with_class_mask(axis)
  one_axis_less = axis if axis < 0 else axis - 1
  functions["squentropy, vmap"] = mean_of(
    jax.vmap(functools.partial(squentropy, axis=one_axis_less))
  )
  return functions


def measure(shape: tuple[int, ...], axis: int) -> list[dict[str, Any]]:
  """A row per loss, kind of logits and mode."""
  rows = []
  key_z, key_y = jax.random.split(jax.random.key(0))
  logits = jax.random.normal(key_z, shape)
  batch = list(shape)
  num_classes = batch.pop(axis)
  labels = jax.random.randint(key_y, tuple(batch), 0, num_classes)
  every = variants(shape, axis)
  few = {name: every[name] for name in (PEER, "squentropy", "cross_entropy")}
  repeats = min(MOST_REPEATS, max(15, ENTRIES // logits.size))
  # One impossible class in one row sends the whole batch down the slow path.
  holed = logits.at[(0,) * logits.ndim].set(-jnp.inf)
  for z, suffix, functions in (
    (logits, "", every),
    (holed, ", one -inf logit", few),
    (logits.astype(jnp.bfloat16), ", bfloat16", few),
  ):
    for mode in ("value", "value and gradient"):
      chosen = functions
      if mode != "value":
        chosen = {n: jax.value_and_grad(f) for n, f in functions.items()}
      compiled = runner.compile_all(chosen, (z, labels))
      seconds = runner.interleaved(compiled, (z, labels), repeats)
      peer = seconds[PEER]
      for name, values in seconds.items():
        memory = runner.temporary_bytes(compiled[name]) / z.nbytes
        rows.append(
          {
            "shape": "x".join(map(str, shape)),
            "axis": axis,
            "loss": name + suffix,
            "mode": mode,
            "milliseconds": f"{1e3 * statistics.median(values):.3f}",
            "ratio_to_optax": f"{runner.ratio(values, peer):.3f}",
            "ratio_of_minima": f"{values.min() / peer.min():.3f}",
            "temporary_share_of_logits": f"{memory:.4f}",
          }
        )
  return rows


def main() -> None:
  """Measures every shape, prints a table for each and appends to the CSV."""
  columns = {
    "loss": "loss",
    "mode": "mode",
    "milliseconds": "ms",
    "ratio_to_optax": "ratio to optax",
    "ratio_of_minima": "of minima",
    "temporary_share_of_logits": "temporary/logits",
  }
  for title, (shape, axis) in SHAPES.items():
    rows = measure(shape, axis)
    title = f"{title}: {rows[0]['shape']}, class axis {axis}"
    runner.report("dense", title, rows, columns)
