# SPDX-License-Identifier: Apache-2.0
"""Every loss: values, hyper-parameters, probabilities, shapes and dtypes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from support.contract import (
  EVERY,
  F32,
  LABELS,
  LOGITS,
  PREDICTS,
  PROPER,
  close,
  compiled,
  each_scaled,
  evaluate,
  gradients_close,
  predicted,
  quickly_compiled,
  reference,
  reference_gradient,
  size_of,
  soft_labels,
)

# Value.


@EVERY
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_value(case, scale):
  logits = LOGITS * F32(scale)
  for hyper in ({}, case.hyperparameters):
    size = size_of(case, logits, LABELS, **hyper)
    close(
      evaluate(case, logits, LABELS, **hyper).loss,
      reference(case, logits, LABELS, **hyper),
      ulps=128,
      size=size,
    )
  close(
    compiled(case.loss)(logits, LABELS),
    reference(case, logits, LABELS),
    ulps=128,
    size=size_of(case, logits, LABELS),
  )


@EVERY
def test_gradient_is_the_gradient_of_the_reference(case):
  for hyper in ({}, case.hyperparameters):
    gradients_close(
      evaluate(case, LOGITS, LABELS, **hyper).by_logit,
      reference_gradient(case, LOGITS, LABELS, **hyper),
    )


def by_number(case, logits, labels, hyper, name):
  """Central differences of the reference in one hyper-parameter."""
  step = 1e-6 * hyper[name]
  up, down = (
    reference(case, logits, labels, **hyper | {name: hyper[name] + change})
    for change in (step, -step)
  )
  return (up - down) / (2 * step)


@EVERY
def test_hyperparameters_may_be_traced_and_differentiated(case):
  hyper = dict(case.hyperparameters)
  # One class of three rows is masked; an infinity times 0 is NaN.
  mask = np.arange(5) != (LABELS[:, None] + 1) % 5
  mask[::2] = True
  actual = evaluate(case, LOGITS, LABELS, mask, **hyper).by_number
  possible = np.where(mask, LOGITS, -np.inf)
  for name in hyper:
    np.testing.assert_allclose(
      actual[name],
      by_number(case, possible, LABELS, hyper, name).sum(),
      rtol=1e-4,
    )


@EVERY
def test_a_hyperparameter_outside_its_domain_raises(case):
  for name, value in case.hyperparameters.items():
    wrong = rf"{name} must be a scalar or have the batch shape \(6,\)"
    for shape in ((5,), (6, 1), (6, 5), (1,)):
      with pytest.raises(ValueError, match=wrong):
        case.loss(LOGITS, LABELS, **{name: np.full(shape, value, F32)})
    # The last is finite, but not in the dtype of the computation.
    for bad in (np.nan, np.inf, -np.inf, 1e39):
      for values in (bad, np.full(6, bad)):
        with pytest.raises(ValueError, match=f"{name} must be in"):
          case.loss(LOGITS, LABELS, **{name: values})
    with pytest.raises(TypeError, match=f"{name} must be a real number"):
      case.loss(LOGITS, LABELS, **{name: True})


@EVERY
def test_a_hyperparameter_may_have_a_value_for_each_example(case):
  if not case.hyperparameters:
    assert getattr(case.loss, "hyperparameters", ({},))[0].keys() <= {"squared"}
    return
  keep = np.arange(6) != 3
  batch = each_scaled(case)
  values = {name: np.where(keep, x, F32(np.nan)) for name, x in batch.items()}

  def expected(function, i, k):
    hyper = {name: float(x[i]) for name, x in batch.items()}
    return function(case, LOGITS[i : i + 1], [k], hyper)[0]

  functions = {
    name: lambda *args, name=name: by_number(*args, name) for name in batch
  }
  functions["loss"] = lambda case, z, y, hyper: reference(case, z, y, **hyper)
  for labels in (LABELS, soft_labels()):
    if labels.ndim == 2 and not case.soft_is_expected:
      continue
    # Inside a trace too, where the mask and the values are constants.
    jax.eval_shape(
      lambda labels=labels: case.loss(LOGITS, labels, where=keep, **values)
    )
    result = evaluate(case, LOGITS, labels, keep, **values)
    for name, function in functions.items():
      found = result.loss if name == "loss" else result.by_number[name]
      assert found[3] == 0
      for i in np.flatnonzero(keep):
        one = (
          expected(function, i, labels[i])
          if labels.ndim == 1
          else sum(labels[i, k] * expected(function, i, k) for k in range(5))
        )
        np.testing.assert_allclose(found[i], one, rtol=2e-4, atol=1e-5)


@EVERY
def test_order_of_classes_does_not_matter(case):
  order = np.array([3, 0, 4, 1, 2])
  actual = evaluate(case, LOGITS[:, order], np.argsort(order)[LABELS])
  expected = evaluate(case, LOGITS, LABELS)
  np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-5)
  gradients_close(actual.by_logit, expected.by_logit[:, order])


@EVERY
@pytest.mark.parametrize("fill", [1e4, -1e4, 0.0])
def test_extreme_logits_keep_a_finite_gradient(case, fill):
  ties = np.full((6, 5), fill, F32)
  spread = np.where(np.eye(6, 5) > 0, F32(fill), -ties)
  for logits in (ties, spread):
    labels = np.array([0, 1, 2, 0, 0, 3], np.int32)
    chex.assert_tree_all_finite(evaluate(case, logits, labels)[:2])


# Predicted probabilities.


@PREDICTS
def test_proper_is_what_is_least_at_the_distribution_of_labels(case):
  """At the defaults: what the table says, by minimising the reference."""
  # Far enough from uniform for a loss that bounds the logits to miss them.
  labels = np.array([[0.7, 0.2, 0.1], [0.05, 0.15, 0.8]])

  def expected(logits, p):
    return sum(p[k] * case.reference(logits, k) for k in range(3))

  least = np.stack(
    [
      # Not from the origin, where squares have no gradient.
      optimize.minimize(expected, [0.3, 0.2, 0.1], args=(p,), tol=1e-7).x
      for p in labels
    ]
  )
  with np.errstate(over="ignore", invalid="ignore"):
    error = np.abs(predicted(case, least) - labels).max()
  assert (error < 1e-3) == PROPER[case.name], error


@PREDICTS
def test_log_probs_leave_out_impossible_classes(case):
  logits = LOGITS.copy()
  logits[:, 1] = -np.inf
  p = predicted(case, logits)
  np.testing.assert_array_equal(p[:, 1], 0)
  np.testing.assert_allclose(
    np.delete(p, 1, 1), predicted(case, np.delete(LOGITS, 1, 1)), rtol=1e-5
  )


@PREDICTS
def test_log_probs_of_nan_and_positive_infinity_are_nan(case):
  for bad in (np.nan, np.inf):
    logits = LOGITS.copy()
    logits[0, 0] = logits[1, 4] = logits[2, 1] = logits[2, 2] = bad
    found = predicted(case, logits)
    np.testing.assert_array_equal(np.isnan(found).all(1), np.arange(6) < 3)
    np.testing.assert_array_equal(np.isnan(found).any(1), np.arange(6) < 3)


# Shapes and dtypes.


@EVERY
def test_same_with_and_without_jit_on_host_and_device(case):
  expected = np.asarray(compiled(case.loss)(LOGITS, LABELS))
  for loss in (case.loss, compiled(case.loss)):
    for put in (np.asarray, jnp.asarray, jax.device_put):
      actual = loss(put(LOGITS), put(LABELS))
      chex.assert_shape(actual, (6,))
      chex.assert_type(actual, jnp.float32)
      np.testing.assert_array_max_ulp(np.asarray(actual), expected, 2)


@EVERY
def test_batch_shapes_label_dtypes_and_vmap(case):
  @quickly_compiled
  def every(logits, labels):
    flat = {
      "uint8": case.loss(logits, labels.astype(jnp.uint8)),
      "deep": case.loss(logits.reshape(1, 2, 3, 5), labels.reshape(1, 2, 3)),
    }
    mapped = jax.vmap(jax.value_and_grad(case.loss))(logits, labels)
    return flat, case.loss(logits[0], labels[0]), mapped

  flat, one, (mapped, gradients) = every(LOGITS, LABELS)
  chex.assert_shape(flat["deep"], (1, 2, 3))
  chex.assert_shape(one, ())
  none = jax.eval_shape(case.loss, LOGITS[:0], LABELS[:0])
  chex.assert_shape(none, (0,))
  expected = evaluate(case, LOGITS, LABELS)
  # Kernels of other shapes may round their last digit otherwise.
  size = size_of(case, LOGITS, LABELS)
  for values in (*flat.values(), mapped):
    close(values.ravel(), expected.loss, ulps=8, size=size)
  close(one, expected.loss[0], ulps=8, size=size[0])
  np.testing.assert_allclose(gradients, expected.by_logit, rtol=1e-5, atol=1e-6)


@EVERY
def test_narrow_logits_are_widened_first(case):
  narrow = LOGITS.astype(jnp.bfloat16)
  actual = evaluate(case, narrow, LABELS)
  expected = evaluate(case, narrow.astype(F32), LABELS)
  np.testing.assert_array_equal(actual.loss, expected.loss)
  np.testing.assert_array_equal(
    actual.by_logit.astype(F32),
    expected.by_logit.astype(narrow.dtype).astype(F32),
  )
  for dtype in (jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn):
    loss, pull = jax.eval_shape(
      lambda z: jax.vjp(lambda z: case.loss(z, LABELS), z),
      jax.ShapeDtypeStruct(LOGITS.shape, dtype),
    )
    chex.assert_type(loss, F32)
    (by_logit,) = jax.eval_shape(pull, loss)
    chex.assert_type(by_logit, dtype)


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
  np.testing.assert_array_max_ulp(np.asarray(value), np.asarray(expected)[0], 2)


@EVERY
def test_axis_is_the_class_axis(case):
  hyper = dict(case.hyperparameters)
  masks = np.random.default_rng(3).random((6, 5)) < 0.8
  np.put_along_axis(masks, LABELS[:, None], True, -1)
  assert not masks.all()

  def along(axis, logits, where=None, **hyper):
    moved = [
      None if x is None else jnp.moveaxis(x.reshape(2, 3, 5), -1, axis)
      for x in (logits, where)
    ]
    labels = LABELS.reshape(2, 3)
    return case.loss(moved[0], labels, axis=axis, where=moved[1], **hyper)

  @quickly_compiled
  def every(logits, where):
    masked = [along(axis, logits, where, **hyper) for axis in (-3, 1)]
    return masked, along(1, logits)

  masked, plain = every(LOGITS, masks)
  # Kernels of other shapes may round their last digit otherwise.
  close(
    plain.ravel(),
    evaluate(case, LOGITS, LABELS).loss,
    ulps=8,
    size=size_of(case, LOGITS, LABELS),
  )
  expected = evaluate(case, LOGITS, LABELS, masks, **hyper).loss
  possible = np.where(masks, LOGITS, -np.inf)
  for losses in masked:
    size = size_of(case, possible, LABELS, **hyper)
    close(losses.ravel(), expected, ulps=8, size=size)
