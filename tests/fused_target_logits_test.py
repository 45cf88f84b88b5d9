# SPDX-License-Identifier: Apache-2.0
"""The logits of the labelled classes, without a pass over the classes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import heads
from support.layouts import LAYOUTS

from squentropy_jax import fused

BATCH, WIDTH, CLASSES = (4, 4), 6, 16
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(*BATCH, WIDTH)).astype(np.float32)
KERNEL = RNG.normal(size=(WIDTH, CLASSES)).astype(np.float32)
BIAS = RNG.normal(size=CLASSES).astype(np.float32)
# Some classes occur often, and some never.
LABELS = RNG.integers(0, CLASSES // 2, BATCH) * 2
COTANGENT = RNG.normal(size=BATCH).astype(np.float32)
WHERE = np.arange(16).reshape(BATCH) != 5


def dense(features, kernel, bias, soft_cap=None):
  z = features @ kernel + bias[None, None]
  if soft_cap is not None:
    z = soft_cap * jnp.tanh(z / soft_cap)
  z = jnp.take_along_axis(z, LABELS[..., None], -1)[..., 0]
  return jnp.where(WHERE, z, 0)


def pulled_back(function):
  def both(*arguments):
    z, vjp = jax.vjp(function, *arguments)
    return z, vjp(COTANGENT)

  return heads.jit(both)


def agrees(found, expected):
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("class_axis", [0, 1])
def test_value_and_every_gradient(class_axis):
  settings = {"where": WHERE, "soft_cap": 2.0}

  def head(features, kernel, bias):
    if class_axis == 0:
      kernel = kernel.T
    return fused.target_logits(
      features, kernel, LABELS, bias=bias, class_axis=class_axis, **settings
    )

  features = FEATURES.copy()
  features[~WHERE] = np.nan
  found = pulled_back(head)(features, KERNEL, BIAS)
  exact = functools.partial(dense, soft_cap=2.0)
  agrees(found, pulled_back(exact)(FEATURES, KERNEL, BIAS))


# Rows and classes are gathered in different ways.
FIVE = (
  "rows, classes",
  "width of the kernel, classes",
  "rows and classes on one axis",
  "rows and some classes on one axis",
  "every axis twice",
)


@pytest.mark.parametrize("layout", FIVE)
def test_layouts(layout):
  case = LAYOUTS[layout]

  def head(features, kernel, bias):
    return fused.target_logits(
      features,
      kernel,
      LABELS,
      bias=bias,
      where=WHERE,
      mesh=case.mesh(),
      **case.specs,
    )

  found = pulled_back(head)(FEATURES, KERNEL, BIAS)
  agrees(found, pulled_back(dense)(FEATURES, KERNEL, BIAS))


def test_there_is_no_pass_over_the_classes():
  rows, width, classes = 64, 32, 2**16
  arguments = (
    jax.ShapeDtypeStruct((rows, width), jnp.float32),
    jax.ShapeDtypeStruct((classes, width), jnp.float32),
    jax.ShapeDtypeStruct((rows,), jnp.int32),
  )
  head = functools.partial(fused.target_logits, class_axis=0)
  program = jax.jit(head).lower(*arguments).compile()
  memory = program.memory_analysis().temp_size_in_bytes
  assert memory <= 8 * rows * width * 4
  assert f"{rows},{classes}" not in program.as_text()


def test_one_number_of_each_row_is_sent():
  case = LAYOUTS["rows, classes"]
  head = functools.partial(fused.target_logits, mesh=case.mesh(), **case.specs)
  text = heads.jit(head).lower(FEATURES, KERNEL, LABELS).compile().as_text()
  sent = re.findall(r"= (\S+) (all-\w+|reduce-scatter|collective-\w+)\(", text)
  # Two of four batch rows on each half of the devices.
  assert [(s.split("{")[0], c) for s, c in sent] == [("f32[8]", "all-reduce")]


def test_narrow_kernel_has_a_gradient_summed_in_float32():
  """1 + 255 ones: bfloat16 sums would stop at 256 and round before."""
  kernel = jnp.ones((1, 4), jnp.bfloat16)
  features = jnp.ones((257, 1), jnp.bfloat16)
  labels = jnp.zeros(257, jnp.int32)

  def total(kernel):
    z = fused.target_logits(features, kernel, labels)
    assert z.dtype == jnp.float32
    return z.sum() * 0.5

  gradient = jax.grad(total)(kernel)
  assert gradient.dtype == jnp.bfloat16
  np.testing.assert_array_equal(gradient[0], jnp.bfloat16([128.5, 0, 0, 0]))


def test_invalid_labels():
  with pytest.raises(ValueError, match=r"labels.*outside \[0, 16\)"):
    fused.target_logits(FEATURES, KERNEL, np.full(BATCH, 16))
  labels = np.where(WHERE, LABELS, 16)

  def total(features, kernel, labels):
    return fused.target_logits(features, kernel, labels).sum(where=WHERE)

  gradient = heads.jit(jax.grad(total, (0, 1)))(FEATURES, KERNEL, labels)
  z = heads.jit(fused.target_logits)(FEATURES, KERNEL, labels)
  np.testing.assert_array_equal(np.isnan(z), ~WHERE)
  np.testing.assert_array_equal(np.isnan(gradient[0]).all(-1), ~WHERE)
  assert np.isnan(gradient[1]).any()
  with pytest.raises(TypeError, match="labels must be class ids for target"):
    fused.target_logits(
      FEATURES, KERNEL, (LABELS[..., None], COTANGENT[..., None])
    )
  with pytest.raises(TypeError, match=r"for target_logits.*labels.argmax"):
    fused.target_logits(FEATURES, KERNEL, np.ones((*BATCH, CLASSES)))
  with pytest.raises(ValueError, match="gather must be 'auto'"):
    fused.target_logits(FEATURES, KERNEL, LABELS, gather="tile")
