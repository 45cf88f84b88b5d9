# SPDX-License-Identifier: Apache-2.0
"""Newton's method with conjugate gradients, for smooth convex functions."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
from jax import Array
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from squentropy_jax._core.varying import vary_like

_T = TypeVar("_T")
_STEPS = 100
_HALVINGS = 30
_CG_STEPS = 200


class _Point(NamedTuple):
  x: Array
  value: Array
  gradient: Array


def _solve(
  curvature: Callable[[Array], Array], b: Array, tolerance: Array, steps: int
) -> Array:
  """Solves ``curvature(x) = b`` by conjugate gradients.

  `jax.scipy.sparse.linalg.cg` does not run inside `shard_map`.
  """

  def goes_on(state: tuple[Array, ...]) -> Array:
    count, _, _, _, square = state
    return (count < steps) & (square > jnp.square(tolerance) * jnp.vdot(b, b))

  def advance(state: tuple[Array, ...]) -> tuple[Array, ...]:
    count, x, residual, p, square = state
    image = curvature(p)
    length = square / jnp.vdot(p, image)
    residual = residual - length * image
    new = jnp.vdot(residual, residual)
    return count + 1, x + length * p, residual, residual + new / square * p, new

  start = vary_like((jnp.zeros((), jnp.int32), jnp.zeros_like(b)), b)
  return jax.lax.while_loop(goes_on, advance, (*start, b, b, jnp.vdot(b, b)))[1]


def minimize(f: Callable[[_T], Array], start: _T) -> _T:
  """The minimum of a smooth convex ``f``, started at ``start``.

  There is no learning rate, and the Hessian is only applied to vectors. It
  ends where no step makes progress that floating point can see, or after 100
  steps: always finite, also where ``f`` has no minimum.
  """
  start_x, unravel = ravel_pytree(start)
  # Or inside `shard_map` slopes would be summed over the devices.
  start_x = vary_like(start_x, f(start))
  eps = float(jnp.finfo(start_x.dtype).eps)
  slope_of = jax.value_and_grad(lambda x: f(unravel(x)))

  def at(x: Array) -> _Point:
    return _Point(x, *slope_of(x))

  def direction(point: _Point) -> Array:
    def curvature(v: Array) -> Array:
      return jax.jvp(lambda x: slope_of(x)[1], (point.x,), (v,))[1]

    size = jnp.linalg.norm(point.gradient)
    # Loose far from the minimum, tight near it: convergence above linear.
    tolerance = jnp.minimum(0.1, jnp.sqrt(size))
    steps = min(start_x.size, _CG_STEPS)
    return _solve(curvature, -point.gradient, tolerance, steps)

  def line_search(point: _Point) -> tuple[_Point, Array]:
    step = direction(point)
    slope = jnp.vdot(point.gradient, step)
    # Near the minimum the values are equal up to rounding and the slopes
    # decide: a convex function has not gone too far while its slope along the
    # line is below half of what it was.
    limit = point.value + 8 * eps * jnp.abs(point.value)

    def too_far(state: tuple[Array, Array, _Point]) -> Array:
      halvings, _, new = state
      far = jnp.vdot(new.gradient, step) > -slope / 2
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
    return new, (slope < 0) & (halvings < _HALVINGS) & progress

  def goes_on(state: tuple[Array, Array, _Point]) -> Array:
    count, moved, point = state
    flat = jnp.max(jnp.abs(point.gradient)) <= eps
    return moved & ~flat & (count < _STEPS)

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
