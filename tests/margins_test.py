# SPDX-License-Identifier: Apache-2.0
"""Margins for angular losses: drawn, ranked, adapted to the batch."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support.contract import jit

from squentropy_jax import losses, margins

F32 = np.float32
RNG = np.random.default_rng(24)
COSINES = RNG.uniform(-0.5, 0.9, size=(8, 5)).astype(F32)
LABELS = np.arange(8) % 5
KEEP = np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)
CARD = np.array(
  [[0.9, 0.1, 0.2], [0.3, 0.7, -0.1], [0.05, 0.0, 0.6], [0.5, 0.2, 0.1]]
)
CARD_LABELS = np.array([0, 1, 2, 0])


def test_elastic_margins_are_normal_draws():
  key = jax.random.key(0)
  drawn = margins.elastic(key, (20000,), mean=0.5, stddev=0.05)
  np.testing.assert_allclose(drawn.mean(), 0.5, atol=5 * 0.05 / 20000**0.5)
  np.testing.assert_allclose(drawn.std(), 0.05, rtol=0.03)
  # Beyond three standard deviations too, so nothing is truncated.
  assert (jnp.abs(drawn - 0.5) > 0.15).any()
  mean = np.linspace(0, 1, 3, dtype=F32)
  none = margins.elastic(key, (3,), mean=mean, stddev=0.0)
  np.testing.assert_array_equal(none, mean)
  derivative = jax.grad(
    lambda m: margins.elastic(key, (3,), mean=m, stddev=0.1).sum()
  )
  assert derivative(0.5) == 0
  with pytest.raises(ValueError, match=r"stddev must be in \[0, inf\)"):
    margins.elastic(key, (3,), mean=0.5, stddev=-0.1)
  with pytest.raises(TypeError, match="key must be one random key"):
    margins.elastic(0, (3,), mean=0.5, stddev=0.1)


def test_the_smallest_cosine_gets_the_largest_margin():
  drawn = F32([0.48, 0.50, 0.55])
  found = margins.ranked(drawn, F32([0.1, 0.9, 0.5]))
  # The paper's rule; the authors' code gives [.50, .55, .48].
  np.testing.assert_array_equal(found, F32([0.55, 0.48, 0.50]))
  drawn, cosines = RNG.normal(size=(2, 4, 2)).astype(F32)
  found = np.asarray(margins.ranked(drawn, cosines)).ravel()
  np.testing.assert_array_equal(np.sort(found), np.sort(drawn.ravel()))
  assert (np.diff(found[np.argsort(cosines.ravel())]) <= 0).all()
  gradient = jax.grad(lambda m, c: margins.ranked(m, c).sum(), (0, 1))
  assert not any(map(np.any, gradient(drawn, cosines)))
  with pytest.raises(ValueError, match="target_cosines must have the shape of"):
    margins.ranked(drawn, cosines[0])


def test_kept_rows_share_the_margins_of_kept_rows():
  drawn, cosines = RNG.normal(size=(2, 8)).astype(F32)
  found = margins.ranked(
    np.where(KEEP, drawn, np.nan), np.where(KEEP, cosines, np.nan), where=KEEP
  )
  np.testing.assert_array_equal(found[~KEEP], 0)
  np.testing.assert_array_equal(
    found[KEEP], margins.ranked(drawn[KEEP], cosines[KEEP])
  )
  nothing = margins.ranked(drawn, cosines, where=np.zeros(8, bool))
  np.testing.assert_array_equal(nothing, 0)


def test_target_logits_are_gathered():
  expected = np.take_along_axis(COSINES, LABELS[:, None], -1)[:, 0]
  np.testing.assert_array_equal(
    margins.target_logits(COSINES, LABELS), expected
  )
  labels = np.where(KEEP, LABELS, -100)
  found = margins.target_logits(COSINES.T, labels, axis=0, where=KEEP)
  np.testing.assert_array_equal(found, np.where(KEEP, expected, 0))
  with pytest.raises(ValueError, match=r"labels\[2\] = -100"):
    margins.target_logits(COSINES, labels)


@pytest.mark.x64
def test_worked_numbers_of_the_adaptive_margin():
  scale, margin = margins.adaptive(CARD, CARD_LABELS, alpha=0.1)
  np.testing.assert_allclose(scale, 45.788300320736, atol=1e-10)
  np.testing.assert_allclose(margin, 0.595878748718, atol=1e-10)
  found = losses.cosface(CARD, CARD_LABELS, scale=scale, margin=margin)
  expected = [0.008551919009, 8.969082276892, 2.302585092994, 13.55800085308]
  np.testing.assert_allclose(found, expected, atol=1e-10)


def numpy_adaptive(cosines, labels, alpha, min_scale, background):
  """The definition, in float64."""
  rows = np.arange(len(labels))
  target = np.float64(cosines)[rows, labels]
  place = np.argsort(target, kind="stable")[(len(labels) - 1) // 2]
  scale = np.log(9999999 * (1 - alpha) / alpha) / (1 - target[place])
  scale = max(min_scale, scale)
  others = np.float64(cosines)
  others[rows, labels] = -np.inf
  each = np.exp(scale * others).sum(-1)
  total = {
    "median_row": each[place],
    "median": np.sort(each)[(len(labels) - 1) // 2],
    "mean": each.mean(),
  }[background]
  odds = alpha / (1 - alpha)
  return scale, max(0.0, target[place] - np.log(total * odds) / scale)


@jit
def all_backgrounds(cosines, keep, alpha):
  return [
    margins.adaptive(
      cosines, LABELS, alpha=alpha, min_scale=20.0, where=keep, background=b
    )
    for b in ("median_row", "median", "mean")
  ]


@pytest.mark.parametrize("alpha", [0.02, 0.6])
def test_scale_and_margin_of_a_batch(alpha):
  for keep in (KEEP, np.ones(8, bool)):
    cosines = np.where(keep[:, None], COSINES, F32(np.nan))
    found = all_backgrounds(cosines, keep, alpha)
    for background, pair in zip(
      ("median_row", "median", "mean"), found, strict=True
    ):
      expected = numpy_adaptive(
        COSINES[keep], LABELS[keep], alpha, 20.0, background
      )
      np.testing.assert_allclose(pair, expected, rtol=1e-5)


def test_the_median_row_has_probability_alpha():
  cosines = COSINES - F32(0.4) * (np.arange(5) != LABELS[:, None])
  scale, margin = margins.adaptive(cosines, LABELS, alpha=0.1, min_scale=10.0)
  assert scale > 10
  assert margin > 0
  probability = np.exp(
    -losses.cosface(cosines, LABELS, scale=scale, margin=margin)
  )
  target = np.take_along_axis(COSINES, LABELS[:, None], -1)[:, 0]
  assert np.isclose(probability[np.argsort(target)[3]], 0.1, rtol=1e-4)
  # With the odds of the median at alpha, those of a cosine of 1 are full.
  odds = 0.1 / 0.9 * np.exp(scale * (1 - np.sort(target)[3]))
  np.testing.assert_allclose(odds, 9999999, rtol=1e-3)


def test_large_scales_and_batches_without_rows_are_finite():
  easy = np.where(np.arange(5) == LABELS[:, None], F32(0.94), COSINES / 2)
  scale, margin = all_backgrounds(F32(easy), KEEP, 0.1)[0]
  assert scale > 300
  assert 0 < margin < 1
  ones = np.ones((8, 5), F32)
  for cosines in (ones, ones * F32(1 + 1e-6)):
    assert np.isfinite(all_backgrounds(cosines, KEEP, 0.1)).all()
  for pair in all_backgrounds(ones * np.nan, np.zeros(8, bool), 0.1):
    np.testing.assert_array_equal(pair, (20, 0))


def test_invalid_arguments_of_the_adaptive_margin():
  call = functools.partial(margins.adaptive, COSINES)
  with pytest.raises(ValueError, match=r"labels\[7\] = 9"):
    call([0] * 7 + [9])
  found = jax.jit(call)(jnp.array([0] * 7 + [9]))
  assert np.isnan(found).all()
  with pytest.raises(TypeError, match="labels must be class ids"):
    call(np.full((8, 5), 0.2, F32))
  for change, message in (
    ({"alpha": 1.0}, r"alpha must be in \(0, 1\)"),
    ({"alpha": np.full(8, 0.1)}, "alpha must be a scalar"),
    ({"background": "mode"}, "background must be 'median_row' or"),
  ):
    with pytest.raises(ValueError, match=message):
      call(LABELS, **change)


def test_several_devices_are_one_batch():
  """Of two rows each, with the kept rows spread unevenly."""
  drawn = RNG.normal(size=8).astype(F32)
  target = COSINES[np.arange(8), LABELS]

  def every(cosines, labels, keep, drawn, target, axis_name=None):
    pair = margins.adaptive(cosines, labels, where=keep, axis_name=axis_name)
    mean = margins.adaptive(
      cosines, labels, where=keep, axis_name=axis_name, background="mean"
    )
    found = margins.ranked(drawn, target, where=keep, axis_name=axis_name)
    return jnp.stack([*pair, *mean]), found

  arguments = COSINES, LABELS, KEEP, drawn, target
  rows = P("data")
  sharded = jax.shard_map(
    functools.partial(every, axis_name="data"),
    mesh=jax.make_mesh(
      (4,),
      ("data",),
      axis_types=(AxisType.Auto,),
      devices=jax.devices()[:4],
    ),
    in_specs=rows,
    # The type says that the numbers are the same on all devices.
    out_specs=(P(), rows),
  )
  numbers, found = jit(sharded)(*arguments)
  expected = jit(every)(*arguments)
  np.testing.assert_allclose(numbers, expected[0], rtol=1e-6)
  np.testing.assert_array_equal(found, expected[1])


def test_nan_is_no_large_cosine():
  """A median passes over NaN, and a sort puts it last."""
  cosines = COSINES.copy()
  cosines[2, 0] = np.nan
  for background in ("median_row", "median", "mean"):
    for label in (0, 1):
      labels = np.full(8, label)
      pair = margins.adaptive(cosines, labels, background=background)
      assert np.isnan(pair).all()
    pair = margins.adaptive(
      cosines, labels, background=background, where=np.arange(8) != 2
    )
    assert np.isfinite(pair).all()
  target = np.array([np.nan, 0.5, 0.1], F32)
  found = margins.ranked(np.array([0.1, 0.5, 0.9], F32), target)
  np.testing.assert_array_equal(np.isnan(found), [True, False, False])


def test_logits_have_no_adaptive_margin():
  logits = COSINES.copy()
  logits[2, 1] = 3.0
  labels = np.full(8, 1)
  with pytest.raises(ValueError, match=r"got 3.*heads\.cosine_logits"):
    margins.adaptive(logits, labels)
  assert np.isnan(jit(margins.adaptive)(logits, labels)).all()
  kept = np.arange(8) != 2
  assert np.isfinite(margins.adaptive(logits, labels, where=kept)).all()


def test_the_shape_of_draws_is_a_tuple():
  with pytest.raises(TypeError, match=r"shape must be a tuple.*Pass \(3,\)"):
    margins.elastic(jax.random.key(0), 3, mean=0.5, stddev=0.1)
