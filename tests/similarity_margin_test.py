# SPDX-License-Identifier: Apache-2.0
"""Margin losses of the hardest documents: values, limits, edges and memory."""

import functools

import jax
import numpy as np
import pytest

from squentropy_jax import retrieval

F32 = np.finfo(np.float32).eps
RNG = np.random.default_rng(4)
SIMILARITIES = np.array([[0.8, 0.6, 0.1], [0.2, 0.7, 0.65], [0.3, 0.1, 0.9]])
top_k = retrieval.top_k_margin
multi = retrieval.multi_positive_margin


@pytest.mark.x64
def test_worked_numbers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  for positives in (None, np.eye(3, dtype=bool)):
    loss = functools.partial(top_k, SIMILARITIES, positives)
    close(loss(num_negatives=1).mean(), 0.1166666667)
    close(loss(num_negatives=2).mean(), 0.0583333333)
    weighted = loss(num_negatives=2, temperature=0.1)
    close(weighted.mean(), 0.0582295737)
  # By hand: violations 0.3, 0.2 of one positive and 0 of the other.
  s = np.array([[0.4, 0.8, 0.5, 0.4, -0.3]])
  positives = np.array([[True, True, False, False, False]])
  w = np.exp([0.3, 0.2]) / np.exp([0.3, 0.2]).sum()
  expected = (w @ [0.3, 0.2]) / (2 * 2)
  found = multi(s, positives, num_positives=2, num_negatives=2)
  close(found, [expected])


@pytest.mark.x64
def test_limits_of_top_k_margin():
  s = RNG.uniform(-1, 1, (4, 6))
  positive = np.diagonal(s)
  negatives = np.where(np.eye(4, 6, dtype=bool), -np.inf, s)
  hardest = np.maximum(0, negatives.max(-1) - positive + 0.3)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14)
  # One negative: the triplet margin loss of the hardest.
  close(top_k(s, num_negatives=1), hardest)
  # All negatives: the mean of the hinge over them.
  hinge = np.maximum(0, negatives - positive[:, None] + 0.3)
  close(top_k(s, num_negatives=5), hinge.sum(-1) / 5)
  # A high temperature gives each negative a weight of 1 / k.
  high = top_k(s, num_negatives=5, temperature=1e13)
  close(high, hinge.sum(-1) / 25, rtol=1e-10)
  # At a low one, the hardest negative with a positive similarity is alone.
  low = top_k(s, num_negatives=5, temperature=1e-6)
  best = np.where(negatives.max(-1) > 0, hardest / 5, np.nan)
  close(low[~np.isnan(best)], best[~np.isnan(best)])
  assert np.isfinite(low).all()
  # Without a violation the loss is 0.
  apart = np.where(np.eye(4, 6, dtype=bool), 1.0, -1.0)
  for temperature in (None, 0.01):
    close(top_k(apart, num_negatives=3, temperature=temperature), 0)


@pytest.mark.x64
def test_limits_of_multi_positive_margin():
  s = RNG.uniform(-1, 1, (4, 6))
  # One positive and one negative: the margin of the hardest of each.
  positives = RNG.random((4, 6)) < 0.5
  positives[:, 0], positives[:, 1] = True, False
  lowest = np.where(positives, s, np.inf).min(-1)
  highest = np.where(positives, -np.inf, s).max(-1)
  expected = np.maximum(0, highest - lowest + 0.2)
  found = multi(s, positives, num_positives=1, num_negatives=1)
  np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
  one = multi(s, num_positives=1, num_negatives=1)
  alone = top_k(s, margin=0.2, num_negatives=1)
  np.testing.assert_allclose(one, alone, rtol=1e-12, atol=1e-15)
  # The divisor counts positives and negatives that do not exist.
  more = multi(s, num_positives=5, num_negatives=1)
  np.testing.assert_allclose(more, one / 5, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_missing_negatives_count_as_beyond_the_margin(temperature):
  s = np.float32([[0.5, 0.6, -0.2, 0.1]])
  positives = np.array([[True, False, True, True]])
  positives[:, 2:] = False
  keep = np.array([[True, True, False, False]])
  loss = functools.partial(top_k, num_negatives=3, temperature=temperature)
  excess = 0.6 - 0.5 + 0.3
  weight = 1.0
  if temperature is not None:
    weight = 1 / (1 + 2 * np.exp(-0.6 / temperature))
  np.testing.assert_allclose(
    loss(s, positives, where=keep), [weight * excess / 3], rtol=8 * F32
  )


def test_the_derivative_is_0_at_the_margin():
  s = np.float32([[0.75, 0.5], [0.0, 1.0]])
  loss = functools.partial(top_k, margin=0.25, num_negatives=1)
  np.testing.assert_array_equal(loss(s), 0)
  gradient = jax.grad(lambda s: loss(s).sum())(s)
  np.testing.assert_array_equal(gradient, 0)
  # And ties of negatives give the derivative to one of them.
  ties = np.float32([[0.5, 0.5, 0.5]])
  gradient = jax.grad(lambda s: top_k(s, num_negatives=1).sum())(ties)
  assert sorted(np.asarray(gradient)[0]) == [-1, 0, 1]


def test_all_logits_far_below_0_leave_the_weights_finite():
  s = np.float32([[-0.9, -1.0, -0.95]])
  loss = functools.partial(top_k, num_negatives=2, temperature=1e-3)
  np.testing.assert_allclose(loss(s), [0.25 / 2], rtol=8 * F32)
  gradient = jax.grad(lambda s: loss(s).sum())(s)
  np.testing.assert_allclose(gradient, [[-0.5, 0, 0.5]], rtol=1e-5, atol=1e-6)


def test_the_memory_does_not_grow_with_the_number_of_negatives():
  shape = (256, 256)
  arrays = [
    jax.ShapeDtypeStruct(shape, np.float32),
    jax.ShapeDtypeStruct(shape, bool),
  ]

  def temporary(count):
    def total(s, positives):
      return top_k(s, positives, num_negatives=count, temperature=0.1).sum()

    compiled = jax.jit(jax.value_and_grad(total)).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  few, many = temporary(10), temporary(40)
  # Two numbers and their cotangents for each further negative of a query.
  assert many - few < 30 * 256 * 4 * 8
  assert few < 9 * 256 * 256 * 4


@pytest.mark.parametrize("count", [0, 4, 7, 2.5])
def test_numbers_of_documents_that_are_out_of_range(count):
  s = np.zeros((3, 4), np.float32)
  error = TypeError if count == 2.5 else ValueError
  for loss, name in (
    (top_k, "num_negatives"),
    (functools.partial(top_k, temperature=0.1), "num_negatives"),
    (functools.partial(multi, num_negatives=1), "num_positives"),
    (functools.partial(multi, num_positives=1), "num_negatives"),
  ):
    with pytest.raises(error, match=f"{name} must be"):
      loss(s, **{name: count})


def test_too_few_documents_say_what_to_pass():
  with pytest.raises(ValueError, match=r"got 10\. Pass num_negatives=7 or"):
    top_k(np.zeros((8, 8), np.float32))
  with pytest.raises(ValueError, match=r"got 5\. Pass num_negatives=3 or"):
    multi(np.zeros((4, 4), np.float32))
  with pytest.raises(ValueError, match=r"got 1\. Pass more documents"):
    top_k(np.zeros((1, 1), np.float32), num_negatives=1)
