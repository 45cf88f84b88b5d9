# SPDX-License-Identifier: Apache-2.0
"""Simplex-valued targets: values, limits, and the integral against mpmath."""

import functools
import math

import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import mpmath
import numpy as np
import pytest

from squentropy_jax import losses

F32 = np.finfo(np.float32).eps
PROBE = np.array([1.2, -0.4, 0.3, 2.0])
X64 = pytest.mark.x64


@jax.jit
def mean_of(logits):
  """The predicted mean of the continuous categorical distribution."""
  return jnp.exp(losses.continuous_categorical.log_probs(logits))


@functools.cache
def log_integral(nodes: tuple[float, ...]) -> mpmath.mpf:
  """The textbook sum over nodes; ties are set 1e-40 apart."""
  # Nodes 1e-40 apart cost 40 digits for every pair that is divided by.
  with mpmath.workdps(60 + 45 * len(nodes)):
    z = [mpmath.mpf(x) + i * mpmath.mpf(10) ** -40 for i, x in enumerate(nodes)]
    top = max(z)
    terms = (
      mpmath.exp(a - top) / mpmath.fprod(a - b for b in z if b is not a)
      for a in z
    )
    return top + mpmath.log(mpmath.fsum(terms))


def true_mean(nodes: tuple[float, ...]) -> np.ndarray:
  total = log_integral(nodes)
  return np.array(
    [float(mpmath.exp(log_integral((*nodes, z)) - total)) for z in nodes]
  )


NODES = (
  (0.0, 0.0),
  (0.0, -1e-5),
  (0.0, 1e-5, -1e-5),
  (0.0, 1e4),
  (-1e4, 0.0, 1e4),
  (3.0,) * 6,
  (0.0,) * 5 + (-20.0,),
  (0.0,) + (-5.0,) * 5,
  (2.0, 2.0, 1.0, 1.0, -30.0, -30.0),
  tuple(np.linspace(0, 1e-3, 6).astype(np.float32).tolist()),
  tuple(np.linspace(-50, 50, 6).astype(np.float32).tolist()),
  (0.0, -0.5, -1.0, -4.0, -16.0, -64.0),
)


def padded(dtype):
  """All node sets in one array, with impossible classes at the end."""
  rows = [list(n) + [-np.inf] * (6 - len(n)) for n in NODES]
  return np.array(rows, dtype)


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(float, marks=X64)])
def test_the_integral_and_the_mean_are_exact_at_any_distance(dtype):
  z = padded(dtype)
  eps = np.finfo(dtype).eps
  # At a corner the loss is the integral's logarithm less one logit.
  corner = np.zeros(len(z), np.int32)
  actual = np.float64(jax.jit(losses.continuous_categorical)(z, corner))
  expected = np.array([float(log_integral(n) - n[0]) for n in NODES])
  # Sums of C logarithms below 10, and the gap to the largest logit.
  size = np.array([10 * len(n) + max(n) - n[0] for n in NODES])
  np.testing.assert_array_less(np.abs(actual - expected), 2 * eps * size)
  mean = np.float64(mean_of(z))
  for row, nodes in zip(mean, NODES, strict=True):
    np.testing.assert_allclose(
      row[: len(nodes)], true_mean(nodes), rtol=32 * eps
    )
    np.testing.assert_array_equal(row[len(nodes) :], 0)


@X64
def test_worked_numbers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  z, x = np.array([0.7, -0.3, 0.0]), np.array([0.5, 0.2, 0.3])
  close(losses.continuous_categorical(z, x), -0.8273768602559)
  mean = mean_of(z)
  np.testing.assert_allclose(mean, [0.3827412, 0.2975898, 0.3196690], atol=5e-8)
  log_c = losses.cross_entropy(z, x) - losses.continuous_categorical(z, x)
  close(log_c, 1.8603508721)
  logit = np.log(0.3 / 0.7)
  close(losses.continuous_bernoulli(logit, 0.8), 0.2839254814)
  pair = np.array([logit, 0.0])
  close(mean_of(pair)[0], 0.4302225011)
  both = losses.cross_entropy(pair, np.array([0.8, 0.2]))
  close(both, 1.0345132322)
  close(np.exp(both - losses.continuous_bernoulli(logit, 0.8)), 2.1182446510)
  close(losses.brier(PROBE, 0), 0.89734961366)
  a = np.array([[1, 0], [0, 1], [1, 1], [-1, 0.5]])
  x, b = np.array([0.3, -0.2]), np.array([0.1, 0.2, 0.3, 0.4])

  def half_square(x):
    return losses.softmax_regression(a @ x, b) / 2

  def norm(x):
    return losses.softmax_regression(a @ x, b, squared=False)

  close(norm(x), 0.3347449014)
  close(half_square(x), 0.112054149013 / 2)
  close(jax.jit(jax.grad(half_square))(x), [0.098433288085, -0.046339636081])
  close(jax.jit(jax.grad(norm))(x), [0.29405462988, -0.138432686763])
  close(
    jax.jit(jax.hessian(half_square))(x),
    [[0.046024505204, -0.052829990076], [-0.052829990076, 0.07898930131]],
  )


