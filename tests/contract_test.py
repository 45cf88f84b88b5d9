# SPDX-License-Identifier: Apache-2.0
"""Every property that every loss of the catalogue must have."""

import functools

from absl.testing import parameterized
from cases import CASES, OTHERS
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import RowStats

EVERY = pytest.mark.parametrize("case", CASES, ids=repr)
ROW = pytest.mark.parametrize(
  "case", [c for c in CASES if hasattr(c.loss, "row")], ids=repr
)
F32 = np.float32
RNG = np.random.default_rng(20230207)

# Six rows and five classes: small, ragged, and larger than any corner of them.
LOGITS = RNG.normal(size=(6, 5)).astype(F32) * 2
LABELS = np.array([0, 4, 2, 3, 1, 2], np.int32)


@functools.cache
def compiled(loss):
  """One jitted loss per case, shared by the tests."""
  return jax.jit(loss, static_argnames="axis")


@functools.cache
def gradient(loss):
  def total(logits, labels, where=None, **hyperparameters):
    return loss(logits, labels, where=where, **hyperparameters).sum()

  return jax.jit(jax.grad(total))


def reference(case, logits, labels, **hyperparameters):
  """The reference over a batch, classes of logit ``-inf`` taken away."""
  values = []
  for row, label in zip(np.float64(logits), labels, strict=True):
    possible = row > -np.inf
    values.append(
      case.reference(
        row[possible], int(possible[:label].sum()), **hyperparameters
      )
    )
  return np.array(values)


def close(actual, expected, ulps=64, scale=None):
  """Equal up to roundings of the largest term."""
  size = np.abs(expected) if scale is None else scale
  tolerance = ulps * np.finfo(F32).eps * np.maximum(size, 1e-30)
  np.testing.assert_array_less(
    np.abs(np.float64(actual) - expected), tolerance + 1e-37
  )


# Value.


@EVERY
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_value(case, scale):
  logits = LOGITS * F32(scale)
  for hyper in ({}, case.hyperparameters):
    actual = compiled(case.loss)(logits, LABELS, **hyper)
    close(actual, reference(case, logits, LABELS, **hyper), ulps=128)


@EVERY
def test_gradient_is_the_slope_of_the_reference(case):
  step = 1e-5
  for hyper in ({}, case.hyperparameters):
    slope = np.empty_like(LOGITS, np.float64)
    for k in range(5):
      up, down = np.float64(LOGITS), np.float64(LOGITS)
      up[:, k] += step
      down[:, k] -= step
      slope[:, k] = (
        reference(case, up, LABELS, **hyper)
        - reference(case, down, LABELS, **hyper)
      ) / (2 * step)
    actual = gradient(case.loss)(LOGITS, LABELS, **hyper)
    np.testing.assert_allclose(
      actual, slope, rtol=1e-5, atol=1e-6 * np.abs(slope).max()
    )


@EVERY
def test_hyperparameters_may_be_traced_and_differentiated(case):
  for name, value in case.hyperparameters.items():

    def total(x, name=name):
      return case.loss(LOGITS, LABELS, **{name: x}).sum()

    actual = jax.jit(jax.grad(total))(value)
    step = 1e-6 * value
    slope = (
      reference(case, LOGITS, LABELS, **{name: value + step}).sum()
      - reference(case, LOGITS, LABELS, **{name: value - step}).sum()
    ) / (2 * step)
    np.testing.assert_allclose(actual, slope, rtol=1e-4)


@EVERY
def test_a_hyperparameter_of_rank_one_is_refused(case):
  for name, value in case.hyperparameters.items():
    with pytest.raises(ValueError, match=rf"{name} must be a scalar.*\(6,\)"):
      case.loss(LOGITS, LABELS, **{name: jnp.full(6, value)})


