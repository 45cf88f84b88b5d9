# SPDX-License-Identifier: Apache-2.0
"""Every property that every loss of similarities must have."""

import functools

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from retrieval_cases import CASES
from support.contract import jit

from squentropy_jax import retrieval

EVERY = pytest.mark.parametrize("case", CASES, ids=repr)
F32 = np.float32
RNG = np.random.default_rng(13)
QUERIES, DOCUMENTS = 6, 7
SHAPE = (QUERIES, DOCUMENTS)
# Cosines, as far apart as those of a model that is not yet trained.
SIMILARITIES = RNG.uniform(-0.9, 0.9, SHAPE).astype(F32)
SCORES = RNG.uniform(-0.9, 0.9, SHAPE).astype(F32)
# One positive; three; none; positives only; no kept pair; its positive dropped.
POSITIVES = np.eye(*SHAPE, dtype=bool)
POSITIVES[1, [0, 5]] = True
POSITIVES[2] = False
POSITIVES[3, 4:] = True
KEEP = RNG.random(SHAPE) < 0.8
KEEP[:3] |= POSITIVES[:3]
KEEP[3] = POSITIVES[3]
KEEP[4] = False
KEEP[5, 5] = False


def second_of(case):
  return POSITIVES if case.has_positives else SCORES


@functools.cache
def compiled(loss):
  """Losses, and the gradients of a weighted sum of them, as one program."""
  weights = np.linspace(1, 2, QUERIES, dtype=F32)

  def total(arrays, second, where):
    value = loss(
      arrays["similarities"], second, where=where, **arrays["numbers"]
    )
    return (weights * value).sum(), value

  return jit(jax.grad(total, has_aux=True))


def evaluate(case, similarities, second, keep, **numbers):
  """Losses, their gradients by similarity, and those by each number."""
  arrays = {"similarities": similarities, "numbers": numbers or case.numbers}
  gradients, value = jax.tree.map(
    np.asarray, compiled(case.loss)(arrays, second, keep)
  )
  return value, gradients["similarities"], gradients["numbers"]


def reference(case, similarities, second, keep, **numbers):
  if second.dtype != bool:
    second = np.float64(second)
  value = case.reference(
    np.float64(similarities), second, keep, **numbers or case.numbers
  )
  return value @ np.linspace(1, 2, QUERIES), value


def everything(shape=SHAPE):
  return np.ones(shape, bool)


# Values and derivatives.


@EVERY
@pytest.mark.parametrize("keep", [everything(), KEEP], ids=["all", "masked"])
def test_value_and_gradient_are_those_of_the_reference(case, keep):
  second = second_of(case)
  value, gradient, by_number = evaluate(case, SIMILARITIES, second, keep)
  _, expected = reference(case, SIMILARITIES, second, keep)
  np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-6)
  step = 1e-6
  for i, j in np.ndindex(SHAPE):
    change = step * (np.arange(QUERIES * DOCUMENTS) == i * DOCUMENTS + j)
    up, down = (
      reference(case, SIMILARITIES + d.reshape(SHAPE), second, keep)[0]
      for d in (change, -change)
    )
    np.testing.assert_allclose(
      gradient[i, j], (up - down) / (2 * step), rtol=1e-4, atol=1e-4
    )
    if not keep[i, j]:
      assert gradient[i, j] == 0
  for name, number in case.numbers.items():
    up, down = (
      reference(
        case, SIMILARITIES, second, keep, **case.numbers | {name: number + d}
      )[0]
      for d in (step, -step)
    )
    np.testing.assert_allclose(
      by_number[name], (up - down) / (2 * step), rtol=1e-4, atol=1e-4
    )


@EVERY
def test_second_derivatives(case):
  """Forward over reverse, against differences of the first derivatives."""
  direction = RNG.normal(size=SHAPE).astype(F32)
  second, numbers = second_of(case), case.numbers

  def loss(s):
    return case.loss(s, second, where=KEEP, **numbers).sum()

  gradient = jax.grad(loss)
  product = jit(lambda s: jax.jvp(gradient, (s,), (direction,))[1])(
    SIMILARITIES
  )
  chex.assert_tree_all_finite(product)
  step = F32(1e-3)
  ends = [
    evaluate(case, SIMILARITIES + sign * step * direction, second, KEEP)[1]
    for sign in (F32(1), F32(-1))
  ]
  expected = (ends[0] - ends[1]) / (2 * step)
  weights = np.linspace(1, 2, QUERIES, dtype=F32)[:, None]
  if not case.of_batch:
    np.testing.assert_allclose(
      product, expected / weights, rtol=1e-2, atol=2e-2
    )


