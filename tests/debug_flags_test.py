# SPDX-License-Identifier: Apache-2.0
"""jax_debug_nans and jax.checking_leaks report nothing on valid calls.

Dropped rows and classes hold garbage.
"""

import functools

from cases import BINARY_CASES, CLASS_CASES
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import calibration, losses

EVERY = pytest.mark.parametrize("case", CLASS_CASES, ids=repr)
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
  attacked = jnp.asarray(garbage / 2)
  return lambda logits, labels, **keywords: losses.smooth_adversarial_comp_sum(
    logits, attacked, labels, **keywords
  )


@pytest.fixture(autouse=True, scope="module")
def _no_optimizations():
  """The arithmetic is the same; it compiles in less time."""
  name = "jax_disable_most_optimizations"
  before = jax.config.read(name)
  jax.config.update(name, True)
  yield
  jax.config.update(name, before)


def of_sum(loss, labels):
  """The sum of the losses and its gradients, with the losses besides."""

  def total(logits, hyper, where):
    value = loss(logits, labels, where=where, **hyper)
    return value.sum(), value

  return jax.value_and_grad(total, (0, 1), has_aux=True)


def check(loss, logits, labels, where, **hyper):
  """Runs the loss under the flags, eager and jitted."""
  # Under jax_debug_nans JAX itself converts no NaN from NumPy.
  run = of_sum(loss, jnp.asarray(labels))
  arguments = jnp.asarray(logits), hyper, jnp.asarray(where)
  with jax.debug_nans(True):
    results = run(*arguments), jax.jit(run)(*arguments)
  for (_, value), gradients in results:
    assert np.isfinite(value).all()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    keep = where if where.ndim == value.ndim else where.any(-1)
    np.testing.assert_array_equal(np.asarray(value)[~keep], 0)
  with jax.checking_leaks():  # Of a trace: nothing is compiled.
    jax.eval_shape(run, *arguments)
    jax.eval_shape(jax.jit(run), *arguments)


@EVERY
def test_dropped_rows_and_impossible_classes(case):
  logits = ROWS.copy()
  logits[0, 4] = -np.inf
  # The garbage of dropped rows includes their hyper-parameters.
  hyper = {
    name: jnp.asarray(np.where(DROPPED, np.nan, value), jnp.float32)
    for name, value in case.hyperparameters.items()
  }
  check(loss_of(case, logits), logits, LABELS, ~DROPPED, **hyper)


@EVERY
def test_dropped_classes_of_distributions(case):
  soft = np.where(CLASSES, SOFT, 0.0)
  soft /= np.where(DROPPED[:, None], 1.0, soft.sum(-1, keepdims=True))
  soft = np.where(DROPPED[:, None], np.nan, soft).astype(np.float32)
  check(loss_of(case, ENTRIES), ENTRIES, soft, CLASSES)


@pytest.mark.parametrize(
  "case", [c for c in BINARY_CASES if c.name != "ensloss"], ids=repr
)
def test_dropped_entries_of_binary_losses(case):
  scores = jnp.array([0.5, np.nan, -1.0, np.inf, 2.0])
  labels = np.array([1, -100, 0, 7, 1])
  keep = np.array([True, False, True, False, True])

  def total(scores):
    return case.loss(scores, labels, where=keep).sum()

  with jax.debug_nans(True):
    for run in (jax.grad(total), jax.jit(jax.grad(total))):
      gradient = run(scores)
      assert np.isfinite(gradient).all()
      np.testing.assert_array_equal(gradient[~keep], 0)


@pytest.mark.parametrize("loss", [losses.squentropy, losses.cross_entropy])
def test_numpy_logits_are_converted(loss):
  with jax.debug_nans(True):
    value = np.asarray(loss(ROWS, LABELS, where=~DROPPED))
    wide = np.asarray(loss(ROWS.astype(np.float64), LABELS, where=~DROPPED))
  assert np.isfinite(value).all()
  np.testing.assert_allclose(value, wide, rtol=1e-6)
  np.testing.assert_array_equal(value[DROPPED], 0)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_dropped_rows_of_a_conformal_fit(kind):
  p = np.where(DROPPED[:, None], GARBAGE, SOFT)
  for score in (calibration.lac_score, calibration.aps_score):
    fit = functools.partial(
      calibration.fit_conformal, alpha=0.5, score=score, where=~DROPPED
    )
    rows = kind(p)
    with jax.debug_nans(True):
      assert np.isfinite(fit(rows, LABELS).threshold)


def test_an_invalid_row_is_reported():
  """The flag does find the NaN of a kept row."""
  logits = jnp.asarray(ROWS)
  with jax.debug_nans(True), pytest.raises(FloatingPointError):
    losses.squentropy(logits, jnp.array([0, 1, 2, 3]))