@EVERY
def test_order_of_classes_does_not_matter(case):
  order = np.array([3, 0, 4, 1, 2])
  actual = compiled(case.loss)(LOGITS[:, order], np.argsort(order)[LABELS])
  np.testing.assert_allclose(
    actual, compiled(case.loss)(LOGITS, LABELS), rtol=1e-5
  )


@EVERY
@pytest.mark.parametrize("fill", [1e4, -1e4, 0.0])
def test_extreme_logits_keep_a_finite_gradient(case, fill):
  ties = np.full((5, 5), fill, F32)
  spread = np.where(np.eye(5) > 0, F32(fill), -ties)
  for logits in (ties, spread):
    labels = np.array([0, 1, 2, 0, 0], np.int32)
    chex.assert_tree_all_finite(compiled(case.loss)(logits, labels))
    chex.assert_tree_all_finite(gradient(case.loss)(logits, labels))


# Shapes and dtypes.


class VariantsTest(chex.TestCase):
  @chex.variants(
    with_jit=True, without_jit=True, with_device=True, without_device=True
  )
  @parameterized.named_parameters((c.name, c) for c in CASES)
  def test_same_under_every_variant(self, case):
    loss = self.variant(lambda logits, labels: case.loss(logits, labels))
    actual = loss(LOGITS, LABELS)
    chex.assert_shape(actual, (6,))
    chex.assert_type(actual, jnp.float32)
    expected = compiled(case.loss)(LOGITS, LABELS)
    np.testing.assert_array_max_ulp(np.asarray(actual), np.asarray(expected), 2)

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters((c.name, c) for c in CASES)
  def test_bad_labels(self, case):
    loss = self.variant(lambda logits, labels: case.loss(logits, labels))
    labels = np.array([0, 5, -1, -100, 1, 2])
    jitted = "with_jit" in self.id() and "without_jit" not in self.id()
    if not jitted:
      with pytest.raises(ValueError, match=r"labels\[1\] = 5 is outside"):
        loss(LOGITS, labels)
      return
    bad = np.array([False, True, True, True, False, False])
    np.testing.assert_array_equal(np.isnan(loss(LOGITS, labels)), bad)


@EVERY
def test_batch_shapes_and_vmap(case):
  loss = compiled(case.loss)
  flat = loss(LOGITS, LABELS)
  deep = loss(LOGITS.reshape(1, 2, 3, 5), LABELS.reshape(1, 2, 3))
  chex.assert_shape(deep, (1, 2, 3))
  np.testing.assert_array_max_ulp(np.asarray(deep).ravel(), np.asarray(flat), 2)
  chex.assert_shape(loss(LOGITS[0], LABELS[0]), ())
  chex.assert_shape(loss(LOGITS[:0], LABELS[:0]), (0,))
  mapped = jax.jit(jax.vmap(case.loss))(LOGITS, LABELS)
  np.testing.assert_array_max_ulp(np.asarray(mapped), np.asarray(flat), 2)
  slopes = jax.jit(jax.vmap(jax.grad(case.loss)))(LOGITS, LABELS)
  np.testing.assert_allclose(
    slopes, gradient(case.loss)(LOGITS, LABELS), rtol=1e-5, atol=1e-6
  )


@EVERY
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_narrow_logits_are_widened_first(case, dtype):
  narrow = jnp.asarray(LOGITS).astype(dtype)
  wide = narrow.astype(jnp.float32)
  actual = compiled(case.loss)(narrow, LABELS)
  chex.assert_type(actual, jnp.float32)
  # Two programs, so a product and a sum may be rounded once or twice.
  expected = np.asarray(compiled(case.loss)(wide, LABELS))
  np.testing.assert_array_max_ulp(np.asarray(actual), expected, 2)
  slope = gradient(case.loss)(narrow, LABELS)
  chex.assert_type(slope, dtype)
  np.testing.assert_array_equal(
    slope.astype(jnp.float32),
    gradient(case.loss)(wide, LABELS).astype(dtype).astype(jnp.float32),
  )


