# SPDX-License-Identifier: Apache-2.0
"""Calibration regularizers: values, gradients and edges."""

import functools

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from squentropy_jax import calibration

REGULARIZERS = {
  "correctness_aware": calibration.correctness_aware,
  "mmce": functools.partial(calibration.mmce, bandwidth=0.3),
  "soft_binned_ece": functools.partial(
    calibration.soft_binned_ece, num_bins=6, temperature=0.05
  ),
  "avuc": functools.partial(calibration.avuc, threshold=0.9),
}
EVERY = pytest.mark.parametrize("name", REGULARIZERS)
# Bins and groups of almost no weight.
EXTREMES = REGULARIZERS | {
  "soft_binned_ece of 15 bins": calibration.soft_binned_ece,
  "soft_binned_ece of sharp bins": functools.partial(
    calibration.soft_binned_ece, temperature=1e-3
  ),
  "avuc of threshold 0": functools.partial(calibration.avuc, threshold=0.0),
}
_FAST = {"xla_backend_optimization_level": 0}


def _with_gradient(name):
  def term(z, y, where):
    return EXTREMES[name](z, y, where=where)

  return jax.value_and_grad(term)


@functools.cache
def _compiled(name):
  return jax.jit(_with_gradient(name), compiler_options=_FAST)


def _data():
  rng = np.random.default_rng(2)
  z = rng.normal(size=(12, 3)) * 2
  return z.astype(np.float32), rng.integers(0, 3, 12)


def _top(z, y):
  z = z.astype(np.float64)
  logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
  return logp, np.exp(logp).max(-1), (z.argmax(-1) == y) * 1.0


def _correctness_aware(z, y):
  _, r, a = _top(z, y)
  groups = [np.square(r - a)[a == k].mean() for k in (0, 1) if k in a]
  return np.mean(groups)


def _mmce(z, y):
  _, r, a = _top(z, y)
  kernel = np.exp(-np.abs(r[:, None] - r) / 0.3)
  return (a - r) @ kernel @ (a - r) / len(r) ** 2


def _soft_binned_ece(z, y):
  _, r, a = _top(z, y)
  weight = np.exp(-np.square(r[:, None] - (np.arange(6) + 0.5) / 6) / 0.05)
  weight /= weight.sum(-1, keepdims=True)
  gap = weight.T @ (r - a) / weight.sum(0)
  return np.sqrt(weight.mean(0) @ gap**2)


def _avuc(z, y):
  logp, r, a = _top(z, y)
  u = -(np.exp(logp) * logp).sum(-1)
  t, sure = np.tanh(u), u <= 0.9
  ac = (r * (1 - t))[(a == 1) & sure].sum()
  au = (r * t)[(a == 1) & ~sure].sum()
  ic = ((1 - r) * (1 - t))[(a == 0) & sure].sum()
  iu = ((1 - r) * t)[(a == 0) & ~sure].sum()
  return np.log1p((au + ic) / (ac + iu))


DEFINITIONS = {
  "correctness_aware": _correctness_aware,
  "mmce": _mmce,
  "soft_binned_ece": _soft_binned_ece,
  "avuc": _avuc,
}


@EVERY
def test_values_equal_the_definitions_among_dropped_rows(name):
  z, y = _data()
  keep = np.arange(12) % 4 > 0
  holed, labels = z.copy(), y.copy()
  holed[~keep], labels[~keep] = np.nan, -100
  value, gradient = _compiled(name)(holed, labels, keep)
  # Tens of ulp of numbers up to 1.
  want = DEFINITIONS[name](z[keep], y[keep])
  np.testing.assert_allclose(value, want, atol=2e-6)
  assert np.all(np.isfinite(gradient))
  np.testing.assert_array_equal(gradient[~keep], 0)
  assert np.any(gradient[keep] != 0)
  # A softmax does not change with a shift: gradients of a row sum to 0.
  np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-7)


