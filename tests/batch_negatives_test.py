# SPDX-License-Identifier: Apache-2.0
"""The negative pairs of a batch: values, fences, gradients and devices."""

import functools

import jax
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
import numpy as np
import pytest
from support import contract

from squentropy_jax import losses, retrieval

F32 = np.finfo(np.float32).eps
RNG = np.random.default_rng(11)
FEATURES = RNG.normal(size=(9, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, 9)
KEEP = np.arange(9) != 4
batch_negatives = retrieval.batch_negatives
# As one program, because each operation is compiled outside jit.
jitted = contract.jit(batch_negatives, static_argnames="axis_name")


def reference(features, labels, whisker=1.5, keep=None):
  """Similarities and mask of the pairs i < j, one at a time."""
  x = np.float64(features)
  x = x / np.linalg.norm(x, axis=-1, keepdims=True)
  pairs = [(i, j) for i in range(len(x)) for j in range(i + 1, len(x))]
  kept = np.ones(len(x), bool) if keep is None else keep
  valid = [labels[i] != labels[j] and kept[i] and kept[j] for i, j in pairs]
  every = np.array([x[i] @ x[j] for i, j in pairs])
  v = np.sort(every[valid])
  if not v.size:
    return np.zeros(len(pairs)), np.zeros(len(pairs), bool)
  low, high = v[int(0.25 * v.size)], v[int(0.75 * v.size)]
  reach = whisker * (high - low)
  mask = valid & (low - reach <= every) & (every <= high + reach)
  return np.where(mask, every, 0), mask


def close(found, expected):
  np.testing.assert_array_equal(found[1], expected[1])
  np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=8 * F32)


@pytest.mark.x64
def test_worked_numbers():
  # Only the first example has another label: its cosines are the negatives.
  cosines = np.array([-0.9, -0.1, 0, 0.05, 0.1, 0.15, 0.2, 0.95])
  others = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=-1)
  features = np.concatenate([[[2.0, 0.0]], 3 * others])
  labels = np.array([0] + [1] * 8)
  values, mask = jitted(features, labels)
  np.testing.assert_array_equal(mask[:8], (cosines > -0.3) & (cosines < 0.5))
  np.testing.assert_allclose(values[mask], cosines[1:7], atol=1e-15)
  assert mask.sum() == 6
  # The loss of the card: class cosines .5, .3, -.2, CosFace, label 0.
  row = functools.partial(
    losses.unpg, np.array([0.5, 0.3, -0.2]), 0, margin=0.35, scale=16.0
  )
  np.testing.assert_allclose(row((values, mask)), 2.773380549108, atol=1e-10)
  nothing = jitted(features, labels, whisker=-np.inf)
  np.testing.assert_allclose(row(nothing), 2.487143666163, atol=1e-10)


@pytest.mark.parametrize("whisker", [1.5, 0.3, 0.0, -0.4, -2.0])
@pytest.mark.parametrize("keep", [None, KEEP], ids=["all", "masked"])
def test_pairs_are_those_of_the_definition(whisker, keep):
  found = jitted(FEATURES, LABELS, whisker=np.float32(whisker), where=keep)
  close(found, reference(FEATURES, LABELS, whisker, keep))
  assert found[0].shape == found[1].shape == (36,)


def test_limits():
  pairs = [(i, j) for i in range(9) for j in range(i + 1, 9)]
  valid = np.array([LABELS[i] != LABELS[j] for i, j in pairs])
  everything = jitted(FEATURES, LABELS, whisker=np.float32(np.inf))
  np.testing.assert_array_equal(everything[1], valid)
  nothing = jitted(FEATURES, LABELS, whisker=np.float32(-np.inf))
  assert not nothing[1].any()
  # Equal similarities have quartiles of distance 0.
  equal = np.ones_like(FEATURES)
  for whisker in (1.5, np.inf):
    found = jitted(equal, LABELS, whisker=np.float32(whisker))
    np.testing.assert_array_equal(found[1], valid)
  one_class = jitted(FEATURES, np.zeros(9, int))
  assert not one_class[1].any()
  np.testing.assert_array_equal(one_class[0], 0)
  for count in (0, 1):
    values, mask = batch_negatives(FEATURES[:count], LABELS[:count])
    assert values.shape == mask.shape == (0,)


@pytest.mark.x64
def test_the_gradient_flows_into_both_features():
  x = np.float64(FEATURES)
  weights = RNG.normal(size=36)

  def total(x):
    values, _ = batch_negatives(x, LABELS, where=KEEP)
    return (values * weights).sum()

  check_grads(total, (x,), order=1, modes=["rev"])
  _, mask = jitted(x, LABELS, where=KEEP)
  pairs = np.array([(i, j) for i in range(9) for j in range(i + 1, 9)])
  met = np.isin(np.arange(9), pairs[np.asarray(mask)])
  gradient = np.asarray(jax.grad(total)(x))
  np.testing.assert_array_equal((gradient != 0).any(-1), met)
  # The size of a feature does not matter.
  np.testing.assert_allclose((gradient * x).sum(-1), 0, atol=1e-12)


