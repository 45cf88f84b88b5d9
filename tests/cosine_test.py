# SPDX-License-Identifier: Apache-2.0
"""Every property that every loss of cosines must have."""

import functools

from cases import COSINE_CASES
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import heads
from support.contract import gradients_close, jit
from support.sharded import SPECS, mesh_of

from squentropy_jax import fused

EVERY = pytest.mark.parametrize("case", COSINE_CASES, ids=repr)
# The other losses are these with fewer arguments.
MOST_GENERAL = pytest.mark.parametrize(
  "case",
  [c for c in COSINE_CASES if c.name in ("combined_margin", "unpg")],
  ids=repr,
)
F32 = np.float32
RNG = np.random.default_rng(20180130)
COSINES = RNG.uniform(-0.95, 0.95, size=(6, 5)).astype(F32)
LABELS = np.array([0, 4, 2, 3, 1, 2], np.int32)
KEEP = np.arange(6) != 1
EVERYTHING = np.ones((6, 5), bool)
SOFT = RNG.dirichlet(np.ones(5), size=6).astype(F32)


def of_each(case):
  """Hyper-parameters ``[6]``, a little larger from example to example."""
  spread = 1 + 0.05 * np.arange(6)
  return {n: F32(x * spread) for n, x in case.hyperparameters.items()}


@functools.cache
def program(loss):
  """The loss of each row, and the gradients of their sum."""

  def total(floats, fixed):
    arguments = {**floats, **fixed}
    hyper = arguments.pop("hyper")
    each = loss(arguments.pop("cosines"), **arguments, **hyper)
    return each.sum(), each

  return jit(jax.grad(total, has_aux=True))


def evaluate(case, cosines, labels, where=EVERYTHING, hyper=None):
  """The losses, and their gradients by cosines and hyper-parameters.

  It is two programs for each case, for class ids and for soft labels.
  """
  hyper = of_each(case) if hyper is None else hyper
  floats, fixed = {"cosines": cosines, "hyper": hyper}, {"where": where}
  is_hard = np.issubdtype(np.asarray(labels).dtype, np.integer)
  (fixed if is_hard else floats)["labels"] = labels
  gradients, loss = program(case.loss)(floats, fixed)
  gradients = jax.tree.map(np.asarray, gradients)
  return np.asarray(loss), gradients["cosines"], gradients["hyper"]


def reference(case, cosines, labels, hyper, where=None):
  """The reference over a batch, masked classes taken away."""
  values = []
  where = np.ones(cosines.shape, bool) if where is None else where
  for i, (row, label) in enumerate(zip(cosines, labels, strict=True)):
    numbers = {name: float(x[i]) for name, x in hyper.items()}
    kept, target = np.float64(row)[where[i]], int(where[i, :label].sum())
    values.append(case.reference(kept, target, **numbers))
  return np.array(values)


def differences(function, x, step=1e-6):
  """Central differences of a function of one array, row by row."""
  gradient = np.zeros(x.shape)
  for k in np.ndindex(x.shape[1:]):
    up, down = np.float64(x), np.float64(x)
    up[(..., *k)] += step
    down[(..., *k)] -= step
    gradient[(..., *k)] = (function(up) - function(down)) / (2 * step)
  return gradient


@EVERY
def test_value_and_gradients(case):
  np.testing.assert_allclose(
    case.loss(COSINES, LABELS),
    reference(case, COSINES, LABELS, {}),
    rtol=1e-5,
    atol=1e-6,
  )
  hyper = of_each(case)
  loss, gradient, by_number = evaluate(case, COSINES, LABELS)

  def at(cosines=COSINES, **changed):
    return reference(case, cosines, LABELS, hyper | changed)

  np.testing.assert_allclose(loss, at(), rtol=1e-5)
  gradients_close(gradient, differences(at, COSINES))
  for name, found in by_number.items():
    expected = differences(lambda x, name=name: at(**{name: x}), hyper[name])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@EVERY
def test_soft_labels_are_expected_hard_labels(case):
  each = np.stack(
    [reference(case, COSINES, [k] * 6, of_each(case)) for k in range(5)], -1
  )
  loss, gradient, _ = evaluate(case, COSINES, SOFT)
  np.testing.assert_allclose(loss, (SOFT * each).sum(-1), rtol=1e-5)
  gradients_close(
    gradient,
    sum(
      SOFT[:, k, None] * evaluate(case, COSINES, np.full(6, k, np.int32))[1]
      for k in range(5)
    ),
  )


