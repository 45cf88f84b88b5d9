# SPDX-License-Identifier: Apache-2.0
"""Triplet losses of vectors and of local descriptors."""

import functools

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest
from support import contract

from squentropy_jax import retrieval

F32 = np.finfo(np.float32).eps
RNG = np.random.default_rng(8)
triplet = retrieval.triplet_margin
local = retrieval.local_descriptor_triplet


def vectors(shape, rng=RNG):
  return rng.normal(size=shape)


def triplet_reference(a, p, n, margin, keep):
  near = np.square(a - p).sum(-1)[..., None]
  far = np.square(a[..., None, :] - n).sum(-1)
  return np.where(
    keep, np.maximum(0, near - far + np.asarray(margin)[..., None]), 0
  ).sum(-1)


@pytest.mark.x64
def test_triplets_are_those_of_the_definition():
  a, p, n = vectors((2, 3, 4)), vectors((2, 3, 4)), vectors((2, 3, 5, 4))
  keep = RNG.random((2, 3, 5)) < 0.7
  keep[0, 0] = False
  margin = RNG.uniform(0, 3, (2, 3))
  expected = triplet_reference(a, p, n, margin, keep)
  found = triplet(a, p, n, margin=margin, where=keep)
  np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)
  # The mean over one negative of unit vectors: a margin of similarities.
  a, p, n = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, p, n))
  gap = (a[..., None, :] * n).sum(-1) - (a * p).sum(-1)[..., None]
  hinge = 2 * np.maximum(0, gap + 0.05)
  np.testing.assert_allclose(
    triplet(a, p, n), hinge.sum(-1), rtol=1e-12, atol=1e-13
  )
  check_grads(
    jax.jit(lambda *x: triplet(*x[:3], margin=x[3], where=keep).sum()),
    (a, p, n, margin),
    order=1,
    modes=["fwd", "rev"],
  )


def test_edges_of_triplets():
  a, p, n = (np.float32(vectors(s)) for s in ((3, 4), (3, 4), (3, 2, 4)))
  keep = np.array([[True, False], [False, False], [True, True]])
  lost = [
    np.where(keep.any(-1)[:, None], x, np.float32(np.nan)) for x in (a, p)
  ]
  dropped = np.where(keep[..., None], n, np.float32(np.nan))
  margin = np.float32([1, np.nan, 1])

  def total(a, p, n, margin):
    return triplet(a, p, n, margin=margin, where=keep).sum()

  gradient = jax.grad(total, (0, 1, 2, 3))
  clean = gradient(a, p, n, np.ones(3, np.float32))
  found = gradient(*lost, dropped, margin)
  for one, other in zip(found, clean, strict=True):
    np.testing.assert_allclose(one, other, rtol=8 * F32, atol=1e-6)
  np.testing.assert_array_equal(found[0][1], 0)
  np.testing.assert_array_equal(found[2][~keep], 0)
  # The margin, which is met exactly, has the derivative 0.
  same = np.ones((1, 2), np.float32)
  at = jax.grad(lambda a: triplet(a, same, same[None], margin=0.0).sum())(same)
  np.testing.assert_array_equal(at, 0)
  # No negative at all, and one that is invalid.
  np.testing.assert_array_equal(triplet(a, p, n[:, :0]), 0)
  assert np.isnan(triplet(a, p, n * np.float32(np.nan))).all()
  narrow = triplet(*(jnp.asarray(x, jnp.bfloat16) for x in (a, p, n)))
  assert narrow.dtype == np.float32


def test_bad_triplets_are_named():
  a, n = np.zeros((3, 4), np.float32), np.zeros((3, 2, 4), np.float32)
  with pytest.raises(ValueError, match=r"positive must have the shape of anch"):
    triplet(a, a[:1], n)
  with pytest.raises(ValueError, match=r"negatives must have the shape"):
    triplet(a, a, a)
  with pytest.raises(ValueError, match=r"where must have the shape \(3, 2\)"):
    triplet(a, a, n, where=np.ones(3, bool))
  with pytest.raises(TypeError, match="where must be boolean"):
    triplet(a, a, n, where=np.ones((3, 2)))
  with pytest.raises(ValueError, match=r"anchor must be vectors of shape \[\."):
    triplet(np.float32(1), np.float32(1), n)
  with pytest.raises(ValueError, match="positive must have the shape of anc"):
    triplet(a, np.float32(1), n)
  with pytest.raises(ValueError, match=r"negatives must have the shape"):
    triplet(a, a, np.float32(1))
  with pytest.raises(TypeError, match="anchor must be floating"):
    triplet(np.zeros((3, 4), int), a, n)
  with pytest.raises(ValueError, match="margin must be in"):
    triplet(a, a, n, margin=-1.0)
  with pytest.raises(ValueError, match="margin must be a scalar or have"):
    triplet(a, a, n, margin=np.ones(2, np.float32))


# Local descriptors.


