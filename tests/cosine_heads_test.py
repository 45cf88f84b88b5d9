# SPDX-License-Identifier: Apache-2.0
"""Heads on the unit sphere: normalised vectors, cosines, added classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.contract import jit

from squentropy_jax import heads

F32 = np.float32
EPS = np.finfo(F32).eps
RNG = np.random.default_rng(23)
FEATURES = RNG.normal(size=(2, 3, 4)).astype(F32)
KERNEL = RNG.normal(size=(4, 5)).astype(F32)


@pytest.mark.x64
def test_worked_numbers():
  kernel = np.array([[2.0, 0.0, -1.0], [0.0, 0.5, -1.0]])
  np.testing.assert_allclose(
    heads.cosine_logits([3.0, 4.0], kernel),
    [0.6, 0.8, -0.989949493661],
    atol=1e-11,
  )
  features = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
  np.testing.assert_allclose(
    heads.extend_classes(np.eye(2), features)[:, 2],
    [0.66436383883, 0.747409318684],
    atol=1e-11,
  )


def test_normalized_vectors_and_their_gradients():
  sizes = F32([1e-30, 1e-3, 1.0, 1e18, 3e38, 0.0])
  x = np.stack([sizes, sizes / 2, -sizes / 4], -1)

  @jit
  def both(x):
    unit, pull = jax.vjp(heads.normalize, x)
    return unit, pull(jnp.ones_like(x))[0]

  unit, gradient = both(x)
  direction = np.array([4.0, 2.0, -1.0]) / np.sqrt(21)
  np.testing.assert_allclose(unit[:-1], [direction] * 5, rtol=4 * EPS)
  across = np.ones(3) - direction.sum() * direction
  length = np.linalg.norm(np.float64(x[:4]), axis=-1)
  np.testing.assert_allclose(
    gradient[:4] * length[:, None], [across] * 4, rtol=1e-5
  )
  np.testing.assert_array_equal(unit[-1], 0)
  np.testing.assert_array_equal(gradient[-1], 0)
  assert np.isfinite(gradient).all()


def test_cosines_are_those_of_normalised_arguments():
  plain = np.einsum("abd,dk->abk", np.float64(FEATURES), np.float64(KERNEL))
  plain /= np.linalg.norm(FEATURES, axis=-1)[..., None]
  plain /= np.linalg.norm(KERNEL, axis=0)
  for kernel, axis in ((KERNEL, -1), (KERNEL.T, 0)):
    found = heads.cosine_logits(FEATURES, kernel, class_axis=axis)
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)
    # Sizes do not matter.
    scaled = heads.cosine_logits(1e-3 * FEATURES, 7 * kernel, class_axis=axis)
    np.testing.assert_allclose(scaled, found, rtol=1e-5, atol=1e-6)
    projected = heads.unit_columns(kernel, class_axis=axis)
    length = np.linalg.norm(projected, axis=0 if axis else 1)
    np.testing.assert_allclose(length, 1, rtol=4 * EPS)
  narrow = jnp.asarray(KERNEL, jnp.bfloat16)
  assert heads.unit_columns(narrow).dtype == narrow.dtype
  assert heads.cosine_logits(narrow.T, narrow).dtype == F32


def test_a_new_class_is_the_mean_direction_and_changes_no_other():
  unit = FEATURES / np.linalg.norm(FEATURES, axis=-1, keepdims=True)
  keep = np.array([[True, False, True], [True, True, False]])
  garbage = np.where(keep[..., None], FEATURES, F32(np.nan))
  expected = unit[keep].sum(0)
  expected /= np.linalg.norm(expected)
  for kernel, axis in ((KERNEL, 1), (KERNEL.T, 0)):
    found = heads.extend_classes(kernel, garbage, where=keep, class_axis=axis)
    found = np.moveaxis(np.asarray(found), axis, 1)
    np.testing.assert_array_equal(found[:, :-1], KERNEL)
    np.testing.assert_allclose(found[:, -1], expected, rtol=1e-5, atol=1e-6)
  # From no class at all, as many as wanted.
  one = heads.extend_classes(np.zeros((4, 0), F32), FEATURES[0])
  assert heads.extend_classes(one, FEATURES[1]).shape == (4, 2)


def test_features_that_cancel_have_no_direction():
  cancelling = np.concatenate([FEATURES[0], -3 * FEATURES[0]])
  nobody = np.zeros(6, bool)
  for where in (None, nobody):
    with pytest.raises(ValueError, match="must have a mean direction"):
      heads.extend_classes(KERNEL, cancelling, where=where)
    found = jax.jit(heads.extend_classes)(KERNEL, cancelling, where=where)
    np.testing.assert_array_equal(np.isnan(found).all(0), [0] * 5 + [1])


def test_arguments_that_do_not_fit():
  for call, error, message in (
    (lambda: heads.normalize(F32(1.0)), ValueError, "x must have an axis"),
    (lambda: heads.normalize(np.zeros(3, int)), TypeError, "x must be float"),
    (lambda: heads.normalize(np.zeros((3, 0))), ValueError, "length 1 or more"),
    (lambda: heads.unit_columns(FEATURES), ValueError, r"kernel must have"),
    (
      lambda: heads.unit_columns(KERNEL, class_axis=2),
      ValueError,
      "class_axis must be 0 or 1",
    ),
    (
      lambda: heads.cosine_logits(FEATURES, KERNEL.T),
      ValueError,
      r"features must have the width 5 .* pass class_axis=0",
    ),
    (
      lambda: heads.extend_classes(KERNEL, FEATURES, where=np.ones(2, bool)),
      ValueError,
      r"where must have the batch shape \(2, 3\)",
    ),
  ):
    with pytest.raises(error, match=message):
      call()
