# SPDX-License-Identifier: Apache-2.0
"""Losses on logits against optax's integer cross-entropy.

``python -m benchmarks dense`` prints, for the value and for value and gradient
of the mean, the time as a ratio to optax and the temporary memory as a share of
the logits. Beside the plain call stand the paths that may be slower: a batch
mask, an impossible class in the batch, a class mask, rows under ``vmap``.
"""

from collections.abc import Callable
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

from benchmarks import runner
import squentropy_jax
from squentropy_jax import losses
from squentropy_jax.losses import _catalogue

SHAPES = {
  "ImageNet head": (1024, 1000),
  "32k vocabulary": (1024, 32768),
  "50k vocabulary": (512, 50257),
  "131k vocabulary": (256, 131072),
  "prime class count": (512, 50261),
}
REPEATS = 21
PEER = "optax cross-entropy"
# Of losses that have no defaults.
REQUIRED = {"bi_tempered_logistic": {"t1": 0.8, "t2": 1.2}}


def mean_of(loss: Callable[..., jax.Array], **arguments: Any) -> Any:
  """The batch mean of a loss, as a function of logits and labels."""
  return lambda z, y: loss(z, y, **arguments).mean()


def with_class_mask(z: jax.Array, y: jax.Array) -> jax.Array:
  """Every seventh class masked, save for targets."""
  classes = jnp.arange(z.shape[1])
  mask = (classes % 7 != 3)[None] | (classes == y[:, None])
  return squentropy_jax.squentropy(z, y, where=mask).mean()


def _names_with(attribute: str) -> list[str]:
  names = [entry.name for entry in _catalogue.CATALOGUE]
  return [name for name in names if hasattr(getattr(losses, name), attribute)]


def variants(shape: tuple[int, int]) -> dict[str, Callable[..., jax.Array]]:
  """Means over the batch, of ``(logits, labels)``."""
  squentropy = squentropy_jax.squentropy
  names = ["squentropy", "cross_entropy", "rescaled_square"]
  # Every loss of class ids has a row, at the smallest shape; every row loss
  # one at a large shape as well.
  if shape == SHAPES["ImageNet head"]:
    names = _names_with("log_probs")
  elif shape == SHAPES["32k vocabulary"]:
    names = _names_with("row")
  return (
    {PEER: mean_of(optax.softmax_cross_entropy_with_integer_labels)}
    | {
      name: mean_of(getattr(losses, name), **REQUIRED.get(name, {}))
      for name in names
    }
    | {
      "squentropy, batch mask": mean_of(
        squentropy, where=jnp.arange(shape[0]) < shape[0] - 1
      ),
      "squentropy, class mask": with_class_mask,
      "squentropy, vmap": mean_of(jax.vmap(squentropy)),
    }
  )


def measure(shape: tuple[int, int]) -> list[dict[str, Any]]:
  """A row per loss and mode."""
  rows = []
  key_z, key_y = jax.random.split(jax.random.key(0))
  logits = jax.random.normal(key_z, shape)
  labels = jax.random.randint(key_y, shape[:1], 0, shape[1])
  every = variants(shape)
  # One impossible class in one row sends the whole batch down the slow path.
  holed = logits.at[0, 0].set(-jnp.inf)
  on_holed = {name: every[name] for name in (PEER, "squentropy")}
  for z, suffix, functions in (
    (logits, "", every),
    (holed, ", one -inf logit", on_holed),
  ):
    for mode in ("value", "value and gradient"):
      chosen = functions
      if mode != "value":
        chosen = {n: jax.value_and_grad(f) for n, f in functions.items()}
      compiled = runner.compile_all(chosen, (z, labels))
      seconds = runner.interleaved(compiled, (z, labels), REPEATS)
      for name, values in seconds.items():
        memory = runner.temporary_bytes(compiled[name]) / z.nbytes
        rows.append(
          {
            "rows": shape[0],
            "classes": shape[1],
            "loss": name + suffix,
            "mode": mode,
            "milliseconds": f"{1e3 * statistics.median(values):.3f}",
            "ratio_to_optax": f"{runner.ratio(values, seconds[PEER]):.3f}",
            "temporary_share_of_logits": f"{memory:.4f}",
          }
        )
  return rows


def main() -> None:
  """Measures every shape, prints a table for each and appends the CSV."""
  console = Console(width=100)
  every = []
  for title, shape in SHAPES.items():
    rows = measure(shape)
    every += rows
    table = Table(title=f"{title}: {shape[0]} x {shape[1]}, float32")
    for column in ("loss", "mode", "ms", "ratio to optax", "temporary/logits"):
      table.add_column(column, justify="left" if column == "loss" else "right")
    for row in rows:
      table.add_row(
        row["loss"],
        row["mode"],
        row["milliseconds"],
        row["ratio_to_optax"],
        f"{100 * float(row['temporary_share_of_logits']):.1f} %",
      )
    console.print(table)
  console.print(f"Added to {runner.append('dense', every)}")
