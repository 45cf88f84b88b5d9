# SPDX-License-Identifier: Apache-2.0
"""What a linear head on a mesh sends between its devices."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support import heads
from support.layouts import LAYOUTS
from support.programs import collectives, dtypes_sent, products
from support.sharded import (
  IN_SPECS,
  MODES,
  SPECS,
  head,
  mesh_of,
)

from squentropy_jax import fused, losses


def test_what_is_sent_is_read_off():
  text = """
  %a = (f32[2,7]{1,0}, f32[], s32[3]{0}, f32[], f32[], /*index=5*/f32[4]{0}) \
all-reduce(%p, %q), channel_id=1
  ROOT %b = (f32[8]{0}, f32[32]{0:T(128)}) all-gather-start(%a), dimensions={0}
  %c = f32[32]{0:T(128)} all-gather-done(%b)
  %d = f32[8,2]{1,0} reduce-scatter(%e), to_apply=%add
  %f = f32[6]{0} all-to-all(%e)
  %g = f32[32]{0} fusion(%all-gather.2), calls=%all-gather.3
  """
  assert collectives(text) == [
    ("all-reduce", 24),
    ("all-gather", 40),
    ("reduce-scatter", 16),
    ("all-to-all", 6),
  ]


SENT_ROWS, SENT_WIDTH = 64, 32


@functools.cache
def sent(summed, mode, shape, classes, wanted):
  """What the program of a head sends, with its gradients by ``wanted``."""
  mesh = mesh_of(shape)
  rows, width = SENT_ROWS, SENT_WIDTH
  shapes = ((rows, width), (width, classes), (rows,), (rows,))
  dtypes = (np.float32, np.float32, np.int32, np.float32)
  # Classes that do not divide cannot be sharded before the call.
  of_kernel = P() if classes % shape[1] else IN_SPECS[1]
  specs = (IN_SPECS[0], of_kernel, *IN_SPECS[2:])
  arguments = [
    jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, spec))
    for s, d, spec in zip(shapes, dtypes, specs, strict=True)
  ]
  run = functools.partial(head, summed=summed, mode=mode, mesh=mesh, **SPECS)
  if wanted:
    run = jax.value_and_grad(run, wanted)
  return collectives(heads.jit(run).lower(*arguments).compile().as_text())


SHAPES = [((2, 4), 1000), ((8, 1), 1000), ((1, 8), 1000), ((2, 4), 1001)]


@pytest.mark.parametrize(("shape", "classes"), SHAPES, ids=str)
@pytest.mark.parametrize("summed", [False, True])
def test_forward_pass_sends_the_sums_of_rows(summed, shape, classes):
  found = sent(summed, None, shape, classes, ())
  assert {kind for kind, _ in found} == {"all-reduce"}
  # The largest logit, and in one message at most five sums a row.
  assert sum(size for _, size in found) <= 6 * SENT_ROWS // shape[0]


@pytest.mark.parametrize(("shape", "classes"), SHAPES, ids=str)
@pytest.mark.parametrize(("mode", "summed"), MODES)
def test_no_device_gathers_kernel_or_features(mode, summed, shape, classes):
  """The forward pass sends sums of rows, the backward pass gradients."""
  frozen = mode == "frozen_kernel"
  every = sent(summed, mode, shape, classes, (0,) if frozen else (0, 1))
  reduced = [size for kind, size in every if kind == "all-reduce"]
  others = [sent for sent in every if sent[0] != "all-reduce"]
  here = -(-classes // shape[1])
  of_features = SENT_ROWS // shape[0] * SENT_WIDTH
  of_kernel = 0 if frozen else SENT_WIDTH * here
  assert sum(reduced) <= 6 * SENT_ROWS + of_features + of_kernel
  # The gradient of a kernel that is not sharded is not sharded either.
  uneven = classes % shape[1] > 0
  whole_kernel = [("all-gather", of_kernel * shape[1])]
  assert others == (whole_kernel if uneven and of_kernel else [])


# Every layout, of features [8, 16, 32] and 1024 classes: what the gradient of a
# sum sends, except some numbers of each row.
B, S, D, V = 8, 16, 32, 1024
GATHER, REDUCE, SCATTER = "all-gather", "all-reduce", "reduce-scatter"
SENT = {
  # Sums over an axis of one device are seen too; they send nothing.
  "rows": [(REDUCE, D * V), (REDUCE, B * S * D // 8)],
  "classes": [(REDUCE, B * S * D), (REDUCE, D * V // 8)],
  "rows, classes": [(REDUCE, D * V // 4), (REDUCE, B * S * D // 2)],
  "batch, sequence, classes": [
    (REDUCE, D * V // 2),
    (REDUCE, B * S * D // 4),
  ],
  # No all-reduce of the kernel's gradient, but of a device's part of it.
  "width of the kernel": [
    (GATHER, D * V),
    (SCATTER, D * V // 4),
    (REDUCE, D * V // 4),
  ],
  "width of the kernel only": [
    (GATHER, D * V),
    (GATHER, B * S * D // 2),  # The gradient of the features.
    (SCATTER, D * V // 4),
    (REDUCE, D * V // 4),
  ],
  "width of the kernel, classes": [
    (GATHER, D * V // 2),
    (SCATTER, D * V // 4),
    (REDUCE, D * V // 4),
    (REDUCE, B * S * D // 4),
  ],
  "rows and classes on one axis": [
    (GATHER, B * S * D // 2),
    (SCATTER, B * S * D // 8),
    (REDUCE, D * V // 4),
  ],
  "rows and some classes on one axis": [
    (GATHER, B * S * D // 2),
    (SCATTER, B * S * D // 4),
    (REDUCE, B * S * D // 4),
    (REDUCE, D * V // 4),
  ],
  "width of the features, classes": [
    (GATHER, B * S * D // 2),
    (SCATTER, B * S * D // 8),
    (REDUCE, D * V // 4),
  ],
  # Features are sent once there and their gradient back, each in one message
  # for every device.
  "both widths": [
    (GATHER, D * V),
    ("all-to-all", B * S * D // 8),
    ("all-to-all", B * S * D // 8),
    (SCATTER, D * V // 4),
    (REDUCE, D * V // 4),
  ],
  "every axis twice": [
    ("all-to-all", B * S * D // 8),
    (GATHER, D * V // 2),
    (GATHER, B * S * D // 4),
    (SCATTER, D * V // 4),
    (SCATTER, B * S * D // 8),
    ("all-to-all", B * S * D // 8),
    (REDUCE, D * V // 4),
  ],
}
OF_KERNEL = {
  "rows and classes on one axis": [
    (GATHER, D * V),
    (SCATTER, D * V // 4),
    (REDUCE, D * V // 4),
  ],
}


def gradient_of(name, mode, dtype=np.float32, **settings):
  """A gradient in a layout, its arguments, and how its results are sharded."""
  case = LAYOUTS[name]
  specs = (case.features_spec, case.kernel_spec, case.row_spec)
  shapes = ((B, S, D), dtype), ((D, V), dtype), ((B, S), np.int32)
  shardings = [NamedSharding(case.mesh(), spec) for spec in specs]
  arguments = [
    jax.ShapeDtypeStruct(*shape, sharding=sharding)
    for shape, sharding in zip(shapes, shardings, strict=True)
  ]

  def total(features, kernel, labels):
    return fused.linear_loss_sum(
      losses.cross_entropy,
      features,
      kernel,
      labels,
      mesh=case.mesh(),
      plan=fused.Plan(mode),
      **case.specs,
      **settings,
    )[0]

  return jax.grad(total, (0, 1)), arguments, tuple(shardings[:2])


def sent_by(name, mode, **settings):
  """What a gradient in a layout sends, without what is sent of rows."""
  run, arguments, out = gradient_of(name, mode, **settings)
  compiled = heads.jit(run, out_shardings=out).lower(*arguments).compile()
  found = collectives(compiled.as_text())
  of_rows = 3 * B * S
  assert sum(n for _, n in found if n <= of_rows) <= 2 * of_rows
  return sorted(x for x in found if x[1] > of_rows)


@pytest.mark.parametrize("name", SENT)
def test_layout_sends_what_the_table_says(name):
  """The table of docs/fused.md."""
  assert sent_by(name, "grad_in_forward") == sorted(SENT[name])


@pytest.mark.parametrize("name", OF_KERNEL)
def test_layout_that_gathers_the_kernel(name):
  found = sent_by(name, "grad_in_forward", gather="kernel")
  assert found == sorted(OF_KERNEL[name])


def test_layout_that_gathers_tiles_of_the_kernel():
  """Each tile twice, and parts of the gradient of each tile."""
  found = sent_by("width of the kernel", "recompute", gather="tile")
  kinds = [kind for kind, _ in found]
  assert kinds == [GATHER, GATHER, REDUCE, SCATTER] or kinds == [
    GATHER,
    REDUCE,
    SCATTER,
  ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_product_is_computed_twice(name):
  """Three for the gradient in the forward pass, four with logits again."""
  for mode, count in (("grad_in_forward", 3), ("recompute", 4)):
    run, arguments, _ = gradient_of(name, mode)
    assert products(run, *arguments) == count * B * S * D * V // 8


def test_kernel_of_float32_is_gathered_and_multiplied_in_bfloat16():
  """Its gradient is added up in float32 and stays float32."""
  run, arguments, _ = gradient_of(
    "width of the kernel", "grad_in_forward", compute_dtype=jnp.bfloat16
  )
  assert dtypes_sent(run, *arguments) == {
    ("all-gather", "bfloat16"),
    ("reduce_scatter", "float32"),
  }
  assert [x.dtype for x in jax.eval_shape(run, *arguments)] == ["float32"] * 2


@pytest.mark.parametrize("reduce", [None, jnp.float32, jnp.bfloat16])
def test_dtype_in_which_gradients_are_added_up(reduce):
  run, arguments, _ = gradient_of(
    "width of the kernel",
    "grad_in_forward",
    dtype=jnp.bfloat16,
    reduce_dtype=reduce,
  )
  name = "float32" if reduce is None else jnp.dtype(reduce).name
  assert dtypes_sent(run, *arguments) == {
    ("all-gather", "bfloat16"),
    ("reduce_scatter", name),
  }
  assert [x.dtype for x in jax.eval_shape(run, *arguments)] == ["bfloat16"] * 2
