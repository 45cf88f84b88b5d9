# SPDX-License-Identifier: Apache-2.0
"""Distillation: values, limits, masks."""

import functools

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from squentropy_jax import losses, regression

F32 = np.finfo(np.float32).eps
STUDENT = np.array([1.0, 0.0, -1.0])
TEACHERS = np.array([[2.0, 0.0, -2.0], [1.0, 1.0, 0.0]])
RNG = np.random.default_rng(5)
LOGITS = RNG.normal(size=(4, 5)).astype(np.float32) * 3
OTHERS = RNG.normal(size=(3, 4, 5)).astype(np.float32) * 3


def softmax(logits, axis=-1):
  e = np.exp(logits - logits.max(axis, keepdims=True))
  return e / e.sum(axis, keepdims=True)


def reference(student, teachers, weights=None, temperature=1.0):
  p = softmax(np.float64(teachers) / temperature)
  p = np.average(p, axis=0, weights=weights)
  q = softmax(np.float64(student) / temperature)
  return (p * np.log(p / q)).sum(-1)


total = jax.jit(
  lambda s, t, **kw: losses.ensemble_distillation(s, t, **kw).sum()
)
gradient_of = jax.jit(jax.grad(total))


@pytest.mark.x64
def test_worked_numbers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  close(total(STUDENT, TEACHERS), 0.001678465845)
  close(
    gradient_of(STUDENT, TEACHERS),
    [0.02067489055, -0.025086141984, 0.004411251434],
  )
  mean = softmax(TEACHERS).mean(0)
  close(mean, [0.644566065224, 0.269814613039, 0.085619321737])
  close(losses.cross_entropy(STUDENT, mean), 0.848659220957)
  close(
    losses.discriminator(np.array([0.3, 0.1]), np.array([0.0, 0.8])),
    0.590749937762,
  )
  x = np.array([0.001, 0.01, 0.03, 0.08, -0.03])
  zero = np.zeros(5)
  close(
    regression.assistive_distillation(x, zero, zero + 0.02, zero - 0.05),
    [0.006, 0.0395, 0.191, 0.4758, 0.191],
  )


@pytest.mark.x64
def test_derivatives():
  student, teachers = np.float64(LOGITS), np.float64(OTHERS)
  loss = functools.partial(
    losses.ensemble_distillation,
    teacher_weights=np.array([0.2, 0.5, 1.0]),
    temperature=2.0,
  )
  check_grads(jax.jit(loss), (student, teachers), order=2, modes=["rev"])
  near = teachers[0] + 1e-3 * teachers[1]
  check_grads(jax.jit(loss), (near, teachers[:1].repeat(3, 0)), order=2)
  pair = student[:, :2], student[:, 2:4]
  check_grads(jax.jit(losses.discriminator), pair, order=2)
  x = np.array([0.001, 0.01, 0.03, 0.08, -0.03, -0.2])
  zero = np.zeros(6)

  def assistive(x, g):
    return regression.assistive_distillation(x, g, zero + 0.02, zero + 0.05)

  check_grads(jax.jit(lambda x: assistive(x, zero)), (x,), order=1, eps=1e-7)


@pytest.mark.parametrize("weights", [None, (1.0, 1.0, 2.0), (0.0, 3.0, 0.0)])
def test_value_and_gradient(weights):
  for temperature in (1.0, 4.0):
    arguments = {"temperature": temperature}
    if weights is not None:
      arguments["teacher_weights"] = np.array(weights, np.float32)
    actual = losses.ensemble_distillation(LOGITS, OTHERS, **arguments)
    expected = reference(LOGITS, OTHERS, weights, temperature)
    np.testing.assert_allclose(actual, expected, rtol=2e-5)
    p = softmax(np.float64(OTHERS) / temperature)
    p = np.average(p, axis=0, weights=weights)
    q = softmax(np.float64(LOGITS) / temperature)
    np.testing.assert_allclose(
      gradient_of(LOGITS, OTHERS, **arguments),
      (q - p) / temperature,
      atol=8 * F32,
    )


def test_one_sure_teacher_is_cross_entropy():
  labels = np.array([0, 4, 2, 2])
  teacher = np.where(np.eye(5)[labels] > 0, 0, -np.inf).astype(np.float32)
  for confident in (LOGITS, 10 * teacher.clip(-1)):
    np.testing.assert_allclose(
      losses.ensemble_distillation(confident, teacher[None]),
      losses.cross_entropy(confident, labels),
      rtol=16 * F32,
    )


