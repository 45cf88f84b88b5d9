# SPDX-License-Identifier: Apache-2.0
"""Every property that every loss of the catalogue must have.

Compiling is most of the time. So a case compiles its value, its gradient and
its gradient under a mask once each, for all tests; what else is checked goes
operation by operation, whose kernels all cases share.
"""

import functools

from cases import CLASS_CASES, OTHERS
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from squentropy_jax import RowStats
from squentropy_jax.losses import _catalogue

EVERY = pytest.mark.parametrize("case", CLASS_CASES, ids=repr)
ROW = pytest.mark.parametrize(
  "case", [c for c in CLASS_CASES if hasattr(c.loss, "row")], ids=repr
)
PREDICTS = pytest.mark.parametrize(
  "case", [c for c in CLASS_CASES if c.predicts], ids=repr
)
PROPER = {entry.name: entry.proper for entry in _catalogue.CATALOGUE}
SOFT = pytest.mark.parametrize(
  "case", [c for c in CLASS_CASES if c.soft_is_expected], ids=repr
)
F32 = np.float32
RNG = np.random.default_rng(20230207)

# Six rows and five classes: small, ragged, and larger than any corner of them.
LOGITS = RNG.normal(size=(6, 5)).astype(F32) * 2
LABELS = np.array([0, 4, 2, 3, 1, 2], np.int32)


# Programs this small take longer to optimise than to run.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


@functools.cache
def compiled(loss):
  """One jitted loss per case, shared by the tests."""
  return jit(loss, static_argnames="axis")


@functools.cache
def gradient(loss):
  def total(logits, labels, **hyperparameters):
    return loss(logits, labels, **hyperparameters).sum()

  return jit(jax.grad(total))


def value_and_gradients(loss, logits, labels, where=None):
  """Losses and their gradients in the logits and, if soft, in the labels."""

  def of(logits, labels):
    return loss(logits, labels, where=where)

  if jnp.issubdtype(labels.dtype, jnp.integer):
    value, pull = jax.vjp(lambda logits: of(logits, labels), logits)
  else:
    value, pull = jax.vjp(of, logits, labels)
  return value, *pull(jnp.ones_like(value))


def by_operation(function):
  """The same function, nothing of it compiled."""

  def run(*args, **kwargs):
    with jax.disable_jit():
      return jax.tree.map(np.asarray, function(*args, **kwargs))

  return run


def both(loss):
  """`value_and_grads` of one loss, operation by operation."""
  return by_operation(functools.partial(value_and_gradients, loss))


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


def reference_gradient(case, logits, labels, **hyperparameters):
  """Central differences of the reference; 0 at impossible classes."""
  step, grad = 1e-5, np.zeros(logits.shape)
  for k in range(logits.shape[-1]):
    if (logits[:, k] == -np.inf).all():
      continue
    up, down = np.float64(logits), np.float64(logits)
    up[:, k] += step
    down[:, k] -= step
    grad[:, k] = (
      reference(case, up, labels, **hyperparameters)
      - reference(case, down, labels, **hyperparameters)
    ) / (2 * step)
  return grad


def gradients_close(actual, expected):
  np.testing.assert_allclose(
    actual, expected, rtol=1e-5, atol=4e-6 * np.abs(expected).max()
  )


def size_of(case, logits, labels, **hyperparameters):
  """What rounding errors are relative to: the loss itself, or its terms."""
  sized = case if case.size is None else case._replace(reference=case.size)
  return np.abs(reference(sized, logits, labels, **hyperparameters))


def close(actual, expected, ulps=64, size=None):
  """Equal up to rounding errors of the largest term."""
  size = np.abs(expected) if size is None else size
  tolerance = ulps * np.finfo(F32).eps * np.maximum(size, 1e-30)
  np.testing.assert_array_less(
    np.abs(np.float64(actual) - expected), tolerance + 1e-37
  )


# Value.


