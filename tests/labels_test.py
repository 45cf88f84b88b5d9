# SPDX-License-Identifier: Apache-2.0
"""Labels of the wrong kind: each error says what to pass instead."""

from typing import Any

from cases import BINARY_CASES, CLASS_CASES
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import calibration, fused, losses, transforms

EVERY = pytest.mark.parametrize("case", CLASS_CASES, ids=repr)
LOGITS = np.random.default_rng(4).normal(size=(3, 4)).astype(np.float32)
LABELS = np.array([2, 0, 3])
SIGMOID = "losses.binary_cross_entropy"


@EVERY
def test_one_sigmoid_logit_for_each_example(case):
  labels = np.array([0, 1, 1])
  z = np.ones(3, np.float32)
  for wrong in (labels, labels > 0, labels[:, None]):
    with pytest.raises((TypeError, ValueError), match=SIGMOID):
      case.loss(z, wrong)
  # The only class has probability 1, so that the loss would be constant.
  column = z[:, None]
  for wrong in (labels, 0 * labels, labels[:, None], np.ones_like(column)):
    with pytest.raises(ValueError, match=f"two classes or more.*{SIGMOID}"):
      case.loss(column, wrong)
    with pytest.raises(ValueError, match=f"two classes or more.*{SIGMOID}"):
      jax.eval_shape(case.loss, column, wrong)
  with pytest.raises(ValueError, match=f"got a scalar.*{SIGMOID}"):
    case.loss(np.float32(0.5), 1)


def test_one_class_in_a_head_and_in_a_metric():
  column = np.ones((3, 1), np.float32)
  labels = np.zeros(3, np.int32)
  for head in (
    lambda: fused.linear_loss(losses.squentropy, LOGITS, LOGITS[:1].T, labels),
    lambda: fused.linear_distillation(
      LOGITS, LOGITS[:1].T, LOGITS, LOGITS[:1].T
    ),
    lambda: fused.blocked_loss_sum(
      losses.squentropy,
      lambda kernel, block: block @ kernel,
      LOGITS[:1].T,
      LOGITS,
      labels,
      block_rows=2,
    ),
    lambda: transforms.error_mass(column, labels),
  ):
    with pytest.raises(ValueError, match=f"two classes or more.*{SIGMOID}"):
      head()
  for function in (
    calibration.bin_stats,
    calibration.brier_score,
    calibration.fit_temperature,
  ):
    with pytest.raises(ValueError, match=r"two classes or more.*\[1 - p, p\]"):
      function(column, labels)


# Labels of three examples with four classes, and what the error says.
WRONG: list[tuple[Any, type[Exception], str]] = [
  (np.array([2, 0, 3], object), TypeError, "array of Python objects"),
  (np.array([2, None, 3], object), TypeError, "array of Python objects"),
  ([2, None, 3], TypeError, "array of Python objects"),
  ([[1, 2], [3]], ValueError, "nested lists of different lengths"),
  ([2.0, 0.0, 3.0], TypeError, r"must be integers.*jnp.asarray\(labels"),
  (np.array([2.0, 0, 3]), TypeError, r"must be integers.*jnp.asarray\(labels"),
  ([True, False, True], TypeError, "got dtype bool"),
  (np.array([True, False, True]), TypeError, "got dtype bool"),
  (["a", "b", "c"], TypeError, "got dtype <U1"),
  ([2j, 0j, 3j], TypeError, "got dtype complex128"),
  (2, ValueError, r"integers of shape \(3,\)"),
  (2.0, ValueError, r"integers of shape \(3,\)"),
  (True, TypeError, "got dtype bool"),
  ([2, 0], ValueError, r"integers of shape \(3,\)"),
  ([[2], [0], [3]], ValueError, r"integers of shape \(3,\)"),
  (np.eye(4, dtype=int)[:3], TypeError, "For one-hot rows pass"),
  (np.eye(4, dtype=int)[:3].tolist(), TypeError, "For one-hot rows pass"),
  (np.eye(4, dtype=bool)[:3], TypeError, f"got dtype bool.*{SIGMOID}"),
  (np.eye(4, dtype=int)[:3], TypeError, SIGMOID),
  (np.ones((3, 5), np.float32), ValueError, r"floats of shape \(3, 4\)"),
  ([2, 4, 3], ValueError, r"labels\[1\] = 4 is outside \[0, 4\)"),
  ([2, 0, -1], ValueError, r"labels\[2\] = -1 is outside \[0, 4\)"),
  ([2**40, 0, 3], ValueError, r"labels\[0\] = 1099511627776 is outside"),
]


