# SPDX-License-Identifier: Apache-2.0
"""Every property that every loss of two arrays of scores must have."""

import functools

from cases import PAIR_CASES
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

EVERY = pytest.mark.parametrize("case", PAIR_CASES, ids=repr)


def scores(case):
  shape = (2, 6, case.num_scores)
  return np.random.default_rng(7).normal(size=shape).astype(np.float32) * 2


@functools.cache
def compiled(loss):
  """Value and gradients of one loss."""

  def total(first, second, where):
    loss_of_each = loss(first, second, where=where)
    return loss_of_each.sum(), loss_of_each

  return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def evaluate(case, first, second, where):
  (_, value), gradients = compiled(case.loss)(first, second, where)
  return np.asarray(value), [np.asarray(g) for g in gradients]


@EVERY
def test_value_and_dtype(case):
  first, second = scores(case)
  value, _ = evaluate(case, first, second, np.ones(6, bool))
  expected = [
    case.reference(np.float64(a), np.float64(b))
    for a, b in zip(first, second, strict=True)
  ]
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  narrow = case.loss(
    jnp.asarray(first, jnp.bfloat16), jnp.asarray(second, jnp.bfloat16)
  )
  chex.assert_shape(narrow, (6,))
  chex.assert_type(narrow, jnp.float32)


@EVERY
def test_gradients_are_those_of_the_reference(case):
  first, second = scores(case)
  _, gradients = evaluate(case, first, second, np.ones(6, bool))
  step = 1e-5
  for argument, gradient in enumerate(gradients):
    for k in range(case.num_scores):
      change = step * np.eye(case.num_scores)[k]
      rows = [np.float64(first), np.float64(second)]
      up, down = (
        [
          case.reference(*pair)
          for pair in zip(
            *(x + sign * change * (i == argument) for i, x in enumerate(rows)),
            strict=True,
          )
        ]
        for sign in (1, -1)
      )
      expected = (np.array(up) - np.array(down)) / (2 * step)
      np.testing.assert_allclose(gradient[:, k], expected, rtol=1e-4, atol=1e-5)


@EVERY
def test_dropped_rows_have_loss_and_gradient_0(case):
  first, second = scores(case)
  keep = np.array([True, False, True, True, False, True])
  expected, _ = evaluate(case, first, second, np.ones(6, bool))
  first[1], second[1], first[4] = np.nan, np.inf, -np.inf
  value, gradients = evaluate(case, first, second, keep)
  np.testing.assert_array_max_ulp(value[keep], expected[keep], 2)
  np.testing.assert_array_equal(value[~keep], 0)
  for gradient in gradients:
    np.testing.assert_array_equal(gradient[~keep], 0)
    assert np.isfinite(gradient).all()


@EVERY
def test_axis_and_vmap(case):
  first, second = scores(case)
  expected = case.loss(first, second)
  along = case.loss(first.T, second.T, axis=0)
  np.testing.assert_allclose(along, expected, rtol=1e-6)
  mapped = jax.vmap(case.loss)(first, second)
  np.testing.assert_allclose(mapped, expected, rtol=1e-6)


@EVERY
def test_shapes_that_do_not_fit_raise(case):
  first, second = scores(case)
  with pytest.raises(ValueError, match="shape"):
    case.loss(first, second[:5])
  with pytest.raises(TypeError, match="where must be boolean"):
    case.loss(first, second, where=np.ones(6))
  with pytest.raises(ValueError, match="axis must be in"):
    case.loss(first, second, axis=2)