@EVERY
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
def test_label_dtypes(case, dtype):
  np.testing.assert_array_equal(
    compiled(case.loss)(LOGITS, LABELS.astype(dtype)),
    compiled(case.loss)(LOGITS, LABELS),
  )


@EVERY
def test_lists_scalars_and_views(case):
  expected = compiled(case.loss)(LOGITS, LABELS)
  for logits, labels in (
    (LOGITS.tolist(), LABELS.tolist()),
    (np.asfortranarray(LOGITS), LABELS.astype(np.int64)),
    (np.repeat(LOGITS, 2, axis=1)[:, ::2], LABELS),
  ):
    np.testing.assert_array_max_ulp(
      np.asarray(case.loss(logits, labels)), np.asarray(expected), 2
    )
  value = case.loss(LOGITS[0].tolist(), 0)
  assert not value.weak_type
  close(value, reference(case, LOGITS[:1], [0])[0], ulps=128)


@EVERY
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_axis_is_the_class_axis(case, axis):
  logits = np.moveaxis(LOGITS.reshape(2, 3, 5), -1, axis)
  labels = LABELS.reshape(2, 3)
  expected = np.asarray(compiled(case.loss)(LOGITS, LABELS)).reshape(2, 3)
  actual = compiled(case.loss)(logits, labels, axis=axis)
  np.testing.assert_array_max_ulp(np.asarray(actual), expected, 2)
  masks = RNG.random((2, 3, 5)) < 0.8
  masks[..., labels] = True
  moved = np.moveaxis(masks, -1, axis)
  np.testing.assert_array_max_ulp(
    np.asarray(compiled(case.loss)(logits, labels, axis=axis, where=moved)),
    np.asarray(
      compiled(case.loss)(LOGITS.reshape(2, 3, 5), labels, where=masks)
    ),
    2,
  )


# Masks and impossible classes.


@EVERY
def test_dropped_examples_leave_no_trace(case):
  keep = np.array([True, False, True, False, False, True])
  logits, labels = LOGITS.copy(), LABELS.copy()
  logits[1], logits[3], logits[4] = np.nan, np.inf, -np.inf
  labels[1], labels[3] = -100, 99
  expected = compiled(case.loss)(LOGITS[keep], LABELS[keep])
  for loss in (case.loss, compiled(case.loss)):
    actual = np.asarray(loss(logits, labels, where=keep))
    np.testing.assert_array_max_ulp(actual[keep], np.asarray(expected), 2)
    np.testing.assert_array_equal(actual[~keep], 0)
  slope = np.asarray(gradient(case.loss)(logits, labels, where=keep))
  np.testing.assert_array_equal(slope[~keep], 0)
  np.testing.assert_allclose(
    slope[keep],
    gradient(case.loss)(LOGITS[keep], LABELS[keep]),
    rtol=1e-6,
    atol=1e-7,
  )
  nothing = np.zeros(6, bool)
  np.testing.assert_array_equal(
    compiled(case.loss)(logits, labels, where=nothing), 0
  )


