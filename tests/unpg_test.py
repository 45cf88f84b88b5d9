# SPDX-License-Identifier: Apache-2.0
"""UNPG: worked values, limits, its gradient by the pairs, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.contract import jit

from squentropy_jax import fused, losses

F32 = np.float32
RNG = np.random.default_rng(22)
COSINES = RNG.uniform(-1, 1, size=(6, 5)).astype(F32)
LABELS = np.arange(6) % 5
SIMILARITIES = RNG.uniform(-1, 1, size=(3, 4)).astype(F32)
MASK = RNG.random((3, 4)) < 0.6
NOTHING = np.zeros_like(MASK)


@pytest.mark.x64
def test_worked_numbers():
  row = np.array([0.5, 0.3, -0.2])
  values = np.array([-0.9, -0.1, 0, 0.05, 0.1, 0.15, 0.2, 0.95])
  # The fences of the card.
  kept = (values > -0.3) & (values < 0.5)
  bound = functools.partial(losses.unpg, row, 0, margin=0.35, scale=16.0)
  np.testing.assert_allclose(bound((values, kept)), 2.773380549108, atol=1e-10)
  without = bound((values, np.zeros(8, bool)))
  np.testing.assert_allclose(without, 2.487143666163, atol=1e-10)


@pytest.mark.parametrize("base", ["cosface", "arcface"])
def test_without_pairs_it_is_the_base_loss(base):
  @jit
  def every(cosines, similarities):
    ours = jax.value_and_grad(
      lambda c, s: losses.unpg(
        c, LABELS, (s, NOTHING), base=base, scale=20.0
      ).sum(),
      (0, 1),
    )(cosines, similarities)
    loss = getattr(losses, base)
    expected = jax.value_and_grad(
      lambda c: loss(c, LABELS, margin=0.5, scale=20.0).sum()
    )(cosines)
    return ours, expected

  garbage = np.full_like(SIMILARITIES, np.nan)
  (value, (by_cosine, by_pair)), expected = every(COSINES, garbage)
  np.testing.assert_allclose(value, expected[0], rtol=1e-6)
  np.testing.assert_allclose(by_cosine, expected[1], rtol=1e-5)
  np.testing.assert_array_equal(by_pair, 0)


def test_a_pair_counts_as_a_class_of_every_row():
  scale = np.linspace(3, 9, 6, dtype=F32)

  @jit
  def every(cosines, similarities):
    def ours(c, s, scale):
      return losses.unpg(c, LABELS, (s, MASK), scale=scale).sum()

    def as_classes(c, s, scale):
      more = jnp.broadcast_to(s[MASK], (6, MASK.sum()))
      c = jnp.concatenate([c, more], -1)
      return losses.cosface(c, LABELS, margin=0.5, scale=scale).sum()

    return [
      jax.value_and_grad(f, (0, 1, 2))(cosines, similarities, scale)
      for f in (ours, as_classes)
    ]

  found, expected = every(COSINES, SIMILARITIES)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def test_a_row_with_one_possible_class_has_the_pairs_alone():
  def loss(mask):
    return losses.unpg(
      np.array([0.5, 0.0], F32),
      0,
      (SIMILARITIES, mask),
      scale=5.0,
      where=np.array([True, False]),
    )

  odds = np.logaddexp.reduce(5.0 * SIMILARITIES[MASK]) - 5.0 * (0.5 - 0.5)
  np.testing.assert_allclose(loss(MASK), np.logaddexp(0.0, odds), rtol=1e-5)
  assert loss(NOTHING) == 0


def test_bad_negatives_raise():
  bad = (
    (SIMILARITIES, TypeError, "must be a pair"),
    (
      (SIMILARITIES, MASK.astype(F32)),
      TypeError,
      "mask of negatives must be b",
    ),
    (
      (SIMILARITIES, MASK[0]),
      ValueError,
      r"shape of the similarities \(3, 4\)",
    ),
    ((np.zeros((3, 4), int), MASK), TypeError, "must be floating"),
    ((np.full((3, 4), np.nan), MASK), ValueError, "must be finite where"),
  )
  for negatives, error, message in bad:
    with pytest.raises(error, match=message):
      losses.unpg(COSINES, LABELS, negatives)
    with pytest.raises(error, match=message):
      fused.linear_loss(
        functools.partial(losses.unpg, negatives=negatives),
        COSINES,
        np.eye(5, dtype=F32),
        LABELS,
      )
  with pytest.raises(TypeError, match="unpg needs negatives="):
    fused.linear_loss(losses.unpg, COSINES, np.eye(5, dtype=F32), LABELS)
  with pytest.raises(ValueError, match="base must be 'cosface' or 'arcface'"):
    losses.unpg(COSINES, LABELS, (SIMILARITIES, MASK), base="magface")
