# SPDX-License-Identifier: Apache-2.0
"""Linear probes reach the optimum, that of scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets, linear_model
from support.contract import jit

from squentropy_jax import probes

RNG = np.random.default_rng(14)
fit = jit(probes.fit_logistic, static_argnames="num_classes")


def centred(logits):
  return logits - logits.mean(-1, keepdims=True)


def check(x, y, l2, bound=1e-4, dtype=np.float32):
  """Training logits are within ``bound`` of those of scikit-learn."""
  classes = len(np.unique(y))
  exact = linear_model.LogisticRegression(
    C=(2 if classes == 2 else 1) / l2,
    solver="newton-cholesky",
    tol=1e-12,
    max_iter=1000,
  ).fit(x, y)
  expected = exact.decision_function(x)
  if classes == 2:
    expected = np.stack([-expected / 2, expected / 2], axis=1)
  # Optimised: many iterations.
  params = probes.fit_logistic(x.astype(dtype), y, classes, l2=l2)
  assert params.kernel.dtype == dtype
  found = probes.linear_logits(params, x.astype(dtype))
  np.testing.assert_allclose(
    centred(np.asarray(found, np.float64)), centred(expected), atol=bound
  )
  return params


def digits():
  x, y = datasets.load_digits(return_X_y=True)
  return x, y


def test_separable_digits_in_two_scales():
  # Pixels of 0 to 16: the fit is confident, and its curvature small.
  x, y = digits()
  x, y = x[:150, 20:50], y[:150]
  check(x, y, 1.0)
  check(x / 16, y, 1e-2)


def test_two_classes_with_an_offset_and_different_scales():
  x = RNG.normal(size=(120, 5)) * np.array([0.1, 1, 1, 10, 50]) + 20
  y = (x[:, 1] - 20 + RNG.normal(size=120) > 0).astype(int)
  params = check(x, y, 1.0)
  np.testing.assert_allclose(params.kernel.sum(1), 0, atol=1e-6)


def test_more_features_than_examples():
  check(RNG.normal(size=(30, 60)), np.arange(30) % 3, 1e-2)


@pytest.mark.x64
def test_float64():
  x, y = digits()
  check(x[:100, 20:40], y[:100], 1.0, 1e-9, np.float64)


@pytest.mark.x64
def test_derivative_in_forward_mode_is_that_of_the_optimum():
  x, direction = RNG.normal(size=(2, 24, 3))
  y = np.arange(24) % 3

  def logits_of(x, l2):
    return probes.linear_logits(probes.fit_logistic(x, y, 3, l2=l2), x)

  step, at = 1e-5, jit(logits_of)
  up, down = (at(x + s * direction, 0.5 + s) for s in (step, -step))
  found = jit(lambda *a: jax.jvp(logits_of, a, (direction, 1.0))[1])(x, 0.5)
  np.testing.assert_allclose(found, (up - down) / (2 * step), atol=1e-6)


def test_features_of_any_size():
  rng = np.random.default_rng(3)
  x = rng.normal(size=(60, 3))
  # Not separable, so that the penalty is not what makes the optimum finite.
  y = (x + 2 * rng.normal(size=x.shape)).argmax(1)
  for size, l2, same in (
    (1e-18, 0.5e-36, 0.5),
    (1e18, 0.5e36, 0.5),
    # Their squares are not finite, and the penalty is nearly 0.
    (1e20, 1.0, 1e-6),
  ):
    expected = probes.fit_logistic(x.astype(np.float32), y, 3, l2=same)
    # Also with a penalty that hardly restricts equal weights of all classes.
    np.testing.assert_allclose(expected.kernel.sum(1), 0, atol=1e-5)
    found = probes.fit_logistic((x * size).astype(np.float32), y, 3, l2=l2)
    np.testing.assert_allclose(
      found.kernel * size, expected.kernel, rtol=1e-3, atol=1e-3
    )


def test_an_optimum_out_of_reach_raises_or_gives_nan():
  x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
  y = x.argmax(1)
  with pytest.raises(ValueError, match=r"l2 must be large enough .*float32"):
    probes.fit_logistic(x, y, 3, l2=1e-12)
  assert np.isnan(fit(x, y, num_classes=3, l2=1e-12).kernel).all()
  x[3] = np.nan
  for array in probes.fit_logistic(x, y, 3):
    assert np.isnan(array).all()


def test_dropped_rows_and_absent_classes():
  x = RNG.normal(size=(24, 3)).astype(np.float32)
  y = np.arange(24) % 3
  keep = np.arange(24) < 18
  expected = fit(x[keep], y[keep], num_classes=3)
  padded = np.where(keep[:, None], x, np.nan)
  labels = np.where(keep, np.where(y == 2, 3, y), -100)
  found = fit(padded, labels, num_classes=4, where=keep)
  order = [0, 1, 3]
  np.testing.assert_allclose(
    found.kernel[:, order], expected.kernel, rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    found.bias[jnp.array(order)], expected.bias, rtol=1e-4, atol=1e-5
  )
  assert found.bias[2] == -np.inf
  assert np.all(probes.linear_logits(found, x)[:, 2] == -np.inf)
  one = fit(x[:3], np.zeros(3, int), num_classes=4)
  np.testing.assert_array_equal(one.kernel, 0)
  np.testing.assert_array_equal(one.bias, [0, -np.inf, -np.inf, -np.inf])


def test_invalid_arguments_raise_or_give_nan():
  x, y = np.eye(3, dtype=np.float32), np.arange(3)
  bad = fit(x, np.array([0, 1, 3]), num_classes=3)
  assert np.isnan(bad.kernel).all()
  none = fit(x, y, num_classes=3, where=np.zeros(3, bool))
  assert np.isnan(none.bias).all()
  empty = probes.fit_logistic(x[:0], y[:0], 3)
  assert empty.kernel.shape == (3, 3)
  assert np.isnan(empty.bias).all()
  with pytest.raises(ValueError, match=r"labels\[2\] = 2 is outside \[0, 2\)"):
    probes.fit_logistic(x, y, 2)
  with pytest.raises(ValueError, match="l2 must be in"):
    probes.fit_logistic(x, y, 3, l2=0.0)
  with pytest.raises(ValueError, match="where must have the batch shape"):
    probes.fit_logistic(x, y, 3, where=np.ones(2, bool))
  with pytest.raises(TypeError, match="where must be boolean"):
    probes.fit_logistic(x, y, 3, where=np.ones(3))
  params = probes.LinearProbe(jnp.zeros((3, 2)), jnp.zeros(2))
  with pytest.raises(ValueError, match="features must have 3 features"):
    probes.linear_logits(params, x[:, :2])
  with pytest.raises(TypeError, match=r"params must be a probes\.LinearProbe"):
    probes.linear_logits((1, 2), x)
  with pytest.raises(ValueError, match="params must have a kernel"):
    probes.linear_logits(params._replace(bias=jnp.zeros(3)), x)


def test_vmap_over_penalties():
  x = RNG.normal(size=(24, 3)).astype(np.float32)
  y = np.arange(24) % 3
  l2 = jnp.array([0.1, 10.0])
  found = jax.vmap(lambda l2: probes.fit_logistic(x, y, 3, l2=l2))(l2)
  one = fit(x, y, num_classes=3, l2=l2[1])
  np.testing.assert_allclose(found.kernel[1], one.kernel, rtol=1e-4, atol=1e-6)
  assert np.all(np.abs(found.kernel[0]).max() > np.abs(found.kernel[1]).max())
