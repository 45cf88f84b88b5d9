# SPDX-License-Identifier: Apache-2.0
"""The Mann-Whitney loss: values, limits, gradients, memory and devices."""

import functools

import jax
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
import numpy as np
import pytest
from support import contract

from squentropy_jax import retrieval

F32 = np.finfo(np.float32).eps
RNG = np.random.default_rng(17)
# Four queries and six documents; a query has none, one or several positives.
SIMILARITIES = RNG.uniform(-1, 1, (4, 6)).astype(np.float32)
POSITIVES = np.zeros((4, 6), bool)
POSITIVES[[0, 1, 1, 1, 3, 3], [2, 0, 3, 5, 0, 5]] = True
KEEP = RNG.random((4, 6)) < 0.8


def reference(s, positives, keep, temperature, reduction="mean"):
  """The definition in float64; 0 without a positive or a negative."""
  s = np.float64(s)
  negatives = s[keep & ~positives]
  losses = []
  for row, positive in zip(s, keep & positives, strict=True):
    gaps = negatives - row[positive][:, None]
    each = np.logaddexp(0, gaps / temperature)
    of_positive = each.sum(-1)
    if reduction == "mean":
      of_positive = of_positive / max(len(negatives), 1)
    losses.append(of_positive.mean() if of_positive.size else 0.0)
  return np.array(losses)


@functools.cache
def compiled(reduction, is_diagonal):
  def total(s, temperature, positives, where):
    losses = retrieval.mann_whitney(
      s,
      None if is_diagonal else positives,
      temperature=temperature,
      reduction=reduction,
      where=where,
    )
    return losses.sum(), losses

  return contract.jit(jax.value_and_grad(total, (0, 1), has_aux=True))


def evaluate(s, temperature, positives, where, *, reduction="mean"):
  """Losses, and the gradients by similarities and by the temperature."""
  (_, losses), grads = compiled(reduction, positives is None)(
    s, np.float32(temperature), positives, where
  )
  return np.asarray(losses), *map(np.asarray, grads)


def differences(s, positives, keep, temperature):
  """Gradients of the reference by central differences."""
  step = 1e-6
  s, by_score = np.float64(s), np.zeros(s.shape)

  def total(s, temperature):
    return reference(s, positives, keep, temperature).sum()

  for at in np.ndindex(s.shape):
    change = np.zeros(s.shape)
    change[at] = step
    up, down = (total(s + sign * change, temperature) for sign in (1, -1))
    by_score[at] = (up - down) / (2 * step)
  up, down = (total(s, temperature + sign * step) for sign in (1, -1))
  return by_score, (up - down) / (2 * step)


@pytest.mark.x64
def test_worked_numbers():
  s = np.array([[0.8, 0.3], [0.5, 0.6]])
  eye = np.eye(2, dtype=bool)
  for positives in (None, eye):
    for temperature, total, mean in (
      (1.0, 1.1135920666, 0.5567960333),
      (0.1, 0.2085758696, 0.1042879348),
    ):
      loss = functools.partial(
        retrieval.mann_whitney, s, positives, temperature=temperature
      )
      close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
      close(loss(reduction="sum").mean(), total)
      close(loss().mean(), mean)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("is_diagonal", [True, False])
