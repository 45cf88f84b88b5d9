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
  "mode": ("forward", "frozen_kernel", "grad_in_forward", "recompute"),
  "dtype": ("float32", "bfloat16", "float16"),
  "shape": tuple(SHAPES),
  "with_bias": (False, True),
  "with_where": (False, True),
  "soft_cap": (None, 5.0),
  "sharded": (False, True),
  "loss": tuple(HYPER),
  "class_axis": (0, 1),
}


class Setting(NamedTuple):
  """One choice on each of the `AXES`."""

  mode: str
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


def covering(most: int) -> list[Setting]:
  """At most so many settings, in which every pair of settings meets."""
  every = list(itertools.product(*AXES.values()))
  np.random.default_rng(0).shuffle(every)

  def pairs(setting: Sequence[Any]) -> set[Any]:
    return set(itertools.combinations(enumerate(setting), 2))

  missing = set.union(*map(pairs, every[:500]))
  total = sum(
    len(a) * len(b) for a, b in itertools.combinations(AXES.values(), 2)
  )
  assert len(missing) == total
  found = []
  while missing:
    some, every = every[:60], every[60:]
    best = max(some, key=lambda setting: len(pairs(setting) & missing))
    missing -= pairs(best)
    found.append(Setting(*best))
  assert len(found) <= most, len(found)
  return found


def every_setting() -> list[Setting]:
  """The full cross of the settings; losses and class axes take turns."""
  others = itertools.product(*list(AXES.values())[:-2])
  last = itertools.cycle(itertools.product(*list(AXES.values())[-2:]))
  return [Setting(*setting, *next(last)) for setting in others]


@functools.cache
def mesh() -> jax.sharding.Mesh:
  """Two shards of the rows by four of the classes."""
  auto = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((2, 4), ("data", "vocab"), axis_types=auto)


def program(setting: Setting) -> Callable[..., Any]:
  """A function of arrays: value, and gradients where the mode has them."""
  settings: dict[str, Any] = {
    "class_axis": setting.class_axis,
    "soft_cap": setting.soft_cap,
    "plan": fused.Plan(setting.mode, 1),
  }
  if setting.sharded:
    settings |= {
      "mesh": mesh(),
      "features_spec": jax.P("data"),
      "kernel_spec": jax.P(None, "vocab"),
    }
  loss = functools.partial(getattr(losses, setting.loss), **HYPER[setting.loss])

  def of(arrays, labels, where, cotangent):
    arrays = arrays | {"labels": labels, "where": where}
    if setting.mode == "grad_in_forward":
      weights = cotangent / 3.0
      total, *_ = fused.linear_loss_sum(
        loss, **arrays, weights=weights, **settings
      )
      # The cotangent of the sum is not 1.
      return 3.0 * total
    each = fused.linear_loss(loss, **arrays, **settings)
    return (each * cotangent).sum()

  if setting.mode == "forward":
    return heads.jit(lambda *arguments: (of(*arguments), {}))

  def with_gradients(arrays, *rest):
    names = ["features"] if setting.mode == "frozen_kernel" else list(arrays)
    wanted = {name: arrays[name] for name in names}
    return jax.value_and_grad(lambda some: of(arrays | some, *rest))(wanted)

  return heads.jit(with_gradients)


def check(setting: Setting) -> None:
  """Checks a setting at every scale of the logits: one compiled program."""
  rows, classes = SHAPES[setting.shape]
  if setting.sharded:
    rows, classes = 2 * rows, 4 * classes
    if setting.shape != "aligned":
      classes -= 3  # Does not divide over the devices.
  rng = np.random.default_rng(1)
  dtype = jnp.dtype(setting.dtype)
  labels = rng.integers(0, classes - 1, rows)
  where = rng.random(rows) < 0.8 if setting.with_where else None
  cotangent = rng.uniform(-2, 2, rows).astype(
    "float64" if dtype == np.float64 else "float32"
  )
  kept = np.ones(rows, bool) if where is None else where
  run = program(setting)
  for scale in LOGIT_SCALES:
    arrays = {
      "features": rng.normal(size=(rows, WIDTH)) * scale,
      "kernel": rng.normal(size=(WIDTH, classes)) / WIDTH**0.5,
    }
    if setting.with_bias:
      arrays["bias"] = rng.normal(size=classes) * scale
      arrays["bias"][-1] = -np.inf
    arrays = {name: jnp.asarray(x, dtype) for name, x in arrays.items()}
    u = 2.0**-53 if dtype == np.float64 else 2.0**-24
    exact = heads.truth(
      setting.loss,
      arrays["features"],
      arrays["kernel"],
      labels,
      bias=arrays.get("bias"),
      soft_cap=setting.soft_cap,
      hyper=HYPER[setting.loss],
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
    if setting.class_axis == 0:
      given["kernel"] = given["kernel"].T
    total, found = run(given, given_labels, where, cotangent)
    weights = np.where(kept, cotangent, 0.0).astype(np.float64)
    error = np.abs(weights) @ (exact.loss_error + rows * u * exact.loss)
    heads.assert_close(total, weights @ exact.loss, error)
    for name, gradient in found.items():
      assert gradient.dtype == dtype
      if name == "kernel" and setting.class_axis == 0:
        gradient = gradient.T
      # A gradient of the forward pass is cast twice.
      casts = 1 + (setting.mode == "grad_in_forward")
      heads.assert_close(gradient, *expected[name], casts)
      if name == "features":
        assert not np.any(np.asarray(gradient, np.float64)[~kept])
