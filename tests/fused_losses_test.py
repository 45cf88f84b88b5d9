# SPDX-License-Identifier: Apache-2.0
"""Row losses in linear heads: each is what the dense loss of the logits is.

Hyper-parameters have a value for each example, and dropped rows hold garbage.
"""

import functools

import cases
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support import heads
from support.heads import CLASSES, COTANGENT, FEATURES, KERNEL, LABELS, ROWS
from support.sharded import SPECS, mesh_of

import squentropy_jax
from squentropy_jax import fused, losses, rows

ROW_CASES = [
  case
  for case in cases.CLASS_CASES
  if isinstance(case.loss, type(losses.squentropy))
]
KEEP = np.arange(ROWS) != 1
WEIGHTS = np.where(KEEP, np.float64(COTANGENT), 0.0)
WIDE = np.random.default_rng(3).normal(size=(KERNEL.shape[0], 300))


def numbers_of(loss, values):
  """Values for each example near the given ones, and the static settings."""
  numbers, static = loss.hyperparameters.split(
    loss.hyperparameters.complete(values, loss.__name__)
  )
  spread = np.linspace(1.0, 0.9, ROWS)
  return {n: x * spread for n, x in numbers.items()}, dict(static)


def assert_like(found, expected, rtol=1e-10, atol=1e-12):
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def with_garbage(x):
  """NaN in the dropped row, whatever the argument is."""
  keep = KEEP.reshape(KEEP.shape + (1,) * (x.ndim - 1))
  return jnp.where(keep, x, jnp.nan)


@pytest.mark.x64
@pytest.mark.parametrize("case", ROW_CASES, ids=repr)
def test_every_row_loss(case):
  """Dense, in three tiles of classes, and on a mesh, to float64's accuracy."""
  features = np.float64(FEATURES) * 1.1
  numbers, static = numbers_of(case.loss, case.hyperparameters)
  labels = np.where(KEEP, LABELS, -100)
  masked = {"where": KEEP}

  def dense(features, kernel, numbers):
    loss = case.loss(features @ kernel, LABELS, **numbers, **static)
    return (loss * WEIGHTS).sum()

  def bound(numbers):
    values = {name: with_garbage(x) for name, x in numbers.items()}
    return functools.partial(case.loss, **values, **static)

  def recompute(features, kernel, numbers):
    loss = fused.linear_loss(
      bound(numbers),
      with_garbage(features),
      kernel,
      labels,
      plan=fused.Plan(None, 1),
      **masked,
    )
    return (loss * WEIGHTS).sum()

  def sharded(features, kernel, numbers):
    return fused.linear_loss_sum(
      bound(numbers),
      with_garbage(features),
      kernel,
      labels,
      weights=WEIGHTS,
      plan=fused.Plan("grad_in_forward", 1),
      mesh=mesh_of((2, 4)),
      **masked,
      **SPECS,
    )[0]

  @heads.jit
  def every(*arguments):
    return [
      jax.value_and_grad(f, (0, 1, 2))(*arguments)
      for f in (dense, recompute, sharded)
    ]

  expected, *others = every(features, WIDE, numbers)
  for found in others:
    assert_like(found, expected)


# A loss that the library does not have: cross-entropy at a temperature, plus
# the entropy and the maximum of the other classes.


def of_user(stats, *, temperature=1.0, strength=0.5):
  others = stats.rest_lse - stats.rest_expected + 0.25 * stats.rest_max
  return temperature * (stats.log_z - stats.target) + strength * others


USER_LOSS = squentropy_jax.row_loss(
  of_user,
  domains={"temperature": "(0, inf)"},
  transform=rows.Transform(divide_by="temperature"),
)


def written_out(z, labels, *, temperature=1.0, strength=0.5):
  """The same loss on full logits, without the library."""
  temperature = jnp.broadcast_to(jnp.asarray(temperature), labels.shape)
  z = z / temperature[:, None]
  is_target = np.arange(z.shape[1]) == labels[:, None]
  log_z = jax.nn.logsumexp(z, axis=-1)
  target = jnp.where(is_target, z, 0.0).sum(-1)
  others = jnp.where(is_target, -jnp.inf, z)
  p = jax.nn.softmax(others, axis=-1)
  entropy = jax.nn.logsumexp(others, axis=-1) - (p * z).sum(-1)
  others = entropy + 0.25 * others.max(-1)
  return temperature * (log_z - target) + strength * others


TEMPERATURE = np.linspace(0.5, 2.0, ROWS)
STRENGTH = np.linspace(-0.5, 1.0, ROWS)