@X64
def test_derivatives_at_seams():
  def check(loss, *arguments):
    check_grads(jax.jit(loss), arguments, order=2, modes=["rev"])

  x = np.array([[0.2, 0.5, 0.3]] * 4)
  z = np.array([[1, 1, 1], [1, 1, 1 + 1e-9], [0, 1e-3, 0], [9, -9, 9.0]])
  check(losses.continuous_categorical, z, x)
  z = np.array([0, 1e-9, -1e-4, 4 - 1e-4, 4 + 1e-4, -4.1, 30, -30.0])
  check(losses.continuous_bernoulli, z, np.full(8, 0.3))
  norm = functools.partial(losses.softmax_regression, squared=False)
  check(norm, PROBE[None], np.array([[0.1, 0.2, 0.3, 0.4]]))


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_equal_logits_are_the_uniform_density(num_classes):
  for level in (0.0, 1e4):
    z = np.full(num_classes, level, np.float32)
    targets = np.eye(num_classes, dtype=np.float32)[0]
    value = losses.continuous_categorical(z, targets)
    np.testing.assert_allclose(
      value, -math.lgamma(num_classes), rtol=8 * F32, atol=4 * F32
    )
    mean = mean_of(z)
    np.testing.assert_allclose(mean, 1 / num_classes, rtol=2e-5)


def test_two_classes_are_the_continuous_bernoulli():
  z = np.linspace(-20, 20, 81).astype(np.float32)
  x = np.linspace(0, 1, 81).astype(np.float32)
  pairs = np.stack([z, np.zeros_like(z)], -1)
  both = losses.continuous_categorical(pairs, np.stack([x, 1 - x], -1))
  one = losses.continuous_bernoulli(z, x)
  np.testing.assert_allclose(one, both, rtol=0, atol=20 * 8 * F32)


def test_continuous_bernoulli_on_both_sides_of_its_seam():
  z = [0.0, 1e-30, 1e-4, -0.3, 1.0, 3.9999, 4.0, 4.0001, -4.0, -90.0, 1e4, -1e4]
  x = np.float32(0.25)
  value, gradient = jax.vmap(
    jax.value_and_grad(losses.continuous_bernoulli), (0, None)
  )(np.array(z, np.float32), x)
  for actual, by_z, at in zip(value, gradient, np.float32(z), strict=True):
    a = mpmath.mpf(float(at))
    with mpmath.workdps(80):
      truth = (mpmath.log(mpmath.expm1(a) / a) if a else 0) - a / 4
      mean = 1 / -mpmath.expm1(-a) - 1 / a if a else 0.5
    # Rounding errors of two terms, at most the size of the logit.
    assert abs(float(truth) - actual) <= 4 * F32 * max(abs(at), 1e-30)
    assert abs(float(mean) - 0.25 - by_z) <= 4 * F32


def test_a_corner_is_cross_entropy_with_the_normaliser():
  z = np.float32(PROBE)
  soft = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
  # The normaliser does not depend on the target.
  difference = [
    float(losses.cross_entropy(z, t) - losses.continuous_categorical(z, t))
    for t in (0, 3, soft)
  ]
  np.testing.assert_allclose(difference, difference[0], rtol=16 * F32)


