# SPDX-License-Identifier: Apache-2.0
"""Sparse targets whose other classes are one class of the target."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import heads
from support.layouts import LAYOUTS

from squentropy_jax import fused, losses, rows

ROWS, WIDTH, CLASSES, K = 8, 5, 12, 3
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(ROWS, WIDTH)).astype(np.float32)
KERNEL = RNG.normal(size=(WIDTH, CLASSES)).astype(np.float32)
TEACHER = RNG.normal(size=(ROWS, CLASSES)).astype(np.float32)
WEIGHTS = np.linspace(-1.0, 2.0, ROWS, dtype=np.float32)


def top():
  """The largest probabilities of a teacher."""
  p = np.exp(TEACHER - TEACHER.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  ids = np.argsort(-p, axis=-1)[:, :K]
  return ids, np.take_along_axis(p, ids, -1)


IDS, PROBABILITIES = top()


def dense(features, kernel, probabilities, ids=IDS):
  """From full logits: cross-entropy over the named classes and the bucket."""
  log_q = jax.nn.log_softmax(features @ kernel, -1)
  named = jnp.take_along_axis(log_q, ids, -1)
  is_named = (np.arange(CLASSES) == ids[..., None]).any(-2)
  rest = jax.nn.logsumexp(jnp.where(is_named, -jnp.inf, log_q), -1)
  missing = 1.0 - probabilities.sum(-1)
  each = -(probabilities * named).sum(-1) - missing * rest
  return (each * WEIGHTS).sum(), each


def head(features, kernel, probabilities, mode="recompute", **settings):
  labels = settings.pop("ids", IDS), probabilities
  settings |= {"tail": "bucket", "plan": fused.Plan(mode, 1)}
  if mode == "grad_in_forward":
    total, _, _ = fused.linear_loss_sum(
      losses.cross_entropy,
      features,
      kernel,
      labels,
      weights=WEIGHTS,
      **settings,
    )
    return total, jnp.zeros(ROWS)
  each = fused.linear_loss(
    losses.cross_entropy, features, kernel, labels, **settings
  )
  return (each * WEIGHTS).sum(), each


def run(function, *arguments, **settings):
  found = jax.value_and_grad(
    functools.partial(function, **settings), (0, 1, 2), has_aux=True
  )
  return heads.jit(found)(*arguments)


@pytest.mark.parametrize("mode", ["recompute", "grad_in_forward"])
def test_value_and_every_gradient(mode):
  (total, each), gradients = run(
    head, FEATURES, KERNEL, PROBABILITIES, mode=mode
  )
  (exact, rows), expected = run(dense, FEATURES, KERNEL, PROBABILITIES)
  np.testing.assert_allclose(total, exact, rtol=1e-5)
  if mode == "recompute":
    np.testing.assert_allclose(each, rows, rtol=1e-5)
  for a, b in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_classes_over_a_mesh():
  case = LAYOUTS["rows, classes"]
  settings = {"mesh": case.mesh(), "mode": "grad_in_forward"} | case.specs
  (total, _), gradients = run(head, FEATURES, KERNEL, PROBABILITIES, **settings)
  (exact, _), expected = run(dense, FEATURES, KERNEL, PROBABILITIES)
  np.testing.assert_allclose(total, exact, rtol=1e-5)
  for a, b in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_limits():
  """No class is left, all of one class, a dropped row, and too much."""
  ids = np.tile(np.arange(CLASSES), (ROWS, 1))
  p = np.exp(TEACHER)
  p /= p.sum(-1, keepdims=True)
  # Every class is named, or one of them twice and another with 0.
  ids[1, 2] = ids[1, 1]
  bucket, ignore = (
    heads.jit(
      functools.partial(
        fused.linear_loss, losses.cross_entropy, where=WEIGHTS > -0.9, tail=tail
      )
    )
    for tail in ("bucket", "ignore")
  )
  found = bucket(FEATURES, KERNEL, (ids, p))
  expected = ignore(FEATURES, KERNEL, (ids, p))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert found[0] == 0
  # If what is missing cannot be, the loss is infinite.
  found = bucket(FEATURES, KERNEL, (ids, p * np.float32(0.9)))
  assert np.all(np.asarray(found)[2:] == np.inf)
  # The named class has nearly all: the bucket's loss is large and finite.
  one = np.zeros((ROWS, 1), int), np.full((ROWS, 1), 0.5, np.float32)
  confident = KERNEL.copy()
  confident[:, 0] = 0
  features = np.abs(FEATURES)
  confident[:, 1:] = -40.0
  found = bucket(features, confident, one)
  z = features.astype(np.float64) @ confident.astype(np.float64)
  rest = z[:, 1] + np.log(CLASSES - 1)
  exact = 0.5 * np.logaddexp(0, rest) + 0.5 * np.logaddexp(0, -rest)
  np.testing.assert_allclose(found[1:], exact[1:], rtol=1e-6)
  # Nothing cancels if the bucket has nearly all, either.
  found = bucket(features, -confident, (one[0], one[1] * 0 + 1e-9))
  exact = 1e-9 * np.logaddexp(0, -z[:, 1] + np.log(CLASSES - 1))
  np.testing.assert_allclose(found[1:], exact[1:], rtol=1e-5)
  # Under jit more than all probability is NaN, in its row only.
  much = PROBABILITIES.copy()
  much[2, 0] = 0.9
  found = np.asarray(bucket(FEATURES, KERNEL, (IDS, much)))
  assert np.array_equal(np.isnan(found), np.arange(ROWS) == 2)


def test_errors():
  call = functools.partial(
    fused.linear_loss, losses.cross_entropy, FEATURES, KERNEL
  )
  pair = IDS, PROBABILITIES
  with pytest.raises(ValueError, match="tail must be one of"):
    call(pair, tail="drop")
  with pytest.raises(ValueError, match="needs labels as a pair"):
    call(IDS[:, 0], tail="bucket")
  with pytest.raises(ValueError, match="needs label_smoothing=0"):
    call(pair, tail="bucket", label_smoothing=0.1)
  with pytest.raises(ValueError, match=r"sum to at most 1, .*a sum of 3"):
    call((IDS, PROBABILITIES * 0 + 1), tail="bucket")
  for loss in (losses.squentropy, losses.focal):
    with pytest.raises(ValueError, match=r"needs losses\.cross_entropy, got"):
      fused.linear_loss_sum(loss, FEATURES, KERNEL, pair, tail="bucket")
  with pytest.raises(ValueError, match="metrics must be left out with tail"):
    fused.linear_loss_sum(
      losses.cross_entropy,
      FEATURES,
      KERNEL,
      pair,
      tail="bucket",
      metrics={"accuracy": rows.correct},
    )
  with pytest.raises(ValueError, match="a least number of -"):
    call((IDS, PROBABILITIES - 1), tail="bucket")


def test_gradient_of_probabilities_that_sum_to_one():
  """The derivative of the missing probability is -1 there too."""
  labels = np.array([[0, 1, 2]])
  p = np.float32([[0.25, 0.25, 0.5]])
  kernel = jnp.asarray(KERNEL)

  @heads.jit
  def gradient(p):
    return jax.grad(
      lambda p: fused.linear_loss(
        losses.cross_entropy, FEATURES[:1], kernel, (labels, p), tail="bucket"
      ).sum()
    )(p)

  z = (FEATURES[:1] @ KERNEL)[0].astype(np.float64)
  log_p = z - np.log(np.exp(z).sum())
  rest = np.log(np.exp(log_p[3:]).sum())
  np.testing.assert_allclose(gradient(p)[0], rest - log_p[:3], rtol=1e-4)
