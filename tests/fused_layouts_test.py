# SPDX-License-Identifier: Apache-2.0
"""Linear heads in every layout of rows, width and classes on a mesh."""

import functools

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support import heads
from support.layouts import LAYOUTS

from squentropy_jax import fused, losses

BATCH, LENGTH, WIDTH, CLASSES = 4, 8, 8, 32
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
KERNEL = RNG.normal(size=(WIDTH, CLASSES)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, (BATCH, LENGTH))
WEIGHTS = RNG.uniform(-1, 2, (BATCH, LENGTH)).astype(np.float32)


def check(found, features, kernel, labels, weights):
  """Checks a weighted sum, and its gradients by features and kernel."""
  total, gradients = found
  rows = features.reshape(-1, features.shape[-1])
  weights = weights.reshape(-1)
  exact = heads.truth("squentropy", rows, kernel, labels.reshape(-1))
  error = np.abs(weights) @ (exact.loss_error + 2.0**-20 * exact.loss)
  heads.assert_close(total, weights @ exact.loss, error)
  expected = heads.gradients(exact, rows, kernel, weights)
  by_features = np.asarray(gradients[0]).reshape(rows.shape)
  heads.assert_close(by_features, *expected["features"])
  heads.assert_close(gradients[1], *expected["kernel"])


def head(features, kernel, labels, weights, mode, **settings):
  settings |= {"plan": fused.Plan(mode)}
  loss = losses.squentropy
  if mode == "grad_in_forward":
    return fused.linear_loss_sum(
      loss, features, kernel, labels, weights=weights, **settings
    )[0]
  each = fused.linear_loss(loss, features, kernel, labels, **settings)
  return (each * weights).sum()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name, kind):
  """Auto axes with specs, explicit axes with no argument."""
  case = LAYOUTS[name]
  mesh = case.mesh(kind)
  auto = kind == AxisType.Auto
  mode = "grad_in_forward" if auto else "recompute"
  settings = case.specs | {"mesh": mesh} if auto else {}
  run = heads.jit(
    jax.value_and_grad(functools.partial(head, mode=mode, **settings), (0, 1))
  )
  specs = (case.features_spec, case.kernel_spec, *(case.row_spec,) * 2)
  arguments = [
    jax.device_put(x, NamedSharding(mesh, spec))
    for x, spec in zip((FEATURES, KERNEL, LABELS, WEIGHTS), specs, strict=True)
  ]
  found = run(*arguments)
  check(found, FEATURES, KERNEL, LABELS, WEIGHTS)
  if not auto:
    for gradient, primal in zip(found[1], arguments, strict=False):
      assert jax.typeof(gradient) == jax.typeof(primal)


GATHERS = [
  ("width of the kernel", "tile", "recompute"),
  ("width of the kernel, classes", "tile", "recompute"),
  ("rows and some classes on one axis", "kernel", "recompute"),
  ("rows and classes on one axis", "kernel", "grad_in_forward"),
  ("every axis twice", "tile", "recompute"),
]


@pytest.mark.parametrize(("name", "gather", "mode"), GATHERS)
def test_what_is_gathered_changes_no_number(name, gather, mode):
  case = LAYOUTS[name]
  run = heads.jit(
    jax.value_and_grad(
      functools.partial(
        head, mode=mode, gather=gather, mesh=case.mesh(), **case.specs
      ),
      (0, 1),
    )
  )
  found = run(FEATURES, KERNEL, LABELS, WEIGHTS)
  check(found, FEATURES, KERNEL, LABELS, WEIGHTS)


# Where no axis shards the width of one array only.
INSIDE = [
  ("batch, sequence, classes", "auto", None),
  ("width of the kernel, classes", "auto", "grad_in_forward"),
  ("width of the kernel, classes", "tile", None),
  ("rows and some classes on one axis", "auto", "grad_in_forward"),
  ("rows and some classes on one axis", "rows", "recompute"),
  ("width of the features, classes", "auto", "grad_in_forward"),
]


