# SPDX-License-Identifier: Apache-2.0
"""Bisection and Newton's method, by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax._core import solvers


def test_bisection_ends_at_the_last_bit():
  one = jnp.float32(1)
  root = solvers.bisect(lambda x: x * x >= 2, one, 2 * one, 24)
  np.testing.assert_allclose(root, np.sqrt(2), rtol=2.0**-23)
  # A NaN counts as False: the upper end remains.
  end = solvers.bisect(lambda x: jnp.log(-x) >= 0, one, 2 * one, 24)
  np.testing.assert_allclose(end, 2, rtol=2.0**-23)


def test_bisection_of_the_logarithm_reaches_far_scales():
  # 200 binary orders of magnitude, of which 32 halvings leave 2^-24.
  for target in (1e-30, 1.0, 1e30):
    root = solvers.bisect(
      lambda x, target=target: x >= target,
      jnp.float32(2.0**-100),
      jnp.float32(2.0**100),
      32,
      middle=solvers.geometric_mean,
    )
    np.testing.assert_allclose(root, target, rtol=1e-6)


def test_newton_finds_the_minimum_of_a_tree():
  def f(x):
    # The minimum is where exp(a) = 2, and b = (3, -1).
    return jnp.exp(x["a"]) - 2 * x["a"] + jnp.sum((x["b"] - target) ** 2)

  target = jnp.float32([3, -1])
  start = {"a": jnp.float32(5), "b": jnp.zeros(2)}
  found = jax.jit(lambda start: solvers.newton(f, start))(start)
  np.testing.assert_allclose(found["a"], np.log(2), rtol=1e-6)
  np.testing.assert_allclose(found["b"], target, rtol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_newton_is_finite_without_a_minimum(sign):
  found = jax.jit(
    lambda x: solvers.newton(lambda x: jax.nn.softplus(sign * x), x)
  )(jnp.float32(0))
  assert np.isfinite(found)
  assert sign * found < -5
