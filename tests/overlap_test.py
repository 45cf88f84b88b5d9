# SPDX-License-Identifier: Apache-2.0
"""Overlap losses: values, limits, sets and empty sets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import losses

F32 = np.finfo(np.float32).eps
P = np.array([0.9, 0.6, 0.4, 0.2])
Y = np.array([1, 1, 0, 0])
OVERLAP_LOSSES = (losses.dice, losses.tversky, losses.self_adjusting_dice)


def logit(p):
  return np.log(p / (1 - p))


@pytest.mark.x64
def test_worked_numbers():
  z = logit(P)
  adjusting = losses.self_adjusting_dice
  for actual, expected in (
    (losses.dice(z, Y, squared=True, axis=None), 0.0846681922),
    (losses.dice(z, Y, axis=None), 0.2156862745),
    (losses.dice(z, Y, squared=True).mean(), 0.0619369755),
    (losses.tversky(z, Y).mean(), 0.0985819736),
    (adjusting(z, Y).mean(), 0.2765429586),
    (adjusting(z, Y, squared=True, axis=None), 0.4728317825),
    (adjusting(z, Y, alpha=0.01).mean(), 0.1622881303),
    (adjusting(z, Y, alpha=0.01, squared=True, axis=None), 0.0871914390),
  ):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("axis", [(), None, 0, (0, 1), -1])
def test_reductions_to_dice(axis):
  rng = np.random.default_rng(0)
  z = rng.normal(size=(3, 4)).astype(np.float32) * 3
  y = rng.integers(0, 2, size=(3, 4))
  close = functools.partial(np.testing.assert_allclose, rtol=16 * F32)
  shape = {(): (3, 4), None: (), 0: (4,), (0, 1): (), -1: (3,)}[axis]
  dice = losses.dice(z, y, axis=axis)
  assert dice.shape == shape
  close(losses.tversky(z, y, smoothing=0.5, axis=axis), dice)
  for squared in (False, True):
    close(
      losses.self_adjusting_dice(z, y, alpha=0.0, squared=squared, axis=axis),
      losses.dice(z, y, squared=squared, axis=axis),
    )


def test_hard_predictions_without_smoothing_give_one_minus_f1():
  predicted = np.array([1, 1, 0, 0, 1, 0])
  y = np.array([1, 0, 1, 0, 1, 0])
  z = np.where(predicted, 200.0, -200.0).astype(np.float32)
  loss = losses.dice(z, y, smoothing=0.0, axis=None)
  np.testing.assert_allclose(loss, 1 - 2 * 2 / (2 * 2 + 1 + 1), rtol=4 * F32)


@pytest.mark.parametrize("loss", OVERLAP_LOSSES)
def test_sets_without_positives(loss):
  z = np.array([0.0, -50.0, -90.0, -1e4, 5.0], np.float32)
  y = np.zeros(5, np.int32)
  plain = functools.partial(loss, smoothing=0.0)
  for axis in ((), None):
    np.testing.assert_array_equal(plain(z, y, axis=axis), 1)
    grads = jax.grad(lambda z, a=axis: plain(z, y, axis=a).sum())(z)
    np.testing.assert_allclose(grads, 0, atol=4 * F32)
  assert plain(z, y, axis=None, where=np.zeros(5, bool)) == 0
  assert plain(z[:0], y[:0], axis=None) == 0
  # Smoothing makes negatives matter.
  grads = jax.grad(lambda z: loss(z, y).sum())(z)
  assert grads[1] > 0
  assert loss(z, y)[3] == 0


@pytest.mark.parametrize("loss", OVERLAP_LOSSES)
def test_sets_along_an_axis_are_as_one_by_one(loss):
  rng = np.random.default_rng(1)
  z = rng.normal(size=(3, 4)).astype(np.float32)
  y, keep = rng.integers(0, 2, size=(3, 4)), rng.random((3, 4)) < 0.6
  rows = [
    loss(a[k], b[k], axis=None) for a, b, k in zip(z, y, keep, strict=True)
  ]
  np.testing.assert_allclose(
    loss(z, y, axis=1, where=keep), np.stack(rows), rtol=8 * F32
  )


def test_a_confident_example_is_accurate():
  z, y = np.array([30.0, -30.0], np.float32), np.array([1, 0])
  small = np.exp(-30.0)
  close = functools.partial(np.testing.assert_allclose, rtol=32 * F32)
  # p (1 - y) + (1 - p) y over p + y + 1.
  close(losses.dice(z, y), [small / 3, small / 1])
  close(losses.dice(z, y, squared=True), [small**2 / 3, small**2])
  close(losses.tversky(z, y), [small / 2 / 2, small / 2])
  damped = losses.self_adjusting_dice(z, y, alpha=1e-12)
  close(damped, [(small + 30e-12) / 3, small], rtol=1e-4)
  grads = jax.grad(lambda z: losses.dice(z, y).sum())(z)
  close(grads, [-small / 3, small])


def test_the_loss_of_a_positive_rises_beyond_the_peak():
  # q = (1 - p)^alpha p is largest at p = 1 / (1 + alpha).
  for alpha in (0.01, 0.5, 1.0, 3.0):
    peak = np.float32(logit(1 / (1 + alpha)))
    z = peak + np.array([-0.5, 0.0, 0.5], np.float32)
    grads = jax.vmap(
      jax.grad(
        lambda z, a=alpha: losses.self_adjusting_dice(z, jnp.int32(1), alpha=a)
      )
    )(z)
    assert grads[0] < 0 < grads[2]
    np.testing.assert_allclose(grads[1], 0, atol=8 * F32)


def test_hyperparameters_may_be_traced_and_differentiated():
  z, y = np.float32(logit(P)), Y

  @jax.jit
  def total(alpha, smoothing):
    return sum(
      f(z, y, alpha=alpha, smoothing=smoothing, axis=None)
      for f in OVERLAP_LOSSES[1:]
    )

  grads = jax.jit(jax.grad(total, (0, 1)))(0.5, 1.0)
  for k in range(2):
    up, down = [0.5, 1.0], [0.5, 1.0]
    up[k] += 1e-2
    down[k] -= 1e-2
    np.testing.assert_allclose(
      grads[k], (total(*up) - total(*down)) / 2e-2, rtol=2e-3
    )


@pytest.mark.parametrize("loss", OVERLAP_LOSSES)
@pytest.mark.parametrize("axis", [(), None, 0])
def test_a_set_may_have_hyperparameters_of_its_own(loss, axis):
  rng = np.random.default_rng(2)
  z = rng.normal(size=(3, 4)).astype(np.float32)
  y, keep = rng.integers(0, 2, size=(3, 4)), rng.random((3, 4)) < 0.6
  keep[:, 0] = False
  shape = {(): (3, 4), None: (), 0: (4,)}[axis]
  sizes = rng.random(shape).astype(np.float32)
  # A dropped set may have any value.
  dropped = np.broadcast_to(~keep if axis == () else ~keep.any(axis), shape)
  own = np.where(dropped, np.float32(np.nan), sizes)
  actual = loss(z, y, smoothing=own, axis=axis, where=keep)
  for place in np.ndindex(*shape):
    one = loss(z, y, smoothing=sizes[place], axis=axis, where=keep)
    np.testing.assert_allclose(actual[place], one[place], rtol=4 * F32)
  grads = jax.grad(
    lambda s: loss(z, y, smoothing=s, axis=axis, where=keep).sum()
  )(own)
  assert np.isfinite(grads).all()
  np.testing.assert_array_equal(np.asarray(grads)[dropped], 0)


@pytest.mark.parametrize("loss", OVERLAP_LOSSES)
def test_bad_arguments_are_named(loss):
  z = jnp.zeros((2, 3))
  y = jnp.zeros((2, 3), jnp.int32)
  with pytest.raises(ValueError, match=r"smoothing must be in .*, got -1"):
    loss(z, y, smoothing=-1)
  with pytest.raises(ValueError, match=r"smoothing must be a scalar or have"):
    loss(z, y, smoothing=[1.0])
  with pytest.raises(ValueError, match=r"the batch shape \(2,\)"):
    loss(z, y, smoothing=jnp.ones(3), axis=1)
  for axis in (2, (0, -3), "last", 0.5, True):
    with pytest.raises(
      (TypeError, ValueError), match=r"axis must be None or ints in \[-2, 2"
    ):
      loss(z, y, axis=axis)
  assert loss(z, y, axis=np.int64(0)).shape == (3,)
  with pytest.raises(ValueError, match="twice"):
    loss(z, y, axis=(1, -1))
  if loss is not losses.dice:
    with pytest.raises(ValueError, match="alpha must be in"):
      loss(z, y, alpha=-0.5)