@EVERY
def test_numbers_may_have_a_value_for_each_query(case):
  if not case.numbers:
    return
  steps = 1 + 0.05 * np.arange(QUERIES, dtype=F32)
  numbers = {name: F32(x) * steps for name, x in case.numbers.items()}
  second = second_of(case)
  value, _, by_number = evaluate(case, SIMILARITIES, second, KEEP, **numbers)
  _, expected = reference(case, SIMILARITIES, second, KEEP, **numbers)
  np.testing.assert_allclose(value, expected, rtol=4e-6, atol=2e-6)
  for name, gradient in by_number.items():
    assert gradient.shape == (QUERIES,)
    # The values of a query that has no pair may be anything.
    numbers[name][4] = np.nan
  actual, _, of_dropped = evaluate(case, SIMILARITIES, second, KEEP, **numbers)
  np.testing.assert_array_equal(actual, value)
  assert value[4] == 0
  for name, gradient in of_dropped.items():
    assert gradient[4] == 0
    np.testing.assert_array_equal(gradient, by_number[name])


# Masks and queries without a loss.


@EVERY
@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf])
def test_dropped_pairs_may_hold_anything(case, fill):
  second = second_of(case)
  expected = evaluate(case, SIMILARITIES, second, KEEP)
  filled = np.where(KEEP, SIMILARITIES, F32(fill))
  if not case.has_positives:
    second = np.where(KEEP, second, F32(fill))
  actual = evaluate(case, filled, second, KEEP)
  chex.assert_trees_all_equal(actual, expected)


@EVERY
def test_a_negative_of_minus_infinity_is_a_dropped_pair(case):
  second = second_of(case)
  gone = np.zeros(SHAPE, bool)
  gone[0, 3] = gone[1, 2] = True
  filled = np.where(gone, F32(-np.inf), SIMILARITIES)
  actual = evaluate(case, filled, second, everything())
  expected = evaluate(case, SIMILARITIES, second, ~gone)
  chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_invalid_similarity_is_never_ignored(case, bad):
  second = second_of(case)
  filled = SIMILARITIES.copy()
  filled[1, 3] = bad
  if case.has_positives and not case.of_batch:
    # This query has no positive, and so no loss.
    filled[2, 3] = bad
  value, gradient, _ = evaluate(case, filled, second, everything())
  assert np.isnan(value[1])
  assert np.isnan(gradient[1]).any()
  if not case.of_batch:
    others = np.arange(QUERIES) != 1
    expected, by_similarity, _ = evaluate(
      case, SIMILARITIES, second, everything()
    )
    np.testing.assert_array_equal(value[others], expected[others])
    np.testing.assert_array_equal(gradient[others], by_similarity[others])


@EVERY
def test_finite_at_ties_and_with_sharp_numbers_and_without_positives(case):
  sharp = dict(case.numbers)
  sharp |= {n: 0.01 for n in case.numbers if n.endswith("temperature")}
  sharp |= {n: 100.0 for n in case.numbers if n == "alpha"}
  second = second_of(case)
  ties = np.full(SHAPE, 0.5, F32)
  ends = np.where(POSITIVES, F32(-1), F32(1))
  for similarities in (ties, ends, -ends, SIMILARITIES):
    for keep in (everything(), KEEP, ~everything()):
      for numbers in (case.numbers, sharp):
        results = evaluate(case, similarities, second, keep, **numbers)
        chex.assert_tree_all_finite(results)
        if numbers is case.numbers:
          _, expected = reference(case, similarities, second, keep)
          np.testing.assert_allclose(results[0], expected, rtol=1e-5, atol=1e-5)
        if case.has_positives:
          value, gradient, _ = results
          empty = ~(POSITIVES & keep).any(-1)
          np.testing.assert_array_equal(value[empty], 0)
          if not case.of_batch:
            np.testing.assert_array_equal(gradient[empty], 0)


# Shapes, dtypes and transformations.


@EVERY
def test_leading_axes_are_separate_batches_as_vmap_has_it(case):
  # The second batch has its queries in reverse order, with their masks.
  second = second_of(case)
  arrays = [np.stack([x, x[::-1]]) for x in (SIMILARITIES, second, KEEP)]

  def one(s, second, keep):
    return case.loss(s, second, where=keep, **case.numbers)

  both, mapped = jit(lambda *xs: (one(*xs), jax.vmap(one)(*xs)))(*arrays)
  expected, _, _ = evaluate(case, SIMILARITIES, second, KEEP)
  expected = np.stack([expected, expected[::-1]])
  for actual in (both, mapped):
    chex.assert_shape(actual, (2, QUERIES))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@EVERY
def test_order_of_documents_does_not_matter(case):
  order = np.random.default_rng(1).permutation(DOCUMENTS)
  second = second_of(case)
  value, gradient, _ = evaluate(case, SIMILARITIES, second, KEEP)
  permuted = evaluate(
    case, SIMILARITIES[:, order], second[:, order], KEEP[:, order]
  )
  np.testing.assert_allclose(permuted[0], value, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    permuted[1], gradient[:, order], rtol=1e-5, atol=1e-5
  )


@EVERY
def test_no_positives_are_the_diagonal(case):
  if not case.has_positives:
    return
  diagonal = np.eye(*SHAPE, dtype=bool)
  for keep in (everything(), KEEP):
    actual = evaluate(case, SIMILARITIES, None, keep)
    expected = evaluate(case, SIMILARITIES, diagonal, keep)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


