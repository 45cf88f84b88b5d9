# SPDX-License-Identifier: Apache-2.0
"""Comp-sum losses: worked values, limits and special cases."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from squentropy_jax import losses

X64 = pytest.mark.x64
RNG = np.random.default_rng(10)
F32 = np.float32
EPS = np.finfo(np.float32).eps
LOGITS = (RNG.normal(size=(8, 5)) * 3).astype(F32)
LABELS = np.arange(8) % 5


@X64
def test_worked_numbers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  z, moved = np.array([1.0, 0.5, -0.5]), np.array([0.6, 0.7, -0.4])
  close(np.expm1(losses.cross_entropy(z, 0)), 0.829660819861)
  close(1 - losses.mean_absolute_error(z, 0), 0.546549387266)
  for tau, value in (
    (0.0, 0.829660819861),
    (0.5, 0.705299110901),
    (1.0, 0.604130605337),
    (1.5, 0.521420428565),
    (1.7, 0.492643195766),
    (2.0, 0.453450612734),
    (3.0, 0.350641883639),
  ):
    close(losses.comp_sum(z, 0, tau=tau), value)
  close(losses.generalized_cross_entropy(z, 0), 0.492643195766)
  close(losses.mean_absolute_error(z, 0), 0.906901225468 / 2)
  smooth = losses.smooth_adversarial_comp_sum
  close(smooth(z, moved, 0), 1.385155572927)
  close(smooth(z, moved, 0) - losses.cross_entropy(z, 0), 0.781024967591)
  probe = np.array([1.2, -0.4, 0.3, 2.0])
  close(losses.cross_entropy(probe, 0), 1.3439104980979275)
  close(losses.generalized_cross_entropy(probe, 0), 0.8709429820)
  close(2 * losses.mean_absolute_error(probe, 0), 1.4783525579)


def test_one_family_runs_through_its_members():
  def every(tau):
    return losses.comp_sum(LOGITS, LABELS, tau=tau)

  cross_entropy = losses.cross_entropy(LOGITS, LABELS)
  equal = functools.partial(np.testing.assert_allclose, rtol=8 * EPS)
  np.testing.assert_array_equal(every(1.0), cross_entropy)
  equal(every(2.0), losses.mean_absolute_error(LOGITS, LABELS))
  equal(every(1.3), losses.generalized_cross_entropy(LOGITS, LABELS, q=0.3))
  rest = LOGITS - np.take_along_axis(LOGITS, LABELS[:, None], -1)
  odds = np.exp(np.float64(rest)).sum(-1) - 1
  np.testing.assert_allclose(every(0.0), odds, rtol=32 * EPS)
  np.testing.assert_array_equal(
    losses.generalized_cross_entropy(LOGITS, LABELS, q=0.0), cross_entropy
  )
  # Decreasing in the order, whatever the row.
  values = np.stack([every(tau) for tau in (0, 0.5, 1, 1.5, 2, 4)])
  assert (np.diff(values, axis=0) < 0).all()


@pytest.mark.parametrize("tau", [1 - 1e-6, 1.0, 1 + 1e-6])
def test_the_order_of_cross_entropy_is_no_singularity(tau):
  row, label = np.array([3.0, -2.0, 0.5], F32), 0
  loss = np.log1p(np.exp(-5.0) + np.exp(-2.5))

  def of_tau(tau):
    return losses.comp_sum(row, label, tau=tau)

  # At tau = 1 the k-th derivative is (-L)^(k + 1) / (k + 1) up to sign.
  np.testing.assert_allclose(of_tau(tau), loss, rtol=1e-6)
  np.testing.assert_allclose(jax.grad(of_tau)(tau), -(loss**2) / 2, rtol=1e-5)
  np.testing.assert_allclose(
    jax.grad(jax.grad(of_tau))(tau), loss**3 / 3, rtol=1e-4
  )
  gradient = jax.grad(lambda z: losses.comp_sum(z, label, tau=tau))(row)
  np.testing.assert_allclose(
    gradient, jax.nn.softmax(row) - np.eye(3, dtype=F32)[0], rtol=1e-5
  )


@pytest.mark.parametrize("tau", [1.0, 1.5, 2.0, 3.0])
def test_bounded_orders_are_finite_at_the_ends(tau):
  z = np.array([[0.0, 1e4], [1e4, 0.0], [0.0, 0.0], [-np.inf, 0.0]], F32)
  loss, gradient = jax.jit(
    jax.vmap(jax.value_and_grad(lambda z: losses.comp_sum(z, 0, tau=tau)))
  )(z)
  top = 1e4 if tau == 1 else 1 / (tau - 1)
  np.testing.assert_allclose(loss[:2], [top, 0], rtol=1e-6)
  np.testing.assert_allclose(loss[3], np.inf if tau == 1 else top, rtol=1e-6)
  assert np.isfinite(gradient).all()


def test_losses_of_confident_examples_are_accurate():
  z = np.array([[20.0, 0.0], [60.0, 0.0], [80.0, 1.0]], F32)
  labels = np.zeros(3, int)
  odds = [float(mpmath.exp(b - a)) for a, b in z.tolist()]
  for loss in (
    losses.mean_absolute_error,
    losses.generalized_cross_entropy,
    functools.partial(losses.comp_sum, tau=0.5),
  ):
    # The exponential of d has a condition number of d; d / 2 ulps is rounding.
    np.testing.assert_allclose(loss(z, labels), odds, rtol=50 * EPS)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.7, 2.0])
def test_the_adversarial_loss_bounds_the_ramp_losses(tau):
  z, moved = (np.random.default_rng(10).normal(size=(2, 4000, 4)) * 3).astype(
    F32
  )
  for rho in (0.2, 1.0, 4.0):
    margins = (moved[:, :1] - moved[:, 1:]) / rho
    ramps = np.log1p(np.clip(1 - margins, 0, 1).sum(-1))
    attacked = ramps if tau == 1 else np.expm1((1 - tau) * ramps) / (1 - tau)
    loss = losses.smooth_adversarial_comp_sum(
      z, moved, np.zeros(4000, int), tau=tau, rho=rho, nu=np.sqrt(3) / rho
    )
    assert (loss >= attacked * (1 - 8 * EPS)).all()


def test_an_attack_that_changes_nothing_adds_nothing():
  smooth = losses.smooth_adversarial_comp_sum
  plain = losses.comp_sum(LOGITS, LABELS, tau=1.5)
  # Its logits are shifted before they are divided, which rounds otherwise.
  np.testing.assert_allclose(
    smooth(LOGITS, LOGITS, LABELS, tau=1.5, nu=3.0), plain, rtol=2 * EPS
  )
  # Nor one that shifts all logits, however far.
  z = np.array([[4.0, 1.0, 2.0]], F32)
  np.testing.assert_allclose(
    smooth(z, z + F32(2**13), [0]), losses.cross_entropy(z, [0]), rtol=2 * EPS
  )
  gradient = jax.grad(lambda m: smooth(LOGITS, m, LABELS).sum())(LOGITS)
  np.testing.assert_array_equal(gradient, 0)
  # nu = 0 leaves the comp-sum loss of the scaled logits.
  moved = LOGITS[:, ::-1]
  np.testing.assert_allclose(
    smooth(LOGITS, moved, LABELS, tau=0.5, rho=2.0, nu=0.0),
    losses.comp_sum(LOGITS / 2, LABELS, tau=0.5),
    rtol=4 * EPS,
  )


def test_both_logits_of_the_adversarial_loss_are_differentiated():
  moved = LOGITS[:, ::-1].astype(jnp.bfloat16)
  clean, attacked = jax.grad(
    lambda z, m: losses.smooth_adversarial_comp_sum(z, m, LABELS).sum(), (0, 1)
  )(LOGITS, moved)
  assert clean.dtype == F32
  assert attacked.dtype == jnp.bfloat16
  wide = np.float32(moved)
  change = wide - LOGITS
  change = np.take_along_axis(change, LABELS[:, None], -1) - change
  unit = change / np.linalg.norm(change, axis=-1, keepdims=True)
  expected = -unit
  np.put_along_axis(expected, LABELS[:, None], unit.sum(-1)[:, None], -1)
  np.testing.assert_allclose(np.float32(attacked), expected, atol=0.01)
  # No common shift of an attack matters.
  np.testing.assert_allclose(clean.sum(-1), 0, atol=1e-5)


def test_classes_impossible_for_the_clean_example_do_not_count():
  keep = np.array([True, True, False, True, True])
  z = np.where(keep, LOGITS, F32(-np.inf))
  moved = np.where(keep, LOGITS[:, ::-1], F32(np.nan))
  labels = np.where(LABELS == 2, 0, LABELS)
  expected = losses.smooth_adversarial_comp_sum(
    LOGITS[:, keep], LOGITS[:, ::-1][:, keep], labels - (labels > 2)
  )
  np.testing.assert_allclose(
    losses.smooth_adversarial_comp_sum(z, moved, labels), expected, rtol=1e-6
  )


@pytest.mark.parametrize(
  ("name", "hyper"),
  [
    ("comp_sum", {"tau": -0.1}),
    ("comp_sum", {"tau": np.nan}),
    ("generalized_cross_entropy", {"q": -0.1}),
    ("generalized_cross_entropy", {"q": 1.1}),
  ],
)
def test_hyperparameters_outside_their_domain_raise(name, hyper):
  loss = getattr(losses, name)
  (key,) = hyper
  with pytest.raises(ValueError, match=f"{key} must be"):
    loss(LOGITS, LABELS, **hyper)
  # A traced one cannot be read.
  assert jax.eval_shape(lambda h: loss(LOGITS, LABELS, **h), hyper).shape == (
    8,
  )


def test_a_class_impossible_after_the_attack_alone_is_infinitely_far():
  z = LOGITS[:4]
  moved = z.copy()
  moved[1, 2] = moved[2, LABELS[2]] = -np.inf
  mask = np.ones(z.shape, bool)
  mask[3, 1], moved[3, 1] = False, -np.inf  # Masked, it does not count.

  @jax.jit
  def run(z, moved, labels):
    def total(z, moved):
      loss = losses.smooth_adversarial_comp_sum(z, moved, labels, where=mask)
      return loss.sum(), loss

    return jax.grad(total, (0, 1), has_aux=True)(z, moved)

  for labels in (LABELS[:4], np.full((4, 5), 0.25, F32) * mask):
    labels = labels if labels.ndim == 1 else labels / labels.sum(-1)[:, None]
    gradient, loss = run(z, moved, labels)
    np.testing.assert_array_equal(np.isinf(loss), [False, True, True, False])
    assert np.isfinite(np.asarray(loss)[[0, 3]]).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_an_overflow_leaves_a_finite_gradient(tau):
  z = np.array([[0.0, 89.0, 1.0], [0.0, 1e4, 1.0]], F32)

  def loss(z, tau):
    return losses.comp_sum(z, [0, 0], tau=tau).sum()

  gradient, by_tau = jax.grad(loss, (0, 1))(z, tau)
  assert np.isfinite(gradient).all()
  assert (gradient[:, 0] < 0).all()
  assert (gradient[:, 1] > 0).all()
  assert (gradient[:, 2] >= 0).all()
  assert not np.isnan(by_tau)


def test_arguments_of_the_adversarial_loss():
  smooth = losses.smooth_adversarial_comp_sum
  for key, value in (("tau", -1.0), ("rho", 0.0), ("nu", -0.5)):
    with pytest.raises(ValueError, match=f"{key} must be"):
      smooth(LOGITS, LOGITS, LABELS, **{key: value})
  with pytest.raises(ValueError, match="adversarial_logits must have"):
    smooth(LOGITS, LOGITS[:1], LABELS)
  with pytest.raises(TypeError, match="adversarial_logits must be floating"):
    smooth(LOGITS, np.zeros((8, 5), int), LABELS)