def test_published_examples():
  z = np.float32([[2, 0, -1], [0.5, 0.4, 0.3], [-1, 1.5, 0], [0, 0.2, 1]])
  y = np.array([0, 1, 1, 0])
  np.testing.assert_allclose(calibration.mmce(z, y), 0.0313624443, rtol=5e-6)
  assert calibration.avuc(z, y, threshold=0.9) == 0
  # The reference implementation adds 1e-5 to the weight of each bin.
  np.testing.assert_allclose(
    calibration.soft_binned_ece(z, y), 0.3359901090, rtol=2e-5
  )
  z = np.float32([[1, 0, -0.5], [0.6, 0.4, 0.2]])
  np.testing.assert_allclose(
    calibration.correctness_aware(z, np.array([0, 1])), 0.149699721, rtol=2e-6
  )


def test_hard_bins_are_the_limit_of_soft_ones():
  z, y = _data()
  stats = calibration.bin_stats(jax.nn.softmax(z), y, num_bins=5)
  np.testing.assert_allclose(
    calibration.soft_binned_ece(z, y, num_bins=5, temperature=1e-6),
    calibration.expected_calibration_error(stats, norm=2),
    rtol=1e-5,
  )


@pytest.mark.x64
@EVERY
def test_gradients_in_float64(name):
  z, y = _data()
  term = jax.jit(lambda z: REGULARIZERS[name](z, y))
  z = z.astype(np.float64)
  check_grads(term, (z,), order=1, modes=["rev"])
  np.testing.assert_allclose(term(z), DEFINITIONS[name](z, y), rtol=1e-12)


@pytest.mark.parametrize("name", EXTREMES)
def test_edges_have_finite_values_and_gradients(name):
  z, y = _data()
  is_top = np.arange(3) == z.argmax(-1)[:, None]
  # From bins without weight, over weights that underflow, to equal ones.
  confident = [np.where(is_top, margin, 0) for margin in (200, 60, 8, 3, 1)]
  impossible = np.where(np.arange(3) == 0, -np.inf, z)
  for logits in (*confident, impossible, 3 * z, 0 * z):
    logits = logits.astype(np.float32)
    right = logits.argmax(-1)
    for labels in (right, (right + 1) % 3, y):
      value, gradient = _compiled(name)(logits, labels, np.ones(12, bool))
      assert np.isfinite(value)
      assert np.all(np.isfinite(gradient))
      if logits[0, 0] == 200 and labels is right:
        assert value == 0
  for keep in (np.zeros(12, bool), np.arange(12) == 3):
    value, gradient = _compiled(name)(z, y, keep)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    assert keep.any() or value == 0


@EVERY
def test_invalid_rows_raise_or_give_nan(name):
  z, y = _data()
  y[5] = 3
  with pytest.raises(ValueError, match=r"labels\[5\] = 3"):
    REGULARIZERS[name](z, y)
  value, gradient = _compiled(name)(z, y, np.ones(12, bool))
  assert np.isnan(value)
  assert np.any(np.isnan(gradient))
  z[5, 0] = np.nan
  assert np.isnan(_compiled(name)(z, y % 3, np.ones(12, bool))[0])


@EVERY
def test_batches_over_seeds_and_narrow_types(name):
  z, y = _data()
  keep = np.ones(12, bool)
  value, gradient = jax.jit(
    jax.vmap(_with_gradient(name), in_axes=(0, None, None)),
    compiler_options=_FAST,
  )(np.stack([z, z * 2]), y, keep)
  want = _compiled(name)(z * 2, y, keep)
  np.testing.assert_allclose(value[1], want[0], atol=1e-6)
  np.testing.assert_allclose(gradient[1], want[1], atol=1e-6)
  value, gradient = jax.eval_shape(
    _with_gradient(name), jnp.asarray(z, jnp.bfloat16), y, keep
  )
  assert value.dtype == jnp.float32
  assert gradient.dtype == jnp.bfloat16


def test_arguments_are_checked():
  z, y = _data()
  for name, call in (
    ("bandwidth", lambda: calibration.mmce(z, y, bandwidth=0.0)),
    ("temperature", lambda: calibration.soft_binned_ece(z, y, temperature=-1)),
    ("threshold", lambda: calibration.avuc(z, y, threshold=-1.0)),
  ):
    with pytest.raises(ValueError, match=f"{name} must be in"):
      call()
  with pytest.raises(TypeError, match="labels must be integer"):
    calibration.mmce(z, jax.nn.softmax(z))
