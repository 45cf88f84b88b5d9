# SPDX-License-Identifier: Apache-2.0
"""Linear heads in float64 NumPy on full logits, and how far a head may be off.

The formulas of the three losses and of their gradients are written out here,
so that no code of the library checks itself.
"""

from collections.abc import Mapping
import functools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Programs this small take longer to optimise than to run.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
TINY = float(np.finfo(np.float32).tiny)

# A small problem, with logits that are multiples of 1/16: exact in float32.
_RNG = np.random.default_rng(0)
ROWS, WIDTH, CLASSES = 6, 5, 9
FEATURES = _RNG.integers(-4, 5, (ROWS, WIDTH)).astype(np.float32) / 4
KERNEL = _RNG.integers(-4, 5, (WIDTH, CLASSES)).astype(np.float32) / 4
LABELS = np.arange(ROWS) % CLASSES
COTANGENT = np.linspace(-1.0, 2.0, ROWS, dtype=np.float32)


class Truth(NamedTuple):
  """Of a head with ``N`` rows and ``V`` classes, in float64.

  Attributes:
    loss: ``[N]``.
    derivative: That of each loss by its products plus bias, ``[N, V]``.
    loss_error: By how much a loss of unit roundoff ``u`` may be off, ``[N]``.
    derivative_error: The same for ``derivative``.
  """

  loss: np.ndarray
  derivative: np.ndarray
  loss_error: np.ndarray
  derivative_error: np.ndarray


def _of_logits(
  name: str, z: np.ndarray, is_target: np.ndarray, hyper: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray, float]:
  """Loss, derivative, and the largest second derivative of the squares."""
  possible = z > -np.inf
  size = np.where(possible, z, 0.0)
  count = possible.sum(-1, keepdims=True)
  largest = z.max(-1, keepdims=True)
  exps = np.exp(z - largest)
  p = exps / exps.sum(-1, keepdims=True)
  others = np.where(is_target, 0.0, exps).sum(-1)
  target = np.where(is_target, size, 0.0).sum(-1)
  odds = largest[:, 0] - target + np.log(np.where(others > 0, others, 1.0))
  loss = np.where(others > 0, np.logaddexp(0.0, odds), 0.0)
  # 1 - p of the target, not rounded away.
  miss = others / exps.sum(-1)
  derivative = np.where(is_target, -miss[:, None], p)
  if name == "cross_entropy":
    return loss, derivative, 0.0
  if name == "squentropy":
    each = hyper.get("scale", 1.0) / np.maximum(count - 1, 1)
    incorrect = np.where(is_target, 0.0, size)
    loss = loss + (each * np.square(incorrect)).sum(-1)
    return loss, derivative + 2 * each * incorrect, 2 * each.max()
  assert name == "rescaled_square"
  weight = np.where(is_target, hyper.get("target_weight", 1.0), 1.0) / count
  goal = np.where(is_target, hyper.get("target_value", 1.0), 0.0)
  miss = np.where(possible, size - goal, 0.0)
  loss = (weight * np.square(miss)).sum(-1)
  return loss, 2 * weight * miss, 2 * weight.max()


def truth(
  name: str,
  features: Any,
  kernel: Any,
  labels: Any,
  *,
  bias: Any = None,
  soft_cap: float | None = None,
  hyper: Mapping[str, float] = types.MappingProxyType({}),
  u: float = 2.0**-24,
) -> Truth:
  """The loss ``name`` of ``features [N, d] @ kernel [d, V]``.

  The errors are to first order. Each product of ``d`` terms is off by less
  than ``d u |h| |w|``. The loss follows with the sum of its derivatives, and
  the sums over ``V`` classes add ``V u`` of what they sum up.
  """
  h, w = (np.asarray(x, np.float64) for x in (features, kernel))
  b = np.zeros(w.shape[1]) if bias is None else np.asarray(bias, np.float64)
  possible = b > -np.inf
  z = h @ w + np.where(possible, b, 0.0)
  error = np.abs(h) @ np.abs(w) * h.shape[1] + np.abs(
    np.where(possible, b, 0.0)
  )
  bend, steep = np.ones_like(z), 0.0
  if soft_cap is not None:
    z = soft_cap * np.tanh(z / soft_cap)
    bend, steep = 1 - np.square(z / soft_cap), 2.0 / soft_cap
  is_target = np.arange(z.shape[1]) == np.asarray(labels)[:, None]
  loss, derivative, curve = _of_logits(
    name, np.where(possible, z, -np.inf), is_target, hyper
  )
  widest = np.where(possible, np.abs(z), 0.0).max(-1, keepdims=True)
  error = u * (
    np.where(possible, error, 0.0).max(-1, keepdims=True) + 8 * widest
  )
  sums = (z.shape[1] + 16) * u
  size = np.abs(derivative).sum(-1)
  spread = np.square(widest[:, 0]) * (curve > 0)
  derivative_error = np.abs(derivative) * 2 * (error + sums * (1 + widest))
  derivative_error += curve * error
  bend_error = steep * (error * np.abs(bend) + 8 * u * widest)
  return Truth(
    loss,
    derivative * bend,
    2 * error[:, 0] * size + sums * (1 + loss + widest[:, 0] + spread),
    derivative_error * np.abs(bend) + np.abs(derivative) * bend_error,
  )


def gradients(
  found: Truth,
  features: Any,
  kernel: Any,
  cotangent: np.ndarray,
  *,
  u: float = 2.0**-24,
  cast: float = 0.0,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """The gradients of ``cotangent @ loss``, each with its error.

  ``cast`` is the ulp that derivatives are rounded to before a product, halved.
  """
  h, w = (np.asarray(x, np.float64) for x in (features, kernel))
  c = np.asarray(cotangent, np.float64)[:, None]
  g = c * found.derivative
  rows, classes = g.shape
  e = np.abs(c) * found.derivative_error + (cast + 4 * u) * np.abs(g)

  def error(terms: int, product: np.ndarray, more: np.ndarray) -> np.ndarray:
    return (terms + 4) * u * product + more

  return {
    "features": (
      g @ w.T,
      error(classes, np.abs(g) @ np.abs(w.T), e @ np.abs(w.T)),
    ),
    "kernel": (
      h.T @ g,
      error(rows, np.abs(h.T) @ np.abs(g), np.abs(h.T) @ e),
    ),
    "bias": (g.sum(0), error(rows, np.abs(g).sum(0), e.sum(0))),
  }


def assert_close(
  actual: Any, expected: Any, error: Any, casts: int = 1
) -> None:
  """Within the error, and so many casts to the dtype that it comes in."""
  assert np.shape(actual) == np.shape(expected)
  info = jnp.finfo(actual.dtype)
  error = error + casts * float(info.eps) / 2 * np.abs(expected)
  # A CPU takes numbers below the smallest normal one for 0, in every term.
  error = error + float(info.smallest_subnormal) + 2.0**14 * TINY
  wrong = np.abs(np.asarray(actual, np.float64) - expected) / error
  assert np.all(wrong <= 1), f"{np.max(wrong)} times the bound"
