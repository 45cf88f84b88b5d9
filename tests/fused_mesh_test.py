# SPDX-License-Identifier: Apache-2.0
"""Linear heads on a mesh of eight devices that they are given."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support import heads
from support.sharded import (
  AXES,
  FEATURES,
  IN_SPECS,
  MODES,
  ROWS,
  WEIGHTS,
  WIDTH,
  assert_right,
  head,
  mesh_of,
  problem,
)

from squentropy_jax import fused, losses


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4)], ids=str)
@pytest.mark.parametrize("classes", [64, 61])
def test_mesh(shape, classes):
  kernel, labels = problem(classes)
  mesh = mesh_of(shape)

  @heads.jit
  def every(features, kernel):
    return [
      jax.value_and_grad(head, (0, 1))(
        features,
        kernel,
        labels,
        WEIGHTS,
        summed=w,
        mode=mode,
        mesh=mesh,
        **AXES,
      )
      for mode, w in MODES
    ]

  for (mode, _), found in zip(MODES, every(FEATURES, kernel), strict=True):
    assert_right(found, kernel, labels, frozen=mode == "frozen_kernel")


def test_mesh_of_explicit_axes_takes_what_is_not_sharded_yet():
  """With dropped rows, default weights and sparse targets."""
  kernel, labels = problem(64)
  mesh = mesh_of((2, 4), AxisType.Explicit)
  where = np.arange(ROWS) % 3 != 0
  sparse = labels[:, None], np.ones((ROWS, 1), np.float32)
  variants = (
    (labels, {"where": where}),
    (sparse, {"weights": where.astype(np.float32)}),
  )

  @heads.jit
  def every(features, kernel):
    def run(labels, settings):
      return jax.value_and_grad(
        lambda *a: fused.linear_loss_sum(
          losses.squentropy, *a, labels, mesh=mesh, **AXES, **settings
        )[0],
        (0, 1),
      )(features, kernel)

    return [run(*variant) for variant in variants]

  exact = heads.truth("squentropy", FEATURES, kernel, labels)
  expected = heads.gradients(exact, FEATURES, kernel, where * 1.0)
  with jax.set_mesh(mesh):
    arguments = [
      jax.device_put(x, NamedSharding(mesh, spec))
      for x, spec in zip((FEATURES, kernel), IN_SPECS, strict=False)
    ]
    for total, gradients in every(*arguments):
      np.testing.assert_allclose(total, where @ exact.loss, rtol=1e-5)
      heads.assert_close(gradients[0], *expected["features"])
      heads.assert_close(gradients[1], *expected["kernel"])


def test_mesh_of_explicit_axes_takes_a_kernel_that_is_the_same_everywhere():
  """Its gradient is the same everywhere too, features' as they are."""
  kernel, labels = problem(64)
  mesh = mesh_of((2, 4), AxisType.Explicit)
  specs = (P("data", None), P(None, None))

  @heads.jit
  def every(features, kernel):
    return [
      jax.value_and_grad(head, (0, 1))(
        features,
        kernel,
        labels,
        WEIGHTS,
        summed=w,
        mode=mode,
        mesh=mesh,
        **AXES,
      )
      for mode, w in MODES[:3]
    ]

  with jax.set_mesh(mesh):
    arguments = [
      jax.device_put(x, NamedSharding(mesh, spec))
      for x, spec in zip((FEATURES, kernel), specs, strict=True)
    ]
    for found in every(*arguments):
      assert [jax.typeof(g).sharding.spec for g in found[1]] == list(specs)
      assert_right(found, kernel, labels)


def test_narrow_bias_of_classes_that_do_not_divide():
  """Eight bits have no infinity that the padding could have."""
  kernel, labels = problem(61)
  bias = jnp.asarray(np.linspace(-1, 2, 61), jnp.float8_e4m3fn)

  def run(bias, **settings):
    return fused.linear_loss_sum(
      losses.squentropy, FEATURES, kernel, labels, bias=bias, **settings
    )[0]

  @heads.jit
  def every(bias):
    on_a_mesh = functools.partial(run, mesh=mesh_of((1, 8)), vocab_axis="vocab")
    return jax.value_and_grad(on_a_mesh)(bias)

  total, gradient = every(bias)
  exact = heads.truth("squentropy", FEATURES, kernel, labels, bias=bias)
  expected = heads.gradients(exact, FEATURES, kernel, np.ones(ROWS))["bias"]
  assert gradient.dtype == bias.dtype
  np.testing.assert_allclose(total, exact.loss.sum(), rtol=1e-5)
  heads.assert_close(gradient, *expected)


