# SPDX-License-Identifier: Apache-2.0
r"""The logarithm of the simplex integral of an exponential, and its gradient.

The integral of :math:`e^{\langle z, x \rangle}` over the simplex is the divided
difference of exp at the nodes :math:`z_1, \dots, z_C`. The textbook formula is
a sum over nodes. It cancels for nodes that are close to each other, and divides
by 0 for equal nodes. The contour integral

.. math::
  \exp[z_1, \dots, z_C] = \frac{1}{2 \pi i} \int
    \frac{e^s}{\prod_k (s - z_k)} \, ds

has no special case. Its path is a hyperbola through the saddle point on the
real axis. The hyperbola opens to the left, and its branches are steeper than
45 degrees. Away from the saddle point, the modulus of the integrand only
decreases along the path, for every set of nodes. Therefore nothing cancels, and
the trapezoidal rule converges geometrically. The cost is linear in the number
of classes. Such paths are described in: Weideman and Trefethen, Parabolic and
Hyperbolic Contours for Computing the Bromwich Integral, Mathematics of
Computation 76, 2007.
"""

import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# The ratio of width to height of the hyperbola's branches, and the height in
# units of the distance from the saddle to the largest node. Both were tuned on
# sets of nodes. Any ratio below 1 is correct.
_WIDTH_RATIO = 0.8
_HEIGHT = 2.0
# Number of points of the trapezoidal rule, and the logarithm of the decay at
# which the path is cut off.
_RULE = {np.dtype(np.float32): (16, 18.0), np.dtype(np.float64): (40, 37.0)}
# Steps of Newton's method. It starts on the left of the root of a concave
# function, so that it never overshoots.
_SADDLE_STEPS = 8


class _Path(NamedTuple):
  """Points of the path minus the saddle ``[..., n, 1]``, and their steps."""

  saddle: jax.Array  # [..., 1]
  real: jax.Array
  imag: jax.Array
  real_step: jax.Array
  imag_step: jax.Array


def _path(z: jax.Array, possible: jax.Array) -> _Path:
  """Computes the path for logits whose largest is 0, without gradients."""
  z = lax.stop_gradient(z)
  zero, one = jnp.zeros_like(z), jnp.ones_like(z[..., :1])

  def inverse_sums(r: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse = jnp.where(possible, 1.0 / (r - z), zero)
    square = jnp.square(inverse)
    return inverse.sum(-1, keepdims=True), square.sum(-1, keepdims=True)

  def newton(_: int, r: jax.Array) -> jax.Array:
    first, second = inverse_sums(r)
    return r + (first * first - first) / second

  # The saddle point r solves sum 1 / (r - z_k) = 1. There, the sum of squares
  # relative to the largest term estimates how many nodes contribute.
  r = lax.fori_loop(0, _SADDLE_STEPS, newton, one + 0.0 * z[..., :1])
  _, second = inverse_sums(r)
  count, decay = _RULE[z.dtype]
  level = decay / (r * r * second)
  end = jnp.where(
    level <= _WIDTH_RATIO**2 / 2,
    jnp.sqrt(2.0 * level),
    level / _WIDTH_RATIO + _WIDTH_RATIO / 2,
  )
  step = jnp.arcsinh(end / _HEIGHT) / count
  index = lax.iota(z.dtype, count).reshape((1,) * (z.ndim - 1) + (count,))
  u = (step * index)[..., None]
  r = r[..., None]
  weight = jnp.where(index == 0, 0.5, 1.0).astype(z.dtype) * step / np.pi
  size = _HEIGHT * r
  return _Path(
    saddle=r[..., 0],
    real=-2.0 * _WIDTH_RATIO * size * jnp.square(jnp.sinh(u / 2.0)),
    imag=size * jnp.sinh(u),
    real_step=-_WIDTH_RATIO * size * jnp.sinh(u) * weight[..., None],
    imag_step=size * jnp.cosh(u) * weight[..., None],
  )


def _sums(
  z: jax.Array, possible: jax.Array
) -> tuple[_Path, jax.Array, jax.Array, jax.Array]:
  """Computes the path, distances of nodes from the saddle, and weights."""
  path = _path(z, possible)
  distance = jnp.where(possible, path.saddle - z, jnp.ones_like(z))
  d, here = distance[..., None, :], possible[..., None, :]
  zero = jnp.zeros_like(d)
  # The log-modulus and the argument of (s - z_k) / distance.
  square = (path.real * path.real + path.imag * path.imag) / d
  modulus = 0.5 * jnp.log1p((2.0 * path.real + square) / d)
  argument = jnp.arctan2(path.imag / d, 1.0 + path.real / d)
  modulus = jnp.where(here, modulus, zero).sum(-1, keepdims=True)
  argument = jnp.where(here, argument, zero).sum(-1, keepdims=True)
  size = jnp.exp(path.real - modulus)
  cos, sin = jnp.cos(path.imag - argument), jnp.sin(path.imag - argument)
  real = size * (cos * path.real_step - sin * path.imag_step)
  imag = size * (cos * path.imag_step + sin * path.real_step)
  return path, distance, real, imag


def _centred(z: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Subtracts the largest logit; also returns which are possible."""
  possible = z != -jnp.inf
  top = lax.stop_gradient(z.max(-1, keepdims=True))
  centred = jnp.maximum(z - top, float(jnp.finfo(z.dtype).min))
  return jnp.where(possible, centred, jnp.zeros_like(z)), possible


@jax.custom_jvp
def log_partition(z: jax.Array) -> jax.Array:
  """Computes ``log exp[z_1, ..., z_C]`` minus the largest logit.

  The classes are the last axis. A logit of ``-inf`` is left out. The largest
  logit is a constant in the gradient.
  """
  centred, possible = _centred(z)
  path, distance, _, imag = _sums(centred, possible)
  # A distance may overflow where half of it does not.
  half = jnp.where(possible, z.max(-1, keepdims=True) / 2 - z / 2, 0.0)
  far = half > float(jnp.finfo(z.dtype).max) / 4
  log_half = jnp.log(jnp.where(far, half, 1.0)) + math.log(2.0)
  log_distance = jnp.where(far, log_half, jnp.log(distance))
  product = log_distance.sum(-1)
  return path.saddle[..., 0] - product + jnp.log(imag.sum((-2, -1)))


def mean(z: jax.Array) -> jax.Array:
  """Computes the mean of the density, the gradient of `log_partition`."""
  centred, possible = _centred(z)
  path, distance, real, imag = _sums(centred, possible)
  d = distance[..., None, :]
  x, y = 1.0 + path.real / d, path.imag / d
  share = ((imag * x - real * y) / (x * x + y * y)).sum(-2)
  share /= distance * imag.sum((-2, -1))[..., None]
  return jnp.where(possible, share, jnp.zeros_like(z))


log_partition.defjvps(
  lambda dz, _, z: (mean(z) * jnp.where(z == -jnp.inf, 0.0, dz)).sum(-1)
)
