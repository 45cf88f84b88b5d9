# SPDX-License-Identifier: Apache-2.0
"""Z-score, Taylor and spherical softmax: worked values and invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import RowStats, fused, losses

F32 = np.float32
EPS = np.finfo(F32).eps
WORKED = np.array([2.0, -1.0, 0.5, 0.0])
RNG = np.random.default_rng(18)
LOGITS = (RNG.normal(size=(8, 5)) * 3).astype(F32)
LABELS = np.arange(8) % 5


@pytest.mark.x64
def test_worked_numbers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  close(losses.zscore(WORKED, 0), 0.201210749949)
  close(losses.zscore(WORKED, 1), 1.517642762606)
  tuned = functools.partial(losses.zscore, sharpness=2.0, location=1.0)
  close(tuned(WORKED, 0), 0.156332373019)
  close(2 * tuned(WORKED, 0), 0.312664746039)
  close(tuned(3 * WORKED - 7, 0), 0.156332373019)
  close(
    jax.grad(losses.zscore)(WORKED, 0),
    [-0.031428041326, -0.038162621606, 0.049386922076, 0.020203740847],
  )
  close(losses.taylor_softmax(WORKED, 0), 0.485507815782)
  close(losses.taylor_softmax(WORKED, 1), 2.788092908776)
  close(
    jax.grad(losses.taylor_softmax)(WORKED, 1),
    [0.369230769226, 0, 0.184615384624, 0.123076923075],
  )
  spherical = losses.spherical_softmax
  for label, value in ((0, 0.277027004552), (1, 1.655867915017)):
    close(spherical(WORKED, label), value)
  close(spherical(WORKED, 3), 6.270988431858)
  close(spherical(WORKED, 0, epsilon=1e-200), 0.271933715484)


@pytest.mark.parametrize(
  ("scale", "shift"), [(3.0, -7.0), (1e-3, 0.5), (1e4, 0)]
)
def test_the_z_score_does_not_depend_on_scale_and_shift(scale, shift):
  z = np.float64(LOGITS) * scale + shift
  np.testing.assert_allclose(
    losses.zscore(F32(z), LABELS), losses.zscore(LOGITS, LABELS), rtol=3e-4
  )
  gradients = jax.grad(lambda z: losses.zscore(z, LABELS).sum())(LOGITS)
  # Neither along the logits nor along their common shift.
  np.testing.assert_allclose(gradients.sum(-1), 0, atol=8 * EPS)
  np.testing.assert_allclose((gradients * LOGITS).sum(-1), 0, atol=64 * EPS)


def test_bounds_of_the_z_score():
  score = np.sqrt(4)
  z = np.eye(5, dtype=F32)
  far = losses.zscore(np.stack([z[0], -z[0]]), [0, 0])
  expected = np.log1p(np.exp([-score, score]))
  np.testing.assert_allclose(far, expected, rtol=8 * EPS)
  # With two classes it is 1 or -1.
  loss, gradients = jax.vmap(jax.value_and_grad(lambda z: losses.zscore(z, 0)))(
    LOGITS[:, :2]
  )
  wins = LOGITS[:, 0] > LOGITS[:, 1]
  expected = np.log1p(np.exp(np.where(wins, -1, 1)))
  np.testing.assert_allclose(loss, expected, rtol=8 * EPS)
  gaps = np.abs(LOGITS[:, 0] - LOGITS[:, 1])
  assert (np.abs(gradients).max(-1) <= 8 * EPS / gaps).all()


@pytest.mark.parametrize("fill", [0.0, 1.0, -1e4])
def test_equal_logits_have_a_z_score_of_0(fill):
  z = jnp.full(4, fill)
  loss, gradient = jax.value_and_grad(losses.zscore)(z, 1, location=0.5)
  np.testing.assert_allclose(loss, np.log1p(np.exp(0.5)), rtol=4 * EPS)
  assert np.isfinite(gradient).all()
  assert gradient[1] < 0


@pytest.mark.parametrize("classes", [5, 10, 1000])
def test_equal_logits_of_a_head_have_a_z_score_of_0(classes):
  """A head does not centre: a variance of some ulp counts as 0."""
  loss = fused.linear_loss(
    losses.zscore,
    jnp.ones((2, 3)),
    jnp.zeros((3, classes)),
    jnp.array([1, 2]),
    bias=jnp.full(classes, 0.1),
  )
  np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)


def test_a_sharp_z_score_is_a_hinge():
  z = np.float64(LOGITS)
  target = np.take_along_axis(z, LABELS[:, None], -1)[:, 0]
  score = (target - z.mean(-1)) / z.std(-1)
  actual = losses.zscore(LOGITS, LABELS, sharpness=1e4, location=0.2)
  np.testing.assert_allclose(actual, np.maximum(0, 0.2 - score), atol=1e-4)


def test_the_row_form_of_the_z_score_within_its_bound():
  """Without centring, the error is relative to the mean squared."""
  for shift in (0.0, 10.0, 100.0):
    z = LOGITS + F32(shift)
    rest = np.stack([np.delete(r, k) for r, k in zip(z, LABELS, strict=True)])
    stats = row_stats(z, rest)
    actual = losses.zscore.row(stats, sharpness=1.0, location=0.0)
    spread = rest.std(-1) ** 2
    lost = 8 * EPS * (1 + rest.mean(-1) ** 2 / spread)
    expected = np.asarray(losses.zscore(z, LABELS))
    # The gradient of the loss in a relative change of the variance is below 1.
    assert (np.abs(actual - expected) <= lost + 8 * EPS * expected).all()


def row_stats(z, rest):
  target = jnp.asarray(np.take_along_axis(z, LABELS[:, None], -1)[:, 0])
  lse = jax.nn.logsumexp(rest, axis=-1)
  return jax.tree.map(
    jnp.float32,
    RowStats(
      target=target,
      log_odds=lse - target,
      rest_lse=lse,
      rest_sum=rest.sum(-1),
      rest_sq=np.square(rest).sum(-1),
      rest_max=rest.max(-1),
      rest_expected=(jax.nn.softmax(rest, -1) * rest).sum(-1),
      num_classes=np.full(8, 5.0),
    ),
  )


def test_taylor_softmax_is_least_at_minus_one():
  z = jnp.array([[-1.0, 3.0, 0.0], [-3.0, 3.0, 0.0], [1.0, 3.0, 0.0]])
  loss = losses.taylor_softmax(z, jnp.zeros(3, int))
  assert loss[0] > loss[1]
  np.testing.assert_allclose(loss[1], loss[2], rtol=4 * EPS)
  gradient = jax.grad(losses.taylor_softmax)(z[0], 0)
  assert gradient[0] == 0


def test_spherical_softmax_is_even_and_nearly_scale_invariant():
  loss = losses.spherical_softmax
  np.testing.assert_array_equal(loss(-LOGITS, LABELS), loss(LOGITS, LABELS))
  np.testing.assert_allclose(
    loss(LOGITS * 8, LABELS, epsilon=0.64),
    loss(LOGITS, LABELS),
    rtol=16 * EPS,
  )
  # If all logits are 0, the probabilities are equal and the gradient is 0.
  value, gradient = jax.value_and_grad(loss)(jnp.zeros(4), 0)
  np.testing.assert_allclose(value, np.log(4), rtol=4 * EPS)
  np.testing.assert_array_equal(gradient, 0)


def test_both_are_least_at_the_class_probabilities():
  p = np.array([0.5, 0.3, 0.15, 0.05])
  roots = F32(np.sqrt(2 * p * 40 - 1) - 1)
  gradient = jax.grad(losses.taylor_softmax)(roots, F32(p))
  np.testing.assert_allclose(gradient, 0, atol=2e-7)
  roots = F32(np.sqrt(p * 10 - 0.01))
  gradient = jax.grad(losses.spherical_softmax)(roots, F32(p))
  np.testing.assert_allclose(gradient, 0, atol=2e-7)


@pytest.mark.parametrize(
  ("name", "hyper", "domain"),
  [
    ("zscore", {"sharpness": 0.0}, r"sharpness must be in \(0, inf\)"),
    ("zscore", {"location": np.inf}, r"location must be in \(-inf, inf\)"),
    ("spherical_softmax", {"epsilon": 0.0}, r"epsilon must be in \(0, inf\)"),
  ],
)
def test_hyperparameters_outside_their_domain_raise(name, hyper, domain):
  with pytest.raises(ValueError, match=domain):
    getattr(losses, name)(LOGITS, LABELS, **hyper)
