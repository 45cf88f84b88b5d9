# SPDX-License-Identifier: Apache-2.0
"""Linear heads inside a shard_map of the user."""

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
  assert_right,
  head,
  mesh_of,
  problem,
)

from squentropy_jax import fused, losses


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_shard_map_of_the_user(kind):
  """Differentiated outside and inside, with the check of variances on."""
  kernel, labels = problem(64)
  mesh = mesh_of((2, 4), kind)

  def run(mode, summed, arguments):
    def local(*arguments):
      total = head(*arguments, summed=summed, mode=mode, **SPECS)
      return jax.lax.psum(total, "data")

    def inside(features, kernel, *rest):
      return jax.value_and_grad(local, (0, 1))(features, kernel, *rest)

    outer = jax.shard_map(local, in_specs=IN_SPECS, out_specs=P())
    inner = jax.shard_map(
      inside, in_specs=IN_SPECS, out_specs=(P(), IN_SPECS[:2])
    )
    return jax.value_and_grad(outer, (0, 1))(*arguments), inner(*arguments)

  @heads.jit
  def every(*arguments):
    return [run(mode, summed, arguments) for mode, summed in MODES]

  with jax.set_mesh(mesh):
    arguments = [
      jax.device_put(x, NamedSharding(mesh, s))
      for x, s in zip(
        (FEATURES, kernel, labels, WEIGHTS), IN_SPECS, strict=True
      )
    ]
    found = every(*arguments)
  for (mode, _), both in zip(MODES, found, strict=True):
    for one in both:
      assert_right(one, kernel, labels, frozen=mode == "frozen_kernel")


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4)], ids=str)
def test_shard_map_of_the_user_with_what_is_the_same_everywhere(shape):
  """Weights, probabilities and a scale that are not sharded."""
  kernel, labels = problem(64)
  here = ROWS // shape[0]
  weights = WEIGHTS[:here]
  everywhere = np.tile(weights, shape[0])
  where = np.arange(here) % 3 != 0

  def local(features, kernel, labels, weights, scale, **more):
    settings = SPECS if shape[1] > 1 else {"features_spec": P("data")}
    total, *_ = fused.linear_loss_sum(
      functools.partial(losses.squentropy, scale=scale),
      features,
      kernel,
      labels,
      weights=weights,
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
        losses.squentropy, features, kernel, labels, features_spec=P("data")
      ),
    )

  total, count, _ = jax.shard_map(
    local, mesh=mesh, in_specs=P("data"), out_specs=P("data")
  )(FEATURES, labels)
  np.testing.assert_array_equal(count, np.full(8, 2.0))
  exact = heads.truth("squentropy", FEATURES, kernel, labels)
  np.testing.assert_allclose(total, exact.loss.reshape(8, 2).sum(-1), rtol=1e-5)
  total, count, _ = fused.linear_loss_sum(
    losses.squentropy,
    FEATURES,
    kernel,
    labels,
    mesh=mesh,
    features_spec=P("data"),
    kernel_spec=P(),
  )
  assert count == 16.0
  np.testing.assert_allclose(total, exact.loss.sum(), rtol=1e-5)


def test_shard_map_that_cannot_be_seen_into_is_refused():
  kernel, labels = problem(64)
  mesh = mesh_of((2, 4))
  run = functools.partial(head, summed=True, mode=None, **SPECS)

  def mapped(**settings):
    jax.shard_map(run, mesh=mesh, out_specs=P(), **settings)(
      FEATURES, kernel, labels, WEIGHTS
    )

  with pytest.raises(ValueError, match="Leave check_vma on"):
    mapped(in_specs=IN_SPECS, check_vma=False)
  replicated_kernel = (IN_SPECS[0], P(), *IN_SPECS[2:])
  with pytest.raises(
    ValueError, match="must be split over the axes of kernel_spec"
  ):
    mapped(in_specs=replicated_kernel)