def test_values_and_gradients_are_those_of_the_definition(
  temperature, is_diagonal
):
  positives = None if is_diagonal else POSITIVES
  marked = np.eye(4, 6, dtype=bool) if is_diagonal else POSITIVES
  losses, by_score, by_temperature = evaluate(
    SIMILARITIES, temperature, positives, KEEP
  )
  expected = reference(SIMILARITIES, marked, KEEP, temperature)
  np.testing.assert_allclose(losses, expected, rtol=32 * F32)
  want, of_temperature = differences(SIMILARITIES, marked, KEEP, temperature)
  np.testing.assert_allclose(by_score, want, rtol=1e-4, atol=3e-5 / temperature)
  np.testing.assert_array_equal(by_score[~KEEP], 0)
  np.testing.assert_allclose(
    by_temperature, of_temperature, rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize(
  "shape", [(3, 50), (70, 70), (300, 301), (1, 1), (1, 9)]
)
def test_blocks_of_any_size(shape):
  rng = np.random.default_rng(3)
  s = rng.uniform(-1, 1, shape).astype(np.float32)
  losses = contract.jit(retrieval.mann_whitney)(s, temperature=0.05)
  eye, everything = np.eye(*shape, dtype=bool), np.ones(shape, bool)
  # A sum of comparisons has their relative error; the gaps round at 1 / tau.
  np.testing.assert_allclose(
    losses, reference(s, eye, everything, 0.05), rtol=256 * F32
  )


def test_a_separated_batch_has_an_accurate_loss():
  s = np.where(np.eye(5, dtype=bool), np.float32(0.5), np.float32(0))
  loss = retrieval.mann_whitney(s, temperature=0.01)
  np.testing.assert_allclose(loss, np.exp(-50.0), rtol=64 * F32)


@pytest.mark.x64
def test_limits():
  s = np.float64(SIMILARITIES)
  loss = retrieval.mann_whitney
  # One positive and one negative: the cross-entropy of two logits.
  pair = np.array([[0.3, 0.7]])
  z = pair[0] / 0.2
  np.testing.assert_allclose(
    loss(pair, temperature=0.2),
    [np.log(np.exp(z).sum()) - z[0]],
    rtol=1e-14,
  )
  # Equal scores: log 2 for each comparison.
  equal = loss(np.full((3, 4), 0.25), temperature=0.01)
  np.testing.assert_allclose(equal, np.log(2), rtol=1e-14)
  # Temperature 0: comparisons in the wrong order, by how much.
  gaps = s[~POSITIVES] - s[POSITIVES][:, None]
  wrong = np.maximum(gaps, 0).mean(-1)
  each = np.array([wrong[:1].mean(), wrong[1:4].mean(), 0, wrong[4:].mean()])
  small = 1e-9 * loss(s, POSITIVES, temperature=1e-9)
  np.testing.assert_allclose(small, each, atol=1e-9)
  # An upper bound of the share of comparisons in the wrong order.
  area = (gaps > 0).mean(-1)
  for temperature in (0.01, 0.3, 3.0):
    bound = np.logaddexp(0, gaps / temperature).mean(-1) / np.log(2)
    assert (bound >= area).all()
    np.testing.assert_allclose(
      loss(s, POSITIVES, temperature=temperature)[0], bound[0] * np.log(2)
    )


@pytest.mark.x64
def test_adding_a_number_to_a_query_changes_the_loss():
  moved = np.float64(SIMILARITIES) + np.array([0.5, 0, 0, 0])[:, None]
  before, after = (
    retrieval.mann_whitney(s, POSITIVES, temperature=0.3)
    for s in (np.float64(SIMILARITIES), moved)
  )
  assert np.abs(after - before).max() > 0.1


@pytest.mark.x64
def test_derivatives_of_first_and_second_order():
  s = np.float64(SIMILARITIES)

  def total(s, temperature):
    losses = retrieval.mann_whitney(
      s, POSITIVES, temperature=temperature, where=KEEP
    )
    return (losses * np.arange(1.0, 5)).sum()

  check_grads(total, (s, 0.3), order=1, modes=["rev"])
  check_grads(jax.grad(total, (0, 1)), (s, 0.3), order=1, modes=["fwd"])


def test_edges():
  nothing = np.zeros((4, 6), bool)
  for positives, where in (
    (nothing, None),  # No positive.
    (~nothing, None),  # No negative.
    (POSITIVES, nothing),
    (None, nothing),
  ):
    kept = ~nothing if where is None else where
    for s in (SIMILARITIES, np.where(kept, SIMILARITIES, np.nan)):
      losses, by_score, by_temperature = evaluate(s, 0.01, positives, kept)
      np.testing.assert_array_equal(losses, 0)
      np.testing.assert_array_equal(by_score, 0)
      assert by_temperature == 0
  ties = np.zeros((4, 6), np.float32)
  losses, by_score, _ = evaluate(ties, 0.01, POSITIVES, ~nothing)
  some = POSITIVES.any(-1)
  np.testing.assert_allclose(losses, np.where(some, np.log(2), 0), rtol=8 * F32)
  assert np.isfinite(by_score).all()
  # An invalid number reaches the losses of all queries that have a positive.
  broken = SIMILARITIES.copy()
  broken[2, 1] = np.nan
  losses, _, _ = evaluate(broken, 0.01, POSITIVES, ~nothing)
  assert np.isnan(losses[some]).all()


@pytest.mark.parametrize("is_diagonal", [True, False])
def test_leading_axes_are_separate_batches(is_diagonal):
  s = RNG.uniform(-1, 1, (2, 3, 4)).astype(np.float32)
  positives = None if is_diagonal else RNG.random((2, 3, 4)) < 0.4
  temperature = np.float32([[0.1, 0.2, 0.3], [1, 2, 3]])
  losses, by_score, by_temperature = evaluate_batches(s, temperature, positives)
  for k in range(2):
    one = retrieval.mann_whitney(
      s[k],
      None if is_diagonal else positives[k],
      temperature=temperature[k],
    )
    np.testing.assert_allclose(losses[k], one, rtol=8 * F32)
  marked = np.broadcast_to(np.eye(3, 4, dtype=bool), s.shape)
  marked = marked if is_diagonal else positives
  for q in range(3):
    tau = temperature[1, q]
    want = reference(s[1], marked[1], np.ones((3, 4), bool), tau)[q]
    np.testing.assert_allclose(losses[1, q], want, rtol=32 * F32)
  assert by_temperature.shape == temperature.shape
  mapped = jax.vmap(functools.partial(retrieval.mann_whitney, temperature=0.3))
  together = retrieval.mann_whitney(s, positives, temperature=0.3)
  args = (s,) if is_diagonal else (s, positives)
  np.testing.assert_allclose(mapped(*args), together, rtol=8 * F32)
  assert np.isfinite(by_score).all()


def evaluate_batches(s, temperature, positives):
  (_, losses), grads = compiled("mean", positives is None)(
    s, temperature, positives, None
  )
  return np.asarray(losses), *map(np.asarray, grads)


@pytest.mark.parametrize("several", [False, True])
def test_a_mesh_of_4_is_as_one_device(several):
  rng = np.random.default_rng(5)
  s = rng.uniform(-1, 1, (8, 6)).astype(np.float32)
  positives = np.arange(6) == rng.integers(0, 6, 8)[:, None]
  if several:
    positives |= rng.random((8, 6)) < 0.3
  positives[3] = False
  keep = rng.random((8, 6)) < 0.8
  weights = np.arange(1, 9, dtype=np.float32)
  mesh = jax.make_mesh(
    (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )

  def losses_of(s, positives, keep, weights, temperature, axis_name):
    losses = retrieval.mann_whitney(
      s, positives, temperature=temperature, where=keep, axis_name=axis_name
    )
    return losses, (losses * weights).sum()

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P("data"),) * 4 + (P(),),
    out_specs=(P("data"), P()),
  )
  def sharded(*arrays):
    losses, total = losses_of(*arrays, "data")
    return losses, jax.lax.psum(total, "data")

  def gradients(function):
    def total(s, temperature):
      losses, total = function(s, positives, keep, weights, temperature)
      return total, losses

    return contract.jit(jax.value_and_grad(total, (0, 1), has_aux=True))

  tau = np.float32(0.2)
  one = gradients(functools.partial(losses_of, axis_name=None))(s, tau)
  many = gradients(sharded)(s, tau)
  for found, expected in zip(
    jax.tree.leaves(many), jax.tree.leaves(one), strict=True
  ):
    np.testing.assert_allclose(found, expected, rtol=64 * F32, atol=1e-6)