@hypothesis.given(
  strategies.lists(
    strategies.floats(-1e4, 1e4, width=32), min_size=5, max_size=5
  ),
  strategies.floats(-1e4, 1e4, width=32),
)
def test_the_mean_is_on_the_simplex_and_ignores_a_shift(z, shift):
  z = np.array(z, np.float32)
  mean = np.asarray(mean_of(z))
  assert (mean > 0).all()
  assert abs(mean.sum(dtype=np.float64) - 1) < 32 * F32
  # Larger logits have larger means.
  assert (np.diff(mean[np.argsort(z)]) >= -32 * F32 * mean.max()).all()
  moved = np.asarray(mean_of(z + np.float32(shift)))
  # A mean's logarithm moves no faster than the logits, here by their rounding.
  np.testing.assert_allclose(moved, mean, rtol=64 * F32 + 2e4 * F32 * 2)


def test_the_distance_of_softmaxes_is_at_most_half_that_of_logits():
  rng = np.random.default_rng(3)
  u = rng.normal(size=(500, 4)).astype(np.float32) * 2
  v = u + rng.normal(size=(500, 4)).astype(np.float32)
  moved = losses.softmax_regression(u, jax.nn.softmax(v), squared=False)
  assert (moved <= np.linalg.norm(u - v, axis=-1) / 2 * (1 + 4 * F32)).all()
  assert moved.max() > 0.2


def test_two_classes_of_softmax_regression():
  z = np.float32([[0.3, -1.0], [5.0, 2.0]])
  b = np.float32([[0.2, 0.8], [1.0, 0.0]])
  first = jax.nn.sigmoid(z[:, 0] - z[:, 1])
  np.testing.assert_allclose(
    losses.softmax_regression(z, b), 2 * (first - b[:, 0]) ** 2, rtol=16 * F32
  )


def test_distance_zero_has_value_and_gradient_zero():
  z = np.full((1, 2), 1e4, np.float32)
  for squared in (True, False):
    loss = functools.partial(losses.softmax_regression, squared=squared)
    value, gradient = jax.value_and_grad(
      lambda z, f=loss: f(z, z * 0 + 0.5).sum()
    )(z)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_a_confident_example_is_accurate():
  z = np.array([[30.0, 0.0, -1.0], [0.0, 30.0, 0.0]], np.float32)
  labels = np.array([0, 0])
  p = np.exp(np.float64(z)) / np.exp(np.float64(z)).sum(-1, keepdims=True)
  rest = np.array([p[0, 1] + p[0, 2], 1 - p[1, 0]])
  truth = rest**2 + np.square(p[:, 1:]).sum(-1)
  # The error of exp(30) is up to 15 ulp.
  np.testing.assert_allclose(losses.brier(z, labels), truth, rtol=64 * F32)
  norm = losses.softmax_regression(z, labels, squared=False)
  np.testing.assert_allclose(norm, np.sqrt(truth), rtol=64 * F32)
  far = losses.softmax_regression(2 * z, labels, squared=False)
  assert far[0] > 0
  gradient = jax.grad(lambda z: losses.brier(z, labels).sum())(z)
  assert (gradient[:, 0] < 0).all()
  assert gradient[1, 1] > 0


def test_soft_labels_of_brier_are_expected_ones_less_a_constant():
  t = np.array([0.1, 0.2, 0.3, 0.4])
  z = np.float32(PROBE)
  each = np.array([losses.brier(z, k) for k in range(4)])
  np.testing.assert_allclose(
    losses.brier(z, np.float32(t)),
    t @ each - (1 - t @ t),
    rtol=0,
    atol=8 * F32,
  )


def test_invalid_arguments_are_named():
  z = jnp.zeros((2, 3))
  with pytest.raises(ValueError, match=r"labels\[1\] = 3 is outside \[0, 3\)"):
    losses.continuous_categorical(z, np.array([0, 3]))
  with pytest.raises(TypeError, match=r"labels of shape \(2,\).*integers"):
    losses.softmax_regression(z, jnp.zeros(2))
  with pytest.raises(TypeError, match="logits must be floating"):
    losses.continuous_categorical.log_probs(jnp.zeros(3, jnp.int32))
  with pytest.raises(ValueError, match="at least one class"):
    losses.continuous_categorical.log_probs(jnp.zeros((3, 0)))
  with pytest.raises(ValueError, match=r"labels\[0\] = 1.5 is outside"):
    losses.continuous_bernoulli(z[0], np.array([1.5, 0, 0]))