def test_a_student_close_to_its_teacher_is_accurate():
  teacher = np.float32([[0.5, -1.0, 2.0]])
  student = teacher[0] + np.float32([2**-12, -(2**-12), 0.0])
  value = losses.ensemble_distillation(student, teacher)
  truth = reference(student, teacher)
  # The log ratio, of size 1e-4, has the rounding errors of the logits.
  np.testing.assert_allclose(value, truth, rtol=16 * F32 * 2**12)
  assert losses.ensemble_distillation(teacher[0], teacher) == 0


def test_mean_of_probabilities_is_not_that_of_logits():
  loss = losses.ensemble_distillation(TEACHERS.mean(0), TEACHERS)
  assert loss > 1e-3


def test_extreme_and_impossible_logits():
  student = np.array([[1e4, -1e4, 0], [0, 0, 0], [1, 2, -np.inf]], np.float32)
  teachers = np.stack([-student, student[:, [1, 0, 2]]])
  teachers = np.where(np.isinf(teachers), -np.inf, teachers).astype(np.float32)
  value = losses.ensemble_distillation(student, teachers)
  np.testing.assert_allclose(value[0], 2e4, rtol=1e-3)
  assert value[1] == 0
  assert np.isfinite(value).all()
  by_student, by_teacher = jax.grad(total, (0, 1))(student, teachers)
  assert np.isfinite(by_student).all()
  assert np.isfinite(by_teacher).all()
  assert by_student[2, 2] == 0
  # A class only the student rules out.
  assert (
    losses.ensemble_distillation(student, np.zeros_like(teachers))[2] == np.inf
  )
  for bad in (np.nan, np.inf):
    wrong = np.where(student == 2, np.float32(bad), student)
    assert np.isnan(losses.ensemble_distillation(wrong, teachers)[2])


def test_masks_and_axis():
  keep = np.array([True, False, True, True])
  mask = np.random.default_rng(5).random((4, 5)) < 0.7
  mask[:, 0] = True
  mask[1] = False
  student = np.where(mask, LOGITS, np.float32(np.nan))
  teachers = np.where(mask, OTHERS, np.float32(np.nan))
  value = losses.ensemble_distillation(student, teachers, where=mask)
  gradient = gradient_of(student, teachers, where=mask)
  np.testing.assert_array_equal(gradient[~mask], 0)
  for i in (0, 2, 3):
    row = mask[i]
    np.testing.assert_allclose(
      value[i], reference(LOGITS[i, row], OTHERS[:, i, row]), rtol=1e-5
    )
  assert value[1] == 0
  student[2, 0] = 0
  value = losses.ensemble_distillation(student, OTHERS, where=keep)
  assert value[1] == 0
  np.testing.assert_array_equal(gradient_of(student, OTHERS, where=keep)[1], 0)
  moved = losses.ensemble_distillation(
    LOGITS.T, OTHERS.swapaxes(1, 2), where=mask.T, axis=0
  )
  straight = losses.ensemble_distillation(LOGITS, OTHERS, where=mask)
  np.testing.assert_allclose(moved, straight, rtol=4 * F32)


def test_narrow_students():
  narrow = jnp.asarray(LOGITS).astype(jnp.bfloat16)
  value, gradient = jax.value_and_grad(total)(narrow, OTHERS)
  assert value.dtype == jnp.float32
  assert gradient.dtype == jnp.bfloat16
  wide = total(narrow.astype(jnp.float32), OTHERS)
  np.testing.assert_allclose(value, wide, rtol=4 * F32)


def test_discriminator():
  student, teacher = LOGITS[:, :2], LOGITS[:, 2:4]
  keep = np.array([True, True, False, True])
  invalid = np.where(keep[:, None], student, np.float32(np.nan))
  value = losses.discriminator(invalid, teacher, where=keep)
  sure = np.array([[1, 0], [0, 1]])
  scores = np.stack([student, teacher], 1).astype(np.float64)
  p = 1 / (1 + np.exp(-scores))
  cross = -(sure * np.log(p) + (1 - sure) * np.log(1 - p)).mean((1, 2))
  np.testing.assert_allclose(value, np.where(keep, cross, 0), rtol=1e-5)
  gradient = jax.grad(
    lambda s: losses.discriminator(s, teacher, where=keep).sum()
  )(invalid)
  np.testing.assert_array_equal(gradient[2], 0)
  assert np.isfinite(gradient).all()
  # All outputs recognised, and all of them mistaken.
  sure = np.array([1e4, -1e4], np.float32)
  assert losses.discriminator(sure, -sure) == 0
  assert losses.discriminator(-sure, sure) == 1e4
  np.testing.assert_allclose(
    losses.discriminator(student.T, teacher.T, axis=0),
    losses.discriminator(student, teacher),
  )