def test_the_diagonal_of_a_mesh_of_4_is_that_of_one_device():
  s = np.random.default_rng(6).uniform(-1, 1, (8, 9)).astype(np.float32)
  mesh = jax.make_mesh(
    (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharded = jax.shard_map(
    functools.partial(
      retrieval.mann_whitney, temperature=0.2, axis_name=["data"]
    ),
    mesh=mesh,
    in_specs=P("data"),
    out_specs=P("data"),
  )
  everything = np.ones(s.shape, bool)
  expected = reference(s, np.eye(8, 9, dtype=bool), everything, 0.2)
  found = contract.jit(sharded)(s)
  np.testing.assert_allclose(found, expected, rtol=64 * F32)
  # A device that has only its own documents has no positive for its queries.
  with pytest.raises(ValueError, match=r"for each query of all.*positives=\."):
    jax.eval_shape(sharded, s[:, :7])
  with pytest.raises(TypeError, match="axis_name must be None, a string or a"):
    retrieval.mann_whitney(s, axis_name=3)


@pytest.mark.parametrize("is_diagonal", [True, False])
def test_memory_is_that_of_a_few_similarity_matrices(is_diagonal):
  shape = (1024, 1024)
  arrays = [jax.ShapeDtypeStruct(shape, np.float32)]
  if not is_diagonal:
    arrays.append(jax.ShapeDtypeStruct(shape, bool))

  def temporary(function):
    compiled = jax.jit(function).lower(*arrays).compile()
    used = compiled.memory_analysis().temp_size_in_bytes
    return used / (4 * shape[0] * shape[1])

  def total(*arrays):
    return retrieval.mann_whitney(*arrays).sum()

  assert temporary(total) <= 2
  assert temporary(jax.value_and_grad(total)) <= 3


def test_bad_arguments_are_named():
  s = np.zeros((3, 4), np.float32)
  loss = retrieval.mann_whitney
  with pytest.raises(ValueError, match=r"reduction must be .*, got 'all'"):
    loss(s, reduction="all")
  with pytest.raises(ValueError, match="temperature must be in"):
    loss(s, temperature=0.0)
  with pytest.raises(TypeError, match="positives must be boolean"):
    loss(s, np.zeros((3, 4), np.int32))
  with pytest.raises(ValueError, match="positives must have"):
    loss(s, np.zeros((3, 3), bool))
