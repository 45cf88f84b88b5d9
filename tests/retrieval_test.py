# SPDX-License-Identifier: Apache-2.0
"""Retrieval losses: worked values, limits, and how they differ."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.contract import jit

from squentropy_jax import fused, losses, retrieval

F32 = np.float32
EPS = np.finfo(F32).eps
RNG = np.random.default_rng(17)
SIMILARITIES = RNG.uniform(-0.9, 0.9, (4, 6)).astype(F32)
DIAGONAL = np.eye(4, 6, dtype=bool)
MANY = DIAGONAL | (RNG.random((4, 6)) < 0.3)
# The scores of the worked numbers, and their two positives.
ROW = np.array([[3.0, 1.0, 2.0, -1.0, 0.5]])
TWO = np.array([[True, False, True, False, False]])
exactly = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)


def gradient_of(loss, s, *arguments, **keywords):
  return jax.grad(lambda s: loss(s, *arguments, **keywords).sum())(s)


# Worked numbers.


@pytest.mark.x64
def test_worked_numbers_of_several_positives():
  exactly(
    retrieval.decoupled_softmax(ROW, TWO, temperature=1.0), [0.353424288971]
  )
  # Each positive alone, with the other one dropped.
  terms = [
    retrieval.decoupled_softmax(ROW, TWO, where=keep, temperature=1.0)[0]
    for keep in (np.arange(5)[None] != 2, np.arange(5)[None] != 0)
  ]
  exactly(terms, [0.211666679856, 0.495181898086])
  exactly(retrieval.info_nce(ROW, TWO, temperature=1.0), [0.972260681387])


@pytest.mark.x64
def test_worked_numbers_of_soft_top_k():
  q = [0.945653283159, 0.241676831742, 0.7019271679]
  exactly(retrieval.soft_top_k(ROW, 2), [[*q, 0.005803300823, 0.104939416375]])
  exactly(retrieval.soft_top_k_loss(ROW, TWO, k=2), [0.204902457584])
  expected = [-0.021027238059, 0.118818015681, -0.162426705321]
  exactly(
    gradient_of(retrieval.soft_top_k_loss, ROW, TWO, k=2),
    [[*expected, 0.003740592097, 0.060895335602]],
  )


@pytest.mark.x64
def test_worked_numbers_of_pairs_and_lists():
  square = np.array([[0.8, 0.3], [0.5, 0.6]])
  exactly(retrieval.info_nce(square, temperature=1.0).mean(), 0.5592368221)
  scores = np.array([[0.8, 0.5, 0.1]])
  judge = np.array([[0.95, 0.6, 0.05]])
  exactly(retrieval.symmetric_kl(scores, judge, temperature=0.1), 0.0052671016)
  np.testing.assert_allclose(
    retrieval.symmetric_kl(scores, judge), 3.50990e-07, atol=5e-13
  )


def test_a_small_divergence_is_accurate_in_float32():
  scores = np.array([[0.8, 0.5, 0.1]], F32)
  judge = np.array([[0.95, 0.6, 0.05]], F32)
  p, q = (
    np.exp((x - x.max()) / 0.02) / np.exp((x - x.max()) / 0.02).sum()
    for x in (np.float64(scores), np.float64(judge))
  )
  exact = ((p - q) * np.log(p / q)).sum() / 2
  # The scores divided by the temperature have rounding errors of 47 ulp.
  np.testing.assert_allclose(
    retrieval.symmetric_kl(scores, judge), [exact], rtol=2 * 47 * EPS
  )


def test_a_divergence_is_never_negative():
  scores = np.random.default_rng(0).normal(size=(200, 3)).astype(F32)
  judge = np.nextafter(scores, F32(9))
  loss = retrieval.symmetric_kl(scores, judge, temperature=1.0)
  assert (loss >= 0).all()


# Limits of the contrastive losses.


def test_one_positive_is_cross_entropy():
  for loss in (retrieval.info_nce, retrieval.decoupled_softmax):
    for positives in (None, DIAGONAL):
      np.testing.assert_allclose(
        loss(SIMILARITIES, positives, temperature=0.5),
        losses.cross_entropy(SIMILARITIES / F32(0.5), np.arange(4)),
        rtol=16 * EPS,
      )


def test_several_positives_are_the_mean_of_single_ones():
  each = np.full((4, 6), np.nan)
  for document in range(6):
    each[:, document] = retrieval.info_nce(
      SIMILARITIES, np.arange(6)[None] == np.full((4, 1), document)
    )
  expected = [each[i, MANY[i]].mean() for i in range(4)]
  np.testing.assert_allclose(
    retrieval.info_nce(SIMILARITIES, MANY), expected, rtol=32 * EPS
  )


def test_positives_compete_in_info_nce_only():
  """The similarity of one positive changes, and the loss of another one."""
  s = np.array([[0.5, 0.9, 0.1]], F32)
  both = np.array([[True, True, False]])
  for loss, competes in (
    (retrieval.info_nce, True),
    (retrieval.decoupled_softmax, False),
  ):
    gradient = gradient_of(loss, s, both, temperature=0.3)
    assert (gradient[0, 1] > 0) == competes
    np.testing.assert_allclose(gradient.sum(), 0, atol=4 * EPS)


def test_the_loss_and_gradient_of_a_confident_query_are_not_rounded_to_0():
  s = jnp.array([[1.0, 0.0, 0.0]], jnp.float32)
  both = np.array([[True, False, False]])
  for loss in (retrieval.info_nce, retrieval.decoupled_softmax):
    for positives in (None, both):
      call = functools.partial(loss, positives=positives, temperature=0.025)
      np.testing.assert_allclose(call(s), [2 * np.exp(-40.0)], rtol=64 * EPS)
      rate = np.exp(-40.0) / 0.025
      np.testing.assert_allclose(
        gradient_of(call, s), [[-2 * rate, rate, rate]], rtol=64 * EPS
      )


def test_a_query_of_positives_only_has_no_decoupled_loss():
  s = SIMILARITIES[:1]
  value, gradient = jax.value_and_grad(
    lambda s: retrieval.decoupled_softmax(s, np.ones((1, 6), bool)).sum()
  )(s)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_info_nce_runs_in_a_fused_head():
  queries = RNG.normal(size=(5, 3)).astype(F32)
  documents = RNG.normal(size=(8, 3)).astype(F32)
  ids = np.array([7, 0, 3, 3, 1])
  for temperature in (F32(0.5), np.linspace(0.2, 1, 5, dtype=F32)):
    loss = functools.partial(retrieval.info_nce, temperature=temperature)
    found = fused.linear_loss(loss, queries, documents, ids, class_axis=0)
    expected = loss(queries @ documents.T, np.arange(8) == ids[:, None])
    np.testing.assert_allclose(found, expected, rtol=64 * EPS)


# Soft top-k.


def test_soft_top_k_sums_to_k():
  for k in (0.5, 2, 3.7, np.array([1, 2, 3, 5.5], F32)):
    q = retrieval.soft_top_k(SIMILARITIES, k)
    np.testing.assert_allclose(q.sum(-1), np.broadcast_to(k, 4), rtol=16 * EPS)
  # With a very large number of equal scores, too.
  q = retrieval.soft_top_k(np.zeros((1, 2**18), F32), 5)
  np.testing.assert_allclose(q[0, :3], 5 / 2**18, rtol=1e-4)


def test_soft_top_1_of_two_documents_is_the_softmax():
  pair = SIMILARITIES[:, :2]
  np.testing.assert_allclose(
    retrieval.soft_top_k(pair, 1), jax.nn.softmax(pair, -1), rtol=8 * EPS
  )
  np.testing.assert_allclose(
    retrieval.soft_top_k_loss(pair[:2], k=1),
    losses.cross_entropy(pair[:2], np.arange(2)),
    rtol=16 * EPS,
  )


def test_symmetries_of_soft_top_k():
  q = retrieval.soft_top_k(SIMILARITIES, 2)
  np.testing.assert_allclose(
    retrieval.soft_top_k(SIMILARITIES + F32(3), 2), q, rtol=64 * EPS
  )
  np.testing.assert_allclose(
    retrieval.soft_top_k(-SIMILARITIES, 4), 1 - q, rtol=64 * EPS
  )


def test_sharpness_of_soft_top_k():
  order = np.argsort(np.argsort(-SIMILARITIES, -1), -1)
  hard = retrieval.soft_top_k(SIMILARITIES, 2, alpha=1e5)
  np.testing.assert_allclose(hard, order < 2, atol=1e-6)
  flat = retrieval.soft_top_k(SIMILARITIES, 2, alpha=1e-6)
  np.testing.assert_allclose(flat, 2 / 6, rtol=1e-5)


def test_derivatives_of_soft_top_k():
  @jit
  def jacobians(s, k, alpha):
    def q(s, k, alpha):
      return retrieval.soft_top_k(s[None], k, alpha=alpha)[0]

    return jax.jacrev(q, argnums=(0, 1, 2))(s, k, alpha), q(s, k, alpha)

  s = SIMILARITIES[0]
  (by_score, by_k, by_alpha), q = jacobians(s, F32(2), F32(2))
  v = 2 * q * (1 - q)
  expected = np.diag(v) - np.outer(v, v) / v.sum()
  np.testing.assert_allclose(by_score, expected, atol=8 * EPS)
  np.testing.assert_allclose(by_score.sum(-1), 0, atol=8 * EPS)
  np.testing.assert_allclose(by_k, v / v.sum(), rtol=16 * EPS)
  np.testing.assert_allclose(by_alpha.sum(), 0, atol=8 * EPS)
  # Where all probabilities are 0 or 1, no derivative is NaN.
  (by_score, by_k, by_alpha), _ = jacobians(s, F32(2), F32(1e5))
  for derivative in (by_score, by_k, by_alpha):
    assert np.isfinite(derivative).all()


def test_documents_that_are_impossible_or_too_few():
  s = np.where([True, True, False, True, True, False], SIMILARITIES, -np.inf)
  s = s.astype(F32)
  q = retrieval.soft_top_k(s, 2)
  np.testing.assert_array_equal(q[:, [2, 5]], 0)
  np.testing.assert_allclose(
    q[:, [0, 1, 3, 4]], retrieval.soft_top_k(s[:, [0, 1, 3, 4]], 2), rtol=1e-5
  )
  # Four documents for five places: each has one.
  np.testing.assert_array_equal(retrieval.soft_top_k(s, 5), s > -np.inf)
  value, gradient = jax.value_and_grad(
    lambda s: retrieval.soft_top_k_loss(s, DIAGONAL, where=DIAGONAL).sum()
  )(SIMILARITIES)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("k", [0, 6, -1, np.nan])
def test_a_k_that_is_not_below_the_number_of_documents_raises(k):
  for call in (retrieval.soft_top_k, retrieval.soft_top_k_loss):
    with pytest.raises(ValueError, match=r"k must be in \(0, 6\)"):
      call(SIMILARITIES, k=k)


# Scores of a teacher.


def test_hard_teacher_scores_are_info_nce():
  teacher = np.where(DIAGONAL, F32(0), F32(-np.inf))
  for temperature in (0.05, 1.0):
    np.testing.assert_allclose(
      retrieval.soft_contrastive(
        SIMILARITIES, teacher, temperature=temperature
      ),
      retrieval.info_nce(SIMILARITIES, temperature=temperature),
      rtol=32 * EPS,
    )
  gradient = jax.grad(
    lambda t: retrieval.soft_contrastive(SIMILARITIES, t).sum()
  )(teacher)
  np.testing.assert_array_equal(gradient, 0)


def test_the_gradient_vanishes_where_student_and_teacher_agree():
  teacher = SIMILARITIES * F32(20)
  gradient = gradient_of(
    retrieval.soft_contrastive, SIMILARITIES, teacher, temperature=0.05
  )
  np.testing.assert_allclose(gradient, 0, atol=1e-4)
  shifted = SIMILARITIES + F32(0.25)
  for judge in (SIMILARITIES, shifted):
    value, gradient = jax.value_and_grad(
      lambda s, judge=judge: retrieval.symmetric_kl(s, judge).sum()
    )(SIMILARITIES)
    np.testing.assert_allclose(value, 0, atol=1e-9)
    np.testing.assert_allclose(gradient, 0, atol=1e-3)


def test_symmetric_kl_is_symmetric_and_the_mean_of_both_divergences():
  forward = retrieval.symmetric_kl(SIMILARITIES, SIMILARITIES[::-1])
  back = retrieval.symmetric_kl(SIMILARITIES[::-1], SIMILARITIES)
  np.testing.assert_allclose(forward, back, rtol=16 * EPS)
  log_p, log_q = (
    jax.nn.log_softmax(x * F32(50), -1)
    for x in (SIMILARITIES, SIMILARITIES[::-1])
  )
  both = divergence(log_p, log_q) + divergence(log_q, log_p)
  np.testing.assert_allclose(forward, both / 2, rtol=64 * EPS)
  # No floor inside the logarithms.
  far = np.array([[1.0, -1.0]], F32)
  np.testing.assert_allclose(
    retrieval.symmetric_kl(far, -far), [100.0], rtol=8 * EPS
  )
  infinite = np.array([[0.0, -np.inf]], F32)
  assert retrieval.symmetric_kl(far, infinite, temperature=1.0) == np.inf


def divergence(log_p, log_q):
  return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


# Masks of negatives.


def test_positive_aware_negatives():
  s = np.array([[0.8, 0.79, 0.5], [0.1, -0.2, -0.21], [-0.5, -0.51, -0.6]], F32)
  one = np.eye(3, dtype=bool)[[0, 1, 0]]
  mask = functools.partial(retrieval.positive_aware_negatives, s, one)
  np.testing.assert_array_equal(mask(), [[0, 0, 1], [0, 0, 0], [0, 0, 1]])
  np.testing.assert_array_equal(
    mask(ratio=np.array([1, 0.95, 0.95], F32)),
    [[0, 1, 1], [0, 0, 0], [0, 0, 1]],
  )
  np.testing.assert_array_equal(
    mask(margin=0.005), [[0, 1, 1], [0, 0, 1], [0, 1, 1]]
  )
  np.testing.assert_array_equal(mask(ratio=np.inf), ~one)
  # Several positives: the lowest counts. None: all negatives are usable.
  several = np.array([[True, False, True]] * 3)
  np.testing.assert_array_equal(
    retrieval.positive_aware_negatives(s, several), np.zeros((3, 3))
  )
  none = np.zeros((3, 3), bool)
  assert retrieval.positive_aware_negatives(s, none).all()
  assert retrieval.positive_aware_negatives(
    np.zeros((1, 2), F32), ratio=np.inf
  ).tolist() == [[False, True]]
  with pytest.raises(ValueError, match=r"margin must be in \[0, inf\)"):
    mask(margin=-1)
  with pytest.raises(ValueError, match=r"ratio must be in \[0, inf\]"):
    mask(ratio=-0.1)


def test_without_usable_negatives_the_loss_and_gradient_are_0():
  s = np.array([[0.5, 0.6, 0.7]], F32)
  positives = np.array([[True, False, False]])

  def loss(s):
    mask = retrieval.positive_aware_negatives(s, positives)
    return retrieval.info_nce(s, positives, where=mask | positives).sum()

  value, gradient = jax.value_and_grad(loss)(s)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


# The reranker.


def test_rerank_is_the_sum_of_three_cross_entropies():
  answers = RNG.normal(size=(2, 5, 2)).astype(F32)
  listed = RNG.normal(size=(5, 4)).astype(F32)
  position = np.array([0, 3, 1, 2, 2])
  no, yes = np.ones(5, int), np.zeros(5, int)
  expected = (
    losses.cross_entropy(answers[0], yes)
    + losses.cross_entropy(answers[1], no)
    + losses.cross_entropy(listed, position)
  )
  np.testing.assert_allclose(
    retrieval.rerank(*answers, listed, position), expected, rtol=16 * EPS
  )
  traced = jit(retrieval.rerank)(*answers, listed, np.array([0, 4, 1, -1, 2]))
  np.testing.assert_array_equal(np.isnan(traced), [0, 1, 0, 1, 0])
  with pytest.raises(ValueError, match=r"position\[1\] = 4 .* out of the call"):
    retrieval.rerank(*answers, listed, position + [0, 1, 0, 0, 0])
  with pytest.raises(ValueError, match=r"position must have the shape \(5,\)"):
    retrieval.rerank(*answers, listed, position[:4])
  with pytest.raises(TypeError, match="position must be integers"):
    retrieval.rerank(*answers, listed, position.astype(F32))
  with pytest.raises(ValueError, match=r"negative_logits must have the shape"):
    retrieval.rerank(answers[0], listed, listed, position)
  with pytest.raises(ValueError, match="list_logits must have two positions"):
    retrieval.rerank(*answers, listed[:, :1], 0 * position)


def test_a_query_without_negatives_has_loss_0():
  one = jnp.array([[0.3]])
  for loss in (retrieval.info_nce, retrieval.decoupled_softmax):
    np.testing.assert_array_equal(loss(one), [0.0])
  head = fused.linear_loss(retrieval.info_nce, one, one, np.array([0]))
  np.testing.assert_array_equal(head, [0.0])