@EVERY
def test_labels_of_the_wrong_kind(case):
  for labels, error, message in WRONG:
    with pytest.raises(error, match=message):
      case.loss(LOGITS, labels)


@pytest.mark.parametrize(
  "loss", [losses.squentropy, losses.dual_focal, losses.brier], ids=repr
)
def test_logits_and_masks_of_the_wrong_kind(loss):
  for logits, error, message in (
    (LOGITS.astype(object), TypeError, "logits.* array of Python objects"),
    ([[1.0, 2.0], [3.0]], ValueError, "logits must be one rectangular array"),
    (np.ones((3, 4), int), TypeError, "logits must be floating point"),
  ):
    with pytest.raises(error, match=message):
      loss(logits, LABELS)
  for where, error, message in (
    ([1, 0, 1], TypeError, r"where must be boolean.*Pass where != 0"),
    ([True, False], ValueError, r"where must have the batch shape \(3,\)"),
    ([[True]] * 3, ValueError, "Nothing is broadcast"),
    ([True, None, True], TypeError, "where must be an array of numbers"),
  ):
    with pytest.raises(error, match=message):
      loss(LOGITS, LABELS, where=where)


@pytest.mark.parametrize(
  "case", [c for c in BINARY_CASES if c.name != "ensloss"], ids=repr
)
def test_labels_of_binary_losses(case):
  scores = np.array([0.5, -1.0, 2.0], np.float32)
  for labels, error, message in (
    (np.array([1, 0, 1], object), TypeError, "array of Python objects"),
    ([[1, 0], [1]], ValueError, "nested lists of different lengths"),
    (["a", "b", "a"], TypeError, "got dtype <U1"),
    ([1, 0], ValueError, r"must have the logits' shape \(3,\)"),
    ([1, 0, 2], ValueError, r"labels\[2\] = 2 is outside \[0, 1\]"),
  ):
    with pytest.raises(error, match=message):
      case.loss(scores, labels)


@pytest.fixture
def spanning(monkeypatch):
  """Arrays in this list stand for arrays that span processes."""
  arrays: list[jax.Array] = []
  monkeypatch.setattr(
    type(jnp.zeros(1)),
    "is_fully_addressable",
    property(lambda self: not any(self is array for array in arrays)),
  )
  return arrays


@pytest.mark.parametrize("name", ["labels", "where", "logits"])
def test_labels_are_not_read_if_an_array_spans_processes(spanning, name):
  """An error on one process would leave the others waiting for it."""
  logits, where = jnp.asarray(LOGITS), jnp.array([True, True, True])
  labels = jnp.array([2, 9, 3])
  binary = jnp.array([0, 9, 1])
  scores = logits[:, 0]
  for loss, x, y in (
    (losses.squentropy, logits, labels),
    (losses.brier, logits, labels),
    (losses.continuous_bernoulli, scores, binary),
  ):
    with pytest.raises(ValueError, match=r"labels\[1\] = 9 is outside"):
      loss(x, y, where=where)
  hidden = {
    "labels": [labels, binary],
    "where": [where],
    "logits": [logits, scores],
  }
  spanning += hidden[name]
  for loss in (losses.squentropy, losses.brier):
    value = loss(logits, labels, where=where)
    np.testing.assert_array_equal(np.isnan(value), [False, True, False])
  value = losses.continuous_bernoulli(scores, binary, where=where)
  np.testing.assert_array_equal(np.isnan(value), [False, True, False])


def test_labels_are_not_read_if_other_logits_span_processes(spanning):
  logits, labels = jnp.asarray(LOGITS), jnp.array([2, 9, 3])
  attacked = jnp.asarray(LOGITS[:, ::-1])
  with pytest.raises(ValueError, match=r"labels\[1\] = 9 is outside"):
    losses.smooth_adversarial_comp_sum(logits, attacked, labels)
  spanning.append(attacked)
  value = losses.smooth_adversarial_comp_sum(logits, attacked, labels)
  np.testing.assert_array_equal(np.isnan(value), [False, True, False])