@pytest.mark.parametrize(("name", "gather", "mode"), INSIDE)
def test_layout_inside_a_shard_map_of_the_user(name, gather, mode):
  """The sums are those of the device, and their cotangents may differ."""
  case = LAYOUTS[name]
  specs = (case.features_spec, case.kernel_spec, *(case.row_spec,) * 2)

  def local(features, kernel, labels, weights):
    total, *_ = fused.linear_loss_sum(
      losses.squentropy,
      features,
      kernel,
      labels,
      weights=weights,
      gather=gather,
      plan=fused.Plan(mode),
      **case.specs,
    )
    factor = jax.lax.axis_index(case.row_axes).astype(total.dtype)
    return jax.lax.psum((1 + factor) * total, case.row_axes)

  mapped = jax.shard_map(local, mesh=case.mesh(), in_specs=specs, out_specs=P())
  run = heads.jit(jax.value_and_grad(mapped, (0, 1)))
  found = run(FEATURES, KERNEL, LABELS, WEIGHTS)
  # The device of each row, and with it the factor.
  count = int(np.prod([case.mesh().shape[a] for a in case.row_axes]))
  rows = np.arange(BATCH)[:, None] * count // BATCH
  if "context" in case.axes:
    rows = 2 * (np.arange(BATCH)[:, None] * 2 // BATCH)
    rows = rows + np.arange(LENGTH) * 2 // LENGTH
  weights = np.float32(1 + np.broadcast_to(rows, WEIGHTS.shape)) * WEIGHTS
  check(found, FEATURES, KERNEL, LABELS, weights)


UNEVEN = [
  ("batch, sequence, classes", AxisType.Explicit, "grad_in_forward"),
  ("width of the kernel, classes", AxisType.Auto, "grad_in_forward"),
  ("rows and classes on one axis", AxisType.Auto, "recompute"),
  ("width of the features, classes", AxisType.Explicit, "recompute"),
  ("both widths", AxisType.Auto, "grad_in_forward"),
]


@pytest.mark.parametrize(("name", "kind", "mode"), UNEVEN)
def test_what_the_devices_do_not_divide(name, kind, mode):
  """Such arrays arrive the same everywhere, and are padded inside."""
  case = LAYOUTS[name]
  features, kernel = FEATURES[:3, :5, :7], KERNEL[:7, :29]
  labels, weights = LABELS[:3, :5] % 29, WEIGHTS[:3, :5]
  mesh = case.mesh(kind)
  run = heads.jit(
    jax.value_and_grad(
      functools.partial(
        head, labels=labels, weights=weights, mode=mode, mesh=mesh, **case.specs
      ),
      (0, 1),
    )
  )
  check(run(features, kernel), features, kernel, labels, weights)


def test_one_row_of_a_long_sequence():
  """Fault 3: a batch of 1 whose sequence is sharded was refused."""
  case = LAYOUTS["rows"]
  features, labels = FEATURES[:1], LABELS[:1]
  run = heads.jit(
    functools.partial(
      fused.linear_loss, losses.squentropy, mesh=case.mesh(), **case.specs
    )
  )
  exact = heads.truth("squentropy", features[0], KERNEL, labels[0])
  found = run(features, KERNEL, labels)
  heads.assert_close(found[0], exact.loss, exact.loss_error)


def test_mesh_without_devices():
  """Fault 4: an AbstractMesh was refused."""
  case = LAYOUTS["rows, classes"]
  mesh = case.mesh()
  run = heads.jit(
    functools.partial(
      fused.linear_loss,
      losses.squentropy,
      mesh=mesh.abstract_mesh,
      **case.specs,
    )
  )
  features = jax.device_put(FEATURES, NamedSharding(mesh, P("data")))
  exact = heads.truth(
    "squentropy", FEATURES.reshape(-1, WIDTH), KERNEL, LABELS.reshape(-1)
  )
  found = np.asarray(run(features, KERNEL, LABELS)).reshape(-1)
  heads.assert_close(found, exact.loss, exact.loss_error)


# Errors inside a shard_map of the user.


def inside(case, features_spec, kernel_spec, **settings):
  """Calls a head in a shard_map, with these specs as its arguments."""

  def local(features, kernel, labels):
    loss = fused.linear_loss(
      losses.squentropy,
      features,
      kernel,
      labels,
      features_spec=features_spec,
      kernel_spec=kernel_spec,
    )
    return jax.lax.psum(loss.sum(), case.axes)

  specs = (case.features_spec, case.kernel_spec, case.row_spec)
  mapped = jax.shard_map(
    local, mesh=case.mesh(), in_specs=specs, out_specs=P(), **settings
  )
  return jax.eval_shape(mapped, FEATURES, KERNEL, LABELS)


def test_class_axis_that_is_forgotten_is_refused():
  """Fault 6: each device took its own classes for all classes."""
  case = LAYOUTS["rows, classes"]
  for spec in (None, P(), P(None, None)):
    with pytest.raises(
      ValueError, match=r"kernel_spec must name \['vocab'\] too"
    ):
      inside(case, P("data"), spec)


def test_kernels_of_each_device_are_allowed():
  """They vary over an axis of the batch."""
  case = LAYOUTS["rows"]

  def local(features, kernel, labels):
    kernel = jax.lax.pcast(kernel, "data", to="varying")
    return fused.linear_loss(losses.squentropy, features, kernel, labels)

  specs = (case.features_spec, P(), case.row_spec)
  mapped = jax.shard_map(
    local, mesh=case.mesh(), in_specs=specs, out_specs=case.row_spec
  )
  assert jax.eval_shape(mapped, FEATURES, KERNEL, LABELS).shape == LABELS.shape


@pytest.mark.parametrize(
  ("name", "features_spec", "kernel_spec", "message"),
  [
    (
      "rows and classes on one axis",
      P("data"),
      P(None, "fsdp"),
      r"features_spec must name \['fsdp'\] too",
    ),
    (
      "rows, classes",
      P("data"),
      P(None, "vocabulary"),
      "names 'vocabulary', which is no axis of the jax.shard_map.*'vocab'",
    ),
    (
      "rows, classes",
      P("data"),
      P("vocab", None),
      r"kernel_spec shards the width over \['vocab'\]",
    ),
    (
      "rows, classes",
      P("data"),
      P(None, ("vocab", "data")),
      "kernel must be split over the axes of kernel_spec",
    ),
    (
      "width of the features, classes",
      P("data"),
      P(None, "vocab"),
      r"features_spec must name \['vocab'\] too",
    ),
  ],
)
def test_specs_that_do_not_fit_the_shard_map(
  name, features_spec, kernel_spec, message
):
  case = LAYOUTS[name]
  with pytest.raises(ValueError, match=message):
    inside(case, features_spec, kernel_spec)


def test_shard_map_without_its_check_is_refused():
  case = LAYOUTS["rows, classes"]
  with pytest.raises(ValueError, match="Leave check_vma on"):
    inside(case, *case.specs.values(), check_vma=False)


def test_mesh_inside_a_shard_map_is_refused():
  case = LAYOUTS["rows, classes"]

  def local(features, kernel, labels):
    return fused.linear_loss(
      losses.squentropy, features, kernel, labels, mesh=case.mesh()
    )

  specs = (case.features_spec, case.kernel_spec, case.row_spec)
  mapped = jax.shard_map(
    local, mesh=case.mesh(), in_specs=specs, out_specs=case.row_spec
  )
  with pytest.raises(ValueError, match="mesh must be left out inside"):
    jax.eval_shape(mapped, FEATURES, KERNEL, LABELS)


EVERYTHING = [
  ("rows and some classes on one axis", "rows", "grad_in_forward"),
  ("rows and some classes on one axis", "kernel", "recompute"),
  ("every axis twice", "kernel", "grad_in_forward"),
  ("width of the kernel, classes", "tile", "recompute"),
  ("width of the features, classes", "auto", "frozen_kernel"),
]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(("name", "gather", "mode"), EVERYTHING)
def test_layout_with_every_argument(name, gather, mode, kind):
  """A bias, dropped rows, a temperature of each row and two targets."""
  case = LAYOUTS[name]
  bias = np.linspace(-1, 1, CLASSES, dtype=np.float32)
  bias[3] = -np.inf
  labels = np.where(LABELS == 3, 4, LABELS)
  keep = np.arange(LENGTH) % 3 != np.arange(BATCH)[:, None] % 3
  temperature = np.float32(0.5) + np.abs(WEIGHTS)
  soft = np.zeros((BATCH, LENGTH, CLASSES), np.float32)
  ids = np.stack([labels, (labels + 7) % CLASSES], -1)
  ids = np.where(ids == 3, 5, ids)
  shares = np.broadcast_to(np.float32([0.25, 0.75]), ids.shape)
  for k in range(2):
    np.put_along_axis(soft, ids[..., k:][..., :1], shares[..., k : k + 1], -1)

  def dense(features, kernel, bias, temperature):
    logits = features @ kernel + bias[None, None]
    loss = losses.ldr_kl(logits, soft, temperature=temperature, where=keep)
    return (loss * WEIGHTS).sum()

  def fused_head(features, kernel, bias, temperature):
    settings = case.specs if kind == AxisType.Auto else {}
    return fused.linear_loss_sum(
      functools.partial(losses.ldr_kl, temperature=temperature),
      features,
      kernel,
      (ids, shares),
      bias=bias,
      where=keep,
      weights=WEIGHTS,
      gather=gather,
      mesh=case.mesh(kind),
      plan=fused.Plan(mode),
      **settings,
    )[0]

  specs = (case.features_spec, case.kernel_spec, P(case.kernel_spec[1:][0]))
  arguments = [
    jax.device_put(x, NamedSharding(case.mesh(kind), spec))
    for x, spec in zip((FEATURES, KERNEL, bias), specs, strict=True)
  ]
  wanted = (0, 3) if mode == "frozen_kernel" else (0, 1, 2, 3)
  expected = jax.value_and_grad(dense, wanted)(
    FEATURES, KERNEL, bias, temperature
  )
  found = heads.jit(jax.value_and_grad(fused_head, wanted))(
    *arguments, temperature
  )
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    size = float(np.abs(other).max())
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6 * size)
