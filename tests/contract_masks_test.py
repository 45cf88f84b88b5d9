# SPDX-License-Identifier: Apache-2.0
"""Every loss: masks, impossible classes and invalid arguments."""

import functools

from cases import OTHERS
import jax
import numpy as np
import pytest
from support.contract import (
  EVERY,
  F32,
  LABELS,
  LOGITS,
  close,
  compiled,
  evaluate,
  gradients_close,
  reference,
  reference_gradient,
  size_of,
)

# Masks and impossible classes.


@EVERY
def test_dropped_examples_leave_no_trace(case):
  keep = np.array([True, False, True, False, False, True])
  logits, labels = LOGITS.copy(), LABELS.copy()
  logits[1], logits[3], logits[4] = np.nan, np.inf, -np.inf
  labels[1], labels[3] = -100, 99
  expected = evaluate(case, LOGITS, LABELS)
  jitted = evaluate(case, logits, labels, keep)
  for actual in (
    np.asarray(case.loss(logits, labels, where=keep)),
    jitted.loss,
  ):
    np.testing.assert_array_max_ulp(actual[keep], expected.loss[keep], 2)
    np.testing.assert_array_equal(actual[~keep], 0)
  np.testing.assert_array_equal(jitted.by_logit[~keep], 0)
  np.testing.assert_allclose(
    jitted.by_logit[keep], expected.by_logit[keep], rtol=1e-6, atol=1e-7
  )
  for array in evaluate(case, logits, labels, np.zeros(6, bool))[:2]:
    np.testing.assert_array_equal(array, 0)


@EVERY
def test_masked_and_impossible_classes_are_removed(case):
  kept = np.array([True, False, True, True, False])
  labels = np.array([0, 2, 3, 0, 2, 3], np.int32)
  mask = np.broadcast_to(kept, LOGITS.shape)
  garbage = np.where(kept, LOGITS, F32(np.nan))
  impossible = np.where(kept, LOGITS, F32(-np.inf))
  hyper = case.hyperparameters
  expected = reference(case, impossible, labels, **hyper)
  grads = reference_gradient(case, impossible, labels, **hyper)
  size = size_of(case, impossible, labels, **hyper)
  for logits, where in ((garbage, mask), (impossible, None), (LOGITS, mask)):
    result = evaluate(case, logits, labels, where, **hyper)
    close(result.loss, expected, ulps=128, size=size)
    np.testing.assert_array_equal(result.by_logit[:, ~kept], 0)
    gradients_close(result.by_logit, grads)


@EVERY
def test_a_row_without_classes_is_dropped_by_a_mask_and_nan_without(case):
  mask = np.ones(LOGITS.shape, bool)
  mask[1] = False
  logits = np.where(mask, LOGITS, F32(np.nan))
  labels = LABELS.copy()
  labels[1] = -100
  loss = np.asarray(case.loss(logits, labels, where=mask))
  assert loss[1] == 0
  assert np.isfinite(loss).all()
  grad = evaluate(case, logits, labels, mask, **case.hyperparameters).by_logit
  np.testing.assert_array_equal(grad[1], 0)
  assert np.isfinite(grad).all()
  empty = np.where(mask, LOGITS, F32(-np.inf))
  loss = evaluate(case, empty, LABELS).loss
  np.testing.assert_array_equal(np.isnan(loss), ~mask[:, 0])


@EVERY
def test_a_masked_target_is_nan(case):
  mask = np.ones(LOGITS.shape, bool)
  mask[2, LABELS[2]] = False
  loss = evaluate(case, LOGITS, LABELS, mask, **case.hyperparameters).loss
  np.testing.assert_array_equal(np.isnan(loss), np.arange(6) == 2)


@EVERY
def test_corner_rows(case):
  logits, labels = LOGITS.copy(), LABELS.copy()
  logits[0], labels[0] = [-np.inf, 0.5, -np.inf, -np.inf, -np.inf], 1
  logits[1], labels[1] = [*OTHERS, -np.inf, -np.inf], 3
  loss, grad, *_ = evaluate(case, logits, labels)
  close(loss[0], case.single_class, size=1.0)
  np.testing.assert_allclose(loss[1], case.impossible_target, rtol=1e-6)
  # Only that of a square is infinite, and only in the target itself.
  assert not np.isnan(grad[1, 3])
  assert np.isfinite(np.delete(grad, 8)).all()


@EVERY
def test_positive_infinity_and_nan_are_nan(case):
  for bad in (np.inf, np.nan):
    logits = LOGITS.copy()
    logits[0, 0] = logits[1, 0] = logits[2, 1] = logits[2, 2] = bad
    for loss in (
      compiled(case.loss)(logits, LABELS),
      evaluate(case, logits, LABELS).loss,
    ):
      np.testing.assert_array_equal(np.isnan(loss), np.arange(6) < 3)


@EVERY
def test_bad_labels_set_to_nan_their_row_alone(case):
  labels = np.array([0, 5, -1, -100, 1, 2**31 - 1], np.int32)
  bad = np.array([False, True, True, True, False, True])
  loss, grad, *_ = evaluate(case, LOGITS, labels)
  for found in (loss, compiled(case.loss)(LOGITS, labels)):
    np.testing.assert_array_equal(np.isnan(found), bad)
  np.testing.assert_array_equal(np.isnan(grad).all(-1), bad)
  np.testing.assert_array_equal(np.isnan(grad).any(-1), bad)


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