@pytest.mark.parametrize("axis", AXES)
def test_mesh_with_one_axis_named(axis):
  """The other axis of the mesh holds copies, which must not count twice."""
  kernel, labels = problem(64)
  for mode, summed in (("recompute", False), ("grad_in_forward", True)):
    run = functools.partial(
      head, summed=summed, mode=mode, mesh=mesh_of((2, 4)), **{axis: AXES[axis]}
    )
    found = heads.jit(jax.value_and_grad(run, (0, 1)))(
      FEATURES, kernel, labels, WEIGHTS
    )
    assert_right(found, kernel, labels)


def test_axis_of_several_mesh_axes_and_leading_dimensions():
  kernel, labels = problem(64)
  mesh = jax.make_mesh(
    (2, 2, 2), ("replica", "data", "vocab"), axis_types=(AxisType.Auto,) * 3
  )

  def run(features, kernel):
    return head(
      features.reshape(4, 4, WIDTH),
      kernel,
      labels.reshape(4, 4),
      WEIGHTS.reshape(4, 4),
      summed=True,
      mode=None,
      mesh=mesh,
      batch_axis=("replica", "data"),
      vocab_axis="vocab",
    )

  found = heads.jit(jax.value_and_grad(run, (0, 1)))(FEATURES, kernel)
  assert_right(found, kernel, labels)


def test_smoothing_counts_the_classes_of_all_devices():
  kernel, labels = problem(61)
  loss = functools.partial(losses.squentropy, scale=0.7)
  one, other = (
    heads.jit(
      jax.value_and_grad(
        lambda w, mesh=mesh: fused.linear_loss_sum(
          loss, FEATURES, w, labels, label_smoothing=0.1, **mesh
        )[0]
      )
    )(kernel)
    for mesh in ({}, {"mesh": mesh_of((2, 4)), **AXES})
  )
  np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
  np.testing.assert_allclose(one[1], other[1], rtol=1e-4, atol=1e-5)


def test_stats_take_the_lowest_of_equal_classes_of_all_devices():
  kernel = np.zeros((WIDTH, 16), np.float32)
  labels = np.zeros(ROWS, int)

  def largest(kernel):
    stats = fused.linear_row_stats(
      np.ones((ROWS, WIDTH), np.float32),
      kernel,
      labels,
      mesh=mesh_of((1, 8)),
      vocab_axis="vocab",
    )
    return stats.rest_max.sum()

  gradient = jax.jit(jax.grad(largest))(kernel)
  expected = np.zeros((WIDTH, 16))
  expected[:, 1] = ROWS
  np.testing.assert_array_equal(gradient, expected)


# Errors.


def test_layout_that_does_not_fit_names_its_argument():
  kernel, labels = problem(64)
  mesh = mesh_of((2, 4))

  def call(features=FEATURES, labels=labels, **settings):
    return fused.linear_loss(
      losses.squentropy, features, kernel, labels, **settings
    )

  with pytest.raises(ValueError, match="must name axes of it, which are"):
    call(mesh=mesh)
  with pytest.raises(ValueError, match="must name axes of it, which are"):
    call(mesh=mesh, batch_axis="model")
  with pytest.raises(ValueError, match="must be different axes"):
    call(mesh=mesh, batch_axis="data", vocab_axis="data")
  with pytest.raises(TypeError, match="must be the name of a mesh axis"):
    call(mesh=mesh, batch_axis=(0,))
  with pytest.raises(ValueError, match="Pass the mesh with mesh="):
    call(vocab_axis="vocab")
  with pytest.raises(ValueError, match=r"the 2 devices of batch_axis"):
    call(FEATURES[:3], labels[:3], mesh=mesh, batch_axis="data")
  with pytest.raises(ValueError, match=r"the 2 devices of batch_axis"):
    call(FEATURES[0], labels[0], mesh=mesh, batch_axis="data")


def test_sharded_kernel_without_a_mesh_is_refused():
  kernel, labels = problem(64)
  mesh = mesh_of((2, 4), AxisType.Explicit)
  with jax.set_mesh(mesh):
    sharded = jax.device_put(kernel, NamedSharding(mesh, P(None, "vocab")))
    with pytest.raises(ValueError, match=r"kernel is sharded.*Pass mesh="):
      fused.linear_loss(losses.squentropy, FEATURES, sharded, labels)
