# SPDX-License-Identifier: Apache-2.0
"""Every property that every binary loss of the catalogue must have."""

import functools

from cases import BINARY_CASES
import chex
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

EVERY = pytest.mark.parametrize("case", BINARY_CASES, ids=repr)
DEFINED = pytest.mark.parametrize(
  "case", [c for c in BINARY_CASES if c.reference], ids=repr
)
SOFT_LABELS = pytest.mark.parametrize(
  "case", [c for c in BINARY_CASES if c.soft_labels], ids=repr
)
F32 = np.float32
RNG = np.random.default_rng(20190706)
LOGITS = (RNG.normal(size=(2, 6)) * 2).astype(F32)
IDS = RNG.integers(0, 2, size=(2, 6)).astype(np.int32)
SOFT = RNG.random((2, 6)).astype(F32)


@functools.cache
def compiled(loss):
  return jax.jit(loss)


@functools.cache
def gradient(loss):
  def total(logits, labels, where=None):
    return loss(logits, labels, where=where).sum()

  return jax.jit(jax.grad(total))


@DEFINED
def test_value(case):
  for labels in (IDS, SOFT) if case.soft_labels else (IDS,):
    actual = compiled(case.loss)(LOGITS, labels)
    chex.assert_type(actual, jnp.float32)
    chex.assert_shape(actual, () if case.of_set else LOGITS.shape)
    expected = case.reference(np.float64(LOGITS), np.float64(labels))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.x64
@DEFINED
def test_value_and_derivatives_in_float64(case):
  labels = np.float64(SOFT if case.soft_labels else IDS)
  logits = np.float64(LOGITS)
  value = case.loss(logits, labels)
  chex.assert_type(value, jnp.float64)
  np.testing.assert_allclose(value, case.reference(logits, labels), rtol=1e-13)
  check_grads(jax.jit(lambda z: case.loss(z, labels)), (logits,), order=2)
  if case.soft_labels:
    check_grads(jax.jit(lambda y: case.loss(logits, y)), (labels,), order=1)


@EVERY
def test_eager_jitted_vmapped_and_lists_agree(case):
  expected = np.asarray(compiled(case.loss)(LOGITS, IDS))
  forms = [(LOGITS, IDS.astype(np.uint8)), (LOGITS.tolist(), IDS.tolist())]
  forms += [(LOGITS, IDS > 0), (LOGITS, (IDS > 0).tolist())]
  if case.soft_labels:
    forms.append((LOGITS, IDS.astype(F32)))
  for logits, labels in forms:
    actual = np.asarray(case.loss(logits, labels))
    np.testing.assert_array_max_ulp(actual, expected, 4)
  if not case.of_set:
    if case.reference is not None:
      mapped = jax.jit(jax.vmap(jax.vmap(case.loss)))(LOGITS, IDS)
      np.testing.assert_array_max_ulp(np.asarray(mapped), expected, 4)
    chex.assert_shape(case.loss(0.5, 1), ())
    chex.assert_shape(case.loss(LOGITS[:0], IDS[:0]), (0, 6))


@EVERY
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_logits_are_widened_first(case, dtype):
  narrow = jnp.asarray(LOGITS).astype(dtype)
  wide = narrow.astype(jnp.float32)
  np.testing.assert_array_equal(
    compiled(case.loss)(narrow, IDS), compiled(case.loss)(wide, IDS)
  )
  grads = gradient(case.loss)(narrow, IDS)
  chex.assert_type(grads, dtype)
  np.testing.assert_array_equal(
    grads.astype(jnp.float32),
    gradient(case.loss)(wide, IDS).astype(dtype).astype(jnp.float32),
  )


