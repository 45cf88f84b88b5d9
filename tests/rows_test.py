# SPDX-License-Identifier: Apache-2.0
"""Ready-made row formulas, and special cases of row losses."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from support import heads

from squentropy_jax import (
  calibration,
  fused,
  losses,
  reweighting,
  row_loss,
  rows,
  squentropy,
)
from squentropy_jax._core import elementwise


@pytest.mark.parametrize(
  ("loss", "row"),
  [
    (squentropy, [1e20, 0.0, 0.0]),
    (losses.rescaled_square, [0.0, 1e20, 1.0]),
  ],
)
def test_an_infinite_loss_of_a_class_of_probability_0_adds_nothing(loss, row):
  logits = jnp.array([row])
  one_hot = jnp.array([[1.0, 0.0, 0.0]])
  hard = jnp.array([0])
  np.testing.assert_array_equal(loss(logits, one_hot), loss(logits, hard))
  if np.isfinite(loss(logits, hard)).all():
    gradient = jax.grad(lambda z: loss(z, one_hot).sum())(logits)
    assert np.isfinite(gradient).all()


def test_infinite_losses_of_a_formula():
  odds = row_loss(lambda stats: jnp.exp(stats.log_odds))

  logits = jnp.array([[100.0, 0.0, 0.0]])
  one_hot = jnp.array([[1.0, 0.0, 0.0]])

  def soft(z):
    return odds(z, one_hot).sum()

  np.testing.assert_allclose(soft(logits), 2 * np.exp(-100.0), atol=1e-37)
  assert np.isfinite(jax.grad(soft)(logits)).all()
  # A probability above 0 makes the expected loss infinite.
  spread = jnp.array([[0.5, 0.5, 0.0]])
  assert np.isinf(odds(logits, spread)).all()


def test_wide_labels_stay_invalid_when_only_the_mask_is_traced():
  logits = jnp.ones((3, 4))
  labels = np.array([2**32, 1, 2**32 + 1])
  run = jax.jit(lambda where: squentropy(logits, labels, where=where))
  loss = run(jnp.array([True, True, False]))
  np.testing.assert_array_equal(np.isnan(loss), [True, False, False])
  assert loss[2] == 0


@pytest.mark.parametrize("value", [1 + 2j, "a", None, True])
def test_hyperparameters_are_real_numbers(value):
  with pytest.raises(TypeError, match="scale must be a real number"):
    squentropy(jnp.ones(3), 0, scale=value)


@pytest.mark.parametrize(
  ("name", "hyper"),
  [
    ("asymmetric_unhinged", {"a": 1 + 1e-9}),
    ("jensen_shannon", {"pi": 1 - 1e-9}),
    ("spherical_softmax", {"epsilon": 1e-50}),
    ("ldr_kl", {"temperature": 1e-50}),
    ("focal", {"gamma": 1e39}),
    ("bi_tempered_logistic", {"t1": 2 - 1e-9, "t2": 1.0}),
  ],
)
def test_a_hyperparameter_counts_as_what_it_is_rounded_to(name, hyper):
  key = next(iter(hyper))
  with pytest.raises(ValueError, match=f"{key} must be in .* as a float32"):
    getattr(losses, name)(jnp.ones(3), 0, **hyper)


def test_static_choices_are_bools():
  z = jnp.ones(3)
  traced = jax.jit(lambda flag: losses.one_vs_rest_hinge(z, 0, squared=flag))
  for call in (
    lambda: traced(True),
    lambda: losses.softmax_regression(z, 0, squared=1),
    lambda: losses.dice(z, [0, 1, 1], squared="yes"),
    lambda: losses.self_adjusting_dice(z, [0, 1, 1], squared=None),
    lambda: reweighting.calibrated_loss_derivatives(
      jax.random.key(0), z, tail=0
    ),
  ):
    with pytest.raises(
      TypeError, match=r"(squared|tail) must be True or False"
    ):
      call()


def test_derivatives_of_sigmoid_and_softplus_at_infinity():
  x = jnp.array([-jnp.inf, -100.0, 0.0, 100.0, jnp.inf])
  first = jax.vmap(jax.grad(elementwise.softplus))(x)
  np.testing.assert_allclose(first, [0, np.exp(-100), 0.5, 1, 1], atol=1e-37)
  second = jax.vmap(jax.grad(jax.grad(elementwise.softplus)))(x)
  assert np.isfinite(second).all()
  # 1 - sigmoid(20) cancels in float32; sigmoid(-20) does not.
  np.testing.assert_allclose(
    jax.grad(elementwise.sigmoid)(jnp.float32(20.0)), np.exp(-20.0), rtol=1e-5
  )


@pytest.mark.parametrize("convert", [jnp.asarray, np.asarray])
def test_ids_of_four_bits_are_read_among_many_classes(convert):
  logits = jnp.zeros((3, 300)).at[0, 1].set(1.0)
  labels = np.array([1, 0, 7])
  narrow = convert(labels.astype(jnp.int4))
  np.testing.assert_array_equal(
    squentropy(logits, narrow), squentropy(logits, labels)
  )
  nll = calibration.negative_log_likelihood
  np.testing.assert_array_equal(nll(logits, narrow), nll(logits, labels))


# Ready-made row formulas.

_INF = np.inf
# Rows of four classes with label 0.
ROWS = np.float32(
  [
    [0.5, 1.0, -2.0, 0.25],
    [3.0, 3.0, -_INF, 1.0],  # A tie.
    [-_INF, 2.0, 1.0, -3.0],  # The target is impossible.
    [2.0, -_INF, -_INF, -_INF],  # No other class is possible.
    [-_INF, -_INF, -1.0, -_INF],
    [40.0, 1.0, 0.0, -1.0],
    [-40.0, 1.0, 0.0, -1.0],
    [100.5, 100.0, 99.0, 100.25],
  ]
)
ZEROS = np.zeros(len(ROWS), np.int32)


def _definition(name, row):
  z = row[row > -_INF].astype(np.float64)
  lse = np.log(np.exp(z - z.max()).sum()) + z.max()
  p = np.exp(z - lse)
  return {
    "log_z": lse,
    "z_loss": lse**2,
    "mean_logit_sq": np.mean(z**2),
    "max_logit_sq": z.max() ** 2,
    "entropy": -(p * (z - lse)).sum(),
  }[name]


FORMULAS = ("log_z", "z_loss", "mean_logit_sq", "max_logit_sq", "entropy")
LOSSES = {name: row_loss(getattr(rows, name)) for name in FORMULAS}
LOSSES["correct"] = row_loss(
  lambda stats: rows.correct(stats).astype(jnp.float32)
)


@heads.jit
def _every_formula(z, labels, where=None):
  return {n: f(z, labels, where=where) for n, f in LOSSES.items()}


def test_row_formulas_meet_their_definitions():
  hard = _every_formula(ROWS, ZEROS)
  # The label does not matter.
  soft = np.where(ROWS > -_INF, 1.0, 0.0).astype(np.float32)
  soft = _every_formula(ROWS, soft / soft.sum(-1, keepdims=True))
  # An invalid row is NaN, and a dropped one 0.
  nan = np.where(np.arange(8)[:, None] < 4, ROWS, np.nan)
  keep = np.arange(len(ROWS)) != 3
  invalid = _every_formula(nan, ZEROS - 5 * (np.arange(8) < 4), keep)
  for name in FORMULAS:
    want = np.array([_definition(name, row) for row in ROWS])
    # The entropy of the other classes: some ulp of the largest logit.
    size = np.abs(np.where(ROWS > -_INF, ROWS, 0.0)).max(-1)
    atol = 4e-7 * size * (name == "entropy")
    for found in (hard[name], soft[name]):
      assert (np.abs(found - want) <= atol + 1e-6 * np.abs(want)).all(), name
    np.testing.assert_array_equal(np.isnan(invalid[name]), keep)
    assert invalid[name][3] == 0
  # A tie is not correct, and neither is an invalid row.
  want = [False, False, False, True, False, True, False, True]
  np.testing.assert_array_equal(hard["correct"], want)
  assert not invalid["correct"].any()


def _gradient(name, row):
  z = row.astype(np.float64)
  p = np.exp(z - z.max())
  p /= p.sum()
  lse = _definition("log_z", row)
  finite = np.where(z > -_INF, z, 0.0)
  is_max = z == z.max()
  return {
    "log_z": p,
    "z_loss": 2 * lse * p,
    "mean_logit_sq": 2 * finite / (z > -_INF).sum(),
    "max_logit_sq": 2 * z.max() * is_max / is_max.sum(),
    "entropy": -p * (finite - lse + _definition("entropy", row)),
  }[name]


def test_gradients_of_row_formulas():
  @heads.jit
  def gradients(z):
    return {
      name: jax.grad(lambda z, f=LOSSES[name]: f(z, ZEROS).sum())(z)
      for name in FORMULAS
    }

  for name, found in gradients(ROWS).items():
    want = [_gradient(name, row) for row in ROWS]
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-5, err_msg=name)


def test_second_derivatives_of_the_entropy_where_the_odds_are_even():
  z = jnp.log(jnp.array([2.0, 1.0, 1.0]))

  def entropy(z):
    return LOSSES["entropy"](z, 0)

  def plain(z):
    return -(jax.nn.softmax(z) * jax.nn.log_softmax(z)).sum()

  @heads.jit
  def derivatives(z):
    return [(jax.grad(f)(z), jax.hessian(f)(z)) for f in (entropy, plain)]

  for one, other in zip(*derivatives(z), strict=True):
    np.testing.assert_allclose(one, other, atol=3e-7)


def _exact_entropy(row):
  with mpmath.workdps(80):
    z = [mpmath.mpf(float(x)) for x in row if x > -_INF]
    total = mpmath.fsum(map(mpmath.exp, z))
    p = [mpmath.exp(x) / total for x in z]
    return float(-mpmath.fsum(x * mpmath.log(x) for x in p))


def test_entropy_of_confident_rows_in_ulp():
  """Down to the smallest normal number, where the odds are subnormal."""
  rng = np.random.default_rng(5)
  others = rng.normal(size=7)
  gaps = [-3.0, 0.0, 1.0, 5.0, 10.0, 17.0, 20.0, 40.0, 60.0, 85.0, 88.0, 90.0]
  z = np.float32([[gap + others.max(), *others] for gap in gaps])
  z = np.concatenate([z, np.float32([[g] + [0.0] + [-_INF] * 6 for g in gaps])])
  found = LOSSES["entropy"](z, np.zeros(len(z), np.int32))
  for row, value in zip(z, np.float64(found), strict=True):
    exact = _exact_entropy(row)
    # The odds are an exponential of a number that is off by 1 ulp, and the
    # entropy of the others by some ulp of their logits, about 1.
    bound = (8 + abs(float(row[0] - row[1]))) * 2.0**-24 * exact
    assert abs(value - exact) <= bound, (row, value, exact)
    assert value > 0


def test_entropy_stays_in_its_range():
  z = np.float32(
    [
      [0.0, 60.0, 1.0, -1.0],
      [0.0, 1e4, 1e4, 0.0],
      [1.0, 1e30, -1e30, 1e30],
      [0.0, 1e30, 1e30, 1e30],
    ]
  )
  found = LOSSES["entropy"](z, ZEROS[:4])
  assert (found >= 0).all()
  assert (found <= np.log(4)).all()
  # An absolute error of some ulp of 1e4.
  np.testing.assert_allclose(found[1], np.log(2), atol=2e-3)


@row_loss
def _with_z_loss(stats):
  return losses.cross_entropy.row(stats) + 1e-4 * rows.z_loss(stats)


def _plain(z, weights):
  """Cross-entropy of uniform targets on some classes, plus z-loss."""
  lse = jax.nn.logsumexp(z, axis=-1)
  return lse * weights.sum(-1) - (weights * z).sum(-1) + 1e-4 * lse**2


def test_cross_entropy_plus_z_loss():
  z = jnp.asarray(heads.FEATURES @ heads.KERNEL)
  soft = jax.nn.softmax(jnp.asarray(heads.FEATURES @ -heads.KERNEL))
  keep = np.arange(heads.ROWS) != 2
  hard = jax.nn.one_hot(heads.LABELS, heads.CLASSES)
  for labels, weights in ((heads.LABELS, hard), (soft, soft)):
    found, gradient = heads.jit(
      jax.value_and_grad(
        lambda z, y=labels: _with_z_loss(z, y, where=keep).sum()
      )
    )(z)
    want, of_plain = jax.value_and_grad(
      lambda z, w=weights: _plain(z, w)[keep].sum()
    )(z)
    np.testing.assert_allclose(found, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, of_plain, atol=1e-6)


def test_cross_entropy_plus_z_loss_fused():
  labels, keep = heads.LABELS, np.arange(heads.ROWS) != 2
  hard = jax.nn.one_hot(labels, heads.CLASSES)

  def head(h, w):
    return fused.linear_loss_sum(
      _with_z_loss, h, w, labels, where=keep, plan=fused.Plan("grad_in_forward")
    )[0]

  def dense(h, w):
    return _plain(h @ w, hard)[keep].sum()

  for one, other in zip(
    *(
      jax.tree.leaves(
        jax.value_and_grad(f, (0, 1))(heads.FEATURES, heads.KERNEL)
      )
      for f in (head, dense)
    ),
    strict=True,
  ):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)
