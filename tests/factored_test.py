# SPDX-License-Identifier: Apache-2.0
"""The factored output layer against SGD on the whole kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import heads, losses, row_loss

D, WIDTH, ROWS = 9, 4, 3
RNG = np.random.default_rng(0)
SPHERICAL = {
  "zscore": functools.partial(
    losses.zscore.spherical, sharpness=1.5, location=0.5
  ),
  "taylor_softmax": losses.taylor_softmax.spherical,
  "spherical_softmax": functools.partial(
    losses.spherical_softmax.spherical, epsilon=0.01
  ),
  "rescaled_square": functools.partial(
    losses.rescaled_square.spherical, target_weight=2.0, target_value=3.0
  ),
}
DENSE = {
  "zscore": functools.partial(losses.zscore, sharpness=1.5, location=0.5),
  "taylor_softmax": losses.taylor_softmax,
  "spherical_softmax": functools.partial(
    losses.spherical_softmax, epsilon=0.01
  ),
  "rescaled_square": functools.partial(
    losses.rescaled_square, target_weight=2.0, target_value=3.0
  ),
}


def step(loss, state, features, ids, rate):
  found = heads.factored_forward(state, features, ids)

  def total_of(outputs, total, total_sq):
    return loss(outputs[:, 0], total, total_sq, state.rows.shape[0]).sum()

  value, by = jax.value_and_grad(total_of, (0, 1, 2))(*found)
  return value, *heads.factored_update(state, features, ids, *by, rate)


@pytest.mark.parametrize("rows", [ROWS, 6])
@pytest.mark.parametrize("name", SPHERICAL)
def test_steps_are_those_of_dense_sgd(name, rows):
  """Two hundred steps, with labels that occur twice in a batch."""
  rng = np.random.default_rng(len(name))
  kernel = rng.normal(size=(WIDTH, D))
  features = rng.normal(size=(200, rows, WIDTH))
  labels = rng.integers(0, D, (200, rows, 1))
  labels[:, 1] = labels[:, 0]
  rate = 1e-2

  with jax.enable_x64(True):

    def dense_step(kernel, batch):
      h, ids = batch

      def total(kernel, h):
        return DENSE[name](h @ kernel, ids[:, 0]).sum()

      value, (by_kernel, by_h) = jax.value_and_grad(total, (0, 1))(kernel, h)
      return kernel - rate * by_kernel, (value, by_h)

    def factored_step(state, batch):
      value, by_h, state = step(SPHERICAL[name], state, *batch, rate)
      return state, (value, by_h)

    batches = jnp.asarray(features), jnp.asarray(labels)
    exact, expected = jax.jit(
      lambda kernel: jax.lax.scan(dense_step, kernel, batches)
    )(kernel)
    state, found = jax.jit(
      lambda kernel: jax.lax.scan(
        factored_step, heads.factored_init(kernel), batches
      )
    )(kernel)
    learned = heads.factored_kernel(state)
    again = heads.factored_stabilize(state)
    inverse = state.mix @ state.mix_inverse
    kernel_again = heads.factored_kernel(again)
  scale = np.abs(exact).max()
  np.testing.assert_allclose(learned, exact, rtol=0, atol=1e-12 * scale)
  assert np.abs(np.asarray(exact) - kernel).max() > 0.01
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max())
  np.testing.assert_allclose(inverse, np.eye(WIDTH), atol=1e-12)
  np.testing.assert_allclose(kernel_again, exact, rtol=0, atol=1e-12 * scale)
  np.testing.assert_array_equal(again.mix, np.eye(WIDTH))


def test_several_outputs_of_each_example():
  """A squared error with a sparse target needs K outputs."""
  with jax.enable_x64(True):
    kernel = jnp.asarray(RNG.normal(size=(WIDTH, D)))
    h = jnp.asarray(RNG.normal(size=(ROWS, WIDTH)))
    ids = jnp.asarray([[0, 3], [3, 3], [8, 1]])
    goals = jnp.asarray(RNG.normal(size=(ROWS, 2)))

    def dense(kernel, h):
      goal = jnp.zeros((ROWS, D)).at[jnp.arange(ROWS)[:, None], ids].add(goals)
      return jnp.square(h @ kernel - goal).sum()

    state = heads.factored_init(kernel)
    outputs, total, total_sq = heads.factored_forward(state, h, ids)
    z = h @ kernel
    np.testing.assert_allclose(
      outputs, jnp.take_along_axis(z, ids, -1), rtol=1e-13
    )
    np.testing.assert_allclose(total, z.sum(-1), rtol=1e-12)
    np.testing.assert_allclose(total_sq, jnp.square(z).sum(-1), rtol=1e-12)
    by_h, after = heads.factored_update(
      state, h, ids, -2 * goals, jnp.zeros(ROWS), jnp.ones(ROWS), 0.01
    )
    by_kernel, expected = jax.grad(dense, (0, 1))(kernel, h)
    np.testing.assert_allclose(by_h, expected, rtol=1e-11)
    moved = kernel - 0.01 * by_kernel
    np.testing.assert_allclose(heads.factored_kernel(after), moved, rtol=1e-11)
    np.testing.assert_allclose(after.gram, moved @ moved.T, rtol=1e-11)
    np.testing.assert_allclose(after.row_sum, moved.sum(1), rtol=1e-11)


def test_state_is_updated_in_place():
  """With donation a step needs no copy of the rows."""
  classes, width, rows = 20000, 16, 8
  shapes = jax.eval_shape(
    heads.factored_init, jax.ShapeDtypeStruct((width, classes), jnp.float32)
  )
  run = functools.partial(step, SPHERICAL["zscore"])
  program = (
    jax.jit(run, donate_argnums=0)
    .lower(
      shapes,
      jax.ShapeDtypeStruct((rows, width), jnp.float32),
      jax.ShapeDtypeStruct((rows, 1), jnp.int32),
      0.1,
    )
    .compile()
  )
  memory = program.memory_analysis()
  assert memory.alias_size_in_bytes >= 4 * classes * width
  assert memory.temp_size_in_bytes <= 4 * classes
  cost = program.cost_analysis()["flops"]
  assert cost < classes * width
  kernel = jnp.ones((width, classes))
  # Also compiled, so that equal arrays could be put together.
  for init in (heads.factored_init, jax.jit(heads.factored_init)):
    h, ids = jnp.ones((rows, width)), jnp.zeros((rows, 1), jnp.int32)
    _, _, state = program(init(kernel), h, ids, 0.1)
    assert np.isfinite(state.rows).all()


def test_no_example_no_class_and_padding_change_nothing():
  state = heads.factored_init(np.eye(3, dtype=np.float32))
  for m, k in ((0, 1), (2, 0)):
    h, ids = np.ones((m, 3), np.float32), np.zeros((m, k), int)
    outputs, *_ = heads.factored_forward(state, h, ids)
    assert outputs.shape == (m, k)
    zero = np.zeros(m, np.float32)
    _, after = heads.factored_update(
      state, h, ids, np.zeros((m, k), np.float32), zero, zero, 0.1
    )
    jax.tree.map(np.testing.assert_array_equal, after, state)
  # A padded example: features and derivatives of 0, and a valid class.
  h, ids = np.ones((2, 3), np.float32), np.array([[1], [1]])
  ones = np.ones(2, np.float32)
  rows = ones[:1, None], ones[:1], 0.1 * ones[:1]
  _, expected = heads.factored_update(state, h[:1], ids[:1], *rows, 0.1)
  h[1] = 0
  padded = [np.concatenate([x, np.zeros_like(x)]) for x in rows]
  by_h, after = heads.factored_update(state, h, ids, *padded, 0.1)
  np.testing.assert_array_equal(by_h[1], 0)
  for a, b in zip(after, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_ids_out_of_range():
  state = heads.factored_init(np.eye(3, dtype=np.float32))
  h, ids = np.ones((2, 3), np.float32), np.array([[0], [3]])
  with pytest.raises(ValueError, match=r"ids\[1, 0\] = 3 is outside"):
    heads.factored_forward(state, h, ids)
  outputs, total, _ = jax.jit(heads.factored_forward)(state, h, ids)
  np.testing.assert_array_equal(outputs, [[1.0], [np.nan]])
  np.testing.assert_array_equal(total, [3.0, 3.0])
  zero, one = np.zeros(2, np.float32), np.ones((2, 1), np.float32)
  _, state = jax.jit(heads.factored_update)(state, h, ids, one, zero, zero, 0.1)
  assert np.isnan(state.gram).any()


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"state": None}, TypeError, "state must be a FactoredOutput"),
    (
      {"state": heads.factored_init(np.eye(3))._replace(mix=np.eye(2))},
      ValueError,
      "state must have arrays of the shapes",
    ),
    ({"features": np.ones((2, 4))}, ValueError, r"features .*\[m, 3\]"),
    (
      {"ids": np.zeros(2, int)},
      ValueError,
      r"ids must have the shape \[2, K\]",
    ),
    ({"ids": np.zeros((2, 1))}, TypeError, "ids must be integers"),
    ({"grad_total": np.zeros(3)}, ValueError, r"grad_total .*\(2,\)"),
    ({"learning_rate": -1.0}, ValueError, "learning_rate"),
  ],
)
def test_arguments_that_do_not_fit(changes, error, message):
  arguments = {
    "state": heads.factored_init(np.eye(3)),
    "features": np.ones((2, 3)),
    "ids": np.zeros((2, 1), int),
    "grad_outputs": np.ones((2, 1)),
    "grad_total": np.zeros(2),
    "grad_total_sq": np.zeros(2),
    "learning_rate": 0.1,
  }
  with pytest.raises(error, match=message):
    heads.factored_update(**arguments | changes)


def test_every_spherical_form_is_the_loss():
  z = RNG.normal(size=(6, 5)).astype(np.float32)
  labels = np.arange(6) % 5
  sums = z[np.arange(6), labels], z.sum(-1), np.square(z).sum(-1)
  found = [x for x in vars(losses).values() if hasattr(x, "spherical")]
  assert {loss.__name__ for loss in found} >= {*SPHERICAL, "unhinged"}
  for loss in found:
    expected = loss(z, labels)
    np.testing.assert_allclose(loss.spherical(*sums, 5), expected, rtol=1e-4)
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in sums]
    assert loss.spherical(*narrow, 5).dtype == jnp.float32


def test_arguments_of_spherical_forms():
  form = losses.zscore.spherical
  one = np.ones(3, np.float32)
  with pytest.raises(ValueError, match=r"sharpness must be in \(0, inf\)"):
    form(one, one, one, 5, sharpness=0.0)
  with pytest.raises(ValueError, match=r"same shape, got \(3,\), \(1,\)"):
    form(one, one[:1], one, 5)
  with pytest.raises(TypeError, match="target must be floating"):
    form(np.arange(3), one, one, 5)
  with pytest.raises(ValueError, match="num_classes must be in"):
    form(one, one, one, 0)
  with pytest.raises(TypeError, match="zscore has no hyper-parameter margin"):
    form(one, one, one, 5, margin=1.0)


def test_spherical_form_of_a_loss_with_a_static_setting():
  loss = row_loss(
    lambda stats, *, squared=True: (
      stats.rest_sq if squared else stats.rest_max + stats.target
    ),
    domains={"squared": bool},
  )
  # Of the default.
  assert loss.spherical(2.0, 3.0, 9.0, 4) == 5.0
  with pytest.raises(ValueError, match=r"no spherical form .*reads rest_max"):
    loss.spherical(2.0, 3.0, 9.0, 4, squared=False)
  # Its margins are static settings too.
  assert not hasattr(losses.arcface, "spherical")


def test_losses_of_more_than_three_sums_have_no_spherical_form():
  assert not hasattr(losses.cross_entropy, "spherical")
  assert not hasattr(losses.squentropy, "spherical")
  with pytest.raises(AttributeError, match=r"cross_entropy .*reads log_odds"):
    losses.cross_entropy.spherical  # noqa: B018
