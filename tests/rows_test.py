# SPDX-License-Identifier: Apache-2.0
"""Special cases of row losses that need one loss only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import (
  calibration,
  losses,
  reweighting,
  row_loss,
  squentropy,
)
from squentropy_jax._core import elementwise


@pytest.mark.parametrize(
  ("loss", "row"),
  [
    (squentropy, [1e20, 0.0, 0.0]),
    (losses.rescaled_square, [0.0, 1e20, 1.0]),
  ],
)
def test_an_infinite_loss_of_a_class_of_probability_0_adds_nothing(loss, row):
  logits = jnp.array([row])
  one_hot = jnp.array([[1.0, 0.0, 0.0]])
  hard = jnp.array([0])
  np.testing.assert_array_equal(loss(logits, one_hot), loss(logits, hard))
  if np.isfinite(loss(logits, hard)).all():
    gradient = jax.grad(lambda z: loss(z, one_hot).sum())(logits)
    assert np.isfinite(gradient).all()


def test_infinite_losses_of_a_formula():
  odds = row_loss(lambda stats: jnp.exp(stats.log_odds))

  logits = jnp.array([[100.0, 0.0, 0.0]])
  one_hot = jnp.array([[1.0, 0.0, 0.0]])

  def soft(z):
    return odds(z, one_hot).sum()

  np.testing.assert_allclose(soft(logits), 2 * np.exp(-100.0), atol=1e-37)
  assert np.isfinite(jax.grad(soft)(logits)).all()
  # A probability above 0 makes the expected loss infinite.
  spread = jnp.array([[0.5, 0.5, 0.0]])
  assert np.isinf(odds(logits, spread)).all()


def test_wide_labels_stay_invalid_when_only_the_mask_is_traced():
  logits = jnp.ones((3, 4))
  labels = np.array([2**32, 1, 2**32 + 1])
  run = jax.jit(lambda where: squentropy(logits, labels, where=where))
  loss = run(jnp.array([True, True, False]))
  np.testing.assert_array_equal(np.isnan(loss), [True, False, False])
  assert loss[2] == 0


@pytest.mark.parametrize("value", [1 + 2j, "a", None, True])
def test_hyperparameters_are_real_numbers(value):
  with pytest.raises(TypeError, match="scale must be a real number"):
    squentropy(jnp.ones(3), 0, scale=value)


@pytest.mark.parametrize(
  ("name", "hyper"),
  [
    ("asymmetric_unhinged", {"a": 1 + 1e-9}),
    ("jensen_shannon", {"pi": 1 - 1e-9}),
    ("spherical_softmax", {"epsilon": 1e-50}),
    ("ldr_kl", {"temperature": 1e-50}),
    ("focal", {"gamma": 1e39}),
    ("bi_tempered_logistic", {"t1": 2 - 1e-9, "t2": 1.0}),
  ],
)
def test_a_hyperparameter_counts_as_what_it_is_rounded_to(name, hyper):
  key = next(iter(hyper))
  with pytest.raises(ValueError, match=f"{key} must be in .* as a float32"):
    getattr(losses, name)(jnp.ones(3), 0, **hyper)


def test_static_choices_are_bools():
  z = jnp.ones(3)
  traced = jax.jit(lambda flag: losses.one_vs_rest_hinge(z, 0, squared=flag))
  for call in (
    lambda: traced(True),
    lambda: losses.softmax_regression(z, 0, squared=1),
    lambda: losses.dice(z, [0, 1, 1], squared="yes"),
    lambda: losses.self_adjusting_dice(z, [0, 1, 1], squared=None),
    lambda: reweighting.calibrated_loss_derivatives(
      jax.random.key(0), z, tail=0
    ),
  ):
    with pytest.raises(
      TypeError, match=r"(squared|tail) must be True or False"
    ):
      call()


def test_derivatives_of_sigmoid_and_softplus_at_infinity():
  x = jnp.array([-jnp.inf, -100.0, 0.0, 100.0, jnp.inf])
  first = jax.vmap(jax.grad(elementwise.softplus))(x)
  np.testing.assert_allclose(first, [0, np.exp(-100), 0.5, 1, 1], atol=1e-37)
  second = jax.vmap(jax.grad(jax.grad(elementwise.softplus)))(x)
  assert np.isfinite(second).all()
  # 1 - sigmoid(20) cancels in float32; sigmoid(-20) does not.
  np.testing.assert_allclose(
    jax.grad(elementwise.sigmoid)(jnp.float32(20.0)), np.exp(-20.0), rtol=1e-5
  )


@pytest.mark.parametrize("convert", [jnp.asarray, np.asarray])
def test_ids_of_four_bits_are_read_among_many_classes(convert):
  logits = jnp.zeros((3, 300)).at[0, 1].set(1.0)
  labels = np.array([1, 0, 7])
  narrow = convert(labels.astype(jnp.int4))
  np.testing.assert_array_equal(
    squentropy(logits, narrow), squentropy(logits, labels)
  )
  nll = calibration.negative_log_likelihood
  np.testing.assert_array_equal(nll(logits, narrow), nll(logits, labels))
