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
  FEATURES,
  IN_SPECS,
  MODES,
  ROWS,
  SPECS,
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
        **SPECS,
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
          losses.squentropy, *a, labels, mesh=mesh, **SPECS, **settings
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
        **SPECS,
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
    on_a_mesh = functools.partial(run, mesh=mesh_of((1, 8)), **SPECS)
    return jax.value_and_grad(on_a_mesh)(bias)

  total, gradient = every(bias)
  exact = heads.truth("squentropy", FEATURES, kernel, labels, bias=bias)
  expected = heads.gradients(exact, FEATURES, kernel, np.ones(ROWS))["bias"]
  assert gradient.dtype == bias.dtype
  np.testing.assert_allclose(total, exact.loss.sum(), rtol=1e-5)
  heads.assert_close(gradient, *expected)


@pytest.mark.parametrize("name", SPECS)
def test_mesh_with_one_axis_named(name):
  """The other axis of the mesh holds copies, which must not count twice."""
  kernel, labels = problem(64)
  for mode, summed in (("recompute", False), ("grad_in_forward", True)):
    run = functools.partial(
      head,
      summed=summed,
      mode=mode,
      mesh=mesh_of((2, 4)),
      **dict.fromkeys(SPECS, P()) | {name: SPECS[name]},
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
      features_spec=P(("replica", "data")),
      kernel_spec=P(None, "vocab"),
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
    for mesh in ({}, {"mesh": mesh_of((2, 4)), **SPECS})
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
      **SPECS,
    )
    return stats.rest_max.sum()

  gradient = jax.jit(jax.grad(largest))(kernel)
  expected = np.zeros((WIDTH, 16))
  expected[:, 1] = ROWS
  np.testing.assert_array_equal(gradient, expected)


# Errors.


def call(features=FEATURES, labels=None, kernel=None, **settings):
  own_kernel, own_labels = problem(64)
  return fused.linear_loss(
    losses.squentropy,
    features,
    own_kernel if kernel is None else kernel,
    own_labels if labels is None else labels,
    **settings,
  )


NOT_A_LAYOUT = {
  "no specs on Auto axes": (
    {},
    ValueError,
    "features_spec and kernel_spec must be passed on a mesh of Auto axes",
  ),
  "one spec on Auto axes": (
    {"features_spec": P("data")},
    ValueError,
    "features_spec and kernel_spec must be passed on a mesh of Auto axes",
  ),
  "a name": (
    SPECS | {"kernel_spec": "vocab"},
    TypeError,
    "kernel_spec must be a jax.sharding.PartitionSpec",
  ),
  "too many entries": (
    SPECS | {"features_spec": P("data", None, None)},
    ValueError,
    r"features_spec .* has 3 entries for an array of shape \(16, 7\)",
  ),
  "a typing error": (
    SPECS | {"kernel_spec": P(None, "vocabs")},
    ValueError,
    "names 'vocabs', which is no axis of the mesh.*Did you mean 'vocab'",
  ),
  "an axis twice": (
    SPECS | {"kernel_spec": P("vocab", "vocab")},
    ValueError,
    "kernel_spec .* names a mesh axis twice",
  ),
  "unconstrained": (
    SPECS | {"kernel_spec": P(None, P.UNCONSTRAINED)},
    ValueError,
    "Replace UNCONSTRAINED by None",
  ),
  "unknown gather": (
    SPECS | {"gather": "all"},
    ValueError,
    "gather must be one of",
  ),
  "tile in one pass": (
    SPECS | {"gather": "tile", "plan": fused.Plan("frozen_kernel")},
    ValueError,
    "gather='tile' needs mode 'recompute'",
  ),
  "not the last axis of the classes": (
    {
      "features_spec": P("data"),
      "kernel_spec": P(None, ("data", "vocab")),
      "gather": "kernel",
    },
    ValueError,
    "gather='kernel' needs .*as the last axes of the classes",
  ),
}


@pytest.mark.parametrize("case", NOT_A_LAYOUT)
def test_layout_that_does_not_fit_names_its_argument(case):
  settings, error, message = NOT_A_LAYOUT[case]
  with pytest.raises(error, match=message):
    call(mesh=mesh_of((2, 4)), **settings)


def test_sharded_kernel_without_a_mesh_is_refused():
  """Outside of jit it can be seen that each device would gather it."""
  kernel, _ = problem(64)
  spec = NamedSharding(mesh_of((2, 4)), P(None, "vocab"))
  with pytest.raises(ValueError, match=r"kernel is sharded over.*Pass mesh="):
    call(kernel=jax.device_put(kernel, spec))


def test_specs_need_a_mesh():
  with pytest.raises(ValueError, match="need a mesh, and there is none"):
    call(**SPECS)


def test_mesh_that_is_set_needs_specs():
  """Fault 8: without them each device gathered the kernel."""
  with jax.set_mesh(mesh_of((2, 4))):
    with pytest.raises(ValueError, match="features_spec and kernel_spec must"):
      call()
    with pytest.raises(ValueError, match="features_spec and kernel_spec must"):
      jax.jit(call)(FEATURES)
    np.testing.assert_allclose(call(**SPECS), call(**SPECS))
  with jax.set_mesh(mesh_of((1, 1))):
    call()


def test_another_mesh_than_that_of_the_arrays_is_refused():
  kernel, _ = problem(64)
  mesh, other = mesh_of((2, 4)), mesh_of((4, 2))
  sharded = jax.device_put(kernel, NamedSharding(mesh, P(None, "vocab")))
  with pytest.raises(ValueError, match="kernel is sharded over a mesh of"):
    call(kernel=sharded, mesh=other, **SPECS)
  with (
    jax.set_mesh(mesh),
    pytest.raises(ValueError, match=r"mesh must be the mesh of jax\.set_mesh"),
  ):
    call(mesh=other, **SPECS)


def test_mesh_of_two_kinds_of_axes_is_refused():
  mixed = jax.make_mesh(
    (2, 4), ("data", "vocab"), axis_types=(AxisType.Auto, AxisType.Explicit)
  )
  with pytest.raises(ValueError, match="mesh must have axes of one type"):
    call(mesh=mixed, **SPECS)


def test_spec_that_contradicts_a_type_names_both():
  """Fault 5: the type was ignored once a mesh was passed."""
  kernel, _ = problem(64)
  mesh = mesh_of((2, 4), AxisType.Explicit)
  sharded = jax.device_put(kernel, NamedSharding(mesh, P(None, "vocab")))
  for spec in (P(), P(None, "data"), P("vocab", None)):
    with pytest.raises(
      ValueError, match=r"kernel_spec .*contradicts the type of kernel, float32"
    ):
      call(kernel=sharded, kernel_spec=spec)
  np.testing.assert_allclose(call(kernel=sharded), call(), rtol=1e-5)
  spec = P(None, "vocab")
  same = call(kernel=sharded, kernel_spec=spec, mesh=mesh)
  np.testing.assert_allclose(same, call(), rtol=1e-5)
