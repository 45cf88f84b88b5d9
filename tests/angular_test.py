# SPDX-License-Identifier: Apache-2.0
"""Angular losses: worked values, limits, ends of the angle, fused heads."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import pytest
from support import heads as support
from support.contract import jit
from support.programs import collectives
from support.sharded import IN_SPECS, SPECS, mesh_of

from squentropy_jax import fused, heads, losses

F32 = np.float32
EPS = np.finfo(F32).eps
PROBE = np.array([0.6, 0.2, -0.1])
RNG = np.random.default_rng(21)
COSINES = RNG.uniform(-1, 1, size=(8, 5)).astype(F32)
LABELS = np.arange(8) % 5


@pytest.mark.x64
def test_worked_numbers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  close(losses.cosface(PROBE, 0), 0.039953333342)
  close(losses.cosface(PROBE, 0, scale=10.0), 0.492699153332)
  close(losses.arcface(PROBE, 0), 3.673141816442)
  close(losses.arcface(PROBE, 0, scale=10.0), 1.049469260458)
  close(losses.sphereface(PROBE, 0, margin=4.0, scale=1.0), 2.049097633611)
  close(losses.sphereface(PROBE, 0, margin=4.0), 40.70412340219)
  close(losses.sphereface(PROBE, 0), 6.170381462177)
  cosines = heads.cosine_logits(
    [3.0, 4.0], [[2.0, 0.0, -1.0], [0.0, 0.5, -1.0]]
  )
  close(cosines, [0.6, 0.8, -0.989949493661])
  close(losses.normalized_softmax(cosines, 1), 0.126928025876)
  # Three class vectors at 120 degrees, and a feature on one of them.
  best = losses.normalized_softmax(np.array([1.0, -0.5, -0.5]), 0)
  np.testing.assert_allclose(best, 6.118044538513e-07, rtol=1e-10)


def test_logits_that_can_be_read_are_no_cosines():
  loss, kept = losses.cosface, np.arange(8) < 7
  logits = COSINES.copy()
  logits[7] = 40.0
  with pytest.raises(ValueError, match=r"got 40.*heads\.cosine_logits"):
    loss(logits, LABELS)
  with pytest.raises(ValueError, match="got 40"):
    loss(logits.T, LABELS, axis=0)
  with pytest.raises(ValueError, match="got inf"):
    loss(jnp.asarray(logits).at[0, 0].set(jnp.inf), LABELS)
  # Also constants of a trace, and with a mask that can be read.
  constant = jnp.asarray(logits)
  with pytest.raises(ValueError, match="got 40"):
    jax.jit(lambda scale: loss(constant, LABELS, scale=scale))(8.0)
  found = loss(logits, LABELS, where=kept)
  np.testing.assert_array_equal(found[:7], loss(COSINES, LABELS)[:7])
  assert found[7] == 0
  # What cannot be read gives NaN.
  traced = jax.jit(lambda keep: loss(logits, LABELS, where=keep))
  assert np.isnan(traced(np.ones(8, bool))[7])
  assert np.isnan(jax.jit(loss)(logits, LABELS)[7])
  # NaN, an impossible class and a rounding to bfloat16 do not raise.
  logits[7] = np.nan, -np.inf, 1.0, 1.0, 1.0
  assert np.isnan(loss(logits, LABELS)[7])
  assert np.isfinite(loss(jnp.full((1, 3), 1.0078125, jnp.bfloat16), [0]))
  assert loss(np.zeros((0, 3), F32), np.zeros(0, int)).shape == (0,)


def test_each_loss_without_a_margin_is_the_normalized_softmax():
  none = (
    losses.normalized_softmax,
    functools.partial(losses.cosface, margin=0.0),
    functools.partial(losses.arcface, margin=0.0),
    functools.partial(losses.sphereface, margin=1.0),
    losses.combined_margin,
  )

  @jit
  def every(cosines):
    z = 20.0 * cosines
    found = [
      jax.value_and_grad(lambda c, f=f: f(c, LABELS, scale=20.0).sum())(cosines)
      for f in none
    ]
    return found, losses.cross_entropy(z, LABELS).sum()

  (expected, *others), cross_entropy = every(COSINES)
  np.testing.assert_allclose(expected[0], cross_entropy, rtol=8 * EPS)
  for value, gradient in others:
    np.testing.assert_allclose(value, expected[0], rtol=8 * EPS)
    np.testing.assert_allclose(gradient, expected[1], rtol=2e-5, atol=2e-5)


def test_the_combined_margin_has_the_others_as_special_cases():
  pairs = (
    (losses.arcface, {"margin": 0.6}, {"additive": 0.6}),
    (losses.cosface, {"margin": 0.3}, {"cosine": 0.3}),
    (losses.sphereface, {"margin": 2.3}, {"multiplicative": 2.3}),
  )
  for loss, hyper, combined in pairs:
    np.testing.assert_allclose(
      losses.combined_margin(COSINES, LABELS, scale=30.0, **combined),
      loss(COSINES, LABELS, scale=30.0, **hyper),
      rtol=8 * EPS,
    )


@jit
def target_of(loss_cosines):
  """What the labelled cosine becomes, by the losses against one other of 0."""
  margin = jnp.linspace(-0.3, 2.33, 7)[:, None]
  z = jnp.stack([loss_cosines, jnp.zeros_like(loss_cosines)], -1)
  z = jnp.broadcast_to(z, (7, *z.shape))
  labels = jnp.zeros(z.shape[:-1], jnp.int32)
  margins = jnp.broadcast_to(margin, labels.shape)

  def moved(loss, **hyper):
    # Softplus of minus the moved cosine, at scale 1.
    return -jnp.log(jnp.expm1(loss(z, labels, scale=1.0, **hyper)))

  return {
    "monotonic": moved(losses.arcface, margin=margins),
    "bare": moved(losses.arcface, margin=margins, monotonic=False),
    "sphere": moved(losses.sphereface, margin=1.0 + jnp.abs(margins)),
  }


def test_monotonic_targets_never_increase_with_the_angle():
  angles = np.linspace(0, np.pi, 101)
  found = target_of(np.cos(angles).astype(F32))
  margin = np.linspace(-0.3, 2.33, 7)[:, None]
  bare = np.cos(angles + margin)
  np.testing.assert_allclose(found["bare"], bare, atol=2e-6)
  past = (angles >= np.pi - margin) & (margin > 0)
  clear = np.abs(angles - (np.pi - margin)) > 1e-3
  fallen = np.cos(angles) - margin * np.sin(margin)
  expected = np.where(past, fallen, bare)
  assert past.any()
  np.testing.assert_allclose(
    found["monotonic"][clear], expected[clear], atol=2e-6
  )
  # A negative margin moves the first angles towards 0.
  for name, start in (("monotonic", 1), ("sphere", 0)):
    assert (np.diff(found[name][start:]) <= 2e-6).all()


def test_derivatives_at_the_ends_are_those_without_the_sine():
  bound = (
    functools.partial(losses.arcface, scale=1.0),
    functools.partial(losses.sphereface, scale=1.0),
    functools.partial(
      losses.combined_margin, scale=1.0, multiplicative=2.0, additive=0.1
    ),
    functools.partial(losses.sphereface, scale=1.0, margin=3.0),
  )

  @jit
  def derivatives(target):
    c = jnp.stack([target, jnp.full_like(target, 0.5)])
    gradients = jnp.stack([jax.grad(loss)(c, 0) for loss in bound])
    # The derivative of softplus is that in the other cosine.
    return -gradients[:, 0] / gradients[:, 1]

  expected = [np.cos(0.5), 1.7**2, 4 * np.cos(0.1), 9.0]
  for end in (1.0, 1.0 + EPS):
    np.testing.assert_allclose(derivatives(F32(end)), expected, rtol=1e-5)


@pytest.mark.x64
@pytest.mark.parametrize("margin", [2.0, 3.0, 4.0, 5.0])
def test_an_integer_margin_is_smooth_at_a_cosine_of_minus_one(margin):
  """Compiled or not: the number of half turns is decided by rounding there."""

  def loss(target):
    cosines = jnp.stack([target, jnp.full_like(target, 0.5)])
    return losses.sphereface(cosines, 0, margin=margin, scale=1.0)

  # psi is 1 - 2 m there, and its derivative m^2.
  expected = -(margin**2) / (1 + np.exp(0.5 - 2 * margin))
  for dtype in (jnp.float32, jnp.float64):
    for gradient in (jax.grad(loss), jit(jax.grad(loss))):
      at_end = gradient(jnp.asarray(-1.0, dtype))
      np.testing.assert_allclose(at_end, expected, rtol=1e-5)


@pytest.mark.x64
def test_a_fused_head_of_normalised_arguments_is_the_dense_loss():
  """Value and all gradients, through the normalisation."""
  features, kernel = RNG.normal(size=(6, 4)), RNG.normal(size=(4, 260))
  labels, cotangent = np.arange(6) * 40, np.linspace(-1, 2, 6)
  margin = np.linspace(-0.2, 2.5, 6)

  def dense(features, kernel, margin):
    cosines = heads.cosine_logits(features, kernel)
    return losses.arcface(cosines, labels, margin=margin) @ cotangent

  def head(features, kernel, margin, **settings):
    loss = fused.linear_loss(
      functools.partial(losses.arcface, margin=margin),
      heads.normalize(features),
      heads.unit_columns(kernel),
      labels,
      plan=fused.Plan(None, 1),
      **settings,
    )
    return loss @ cotangent

  @support.jit
  def every(*arguments):
    programs = (
      dense,
      head,
      functools.partial(head, mesh=mesh_of((2, 4)), **SPECS),
    )
    return [jax.value_and_grad(f, (0, 1, 2))(*arguments) for f in programs]

  expected, *others = every(features, kernel, margin)
  for found in others:
    for one, other in zip(
      jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


def plain_head(loss, features, kernel, labels, **settings):
  return fused.linear_loss(loss, features, kernel, labels, **settings).sum()


def angular_head(loss, features, kernel, labels, **settings):
  return plain_head(
    loss,
    heads.normalize(features),
    heads.unit_columns(kernel),
    labels,
    **settings,
  )


def test_a_sharded_angular_head_needs_no_more_collectives():
  mesh, rows, width, classes = mesh_of((2, 4)), 64, 32, 1000
  shapes = ((rows, width), F32), ((width, classes), F32), ((rows,), np.int32)
  arguments = [
    jax.ShapeDtypeStruct(*shape, sharding=NamedSharding(mesh, spec))
    for shape, spec in zip(shapes, IN_SPECS[:3], strict=True)
  ]

  def sent(head, loss):
    run = functools.partial(head, loss, mesh=mesh, **SPECS)
    run = jax.value_and_grad(run, (0, 1))
    return collectives(support.jit(run).lower(*arguments).compile().as_text())

  plain = sent(plain_head, losses.cross_entropy)
  angular = sent(angular_head, losses.arcface)
  assert len(plain) == 4
  assert sorted(kind for kind, _ in angular) == sorted(
    kind for kind, _ in plain
  )
  # One number for each of the 32 rows of a device, the labelled cosine.
  more = sum(size for _, size in angular) - sum(size for _, size in plain)
  assert more <= rows // 2


def test_an_angular_head_takes_one_normalised_copy_more():
  """And one of its gradient, where it is differentiated."""
  rows, width, classes = 512, 64, 32768
  arguments = (
    jax.ShapeDtypeStruct((rows, width), F32),
    jax.ShapeDtypeStruct((width, classes), F32),
    jax.ShapeDtypeStruct((rows,), np.int32),
  )
  copy = 4 * width * (rows + classes)

  def used(head, loss, gradient):
    run = functools.partial(head, loss, plan=fused.Plan(None, 2**23))
    run = jax.value_and_grad(run, (0, 1)) if gradient else run
    compiled = jax.jit(run).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  for gradient, copies in ((False, 1), (True, 2)):
    more = used(angular_head, losses.arcface, gradient)
    more -= used(plain_head, losses.cross_entropy, gradient)
    # Norms of the vectors, and numbers of rows.
    assert more <= copies * copy + 2**20
    assert more >= copy / 2
