# SPDX-License-Identifier: Apache-2.0
"""A problem for heads whose rows and classes are sharded over eight devices."""

import functools
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np

from squentropy_jax import fused, losses
from support import heads

ROWS, WIDTH = 16, 7
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(ROWS, WIDTH)).astype(np.float32)
WEIGHTS = RNG.uniform(-1, 2, ROWS).astype(np.float32)
SPECS = {"features_spec": P("data"), "kernel_spec": P(None, "vocab")}
IN_SPECS = (P("data"), P(None, "vocab"), P("data"), P("data"))
# Modes, and whether the loss is summed by `linear_loss_sum`.
MODES = [
  ("recompute", False),
  ("recompute", True),
  ("grad_in_forward", True),
  ("frozen_kernel", False),
]


def problem(classes: int) -> tuple[np.ndarray, np.ndarray]:
  """A kernel, and labels."""
  rng = np.random.default_rng(classes)
  kernel = rng.normal(size=(WIDTH, classes)).astype(np.float32)
  return kernel, rng.integers(0, classes, ROWS)


@functools.cache
def mesh_of(
  shape: tuple[int, int], kind: AxisType = AxisType.Auto
) -> jax.sharding.Mesh:
  """A mesh of rows by classes."""
  return jax.make_mesh(shape, ("data", "vocab"), axis_types=(kind,) * 2)


def assert_right(
  found: Any, kernel: Any, labels: Any, frozen: bool = False
) -> None:
  """Checks a weighted sum and its gradients by features and kernel."""
  exact = heads.truth("squentropy", FEATURES, kernel, labels)
  total, gradients = found
  error = np.abs(WEIGHTS) @ (exact.loss_error + 2.0**-20 * exact.loss)
  heads.assert_close(total, WEIGHTS @ exact.loss, error)
  expected = heads.gradients(exact, FEATURES, kernel, WEIGHTS)
  heads.assert_close(gradients[0], *expected["features"])
  if frozen:
    assert not np.any(gradients[1])
  else:
    heads.assert_close(gradients[1], *expected["kernel"])


def head(
  features: Any,
  kernel: Any,
  labels: Any,
  weights: Any,
  *,
  summed: bool,
  mode: str | None,
  **settings: Any,
) -> jax.Array:
  """The weighted sum, by `linear_loss_sum` or by `linear_loss`."""
  loss, plan = losses.squentropy, fused.Plan(mode)
  if summed:
    return fused.linear_loss_sum(
      loss, features, kernel, labels, weights=weights, plan=plan, **settings
    )[0]
  each = fused.linear_loss(
    loss, features, kernel, labels, plan=plan, **settings
  )
  return (each * weights).sum()
