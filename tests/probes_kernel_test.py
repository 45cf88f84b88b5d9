# SPDX-License-Identifier: Apache-2.0
"""The singular-kernel classifier, and the networks that tend to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.contract import jit

from squentropy_jax import probes
from squentropy_jax.probes import _singular_kernel

RNG = np.random.default_rng(14)
POINTS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
LABELS = np.array([0, 1, 1])
QUERY = np.array([0.5, 0.5])
log_probs = jit(probes.singular_kernel_log_probs, static_argnames="num_classes")


def reference(queries, points, labels, num_classes, exponent):
  distance = np.linalg.norm(queries[:, None] - points[None], axis=-1)
  weight = distance**-exponent
  sums = weight @ np.eye(num_classes)[labels]
  return sums / sums.sum(1, keepdims=True)


@pytest.mark.x64
def test_numbers_of_the_card():
  for exponent, expected in ((1, 0.4086280012), (2, 5 / 11), (4, 25 / 51)):
    found = log_probs(
      QUERY, POINTS, LABELS, num_classes=2, exponent=float(exponent)
    )
    np.testing.assert_allclose(np.exp(found[0]), expected, rtol=1e-9)


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of which neither the queries nor the points are a multiple."""
  monkeypatch.setattr(_singular_kernel, "_QUERIES", 4)
  monkeypatch.setattr(_singular_kernel, "_POINTS", 8)
  _singular_kernel._log_probs_jit.clear_cache()
  yield
  _singular_kernel._log_probs_jit.clear_cache()


def test_blocks_masks_and_exponents_of_queries(small_blocks):
  queries = RNG.normal(size=(2, 3, 3)).astype(np.float32)
  points = RNG.normal(size=(21, 3)).astype(np.float32)
  # Class 3 has no point.
  labels, keep = RNG.integers(0, 3, 21), np.arange(21) % 5 > 0
  exponents = RNG.uniform(0.5, 5, (2, 3)).astype(np.float32)
  padded = np.where(keep[:, None], points, np.nan)
  found = probes.singular_kernel_log_probs(
    queries,
    padded,
    np.where(keep, labels, -100),
    4,
    exponent=exponents,
    where=keep,
  )
  assert found.shape == (2, 3, 4)
  expected = reference(
    queries.reshape(6, 3).astype(float),
    points[keep].astype(float),
    labels[keep],
    4,
    exponents.reshape(6, 1).astype(float),
  )
  np.testing.assert_allclose(np.exp(found).reshape(6, 4), expected, rtol=1e-5)
  assert np.all(found[..., 3] == -np.inf)


def test_limits_of_the_exponent():
  few = log_probs(
    QUERY.astype(np.float32), POINTS, LABELS, num_classes=2, exponent=1e-6
  )
  np.testing.assert_allclose(np.exp(few), [1 / 3, 2 / 3], rtol=1e-5)
  query = np.float32([0.4, 0.1])
  many = log_probs(query, POINTS, LABELS, num_classes=2, exponent=1e4)
  assert many[0] == 0
  # The log-probability is accurate where the probability underflows.
  distance = np.linalg.norm(query - POINTS, axis=1)
  expected = 1e4 * np.log(distance[0] / distance[1])
  np.testing.assert_allclose(many[1], expected, rtol=1e-4)


def test_coinciding_points_decide():
  points = jnp.array([[1.0, 2.0]] * 3 + [[1.0, 2.1]] * 5)
  labels = jnp.array([0, 1, 1, 2, 2, 2, 2, 2])
  found = log_probs(points[0], points, labels, num_classes=3, exponent=2.0)
  np.testing.assert_allclose(np.exp(found), [1 / 3, 2 / 3, 0], rtol=1e-6)
  where = jnp.arange(8) > 2
  found = log_probs(
    points[0], points, labels, num_classes=3, exponent=2.0, where=where
  )
  np.testing.assert_array_equal(np.exp(found), [0, 0, 1])