@EVERY
def test_masked_and_impossible_classes_are_removed(case):
  kept = np.array([True, False, True, True, False])
  labels = np.array([0, 2, 3, 0, 2, 3])
  expected = reference(case, LOGITS[:, kept], (labels + 1) // 2)
  mask = np.broadcast_to(kept, LOGITS.shape)
  garbage = np.where(kept, LOGITS, np.nan)
  impossible = np.where(kept, LOGITS, -np.inf)
  for logits, where in ((garbage, mask), (impossible, None), (LOGITS, mask)):
    close(compiled(case.loss)(logits, labels, where=where), expected, ulps=128)
    slope = np.asarray(gradient(case.loss)(logits, labels, where=where))
    np.testing.assert_array_equal(slope[:, ~kept], 0)
    np.testing.assert_allclose(
      slope[:, kept],
      gradient(case.loss)(LOGITS[:, kept], (labels + 1) // 2),
      rtol=1e-5,
      atol=1e-6,
    )


@EVERY
def test_a_row_without_classes_is_dropped_by_a_mask_and_nan_without(case):
  mask = np.ones(LOGITS.shape, bool)
  mask[1] = False
  logits = np.where(mask, LOGITS, np.nan)
  labels = LABELS.copy()
  labels[1] = -100
  loss = np.asarray(case.loss(logits, labels, where=mask))
  assert loss[1] == 0
  assert np.isfinite(loss).all()
  slope = np.asarray(gradient(case.loss)(logits, labels, where=mask))
  np.testing.assert_array_equal(slope[1], 0)
  assert np.isfinite(slope).all()
  empty = np.where(mask, LOGITS, F32(-np.inf))
  loss = np.asarray(compiled(case.loss)(empty, LABELS))
  np.testing.assert_array_equal(np.isnan(loss), ~mask[:, 0])


@EVERY
def test_a_masked_target_is_nan(case):
  mask = np.ones(LOGITS.shape, bool)
  mask[2, LABELS[2]] = False
  loss = np.asarray(compiled(case.loss)(LOGITS, LABELS, where=mask))
  np.testing.assert_array_equal(np.isnan(loss), np.arange(6) == 2)


@EVERY
def test_corner_rows(case):
  loss = compiled(case.loss)
  one = np.array([[0.5]], F32)
  alone = np.array([[-np.inf, 0.5, -np.inf]], F32)
  for logits, label in ((one, 0), (alone, 1)):
    labels = np.array([label])
    close(loss(logits, labels)[0], case.single_class, scale=1.0)
    assert np.isfinite(gradient(case.loss)(logits, labels)).all()
  logits = np.concatenate([OTHERS, [-np.inf]]).astype(F32)[None]
  actual = loss(logits, np.array([3]))[0]
  np.testing.assert_allclose(actual, case.impossible_target, rtol=1e-6)


@EVERY
def test_positive_infinity_and_nan_are_nan(case):
  for bad in (np.inf, np.nan):
    for column in (0, 1):
      logits = LOGITS[:1].copy()
      logits[0, column] = bad
      assert np.isnan(compiled(case.loss)(logits, LABELS[:1])).all()


@EVERY
def test_bad_labels_poison_their_row_alone(case):
  labels = np.array([0, 5, -1, -100, 1, 2**31 - 1])
  bad = np.array([False, True, True, True, False, True])
  np.testing.assert_array_equal(
    np.isnan(compiled(case.loss)(LOGITS, labels)), bad
  )
  slope = np.asarray(gradient(case.loss)(LOGITS, labels))
  np.testing.assert_array_equal(np.isnan(slope).all(-1), bad)
  np.testing.assert_array_equal(np.isnan(slope).any(-1), bad)


@EVERY
def test_bad_labels_raise_when_they_can_be_read(case):
  with pytest.raises(ValueError, match=r"labels\[1\] = 5 is outside \[0, 5\)"):
    case.loss(LOGITS, [0, 5, 0, 0, 0, 0])
  with pytest.raises(ValueError, match=r"labels\[0\] = -100"):
    jax.grad(lambda z: case.loss(z, [-100] * 6).sum())(LOGITS)
  with pytest.raises(ValueError, match=r"labels = 7 "):
    case.loss(LOGITS[0], 7)
  # A conversion to int32 would make this id a valid one.
  with pytest.raises(ValueError, match=r"labels\[0\] = 4294967296"):
    case.loss(LOGITS[:1], np.array([2**32]))


BAD = (
  ({"logits": np.zeros((6, 5), int)}, TypeError, "logits must be floating"),
  ({"logits": F32(1.0)}, ValueError, "logits must have a class axis"),
  ({"logits": np.zeros((6, 0), F32)}, ValueError, "at least one class"),
  ({"labels": np.eye(6, 5, dtype=int)}, TypeError, "one-hot rows"),
  ({"labels": LABELS.astype(F32)}, TypeError, "class ids and must be integers"),
  ({"labels": LABELS[:, None]}, ValueError, r"labels must be.*\(6, 1\)"),
  ({"labels": LABELS[:1]}, ValueError, r"labels must be.*\(1,\)"),
  ({"labels": np.zeros((6, 4), F32)}, ValueError, r"labels must be.*\(6, 4\)"),
  ({"labels": LABELS > 1}, TypeError, "labels must be.*bool"),
  ({"where": np.ones(6)}, TypeError, "where must be boolean"),
  ({"where": np.ones((6, 1), bool)}, ValueError, r"where must.*\(6, 1\)"),
  ({"where": np.ones(5, bool)}, ValueError, r"where must.*\(5,\)"),
  ({"axis": 2}, ValueError, "axis must be in"),
  ({"axis": (0, 1)}, TypeError, "axis must be one int"),
)


@EVERY
@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(case, change, error, message):
  arguments = {"logits": LOGITS, "labels": LABELS} | change
  with pytest.raises(error, match=message):
    case.loss(**arguments)
  with pytest.raises(error, match=message):
    jax.eval_shape(functools.partial(case.loss, **arguments))


# Soft labels.


def soft_labels():
  p = RNG.random((6, 5)).astype(F32)
  return p / p.sum(-1, keepdims=True)


@ROW
def test_one_hot_equals_hard(case):
  one_hot = np.eye(5, dtype=F32)[LABELS]
  np.testing.assert_allclose(
    compiled(case.loss)(LOGITS, one_hot),
    compiled(case.loss)(LOGITS, LABELS),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    gradient(case.loss)(LOGITS, one_hot),
    gradient(case.loss)(LOGITS, LABELS),
    rtol=1e-4,
    atol=1e-6,
  )


@ROW
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_soft_labels_are_expected_hard_labels(case, scale):
  p, logits = soft_labels(), LOGITS * F32(scale)
  each = np.stack([reference(case, logits, [k] * 6) for k in range(5)], axis=-1)
  close(compiled(case.loss)(logits, p), (p * each).sum(-1), ulps=128)
  by_label = jax.jit(jax.grad(lambda p: case.loss(logits, p).sum()))(p)
  np.testing.assert_allclose(by_label, each, rtol=1e-5, atol=1.2e-38)
  slopes = sum(
    p[:, k, None] * gradient(case.loss)(logits, np.full(6, k)) for k in range(5)
  )
  np.testing.assert_allclose(
    gradient(case.loss)(logits, p),
    slopes,
    rtol=1e-5,
    atol=1e-6 * np.abs(slopes).max(),
  )


@ROW
def test_soft_labels_on_impossible_and_masked_classes(case):
  p = soft_labels()
  p[:, 1] = 0
  kept = np.array([True, False, True, True, True])
  expected = compiled(case.loss)(LOGITS[:, kept], p[:, kept])
  logits = np.where(kept, LOGITS, F32(-np.inf))
  mask = np.broadcast_to(kept, LOGITS.shape)
  for z, where in ((logits, None), (LOGITS, mask)):
    np.testing.assert_allclose(
      compiled(case.loss)(z, p, where=where), expected, rtol=1e-5
    )
    slope = np.asarray(gradient(case.loss)(z, p, where=where))
    np.testing.assert_array_equal(slope[:, 1], 0)
    assert np.isfinite(slope).all()
  p[2, 1] = 0.1
  loss = np.asarray(compiled(case.loss)(LOGITS, p, where=mask))
  np.testing.assert_array_equal(np.isnan(loss), np.arange(6) == 2)
  limit = np.asarray(compiled(case.loss)(logits, p))[2]
  assert np.isfinite(limit) == np.isfinite(case.impossible_target)


@ROW
def test_dropped_examples_with_soft_labels(case):
  p, logits = soft_labels(), LOGITS.copy()
  logits[1], p[1] = np.nan, np.nan
  keep = np.arange(6) != 1
  loss = np.asarray(compiled(case.loss)(logits, p, where=keep))
  assert loss[1] == 0
  assert np.isfinite(loss).all()
  slope = np.asarray(gradient(case.loss)(logits, p, where=keep))
  np.testing.assert_array_equal(slope[1], 0)
  assert np.isfinite(slope).all()


# Transformations.


@EVERY
def test_second_derivatives(case):
  row, label = LOGITS[0], LABELS[0]

  def slope(logits):
    return jax.grad(case.loss)(logits, label)

  forward = jax.jit(jax.jacfwd(slope))(row)
  backward = jax.jit(jax.jacrev(slope))(row)
  np.testing.assert_allclose(forward, backward, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(forward, forward.T, rtol=1e-5, atol=1e-6)
  step = F32(1e-2)
  for k in range(5):
    nudge = step * np.eye(5, dtype=F32)[k]
    centred = (slope(row + nudge) - slope(row - nudge)) / (2 * step)
    np.testing.assert_allclose(forward[k], centred, rtol=2e-2, atol=2e-3)


@EVERY
def test_forward_mode_agrees_with_reverse_mode(case):
  tangent = RNG.normal(size=LOGITS.shape).astype(F32)
  value, along = jax.jit(
    lambda z, dz: jax.jvp(lambda z: case.loss(z, LABELS), (z,), (dz,))
  )(LOGITS, tangent)
  np.testing.assert_array_max_ulp(
    np.asarray(value), np.asarray(compiled(case.loss)(LOGITS, LABELS)), 2
  )
  slope = gradient(case.loss)(LOGITS, LABELS)
  np.testing.assert_allclose(
    along, (slope * tangent).sum(-1), rtol=1e-4, atol=1e-5
  )


@EVERY
def test_scan_donation_and_traces(case):
  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(n=1)
  def step(logits, labels):
    return logits - gradient(case.loss)(logits, labels)

  logits = jnp.asarray(LOGITS)
  for _ in range(3):
    logits = step(logits, LABELS)
  scanned, _ = jax.jit(
    lambda z: jax.lax.scan(
      lambda z, _: (z - gradient(case.loss)(z, LABELS), None), z, length=3
    ),
    donate_argnums=0,
  )(jnp.array(LOGITS))
  np.testing.assert_allclose(scanned, logits, rtol=1e-5, atol=1e-6)


@EVERY
def test_same_executable_same_bits(case):
  first = np.asarray(compiled(case.loss)(LOGITS, LABELS))
  for _ in range(5):
    again = np.asarray(compiled(case.loss)(LOGITS, LABELS))
    np.testing.assert_array_equal(first, again)


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
    num_classes=jnp.asarray(float(logits.size)),
  )


@pytest.mark.x64
@ROW
def test_custom_rule_equals_plain_autodiff(case):
  row, label = np.float64(LOGITS[1]), int(LABELS[1])

  def plain(z):
    return case.loss.row(plain_stats(z, label), **case.hyperparameters)

  def ours(z):
    return case.loss(z, label, **case.hyperparameters)

  np.testing.assert_allclose(ours(row), plain(row), rtol=1e-12)
  for derivative in (jax.grad, jax.jacfwd, jax.hessian):
    np.testing.assert_allclose(
      derivative(ours)(row), derivative(plain)(row), rtol=1e-10, atol=1e-12
    )


@pytest.mark.x64
@EVERY
def test_wide_labels_are_checked_in_their_own_dtype(case):
  labels = np.array([0, 4, 2**32, 3, -(2**32), 2], np.int64)
  loss = np.asarray(compiled(case.loss)(np.float64(LOGITS), labels))
  np.testing.assert_array_equal(np.isnan(loss), [0, 0, 1, 0, 1, 0])
