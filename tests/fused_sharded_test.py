# SPDX-License-Identifier: Apache-2.0
"""Linear heads over rows and classes spread over eight devices."""

import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support import heads

from squentropy_jax import fused, losses

ROWS, WIDTH = 16, 7
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(ROWS, WIDTH)).astype(np.float32)
WEIGHTS = RNG.uniform(-1, 2, ROWS).astype(np.float32)
AXES = {"batch_axis": "data", "vocab_axis": "vocab"}
IN_SPECS = (P("data"), P(None, "vocab"), P("data"), P("data"))


def problem(classes):
  kernel = RNG.normal(size=(WIDTH, classes)).astype(np.float32)
  return kernel, RNG.integers(0, classes, ROWS)


def mesh_of(shape, kind=AxisType.Auto):
  return jax.make_mesh(shape, ("data", "vocab"), axis_types=(kind,) * 2)


def assert_right(found, kernel, labels, frozen=False):
  """A weighted sum and its gradients by features and kernel."""
  exact = heads.truth("squentropy", FEATURES, kernel, labels)
  total, gradients = found
  error = np.abs(WEIGHTS) @ (exact.loss_error + 2.0**-20 * exact.loss)
  heads.assert_close(total, WEIGHTS @ exact.loss, error)
  expected = heads.gradients(exact, FEATURES, kernel, WEIGHTS)
  heads.assert_close(gradients[0], *expected["features"])
  if frozen:
    assert not np.any(gradients[1])
  else:
    heads.assert_close(gradients[1], *expected["kernel"])


def head(features, kernel, labels, weights, *, whole, mode, **settings):
  """The weighted sum, by `linear_loss_sum` or by `linear_loss`."""
  loss = losses.squentropy
  if whole:
    return fused.linear_loss_sum(
      loss, features, kernel, labels, weights=weights, mode=mode, **settings
    )[0]
  each = fused.linear_loss(
    loss, features, kernel, labels, mode=mode, **settings
  )
  return (each * weights).sum()


MODES = [
  ("recompute", False),
  ("recompute", True),
  ("grad_in_forward", True),
  ("frozen_kernel", False),
]


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4)], ids=str)
@pytest.mark.parametrize("classes", [64, 61])
def test_mesh(shape, classes):
  kernel, labels = problem(classes)
  mesh = mesh_of(shape)

  @heads.jit
  def every(features, kernel):
    return [
      jax.value_and_grad(head, (0, 1))(
        features, kernel, labels, WEIGHTS, whole=w, mode=mode, mesh=mesh, **AXES
      )
      for mode, w in MODES
    ]

  for (mode, _), found in zip(MODES, every(FEATURES, kernel), strict=True):
    assert_right(found, kernel, labels, frozen=mode == "frozen_kernel")


def test_mesh_of_explicit_axes_takes_what_is_not_spread_yet():
  """Rows are dropped, weighed by default, and aimed at sparse targets."""
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
        features, kernel, labels, WEIGHTS, whole=w, mode=mode, mesh=mesh, **AXES
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
  bias = jnp.asarray(RNG.normal(size=61), jnp.float8_e4m3fn)

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
  for mode, whole in (("recompute", False), ("grad_in_forward", True)):
    run = functools.partial(
      head, whole=whole, mode=mode, mesh=mesh_of((2, 4)), **{axis: AXES[axis]}
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
      whole=True,
      mode=None,
      mesh=mesh,
      batch_axis=("replica", "data"),
      vocab_axis="vocab",
    )

  found = heads.jit(jax.value_and_grad(run, (0, 1)))(FEATURES, kernel)
  assert_right(found, kernel, labels)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(("mode", "whole"), MODES)
