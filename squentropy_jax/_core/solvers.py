# SPDX-License-Identifier: Apache-2.0
"""Newton's method for smooth convex functions, and bisection."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
from jax import Array
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from squentropy_jax._core.varying import vary_like

_T = TypeVar("_T")
# Limits of Newton's method: the number of steps, how often a step is halved,
# and the number of conjugate-gradient steps for a direction.
_NEWTON_STEPS = 100
_HALVINGS = 30
_CG_STEPS = 200


def _mean(low: Array, high: Array) -> Array:
  return (low + high) / 2


def geometric_mean(low: Array, high: Array) -> Array:
  """Computes the geometric mean without overflow."""
  return jnp.sqrt(low) * jnp.sqrt(high)


def bisect(
  is_past: Callable[[Array], Array],
  low: Array,
  high: Array,
  steps: int,
  *,
  middle: Callable[[Array, Array], Array] = _mean,
) -> Array:
  """Finds where a predicate turns from False to True by bisection.

  Args:
    is_past: A predicate of a number, False up to the point and True after it.
      A NaN inside it counts as False.
    low: A number at or before the point.
    high: A number after the point.
    steps: The number of halvings, static.
    middle: The point at which an interval is halved. `geometric_mean` halves
      the logarithm of a positive interval.

  Returns:
    The middle of the last interval.
  """

  def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds
    x = middle(low, high)
    past = is_past(x)
    return jnp.where(past, low, x), jnp.where(past, x, high)

  # Inside `shard_map` the bounds must vary over the axes of the predicate.
  bounds = vary_like((low, high), is_past(low))
  return middle(*jax.lax.fori_loop(0, steps, halve, bounds))


class _Point(NamedTuple):
  x: Array
  value: Array
  gradient: Array


def _solve(
  curvature: Callable[[Array], Array], b: Array, tolerance: Array, steps: int
) -> Array:
  """Solves ``curvature(x) = b`` by conjugate gradients.

  It replaces `jax.scipy.sparse.linalg.cg`, which fails inside `shard_map`.
  """

  def goes_on(state: tuple[Array, ...]) -> Array:
    count, _, _, _, sum_sq = state
    return (count < steps) & (sum_sq > jnp.square(tolerance) * jnp.vdot(b, b))

  def advance(state: tuple[Array, ...]) -> tuple[Array, ...]:
    count, x, residual, p, sum_sq = state
    image = curvature(p)
    length = sum_sq / jnp.vdot(p, image)
    residual = residual - length * image
    new = jnp.vdot(residual, residual)
    p_next = residual + new / sum_sq * p
    return count + 1, x + length * p, residual, p_next, new

  start = vary_like((jnp.zeros((), jnp.int32), jnp.zeros_like(b)), b)
  return jax.lax.while_loop(goes_on, advance, (*start, b, b, jnp.vdot(b, b)))[1]


def newton(f: Callable[[_T], Array], start: _T) -> _T:
  """Minimises a smooth convex ``f`` by Newton's method, from ``start``.

  The method has no learning rate. It uses products of the Hessian and a vector,
  and never builds the Hessian. It ends when no step makes progress in floating
  point, or after 100 steps. The result is finite even if ``f`` has no minimum.
  """
  start_x, unravel = ravel_pytree(start)
  # Otherwise `shard_map` would sum the gradients over the devices.
  start_x = vary_like(start_x, f(start))
  eps = float(jnp.finfo(start_x.dtype).eps)
  value_and_gradient = jax.value_and_grad(lambda x: f(unravel(x)))

  def at(x: Array) -> _Point:
    return _Point(x, *value_and_gradient(x))

  def direction(point: _Point) -> Array:
    def curvature(v: Array) -> Array:
      return jax.jvp(lambda x: value_and_gradient(x)[1], (point.x,), (v,))[1]

    size = jnp.linalg.norm(point.gradient)
    # The tolerance decreases with the gradient: convergence is superlinear.
    tolerance = jnp.minimum(0.1, jnp.sqrt(size))
    steps = min(start_x.size, _CG_STEPS)
    return _solve(curvature, -point.gradient, tolerance, steps)

  def line_search(point: _Point) -> tuple[_Point, Array]:
    step = direction(point)
    derivative = jnp.vdot(point.gradient, step)
    # Near the minimum the values are equal up to rounding, so the test uses the
    # derivative along the line. A step is short enough if that is negative, or
    # at most half of its initial absolute value.
    limit = point.value + 8 * eps * jnp.abs(point.value)

    def too_far(state: tuple[Array, Array, _Point]) -> Array:
      halvings, _, new = state
      far = jnp.vdot(new.gradient, step) > -derivative / 2
      lower = (new.value <= limit) & ~far
      return ~lower & (halvings < _HALVINGS)

    def halve(
      state: tuple[Array, Array, _Point],
    ) -> tuple[Array, Array, _Point]:
      halvings, length, _ = state
      length = length / 2
      return halvings + 1, length, at(point.x + length * step)

    one = jnp.ones((), point.x.dtype)
    start = vary_like((jnp.zeros((), jnp.int32), one), point.x)
    first = (*start, at(point.x + step))
    halvings, _, new = jax.lax.while_loop(too_far, halve, first)
    progress = (new.value < point.value) | (
      jnp.linalg.norm(new.gradient) < jnp.linalg.norm(point.gradient)
    )
    return new, (derivative < 0) & (halvings < _HALVINGS) & progress

  def goes_on(state: tuple[Array, Array, _Point]) -> Array:
    count, moved, point = state
    flat = jnp.max(jnp.abs(point.gradient)) <= eps
    return moved & ~flat & (count < _NEWTON_STEPS)

  def advance(
    state: tuple[Array, Array, _Point],
  ) -> tuple[Array, Array, _Point]:
    count, _, point = state
    new, moved = line_search(point)
    point = jax.tree.map(lambda a, b: jnp.where(moved, a, b), new, point)
    return count + 1, moved, point

  none = (jnp.zeros((), jnp.int32), jnp.ones((), bool))
  state = (*vary_like(none, start_x), at(start_x))
  return unravel(jax.lax.while_loop(goes_on, advance, state)[2].x)