@EVERY
def test_masks_of_examples_and_classes(case):
  hyper = {n: np.where(KEEP, x, F32(np.nan)) for n, x in of_each(case).items()}
  labels = np.where(KEEP, LABELS, -100)
  classes = np.random.default_rng(3).random((6, 5)) < 0.7
  np.put_along_axis(classes, LABELS[:, None], True, -1)
  classes[1] = False
  assert not classes[KEEP].all()
  cosines = np.where(classes, COSINES, F32(np.nan))
  loss, gradient, by_number = evaluate(case, cosines, labels, classes, hyper)
  kept = {n: x[KEEP] for n, x in hyper.items()}
  expected = reference(case, COSINES[KEEP], LABELS[KEEP], kept, classes[KEEP])
  np.testing.assert_allclose(loss[KEEP], expected, rtol=1e-5)
  assert loss[1] == 0
  np.testing.assert_array_equal(gradient[~classes], 0)
  assert np.isfinite(gradient).all()
  assert all(x[1] == 0 for x in by_number.values())
  # With values that can be read, where those of dropped rows are not.
  np.testing.assert_array_equal(
    np.isfinite(case.loss(cosines, labels, where=classes, **hyper)), True
  )
  classes[2, LABELS[2]] = False
  loss, *_ = evaluate(case, cosines, labels, classes, hyper)
  np.testing.assert_array_equal(np.isnan(loss), np.arange(6) == 2)
  for array in evaluate(case, cosines, labels, np.zeros((6, 5), bool), hyper)[
    :2
  ]:
    np.testing.assert_array_equal(array, 0)


@EVERY
def test_every_cosine_from_end_to_end_has_a_finite_gradient(case):
  ulp = np.finfo(F32).eps
  ends = np.array([1, -1, 1 + ulp, -1 - ulp, 1 - ulp / 2, 0], F32)
  cosines = np.broadcast_to(ends[:, None], (6, 5))
  # Ties, and one cosine against those of the opposite sign.
  for others in (cosines, -cosines):
    z = np.where(np.arange(5) == 0, cosines, others)
    for targets in (np.zeros(6, np.int32), np.full((6, 5), 0.2, F32)):
      for array in jax.tree.leaves(evaluate(case, z, targets)):
        assert np.isfinite(array).all()


@EVERY
def test_numbers_that_are_no_cosines_give_nan_in_their_row(case):
  cosines, labels = COSINES.copy(), LABELS.copy()
  cosines[0, 0], cosines[2, 2] = 1.05, -7.0
  cosines[3, 0], cosines[4, 1] = np.nan, np.inf
  labels[5] = 5
  bad = np.arange(6) != 1
  loss, gradient, _ = evaluate(case, cosines, labels)
  np.testing.assert_array_equal(np.isnan(loss), bad)
  np.testing.assert_array_equal(np.isnan(gradient).all(-1), bad)
  # A cosine of -inf is that of an impossible class.
  cosines = np.where(np.eye(6, 5) > 0, F32(-np.inf), COSINES)
  loss, gradient, _ = evaluate(case, cosines, LABELS)
  np.testing.assert_array_equal(loss == np.inf, [1, 0, 1, 1, 0, 0])
  assert not np.isnan(gradient).any()
  with pytest.raises(ValueError, match=r"labels\[5\] = 5"):
    case.loss(COSINES, labels)
  # With values that can be read, a logit of any kept class raises.
  for place in ((1, 1), (1, 2)):
    logits = COSINES.copy()
    logits[place] = -1.05
    with pytest.raises(ValueError, match=r"cosines must be in .*got -1\.05"):
      case.loss(logits, LABELS)
    for dropped in (np.arange(6) != 1, logits >= -1):
      assert np.isfinite(case.loss(logits, LABELS, where=dropped)[2])
  with pytest.raises(TypeError, match="cosines must be floating"):
    case.loss(np.zeros((6, 5), int), LABELS)


