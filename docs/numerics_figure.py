# SPDX-License-Identifier: Apache-2.0
"""The figure of docs/numerics.md; `page_figures` draws it.

Relative errors of cross-entropy in float32 and of its gradient, against
float64 on the same logits. Those of PyTorch are stored, because it is a large
package: ``numerics_torch.py`` computes them.
"""

from collections.abc import Callable, Mapping
import csv
import pathlib
from typing import Any

from figures import COLOURS, DASHES
import jax
import jax.numpy as jnp
import numpy as np
import optax

from squentropy_jax import losses

LOSSES: Mapping[str, Callable[..., jax.Array]] = {
  "optax": optax.softmax_cross_entropy_with_integer_labels,
  "squentropy_jax": losses.cross_entropy,
}
TITLES = ("loss", "derivative")
CLASSES, ROWS = 10, 20
MARGINS = np.arange(0.0, 41.0, 1.0)
TORCH = pathlib.Path(__file__).with_name("numerics_torch.csv")
FLOOR = 1e-9  # Errors of 0 have no logarithm.


def rows_of(margin: float) -> np.ndarray:
  """Rows whose labelled logit, the first, is larger by a margin."""
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(ROWS, CLASSES))
  rows[:, 0] = rows[:, 1:].max(axis=1) + margin
  return rows.astype(np.float32)


def truth(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The loss and its derivative in the labelled logit, in float64."""
  wide = rows.astype(np.float64)
  # The labelled class is left out of the sum, so nothing cancels.
  others = np.exp(wide[:, 1:] - wide[:, :1]).sum(axis=1)
  return np.log1p(others), -others / (1.0 + others)


def largest_errors(
  rows: np.ndarray, loss: np.ndarray, derivative: np.ndarray
) -> list[float]:
  """The largest relative errors of a loss and of its derivative."""
  return [
    float(np.abs(np.float64(got) / true - 1.0).max())
    for got, true in zip((loss, derivative), truth(rows), strict=True)
  ]


def errors() -> dict[str, np.ndarray]:
  """The largest relative errors ``[2, margins]`` of each loss."""
  with TORCH.open(encoding="utf-8", newline="") as file:
    lines = list(csv.DictReader(file))
  both = [[float(line[key]) for line in lines] for key in TITLES]
  found = {"PyTorch": np.array(both)}
  for name, loss in LOSSES.items():

    def of_row(row: jax.Array, loss: Callable = loss) -> jax.Array:
      return loss(row, jnp.zeros((), jnp.int32))

    both = jax.jit(jax.vmap(jax.value_and_grad(of_row)))
    each = []
    for margin in MARGINS:
      rows = rows_of(margin)
      value, gradient = both(jnp.asarray(rows))
      each.append(largest_errors(rows, value, gradient[:, 0]))
    found[name] = np.array(each).T
  return found


def draw(panels: Any) -> None:
  """The error of the loss on the left, of a derivative on the right."""
  for style, (name, both) in enumerate(errors().items()):
    line = {"color": COLOURS[style], "linestyle": DASHES[style], "lw": 1.6}
    for panel, values in zip(panels, both, strict=True):
      panel.semilogy(MARGINS, np.maximum(values, FLOOR), label=name, **line)
  for panel, title in zip(panels, TITLES, strict=True):
    panel.set_ylim(FLOOR, 10.0)
    panel.axhline(2.0**-23, color="0.8", lw=0.8, zorder=0)
    panel.set_title(f"relative error of the {title}", fontsize=9)
    panel.set_xlabel("margin of the labelled class", fontsize=8)
  panels[0].legend(fontsize=7, frameon=False)
