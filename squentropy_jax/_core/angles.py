# SPDX-License-Identifier: Apache-2.0
"""Margins between angles, with exact derivatives."""

import functools

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.labels import Arguments

# A rounding to bfloat16 moves a cosine by less. A number that is farther
# outside [-1, 1] is no cosine.
_TOLERANCE = 1.0 / 64.0


@functools.partial(jax.jit, static_argnums=2)
def _farthest(
  cosines: jax.Array, where: jax.Array | None, axis: int
) -> jax.Array:
  """The kept entry with the largest absolute value; NaN and -inf are 0."""
  kept = jnp.where(jnp.isnan(cosines) | (cosines == -jnp.inf), 0.0, cosines)
  if where is not None:
    where = where if where.ndim == kept.ndim else jnp.expand_dims(where, axis)
    kept = jnp.where(where, kept, 0.0)
  wide = kept.astype(checks.compute_dtype(kept.dtype)).ravel()
  return wide[jnp.argmax(jnp.abs(wide))]


def check_cosines(arguments: Arguments, axis: int, name: str) -> None:
  """Raises if concrete scores that must be cosines are not in [-1, 1].

  An impossible class may be ``-inf``. What is dropped may be anything.
  """
  cosines, where = arguments.logits, arguments.where
  readable = checks.is_concrete(cosines, where, used_with=(cosines,))
  if not readable or cosines.size == 0:
    return
  # Read also inside a trace of other arguments. No entry is an error of
  # jax_debug_nans.
  with jax.ensure_compile_time_eval(), jax.debug_nans(False):
    found = float(_farthest(cosines, where, axis))
  if abs(found) > 1.0 + _TOLERANCE:
    raise ValueError(
      f"{name} must be in [-1, 1], got {found:.6g}. Logits are no cosines: "
      "pass heads.cosine_logits(features, kernel)."
    )


def is_cosine(x: jax.Array) -> jax.Array:
  """Which numbers are in [-1, 1], or ``-inf``, of an impossible class."""
  return (jnp.abs(x) <= 1.0 + _TOLERANCE) | (x == -jnp.inf)


def target_cosine(
  stats: RowStats, scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns which targets are possible, and their cosines, 0 elsewhere.

  The statistics are those of the cosines times ``scale``. A number that is no
  cosine becomes NaN.
  """
  possible = stats.target != -jnp.inf
  cosine = jnp.where(possible, stats.target / scale, 0.0)
  return possible, jnp.where(is_cosine(cosine), cosine, jnp.nan)


def sine_and_angle(cosine: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the sine and the angle; where the sine is 0, so is its gradient."""
  square = (1.0 - cosine) * (1.0 + cosine)
  inside = square > 0
  root = jnp.sqrt(jnp.where(inside, square, jnp.ones_like(square)))
  sine = jnp.where(inside, root, jnp.zeros_like(root))
  return sine, jnp.arctan2(sine, cosine)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def with_margin(
  cosine: jax.Array, factor: jax.Array, added: jax.Array, monotonic: bool
) -> jax.Array:
  """Computes ``cos(t)`` for ``t = factor * angle + added``.

  Args:
    cosine: The cosine of the angle.
    factor: Above 0; a scalar, or of a shape that fits.
    added: A scalar, or of a shape that fits.
    monotonic: Whether the values go on decreasing where ``t`` exceeds pi: as
      ``cosine - added * sin(added)`` if ``factor`` is 1, and otherwise as
      ``(-1)^k cos(t) - 2 k`` with ``k = floor(t / pi)``.

  Returns:
    The values. At a cosine of 1 or -1 the derivative leaves out the term that
    is divided by the sine, so that it is finite.
  """
  return _value_and_partials(cosine, factor, added, monotonic)[0]


@with_margin.defjvp
def _with_margin_jvp(
  monotonic: bool,
  primals: tuple[jax.Array, jax.Array, jax.Array],
  tangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
  _, *partials = _value_and_partials(*primals, monotonic)
  first, second, third = map(jnp.multiply, partials, tangents)
  # Not the value from above, whose derivative would not use this rule.
  return with_margin(*primals, monotonic), first + second + third


def _value_and_partials(
  cosine: jax.Array, factor: jax.Array, added: jax.Array, monotonic: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """The value, and its derivatives by the three arguments."""
  sine, angle = sine_and_angle(cosine)
  total = factor * angle + added
  # For a factor of 1 the sum formulas need no angle, and are exact at 0.
  plain = factor == 1
  cos, sin = jnp.cos(added), jnp.sin(added)
  moved_cos = jnp.where(plain, cosine * cos - sine * sin, jnp.cos(total))
  moved_sin = jnp.where(plain, sine * cos + cosine * sin, jnp.sin(total))
  value = moved_cos
  # The derivative where the sine is 0, and which no cosine changes.
  end = jnp.cos(factor * jax.lax.stop_gradient(angle) + added)
  if monotonic:
    half_turns = jnp.where(plain, 0.0, jnp.floor(total / jnp.pi))
    sign = 1.0 - 2.0 * jnp.mod(half_turns, 2.0)
    moved_cos, moved_sin, end = (sign * x for x in (moved_cos, moved_sin, end))
    value = moved_cos - 2.0 * half_turns
  at_end = sine == 0
  inner = factor * moved_sin / jnp.where(at_end, jnp.ones_like(sine), sine)
  end *= factor * factor * jnp.where(cosine > 0, 1.0, -1.0)
  if monotonic:
    # At a multiple of pi, rounding decides about the number of half turns.
    end = jnp.abs(end)
  by_cosine = jnp.where(at_end, end, inner)
  by_factor, by_added = -moved_sin * angle, -moved_sin
  if monotonic:
    # A negative margin ends below pi. Its cosine alone does not say so.
    past = (cosine <= -cos) | (added >= jnp.pi)
    past &= plain & (added > 0)
    value = jnp.where(past, cosine - added * sin, value)
    by_cosine = jnp.where(past, 1.0, by_cosine)
    by_factor = jnp.where(past, 0.0, by_factor)
    by_added = jnp.where(past, -sin - added * cos, by_added)
  return value, by_cosine, by_factor, by_added


def lowered(
  stats: RowStats,
  scale: jax.Array,
  *,
  factor: jax.Array | None = None,
  added: jax.Array | None = None,
  subtracted: jax.Array | None = None,
  monotonic: bool = True,
) -> jax.Array:
  """Computes by how much a margin lowers the labelled logit.

  Args:
    stats: The statistics of the cosines times ``scale``.
    scale: What the cosines are multiplied by.
    factor: The factor of the angle, or None for 1.
    added: What is added to the angle, or None for 0.
    subtracted: What is subtracted from the cosine, or None for 0.
    monotonic: See `with_margin`.

  Returns:
    One number for each row. It is 0 for an impossible target, and NaN for a
    labelled logit that is no cosine.
  """
  possible, cosine = target_cosine(stats, scale)
  # NaN for a NaN, and else exactly 0.
  moved = cosine
  if factor is not None or added is not None:
    one, zero = (jnp.asarray(x, cosine.dtype) for x in (1.0, 0.0))
    moved = with_margin(
      cosine,
      one if factor is None else factor,
      zero if added is None else added,
      monotonic,
    )
  below = scale * (cosine - moved)
  if subtracted is not None:
    # Not as a part of the cosine, which would round it.
    below = below + scale * subtracted
  return jnp.where(possible, below, jnp.zeros_like(below))
