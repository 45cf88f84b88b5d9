# SPDX-License-Identifier: Apache-2.0
"""Every loss of the catalogue in float64, where rounding hides no error.

These run only with JAX_ENABLE_X64=1, in a process of their own.
"""

from cases import CLASS_CASES
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.contract import compiled, jit

pytestmark = pytest.mark.x64
EVERY = pytest.mark.parametrize("case", CLASS_CASES, ids=repr)

RNG = np.random.default_rng(7)
LOGITS = RNG.normal(size=(6, 5)) * 3
LABELS = np.array([0, 4, 2, 3, 1, 2])
SOFT = RNG.dirichlet(np.ones(5), size=6)


def _hyperparameters(case):
  return ({}, case.hyperparameters) if case.hyperparameters else ({},)


@EVERY
def test_value_is_accurate_in_float64(case):
  for hyper in _hyperparameters(case):
    expected = [
      case.reference(row, label, **hyper)
      for row, label in zip(LOGITS, LABELS, strict=True)
    ]
    actual = compiled(case.loss)(LOGITS, LABELS, **hyper)
    assert actual.dtype == np.float64
    # Sums of five terms and an exponential of a difference of at most 20,
    # rounded on both sides.
    np.testing.assert_allclose(
      actual, expected, rtol=40 * np.finfo(np.float64).eps
    )


def check_derivatives(total, *arrays):
  """Reverse mode of both orders equals central differences of one order less.

  Along random directions, and in one program.
  """
  rng = np.random.default_rng(7)
  u, v = ([rng.normal(size=x.shape) for x in arrays] for _ in range(2))
  inputs = tuple(range(len(arrays)))

  def along(gradients, directions):
    return sum(map(jnp.vdot, gradients, directions))

  @jit
  def every(*arrays):
    def first(*arrays):
      return along(jax.grad(total, inputs)(*arrays), v)

    directional, gradients = jax.value_and_grad(first, inputs)(*arrays)
    return total(*arrays), directional, along(gradients, u)

  def difference(k, directions):
    step = 1e-5
    up, down = (
      every(
        *(x + sign * step * d for x, d in zip(arrays, directions, strict=True))
      )[k]
      for sign in (1, -1)
    )
    return (up - down) / (2 * step)

  _, directional, curvature = every(*arrays)
  np.testing.assert_allclose(
    directional, difference(0, v), rtol=1e-6, atol=1e-6
  )
  np.testing.assert_allclose(curvature, difference(1, u), rtol=1e-6, atol=1e-6)


@EVERY
def test_derivatives_of_first_and_second_order(case):
  # In reverse; contract_transformations_test compares forward mode with it.
  def total(z, labels):
    return case.loss(z, labels, **case.hyperparameters).sum()

  check_derivatives(lambda z: total(z, LABELS), LOGITS)
  check_derivatives(total, LOGITS[:3], SOFT[:3])


@pytest.mark.parametrize(
  "case", [c for c in CLASS_CASES if c.soft_is_expected], ids=repr
)
def test_soft_labels_are_the_expected_hard_label(case):
  expected = sum(
    SOFT[:, k] * case.loss(LOGITS, np.full(6, k)) for k in range(5)
  )
  np.testing.assert_allclose(
    case.loss(LOGITS, SOFT), expected, rtol=64 * np.finfo(np.float64).eps
  )


@EVERY
def test_float32_logits_stay_float32(case):
  logits = jnp.asarray(LOGITS, jnp.float32)
  for labels in (LABELS, SOFT):
    loss, grad = jax.eval_shape(
      jax.value_and_grad(lambda z, labels=labels: case.loss(z, labels).sum()),
      logits,
    )
    assert loss.dtype == np.float32
    assert grad.dtype == np.float32


@EVERY
@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_labels_out_of_range_of_int64(case, label):
  labels = LABELS.copy()
  labels[3] = label
  with pytest.raises(ValueError, match=r"labels\[3\]"):
    case.loss(LOGITS, labels)
  losses = compiled(case.loss)(LOGITS, labels)
  np.testing.assert_array_equal(np.isnan(losses), np.arange(6) == 3)
