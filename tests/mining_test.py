# SPDX-License-Identifier: Apache-2.0
"""Balanced clusters, batches made of them, and difficult negatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import contract

from squentropy_jax.retrieval import _bisection, mining

KEY = jax.random.key(0)
FEATURES = np.random.default_rng(0).normal(size=(43, 3)).astype(np.float32)
LIMIT = 2 * 2**30


def _spread(features, clusters):
  """The sum of squared distances to the mean of the cluster."""
  parts = [features[clusters == c] for c in np.unique(clusters)]
  return sum(np.square(x - x.mean(0)).sum() for x in parts)


@functools.cache
def _clusters(num_clusters, num_iters=10):
  return contract.jit(
    functools.partial(
      mining.balanced_clusters, num_clusters=num_clusters, num_iters=num_iters
    )
  )


@pytest.mark.parametrize("num_clusters", [1, 2, 3, 7, 43])
def test_sizes_differ_by_at_most_one(num_clusters):
  for features in (FEATURES, np.zeros_like(FEATURES)):
    found = np.asarray(_clusters(num_clusters)(KEY, features))
    assert found.dtype == np.int32
    assert found.shape == (43,)
    sizes = np.bincount(found, minlength=num_clusters)
    assert len(sizes) == num_clusters
    assert sizes.max() - sizes.min() <= 1


def test_groups_are_found():
  # Four groups in two pairs, at any scale that float32 has, in any order.
  rng = np.random.default_rng(2)
  group = rng.permutation(np.repeat(np.arange(4), 10))
  centres = np.array([[0, 0], [0, 4], [40, 0], [40, 4]])
  points = centres[group] + rng.uniform(-0.5, 0.5, (40, 2))
  for scale in (1.0, 1e-30, 1e30):
    for seed in range(3):
      key = jax.random.key(seed)
      found = _clusters(4)(key, np.float32(points * scale))
      pairs = set(zip(group.tolist(), np.asarray(found).tolist(), strict=True))
      assert len(pairs) == 4, (scale, seed)
      # Neighbours have neighbouring ids.
      place = dict(pairs)
      assert {place[0] // 2, place[1] // 2} != {place[2] // 2, place[3] // 2}
      assert place[0] // 2 == place[1] // 2


def test_more_iterations_are_never_worse():
  points = np.random.default_rng(5).uniform(size=(43, 2)).astype(np.float32)
  spread = [
    _spread(points, np.asarray(_clusters(2, n)(KEY, points)))
    for n in (1, 2, 3, 8)
  ]
  assert spread[0] > spread[-1]
  assert all(np.diff(spread) <= 1e-5), spread


def test_clusters_are_much_better_than_random_ones():
  found = np.asarray(_clusters(7)(KEY, FEATURES))
  random = np.random.default_rng(0).permutation(found)
  assert _spread(FEATURES, found) < 0.5 * _spread(FEATURES, random)


def test_blocks_of_rows_change_nothing(monkeypatch):
  # Sums of small integers are exact in any order.
  exact = np.round(FEATURES * 8)
  want = _clusters(3)(KEY, exact)
  monkeypatch.setattr(_bisection, "_BLOCK_SIZE", 30)
  in_blocks = functools.partial(
    _bisection.bisect_rows.__wrapped__, num_clusters=3, num_iters=10
  )
  np.testing.assert_array_equal(contract.jit(in_blocks)(KEY, exact), want)


def test_narrow_features_and_keys():
  narrow = jnp.bfloat16(FEATURES)
  wide = np.asarray(narrow.astype(jnp.float32))
  got = _clusters(3)(KEY, narrow)
  np.testing.assert_array_equal(got, _clusters(3)(KEY, wide))
  again = _clusters(3)(jax.random.key(0), wide)
  np.testing.assert_array_equal(got, again)
  others = [_clusters(3)(jax.random.key(i), wide) for i in range(1, 5)]
  assert any((np.asarray(x) != got).any() for x in others)


def test_features_that_are_not_finite():
  for bad in (np.nan, np.inf):
    features = FEATURES.copy()
    features[17, 1] = bad
    with pytest.raises(ValueError, match=r"features must be finite.* row 17"):
      mining.balanced_clusters(KEY, features, 3)
    np.testing.assert_array_equal(_clusters(3)(KEY, features), -1)


# Batches.


def _check_batches(ids, clusters, batch_size):
  n = len(clusters)
  assert ids.shape == (-(-n // batch_size), batch_size)
  flat = ids.ravel()
  np.testing.assert_array_equal(np.sort(flat[:n]), np.arange(n))
  np.testing.assert_array_equal(flat[n:], -1)
  changes = 1 + np.count_nonzero(np.diff(clusters[flat[:n]]))
  assert changes == len(np.unique(clusters)), "a cluster is interrupted"


def test_batches_hold_every_id_once_and_keep_clusters_together():
  clusters = np.random.default_rng(0).integers(0, 9, 43) * 1000
  for batch_size in (1, 5, 43, 64):
    ids = np.asarray(mining.cluster_batches(KEY, clusters, batch_size))
    assert ids.dtype == np.int32
    _check_batches(ids, clusters, batch_size)


def test_batches_are_random():
  clusters = np.repeat(np.arange(3), 2)
  draw = contract.jit(
    jax.vmap(lambda key: mining.cluster_batches(key, clusters, 6)[0])
  )
  ids = np.asarray(draw(jax.random.split(KEY, 2400)))
  # Six orders of clusters times two orders inside each: 48, 50 times each.
  orders, counts = np.unique(ids, axis=0, return_counts=True)
  assert len(orders) == 48
  assert np.abs(counts - 50).max() < 35


def test_clusters_of_one_are_a_random_order():
  ids = np.asarray(mining.cluster_batches(KEY, np.arange(43), 5))
  _check_batches(ids, np.arange(43), 5)
  assert (np.diff(ids.ravel()[:43]) != 1).sum() > 35


def test_traced_clusters_below_zero_are_left_out():
  clusters = np.array([3, -1, 3, 0, -7, 0])
  draw = jax.jit(lambda c: mining.cluster_batches(KEY, c, 4))
  ids = np.asarray(draw(clusters))
  np.testing.assert_array_equal(np.sort(ids[0]), [0, 2, 3, 5])
  np.testing.assert_array_equal(ids[1], -1)
  none = mining.cluster_batches(KEY, np.zeros(0, np.int32), 4)
  assert none.shape == (0, 4)


# Negatives.

LABELS = np.array([0] * 6 + [1] * 6 + [2] * 6)
PREDICTIONS = LABELS.copy()
PREDICTIONS[[1, 2]] = 1
PREDICTIONS[[6, 7, 12]] = 0
# Examples of another class that were predicted as class 0.
CONFUSED = [6, 7, 12]
MISTAKEN = np.arange(6, 12)


@functools.cache
def _slots(num_slots):
  return contract.jit(
    functools.partial(mining.hard_negative_slots, num_slots=num_slots)
  )


def test_pools_have_their_probabilities():
  anchors = np.repeat([0, 1], 4000)
  ids = np.asarray(_slots(1)(KEY, LABELS, PREDICTIONS, anchors))
  assert ids.dtype == np.int32
  assert (LABELS[ids] != 0).all()
  count = functools.partial(np.bincount, minlength=18)
  correct, wrong = (count(x.ravel()) / 4000 for x in np.split(ids, 2))
  uniform = np.where(LABELS == 0, 0, 1 / 12)
  confused = np.isin(np.arange(18), CONFUSED) / 3
  mistaken = np.isin(np.arange(18), MISTAKEN) / 6
  # Five standard deviations of a share of 0.2 in 4000 draws.
  close = functools.partial(np.testing.assert_allclose, atol=0.032, rtol=0)
  close(correct, 0.5 * confused + 0.5 * uniform)
  close(wrong, 0.33 * confused + 0.335 * mistaken + 0.335 * uniform)


def test_negatives_are_distinct_while_there_are_others():
  anchors = np.repeat(np.arange(18), 8)
  ids = np.asarray(_slots(12)(KEY, LABELS, PREDICTIONS, anchors))
  for anchor, row in zip(anchors, ids, strict=True):
    others = np.flatnonzero(LABELS[anchor] != LABELS)
    np.testing.assert_array_equal(np.sort(row), others)
  more = np.asarray(_slots(15)(KEY, LABELS, PREDICTIONS, anchors))
  for anchor, row in zip(anchors, more, strict=True):
    others = np.flatnonzero(LABELS[anchor] != LABELS)
    np.testing.assert_array_equal(np.unique(row), others)


def test_every_slot_is_drawn_alike():
  # The pool of confused examples is not used up by two slots.
  anchors = np.zeros(6000, np.int32)
  ids = np.asarray(_slots(2)(KEY, LABELS, PREDICTIONS, anchors))
  assert (ids[:, 0] != ids[:, 1]).all()
  first, second = (np.isin(x, CONFUSED).mean() for x in ids.T)
  np.testing.assert_allclose(first, 0.5 + 0.5 * 3 / 12, atol=0.032)
  # After a confused one, two of three and of eleven are left.
  again = 0.5 + 0.5 * 2 / 11
  new = 0.5 + 0.5 * 3 / 11
  np.testing.assert_allclose(
    second, first * again + (1 - first) * new, atol=0.032
  )


def test_empty_pools_give_random_others():
  # No example was predicted as class 2 or 7, which has no examples.
  predictions = np.full(18, 7)
  anchors = np.repeat([12], 3000)
  ids = np.asarray(_slots(1)(KEY, LABELS, predictions, anchors))
  share = np.bincount(ids.ravel(), minlength=18) / 3000
  np.testing.assert_allclose(share, (LABELS != 2) / 12, atol=0.03)


def test_no_other_class_and_invalid_values():
  ids = mining.hard_negative_slots(KEY, LABELS * 0, PREDICTIONS, [3], 1)
  np.testing.assert_array_equal(ids, [[-1]])
  labels, predictions = LABELS.copy(), PREDICTIONS.copy()
  labels[[6, 12]] = -1
  predictions[[0, 6]] = -1
  anchors = np.array([0, 1, 6, 18, -1])
  ids = np.asarray(_slots(15)(KEY, labels, predictions, anchors))
  others = np.setdiff1d(np.arange(6, 18), [6, 12])
  for row in ids[:2]:
    np.testing.assert_array_equal(np.unique(row), others)
  np.testing.assert_array_equal(ids[2:], -1)
  none = _slots(15)(KEY, labels, predictions, np.zeros(0, np.int32))
  assert none.shape == (0, 15)


# All of them.


def _memory(f, *arguments):
  found = jax.jit(f).lower(*arguments).compile().memory_analysis()
  return (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    + found.temp_size_in_bytes
  )


@pytest.mark.parametrize("num_clusters", [1000, 2**14])
def test_clusters_of_a_million_rows_fit_into_memory(num_clusters):
  features = jax.ShapeDtypeStruct((10**6, 128), jnp.float32)
  used = _memory(
    lambda x: mining.balanced_clusters(KEY, x, num_clusters), features
  )
  # The features take 0.48 GiB; the centroids and one block are small.
  assert used < LIMIT / 3


def test_batches_and_negatives_of_a_million_rows_fit_into_memory():
  ids = jax.ShapeDtypeStruct((10**6,), jnp.int32)
  used = _memory(lambda c: mining.cluster_batches(KEY, c, 1600), ids)
  assert used < LIMIT / 32
  used = _memory(
    lambda y, p, a: mining.hard_negative_slots(KEY, y, p, a, 6), ids, ids, ids
  )
  assert used < LIMIT / 8


def test_all_run_on_the_rows_of_a_device():
  mesh = jax.make_mesh(
    (2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  spec = jax.P("data")

  @contract.jit
  @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
  def all_of_them(features, labels):
    clusters = mining.balanced_clusters(KEY, features, 4, num_iters=2)
    batches = mining.cluster_batches(KEY, clusters, 5)
    slots = mining.hard_negative_slots(KEY, labels, clusters, clusters, 2)
    return clusters, batches, slots

  labels = np.tile([0, 1], 20)
  clusters, batches, _ = all_of_them(FEATURES[:40], labels)
  np.testing.assert_array_equal(np.bincount(clusters), 10)
  for part in (slice(0, 20), slice(20, 40)):
    rows = np.asarray(batches)[part.start // 5 : part.stop // 5]
    _check_batches(rows, np.asarray(clusters)[part], 5)


def test_errors_name_the_argument():
  clusters = functools.partial(mining.balanced_clusters, KEY)
  with pytest.raises(TypeError, match="key must be one random key"):
    mining.balanced_clusters(3, FEATURES, 2)
  with pytest.raises(TypeError, match="features must be floating point"):
    clusters(LABELS[:, None], 2)
  with pytest.raises(ValueError, match=r"features .* got \(43,\)"):
    clusters(FEATURES[:, 0], 2)
  with pytest.raises(ValueError, match=r"num_clusters must be at most .* 43"):
    clusters(FEATURES, 44)
  with pytest.raises(ValueError, match="num_clusters must be in"):
    clusters(FEATURES, 0)
  with pytest.raises(TypeError, match="num_clusters must be one int"):
    clusters(FEATURES, 2.0)
  with pytest.raises(ValueError, match="num_iters must be in"):
    clusters(FEATURES, 2, num_iters=0)
  batches = functools.partial(mining.cluster_batches, KEY)
  with pytest.raises(ValueError, match=r"assignments\[1\] = -1 is outside"):
    batches(np.array([0, -1]), 2)
  with pytest.raises(TypeError, match="assignments must be integers"):
    batches(np.ones(3), 2)
  with pytest.raises(ValueError, match="batch_size must be in"):
    batches(np.array([0, 1]), 0)
  slots = functools.partial(mining.hard_negative_slots, KEY)
  with pytest.raises(ValueError, match=r"anchors\[1\] = 18 .* \[0, 18\)"):
    slots(LABELS, PREDICTIONS, [0, 18], 2)
  with pytest.raises(ValueError, match=r"predictions .* \(18,\), got \(3,\)"):
    slots(LABELS, PREDICTIONS[:3], [0], 2)
  with pytest.raises(ValueError, match=r"labels\[0\] = -100"):
    slots(np.array([-100, 1]), np.array([0, 1]), [0], 2)
  with pytest.raises(ValueError, match="labels must have at least one"):
    slots(LABELS[:0], PREDICTIONS[:0], LABELS[:0], 2)
  with pytest.raises(ValueError, match="num_slots must be in"):
    slots(LABELS, PREDICTIONS, [0], 0)
