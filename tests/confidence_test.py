# SPDX-License-Identifier: Apache-2.0
"""Logit normalisation and the confidence penalty."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import losses

F32 = np.float32
EPS = np.finfo(F32).eps
PROBE = np.array([1.2, -0.4, 0.3, 2.0])
RNG = np.random.default_rng(14)
LOGITS = (RNG.normal(size=(8, 5)) * 3).astype(F32)
LABELS = np.arange(8) % 5


@pytest.mark.x64
def test_worked_numbers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  close(losses.confidence_penalty(PROBE, 0), 1.2379879824)
  # The code that gave these values adds 1e-7 to the norm.
  norm = np.linalg.norm(PROBE)
  for temperature, value in ((1.0, 1.2796833867), (0.04, 8.3846641983)):
    ours = losses.logit_norm_cross_entropy
    close(ours(PROBE, 0, temperature=temperature * (1 + 1e-7 / norm)), value)


def test_logits_of_norm_1_give_cross_entropy():
  unit = LOGITS / np.linalg.norm(LOGITS, axis=-1, keepdims=True)
  np.testing.assert_allclose(
    losses.logit_norm_cross_entropy(unit, LABELS),
    losses.cross_entropy(unit, LABELS),
    rtol=8 * EPS,
  )


@pytest.mark.parametrize("scale", [1e-20, 2.0**-60, 2.0**60, 1e20])
def test_the_length_of_the_logits_does_not_matter(scale):
  loss = functools.partial(losses.logit_norm_cross_entropy, temperature=0.3)
  expected = loss(LOGITS, LABELS)
  np.testing.assert_allclose(
    loss(LOGITS * F32(scale), LABELS), expected, rtol=16 * EPS
  )
  gradients = jax.grad(lambda z: loss(z, LABELS).sum())(LOGITS)
  # So that no gradient points along them.
  np.testing.assert_allclose((gradients * LOGITS).sum(-1), 0, atol=1e-5)


def test_no_direction_at_all():
  loss, gradient = jax.value_and_grad(losses.logit_norm_cross_entropy)(
    jnp.zeros(4), 1
  )
  np.testing.assert_allclose(loss, np.log(4), rtol=4 * EPS)
  np.testing.assert_allclose(gradient, [0.25, -0.75, 0.25, 0.25], rtol=4 * EPS)


def test_the_penalty_is_the_entropy():
  p = np.exp(np.float64(LOGITS))
  p /= p.sum(-1, keepdims=True)
  entropy = -(p * np.log(p)).sum(-1)
  plain = losses.cross_entropy(LOGITS, LABELS)
  actual = losses.confidence_penalty(LOGITS, LABELS, beta=2.0)
  np.testing.assert_allclose(actual, plain - 2 * entropy, atol=1e-5)
  # The sums of a row loss are taken in another order.
  without = losses.confidence_penalty(LOGITS, LABELS, beta=0.0)
  np.testing.assert_array_max_ulp(np.asarray(without), np.asarray(plain), 2)
  # It is largest for equal logits, where its gradient is 0.
  gradient = jax.grad(
    lambda z: losses.confidence_penalty(z, 0) - losses.cross_entropy(z, 0)
  )(jnp.full(4, 3.0))
  np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan])
def test_temperatures_outside_their_domain_raise(temperature):
  with pytest.raises(ValueError, match=r"temperature must be in \(0, inf\)"):
    losses.logit_norm_cross_entropy(LOGITS, LABELS, temperature=temperature)
