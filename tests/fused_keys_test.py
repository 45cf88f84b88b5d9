# SPDX-License-Identifier: Apache-2.0
"""Keys of rows and classes: classes with the key of the row are impossible."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import heads
from support.layouts import LAYOUTS

from squentropy_jax import fused, losses, retrieval, rows

BATCH, WIDTH, CLASSES = (4, 4), 6, 16
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(*BATCH, WIDTH)).astype(np.float32)
KERNEL = RNG.normal(size=(WIDTH, CLASSES)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, BATCH)
WEIGHTS = RNG.normal(size=BATCH).astype(np.float32)
# Row 0 has the key of its labelled class and others, row 1 a key of no class.
CLASS_KEYS = RNG.integers(-2, 3, CLASSES)
ROW_KEYS = RNG.integers(-2, 3, BATCH)
ROW_KEYS[0, 0] = CLASS_KEYS[LABELS[0, 0]]
ROW_KEYS[0, 1] = 99
# Neither a class of this key nor of another is possible besides the target.
BIAS = np.where(np.arange(CLASSES) == 3, -np.inf, 0.5).astype(np.float32)
LABELS[LABELS == 3] = 4

is_target = np.arange(CLASSES) == LABELS[..., None]
POSSIBLE = (ROW_KEYS[..., None] != CLASS_KEYS) | is_target


def dense(loss, features, kernel, bias=0.0, **settings):
  # In the shape of the logits: the tests forbid to promote ranks.
  bias = np.broadcast_to(np.float32(bias), (*BATCH, CLASSES))
  return loss(features @ kernel + bias, LABELS, where=POSSIBLE, **settings)


def value_and_gradients(function):
  def total(features, kernel):
    each = function(features, kernel)
    return (each * WEIGHTS).sum(), each

  return heads.jit(jax.value_and_grad(total, (0, 1), has_aux=True))


KEYS = {"row_keys": ROW_KEYS, "class_keys": CLASS_KEYS}


def agrees(found, expected):
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
  ("loss", "mode", "bias"),
  [
    (losses.cross_entropy, "recompute", None),
    (losses.squentropy, "recompute", BIAS),
    (losses.squentropy, "frozen_kernel", BIAS),
    (losses.crammer_singer, "recompute", BIAS),
    (losses.crammer_singer, "frozen_kernel", None),
  ],
)
def test_loss_of_every_row(loss, mode, bias):
  def head(features, kernel):
    # A budget of a byte: many tiles.
    plan = fused.Plan(mode, 1)
    return fused.linear_loss(
      loss, features, kernel, LABELS, bias=bias, plan=plan, **KEYS
    )

  (_, found), gradients = value_and_gradients(head)(FEATURES, KERNEL)
  exact = functools.partial(dense, loss, bias=0.0 if bias is None else bias)
  (_, each), expected = value_and_gradients(exact)(FEATURES, KERNEL)
  agrees(found, each)
  agrees(gradients[0], expected[0])
  if mode != "frozen_kernel":
    agrees(gradients[1], expected[1])


# Rows and classes are gathered in different ways.
FIVE = (
  "rows, classes",
  "width of the kernel, classes",
  "rows and classes on one axis",
  "rows and some classes on one axis",
  "every axis twice",
)


@pytest.mark.parametrize("layout", FIVE)
def test_sum_in_layouts(layout):
  case = LAYOUTS[layout]

  def total(features, kernel):
    sums = fused.linear_loss_sum(
      losses.squentropy,
      features,
      kernel,
      LABELS,
      weights=WEIGHTS,
      bias=BIAS,
      metrics={"count": lambda stats: stats.num_classes, "hit": rows.correct},
      mesh=case.mesh(),
      plan=fused.Plan("grad_in_forward"),
      **KEYS,
      **case.specs,
    )
    return sums.loss, sums.metrics

  found = heads.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(
    FEATURES, KERNEL
  )
  exact = functools.partial(dense, losses.squentropy, bias=BIAS)
  (loss, _), gradients = value_and_gradients(exact)(FEATURES, KERNEL)
  possible = POSSIBLE & (-np.inf < BIAS)
  z = np.where(possible, FEATURES @ KERNEL + BIAS, -np.inf)
  metrics = {
    "count": (possible.sum(-1) * WEIGHTS).sum(),
    "hit": ((z.argmax(-1) == LABELS) * WEIGHTS).sum(),
  }
  agrees(found, ((loss, metrics), gradients))


def test_named_classes_always_stay():
  ids = np.stack([LABELS, (LABELS + 4) % CLASSES], -1)
  p = np.broadcast_to(np.float32([0.75, 0.25]), ids.shape)
  possible = POSSIBLE | (np.arange(CLASSES) == ids[..., 1:])

  def head(features, kernel):
    return fused.linear_loss(
      losses.squentropy, features, kernel, (ids, p), **KEYS
    )

  def exact(features, kernel):
    loss = functools.partial(
      losses.squentropy, features @ kernel, where=possible
    )
    return 0.75 * loss(ids[..., 0]) + 0.25 * loss(ids[..., 1])

  agrees(
    value_and_gradients(head)(FEATURES, KERNEL),
    value_and_gradients(exact)(FEATURES, KERNEL),
  )


def test_info_nce_of_a_matrix_of_documents():
  """Documents of the same source as the query are no negatives."""
  queries, documents = FEATURES.reshape(-1, WIDTH), KERNEL.T
  sources = np.arange(CLASSES) // 2
  info_nce = functools.partial(retrieval.info_nce, temperature=0.5)

  def head(queries, documents):
    return fused.linear_loss(
      info_nce,
      queries,
      documents,
      np.arange(CLASSES),
      class_axis=0,
      row_keys=sources,
      class_keys=sources,
    ).sum()

  def dense(queries, documents):
    possible = (sources[:, None] != sources) | np.eye(CLASSES, dtype=bool)
    return info_nce(queries @ documents.T, where=possible).sum()

  found = heads.jit(jax.value_and_grad(head, (0, 1)))(queries, documents)
  agrees(
    found, heads.jit(jax.value_and_grad(dense, (0, 1)))(queries, documents)
  )


def test_no_other_class_is_left():
  keys = {
    "row_keys": np.zeros(BATCH, int),
    "class_keys": np.zeros(CLASSES, int),
  }
  found = fused.linear_loss(losses.squentropy, FEATURES, KERNEL, LABELS, **keys)
  np.testing.assert_array_equal(found, 0)


def test_memory_is_that_of_a_tile():
  n, v, d = 4096, 65536, 8
  arguments = [
    jax.ShapeDtypeStruct(shape, dtype)
    for shape, dtype in (
      ((n, d), jnp.float32),
      ((d, v), jnp.float32),
      ((n,), jnp.int32),
      ((n,), jnp.int32),
      ((v,), jnp.int32),
    )
  ]

  def total(features, kernel, labels, row_keys, class_keys):
    return fused.linear_loss_sum(
      losses.cross_entropy,
      features,
      kernel,
      labels,
      row_keys=row_keys,
      class_keys=class_keys,
      plan=fused.Plan("recompute", 4 * 2**20),
    ).loss

  gradient = jax.jit(jax.grad(total, (0, 1)))
  program = gradient.lower(*arguments).compile()
  memory = program.memory_analysis().temp_size_in_bytes
  # The logits take 1 GiB. The counts of the keys take some numbers for each
  # row and each class.
  assert memory <= 4 * 2**20 + 8 * (n + v) * 4


@pytest.mark.parametrize(
  ("keys", "error", "message"),
  [
    ({"row_keys": ROW_KEYS}, ValueError, "passed together, got row_keys only"),
    (
      KEYS | {"row_keys": ROW_KEYS[0]},
      ValueError,
      r"row_keys must have the shape \(4, 4\)",
    ),
    (
      KEYS | {"class_keys": CLASS_KEYS[:3]},
      ValueError,
      r"class_keys must have the shape \(16,\)",
    ),
    (
      KEYS | {"class_keys": CLASS_KEYS.astype(np.float32)},
      TypeError,
      "class_keys must be integers",
    ),
  ],
)
def test_keys_that_do_not_fit(keys, error, message):
  with pytest.raises(error, match=message):
    fused.linear_loss(losses.cross_entropy, FEATURES, KERNEL, LABELS, **keys)


@pytest.mark.skipif(
  jax.config.read("jax_enable_x64"), reason="int64 keys are not narrowed"
)
def test_keys_that_jax_would_narrow():
  wide = CLASS_KEYS.astype(np.int64) + 2**40
  with pytest.raises(ValueError, match=r"class_keys must fit into int32"):
    fused.linear_loss(
      losses.cross_entropy,
      FEATURES,
      KERNEL,
      LABELS,
      row_keys=ROW_KEYS,
      class_keys=wide,
    )
