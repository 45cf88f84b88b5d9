# SPDX-License-Identifier: Apache-2.0
"""LDR-KL and ALDR-KL: worked values, both ends, the temperature."""

import functools

import cases
import jax
import numpy as np
import pytest

from squentropy_jax import losses, margins

F32 = np.float32
EPS = np.finfo(F32).eps
PROBE = np.array([1.2, -0.4, 0.3, 2.0])
RNG = np.random.default_rng(17)
LOGITS = (RNG.normal(size=(8, 5)) * 3).astype(F32)
LABELS = np.arange(8) % 5


@pytest.mark.x64
def test_worked_numbers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  close(losses.ldr_kl(PROBE, 0), -0.0423838630)
  for temperature, value in (
    (1.0, 0.7774458210),
    (2.0, 0.5445120616),
    (0.05, 1.7306852819),
    (1e4, 0.3250398447),
  ):
    close(losses.ldr_kl(PROBE, 0, temperature=temperature, margin=1.0), value)
  close(margins.aldr_kl_temperature(PROBE, 0, margin=1.0), 0.7433054759)
  loss, gradient = jax.value_and_grad(losses.aldr_kl)(PROBE, 0, margin=1.0)
  close(loss, 0.8320553621)
  close(gradient, [-0.9278194498, 0.0321999688, 0.0825748217, 0.8130446592])


def test_temperature_1_is_cross_entropy_less_a_constant():
  np.testing.assert_allclose(
    losses.ldr_kl(LOGITS, LABELS),
    losses.cross_entropy(LOGITS, LABELS) - F32(np.log(5)),
    rtol=4 * EPS,
    atol=4 * EPS,
  )


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0])
def test_a_low_temperature_is_crammer_singer(margin):
  sharp = losses.ldr_kl(LOGITS, LABELS, temperature=1e-4, margin=margin)
  np.testing.assert_allclose(
    sharp,
    losses.crammer_singer(LOGITS, LABELS, margin=margin),
    # Between log C and 0 temperatures below.
    atol=1e-4 * np.log(5) + 1e-5,
  )


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_a_high_temperature_is_unhinged(margin):
  flat = losses.ldr_kl(LOGITS, LABELS, temperature=1e4, margin=margin)
  # A mean, and half a variance over the temperature above it. Rounding errors
  # are relative to the temperature times log C.
  gap = 2 * np.abs(LOGITS).max() + margin
  np.testing.assert_allclose(
    flat,
    losses.unhinged(LOGITS, LABELS) + margin * 0.8,
    atol=gap**2 / 1e4 + 4 * EPS * 1e4 * np.log(5),
  )


def test_gradients_are_the_worst_case_less_the_label():
  gradient = jax.grad(
    lambda z: losses.ldr_kl(z, LABELS, temperature=0.5, margin=1.0).sum()
  )(LOGITS)
  one_hot = np.eye(5, dtype=F32)[LABELS]
  q = jax.nn.softmax((LOGITS + 1 - one_hot) / F32(0.5))
  np.testing.assert_allclose(gradient, q - one_hot, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 10.0])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_the_temperature_solves_its_equation(alpha, scale):
  z = LOGITS * F32(scale)
  hyper = {"base_temperature": 2.0, "alpha": alpha, "margin": 0.5}
  t = np.float64(margins.aldr_kl_temperature(z, LABELS, **hyper))
  one_hot = np.eye(5)[LABELS]
  x = (z + 0.5 * (1 - one_hot)) / t[:, None]
  log_q = x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
  divergence = (np.exp(log_q) * (log_q + np.log(5))).sum(-1)
  expected = 2 * (1 - divergence / (alpha * np.log(5)))
  np.testing.assert_allclose(t, expected, rtol=2e-5)
  assert (t >= 2 * (1 - 1 / alpha) * (1 - 4 * EPS)).all()
  assert (t <= 2).all()
  loss = losses.aldr_kl(z, LABELS, **hyper)
  references = [
    cases.aldr_kl(np.float64(row), label, **hyper)
    for row, label in zip(z, LABELS, strict=True)
  ]
  size = np.abs(z).max() + 4 * alpha
  np.testing.assert_allclose(loss, references, atol=16 * EPS * size)


def test_a_large_alpha_fixes_the_temperature():
  hyper = {"base_temperature": 0.5, "margin": 0.3}
  np.testing.assert_allclose(
    losses.aldr_kl(LOGITS, LABELS, alpha=1e6, **hyper),
    losses.ldr_kl(LOGITS, LABELS, temperature=0.5, margin=0.3),
    rtol=1e-4,
    atol=1e-5,
  )


def test_equal_logits_have_no_preference():
  z = np.full((1, 4), 7.0, F32)
  np.testing.assert_allclose(
    margins.aldr_kl_temperature(z, [1], base_temperature=3.0), 3, rtol=4 * EPS
  )
  np.testing.assert_allclose(losses.aldr_kl(z, [1]), 0, atol=4 * EPS)


def test_the_temperature_obeys_the_laws_of_a_loss():
  keep = np.arange(8) % 2 == 0
  z = np.where(keep[:, None], LOGITS, F32(np.nan))
  t = margins.aldr_kl_temperature(z, LABELS, where=keep)
  expected = np.asarray(margins.aldr_kl_temperature(LOGITS, LABELS))
  np.testing.assert_allclose(t, np.where(keep, expected, 0), rtol=4 * EPS)
  soft = np.full((8, 5), 0.2, F32)
  each = [
    margins.aldr_kl_temperature(LOGITS, np.full(8, k), margin=2.0)
    for k in range(5)
  ]
  np.testing.assert_allclose(
    margins.aldr_kl_temperature(LOGITS, soft, margin=2.0),
    np.mean(each, axis=0),
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  ("name", "hyper", "domain"),
  [
    ("ldr_kl", {"temperature": 0.0}, r"temperature must be in \(0, inf\)"),
    ("ldr_kl", {"margin": -1.0}, r"margin must be in \[0, inf\)"),
    ("aldr_kl", {"base_temperature": 0.0}, r"base_temperature .*\(0, inf\)"),
    ("aldr_kl", {"alpha": 1.0}, r"alpha must be in \(1, inf\)"),
    ("aldr_kl", {"num_iters": 0}, r"num_iters must be in \[1, inf\)"),
    ("aldr_kl_temperature", {"margin": np.nan}, r"margin .*\[0, inf\)"),
  ],
)
def test_hyperparameters_outside_their_domain_raise(name, hyper, domain):
  function = getattr(margins if "temp" in name else losses, name)
  with pytest.raises(ValueError, match=domain):
    function(LOGITS, LABELS, **hyper)
