# SPDX-License-Identifier: Apache-2.0
"""Symmetric, normalised and unhinged: worked values, limits, symmetry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import losses

F32 = np.float32
EPS = np.finfo(F32).eps
PROBE = np.array([1.2, -0.4, 0.3, 2.0])
RNG = np.random.default_rng(12)
LOGITS = (RNG.normal(size=(8, 5)) * 3).astype(F32)
LABELS = np.arange(8) % 5


@pytest.mark.x64
def test_worked_numbers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  symmetric = losses.symmetric_cross_entropy
  close(symmetric(PROBE, 0), 3.0910961656)
  # Half cross-entropy and half the reverse, with four for the clipped log.
  close(symmetric(PROBE, 0, alpha=0.5, beta=0.5), 2.1503078069)
  # Reverse cross-entropy alone, labels clipped at 1e-4.
  reverse = functools.partial(symmetric, alpha=0.0, beta=1.0)
  close(reverse(PROBE, 0, log_clip=np.log(1e-4)), 6.8080651240)
  close(losses.normalized_cross_entropy(PROBE, 0), 0.1899347790)
  close(losses.unhinged(PROBE, 0), -0.425)
  close(losses.unhinged(PROBE, 3), -1.225)
  close(losses.unhinged(PROBE, 0) * 4 / 3, -0.5666666667)
  close(losses.unhinged(PROBE, 3) * 4 / 3, -1.6333333333)


def over_labels(loss):
  return np.stack([loss(LOGITS, np.full(8, k)) for k in range(5)])


def test_values_over_the_labels_add_up_to_a_constant():
  size = 5 * np.abs(LOGITS).max()
  np.testing.assert_allclose(
    over_labels(losses.normalized_cross_entropy).sum(0), 1, rtol=8 * EPS
  )
  np.testing.assert_allclose(
    over_labels(losses.unhinged).sum(0), 0, atol=4 * EPS * size
  )
  robust = functools.partial(losses.symmetric_cross_entropy, alpha=0.0)
  np.testing.assert_allclose(over_labels(robust).sum(0), 16, rtol=8 * EPS)


def test_unhinged_is_cross_entropy_less_its_mean_over_the_labels():
  every = over_labels(losses.cross_entropy)
  np.testing.assert_allclose(
    over_labels(losses.unhinged), every - every.mean(0), atol=32 * EPS * 10
  )
  # The gradient is constant, in every row.
  gradient = jax.grad(lambda z: losses.unhinged(z, LABELS).sum())(LOGITS)
  np.testing.assert_allclose(
    gradient, 0.2 - np.eye(5, dtype=F32)[LABELS], atol=2 * EPS
  )


def test_without_the_reverse_term_it_is_cross_entropy():
  np.testing.assert_array_equal(
    losses.symmetric_cross_entropy(LOGITS, LABELS, alpha=6.0, beta=0.0),
    6 * losses.cross_entropy(LOGITS, LABELS),
  )
  # With the reverse term alone, the loss of an impossible label is the clip.
  impossible = jnp.array([-jnp.inf, 1.0, 0.0])
  loss = losses.symmetric_cross_entropy(impossible, 0, alpha=0.0)
  np.testing.assert_array_equal(loss, 4.0)


@pytest.mark.parametrize("shift", [0.0, 1e3, -1e4])
def test_a_common_shift_of_the_logits_causes_no_cancellation(shift):
  # Sixteenths, so that the shifted logits are exact.
  z = np.round(LOGITS * 16) / 16

  def attacked(z, labels):
    return losses.smooth_adversarial_comp_sum(z, z, labels, rho=0.3)

  for loss in (
    losses.normalized_cross_entropy,
    losses.unhinged,
    functools.partial(losses.ldr_kl, temperature=0.3),
    attacked,
  ):
    np.testing.assert_allclose(
      loss(z + F32(shift), LABELS), loss(z, LABELS), rtol=1e-5, atol=1e-5
    )


def test_normalized_cross_entropy_at_ties_and_at_its_ends():
  loss = losses.normalized_cross_entropy
  np.testing.assert_allclose(loss(jnp.full(4, 7.0), 2), 0.25, rtol=4 * EPS)
  sure = jnp.array([1e4, 0.0, 0.0])
  np.testing.assert_allclose(loss(sure, 0), 0, atol=1e-30)
  np.testing.assert_allclose(loss(sure, 1), 0.5, rtol=4 * EPS)


@pytest.mark.parametrize(
  ("hyper", "domain"),
  [
    ({"alpha": -1.0}, r"alpha must be in \[0, inf\)"),
    ({"beta": np.nan}, r"beta must be in \[0, inf\)"),
    ({"log_clip": 0.5}, r"log_clip must be in \(-inf, 0\]"),
  ],
)
def test_hyperparameters_outside_their_domain_are_refused(hyper, domain):
  with pytest.raises(ValueError, match=domain):
    losses.symmetric_cross_entropy(LOGITS, LABELS, **hyper)
