# SPDX-License-Identifier: Apache-2.0
"""Gradients divided by the error mass, and IGNITE's constraint."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.contract import jit

from squentropy_jax import losses, transforms

RNG = np.random.default_rng(5)
X = np.array([[1.0, 2.0], [0.0, -1.0]])
W = np.array([1.0, -2.0])
F32 = np.float32


def close(actual, expected):
  """Equal to a few ulp of 1."""
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


# The error mass.


def logistic(points, signs):
  """Logits of two classes and class ids of a linear model."""

  def logits_of(w):
    score = points @ w
    return jnp.stack([jnp.zeros_like(score), score], axis=-1)

  return logits_of, (signs > 0).astype(np.int32)


@functools.cache
def trainer(normalized):
  """Runs optax until all examples are correct, or for ``limit`` steps."""

  @functools.partial(jit, static_argnames="limit")
  def train(points, signs, gamma, limit):
    logits_of, labels = logistic(points, signs)
    optimizer = optax.chain(
      transforms.scale_by_error_mass() if normalized else optax.identity(),
      optax.scale(-1.0),
    )

    def loss(w):
      logits = logits_of(w)
      return losses.cross_entropy(logits, labels).mean(), logits

    def unfinished(carry):
      w, _, step = carry
      return ((points @ w) * signs).min() <= 0, step < limit

    def step(carry):
      w, state, count = carry
      gradient, logits = jax.grad(loss, has_aux=True)(w)
      extra = {}
      if normalized:
        extra = {"error_mass": transforms.error_mass(logits, labels)}
      updates, state = optimizer.update(gradient, state, **extra)
      return optax.apply_updates(w, gamma * updates), state, count + 1

    w = jnp.zeros(2, points.dtype)
    carry = jax.lax.while_loop(
      lambda carry: jnp.all(jnp.stack(unfinished(carry))),
      step,
      (w, optimizer.init(w), jnp.int32(0)),
    )
    return carry[0], carry[2]

  return train


@pytest.mark.parametrize(
  ("normalized", "gamma", "steps"),
  [
    (True, 100.0, 2),
    (True, 10.0, 2),
    (True, 1.0, 16),
    (True, 0.1, 157),
    (False, 100.0, 308),
  ],
)
def test_published_table_of_iterations(normalized, gamma, steps):
  # One example against 999 copies of another.
  points = np.array([[0.5, -1.0]] + [[-0.5, -1.0]] * 999, F32)
  signs = np.array([1.0] + [-1.0] * 999, F32)
  train = trainer(normalized)
  assert train(points, signs, F32(gamma), limit=400)[1] == steps


def test_large_steps_are_those_of_the_perceptron():
  points = np.array([[1.0, -1.0], [-1.0, -4.0]], F32)
  signs = np.array([1.0, -1.0], F32)
  gamma = F32(1e4)
  expected = {
    (True, 1): (1.0, 1.5),
    (True, 2): (2.0, 0.5),
    (False, 1): (0.5, 0.75),
    (False, 2): (1.0, 0.25),
  }
  for (normalized, steps), w in expected.items():
    found = trainer(normalized)(points, signs, gamma, limit=steps)[0]
    np.testing.assert_allclose(found / gamma, w, rtol=1e-6)


def test_error_mass_is_the_mean_probability_of_an_error():
  z = RNG.normal(size=(6, 5)) * 2
  labels = np.array([0, 4, 2, 3, 1, 2], np.int32)
  soft = RNG.dirichlet(np.ones(5), size=6).astype(F32)
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  errors = 1 - p[np.arange(6), labels]
  z = z.astype(F32)
  close(transforms.error_mass(z, labels), errors.mean())
  close(transforms.error_mass(z.T, labels, axis=0), errors.mean())
  keep = np.arange(6) < 4
  padded = np.where(keep[:, None], z, np.nan)
  bad = np.where(keep, labels, -100).astype(np.int32)
  close(transforms.error_mass(padded, bad, where=keep), errors[:4].mean())
  by_class = np.broadcast_to(keep[:, None], (6, 5))
  close(transforms.error_mass(z, bad, where=by_class), errors[:4].mean())
  close(transforms.error_mass(z, soft), 1 - (p * soft).sum() / 6)


def test_error_mass_of_confident_and_of_no_examples():
  z = jnp.array([[60.0, 0.0], [-5.0, 75.0]])
  labels = np.array([0, 1], np.int32)
  expected = (np.exp(-60.0) + np.exp(-80.0)) / 2
  np.testing.assert_allclose(
    transforms.error_mass(z, labels), expected, rtol=1e-5
  )
  none = np.zeros(2, bool)
  assert transforms.error_mass(z, labels, where=none) == 0
  half = transforms.error_mass(jnp.bfloat16([[0.0, 0.0]]), labels[:1])
  assert half.dtype == np.float32


def test_error_mass_over_devices_is_that_of_the_whole_batch():
  mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  z = RNG.normal(size=(6, 3)).astype(np.float32)
  labels = np.array([0, 1, 2, 2, 1, 0], np.int32)
  keep = np.array([True, False, False, True, True, True])
  f = jax.shard_map(
    lambda z, y, k: transforms.error_mass(z, y, where=k, axis_name="x"),
    mesh=mesh,
    in_specs=jax.P("x"),
    out_specs=jax.P(),
  )
  expected = transforms.error_mass(z, labels, where=keep)
  np.testing.assert_allclose(jit(f)(z, labels, keep), expected, rtol=1e-6)


def test_updates_are_divided_in_their_own_dtype():
  transform = transforms.scale_by_error_mass()
  updates = {"a": jnp.array([1.0, -2.0]), "b": jnp.bfloat16(3.0)}
  state = transform.init(updates)
  mass = jnp.float32(0.25)
  scaled, state = transform.update(updates, state, error_mass=mass)
  np.testing.assert_array_equal(scaled["a"], [4.0, -8.0])
  assert scaled["b"] == 12.0
  assert scaled["b"].dtype == jnp.bfloat16
  zero, _ = transform.update(updates, state, error_mass=0.0)
  np.testing.assert_array_equal(zero["a"], [0.0, 0.0])
  # Other transformations of a chain may take other arguments.
  chain = optax.chain(transform, optax.sgd(1.0))
  out, _ = chain.update(
    updates["a"], chain.init(updates["a"]), error_mass=mass, value=1.0
  )
  np.testing.assert_array_equal(out, [-4.0, 8.0])


def test_errors_of_scale_by_error_mass():
  transform = transforms.scale_by_error_mass()
  w = jnp.zeros(2)
  with pytest.raises(TypeError, match="error_mass must be passed"):
    transform.update(w, transform.init(w))
  with pytest.raises(ValueError, match="error_mass must be a scalar"):
    transform.update(w, transform.init(w), error_mass=jnp.ones(2))
  with pytest.raises(TypeError, match="updates must be floating"):
    transform.update(jnp.arange(2), transform.init(w), error_mass=0.5)
  with pytest.raises(ValueError, match="error_mass must be in"):
    transform.update(w, transform.init(w), error_mass=-0.1)
  with pytest.raises(ValueError, match=r"labels\[1\]"):
    transforms.error_mass(jnp.zeros((2, 3)), np.array([0, 3]))


# The gradient of the output.


def model(w, x):
  return jnp.tanh(x @ w)


@jit
def penalties(w, x):
  exact = transforms.output_gradient_norm(model, w, x, rho=0.05)
  rough = transforms.output_gradient_norm(model, w, x, rho=0.05, radius=0.05)
  return exact, rough


def test_published_values_of_the_penalty():
  w, x = W.astype(F32), X.astype(F32)
  (exact, norm), (rough, same) = penalties(w, x)
  close(norm, 0.0259328838)
  assert norm == same
  np.testing.assert_allclose(
    np.asarray(exact) / 0.05, [-0.0174085, 0.0320487], atol=2e-6
  )
  np.testing.assert_allclose(
    # The difference of two gradients of 0.03, divided by 0.05.
    np.asarray(rough) / 0.05,
    [-0.0159652059, 0.0319746849],
    atol=8e-6,
  )
  multiplier = transforms.constraint_multiplier(0.05, 0.1, 1e-3)
  value = multiplier.init()
  np.testing.assert_allclose(value, 1e-3)
  np.testing.assert_allclose(0.25 + value * rough[1], 0.2500015987, rtol=1e-7)
  np.testing.assert_allclose(
    multiplier.update(norm, value), 0.0009012966, rtol=1e-6
  )


@pytest.mark.x64
def test_published_values_in_float64():
  (exact, norm), (rough, _) = penalties(W, X)
  # As many digits as are published.
  np.testing.assert_allclose(norm, 0.0259328838, atol=5e-11)
  np.testing.assert_allclose(exact / 0.05, [-0.0174085, 0.0320487], atol=5e-8)
  np.testing.assert_allclose(
    rough / 0.05, [-0.0159652059, 0.0319746849], atol=5e-11
  )
  np.testing.assert_allclose(
    np.array([0.5, 0.25]) + 1e-3 * rough, [0.4999992017, 0.2500015987],
    atol=5e-11,
  )  # fmt: skip
  # The exact one is the derivative of the norm.
  step, direction = 1e-6, np.array([0.6, -0.8])
  up, down = (penalties(W + s * step * direction, X)[0][1] for s in (1, -1))
  np.testing.assert_allclose(
    direction @ exact, 0.05 * (up - down) / (2 * step), rtol=1e-7
  )
  # The finite difference approaches it with its radius.
  near = transforms.output_gradient_norm(model, W, X, rho=0.05, radius=1e-5)[0]
  np.testing.assert_allclose(near, exact, rtol=1e-3)


def test_quadratic_and_linear_models_and_a_gradient_of_0():
  @functools.partial(jit, static_argnums=0)
  def both(apply_fn, params):
    return [
      transforms.output_gradient_norm(
        apply_fn, params, None, rho=2.0, radius=radius
      )
      for radius in (None, 0.5)
    ]

  params = {"a": jnp.array([3.0]), "b": jnp.float32(-4.0)}
  # The gradient of half the squares is the point, of norm 5.
  for gradients, norm in both(
    lambda p, _: 0.5 * ((p["a"] ** 2).sum() + p["b"] ** 2), params
  ):
    np.testing.assert_allclose(norm, 5.0, rtol=1e-6)
    np.testing.assert_allclose(gradients["a"], [2 * 0.6], rtol=1e-5)
    np.testing.assert_allclose(gradients["b"], -2 * 0.8, rtol=1e-5)
  for gradients, norm in both(lambda p, _: p["a"] * 3 + p["b"] * 4, params):
    np.testing.assert_allclose(norm, 5.0, rtol=1e-6)
    assert gradients["a"] == gradients["b"] == 0
  for gradients, norm in both(
    lambda p, _: 0.0 * p["a"] + p["b"] ** 2, {**params, "b": jnp.float32(0.0)}
  ):
    assert norm == 0
    assert gradients["a"] == gradients["b"] == 0


def test_tiny_gradients_have_a_norm_and_dtypes_are_kept():
  w = {"a": jnp.array([3.0, 4.0]), "b": jnp.bfloat16(1.0)}
  gradients, norm = jit(
    lambda w: transforms.output_gradient_norm(
      lambda w, _: (
        (w["a"] * jnp.array([3e-30, 4e-30])).sum()
        + 0 * w["b"].astype(jnp.float32)
      ),
      w,
      None,
      rho=1.0,
    )
  )(w)
  np.testing.assert_allclose(norm, 5e-30, rtol=1e-5)
  assert gradients["a"].dtype == np.float32
  assert gradients["b"].dtype == jnp.bfloat16


def test_devices_share_a_batch():
  mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  w, x = np.float32(W), RNG.normal(size=(4, 2)).astype(np.float32)
  f = jit(
    jax.shard_map(
      lambda w, x: transforms.output_gradient_norm(
        model, w, x, rho=0.05, axis_name="x"
      ),
      mesh=mesh,
      in_specs=(jax.P(), jax.P("x")),
      out_specs=jax.P(),
    )
  )
  expected = transforms.output_gradient_norm(model, w, x, rho=0.05)
  for a, b in zip(f(w, x), expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_the_multiplier_is_projected_and_follows_the_constraint():
  multiplier = transforms.constraint_multiplier(2.0, 1.0, 0.1, initial=0.05)
  value = multiplier.init()
  np.testing.assert_allclose(multiplier.update(1.0, value), 0.15, rtol=1e-6)
  assert multiplier.update(0.0, value) == 0
  constant = transforms.constraint_multiplier(2.0, 1.0, 0.0)
  assert constant.update(9.0, constant.init()) == constant.init()


def test_multipliers_of_other_types():
  update = transforms.constraint_multiplier(0.5, 0.1, 0.1).update
  expected = 0.1 * (0.5 * 3 - 0.1)
  for zero in (0, np.int32(0), 0.0, jnp.bfloat16(0)):
    found = update(3, zero)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
  with pytest.raises(ValueError, match="multiplier must be a scalar"):
    update(3.0, jnp.zeros(2))
  with pytest.raises(ValueError, match="norm must be a scalar"):
    update(jnp.zeros(2), 0.0)


def test_errors_of_the_constraint():
  norm = transforms.output_gradient_norm
  w = jnp.ones(2)
  with pytest.raises(ValueError, match="rho must be in"):
    norm(model, w, X, rho=-1.0)
  with pytest.raises(ValueError, match="radius must be in"):
    norm(model, w, X, rho=1.0, radius=0.0)
  with pytest.raises(ValueError, match="rho must be a scalar"):
    norm(model, w, X, rho=jnp.ones(2))
  with pytest.raises(ValueError, match="radius must be a scalar"):
    norm(model, w, X, rho=1.0, radius=jnp.ones(2))
  with pytest.raises(ValueError, match="epsilon must be a scalar"):
    transforms.constraint_multiplier(1.0, jnp.ones(2), 1.0)
  with pytest.raises(TypeError, match="params must be floating"):
    norm(model, jnp.ones(2, jnp.int32), X, rho=1.0)
  with pytest.raises(ValueError, match="at least one prediction"):
    norm(model, w, jnp.zeros((0, 2)), rho=1.0)
  for name in ("rho", "epsilon", "learning_rate", "initial"):
    good = {"rho": 1.0, "epsilon": 1.0, "learning_rate": 1.0}
    with pytest.raises(ValueError, match=f"{name} must be in"):
      transforms.constraint_multiplier(**{**good, name: -1.0})


def test_ignite_in_an_optax_loop_bounds_the_norm():
  x = RNG.uniform(-1.0, 1.0, (32, 3)).astype(np.float32)
  y = np.sin(3 * x[:, 0]) + 2.0 * x[:, 1]
  keys = jax.random.split(jax.random.key(0), 2)
  start = {
    "in": jax.random.normal(keys[0], (3, 8)),
    "out": jax.random.normal(keys[1], (8,)) / 3,
  }

  def apply_fn(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]

  optimizer = optax.sgd(0.05, momentum=0.9)
  rho, epsilon = 1.0, 0.1

  @jit
  def train(learning_rate):
    multiplier = transforms.constraint_multiplier(
      rho, epsilon, learning_rate, initial=0.0
    )

    def step(carry, _):
      params, state, factor = carry
      loss, gradients = jax.value_and_grad(
        lambda p: ((apply_fn(p, x) - y) ** 2).mean()
      )(params)
      penalty, norm = transforms.output_gradient_norm(
        apply_fn, params, x, rho=rho
      )
      gradients = jax.tree.map(lambda g, p: g + factor * p, gradients, penalty)
      updates, state = optimizer.update(gradients, state, params)
      factor = multiplier.update(norm, factor)
      params = optax.apply_updates(params, updates)
      return (params, state, factor), (loss, norm, factor)

    first = (start, optimizer.init(start), multiplier.init())
    return jax.lax.scan(step, first, None, length=200)[1]

  free, bound = train(0.0), train(0.3)
  assert (free[2] == 0).all()
  assert (bound[2] >= 0).all()
  assert bound[2].max() > 0
  # Without the constraint, training fits the data with a larger gradient.
  assert free[0][-1] < 0.3 * free[0][0]
  assert bound[0][-1] < bound[0][0]
  assert bound[1][-1] < 0.75 * free[1][-1], (bound[1][-1], free[1][-1])
