# SPDX-License-Identifier: Apache-2.0
"""Settings of a head crossed with one another, each against float64."""

from collections.abc import Callable, Sequence
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax import fused, losses
from support import heads

HYPER = {
  "cross_entropy": {},
  "squentropy": {"scale": 0.7},
  "rescaled_square": {"target_weight": 3.0, "target_value": 2.0},
}
LOGIT_SCALES = (0.01, 1.0, 30.0)
WIDTH = 12
# The smallest tile is 128 by 128 on every device.
SHAPES = {
  "aligned": (256, 256),
  "ragged": (200, 300),
  "below a block": (60, 50),
  "a block and one": (130, 129),
}
AXES: dict[str, Sequence[Any]] = {
  "way": ("value", "frozen", "keep", "stream"),
  "dtype": ("float32", "bfloat16", "float16"),
  "shape": tuple(SHAPES),
  "with_bias": (False, True),
  "with_where": (False, True),
  "soft_cap": (None, 5.0),
  "sharded": (False, True),
  "loss": tuple(HYPER),
  "class_axis": (0, 1),
}


class Cell(NamedTuple):
  """One setting of each of the `AXES`."""

  way: str
  dtype: str
  shape: str
  with_bias: bool
  with_where: bool
  soft_cap: float | None
  sharded: bool
  loss: str
  class_axis: int

  def __str__(self) -> str:
    return "-".join(map(str, self)).replace(" ", "_")


def covering(most: int) -> list[Cell]:
  """At most so many cells, in which every pair of settings meets."""
  every = list(itertools.product(*AXES.values()))
  np.random.default_rng(0).shuffle(every)

  def pairs(cell: Sequence[Any]) -> set[Any]:
    return set(itertools.combinations(enumerate(cell), 2))

  missing = set.union(*map(pairs, every[:500]))
  total = sum(
    len(a) * len(b) for a, b in itertools.combinations(AXES.values(), 2)
  )
  assert len(missing) == total
  found = []
  while missing:
    some, every = every[:60], every[60:]
    best = max(some, key=lambda cell: len(pairs(cell) & missing))
    missing -= pairs(best)
    found.append(Cell(*best))
  assert len(found) <= most, len(found)
  return found


def every_cell() -> list[Cell]:
  """The full cross of the settings; losses and class axes take turns."""
  others = itertools.product(*list(AXES.values())[:-2])
  last = itertools.cycle(itertools.product(*list(AXES.values())[-2:]))
  return [Cell(*cell, *next(last)) for cell in others]


@functools.cache
def mesh() -> jax.sharding.Mesh:
  """Two shards of the rows by four of the classes."""
  auto = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((2, 4), ("data", "vocab"), axis_types=auto)


def program(cell: Cell) -> Callable[..., Any]:
  """A function of arrays: value, and gradients where the way has them."""
  settings: dict[str, Any] = {
    "class_axis": cell.class_axis,
    "soft_cap": cell.soft_cap,
    "way": cell.way,
    "memory_budget": 1,
  } | HYPER[cell.loss]
  if cell.sharded:
    settings |= {
      "mesh": mesh(),
      "batch_axis": "data",
      "vocab_axis": "vocab",
    }
  loss = getattr(losses, cell.loss)

  def of(arrays, labels, where, cotangent):
    arrays = arrays | {"labels": labels, "where": where}
    if cell.way == "keep":
      weights = cotangent / 3.0
      total, _ = fused.linear_loss_sum(
        loss, **arrays, weights=weights, **settings
      )
      # The cotangent of the sum is not 1.
      return 3.0 * total
    each = fused.linear_loss(loss, **arrays, **settings)
    return (each * cotangent).sum()

  if cell.way == "value":
    return heads.jit(lambda *arguments: (of(*arguments), {}))

  def with_gradients(arrays, *rest):
    names = ["features"] if cell.way == "frozen" else list(arrays)
    wanted = {name: arrays[name] for name in names}
    return jax.value_and_grad(lambda some: of(arrays | some, *rest))(wanted)

  return heads.jit(with_gradients)


def check(cell: Cell) -> None:
  """The cell at every scale of the logits: one compiled program."""
  rows, classes = SHAPES[cell.shape]
  if cell.sharded:
    rows, classes = 2 * rows, 4 * classes
    if cell.shape != "aligned":
      classes -= 3  # Does not divide over the devices.
  rng = np.random.default_rng(1)
  dtype = jnp.dtype(cell.dtype)
  labels = rng.integers(0, classes - 1, rows)
  where = rng.random(rows) < 0.8 if cell.with_where else None
  cotangent = rng.uniform(-2, 2, rows).astype(
    "float64" if dtype == np.float64 else "float32"
  )
  kept = np.ones(rows, bool) if where is None else where
  run = program(cell)
  for scale in LOGIT_SCALES:
    arrays = {
      "features": rng.normal(size=(rows, WIDTH)) * scale,
      "kernel": rng.normal(size=(WIDTH, classes)) / WIDTH**0.5,
    }
    if cell.with_bias:
      arrays["bias"] = rng.normal(size=classes) * scale
      arrays["bias"][-1] = -np.inf
    arrays = {name: jnp.asarray(x, dtype) for name, x in arrays.items()}
    u = 2.0**-53 if dtype == np.float64 else 2.0**-24
    exact = heads.truth(
      cell.loss,
      arrays["features"],
      arrays["kernel"],
      labels,
      bias=arrays.get("bias"),
      soft_cap=cell.soft_cap,
      hyper=HYPER[cell.loss],
      u=u,
    )
    expected = heads.gradients(
      exact,
      arrays["features"],
      arrays["kernel"],
      np.where(kept, cotangent, 0.0),
      u=u,
      cast=2.0**-8 if dtype == jnp.bfloat16 else 0.0,
    )
    given = dict(arrays)
    given_labels = labels
    if where is not None:
      hole = jnp.asarray(where)[:, None]
      nan = jnp.asarray(jnp.nan, dtype)
      given["features"] = jnp.where(hole, given["features"], nan)
      given_labels = np.where(where, labels, -100)
    if cell.class_axis == 0:
      given["kernel"] = given["kernel"].T
    total, found = run(given, given_labels, where, cotangent)
    weights = np.where(kept, cotangent, 0.0).astype(np.float64)
    error = np.abs(weights) @ (exact.loss_error + rows * u * exact.loss)
    heads.assert_close(total, weights @ exact.loss, error)
    for name, gradient in found.items():
      assert gradient.dtype == dtype
      if name == "kernel" and cell.class_axis == 0:
        gradient = gradient.T
      # A kept gradient is scaled by the cotangent after it was rounded.
      heads.assert_close(gradient, *expected[name], 1 + (cell.way == "keep"))
      if name == "features":
        assert not np.any(np.asarray(gradient, np.float64)[~kept])