@pytest.mark.x64
def test_loss_of_a_user_dense_fused_and_sharded():
  """`rest_expected` is read by every mode, and the temperature scales it."""
  features = np.float64(FEATURES)
  arguments = features, WIDE, TEMPERATURE, STRENGTH
  modes = ("recompute", "grad_in_forward", "frozen_kernel")

  def total(f):
    def run(features, kernel, temperature, strength):
      loss = functools.partial(f, temperature=temperature, strength=strength)
      return loss(features, kernel) @ WEIGHTS

    return run

  def head(mode, features, kernel, temperature, strength, **settings):
    return fused.linear_loss_sum(
      functools.partial(USER_LOSS, temperature=temperature, strength=strength),
      features,
      kernel,
      LABELS,
      weights=WEIGHTS,
      plan=fused.Plan(mode, 1),
      **settings,
    )[0]

  on_mesh = {"mesh": mesh_of((2, 4)), **SPECS}
  programs = {
    "plain": total(lambda h, w, **n: written_out(h @ w, LABELS, **n)),
    "dense": total(lambda h, w, **n: USER_LOSS(h @ w, LABELS, **n)),
    **{mode: functools.partial(head, mode) for mode in modes},
    **{
      f"{mode} on a mesh": functools.partial(head, mode, **on_mesh)
      for mode in modes
    },
  }

  @heads.jit
  def every(*arguments):
    return {
      name: jax.value_and_grad(f, (0, 1, 2, 3))(*arguments)
      for name, f in programs.items()
    }

  found = every(*arguments)
  expected = found["plain"]
  for name, (value, gradients) in found.items():
    assert_like(value, expected[0])
    wanted = list(expected[1])
    if "frozen" in name:
      wanted[1] = np.zeros_like(wanted[1])
    assert_like(gradients, wanted)


@pytest.mark.x64
def test_numbers_of_each_example_with_sparse_targets():
  """The loss of a row is the expected loss, and the numbers are the row's."""
  features = np.float64(FEATURES)
  other = (LABELS + 3) % CLASSES
  ids = np.stack([LABELS, other, LABELS], -1)
  probabilities = np.broadcast_to([0.25, 0.5, 0.25], ids.shape)
  names = ("recompute", "grad_in_forward")

  def dense(h, w, temperature, strength):
    z = h @ w
    numbers = {"temperature": temperature, "strength": strength}
    each = [written_out(z, k, **numbers) for k in (LABELS, other)]
    return (0.5 * (each[0] + each[1])) @ WEIGHTS

  def head(mode, h, w, temperature, strength):
    return fused.linear_loss_sum(
      functools.partial(USER_LOSS, temperature=temperature, strength=strength),
      h,
      w,
      (ids, probabilities),
      weights=WEIGHTS,
      plan=fused.Plan(mode, 1),
    )[0]

  @heads.jit
  def every(*arguments):
    programs = [dense, *(functools.partial(head, mode) for mode in names)]
    return [jax.value_and_grad(f, (0, 1, 2, 3))(*arguments) for f in programs]

  expected, *others = every(features, WIDE, TEMPERATURE, STRENGTH)
  for found in others:
    assert_like(found, expected)


@pytest.mark.x64
def test_temperature_goes_after_the_cap_and_before_the_mask():
  """A scalar divisor with bias and soft cap, in every mode."""
  bias = np.where(np.arange(CLASSES) == 7, -np.inf, 0.25)

  def dense(h, w, temperature):
    logits = 3.0 * jnp.tanh((h @ w + 0.25) / 3.0)
    logits = jnp.where(bias > -np.inf, logits, -np.inf)
    return losses.ldr_kl(logits, LABELS, temperature=temperature) @ WEIGHTS

  def head(mode, h, w, temperature):
    return fused.linear_loss_sum(
      functools.partial(losses.ldr_kl, temperature=temperature),
      h,
      w,
      LABELS,
      bias=bias,
      soft_cap=3.0,
      weights=WEIGHTS,
      plan=fused.Plan(mode),
    )[0]

  modes = ("recompute", "grad_in_forward", "frozen_kernel")

  @heads.jit
  def every(*arguments):
    programs = [dense, *(functools.partial(head, mode) for mode in modes)]
    return [jax.value_and_grad(f, (0, 1, 2))(*arguments) for f in programs]

  arguments = np.float64(FEATURES), np.float64(KERNEL), np.float64(0.7)
  expected, *others = every(*arguments)
  for mode, found in zip(modes, others, strict=True):
    wanted = list(expected[1])
    if mode == "frozen_kernel":
      wanted[1] = np.zeros_like(KERNEL)
    assert_like(found, (expected[0], wanted))


@pytest.mark.x64
def test_smoothing_of_a_user():
  """The declared closed form is mixed in, and reads sums of its own."""

  @functools.partial(squentropy_jax.row_loss, uniform=_mean_of_user)
  def loss(stats, *, strength=1.0):
    return stats.log_z - stats.target + strength * stats.rest_sum

  features, kernel = np.float64(FEATURES), np.float64(KERNEL)
  found = fused.linear_loss(loss, features, kernel, LABELS, label_smoothing=0.3)
  z = features @ kernel
  each = np.stack([loss(z, np.full(ROWS, k)) for k in range(CLASSES)], -1)
  expected = 0.7 * each[np.arange(ROWS), LABELS] + 0.3 * each.mean(-1)
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def _mean_of_user(stats, *, strength):
  mean = (stats.target + stats.rest_sum) / stats.num_classes
  others = (stats.num_classes - 1.0) * mean
  return stats.log_z - mean + strength * others