@EVERY
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_value(case, scale):
  logits = LOGITS * F32(scale)
  for run, hyper in (
    (compiled, {}),
    (by_operation, case.hyperparameters),
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
    by_operation(gradient(case.loss))(LOGITS, LABELS, **hyper),
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
    of_all = by_operation(jax.grad(total, has_aux=True))
    gradient_of, losses = of_all(batch, labels)
    assert losses[3] == 0
    for name in hyper:
      assert gradient_of[name][3] == 0
    for i in np.flatnonzero(keep)[:2]:
      one, expected = by_operation(
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


def predicted(case, logits):
  """The probabilities that a model trained with the loss predicts."""
  loss = getattr(case.loss, "func", case.loss)
  keywords = getattr(case.loss, "keywords", {})
  log_probs = loss.log_probs(F32(logits), **keywords)
  return np.exp(np.float64(log_probs))


@PREDICTS
def test_proper_is_what_is_least_at_the_distribution_of_labels(case):
  """At the defaults: what the table says, by minimising the reference."""
  labels = RNG.dirichlet([2.0] * 3, size=2)

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
  @by_operation
  def every(logits, labels):
    return {
      "deep": case.loss(logits.reshape(1, 2, 3, 5), labels.reshape(1, 2, 3)),
      "one": case.loss(logits[0], labels[0]),
      "none": case.loss(logits[:0], labels[:0]),
      "mapped": jax.vmap(case.loss)(logits, labels),
      "gradients": jax.vmap(jax.grad(case.loss))(logits, labels),
    }

  actual = every(LOGITS, LABELS)
  expected = by_operation(case.loss)(LOGITS, LABELS)
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
  run = by_operation(case.loss)
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

  @by_operation
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


# Masks and impossible classes.


@EVERY
def test_dropped_examples_leave_no_trace(case):
  keep = np.array([True, False, True, False, False, True])
  logits, labels = LOGITS.copy(), LABELS.copy()
  logits[1], logits[3], logits[4] = np.nan, np.inf, -np.inf
  labels[1], labels[3] = -100, 99
  expected = np.asarray(compiled(case.loss)(LOGITS, LABELS))[keep]
  one_program = jit(functools.partial(value_and_gradients, case.loss))
  jitted, grad = (np.asarray(x) for x in one_program(logits, labels, keep))
  for actual in (np.asarray(case.loss(logits, labels, where=keep)), jitted):
    np.testing.assert_array_max_ulp(actual[keep], expected, 2)
    np.testing.assert_array_equal(actual[~keep], 0)
  np.testing.assert_array_equal(grad[~keep], 0)
  np.testing.assert_allclose(
    grad[keep],
    np.asarray(gradient(case.loss)(LOGITS, LABELS))[keep],
    rtol=1e-6,
    atol=1e-7,
  )
  for array in one_program(logits, labels, np.zeros(6, bool)):
    np.testing.assert_array_equal(array, 0)


@EVERY
def test_masked_and_impossible_classes_are_removed(case):
  kept = np.array([True, False, True, True, False])
  labels = np.array([0, 2, 3, 0, 2, 3], np.int32)
  mask = np.broadcast_to(kept, LOGITS.shape)
  garbage = np.where(kept, LOGITS, F32(np.nan))
  impossible = np.where(kept, LOGITS, F32(-np.inf))
  expected = reference(case, impossible, labels)
  grads = reference_gradient(case, impossible, labels)
  for logits, where in ((garbage, mask), (impossible, None), (LOGITS, mask)):
    loss, grad = both(case.loss)(logits, labels, where)
    close(loss, expected, ulps=128, size=size_of(case, impossible, labels))
    np.testing.assert_array_equal(grad[:, ~kept], 0)
    gradients_close(grad, grads)


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
  _, grad = both(case.loss)(logits, labels, mask)
  np.testing.assert_array_equal(grad[1], 0)
  assert np.isfinite(grad).all()
  empty = np.where(mask, LOGITS, F32(-np.inf))
  loss = np.asarray(compiled(case.loss)(empty, LABELS))
  np.testing.assert_array_equal(np.isnan(loss), ~mask[:, 0])


@EVERY
def test_a_masked_target_is_nan(case):
  mask = np.ones(LOGITS.shape, bool)
  mask[2, LABELS[2]] = False
  loss, _ = both(case.loss)(LOGITS, LABELS, mask)
  np.testing.assert_array_equal(np.isnan(loss), np.arange(6) == 2)


@EVERY
def test_corner_rows(case):
  one, grad = both(case.loss)(F32([[0.5]]), np.array([0]))
  close(one[0], case.single_class, size=1.0)
  assert np.isfinite(grad).all()
  logits, labels = LOGITS.copy(), LABELS.copy()
  logits[0], labels[0] = [-np.inf, 0.5, -np.inf, -np.inf, -np.inf], 1
  logits[1], labels[1] = [*OTHERS, -np.inf, -np.inf], 3
  loss, grad = both(case.loss)(logits, labels)
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
    loss = np.asarray(compiled(case.loss)(logits, LABELS))
    np.testing.assert_array_equal(np.isnan(loss), np.arange(6) < 3)


@EVERY
def test_bad_labels_set_to_nan_their_row_alone(case):
  labels = np.array([0, 5, -1, -100, 1, 2**31 - 1])
  bad = np.array([False, True, True, True, False, True])
  np.testing.assert_array_equal(
    np.isnan(compiled(case.loss)(LOGITS, labels)), bad
  )
  grad = np.asarray(gradient(case.loss)(LOGITS, labels))
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


# Soft labels.


def soft_labels():
  p = RNG.random((6, 5)).astype(F32)
  return p / p.sum(-1, keepdims=True)


@SOFT
def test_one_hot_equals_hard(case):
  one_hot = np.eye(5, dtype=F32)[LABELS]
  loss, grad, _ = both(case.loss)(LOGITS, one_hot)
  size = size_of(case, LOGITS, LABELS)
  close(loss, compiled(case.loss)(LOGITS, LABELS), ulps=128, size=size)
  np.testing.assert_allclose(
    grad, gradient(case.loss)(LOGITS, LABELS), rtol=1e-4, atol=1e-6
  )


@SOFT
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_soft_labels_are_expected_hard_labels(case, scale):
  p, logits = soft_labels(), LOGITS * F32(scale)
  each, sizes = (
    np.stack([f(case, logits, [k] * 6) for k in range(5)], axis=-1)
    for f in (reference, size_of)
  )
  loss, grad, by_label = both(case.loss)(logits, p)
  close(loss, (p * each).sum(-1), ulps=128, size=(p * sizes).sum(-1))
  if not hasattr(case.loss, "row"):
    # What is the same for every class is no gradient within the simplex.
    by_label = by_label + (each[:, :1] - by_label[:, :1])
  close(by_label, each, ulps=128, size=sizes + sizes[:, :1])
  grads = sum(
    p[:, k, None] * gradient(case.loss)(logits, np.full(6, k)) for k in range(5)
  )
  gradients_close(grad, grads)


@SOFT
def test_soft_labels_on_impossible_and_masked_classes(case):
  p = soft_labels()
  p[:, 1] = 0
  p /= p.sum(-1, keepdims=True)
  kept = np.array([True, False, True, True, True])
  logits = np.where(kept, LOGITS, F32(-np.inf))
  mask = np.broadcast_to(kept, LOGITS.shape)
  classes = np.flatnonzero(kept)
  expected, size = (
    sum(p[:, k] * f(case, logits, [k] * 6) for k in classes)
    for f in (reference, size_of)
  )
  for z, where in ((logits, None), (LOGITS, mask)):
    loss, grad, _ = both(case.loss)(z, p, where)
    close(loss, expected, ulps=128, size=size)
    np.testing.assert_array_equal(grad[:, 1], 0)
    assert np.isfinite(grad).all()
  p[2, 1] = 0.1
  loss, _, _ = both(case.loss)(LOGITS, p, mask)
  np.testing.assert_array_equal(np.isnan(loss), np.arange(6) == 2)
  limit, _, _ = both(case.loss)(logits, p)
  assert np.isfinite(limit[2]) == np.isfinite(case.impossible_target)


@SOFT
def test_dropped_examples_with_soft_labels(case):
  p, logits = soft_labels(), LOGITS.copy()
  logits[1], p[1] = np.nan, np.nan
  keep = np.arange(6) != 1
  loss, grad, _ = both(case.loss)(logits, p, keep)
  assert loss[1] == 0
  assert np.isfinite(loss).all()
  np.testing.assert_array_equal(grad[1], 0)
  assert np.isfinite(grad).all()


# Transformations.


@EVERY
def test_second_derivatives(case):
  step = F32(1e-2)

  @by_operation
  def every(row, label):
    def grad(logits):
      return jax.grad(case.loss)(logits, label)

    nudges = step * jnp.eye(5)
    moved = jnp.concatenate([row[None] + nudges, row[None] - nudges])
    up, down = jnp.split(jax.vmap(grad)(moved), 2)
    forward, backward = jax.jacfwd(grad)(row), jax.jacrev(grad)(row)
    return forward, backward, (up - down) / (2 * step)

  forward, backward, centred = every(LOGITS[0], LABELS[0])
  np.testing.assert_allclose(forward, backward, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(forward, forward.T, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(forward, centred, rtol=2e-2, atol=2e-3)


@EVERY
def test_forward_mode_agrees_with_reverse_mode(case):
  tangent = RNG.normal(size=LOGITS.shape).astype(F32)
  value, along = by_operation(
    lambda z, dz: jax.jvp(lambda z: case.loss(z, LABELS), (z,), (dz,))
  )(LOGITS, tangent)
  np.testing.assert_array_equal(value, by_operation(case.loss)(LOGITS, LABELS))
  grad = gradient(case.loss)(LOGITS, LABELS)
  np.testing.assert_allclose(
    along, (grad * tangent).sum(-1), rtol=1e-4, atol=1e-5
  )


@EVERY
def test_scan_donation_and_traces(case):
  chex.clear_trace_counter()

  @functools.partial(jit, donate_argnums=0)
  @chex.assert_max_traces(n=1)
  def three_steps(logits):
    def step(z, _):
      return z - jax.grad(lambda z: case.loss(z, LABELS).sum())(z), None

    return jax.lax.scan(step, logits, length=3)[0]

  logits = LOGITS
  for _ in range(3):
    logits = logits - np.asarray(gradient(case.loss)(logits, LABELS))
  for _ in range(2):
    np.testing.assert_allclose(
      three_steps(jnp.array(LOGITS)), logits, rtol=1e-5, atol=1e-6
    )


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
    rest_expected=(jax.nn.softmax(rest) * rest).sum(),
    num_classes=jnp.asarray(float(logits.size)),
  )


@pytest.mark.x64
@ROW
def test_custom_rule_equals_plain_autodiff(case):
  row, label = np.float64(LOGITS[1]), int(LABELS[1])

  def plain(z):
    if case.loss.transform is not None:
      z = case.loss.transform(z, case.hyperparameters)
    return case.loss.row(plain_stats(z, label), **case.hyperparameters)

  def ours(z):
    return case.loss(z, label, **case.hyperparameters)

  @jit
  def every(z):
    derivatives = (jax.grad, jax.jacfwd, jax.hessian)
    return [(f(z), [d(f)(z) for d in derivatives]) for f in (ours, plain)]

  (value, grads), (expected, expected_gradients) = every(row)
  np.testing.assert_allclose(value, expected, rtol=1e-12)
  for found, grad in zip(grads, expected_gradients, strict=True):
    np.testing.assert_allclose(found, grad, rtol=1e-10, atol=1e-12)


@pytest.mark.x64
@EVERY
def test_wide_labels_are_checked_in_their_own_dtype(case):
  labels = np.array([0, 4, 2**32, 3, -(2**32), 2], np.int64)
  loss = np.asarray(compiled(case.loss)(np.float64(LOGITS), labels))
  np.testing.assert_array_equal(np.isnan(loss), [0, 0, 1, 0, 1, 0])