def test_shard_map_of_the_user(kind, mode, whole):
  """Differentiated outside and inside, with the check of variances on."""
  kernel, labels = problem(64)
  mesh = mesh_of((2, 4), kind)
  run = functools.partial(head, whole=whole, mode=mode, **AXES)

  def local(*arguments):
    return jax.lax.psum(run(*arguments), "data")

  def inside(features, kernel, *rest):
    return jax.value_and_grad(local, (0, 1))(features, kernel, *rest)

  arguments = FEATURES, kernel, labels, WEIGHTS
  with jax.set_mesh(mesh):
    arguments = [
      jax.device_put(x, NamedSharding(mesh, s))
      for x, s in zip(arguments, IN_SPECS, strict=True)
    ]
    outer = jax.shard_map(local, in_specs=IN_SPECS, out_specs=P())
    inner = jax.shard_map(
      inside, in_specs=IN_SPECS, out_specs=(P(), IN_SPECS[:2])
    )
    both = heads.jit(
      lambda *a: (jax.value_and_grad(outer, (0, 1))(*a), inner(*a))
    )(*arguments)
  for found in both:
    assert_right(found, kernel, labels, frozen=mode == "frozen_kernel")


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4)], ids=str)
def test_shard_map_of_the_user_with_what_is_the_same_everywhere(shape):
  """Weights, probabilities and a scale that the devices do not share out."""
  kernel, labels = problem(64)
  here = ROWS // shape[0]
  weights = WEIGHTS[:here]
  everywhere = np.tile(weights, shape[0])
  where = np.arange(here) % 3 != 0

  def local(features, kernel, labels, weights, scale, **more):
    settings = AXES if shape[1] > 1 else {}
    total, _ = fused.linear_loss_sum(
      losses.squentropy,
      features,
      kernel,
      labels,
      weights=weights,
      scale=scale,
      **more,
      **settings,
    )
    return jax.lax.psum(total, "data")

  def plain(features, kernel, labels, weights, scale):
    return local(features, kernel, labels, None, scale)

  def dropped(features, kernel, labels, weights, scale):
    return local(features, kernel, labels, None, scale, where=where)

  def soft(features, kernel, labels, weights, scale):
    sure = jnp.ones((here, 1), jnp.float32)
    return local(features, kernel, (labels[:, None], sure), weights, scale)

  variants = {
    local: everywhere,
    plain: np.ones(ROWS),
    dropped: np.tile(where, shape[0]),
    soft: everywhere,
  }

  @heads.jit
  def every(*arguments):
    def run(variant):
      vocab = P(None, "vocab" if shape[1] > 1 else None)
      specs = (P("data"), vocab, P("data"), P(), P())
      mapped = jax.shard_map(
        variant, mesh=mesh_of(shape), in_specs=specs, out_specs=P()
      )
      return jax.value_and_grad(mapped, (0, 1, 3, 4))(*arguments)

    return [run(variant) for variant in variants]

  arguments = FEATURES, kernel, labels, weights, np.float32(0.7)
  exact = heads.truth(
    "squentropy", FEATURES, kernel, labels, hyper={"scale": 0.7}
  )
  plainly = heads.truth("cross_entropy", FEATURES, kernel, labels)
  for (variant, each), found in zip(
    variants.items(), every(*arguments), strict=True
  ):
    total, (*by_arrays, by_weights, by_scale) = found
    expected = heads.gradients(exact, FEATURES, kernel, each)
    np.testing.assert_allclose(total, each @ exact.loss, rtol=1e-5)
    heads.assert_close(by_arrays[0], *expected["features"])
    heads.assert_close(by_arrays[1], *expected["kernel"])
    square = each @ (exact.loss - plainly.loss) / 0.7
    np.testing.assert_allclose(by_scale, square, rtol=1e-5)
    by_weight = exact.loss.reshape(shape[0], here).sum(0)
    by_weight *= variant in (local, soft)
    np.testing.assert_allclose(by_weights, by_weight, rtol=1e-5)


def test_sum_is_local_inside_a_shard_map_and_global_around_one():
  kernel, labels = problem(64)
  mesh = mesh_of((8, 1))

  def local(features, labels):
    return jax.tree.map(
      lambda x: x[None],
      fused.linear_loss_sum(
        losses.squentropy, features, kernel, labels, batch_axis="data"
      ),
    )

  total, count = jax.shard_map(
    local, mesh=mesh, in_specs=P("data"), out_specs=P("data")
  )(FEATURES, labels)
  np.testing.assert_array_equal(count, np.full(8, 2.0))
  exact = heads.truth("squentropy", FEATURES, kernel, labels)
  np.testing.assert_allclose(total, exact.loss.reshape(8, 2).sum(-1), rtol=1e-5)
  whole, count = fused.linear_loss_sum(
    losses.squentropy,
    FEATURES,
    kernel,
    labels,
    mesh=mesh,
    batch_axis="data",
  )
  assert count == 16.0
  np.testing.assert_allclose(whole, exact.loss.sum(), rtol=1e-5)


