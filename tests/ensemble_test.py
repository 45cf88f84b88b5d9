# SPDX-License-Identifier: Apache-2.0
"""EnsLoss: derivatives of random losses that are convex and calibrated."""

import functools

import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import losses, reweighting

KEY = jax.random.key(0)
LOGITS = np.array([0.5, -1.0, 2.0])
LABELS = np.array([1, 1, 0])


@pytest.fixture
def given_draws(monkeypatch):
  """Replaces the random draws by those of the worked example."""
  monkeypatch.setattr(
    jax.random, "normal", lambda key, shape, dtype: jnp.array([0.3, -1.2, -0.4])
  )


@pytest.mark.x64
@pytest.mark.usefixtures("given_draws")
def test_worked_numbers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  margins = np.array([0.5, -1.0, -2.0])
  derivatives = functools.partial(
    reweighting.calibrated_loss_derivatives, KEY, margins
  )
  expected = [-0.3011952119, -0.6703210460, -1.000001]
  close(derivatives(), expected)
  for box_cox in (1e-12, -1e-12):  # A seam.
    close(derivatives(box_cox=box_cox), expected)
  close(derivatives(box_cox=0.5), [-0.160001, -0.640001, -1.000001])

  def mean(logits):
    return losses.ensloss(KEY, logits, LABELS).mean()

  value, grads = jax.value_and_grad(mean)(LOGITS)
  close(value, 0.8399084800)
  close(grads, [-0.1003984040, -0.2234403487, 0.3333336667])


def test_inverse_box_cox_outside_its_domain():
  draws = jnp.array([-3.0, 3.0])
  for box_cox, expected in ((0.5, [0.0, 6.25]), (-0.5, [0.16, np.inf])):
    actual = reweighting._inverse_box_cox(draws, jnp.float32(box_cox))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@hypothesis.given(
  strategies.lists(
    # XLA sorts a subnormal number and 0 as equal.
    strategies.floats(-1e4, 1e4, width=32, allow_subnormal=False),
    min_size=7,
    max_size=7,
  ),
  strategies.integers(0, 2**30),
  strategies.sampled_from([-1.0, -0.3, 0.0, 0.5, 1.0]),
)
def test_the_loss_is_convex_up_to_one_and_calibrated(margins, seed, box_cox):
  margins = np.array(margins, np.float32)
  derivatives = np.asarray(
    reweighting.calibrated_loss_derivatives(
      jax.random.key(seed), margins, box_cox=box_cox
    )
  )
  assert (derivatives < 0).all()
  assert (derivatives >= -1.0 - 2e-6).all()
  inner = margins <= 1
  # Equal margins may get their draws in any order.
  order = np.lexsort((derivatives[inner], margins[inner]))
  assert (np.diff(derivatives[inner][order]) >= 0).all()
  flat = np.asarray(
    reweighting.calibrated_loss_derivatives(
      jax.random.key(seed), margins, box_cox=box_cox, tail=False
    )
  )
  assert (np.diff(flat[np.lexsort((flat, margins))]) >= 0).all()
  outer = ~inner
  np.testing.assert_allclose(
    derivatives[outer] + 1e-6, (flat[outer] + 1e-6) / margins[outer], atol=2e-7
  )


def test_a_constant_draw_is_the_hinge(monkeypatch):
  monkeypatch.setattr(
    jax.random, "normal", lambda key, shape, dtype: jnp.zeros(shape, dtype)
  )
  margins = np.array([-3.0, 0.0, 0.9, 2.0, 1e4], np.float32)
  derivatives = reweighting.calibrated_loss_derivatives(KEY, margins)
  # Of the hinge up to 1, and of a logarithm beyond.
  np.testing.assert_allclose(
    derivatives, [-1, -1, -1, -0.5, -1e-4], rtol=0, atol=2e-6
  )
  np.testing.assert_allclose(
    reweighting.calibrated_loss_derivatives(
      KEY, margins, clip=0.25, tail=False
    ),
    -0.25,
    atol=2e-6,
  )


def test_gradient_is_the_derivative_and_keys_differ():
  z = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
  y = (z < 0.3).astype(np.int32)

  @jax.jit
  def both(key):
    grads = jax.grad(lambda z: losses.ensloss(key, z, y).sum())(z)
    return grads, reweighting.calibrated_loss_derivatives(
      key, (2.0 * y - 1) * z
    )

  first, derivatives = both(KEY)
  np.testing.assert_array_equal(first, (2.0 * y - 1) * np.asarray(derivatives))
  again, _ = both(jax.random.key(0))
  np.testing.assert_array_equal(first, again)
  other, _ = both(jax.random.key(1))
  assert (first != other).any()


def test_dropped_entries_use_no_draw():
  z = np.random.default_rng(0).normal(size=40).astype(np.float32)
  keep = np.arange(40) % 3 > 0
  invalid = np.where(keep, z, np.float32(np.nan))
  derivatives = np.asarray(
    reweighting.calibrated_loss_derivatives(
      KEY, invalid, where=keep, tail=False
    )
  )
  np.testing.assert_array_equal(derivatives[~keep], 0)
  # The kept entries share the draws that stand in their places.
  draws = np.exp(np.asarray(jax.random.normal(KEY, (40,))))[keep]
  expected = -np.minimum(np.sort(draws)[::-1], 1) - 1e-6
  np.testing.assert_allclose(
    derivatives[keep][np.argsort(z[keep])], expected, rtol=1e-6
  )


def test_bad_arguments_are_named():
  z = jnp.zeros(3)
  for key in (0, None, jnp.zeros(2), jax.random.split(KEY)):
    with pytest.raises(TypeError, match="key must be one random key"):
      losses.ensloss(key, z, LABELS)
  losses.ensloss(jax.random.PRNGKey(0), z, LABELS)
  with pytest.raises(TypeError, match=r"labels must be 0 or 1.*no soft labels"):
    losses.ensloss(KEY, z, jnp.zeros(3))
  with pytest.raises(ValueError, match="clip must be in"):
    reweighting.calibrated_loss_derivatives(KEY, z, clip=0)
  with pytest.raises(TypeError, match="margins must be floating"):
    reweighting.calibrated_loss_derivatives(KEY, LABELS)