@EVERY
def test_dropped_entries_have_no_effect(case):
  keep = np.random.default_rng(20190706).random(LOGITS.shape) < 0.6
  logits = np.where(keep, LOGITS, F32(np.nan))
  labels = np.where(keep, IDS, -100)
  for loss in (case.loss, compiled(case.loss)):
    actual = np.asarray(loss(logits, labels, where=keep))
    if case.of_set:
      assert np.isfinite(actual)
    else:
      np.testing.assert_array_equal(actual[~keep], 0)
  grads = np.asarray(gradient(case.loss)(logits, labels, where=keep))
  np.testing.assert_array_equal(grads[~keep], 0)
  assert np.isfinite(grads).all()
  nothing = np.zeros_like(keep)
  actual = compiled(case.loss)(logits, labels, where=nothing)
  np.testing.assert_array_equal(actual, 0)
  grads = gradient(case.loss)(logits, labels, where=nothing)
  np.testing.assert_array_equal(grads, 0)


@SOFT_LABELS
def test_kept_entries_are_as_without_the_others(case):
  keep = np.random.default_rng(20190706).random(LOGITS.shape) < 0.6
  logits = np.where(keep, LOGITS, F32(np.nan))
  actual = np.asarray(compiled(case.loss)(logits, SOFT, where=keep))
  expected = compiled(case.loss)(LOGITS[keep], SOFT[keep])
  actual = actual if case.of_set else actual[keep]
  np.testing.assert_allclose(actual, expected, rtol=4e-6)
  np.testing.assert_allclose(
    gradient(case.loss)(logits, SOFT, where=keep)[keep],
    gradient(case.loss)(LOGITS[keep], SOFT[keep]),
    rtol=1e-5,
    atol=1e-7,
  )


@EVERY
def test_invalid_labels_raise_or_give_nan(case):
  for value in (2, -1, -100):
    labels = IDS.copy()
    labels[1, 2] = value
    with pytest.raises(
      ValueError, match=rf"labels\[1, 2\] = {value} is outside"
    ):
      case.loss(LOGITS, labels)
    bad = np.zeros_like(IDS, bool)
    bad[1, 2] = True
    loss = np.isnan(compiled(case.loss)(LOGITS, labels))
    grads = np.isnan(gradient(case.loss)(LOGITS, labels))
    if case.of_set:
      assert loss.all()
      assert grads[1, 2]
    else:
      np.testing.assert_array_equal(loss, bad)
      np.testing.assert_array_equal(grads, bad)


@EVERY
def test_arguments_that_do_not_fit_are_named(case):
  for arguments, error, message in (
    ((IDS, IDS), TypeError, "logits must be floating"),
    ((LOGITS, IDS * 1j), TypeError, "must be 0 or 1.*Pass labels == POSI"),
    ((LOGITS, IDS[0]), ValueError, r"shape \(2, 6\), got \(6,\)"),
    ((LOGITS, IDS[:, 0]), ValueError, "use a loss such as losses.cross_entr"),
    ((LOGITS[..., None], IDS), ValueError, r"Pass logits\[\.\.\., 0\]"),
    ((LOGITS, IDS[..., None]), ValueError, r"Pass labels\[\.\.\., 0\]"),
    ((LOGITS, 2 * IDS - 1), ValueError, r"labels \+ 1\) // 2"),
    ((LOGITS, IDS[:, None]), ValueError, r"got \(2, 1, 6\)"),
  ):
    with pytest.raises(error, match=message):
      case.loss(*arguments)
  with pytest.raises(TypeError, match="where must be boolean"):
    case.loss(LOGITS, IDS, where=np.ones((2, 6), F32))
  with pytest.raises(ValueError, match=r"where must have .*got \(6,\)"):
    case.loss(LOGITS, IDS, where=np.ones(6, bool))


@EVERY
def test_extreme_logits_have_a_finite_gradient(case):
  logits = np.array([1e4, -1e4, 1e4, -1e4, 0, 0, 100, -100], F32)
  labels = np.array([0, 0, 1, 1, 0, 1, 0, 1])
  for z, y in ((logits, labels), (logits[:1], labels[:1])):
    chex.assert_tree_all_finite(compiled(case.loss)(z, y))
    chex.assert_tree_all_finite(gradient(case.loss)(z, y))


@EVERY
def test_nan_is_not_hidden(case):
  logits = LOGITS.copy()
  logits[0, 0] = np.nan
  assert np.isnan(compiled(case.loss)(logits, IDS)).any()