def test_limits_of_assistive_distillation():
  x = np.array([0.0, 0.3, -2.0, 1e4, -1e4], np.float32)
  g = np.full(5, 0.5, np.float32)
  error = np.abs(x - g)
  loss = functools.partial(regression.assistive_distillation, x, g)
  off = {"tough_factors": (0.0, 0.0), "tolerant_factors": (0.0, 0.0)}
  # A teacher with a very large error, and teachers with none.
  np.testing.assert_allclose(loss(g, g + 1e6, **off), 6 * error, rtol=4 * F32)
  np.testing.assert_allclose(loss(g, g, **off), 2 * error**2, rtol=4 * F32)
  exact = loss(g, g)
  np.testing.assert_allclose(exact, 2 * error**2 + 3.7 * error, rtol=8 * F32)
  by_tough = jax.grad(lambda t: loss(t, g + 1).sum())(g + 0.1)
  np.testing.assert_array_equal(by_tough, 0)
  at_target = jax.grad(
    lambda x: regression.assistive_distillation(x, g, g + 0.1, g + 1).sum()
  )(g)
  np.testing.assert_array_equal(at_target, 0)
  keep = np.array([True, False, True, True, False])
  invalid = np.where(keep, x, np.float32(np.nan))
  value = regression.assistive_distillation(invalid, g, g, g, where=keep)
  np.testing.assert_allclose(value, np.where(keep, exact, 0), rtol=4 * F32)


def test_bad_arguments_are_named():
  s, t = jnp.zeros((2, 3)), jnp.zeros((4, 2, 3))
  kd = losses.ensemble_distillation
  for call, error, message in (
    (lambda: kd(s, s), ValueError, r"teacher_logits must have the shape"),
    (lambda: kd(s, t[:0]), ValueError, r"teacher_logits must have the shape"),
    (lambda: kd(s, t, temperature=0), ValueError, "temperature must be in"),
    (
      lambda: kd(s, t, teacher_weights=jnp.ones(3)),
      ValueError,
      r"4 numbers, of shape \(4,\)",
    ),
    (
      lambda: kd(s, t, teacher_weights=jnp.zeros(4)),
      ValueError,
      "teacher_weights must be >= 0, one > 0",
    ),
    (lambda: kd(s, t, where=jnp.ones(3, bool)), ValueError, "where must"),
    (lambda: losses.discriminator(s, s), ValueError, "student_scores must"),
    (
      lambda: losses.discriminator(s[:, :2], s[:1, :2]),
      ValueError,
      "must have the same shape",
    ),
    (
      lambda: regression.assistive_distillation(s, s, s, s[0]),
      ValueError,
      r"tolerant must have the shape of predictions \(2, 3\)",
    ),
    (
      lambda: regression.assistive_distillation(s, s, s, s, weights=(1.0,)),
      ValueError,
      "weights must be 3 numbers",
    ),
    (
      lambda: regression.assistive_distillation(s, s, s, s, inner=2.0),
      ValueError,
      r"inner must be in \[0, 1\]",
    ),
    (
      lambda: regression.assistive_distillation(s, s > 0, s, s),
      TypeError,
      "targets must be floating",
    ),
  ):
    with pytest.raises(error, match=message):
      call()


def test_assistive_distillation_takes_inner_for_each_entry():
  x = np.array([0.01, 0.03, 0.08], np.float32)
  zero = np.zeros(3, np.float32)
  loss = functools.partial(
    regression.assistive_distillation, x, zero, zero + 0.02, zero + 0.05
  )
  inner = np.array([0.1, 0.9, 0.5], np.float32)
  one_by_one = [loss(inner=value)[k] for k, value in enumerate(inner)]
  np.testing.assert_allclose(loss(inner=inner), one_by_one, rtol=4 * F32)
  assert loss(inner=0.9)[0] != loss(inner=0.1)[0]
  keep = np.array([True, False, True])
  inner[1] = np.nan
  dropped = loss(inner=inner, where=keep)
  np.testing.assert_array_equal(dropped[1], 0)
  assert np.isfinite(dropped).all()


@pytest.mark.x64
def test_mixed_dtypes_are_computed_in_the_widest():
  x = np.float32([0.01, 0.03])
  zero = np.zeros(2)
  loss = regression.assistive_distillation(x, zero, zero + 0.02, zero + 0.05)
  assert loss.dtype == np.float64