def test_smoothing_counts_the_classes_of_all_devices():
  kernel, labels = problem(61)
  settings = {"label_smoothing": 0.1, "scale": 0.7}
  one, other = (
    heads.jit(
      jax.value_and_grad(
        lambda w, mesh=mesh: fused.linear_loss_sum(
          losses.squentropy, FEATURES, w, labels, **mesh, **settings
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


# What crosses between devices.


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


@pytest.mark.parametrize(
  ("shape", "classes"),
  [((2, 4), 1000), ((8, 1), 1000), ((1, 8), 1000), ((2, 4), 1001)],
  ids=str,
)
@pytest.mark.parametrize(("mode", "whole"), MODES)
def test_no_device_gathers_kernel_or_features(mode, whole, shape, classes):
  """Forward go the sums of rows, backward the gradients; nothing else."""
  rows, width = 64, 32
  mesh = mesh_of(shape)
  shapes = ((rows, width), (width, classes), (rows,), (rows,))
  dtypes = (np.float32, np.float32, np.int32, np.float32)
  # Classes that do not divide cannot be spread before the call.
  uneven = classes % shape[1] > 0
  specs = (IN_SPECS[0], P() if uneven else IN_SPECS[1], *IN_SPECS[2:])
  arguments = [
    jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, spec))
    for s, d, spec in zip(shapes, dtypes, specs, strict=True)
  ]
  run = functools.partial(head, whole=whole, mode=mode, mesh=mesh, **AXES)

  def sent(f):
    return collectives(heads.jit(f).lower(*arguments).compile().as_text())

  # The largest logit, and in one message at most five sums a row.
  forward = sent(run)
  assert {kind for kind, _ in forward} == {"all-reduce"}
  assert sum(size for _, size in forward) <= 6 * rows // shape[0]
  wanted = 0 if mode == "frozen_kernel" else (0, 1)
  every = sent(jax.value_and_grad(run, wanted))
  reduced = [size for kind, size in every if kind == "all-reduce"]
  others = [sent for sent in every if sent[0] != "all-reduce"]
  here = -(-classes // shape[1])
  of_features = rows // shape[0] * width
  of_kernel = 0 if mode == "frozen_kernel" else width * here
  assert sum(reduced) <= 6 * rows + of_features + of_kernel
  # The gradient of a kernel that is not spread is not spread either.
  whole_kernel = [("all-gather", of_kernel * shape[1])]
  assert others == (whole_kernel if uneven and of_kernel else [])


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
  with pytest.raises(TypeError, match="batch_axis must be a mesh axis"):
    call(mesh=mesh, batch_axis=(0,))
  with pytest.raises(ValueError, match="given with mesh="):
    call(vocab_axis="vocab")
  with pytest.raises(ValueError, match=r"2 devices of batch_axis 'data'"):
    call(FEATURES[:3], labels[:3], mesh=mesh, batch_axis="data")
  with pytest.raises(ValueError, match=r"2 devices of batch_axis 'data'"):
    call(FEATURES[0], labels[0], mesh=mesh, batch_axis="data")


def test_sharded_kernel_without_a_mesh_is_refused():
  kernel, labels = problem(64)
  mesh = mesh_of((2, 4), AxisType.Explicit)
  with jax.set_mesh(mesh):
    sharded = jax.device_put(kernel, NamedSharding(mesh, P(None, "vocab")))
    with pytest.raises(ValueError, match=r"kernel is sharded.*mesh="):
      fused.linear_loss(losses.squentropy, FEATURES, sharded, labels)


def test_shard_map_that_cannot_be_seen_into_is_refused():
  kernel, labels = problem(64)
  mesh = mesh_of((2, 4))
  run = functools.partial(head, whole=True, mode=None, **AXES)

  def mapped(**settings):
    jax.shard_map(run, mesh=mesh, out_specs=P(), **settings)(
      FEATURES, kernel, labels, WEIGHTS
    )

  with pytest.raises(ValueError, match="Leave check_vma on"):
    mapped(in_specs=IN_SPECS, check_vma=False)
  whole_kernel = (IN_SPECS[0], P(), *IN_SPECS[2:])
  with pytest.raises(ValueError, match="must be split over vocab_axis"):
    mapped(in_specs=whole_kernel)
