# SPDX-License-Identifier: Apache-2.0
"""Pairwise ranking: values, limits, ties and masks."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest
from support import contract

from squentropy_jax import retrieval

F32 = np.finfo(np.float32).eps
RNG = np.random.default_rng(6)
ranking = retrieval.pairwise_ranking
jitted = contract.jit(ranking)


def reference(x, y, keep=None):
  """The mean over ordered pairs of different targets, both orders counted."""
  kept = np.ones(len(x), bool) if keep is None else keep
  each = [
    np.logaddexp(0, -(x[i] - x[j]) * np.sign(y[i] - y[j]))
    for i in range(len(x))
    for j in range(len(x))
    if y[i] != y[j] and kept[i] and kept[j]
  ]
  return np.mean(each) if each else 0.0


@pytest.mark.x64
def test_worked_numbers():
  loss = ranking(np.array([0.2, -0.1, 0.5]), np.array([1, 2, 3]))
  np.testing.assert_allclose(loss, 0.6153994798, rtol=0, atol=1e-10)


@pytest.mark.x64
def test_values_and_derivatives_are_those_of_the_definition():
  x = RNG.normal(size=(2, 3, 6))
  y = RNG.integers(0, 4, (2, 3, 6))
  keep = RNG.random((2, 3, 6)) < 0.7
  keep[0, 0] = False
  for where in (None, keep):
    found = jitted(x, y, where=where)
    expected = [
      [
        reference(x[i, j], y[i, j], keep[i, j] if where is keep else None)
        for j in range(3)
      ]
      for i in range(2)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-13)
  check_grads(
    lambda x: ranking(x, y, where=keep).sum(), (x,), order=2, modes=["rev"]
  )
  # Only the order of the targets counts.
  np.testing.assert_array_equal(jitted(x, np.exp(y / 3)), jitted(x, y / 1.0))


def test_limits():
  # Two entries: the logistic loss of their difference.
  pair = np.float32([1.5, -0.5])
  np.testing.assert_allclose(
    ranking(pair, [0, 1]), np.logaddexp(0, 2), rtol=4 * F32
  )
  constant = np.full(5, 0.3, np.float32)
  np.testing.assert_allclose(
    ranking(constant, np.arange(5)), np.log(2), rtol=4 * F32
  )
  # A right order by a wide margin has an accurate small loss.
  np.testing.assert_allclose(
    ranking(np.float32([40, 0]), [1, 0]), np.exp(-40.0), rtol=16 * F32
  )
  gradient = jax.grad(lambda x: ranking(x, np.ones(5)).sum())(constant)
  np.testing.assert_array_equal(gradient, 0)
  assert ranking(constant, np.ones(5)) == 0
  assert ranking(constant[:1], np.ones(1)) == 0


def test_masks_and_invalid_numbers():
  x = RNG.normal(size=(3, 5)).astype(np.float32)
  y = RNG.integers(0, 3, (3, 5)).astype(np.float32)
  keep = RNG.random((3, 5)) < 0.6
  keep[1] = False

  def total(x, y, keep):
    losses = ranking(x, y, where=keep)
    return losses.sum(), losses

  gradient = contract.jit(jax.grad(total, has_aux=True))
  expected = gradient(x, y, keep)
  for fill in (np.nan, np.inf):
    lost = [np.where(keep, a, np.float32(fill)) for a in (x, y)]
    by_score, losses = gradient(*lost, keep)
    np.testing.assert_array_equal(by_score, expected[0])
    np.testing.assert_array_equal(losses, expected[1])
    assert losses[1] == 0
    np.testing.assert_array_equal(np.asarray(by_score)[~keep], 0)
  # A comparison with NaN must not leave an entry out.
  for k in range(2):
    bad = [x.copy(), y.copy()]
    bad[k][0, 2] = np.nan
    losses = ranking(*bad)
    assert np.isnan(losses[0])
    assert np.isfinite(losses[1:]).all()
  narrow = ranking(jnp.asarray(x, jnp.bfloat16), y)
  wide = ranking(np.float32(jnp.asarray(x, jnp.bfloat16)), y)
  assert narrow.dtype == np.float32
  np.testing.assert_array_equal(narrow, wide)


def test_bad_arguments_are_named():
  x = np.zeros((2, 3), np.float32)
  with pytest.raises(ValueError, match="targets must have the shape of pred"):
    ranking(x, x[0])
  with pytest.raises(ValueError, match=r"must be lists of shape \[\.\.\., L\]"):
    ranking(x[0, 0], x[0, 0])
  with pytest.raises(TypeError, match="targets must be integers or floats"):
    ranking(x, x > 0)
  with pytest.raises(TypeError, match="predictions must be floating"):
    ranking(np.zeros((2, 3), int), x)
  with pytest.raises(ValueError, match="where must have"):
    ranking(x, x, where=np.ones(2, bool))
  if not jax.config.jax_enable_x64:
    with pytest.raises(ValueError, match="targets must fit in int32"):
      ranking(x, np.zeros((2, 3), np.int64) + 2**32)
