# SPDX-License-Identifier: Apache-2.0
"""Target distributions: concrete ones must be at least 0 and sum to 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import fused, losses, transforms

F32 = np.float32
RNG = np.random.default_rng(15)
LOGITS = RNG.normal(size=(3, 4)).astype(F32)
SOFT = RNG.dirichlet(np.ones(4), size=3).astype(F32)
KERNEL = RNG.normal(size=(4, 5)).astype(F32)
IDS = np.array([[0, 1, 4], [2, 3, 0], [1, 4, 2]])


def first_row(values):
  """The labels, with other values in the first row."""
  return np.concatenate([F32([values]), SOFT[1:]])


BAD = {
  "sum below 1": ([0.5, 0.2, 0.2, 0.05], r"a sum of 0\.95"),
  "sum above 1": ([1, 0, 1, 0], "a sum of 2"),
  "no mass": ([0, 0, 0, 0], "a sum of 0"),
  "negative": ([1.2, -0.2, 0, 0], r"a least number of -0\.2"),
  "infinite": ([np.inf, 0, 0, 0], "a sum of inf"),
  "NaN": ([np.nan, 0, 0, 1], "a sum of nan"),
}
# One of each kind: row losses with and without a transform, distribution
# losses, a loss with two arrays of logits, a loss of cosines.
DENSE = {
  "cross_entropy": losses.cross_entropy,
  "zscore": losses.zscore,
  "brier": losses.brier,
  "smooth_adversarial_comp_sum": lambda z, t, **keywords: (
    losses.smooth_adversarial_comp_sum(z, z / 2, t, **keywords)
  ),
  "cosface": lambda z, t, **keywords: losses.cosface(z / 10, t, **keywords),
  "error_mass": transforms.error_mass,
}


@pytest.mark.parametrize("loss", DENSE.values(), ids=DENSE)
def test_concrete_rows_that_are_no_distribution_raise(loss):
  keep = np.arange(3) > 0
  expected = loss(LOGITS, SOFT, where=keep)
  for values, message in BAD.values():
    labels = first_row(values)
    with pytest.raises(ValueError, match=rf"labels of row 0 must.*{message}"):
      loss(LOGITS, labels)
    with pytest.raises(ValueError, match="of row 0 must be a target distrib"):
      loss(LOGITS.T, jnp.asarray(labels.T), axis=0)
    # A dropped row may hold anything.
    actual = loss(LOGITS, labels, where=keep)
    np.testing.assert_array_equal(actual, expected)
    classes = np.repeat(keep[:, None], 4, axis=1)
    actual = loss(LOGITS, labels.tolist(), where=classes)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_the_row_is_named_by_its_indices():
  labels = np.tile(SOFT, (2, 1, 1))
  labels[1, 2] *= 2
  logits = np.tile(LOGITS, (2, 1, 1))
  with pytest.raises(ValueError, match="labels of row 1, 2 must be"):
    losses.squentropy(logits, labels)
  with pytest.raises(ValueError, match="labels must be a target distribution"):
    losses.squentropy(LOGITS[0], 2 * SOFT[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_distributions_that_were_rounded_are_accepted(dtype):
  for classes in (2, 10, 3000):
    p = RNG.dirichlet(np.ones(classes), size=20)
    smooth = 0.9 * np.eye(classes)[:20] + 0.1 / classes
    for values in (p, np.resize(smooth, (20, classes))):
      losses.cross_entropy(jnp.zeros(p.shape), jnp.asarray(values, dtype))
    narrow = jax.nn.softmax(jnp.asarray(3 * p, dtype), axis=-1)
    losses.cross_entropy(jnp.zeros(p.shape), narrow)
  # Numbers that were written with two digits, and what 1 - sum may leave.
  losses.cross_entropy(jnp.zeros(3), jnp.asarray([0.33] * 3, dtype))
  losses.cross_entropy(jnp.zeros(3), jnp.asarray([1, 1e-8, -1e-8], dtype))


def test_traced_rows_are_taken_as_they_are():
  labels = first_row([1, 0, 1, 0])
  each = [losses.squentropy(LOGITS[0], k) for k in range(4)]
  value = jax.jit(losses.squentropy)(LOGITS, labels)
  np.testing.assert_allclose(value[0], each[0] + each[2], rtol=1e-6)
  # The mask is not known, so that no row is.
  value = jax.jit(lambda keep: losses.squentropy(LOGITS, labels, where=keep))
  assert np.isfinite(value(np.ones(3, bool))).all()
  # A NumPy constant of a trace is known.
  with pytest.raises(ValueError, match="labels of row 0 must"):
    jax.jit(lambda z: losses.squentropy(z, labels))(LOGITS)


def heads():
  return {
    "linear_loss": functools.partial(
      fused.linear_loss, losses.cross_entropy, LOGITS, KERNEL
    ),
    "linear_loss_sum": functools.partial(
      fused.linear_loss_sum, losses.squentropy, LOGITS, KERNEL
    ),
    "blocked_loss_sum": functools.partial(
      fused.blocked_loss_sum,
      losses.squentropy,
      lambda kernel, block: block @ kernel,
      KERNEL,
      LOGITS,
      block_rows=2,
    ),
  }


@pytest.mark.parametrize("head", heads().values(), ids=heads())
def test_pairs_of_fused_heads(head):
  """The classes that a pair does not name may have the missing probability."""
  p = np.tile(F32([0.5, 0.2, 0.1]), (3, 1))
  head((IDS, p))
  for row in ([0.5, 0.5, 0.5], [1.2, -0.2, 0.0], [np.nan, 0.5, 0.5]):
    bad = np.concatenate([p[:1], F32([row]), p[2:]])
    with pytest.raises(ValueError, match="probabilities of labels of row 1"):
      head((IDS, bad))
    value = head((IDS, bad), where=np.arange(3) != 1)
    assert np.isfinite(jax.tree.leaves(value)[0]).all()


def test_dense_labels_of_a_blocked_head():
  head = heads()["blocked_loss_sum"]
  labels = np.full((3, 5), 0.2, F32)
  head(labels)
  labels[2, 0] = 0.5
  with pytest.raises(ValueError, match=r"labels of row 2 .* a sum of 1\.3"):
    head(labels)
  head(labels, weights=F32([1, 2, 0]))


def test_rows_are_not_read_if_an_array_spans_processes(monkeypatch):
  """An error on one process would leave the others waiting for it."""
  logits = jnp.asarray(LOGITS)
  monkeypatch.setattr(
    type(logits), "is_fully_addressable", property(lambda x: x is not logits)
  )
  value = losses.squentropy(logits, first_row([1, 0, 1, 0]))
  assert np.isfinite(value).all()