def local_reference(features, attention, margin=0.1, max_ratio=0.9):
  """One descriptor at a time; also the matches, pairs of places."""
  x = np.float64(features)
  x = x / np.linalg.norm(x, axis=-1, keepdims=True)
  anchor, positive, *others = x
  total, matches = 0.0, []
  for i, a in enumerate(anchor):
    distances = np.linalg.norm(positive - a, axis=-1)
    k = int(distances.argmin())
    back = np.linalg.norm(anchor - positive[k], axis=-1)
    second = np.delete(distances, k).min(initial=np.inf)
    more = (attention[1] > attention[1][k]).sum()
    if back.argmin() != i or distances[k] > max_ratio * second:
      continue
    if more >= len(anchor) / 2:
      continue
    matches.append((i, k))
    for image in others:
      far = np.square(image - a).sum(-1).min()
      total += max(0.0, distances[k] ** 2 - far + margin)
  return total, matches


def tuples(seed, shape=(4, 6, 3)):
  """Descriptors of a positive close to those of the anchor, in disorder."""
  rng = np.random.default_rng(seed)
  x = vectors(shape, rng)
  x[1] = (x[0] + 0.3 * vectors(shape[1:], rng))[rng.permutation(shape[1])]
  return x, rng.random(shape[:2])


@pytest.mark.x64
def test_local_descriptors_are_those_of_the_definition():
  loss = contract.jit(local)
  numbers = []
  for seed in range(8):
    x, attention = tuples(seed)
    for margin, ratio in ((0.1, 0.9), (1.0, 0.9), (1.0, 0.4), (1.0, 1.0)):
      expected, matches = local_reference(x, attention, margin, ratio)
      found = loss(x, attention, margin=margin, max_ratio=ratio)
      np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
      numbers.append(len(matches))
  assert len(set(numbers)) > 2
  # Only matched descriptors of the positive have a gradient.
  x, attention = tuples(1)
  gradient = jax.jit(jax.grad(functools.partial(local, margin=1.0)))(
    x, attention
  )
  _, matches = local_reference(x, attention, 1.0)
  assert matches
  moved = {i for i in range(6) if np.any(gradient[1][i])}
  assert moved == {k for _, k in matches}
  check_grads(
    jax.jit(lambda x: local(x, attention, margin=1.0)),
    (x,),
    order=1,
    modes=["rev"],
  )


def test_the_loss_of_matched_pairs_by_hand():
  anchor = [[1.0, 0.0], [0.0, 1.0]]
  positive = [[0.0, 2.0], [0.8, 0.6]]
  negative = [[0.6, 0.8], [-1.0, 0.0]]
  x = np.float32([anchor, positive, negative])
  # Squared distances 0.4 and 0 of the matches, 0.8 and 0.4 of the negatives.
  loss = functools.partial(local, x, margin=1.0)
  everywhere = np.zeros((3, 2), np.float32)
  np.testing.assert_allclose(loss(everywhere), 0.6 + 0.6, rtol=16 * F32)
  # Half of two descriptors: the one of more attention.
  first = np.float32([[0, 0], [1, 0], [0, 0]])
  np.testing.assert_allclose(loss(first), 0.6, rtol=16 * F32)
  # A ratio of sqrt(0.4 / 2) = 0.447 is too large for 0.4.
  np.testing.assert_allclose(
    loss(everywhere, max_ratio=0.4), 0.6, rtol=16 * F32
  )
  assert loss(everywhere, max_ratio=0.45) > 1


def test_edges_of_local_descriptors():
  x, attention = (np.float32(v) for v in tuples(3))
  value_and_gradient = contract.jit(jax.value_and_grad(local))
  # Nothing matches: the nearest descriptor is there twice.
  twice = x.copy()
  twice[0] = twice[1] = x[0, 0]
  zeros = np.zeros_like(x)
  for features in (twice, zeros):
    value, gradient = value_and_gradient(features, attention)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
  # One descriptor that is 0 changes no other.
  partly = x.copy()
  partly[2, 1] = 0
  value, gradient = value_and_gradient(partly, attention)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
  for place in ((0, 1), (1, 2), (3, 0)):
    bad = x.copy()
    bad[place] = np.nan
    assert np.isnan(local(bad, attention))
  # The size of descriptors does not matter.
  np.testing.assert_allclose(
    local(x * np.float32(1e25), attention, margin=1.0),
    local(x, attention, margin=1.0),
    rtol=64 * F32,
  )
  one = local(x[:, :1], attention[:, :1], margin=3.0)
  expected, matches = local_reference(x[:, :1], attention[:, :1], 3.0)
  assert len(matches) == 1
  np.testing.assert_allclose(one, expected, rtol=16 * F32)
  with pytest.raises(ValueError, match=r"features must have the shape \[T, L"):
    local(x[:2], attention[:2])
  with pytest.raises(ValueError, match=r"attention must have the shape"):
    local(x, attention[:2])
  with pytest.raises(ValueError, match="max_ratio must be in"):
    local(x, attention, max_ratio=-1.0)