def test_close_points_and_extreme_scales_in_float32():
  # |q|^2 + |x|^2 - 2 q x has no correct digit for these distances.
  points = np.float32([[1000.0, 0], [1000.0, 0]])
  points[:, 1] = [1e-4, -2e-4]
  query = np.float32([1000.0, 0])
  for scale in (1.0, 1e-26, 1e26):
    found = log_probs(
      query * np.float32(scale),
      points * np.float32(scale),
      np.array([0, 1]),
      num_classes=2,
      exponent=1.0,
    )
    np.testing.assert_allclose(np.exp(found), [2 / 3, 1 / 3], rtol=1e-5)


def test_gradients(small_blocks):
  queries = RNG.normal(size=(5, 2)).astype(np.float32)
  points = RNG.normal(size=(9, 2)).astype(np.float32)
  labels = np.arange(9) % 2
  exponents = np.full(5, 2, np.float32)
  # A query that coincides has gradient 0.
  queries[4] = points[0]

  def total(queries, points, exponents):
    out = probes.singular_kernel_log_probs(
      queries, points, labels, 2, exponent=exponents
    )
    return jnp.where(jnp.isfinite(out), out, 0)[:, 0].sum()

  arrays = (queries, points, exponents)
  value_and_grad = jit(jax.value_and_grad(total, (0, 1, 2)))
  _, gradients = value_and_grad(*arrays)
  np.testing.assert_array_equal(gradients[0][4], 0)
  directions = [RNG.normal(size=x.shape).astype(np.float32) for x in arrays]
  directions[0][4] = directions[1][0] = 0
  up, down = (
    value_and_grad(
      *(x + s * d for x, d in zip(arrays, directions, strict=True))
    )[0]
    for s in (1e-3, -1e-3)
  )
  expected = sum(map(np.vdot, gradients, directions))
  np.testing.assert_allclose((up - down) / 2e-3, expected, rtol=1e-2)


@pytest.mark.parametrize("width", [16, 256])
def test_memory_does_not_grow_with_queries_times_points(width):
  """The distances of 10,000 queries and 100,000 points take 4 GB."""
  shape = jax.ShapeDtypeStruct

  def predict(queries, points, labels):
    return probes.singular_kernel_log_probs(
      queries, points, labels, 10, exponent=2.0
    )

  compiled = jit(predict).lower(
    shape((10_000, width), np.float32),
    shape((100_000, width), np.float32),
    shape((100_000,), np.int32),
  )
  used = compiled.compile().memory_analysis().temp_size_in_bytes
  # Copies of queries and points, and some blocks of 4 MiB.
  assert used <= 2 * 4 * 110_000 * width + 2**26 < 2**30


def test_invalid_arguments():
  x, y = POINTS.astype(np.float32), LABELS
  run = probes.singular_kernel_log_probs
  with pytest.raises(ValueError, match=r"labels\[1\] = 1 is outside \[0, 1\)"):
    run(x, x, y, 1, exponent=1.0)
  assert np.isnan(log_probs(x, x, y, num_classes=1, exponent=1.0)).all()
  none = log_probs(
    x, x, y, num_classes=2, exponent=1.0, where=np.zeros(3, bool)
  )
  assert np.isnan(none).all()
  with pytest.raises(ValueError, match="exponent must be in"):
    run(x, x, y, 2, exponent=0.0)
  with pytest.raises(ValueError, match="exponent must be a scalar or"):
    run(x, x, y, 2, exponent=np.ones(2))
  with pytest.raises(ValueError, match="points must have shape"):
    run(x, x[0], y, 2, exponent=1.0)
  with pytest.raises(ValueError, match="queries must have the 2 features"):
    run(x[:, :1], x, y, 2, exponent=1.0)
  with pytest.raises(TypeError, match="points must be floating point"):
    run(x, np.ones((3, 2), int), y, 2, exponent=1.0)


# Activations.


