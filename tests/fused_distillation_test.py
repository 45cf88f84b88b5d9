# SPDX-License-Identifier: Apache-2.0
"""The divergence of a student's head from its teacher's."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support import heads
from support.distillation import (
  BIAS,
  CLASSES,
  COTANGENT,
  FEATURES,
  KERNEL,
  KINDS,
  RNG,
  ROWS,
  SMALL,
  TEACHER,
  TEACHER_BIAS,
  TEMPERATURE,
  divergence,
  head,
  reference,
)
from support.layouts import LAYOUTS
from support.programs import products

from squentropy_jax import fused, losses

CAPS = 2.0, 3.0


@pytest.mark.parametrize(
  ("kind", "caps"),
  [("forward_kl", None), ("reverse_kl", CAPS), ("jensen_shannon", CAPS)],
)
def test_value_and_every_gradient(kind, caps):
  settings = {}
  if caps is not None:
    settings = dict(
      zip(("student_soft_cap", "teacher_soft_cap"), caps, strict=True)
    )

  def total(*arguments):
    each = head(*arguments, divergence=kind, **settings)
    return (each * COTANGENT).sum(), each

  arguments = (FEATURES, KERNEL, BIAS, TEMPERATURE)
  run = heads.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))
  (_, each), gradients = run(*arguments)
  expected, exact = reference(kind, *arguments, (*TEACHER, TEACHER_BIAS), caps)
  np.testing.assert_allclose(each, expected, rtol=4e-6)
  for found, wanted in zip(gradients, exact, strict=True):
    size = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * size)


def test_default_is_the_dense_loss_of_one_teacher():
  def dense(features, kernel):
    return losses.ensemble_distillation(
      features @ kernel, (TEACHER[0] @ TEACHER[1])[None], temperature=2.0
    ).sum()

  def fused_sum(features, kernel):
    return fused.linear_distillation(
      features, kernel, *TEACHER, temperature=2.0
    ).sum()

  found, expected = (
    heads.jit(jax.value_and_grad(f, (0, 1)))(FEATURES, KERNEL)
    for f in (fused_sum, dense)
  )
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_student_close_to_its_teacher(kind):
  """The kernels differ by 2^-12 in what float32 holds exactly."""
  step = RNG.integers(-4, 5, KERNEL.shape) * 2.0**-12
  teacher = heads.FEATURES, heads.KERNEL
  near = (heads.KERNEL + step).astype(np.float32)
  run = heads.jit(
    functools.partial(fused.linear_distillation, divergence=kind, plan=SMALL)
  )
  found = run(heads.FEATURES, near, *teacher)
  z, t = (
    heads.FEATURES.astype(np.float64) @ k.astype(np.float64)
    for k in (near, heads.KERNEL)
  )
  with jax.enable_x64(True):
    exact = np.asarray(divergence(kind, jnp.asarray(z), jnp.asarray(t)))
  # The logits are off by up to u |z|, and the log-normalizers by some ulp.
  off = 2.0**-24 * (np.abs(z).max(-1) + 8)
  assert np.all(np.abs(found - exact) <= off * np.sqrt(2 * exact) + off**2)
  # The definition would be off by an ulp of the entropy, some percent of this.
  assert np.all(exact < 1e-5)
  np.testing.assert_allclose(found, exact, rtol=2e-2)
  assert np.all(np.asarray(run(*teacher, *teacher)) == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_impossible_classes(kind):
  def total(features, kernel, bias, teacher_bias, keep):
    each = fused.linear_distillation(
      features,
      kernel,
      *TEACHER,
      divergence=kind,
      student_bias=bias,
      teacher_bias=teacher_bias,
      where=keep,
      plan=SMALL,
    )
    return each.sum(), each

  run = heads.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))
  keep = np.ones(ROWS, bool)
  none, one, two = np.zeros((3, CLASSES), np.float32)
  one[7] = two[[2, 7]] = -np.inf
  # Of both: as without the class.
  (_, each), gradients = run(FEATURES, KERNEL, one, one, keep)
  others = np.arange(CLASSES) != 7
  z, t = (FEATURES @ KERNEL)[:, others], (TEACHER[0] @ TEACHER[1])[:, others]
  np.testing.assert_allclose(each, divergence(kind, z, t), rtol=1e-4)
  for gradient in gradients:
    assert np.all(np.isfinite(gradient))
  assert np.all(np.asarray(gradients[1])[:, 7] == 0)
  # Of one of them: 2 for the student, 7 for the teacher.
  for bias, of_teacher, infinite in (
    (one, none, "forward_kl"),
    (none, one, "reverse_kl"),
    (two, one, "forward_kl"),
  ):
    (_, each), gradients = run(FEATURES, KERNEL, bias, of_teacher, keep)
    assert np.all(np.asarray(each) == np.inf) == (kind == infinite)
    assert not np.any(np.isnan(each))
    if kind != "reverse_kl" or infinite != kind:
      for gradient in gradients:
        assert np.all(np.isfinite(gradient))
  # Infinite rows that are dropped, and those that are kept.
  keep[1:] = False
  (_, each), gradients = run(FEATURES, KERNEL, none, one, keep)
  assert np.all(np.asarray(each)[1:] == 0)
  assert np.all(np.asarray(gradients[0])[1:] == 0)
  (_, each), gradients = run(FEATURES, KERNEL, none, one, keep & False)
  for found in (each, *gradients):
    assert np.all(np.asarray(found) == 0)


def test_dropped_rows_may_hold_anything():
  keep = np.arange(ROWS) % 2 == 0
  bad = FEATURES.copy(), TEACHER[0].copy(), TEMPERATURE.copy()
  for x in bad:
    x[~keep] = np.nan

  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
  def total(features, kernel, temperature, of_teacher):
    each = fused.linear_distillation(
      features,
      kernel,
      of_teacher,
      TEACHER[1],
      temperature=temperature,
      where=keep,
      plan=SMALL,
    )
    return (each * COTANGENT).sum(), each

  run = heads.jit(total)
  found = run(bad[0], KERNEL, bad[2], bad[1])
  clean = run(FEATURES, KERNEL, TEMPERATURE, TEACHER[0])
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(clean), strict=True):
    np.testing.assert_array_equal(a, b)
  assert np.all(np.asarray(found[0][1])[~keep] == 0)
  # A row that is kept is NaN alone.
  (_, each), gradients = run(bad[0], KERNEL, TEMPERATURE, TEACHER[0])
  assert np.all(np.isfinite(each))
  features = FEATURES.copy()
  features[0, 0] = np.inf
  (_, each), gradients = run(features, KERNEL, TEMPERATURE, TEACHER[0])
  assert np.isnan(each[0])
  assert np.all(np.isfinite(each[1:]))
  assert np.all(np.isfinite(gradients[0][1:]))


def test_teacher_is_constant():
  def total(features, kernel, bias):
    return fused.linear_distillation(
      FEATURES, KERNEL, features, kernel, teacher_bias=bias
    ).sum()

  for gradient in jax.grad(total, (0, 1, 2))(*TEACHER, TEACHER_BIAS):
    assert np.all(np.asarray(gradient) == 0)


def test_products():
  """All gradients: five of the student, three of the teacher."""
  rows, classes, width, of_teacher = 8, 32, 1024, 256
  arguments = [
    jax.ShapeDtypeStruct(shape, np.float32)
    for shape in (
      (rows, width),
      (width, classes),
      (classes,),
      (rows,),
      (rows, of_teacher),
      (of_teacher, classes),
    )
  ]

  def total(features, kernel, bias, temperature, *teacher):
    return fused.linear_distillation(
      features,
      kernel,
      *teacher,
      student_bias=bias,
      temperature=temperature,
      divergence="jensen_shannon",
    ).sum()

  def cost(student, teacher):
    return rows * classes * (student * width + teacher * of_teacher)

  assert products(total, *arguments) == cost(2, 2)
  found = products(jax.grad(total, (0, 1, 2, 3)), *arguments)
  assert found == cost(5, 3)
  assert products(jax.grad(total), *arguments) == cost(4, 3)
  # The compiler counts one of the two tiles, and the elementwise operations:
  # fewer than those of one product.
  compiled = jax.jit(jax.grad(total, (0, 1, 2, 3))).lower(*arguments).compile()
  flops = compiled.cost_analysis()["flops"]
  assert found <= flops < found + cost(0, 1)


def test_memory_is_that_of_a_tile():
  """The logits of each would take 64 MiB."""
  rows, classes, width = 1024, 16384, 64
  shapes = (rows, width), (width, classes), (rows, 32), (32, classes)
  arguments = [jax.ShapeDtypeStruct(x, np.float32) for x in shapes]

  def total(*arrays):
    return fused.linear_distillation(
      *arrays, divergence="jensen_shannon", plan=fused.Plan(memory_budget=2**23)
    ).sum()

  run = jax.jit(jax.value_and_grad(total, (0, 1)))
  used = run.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
  assert used <= 2**23 + 64 * 4 * rows


def test_dtypes():
  bfloat16 = [jnp.asarray(x, jnp.bfloat16) for x in (FEATURES, KERNEL)]

  def total(features, kernel, **settings):
    each = fused.linear_distillation(features, kernel, *TEACHER, **settings)
    assert each.dtype == jnp.float32
    return each.sum()

  gradients = heads.jit(jax.grad(total, (0, 1)))(*bfloat16)
  assert all(g.dtype == jnp.bfloat16 for g in gradients)
  narrow = functools.partial(total, compute_dtype=jnp.bfloat16)
  cast = heads.jit(jax.grad(narrow, (0, 1)))(FEATURES, KERNEL)
  for found, other in zip(cast, gradients, strict=True):
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, other.astype(jnp.float32), atol=0.1)


@pytest.mark.parametrize("divergence", KINDS)
def test_second_derivatives_by_the_temperature(divergence):
  """The temperature divides the logits of the teacher, which is a constant."""

  def total(temperature, kernel):
    return fused.linear_distillation(
      FEATURES,
      kernel,
      *TEACHER,
      divergence=divergence,
      temperature=temperature,
    ).sum()

  def dense(temperature, kernel):
    z = FEATURES @ kernel / temperature
    teacher = TEACHER[0] @ TEACHER[1] / temperature
    q, p = (jax.nn.log_softmax(x) for x in (z, teacher))
    if divergence == "forward_kl":
      return jnp.sum(jnp.exp(p) * (p - q))
    if divergence == "reverse_kl":
      return jnp.sum(jnp.exp(q) * (q - p))
    m = jnp.logaddexp(p, q) - jnp.log(2.0)
    return jnp.sum(jnp.exp(p) * (p - m) + jnp.exp(q) * (q - m)) / 2

  @functools.partial(heads.jit, static_argnums=0)
  def of(f):
    at, direction = (1.5, KERNEL), (1.0, jnp.ones_like(KERNEL))
    return jax.jvp(jax.grad(f, (0, 1)), at, direction)[1]

  for found, expected in zip(of(total), of(dense), strict=True):
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


def test_teacher_of_another_class_axis():
  settings = {"student_class_axis": 0, "teacher_class_axis": 1}
  found = fused.linear_distillation(FEATURES, KERNEL.T, *TEACHER, **settings)
  expected = fused.linear_distillation(FEATURES, KERNEL, *TEACHER)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_arguments_that_do_not_fit():
  call = functools.partial(
    fused.linear_distillation, FEATURES, KERNEL, *TEACHER
  )
  for message, settings in {
    "divergence must be one of": {"divergence": "kl"},
    r"temperature must be .*\(0, inf\)": {"temperature": 0.0},
    "temperature must be a scalar": {"temperature": np.ones(3)},
    "mode of plan must be": {"plan": fused.Plan("grad_in_forward")},
    "student_bias must have": {"student_bias": np.zeros(3)},
    "teacher_bias must have": {"teacher_bias": np.zeros(3)},
    "batch shape .* of student_features": {"where": np.ones(3, bool)},
    "student_features of shape": {"student_class_axis": 0},
    "student_class_axis must be 0 or 1": {"student_class_axis": 1.0},
    "teacher_soft_cap must be in": {"teacher_soft_cap": -1.0},
    "student_soft_cap must be in": {"student_soft_cap": -1.0},
  }.items():
    with pytest.raises(ValueError, match=message):
      call(**settings)
  linear = fused.linear_distillation
  with pytest.raises(ValueError, match="teacher_kernel must have the 9 cl"):
    linear(FEATURES, KERNEL, TEACHER[0], TEACHER[1][:, :8])
  with pytest.raises(ValueError, match="teacher_features must have the batch"):
    linear(FEATURES, KERNEL, TEACHER[0][:3], TEACHER[1])
  with pytest.raises(ValueError, match="teacher_features of shape"):
    linear(FEATURES, KERNEL, FEATURES, TEACHER[1])
  mesh = LAYOUTS["rows, classes"].mesh()
  with pytest.raises(ValueError, match="must shard the classes as"):
    call(
      mesh=mesh,
      student_features_spec=P("data"),
      student_kernel_spec=P(None, "vocab"),
      teacher_kernel_spec=P(),
    )
  with pytest.raises(ValueError, match="mode='forward' computes no gradient"):
    jax.grad(
      lambda f: fused.linear_distillation(
        f, KERNEL, *TEACHER, plan=fused.Plan("forward")
      ).sum()
    )(FEATURES)