def test_loss_of_a_user_as_a_decorator_needs_no_settings():
  @squentropy_jax.row_loss
  def hinge(stats, *, margin=1.0):
    return jnp.maximum(0.0, margin + stats.rest_max - stats.target)

  z = FEATURES @ KERNEL
  rest = np.where(np.arange(CLASSES) == LABELS[:, None], -np.inf, z).max(-1)
  target = z[np.arange(ROWS), LABELS]
  margin = np.linspace(0, 2, ROWS, dtype=np.float32)
  found = fused.linear_loss(
    functools.partial(hinge, margin=margin), FEATURES, KERNEL, LABELS
  )
  np.testing.assert_allclose(found, np.maximum(0, margin + rest - target))


def test_static_settings_of_a_loss():
  @functools.partial(squentropy_jax.row_loss, domains={"squared": bool})
  def loss(stats, *, squared=False):
    return jnp.square(stats.rest_sum) if squared else stats.rest_sum

  one, two = (
    fused.linear_loss(
      functools.partial(loss, squared=s), FEATURES, KERNEL, LABELS
    )
    for s in (False, True)
  )
  np.testing.assert_allclose(two, np.square(one), rtol=1e-6)
  with pytest.raises(TypeError, match="squared must be True or False"):
    fused.linear_loss(
      functools.partial(loss, squared=1), FEATURES, KERNEL, LABELS
    )


def test_numbers_in_a_shard_map_of_the_user():
  """Sharded like labels, or the same for all devices and summed over them."""
  mesh = mesh_of((2, 4))
  kernel = np.float32(WIDE[:, :64])
  numbers = np.float32(TEMPERATURE), np.float32(0.7)

  def local(h, w, labels, weights, temperature, margin):
    total, _ = fused.linear_loss_sum(
      functools.partial(losses.ldr_kl, temperature=temperature, margin=margin),
      h,
      w,
      labels,
      weights=weights,
      **SPECS,
    )
    return jax.lax.psum(total, "data")

  def dense(h, w, labels, weights, temperature, margin):
    loss = losses.ldr_kl(h @ w, labels, temperature=temperature, margin=margin)
    return loss @ weights

  rows_spec = P("data")
  mapped = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(rows_spec, P(None, "vocab"), *(rows_spec,) * 3, P()),
    out_specs=P(),
  )
  arguments = FEATURES, kernel, LABELS, COTANGENT, *numbers

  @heads.jit
  def both(*arguments):
    return [
      jax.value_and_grad(f, (0, 1, 3, 4, 5))(*arguments)
      for f in (mapped, dense)
    ]

  found, expected = both(*arguments)
  assert_like(found, expected, rtol=1e-4, atol=1e-5)


def test_numbers_on_a_mesh_of_explicit_axes():
  """They may be sharded or not; each gradient is what its number is."""
  mesh = mesh_of((2, 4), AxisType.Explicit)
  kernel = np.float32(WIDE[:, :64])
  modes = ("recompute", "grad_in_forward")

  def head(mode, features, kernel, temperature, margin):
    return fused.linear_loss_sum(
      functools.partial(losses.ldr_kl, temperature=temperature, margin=margin),
      features,
      kernel,
      LABELS,
      weights=COTANGENT,
      where=KEEP,
      plan=fused.Plan(mode),
      mesh=mesh,
      **SPECS,
    )[0]

  def dense(features, kernel, temperature, margin):
    loss = losses.ldr_kl(
      features @ kernel, LABELS, temperature=temperature, margin=margin
    )
    return loss @ np.float32(WEIGHTS)

  arguments = FEATURES, kernel, np.float32(TEMPERATURE), np.float32(0.7)
  expected = heads.jit(jax.value_and_grad(dense, (0, 1, 2, 3)))(*arguments)

  @heads.jit
  def every(*arguments):
    return [
      jax.value_and_grad(functools.partial(head, mode), (0, 1, 2, 3))(
        *arguments
      )
      for mode in modes
    ]

  with jax.set_mesh(mesh):
    for of_rows in (P("data"), P(None)):
      specs = (P("data", None), P(None, "vocab"), of_rows, P())
      placed = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip(arguments, specs, strict=True)
      ]
      for found in every(*placed):
        assert_like(found, expected, rtol=1e-4, atol=1e-5)
        shardings = [jax.typeof(g).sharding.spec for g in found[1]]
        assert shardings == list(specs)