@pytest.mark.parametrize("dim", [1, 2, 3, 10, 100])
def test_optimal_activation_has_the_constants_of_the_paper(dim):
  activation = probes.optimal_activation(dim)
  dual = probes.dual_activation(activation.hermite_coefficients)
  derivative = jax.grad(dual)
  a, b = (0.5, 4.0) if dim == 1 else (2.0 ** (-dim / 2), 2.0)
  np.testing.assert_allclose(derivative(0.0), a, rtol=1e-6)
  np.testing.assert_allclose(derivative(1.0), b, rtol=1e-6)
  np.testing.assert_allclose(dual(1.0), 1, rtol=1e-6)
  np.testing.assert_allclose(2 * np.log(1 / a) / np.log(b), dim)
  limit = probes.infinite_depth_limit(activation.hermite_coefficients)
  assert limit == "singular_kernel"


@pytest.mark.x64
def test_activation_by_quadrature():
  z, w = np.polynomial.hermite_e.hermegauss(40)
  w = w / w.sum()
  for dim in (1, 3):
    activation = probes.optimal_activation(dim)
    phi = activation(jnp.asarray(z))
    np.testing.assert_allclose(w @ phi**2, 1, rtol=1e-10)
    # Stein's identities: the mean of z phi is a_1, and B that of phi'^2.
    derivative = jax.vmap(jax.grad(activation))(jnp.asarray(z))
    a = 0.5 if dim == 1 else 2 ** (-dim / 2)
    np.testing.assert_allclose((w @ (z * phi)) ** 2, a, rtol=1e-10)
    np.testing.assert_allclose(
      w @ derivative**2, 4 if dim == 1 else 2, rtol=1e-10
    )
    # The dual activation is the mean over correlated pairs.
    xi = 0.3
    pair = xi * z[:, None] + np.sqrt(1 - xi**2) * z[None, :]
    mean = w @ (phi[:, None] * activation(jnp.asarray(pair))) @ w
    dual = probes.dual_activation(activation.hermite_coefficients)
    np.testing.assert_allclose(dual(xi), mean, rtol=1e-10)


@pytest.mark.x64
def test_kernel_of_a_deep_network_is_singular():
  dual = probes.dual_activation(
    probes.optimal_activation(2).hermite_coefficients
  )
  # Layer by layer, divided by A, until the similarity is 0.
  for xi, expected in ((0.5, 0.7135991283), (0.9, 5.5911637304)):
    found = xi
    for _ in range(60):
      found = dual(found)
    np.testing.assert_allclose(found * 2.0**60, expected, rtol=1e-9)


def test_limits_of_depth():
  limit = probes.infinite_depth_limit
  assert limit([0.6, 0.8]) == "majority_vote"
  assert limit(np.float32([0, 0.6, 0.8])) == "singular_kernel"
  assert limit([0, 1e-13, 1]) == "nearest_neighbor"
  # In float32 a coefficient of 0 has a larger rounding error.
  assert limit([0, 1e-7, 1]) == "singular_kernel"
  assert limit(np.float32([0, 1e-7, 1])) == "nearest_neighbor"
  assert limit(jnp.array([1e-7, 0.6, 0.8])) == "singular_kernel"
  assert limit([0, 0, 1]) == "nearest_neighbor"
  assert limit([1e-5, 0.6, 0.8]) == "majority_vote"
  for linear in ([0, 1], [0, -1, 0], [0, 1, 1e-4]):
    with pytest.raises(ValueError, match="linear activation"):
      limit(linear)
  with pytest.raises(ValueError, match="squares that sum to 1"):
    limit([0, 0.6, 0.7])
  with pytest.raises(ValueError, match="hermite_coefficients must be in"):
    limit([0, np.nan])
  with pytest.raises(TypeError, match="must be concrete"):
    jax.jit(limit)(jnp.array([0.0, 0.6, 0.8]))
  with pytest.raises(ValueError, match="in one axis"):
    probes.dual_activation(0.5)
  with pytest.raises(ValueError, match="dim must be in"):
    probes.optimal_activation(0)


def test_activation_keeps_the_dtype():
  x = jnp.linspace(-2, 2, 5, dtype=jnp.bfloat16)
  assert probes.optimal_activation(3)(x).dtype == jnp.bfloat16
