# SPDX-License-Identifier: Apache-2.0
"""Asymmetric losses and Jensen-Shannon: worked values, limits, bounds."""

import functools

import cases
import jax
import numpy as np
import pytest

from squentropy_jax import losses

F32 = np.float32
EPS = np.finfo(F32).eps
PROBE = np.array([1.2, -0.4, 0.3, 2.0])
RNG = np.random.default_rng(13)
LOGITS = (RNG.normal(size=(8, 5)) * 3).astype(F32)
LABELS = np.arange(8) % 5


@pytest.mark.x64
def test_worked_numbers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  close(losses.asymmetric_generalized_cross_entropy(PROBE, 0), 1.2051617722)
  close(losses.asymmetric_unhinged(PROBE, 0), 0.7522207861)
  for pi, value in ((0.1, 1.2756265671), (0.5, 1.0727238238)):
    close(losses.jensen_shannon(PROBE, 0, pi=pi), value)
  close(losses.jensen_shannon(PROBE, 0, pi=0.9), 0.8957977674)


def test_an_exponent_of_1_is_the_mean_absolute_error():
  expected = losses.mean_absolute_error(LOGITS, LABELS)
  for loss in (
    losses.asymmetric_generalized_cross_entropy,
    losses.asymmetric_unhinged,
  ):
    np.testing.assert_allclose(
      loss(LOGITS, LABELS, a=2.5, q=1.0), expected, rtol=16 * EPS
    )


def test_an_exponent_of_0_is_a_logarithm():
  p = 1 - np.float64(losses.mean_absolute_error(LOGITS, LABELS))
  for loss, expected in (
    (losses.asymmetric_generalized_cross_entropy, np.log(3.5 / (2.5 + p))),
    (losses.asymmetric_unhinged, np.log((2.5 - p) / 1.5)),
  ):
    for q in (0.0, 1e-9):
      actual = loss(LOGITS, LABELS, a=2.5, q=q)
      np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    # The derivative in the exponent is continuous at the limit.
    gradient = jax.grad(lambda q, f=loss: f(LOGITS, LABELS, a=2.5, q=q).sum())
    np.testing.assert_allclose(gradient(0.0), gradient(1e-4), rtol=1e-3)


def test_jensen_shannon_runs_from_cross_entropy_to_the_absolute_error():
  np.testing.assert_allclose(
    losses.jensen_shannon(LOGITS, LABELS, pi=1e-6),
    losses.cross_entropy(LOGITS, LABELS),
    rtol=2e-4,
  )
  # With d = 1 - pi the other end is (1 - p) - (1 - p + p log p) / log d.
  d = 2.0**-20
  missing = np.float64(losses.mean_absolute_error(LOGITS, LABELS))
  p = 1 - missing
  np.testing.assert_allclose(
    losses.jensen_shannon(LOGITS, LABELS, pi=1 - d),
    missing - (missing + p * np.log(p)) / np.log(d),
    atol=1e-5,
  )


def test_jensen_shannon_with_next_to_no_weight_on_the_label():
  """What `pi + (1 - pi) p` is rounded to matters when p is small."""
  pi = 1e-8
  z = np.array([[0.0, 20.0], [0.0, 1e4], [1e4, 0.0], [-1e4, 1e4]], F32)

  def loss(z, labels):
    loss = losses.jensen_shannon(z, labels, pi=pi)
    return loss.sum(), loss

  gradient, actual = jax.jit(jax.grad(loss, has_aux=True))(z, np.zeros(4, int))
  expected = [
    cases.jensen_shannon(np.float64(z[0]), 0, pi=pi),
    1 - np.log(pi),
    0,
    1 - np.log(pi),
  ]
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  assert np.isfinite(gradient).all()


def test_bounds_and_what_is_lost_at_a_sure_label():
  ends = np.array([[0.0, 1e4], [1e4, 0.0]], F32)
  labels = np.zeros(2, int)
  jensen = functools.partial(losses.jensen_shannon, pi=0.3)
  # At p = 0 the mixture halves into log pi and log(1 - pi).
  top = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7)) / (-0.7 * np.log(0.7))
  np.testing.assert_allclose(jensen(ends, labels), [top, 0], rtol=8 * EPS)
  unhinged = losses.asymmetric_unhinged(ends, labels)
  top = (1.5**0.9 - 0.5**0.9) / 0.9
  np.testing.assert_allclose(unhinged, [top, 0], rtol=8 * EPS)
  # Confident examples are accurate: the loss is a multiple of 1 - p.
  z, sure = np.array([[20.0, 0.0]], F32), np.exp(-20.0)
  generalized = losses.asymmetric_generalized_cross_entropy(z, [0])
  np.testing.assert_allclose(generalized, 2 * sure, rtol=40 * EPS)
  factor = 0.5**-0.1
  np.testing.assert_allclose(
    losses.asymmetric_unhinged(z, [0]), factor * sure, rtol=40 * EPS
  )


@pytest.mark.parametrize(
  ("name", "hyper", "domain"),
  [
    ("asymmetric_generalized_cross_entropy", {"a": 0.0}, r"a .*\(0, inf\)"),
    ("asymmetric_generalized_cross_entropy", {"q": -1.0}, r"q .*\[0, inf\)"),
    ("asymmetric_unhinged", {"a": 1.0}, r"a must be in \(1, inf\)"),
    ("asymmetric_unhinged", {"q": -0.1}, r"q must be in \[0, inf\)"),
    ("jensen_shannon", {"pi": 0.0}, r"pi must be in \(0, 1\)"),
    ("jensen_shannon", {"pi": 1.0}, r"pi must be in \(0, 1\)"),
  ],
)
def test_hyperparameters_outside_their_domain_raise(name, hyper, domain):
  with pytest.raises(ValueError, match=domain):
    getattr(losses, name)(LOGITS, LABELS, **hyper)
