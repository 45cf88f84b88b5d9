# SPDX-License-Identifier: Apache-2.0
"""Every loss: values, hyper-parameters, probabilities, shapes and dtypes."""

import functools

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
  both,
  close,
  compiled,
  gradient,
  gradients_close,
  jit,
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
  for run, hyper in (
    (compiled, {}),
    (quickly_compiled, case.hyperparameters),
  ):
    actual = run(case.loss)(logits, LABELS, **hyper)
    expected = reference(case, logits, LABELS, **hyper)
    size = size_of(case, logits, LABELS, **hyper)
    close(actual, expected, ulps=128, size=size)


@EVERY
def test_gradient_is_the_gradient_of_the_reference(case):
  hyper = case.hyperparameters
  gradients_close(
    gradient(case.loss)(LOGITS, LABELS),
    reference_gradient(case, LOGITS, LABELS),
  )
  gradients_close(
    gradient(case.loss)(LOGITS, LABELS, **hyper),
    reference_gradient(case, LOGITS, LABELS, **hyper),
  )


@EVERY
def test_hyperparameters_may_be_traced_and_differentiated(case):
  hyper = dict(case.hyperparameters)
  # One class of three rows is masked; an infinity times 0 is NaN.
  mask = np.arange(5) != (LABELS[:, None] + 1) % 5
  mask[::2] = True
  actual = jit(
    jax.grad(lambda h: case.loss(LOGITS, LABELS, where=mask, **h).sum())
  )(hyper)
  possible = np.where(mask, LOGITS, -np.inf)
  for name, value in hyper.items():
    step = 1e-6 * value
    up, down = (
      reference(case, possible, LABELS, **hyper | {name: value + change}).sum()
      for change in (step, -step)
    )
    np.testing.assert_allclose(
      actual[name], (up - down) / (2 * step), rtol=1e-4
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
  hyper = case.hyperparameters
  if not hyper:
    assert getattr(case.loss, "hyperparameters", ({},))[0].keys() <= {"squared"}
    return
  keep = np.arange(6) != 3
  each = [
    {name: F32(value * (1 + 0.05 * i)) for name, value in hyper.items()}
    for i in range(6)
  ]
  batch = {n: np.stack([row[n] for row in each]) for n in hyper}
  for values in batch.values():
    values[3] = np.nan  # Of a dropped example, so it is never read.

  def total(values, labels):
    loss = case.loss(LOGITS, labels, where=keep, **values)
    return loss.sum(), loss

  for labels in (LABELS, soft_labels()):
    if labels.ndim == 2 and not case.soft_is_expected:
      continue
    # Inside a trace too, where the mask and the values are constants.
    jax.eval_shape(lambda labels=labels: total(batch, labels))
    of_all = quickly_compiled(jax.grad(total, has_aux=True))
    gradient_of, losses = of_all(batch, labels)
    assert losses[3] == 0
    for name in hyper:
      assert gradient_of[name][3] == 0
    for i in np.flatnonzero(keep)[:2]:
      one, expected = quickly_compiled(
        jax.value_and_grad(
          lambda h, z=LOGITS[i], y=labels[i]: case.loss(z, y, **h)
        )
      )(each[i])
      np.testing.assert_allclose(losses[i], one, rtol=1e-5, atol=1e-6)
      for name, value in expected.items():
        np.testing.assert_allclose(
          gradient_of[name][i], value, rtol=1e-4, atol=1e-5
        )


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
  ties = np.full((6, 5), fill, F32)
  spread = np.where(np.eye(6, 5) > 0, F32(fill), -ties)
  for logits in (ties, spread):
    labels = np.array([0, 1, 2, 0, 0, 3], np.int32)
    chex.assert_tree_all_finite(compiled(case.loss)(logits, labels))
    chex.assert_tree_all_finite(gradient(case.loss)(logits, labels))


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
def test_batch_shapes_and_vmap(case):
  @quickly_compiled
  def every(logits, labels):
    return {
      "deep": case.loss(logits.reshape(1, 2, 3, 5), labels.reshape(1, 2, 3)),
      "one": case.loss(logits[0], labels[0]),
      "none": case.loss(logits[:0], labels[:0]),
      "mapped": jax.vmap(case.loss)(logits, labels),
      "gradients": jax.vmap(jax.grad(case.loss))(logits, labels),
    }

  actual = every(LOGITS, LABELS)
  expected = quickly_compiled(case.loss)(LOGITS, LABELS)
  chex.assert_shape(actual["deep"], (1, 2, 3))
  chex.assert_shape(actual["one"], ())
  chex.assert_shape(actual["none"], (0,))
  # Kernels of other shapes may round their last digit otherwise.
  size = size_of(case, LOGITS, LABELS)
  for values in (actual["deep"].ravel(), actual["mapped"]):
    close(values, expected, ulps=8, size=size)
  close(actual["one"], expected[0], ulps=8, size=size[0])
  np.testing.assert_allclose(
    actual["gradients"],
    gradient(case.loss)(LOGITS, LABELS),
    rtol=1e-5,
    atol=1e-6,
  )


@EVERY
def test_narrow_logits_are_widened_first(case):
  def every(z):
    def total(z):
      loss = case.loss(z, LABELS)
      return loss.sum(), loss

    with jax.disable_jit():
      return jax.grad(total, has_aux=True)(z)

  for dtype in ("float16", "bfloat16", "float8_e4m3fn"):
    narrow = jnp.asarray(LOGITS).astype(dtype)
    grad, loss = every(narrow)
    chex.assert_type(loss, jnp.float32)
    chex.assert_type(grad, narrow.dtype)
    wide_gradient, wide_loss = every(narrow.astype(jnp.float32))
    np.testing.assert_array_equal(loss, wide_loss)
    np.testing.assert_array_equal(
      grad.astype(jnp.float32),
      wide_gradient.astype(narrow.dtype).astype(jnp.float32),
    )


@EVERY
def test_label_dtypes(case):
  run = quickly_compiled(case.loss)
  expected = run(LOGITS, LABELS)
  for dtype in ("int8", "uint8", "int16", "uint32"):
    np.testing.assert_array_equal(
      run(LOGITS, jnp.asarray(LABELS).astype(dtype)), expected
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
  np.testing.assert_array_max_ulp(np.asarray(value), np.asarray(expected)[0], 2)


@EVERY
def test_axis_is_the_class_axis(case):
  labels = LABELS.reshape(2, 3)
  masks = np.random.default_rng(3).random((2, 3, 5)) < 0.8
  np.put_along_axis(masks, labels[..., None], True, -1)
  assert not masks.all()

  def along(logits, where, axis):
    z = jnp.moveaxis(logits.reshape(2, 3, 5), -1, axis)
    moved = None if where is None else jnp.moveaxis(where, -1, axis)
    return case.loss(z, labels, axis=axis, where=moved)

  @quickly_compiled
  def every(logits, where):
    return [
      (along(logits, None, axis), along(logits, where, axis))
      for axis in (0, 1, 2)
    ]

  flat = masks.reshape(6, 5)
  expected = (
    np.asarray(compiled(case.loss)(LOGITS, LABELS)),
    both(case.loss)(LOGITS, LABELS, flat)[0],
  )
  sizes = (
    size_of(case, LOGITS, LABELS),
    size_of(case, np.where(flat, LOGITS, -np.inf), LABELS),
  )
  for actual in every(LOGITS, masks):
    for ours, theirs, size in zip(actual, expected, sizes, strict=True):
      close(np.ravel(ours), theirs, ulps=4, size=size)
  for axis in (0, 1, 2):
    # The same program, so it need not be compiled.
    first, second = (
      jax.make_jaxpr(functools.partial(along, axis=a))(LOGITS, masks)
      for a in (axis, axis - 3)
    )
    assert str(first) == str(second)
