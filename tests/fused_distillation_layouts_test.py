# SPDX-License-Identifier: Apache-2.0
"""Distillation of two linear heads on a mesh: layouts, and what is sent."""

import functools

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support import heads
from support.distillation import (
  CLASSES,
  COTANGENT,
  FEATURES,
  KERNEL,
  TEACHER,
  TEMPERATURE,
  normal,
  reference,
)
from support.layouts import LAYOUTS
from support.programs import collectives

from squentropy_jax import fused

SHARDED = [
  ("rows, classes", "auto", AxisType.Explicit),
  ("width of the kernel, classes", "tile", AxisType.Auto),
  ("width of the kernel only", "auto", AxisType.Explicit),
  ("rows and classes on one axis", "rows", AxisType.Auto),
  ("rows and classes on one axis", "kernel", AxisType.Auto),
  ("width of the features, classes", "auto", AxisType.Auto),
]
BATCH = 4, 8
WIDE = normal(*BATCH, 8), normal(8, 32)
WIDE_TEACHER = normal(*BATCH, 16), normal(16, 32)
WEIGHTS = normal(*BATCH)
WARMTH = np.abs(normal(*BATCH)) + 0.5


def weighted(features, kernel, temperature, teacher, weights, kind, **settings):
  each = fused.linear_distillation(
    features,
    kernel,
    *teacher,
    temperature=temperature,
    divergence=kind,
    **settings,
  )
  return (each * weights).sum()


@functools.cache
def on_one_device(kind):
  run = heads.jit(
    jax.value_and_grad(
      functools.partial(weighted, kind=kind, plan=fused.Plan()), (0, 1, 2)
    )
  )
  return run(*WIDE, WARMTH, WIDE_TEACHER, WEIGHTS)


def check_equal(found, expected):
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "gather", "axis_type"), SHARDED)
def test_layouts(name, gather, axis_type):
  case = LAYOUTS[name]
  mesh = case.mesh(axis_type)
  settings = {"gather": gather}
  if axis_type == AxisType.Auto:
    settings |= {
      "mesh": mesh,
      "student_features_spec": case.features_spec,
      "student_kernel_spec": case.kernel_spec,
    }

  def put(array, spec):
    return jax.device_put(array, NamedSharding(mesh, spec))

  specs = case.features_spec, case.kernel_spec
  student, teacher = (
    [put(x, spec) for x, spec in zip(pair, specs, strict=True)]
    for pair in (WIDE, WIDE_TEACHER)
  )
  of_rows = [put(x, case.row_spec) for x in (WARMTH, WEIGHTS)]
  run = heads.jit(
    jax.value_and_grad(
      functools.partial(weighted, kind="jensen_shannon", **settings), (0, 1, 2)
    )
  )
  found = run(*student, of_rows[0], teacher, of_rows[1])
  check_equal(found, on_one_device("jensen_shannon"))


INSIDE = [
  ("rows, classes", "auto"),
  ("width of the kernel, classes", "auto"),
  ("rows and some classes on one axis", "rows"),
]


@pytest.mark.parametrize(("name", "gather"), INSIDE)
def test_layout_inside_a_shard_map_of_the_user(name, gather):
  case = LAYOUTS[name]
  specs = case.features_spec, case.kernel_spec

  def local(features, kernel, temperature, teacher, weights):
    total = weighted(
      features,
      kernel,
      temperature,
      teacher,
      weights,
      "reverse_kl",
      gather=gather,
      student_features_spec=case.features_spec,
      student_kernel_spec=case.kernel_spec,
    )
    return jax.lax.psum(total, case.row_axes)

  mapped = jax.shard_map(
    local,
    mesh=case.mesh(),
    in_specs=(*specs, case.row_spec, specs, case.row_spec),
    out_specs=P(),
  )
  run = heads.jit(jax.value_and_grad(mapped, (0, 1, 2)))
  found = run(*WIDE, WARMTH, WIDE_TEACHER, WEIGHTS)
  check_equal(found, on_one_device("reverse_kl"))


def test_rows_and_classes_that_do_not_divide():
  case = LAYOUTS["rows, classes"]

  def total(features, kernel, temperature):
    return weighted(
      features,
      kernel,
      temperature,
      TEACHER,
      COTANGENT,
      "forward_kl",
      mesh=case.mesh(),
      student_features_spec=P("vocab"),
      student_kernel_spec=P(None, "data"),
    )

  run = heads.jit(jax.value_and_grad(total, (0, 1, 2)))
  found, gradients = run(FEATURES, KERNEL, TEMPERATURE)
  none = np.zeros(CLASSES, np.float32)
  each, exact = reference(
    "forward_kl", FEATURES, KERNEL, none, TEMPERATURE, (*TEACHER, none)
  )
  check_equal((found, gradients), (each @ COTANGENT, (*exact[:2], exact[3])))


def test_only_sums_of_rows_and_gradients_are_sent():
  case = LAYOUTS["rows, classes"]
  run = jax.jit(
    jax.grad(
      functools.partial(
        weighted,
        kind="forward_kl",
        mesh=case.mesh(),
        student_features_spec=case.features_spec,
        student_kernel_spec=case.kernel_spec,
      ),
      (0, 1),
    )
  )
  specs = case.features_spec, case.kernel_spec

  def typed(array, spec):
    return jax.ShapeDtypeStruct(
      array.shape, array.dtype, sharding=NamedSharding(case.mesh(), spec)
    )

  student, teacher = (
    [typed(x, spec) for x, spec in zip(pair, specs, strict=True)]
    for pair in (WIDE, WIDE_TEACHER)
  )
  rows = typed(WEIGHTS, case.row_spec)
  compiled = run.lower(*student, rows, teacher, rows).compile()
  sent = collectives(compiled.as_text())
  assert {kind for kind, _ in sent} == {"all-reduce"}
  here = WEIGHTS.size // 2
  # The gradient of the features, and that of the kernel over the rows.
  most = here * 8 + 8 * 32 // 4 + 10 * here
  assert sum(size for _, size in sent) <= most