def test_dropped_and_invalid_examples():
  def total(x, keep):
    values, mask = batch_negatives(x, LABELS, where=keep)
    return values.sum(), mask

  gradient = contract.jit(jax.value_and_grad(total, has_aux=True))
  lost = np.where(KEEP[:, None], FEATURES, np.float32(np.nan))
  found, expected = gradient(lost, KEEP), gradient(FEATURES, KEEP)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(one, other)
  np.testing.assert_array_equal(found[1][4], 0)
  # A kept invalid example is not left out by a comparison.
  (value, mask), _ = gradient(lost, np.ones(9, bool))
  assert np.isnan(value)
  assert mask.sum() > expected[0][1].sum()
  zero = np.where(KEEP[:, None], FEATURES, np.float32(0))
  (value, _), by_feature = gradient(zero, np.ones(9, bool))
  assert np.isfinite(value)
  np.testing.assert_array_equal(by_feature[4], 0)
  big = jitted(FEATURES * np.float32(1e30), LABELS)
  close(big, reference(FEATURES, LABELS))


def test_a_mesh_of_4_is_as_one_device():
  features = RNG.normal(size=(12, 4)).astype(np.float32)
  labels = RNG.integers(0, 3, 12).astype(np.int32)
  keep = np.arange(12) != 5
  mesh = jax.make_mesh(
    (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  weights = RNG.normal(size=66).astype(np.float32)

  def rows(x, labels, keep, axis_name):
    """A loss of each row that reads all pairs, as UNPG does."""
    values, mask = batch_negatives(x, labels, where=keep, axis_name=axis_name)
    extra = (values * weights).sum()
    return x.sum(-1) ** 2 * extra, values, mask

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P("data"),) * 3,
    out_specs=(P(), P("data"), P("data")),
  )
  def sharded(x, labels, keep):
    losses, values, mask = rows(x, labels, keep, "data")
    return jax.lax.psum(losses.sum(), "data"), values[None], mask[None]

  def single(x, labels, keep):
    losses, values, mask = rows(x, labels, keep, None)
    return losses.sum(), values[None], mask[None]

  def gradient(function):
    def total(x):
      loss, *pairs = function(x, labels, keep)
      return loss, pairs

    return contract.jit(jax.value_and_grad(total, has_aux=True))(features)

  (many, (values, mask)), by_feature = gradient(sharded)
  (one, (value, marked)), expected = gradient(single)
  np.testing.assert_allclose(many, one, rtol=32 * F32)
  for k in range(4):  # Every device has all pairs.
    np.testing.assert_array_equal(mask[k], marked[0])
    np.testing.assert_allclose(values[k], value[0], atol=4 * F32)
  np.testing.assert_allclose(by_feature, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", ["data", ("data",), ["data"]])
def test_the_pairs_of_a_mesh_are_the_same_on_every_device(names):
  mesh = jax.make_mesh(
    (3,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharded = jax.shard_map(
    lambda *x: batch_negatives(*x[:2], where=x[2], axis_name=names),
    mesh=mesh,
    in_specs=P("data"),
    out_specs=P(),
  )
  arrays = FEATURES, np.int32(LABELS), KEEP
  if names != "data":  # Only the names are converted.
    jax.eval_shape(sharded, *arrays)
    return
  found = contract.jit(sharded)(*arrays)
  close(found, reference(FEATURES, LABELS, keep=KEEP))


def test_a_batch_of_too_many_pairs_is_refused():
  def shapes(count):
    return (
      jax.ShapeDtypeStruct((count, 2), np.float32),
      jax.ShapeDtypeStruct((count,), np.int32),
    )

  jax.eval_shape(batch_negatives, *shapes(2**16))
  with pytest.raises(ValueError, match=r"at most 65536 examples .*got 65537"):
    jax.eval_shape(batch_negatives, *shapes(2**16 + 1))


def test_bad_arguments_are_named():
  for name in (3, ["data", 3]):
    with pytest.raises(TypeError, match="axis_name must be None, a string or"):
      batch_negatives(FEATURES, LABELS, axis_name=name)
  with pytest.raises(ValueError, match=r"features must have the shape \[exam"):
    batch_negatives(FEATURES[None], LABELS)
  with pytest.raises(TypeError, match="labels must be integers of shape"):
    batch_negatives(FEATURES, LABELS.astype(np.float32))
  with pytest.raises(ValueError, match=r"labels must have the shape \(9,\)"):
    batch_negatives(FEATURES, LABELS[:5])
  with pytest.raises(ValueError, match=r"where must have the shape \(9,\)"):
    batch_negatives(FEATURES, LABELS, where=np.ones((9, 1), bool))
  with pytest.raises(TypeError, match="where must be boolean"):
    batch_negatives(FEATURES, LABELS, where=np.ones(9))
  with pytest.raises(ValueError, match="whisker must be in"):
    batch_negatives(FEATURES, LABELS, whisker=np.nan)
  with pytest.raises(ValueError, match="whisker must be a scalar"):
    batch_negatives(FEATURES, LABELS, whisker=np.ones(9, np.float32))
  if not jax.config.jax_enable_x64:
    with pytest.raises(ValueError, match="labels must fit in int32"):
      batch_negatives(FEATURES, LABELS + 2**32)
