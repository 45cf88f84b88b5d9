# SPDX-License-Identifier: Apache-2.0
"""Masks of difficult patches: exact counts, and uniform draws of the others."""

from fractions import Fraction
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import contract

from squentropy_jax import masking

KEY = jax.random.key(0)
LOSSES = np.random.default_rng(0).gamma(2.0, size=(3, 12)).astype(np.float32)


@functools.cache
def _compiled(mask_ratio=0.75):
  return contract.jit(
    functools.partial(masking.hard_patch_mask, mask_ratio=mask_ratio)
  )


def test_counts_of_the_paper():
  losses = np.random.default_rng(1).normal(size=(2, 196)).astype(np.float32)
  mask = _compiled()
  for step, num_hard in ((0, 0), (399, 36), (799, 73)):
    fraction = masking.hard_fraction(step, 800)
    hidden = np.asarray(mask(KEY, losses, hard_fraction=fraction))
    assert hidden.dtype == bool
    np.testing.assert_array_equal(hidden.sum(-1), 147)
    order = np.argsort(-losses, -1)
    first = np.take_along_axis(hidden, order, -1)
    assert first[:, :num_hard].all()
    # As random as the 147 - H of the others are, some are visible.
    assert not first[:, num_hard : num_hard + 30].all()


@pytest.mark.parametrize("size", [1, 5, 7, 10, 30, 100])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_counts_are_floors_of_exact_products(size, dtype):
  for tenths in range(11):
    ratio = dtype(tenths / 10)
    want = size - int(size * (1 - Fraction(tenths, 10)))
    assert masking._num_hidden(size, ratio) == want, (size, tenths)


def test_a_fraction_that_is_an_integer_is_not_rounded_down():
  # 100 times the float32 number next to k / 100 may be below k.
  losses = jnp.arange(100.0)

  def num_hard(step):
    fraction = masking.hard_fraction(step, 800)
    return masking._floor(jnp.float32(100) * fraction, jnp)

  steps = jnp.arange(800, dtype=jnp.int32)
  got = contract.jit(jax.vmap(num_hard))(steps)
  np.testing.assert_array_equal(got, (np.arange(800) + 1) // 16)
  mask = _compiled(0.29)
  hidden = mask(KEY, losses, hard_fraction=np.float32(1))
  np.testing.assert_array_equal(np.flatnonzero(hidden), np.arange(71, 100))


def test_limits_of_the_fraction():
  mask = _compiled(0.5)
  all_hard = mask(KEY, LOSSES, hard_fraction=1.0)
  hardest = np.sort(LOSSES, -1)[:, 6:7] <= LOSSES
  np.testing.assert_array_equal(all_hard, hardest)
  # Without difficult patches the predictions do not matter.
  random = mask(KEY, LOSSES, hard_fraction=0.0)
  assert (random != hardest).any()
  flat = np.zeros_like(LOSSES)
  counts = sum(
    np.asarray(mask(jax.random.key(i), flat, hard_fraction=1.0), int)
    for i in range(200)
  )
  # Where all are equal, which of them are hard is random: 100 +- 7 each.
  assert np.abs(counts - 100).max() < 35


def test_other_patches_are_uniform():
  keys = jax.random.split(KEY, 2000)
  row = LOSSES[0]
  hidden = contract.jit(
    jax.vmap(
      lambda key: masking.hard_patch_mask(
        key, row, mask_ratio=0.5, hard_fraction=0.5
      )
    )
  )(keys)
  share = np.asarray(hidden).mean(0)
  order = np.argsort(-row)
  np.testing.assert_array_equal(share[order[:3]], 1)
  # Three of nine; five standard deviations of a share of 2000.
  np.testing.assert_allclose(share[order[3:]], 1 / 3, atol=0.053)


def test_one_fraction_for_each_mask_and_traced_values():
  mask = _compiled(0.5)
  fractions = np.array([0.0, 0.5, 1.0], np.float32)
  hidden = np.asarray(mask(KEY, LOSSES, hard_fraction=fractions))
  np.testing.assert_array_equal(hidden.sum(-1), 6)
  order = np.argsort(-LOSSES, -1)
  first = np.take_along_axis(hidden, order, -1)
  assert first[1, :3].all()
  assert first[2, :6].all()
  # Traced numbers out of range are clipped, and NaN is 0.
  given = mask(KEY, LOSSES, hard_fraction=np.float32([np.nan, 0.5, 7.0]))
  np.testing.assert_array_equal(given, hidden)


def test_losses_of_any_kind():
  mask = _compiled(0.5)
  mixed = np.float32([np.nan, 1, np.inf, -np.inf, 3, 2, 0, -1, -2, -3, -4, -5])
  hidden = mask(KEY, mixed, hard_fraction=1.0)
  np.testing.assert_array_equal(np.flatnonzero(hidden), [1, 2, 4, 5, 6, 7])
  narrow = mask(KEY, jnp.bfloat16(mixed), hard_fraction=1.0)
  np.testing.assert_array_equal(narrow, hidden)


def test_ratios_of_none_and_all():
  for ratio, share in ((0.0, False), (1.0, True)):
    hidden = masking.hard_patch_mask(
      KEY, LOSSES, mask_ratio=ratio, hard_fraction=0.5
    )
    np.testing.assert_array_equal(hidden, np.full((3, 12), share))


def test_the_fraction_rises_to_a_half_and_stays():
  fraction = masking.hard_fraction
  assert fraction(0, 800) == np.float32(0.000625)
  assert fraction(799, 800) == 0.5
  assert fraction(10_000, 800) == 0.5
  traced = jax.jit(lambda step: masking.hard_fraction(step, 8))(jnp.int32(3))
  assert traced == 0.25
  assert traced.dtype == jnp.float32


def test_errors_name_the_argument():
  mask = functools.partial(masking.hard_patch_mask, KEY)
  with pytest.raises(TypeError, match="key must be one random key"):
    masking.hard_patch_mask(0, LOSSES, hard_fraction=0.5)
  with pytest.raises(TypeError, match="predicted_losses must be floating"):
    mask(np.arange(4), hard_fraction=0.5)
  with pytest.raises(ValueError, match=r"predicted_losses .* got \(\)"):
    mask(1.0, hard_fraction=0.5)
  with pytest.raises(ValueError, match=r"hard_fraction must be in \[0, 1\]"):
    mask(LOSSES, hard_fraction=1.5)
  with pytest.raises(ValueError, match=r"hard_fraction .* shape \(2,\)"):
    mask(LOSSES, hard_fraction=np.zeros(2))
  with pytest.raises(ValueError, match=r"mask_ratio must be in \[0, 1\]"):
    mask(LOSSES, mask_ratio=1.1, hard_fraction=0.5)
  with pytest.raises(TypeError, match=r"mask_ratio .* static"):
    jax.jit(lambda r: mask(LOSSES, mask_ratio=r, hard_fraction=0.5))(0.5)
  with pytest.raises(ValueError, match=r"step must be in \[0, inf\)"):
    masking.hard_fraction(-1, 8)
  with pytest.raises(ValueError, match=r"num_steps must be in \(0, inf\)"):
    masking.hard_fraction(0, 0)
