# SPDX-License-Identifier: Apache-2.0
"""Every loss: soft labels, transformations of JAX and float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.contract import (
  EVERY,
  F32,
  LABELS,
  LOGITS,
  ROW,
  SOFT,
  close,
  compiled,
  each_scaled,
  evaluate,
  gradients_close,
  jit,
  quickly_compiled,
  reference,
  size_of,
  soft_labels,
)

from squentropy_jax import RowStats

# Soft labels.


@SOFT
def test_one_hot_equals_hard(case):
  soft = evaluate(case, LOGITS, np.eye(5, dtype=F32)[LABELS])
  hard = evaluate(case, LOGITS, LABELS)
  close(soft.loss, hard.loss, ulps=128, size=size_of(case, LOGITS, LABELS))
  np.testing.assert_allclose(soft.by_logit, hard.by_logit, rtol=1e-4, atol=1e-6)


@SOFT
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_soft_labels_are_expected_hard_labels(case, scale):
  p, logits = soft_labels(), LOGITS * F32(scale)
  each, sizes = (
    np.stack([f(case, logits, [k] * 6) for k in range(5)], axis=-1)
    for f in (reference, size_of)
  )
  loss, grad, by_label, _ = evaluate(case, logits, p)
  close(loss, (p * each).sum(-1), ulps=128, size=(p * sizes).sum(-1))
  if not hasattr(case.loss, "row"):
    # What is the same for every class is no gradient within the simplex.
    by_label = by_label + (each[:, :1] - by_label[:, :1])
  close(by_label, each, ulps=128, size=sizes + sizes[:, :1])
  grads = sum(
    p[:, k, None] * evaluate(case, logits, np.full(6, k, np.int32)).by_logit
    for k in range(5)
  )
  gradients_close(grad, grads)


@SOFT
def test_soft_labels_on_impossible_and_masked_classes(case):
  p = soft_labels()
  p[:, 1] = 0
  p /= p.sum(-1, keepdims=True)
  kept = np.array([True, False, True, True, True])
  logits = np.where(kept, LOGITS, F32(-np.inf))
  mask = np.broadcast_to(kept, LOGITS.shape)
  classes = np.flatnonzero(kept)
  expected, size = (
    sum(p[:, k] * f(case, logits, [k] * 6) for k in classes)
    for f in (reference, size_of)
  )
  for z, where in ((logits, None), (LOGITS, mask)):
    result = evaluate(case, z, p, where)
    close(result.loss, expected, ulps=128, size=size)
    np.testing.assert_array_equal(result.by_logit[:, 1], 0)
    assert np.isfinite(result.by_logit).all()
  p[2, 1] = 0.1
  loss = evaluate(case, LOGITS, p, mask).loss
  np.testing.assert_array_equal(np.isnan(loss), np.arange(6) == 2)
  limit = evaluate(case, logits, p).loss
  assert np.isfinite(limit[2]) == np.isfinite(case.impossible_target)


@SOFT
def test_dropped_examples_with_soft_labels(case):
  p, logits, hyper = soft_labels(), LOGITS.copy(), each_scaled(case)
  keep = np.arange(6) != 1
  for array in (p, logits, *hyper.values()):
    array[1] = np.nan
  loss, *gradients = evaluate(case, logits, p, keep, **hyper)
  assert loss[1] == 0
  assert np.isfinite(loss).all()
  for grad in jax.tree.leaves(gradients):
    np.testing.assert_array_equal(grad[1], 0)
    assert np.isfinite(grad).all()


# Transformations.


@EVERY
def test_second_derivatives(case):
  @quickly_compiled
  def every(row, label):
    grad = functools.partial(jax.grad(case.loss), labels=label)
    return jax.jacfwd(grad)(row), jax.jacrev(grad)(row)

  row, label = LOGITS[0], LABELS[0]
  forward, backward = every(row, label)
  step = F32(1e-2)
  up, down = (
    # One row more, as in the other calls, which share its program.
    evaluate(
      case, row + sign * step * np.eye(6, 5, dtype=F32), np.full(6, label)
    )
    for sign in (1, -1)
  )
  centred = (up.by_logit - down.by_logit)[:5] / (2 * step)
  np.testing.assert_allclose(forward, backward, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(forward, forward.T, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(forward, centred, rtol=2e-2, atol=2e-3)


@EVERY
def test_forward_mode_agrees_with_reverse_mode(case):
  tangent = (
    np.random.default_rng(20230207).normal(size=LOGITS.shape).astype(F32)
  )
  value, along = quickly_compiled(
    lambda z, dz: jax.jvp(lambda z: case.loss(z, LABELS), (z,), (dz,))
  )(LOGITS, tangent)
  # Two programs may round the last bit differently.
  loss, grad, *_ = evaluate(case, LOGITS, LABELS)
  np.testing.assert_array_max_ulp(value, loss, 2)
  np.testing.assert_allclose(
    along, (grad * tangent).sum(-1), rtol=1e-4, atol=1e-5
  )


@EVERY
def test_scan_donation_and_traces(case):
  chex.clear_trace_counter()

  @functools.partial(jit, donate_argnums=0)
  @chex.assert_max_traces(n=1)
  def three_steps(logits):
    def step(z, _):
      return z - jax.grad(lambda z: case.loss(z, LABELS).sum())(z), None

    return jax.lax.scan(step, logits, length=3)[0]

  logits = LOGITS
  for _ in range(3):
    logits = logits - evaluate(case, logits, LABELS).by_logit
  for _ in range(2):
    np.testing.assert_allclose(
      three_steps(jnp.array(LOGITS)), logits, rtol=1e-5, atol=1e-6
    )


@EVERY
def test_same_executable_same_bits(case):
  first = evaluate(case, LOGITS, LABELS)
  for _ in range(5):
    chex.assert_trees_all_equal(evaluate(case, LOGITS, LABELS), first)


# In float64, in a process of its own; see also x64_test.


def plain_stats(logits, label):
  """Row statistics as one would write them first."""
  rest = jnp.delete(logits, label, assume_unique_indices=True)
  lse = jax.nn.logsumexp(rest)
  return RowStats(
    target=logits[label],
    log_odds=lse - logits[label],
    rest_lse=lse,
    rest_sum=rest.sum(),
    rest_sq=jnp.square(rest).sum(),
    rest_max=rest.max(),
    rest_expected=(jax.nn.softmax(rest) * rest).sum(),
    num_classes=jnp.asarray(float(logits.size)),
  )


@pytest.mark.x64
@ROW
def test_custom_rule_equals_plain_autodiff(case):
  row, label = np.float64(LOGITS[1]), int(LABELS[1])

  def plain(z):
    if case.loss.transform is not None:
      z = case.loss.transform(z, case.hyperparameters)
    return case.loss.row(plain_stats(z, label), **case.hyperparameters)

  def ours(z):
    return case.loss(z, label, **case.hyperparameters)

  @jit
  def every(z):
    derivatives = (jax.grad, jax.jacfwd, jax.hessian)
    return [(f(z), [d(f)(z) for d in derivatives]) for f in (ours, plain)]

  (value, grads), (expected, expected_gradients) = every(row)
  np.testing.assert_allclose(value, expected, rtol=1e-12)
  for found, grad in zip(grads, expected_gradients, strict=True):
    np.testing.assert_allclose(found, grad, rtol=1e-10, atol=1e-12)


@pytest.mark.x64
@EVERY
def test_wide_labels_are_checked_in_their_own_dtype(case):
  labels = np.array([0, 4, 2**32, 3, -(2**32), 2], np.int64)
  loss = np.asarray(compiled(case.loss)(np.float64(LOGITS), labels))
  np.testing.assert_array_equal(np.isnan(loss), [0, 0, 1, 0, 1, 0])