@MOST_GENERAL
def test_transformations_axes_and_dtypes(case):
  narrow = jnp.asarray(COSINES, jnp.bfloat16)
  hyper = case.hyperparameters
  loss = functools.partial(case.loss, **hyper)

  @jit
  def every(cosines, narrow):
    value, gradient = jax.vmap(jax.value_and_grad(loss))(cosines, LABELS)
    other_axis = loss(cosines.T, LABELS, axis=0)
    wide = [
      jax.value_and_grad(lambda c: loss(c, LABELS).sum())(c)
      for c in (narrow, narrow.astype(F32))
    ]
    tangent = jax.jvp(lambda c: loss(c, LABELS), (cosines,), (cosines,))
    return (value, other_axis, tangent[0]), gradient, tangent[1], wide

  values, gradient, along, wide = every(COSINES, narrow)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  flat = {n: np.full(6, x, F32) for n, x in hyper.items()}
  expected = evaluate(case, COSINES, LABELS, hyper=flat)
  for value in values:
    close(value, expected[0])
  close(gradient, expected[1])
  close(along, (expected[1] * COSINES).sum(-1))
  assert wide[0][1].dtype == narrow.dtype
  assert wide[0][0] == wide[1][0]
  np.testing.assert_array_equal(
    wide[0][1].astype(F32), wide[1][1].astype(narrow.dtype).astype(F32)
  )
  close(loss(COSINES.tolist(), LABELS), expected[0])


@EVERY
def test_hyperparameters_outside_their_domain_raise(case):
  for name in case.hyperparameters:
    for bad in (np.nan, np.inf, 0.0 if name == "scale" else -np.inf):
      with pytest.raises(ValueError, match=f"{name} must be in"):
        case.loss(COSINES, LABELS, **{name: bad})
    with pytest.raises(ValueError, match=rf"{name} must be a scalar or have"):
      case.loss(COSINES, LABELS, **{name: np.ones(5, F32)})


@EVERY
def test_predictions_are_made_without_the_margin(case):
  scale = case.hyperparameters["scale"]
  z = scale * np.float64(COSINES)
  expected = np.exp(z - np.logaddexp.reduce(z, axis=-1, keepdims=True))
  loss = getattr(case.loss, "func", case.loss)
  keywords = getattr(case.loss, "keywords", {})
  log_probs = loss.log_probs(COSINES, scale=scale, **keywords)
  np.testing.assert_allclose(np.exp(log_probs), expected, rtol=1e-5)


@pytest.mark.x64
@EVERY
def test_second_derivatives(case):
  """Of cosines and hyper-parameters together, along a direction."""
  arrays = (
    np.float64(COSINES[:2]),
    {n: np.float64(x[:2]) for n, x in of_each(case).items()},
  )
  rng = np.random.default_rng(5)
  u, v = (
    jax.tree.map(lambda x: rng.normal(size=x.shape), arrays) for _ in range(2)
  )

  def total(arrays):
    return case.loss(arrays[0], LABELS[:2], **arrays[1]).sum()

  def along(gradients, direction):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradients, direction)))

  @jit
  def derivative_and_curvature(arrays):
    def derivative(arrays):
      return along(jax.grad(total)(arrays), u)

    return derivative(arrays), along(jax.grad(derivative)(arrays), v)

  up, down = (
    jax.tree.map(lambda x, d, step=step: x + step * d, arrays, v)
    for step in (1e-5, -1e-5)
  )
  found = derivative_and_curvature(arrays)[1]
  difference = (
    derivative_and_curvature(up)[0] - derivative_and_curvature(down)[0]
  )
  np.testing.assert_allclose(found, difference / 2e-5, rtol=1e-6)


@pytest.mark.x64
@MOST_GENERAL
def test_fused_heads_are_the_dense_loss(case):
  """In tiles and on a mesh, with one value of each number for each row."""
  width, classes = 7, 300
  rng = np.random.default_rng(11)
  features = rng.normal(size=(6, width))
  kernel = rng.normal(size=(width, classes))
  features /= np.linalg.norm(features, axis=-1, keepdims=True)
  kernel /= np.linalg.norm(kernel, axis=0)
  labels = rng.integers(0, classes, 6)
  weights = np.where(KEEP, np.linspace(-1, 2, 6), 0.0)
  numbers = {n: np.float64(x) for n, x in of_each(case).items()}

  def dense(features, kernel, numbers):
    return case.loss(features @ kernel, labels, **numbers) @ weights

  def head(features, kernel, numbers, **settings):
    return fused.linear_loss_sum(
      functools.partial(case.loss, **numbers),
      jnp.where(KEEP[:, None], features, jnp.nan),
      kernel,
      np.where(KEEP, labels, -100),
      weights=weights,
      where=KEEP,
      plan=fused.Plan("grad_in_forward" if settings else None, 1),
      **settings,
    )[0]

  on_mesh = functools.partial(head, mesh=mesh_of((2, 4)), **SPECS)

  @heads.jit
  def every(*arguments):
    return [
      jax.value_and_grad(f, (0, 1, 2))(*arguments)
      for f in (dense, head, on_mesh)
    ]

  expected, *others = every(features, kernel, numbers)
  for found in others:
    for one, other in zip(
      jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)
