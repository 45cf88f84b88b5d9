# SPDX-License-Identifier: Apache-2.0
"""What a linear head on a mesh sends between its devices."""

import functools
import re

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support import heads
from support.sharded import (
  SPECS,
  IN_SPECS,
  MODES,
  head,
  mesh_of,
)


def collectives(text):
  """Kinds and sizes, in numbers, of what the compiled program sends."""
  # The types of a long tuple have comments such as /*index=5*/ in them.
  kinds = (
    "(?:all|ragged-all)-(?:gather|reduce|to-all)|reduce-scatter|"
    "collective-(?:permute|broadcast)"
  )
  found = []
  for shapes, kind in re.findall(rf" = (.*?) ({kinds})(?:-start)?\(", text):
    sizes = re.findall(r"\w+\[([\d,]*)\]", shapes)
    numbers = [np.prod([int(n) for n in s.split(",") if n]) for s in sizes]
    found.append((kind, int(sum(numbers))))
  return found


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


LAYOUTS = [((2, 4), 1000), ((8, 1), 1000), ((1, 8), 1000), ((2, 4), 1001)]


@pytest.mark.parametrize(("shape", "classes"), LAYOUTS, ids=str)
@pytest.mark.parametrize("summed", [False, True])
def test_forward_pass_sends_the_sums_of_rows(summed, shape, classes):
  found = sent(summed, None, shape, classes, ())
  assert {kind for kind, _ in found} == {"all-reduce"}
  # The largest logit, and in one message at most five sums a row.
  assert sum(size for _, size in found) <= 6 * SENT_ROWS // shape[0]


@pytest.mark.parametrize(("shape", "classes"), LAYOUTS, ids=str)
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
