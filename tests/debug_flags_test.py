# SPDX-License-Identifier: Apache-2.0
"""jax_debug_nans and jax.checking_leaks report nothing on valid calls.

Dropped rows and classes hold garbage. Calls are eager and jitted, in value and
gradient.
"""

from cases import BINARY_CASES, CASES
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import losses

EVERY = pytest.mark.parametrize("case", CASES, ids=repr)
RNG = np.random.default_rng(9)
DROPPED = np.array([False, True, False, True])
LOGITS = RNG.normal(size=(4, 5)).astype(np.float32)
LABELS = np.array([3, -100, 1, 7])
SOFT = RNG.dirichlet(np.ones(5), size=4).astype(np.float32)
GARBAGE = np.array([[np.nan], [np.inf], [np.nan], [np.nan]], np.float32)
ROWS = np.where(DROPPED[:, None], GARBAGE, LOGITS)
CLASSES = np.array([True, True, False, True, True]) & ~DROPPED[:, None]
ENTRIES = np.where(CLASSES, LOGITS, GARBAGE)


def loss_of(case, garbage):
  """The loss of a case; the perturbed logits hold garbage too."""
  if case.name != "smooth_adversarial_comp_sum":
    return case.loss
  attacked = jnp.asarray(garbage[:, ::-1])
  return lambda logits, labels, **keywords: losses.smooth_adversarial_comp_sum(
    logits, attacked, labels, **keywords
  )


def silent(loss, logits, labels, where, **hyper):
  """Runs the loss under both flags: eager and jitted, value and gradient."""

  def both(logits, where, hyper):
    def total(logits, hyper):
      value = loss(logits, labels, where=where, **hyper)
      return value.sum(), value

    return jax.value_and_grad(total, (0, 1), has_aux=True)(logits, hyper)

  arguments = jnp.asarray(logits), jnp.asarray(where), hyper
  with jax.debug_nans(True), jax.checking_leaks():
    eager = both(*arguments)
    jitted = jax.jit(both)(*arguments)
    loss(logits, labels, where=where, **hyper)
  for (_, value), gradients in (eager, jitted):
    assert np.isfinite(value).all()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    keep = where if where.ndim == value.ndim else where.any(-1)
    np.testing.assert_array_equal(np.asarray(value)[~keep], 0)


@EVERY
def test_dropped_rows_of_class_ids(case):
  # The garbage of dropped rows includes their hyper-parameters.
  hyper = {
    name: jnp.asarray(np.where(DROPPED, np.nan, value), jnp.float32)
    for name, value in case.hyperparameters.items()
  }
  silent(loss_of(case, ROWS), ROWS, LABELS, ~DROPPED, **hyper)


@EVERY
def test_dropped_classes_of_distributions(case):
  soft = np.where(CLASSES, SOFT, 0.0) if case.soft_is_expected else SOFT
  soft = np.where(CLASSES, soft, 0.0)
  soft /= np.where(DROPPED[:, None], 1.0, soft.sum(-1, keepdims=True))
  soft = np.where(DROPPED[:, None], np.float32(np.nan), soft)
  silent(loss_of(case, ENTRIES), ENTRIES, soft.astype(np.float32), CLASSES)


@EVERY
def test_impossible_classes(case):
  logits = np.where(CLASSES | DROPPED[:, None], LOGITS, -np.inf)
  labels = np.array([3, 0, 1, 4])
  silent(loss_of(case, logits), logits, labels, np.ones(4, bool))


@pytest.mark.parametrize(
  "case", [c for c in BINARY_CASES if c.name != "ensloss"], ids=repr
)
def test_dropped_entries_of_binary_losses(case):
  scores = np.array([0.5, np.nan, -1.0, np.inf, 2.0], np.float32)
  labels = np.array([1, -100, 0, 7, 1])
  keep = np.array([True, False, True, False, True])

  def total(scores):
    return case.loss(scores, labels, where=keep).sum()

  with jax.debug_nans(True), jax.checking_leaks():
    for run in (jax.grad(total), jax.jit(jax.grad(total))):
      gradient = run(jnp.asarray(scores))
      assert np.isfinite(gradient).all()
      np.testing.assert_array_equal(gradient[~keep], 0)


def test_an_invalid_row_is_reported():
  """The flag does find the NaN of a label that is out of range."""
  loss = jax.jit(losses.squentropy)
  with jax.debug_nans(True), pytest.raises(FloatingPointError):
    loss(LOGITS, np.array([0, 1, 2, 9]))
