# SPDX-License-Identifier: Apache-2.0
"""Weights from losses and from counts; the adjustment of logits."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support import contract

from squentropy_jax import fused, losses, reweighting

STRATEGIES = ("linupper", "quadratic", "extremes", "upper")
COUNTS = np.array([900, 90, 0, 10], np.int32)
EACH = np.random.default_rng(0).gamma(2.0, size=16).astype(np.float32)


def _reference(each, strategy, temperature=1.0, delta=1.0):
  each = np.float64(each)
  low, high = each.min(), each.max()
  h = delta * (2 * each - (low + high)) / max(high - low, 1e-6)
  scores = {
    "linupper": np.minimum(h + delta, delta),
    "quadratic": 1 - h**2 / delta**2,
    "extremes": np.abs(h),
    "upper": (h + delta) / 2,
  }[strategy]
  sizes = np.exp((scores - scores.max()) / temperature)
  return sizes / sizes.sum()


@functools.cache
def _compiled(strategy):
  return contract.jit(
    functools.partial(reweighting.loss_based_weights, strategy=strategy)
  )


@pytest.mark.x64
def test_worked_numbers():
  each = np.array([0.5, 1.0, 2.0, 3.5])
  weights = functools.partial(reweighting.loss_based_weights, each)
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  linupper = [0.1276784369, 0.1781896130, 0.3470659750, 0.3470659750]
  close(weights(), linupper)
  close(weights() @ each, 2.1508916941)
  quadratic = [0.1547702315, 0.2697504292, 0.4207091078, 0.1547702315]
  close(weights(strategy="quadratic"), quadratic)
  extremes = [0.3242110343, 0.2323073573, 0.1192705741, 0.3242110343]
  close(weights(strategy="extremes"), extremes)
  sharp = [0.0361454966, 0.0831699162, 0.4403422936, 0.4403422936]
  close(weights(temperature=0.4), sharp)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_formula_and_its_limits(strategy):
  weights = _compiled(strategy)
  close = functools.partial(np.testing.assert_allclose, rtol=2e-6)
  for temperature, delta in ((1.0, 1.0), (0.01, 1.0), (0.4, 2.5)):
    got = weights(EACH, temperature=temperature, delta=delta)
    close(got.sum(), 1.0)
    want = _reference(EACH, strategy, temperature, delta)
    # The scores are divided by the temperature.
    close(got, want, rtol=1e-6 * (1 + delta / temperature), atol=1e-37)
  given = {"temperature": 1.0, "delta": 1.0}
  close(weights(EACH, **(given | {"temperature": 1e9})), np.full(16, 1 / 16))
  close(weights(np.full(16, 3.25, np.float32), **given), np.full(16, 1 / 16))
  close(weights(EACH * 8 - 4, **given), weights(EACH, **given), rtol=1e-5)
  for size in (1e-37, 1e38):
    extreme = EACH / EACH.max() * np.float32(2 * size) - np.float32(size)
    got = weights(extreme, **given)
    close(got, _reference(extreme, strategy), rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dropped_losses_are_not_part_of_the_batch(strategy):
  keep = np.arange(16) % 3 > 0
  each = np.where(keep, EACH, np.float32([np.nan, np.inf] * 8))
  got = reweighting.loss_based_weights(each, strategy=strategy, where=keep)
  alone = reweighting.loss_based_weights(EACH[keep], strategy=strategy)
  np.testing.assert_allclose(got[keep], alone, rtol=1e-6)
  np.testing.assert_array_equal(got[~keep], 0)
  none = reweighting.loss_based_weights(each, where=np.zeros(16, bool))
  np.testing.assert_array_equal(none, 0)


def test_weights_are_constants_of_the_losses_dtype_or_wider():
  def weighted(each):
    weights = reweighting.loss_based_weights(each)
    return (weights * each.astype(jnp.float32)).sum()

  grads = jax.grad(weighted)(EACH)
  np.testing.assert_array_equal(grads, reweighting.loss_based_weights(EACH))
  narrow = reweighting.loss_based_weights(jnp.bfloat16(EACH).reshape(4, 4))
  assert narrow.dtype == jnp.float32
  assert narrow.shape == (4, 4)
  by_temperature = jax.grad(
    lambda t: reweighting.loss_based_weights(EACH, temperature=t)[0]
  )
  assert by_temperature(1.0) == 0


def test_a_loss_that_is_not_finite_gives_nan():
  for bad in (np.nan, np.inf, -np.inf):
    each = np.append(EACH, np.float32(bad))
    assert np.isnan(reweighting.loss_based_weights(each)).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_over_a_mesh(strategy):
  mesh = jax.make_mesh(
    (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  # The last device has no kept loss, and another one the NaN of a dropped one.
  keep = np.arange(16) < 11
  each = np.where(keep, EACH, np.nan)

  @contract.jit
  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P("data")
  )
  def weights(each, keep):
    return reweighting.loss_based_weights(
      each, strategy=strategy, where=keep, axis_name=["data"]
    )

  got = weights(each, keep)
  want = reweighting.loss_based_weights(each, strategy=strategy, where=keep)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  np.testing.assert_array_equal(weights(each, keep & False), 0)
  if strategy == "linupper":
    each[0] = np.nan
    assert np.isnan(weights(each, keep)[keep]).all()


def test_class_weights():
  inverse = reweighting.class_weights(COUNTS)
  want = np.array([1 / 900, 1 / 90, 0, 1 / 10])
  np.testing.assert_allclose(inverse, want * 3 / want.sum(), rtol=3e-7)
  n = np.float64(COUNTS)
  for beta in (0.9, 0.999, 0.99999):
    got = reweighting.class_weights(
      COUNTS, scheme="effective_number", beta=beta
    )
    size = -np.expm1(n * np.log(beta))
    want = np.divide(1, size, where=n > 0, out=np.zeros(4))
    np.testing.assert_allclose(got, want * 3 / want.sum(), rtol=1e-6)


def test_effective_numbers_are_between_uniform_and_inverse():
  weights = functools.partial(
    reweighting.class_weights, COUNTS, scheme="effective_number"
  )
  np.testing.assert_array_equal(weights(beta=0.0), [1, 1, 0, 1])
  inverse = reweighting.class_weights(COUNTS)
  np.testing.assert_allclose(weights(beta=1 - 1e-9), inverse, rtol=2e-6)
  traced = jax.jit(lambda beta: weights(beta=beta))
  np.testing.assert_allclose(traced(0.75), weights(beta=0.75), rtol=1e-6)
  np.testing.assert_allclose(traced(0.0), weights(beta=0.0), rtol=1e-6)


def test_large_and_fractional_counts():
  counts = np.array([3_000_000_000, 1_000_000_000])
  bias = reweighting.logit_adjustment(counts)
  np.testing.assert_allclose(bias, np.log([0.75, 0.25]), rtol=1e-6)
  weights = reweighting.class_weights([0.5, 1.5])
  np.testing.assert_allclose(weights, [1.5, 0.5], rtol=1e-6)


def test_logit_adjustment():
  bias = reweighting.logit_adjustment(COUNTS)
  with np.errstate(divide="ignore"):
    want = np.log(COUNTS / 1000)
  np.testing.assert_allclose(bias, want, rtol=1e-6)
  double = reweighting.logit_adjustment(COUNTS, tau=2.0)
  np.testing.assert_allclose(double, 2 * want, rtol=1e-6)
  none = reweighting.logit_adjustment(COUNTS, tau=0.0)
  np.testing.assert_array_equal(none, [0, 0, -np.inf, 0])
  assert bias.dtype == jnp.float32


def test_adjusted_training_has_no_preference_for_frequent_classes():
  # Without features, the best biased logits are those of equal frequencies.
  counts = np.array([70, 20, 10])
  bias = reweighting.logit_adjustment(counts)
  share = counts / 100

  def risk(logits):
    return losses.cross_entropy(logits + bias, share.astype(np.float32))

  grads = jax.grad(risk)(jnp.zeros(3))
  np.testing.assert_allclose(grads, 0, atol=1e-7)


def test_adjustment_is_the_bias_of_a_fused_head():
  rng = np.random.default_rng(1)
  features = rng.normal(size=(6, 5)).astype(np.float32)
  kernel = rng.normal(size=(5, 4)).astype(np.float32)
  labels = np.array([0, 1, 3, 3, 0, 1], np.int32)
  bias = reweighting.logit_adjustment(COUNTS)

  @contract.jit
  def both(features, kernel):
    dense = losses.cross_entropy(features @ kernel + bias[None], labels)
    head = fused.linear_loss(
      losses.cross_entropy, features, kernel, labels, bias=bias
    )
    return dense, head

  dense, head = both(features, kernel)
  np.testing.assert_allclose(head, dense, rtol=1e-5)
  # The class without examples is an impossible one.
  possible = [0, 1, 3]
  alone = losses.cross_entropy(
    (features @ kernel + bias[None])[:, possible], np.array([0, 1, 2, 2, 0, 1])
  )
  np.testing.assert_allclose(head, alone, rtol=1e-5)


def test_traced_counts_out_of_range_give_nan():
  for f in (reweighting.class_weights, reweighting.logit_adjustment):
    traced = jax.jit(f)
    for counts in ([-1.0, 2.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]):
      assert np.isnan(traced(np.float32(counts))).all(), (f, counts)
    np.testing.assert_allclose(traced(COUNTS), f(COUNTS), rtol=1e-6)


def test_errors_name_the_argument():
  weights = reweighting.loss_based_weights
  with pytest.raises(ValueError, match=r"strategy must be one of .*'uniform'"):
    weights(EACH, strategy="uniform")
  for name in ("temperature", "delta"):
    with pytest.raises(ValueError, match=rf"{name} must be in \(0, inf\)"):
      weights(EACH, **{name: 0.0})
  with pytest.raises(TypeError, match="axis_name must be None, a string or a"):
    weights(EACH, axis_name=[0])
  with pytest.raises(ValueError, match=r"temperature must be a scalar, got"):
    weights(EACH, temperature=np.ones(16))
  with pytest.raises(TypeError, match="losses must be floating point"):
    weights(np.arange(3))
  with pytest.raises(ValueError, match="where must have the batch shape"):
    weights(EACH, where=np.ones(3, bool))
  for f in (reweighting.class_weights, reweighting.logit_adjustment):
    with pytest.raises(ValueError, match=r"counts\[1\] = -2"):
      f(np.array([1, -2]))
    with pytest.raises(ValueError, match="got only zeros"):
      f(np.zeros(3))
    with pytest.raises(ValueError, match=r"shape \[C\].*got \(2, 2\)"):
      f(np.ones((2, 2)))
    with pytest.raises(TypeError, match="counts must be a real number"):
      f(np.array([True, False]))
  with pytest.raises(ValueError, match="scheme must be one of"):
    reweighting.class_weights(COUNTS, scheme="sqrt")
  with pytest.raises(ValueError, match=r"beta must be in \[0, 1\)"):
    reweighting.class_weights(COUNTS, beta=1.0)
  with pytest.raises(ValueError, match=r"tau must be in \[0, inf\)"):
    reweighting.logit_adjustment(COUNTS, tau=-1.0)