@EVERY
def test_outside_jit_on_host_arrays_and_lists(case):
  second = second_of(case)
  expected, _, _ = evaluate(case, SIMILARITIES, second, KEEP)
  for put in (np.asarray, jnp.asarray, np.ndarray.tolist):
    arrays = [put(x) for x in (SIMILARITIES, second, KEEP)]
    actual = case.loss(*arrays[:2], where=arrays[2], **case.numbers)
    chex.assert_shape(actual, (QUERIES,))
    chex.assert_type(actual, F32)
    assert not actual.weak_type
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@EVERY
def test_narrow_similarities_are_widened_first(case):
  second = second_of(case)
  narrow = SIMILARITIES.astype(jnp.bfloat16)
  actual = evaluate(case, narrow, second, KEEP)
  expected = evaluate(case, narrow.astype(F32), second, KEEP)
  np.testing.assert_array_equal(actual[0], expected[0])
  np.testing.assert_array_equal(
    actual[1].astype(F32), expected[1].astype(narrow.dtype).astype(F32)
  )


OTHERS = {
  "local_descriptor_triplet": [(3, 2, 4), (3, 2)],
  "pairwise_ranking": [(5,), (5,)],
  "positive_aware_negatives": [(3, 4)],
  "rerank": [(2, 2), (2, 2), (2, 5)],
  "soft_top_k": [(3, 4)],
  "triplet_margin": [(3, 4), (3, 4), (3, 2, 4)],
}


@pytest.mark.parametrize("name", OTHERS)
def test_functions_of_other_arguments_are_transformed_and_widened(name):
  more = {"rerank": [np.array([4, 0])], "soft_top_k": [2]}.get(name, [])
  function = getattr(retrieval, name)
  rng = np.random.default_rng(3)
  narrow = [
    jnp.asarray(rng.normal(size=(2, *shape)), jnp.bfloat16)
    for shape in OTHERS[name]
  ]

  def of(*arrays):
    return function(*arrays, *more)

  @jit
  def both(*arrays):
    return jax.vmap(of)(*arrays), of(*(x[1] for x in arrays))

  mapped, one = both(*narrow)
  expected = [of(*(x[k].astype(F32) for x in narrow)) for k in range(2)]
  dtype = bool if name == "positive_aware_negatives" else F32
  assert mapped.dtype == one.dtype == dtype
  np.testing.assert_allclose(mapped, np.stack(expected), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(one, expected[1], rtol=1e-5, atol=1e-6)


@EVERY
def test_queries_sharded_over_devices(case):
  if case.of_batch:
    return  # Its own test has the collectives.
  second = second_of(case)
  mesh = jax.make_mesh((2,), ("q",), axis_types=(AxisType.Explicit,))
  with jax.set_mesh(mesh):
    value, gradient, _ = evaluate(
      case,
      *(jax.device_put(x, P("q")) for x in (SIMILARITIES, second, KEEP)),
    )
  expected = evaluate(case, SIMILARITIES, second, KEEP)
  np.testing.assert_allclose(value, expected[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-5)


@EVERY
def test_debug_flags_report_nothing_on_dropped_pairs(case):
  filled = jnp.where(KEEP, SIMILARITIES, jnp.nan)
  second = jnp.asarray(second_of(case))
  with jax.debug_nans(True):
    case.loss(filled, second, where=KEEP, **case.numbers)


# Errors.


@EVERY
def test_arguments_that_do_not_fit_raise_an_error_that_names_them(case):
  second = second_of(case)
  good = (SIMILARITIES, second)
  for name, value in case.outside.items():
    with pytest.raises(ValueError, match=rf"{name} must be in"):
      case.loss(*good, **{name: value})
  for name in case.numbers:
    with pytest.raises(ValueError, match=f"{name} must be in"):
      case.loss(*good, **{name: np.nan})
    with pytest.raises(ValueError, match=rf"{name} must be a scalar or have"):
      case.loss(*good, **{name: np.ones(DOCUMENTS, F32)})
  with pytest.raises(TypeError, match="similarities must be floating"):
    case.loss(np.ones(SHAPE, int), second)
  with pytest.raises(ValueError, match=r"similarities must have the shape"):
    case.loss(SIMILARITIES[0], second[0])
  with pytest.raises(ValueError, match="must have at least one document"):
    case.loss(SIMILARITIES[:, :0], second[:, :0])
  with pytest.raises(ValueError, match=r"must have the similarities' shape"):
    case.loss(SIMILARITIES, second[:1])
  with pytest.raises(TypeError, match="where must be boolean"):
    case.loss(*good, where=np.ones(SHAPE, F32))
  with pytest.raises(ValueError, match="where must have the similarities' sh"):
    case.loss(*good, where=np.ones(QUERIES, bool))
  if case.has_positives:
    with pytest.raises(TypeError, match=r"positives must be boolean"):
      case.loss(SIMILARITIES, POSITIVES.astype(F32))
    with pytest.raises(ValueError, match="at least as many documents as quer"):
      case.loss(SIMILARITIES.T, None, **case.numbers)
    with pytest.raises(TypeError, match="where must be boolean"):
      case.loss(SIMILARITIES, None, where=np.ones(SHAPE, F32))
