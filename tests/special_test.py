# SPDX-License-Identifier: Apache-2.0
"""Two-pass log-sum-exp and softmax, and the sums that they are made of."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from support.contract import jit

from squentropy_jax import special
from squentropy_jax._core import scaled_sums

DTYPES = [np.float32, pytest.param(np.float64, marks=pytest.mark.x64)]
INF, NAN = np.inf, np.nan
RNG = np.random.default_rng(11)


def softmax_and_lse(x):
  return special.two_pass_softmax(x), special.two_pass_logsumexp(x)


both = jit(softmax_and_lse)
# Optimised: products and sums become one rounded operation where they can.
optimized = jax.jit(softmax_and_lse)
in_blocks = jit(
  lambda x, axis, block: scaled_sums.log(
    scaled_sums.sum_in_blocks(x, axis, block)
  ),
  static_argnums=(1, 2),
)
scaled_exp = jit(special.scaled_exp)
add = jit(special.scaled_add)


@jit
def derivatives(x, direction):
  """Gradients of log-sum-exp and of a weighted softmax, and a second one."""

  def weighted(x):
    return (direction * special.two_pass_softmax(x)).sum()

  def lse(x):
    return special.two_pass_logsumexp(x).sum()

  return (
    jax.grad(lse)(x),
    jax.grad(weighted)(x),
    jax.jvp(jax.grad(lse), (x,), (direction,))[1],
  )


@functools.cache
def rows(dtype):
  """Rows of 60 logits in +-1e4, close to each other and far from it."""
  found = []
  for size in (1.0, 10.0, 100.0, 1e3, 1e4):
    for spread in (1.0, 30.0, size):
      centre = RNG.uniform(-size, size, (2, 1))
      found.append(centre + spread * RNG.uniform(-1.0, 1.0, (2, 60)))
  return np.clip(np.concatenate(found), -1e4, 1e4).astype(dtype)


def true_values(row):
  """Softmax and log-sum-exp in 60 digits."""
  with mpmath.workdps(60):
    exps = [mpmath.exp(mpmath.mpf(float(z))) for z in row]
    total = mpmath.fsum(exps)
    return [e / total for e in exps], mpmath.log(total)


def ulp(x, dtype):
  return float(np.spacing(dtype(x)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_within_their_ulp(dtype):
  x = rows(dtype)
  for row, softmax, lse in zip(x, *optimized(x), strict=True):
    true_softmax, true_lse = true_values(row)
    error = abs(float(mpmath.mpf(float(lse)) - true_lse))
    assert error <= 2 * ulp(max(abs(float(true_lse)), 1.0), dtype)
    for p, true in zip(softmax, true_softmax, strict=True):
      if true < np.finfo(dtype).tiny:
        assert p <= 2 * np.finfo(dtype).tiny
      else:
        error = abs(float(mpmath.mpf(float(p)) - true))
        assert error <= 4 * ulp(float(true), dtype)


def test_errors_of_many_probabilities():
  """Five ulp are the bound, and more than four are rare."""
  centre = RNG.uniform(-100.0, 100.0, (20_000, 1))
  x = (centre + RNG.uniform(-40.0, 40.0, (20_000, 10))).astype(np.float32)
  exps = np.exp(np.float64(x) - x.max(1, keepdims=True))
  true = exps / exps.sum(1, keepdims=True)
  errors = np.abs(optimized(x)[0] - true) / np.spacing(np.float32(true))
  assert errors.max() < 5
  assert np.mean(errors > 4) < 1e-4


def test_a_long_row_is_added_up_as_a_tree():
  x = RNG.uniform(-3.0, 3.0, (1, 131_072 + 5)).astype(np.float32)
  exact = np.exp(np.float64(x)).sum()
  softmax, lse = optimized(x)
  assert abs(float(lse[0]) - np.log(exact)) <= 2 * ulp(
    np.log(exact), np.float32
  )
  true = np.exp(np.float64(x)) / exact
  assert (np.abs(softmax - true) <= 4 * np.spacing(np.float32(true))).all()


def test_pairs_of_published_numbers():
  x = jnp.array([100.0, 101.0, 99.0, -50.0])
  mantissa, exponent = scaled_exp(x)
  np.testing.assert_array_equal(exponent, [144, 146, 143, -72])
  np.testing.assert_allclose(
    mantissa,
    [1.2053934153, 0.8191497542, 0.8868789120, 0.9108263636],
    rtol=2e-7,
  )
  pairs = [(mantissa[i], exponent[i]) for i in range(4)]
  total = functools.reduce(add, pairs)
  np.testing.assert_allclose(total, [1.2313579720469, 146], rtol=2e-7)
  softmax, lse = both(x)
  np.testing.assert_allclose(lse, 101.40760596444439, rtol=2e-7)
  np.testing.assert_allclose(
    softmax, [0.2447284711, 0.6652409558, 0.0900305732, 0.0], rtol=3e-7
  )


@pytest.mark.x64
def test_published_numbers_in_float64():
  x = np.array([100.0, 101.0, 99.0, -50.0])
  softmax, lse = both(x)
  np.testing.assert_allclose(lse, 101.40760596444439, rtol=1e-15)
  np.testing.assert_allclose(
    softmax[:3], [0.2447284711, 0.6652409558, 0.0900305732], atol=1e-10
  )


# The sum of pairs.


@jit
def folded(x, split):
  """The sum of a row, part before ``split`` and part after, merged."""

  def fold(keep):
    mantissa, exponent = special.scaled_exp(jnp.where(keep, x, -jnp.inf))
    return lax.reduce(
      (mantissa, exponent),
      (jnp.zeros((), x.dtype), jnp.array(-jnp.inf, x.dtype)),
      special.scaled_add,
      (0,),
    )

  before = jnp.arange(x.size) < split
  return special.scaled_add(fold(before), fold(~before))


@pytest.mark.parametrize("size", [1.0, 50.0, 1e4])
def test_any_order_and_any_split_gives_the_same_sum(size):
  x = RNG.uniform(-size, size, 12).astype(np.float32)
  exact = true_values(x)[1]
  for split in range(13):
    mantissa, exponent = folded(RNG.permutation(x), split)
    with mpmath.workdps(60):
      found = mpmath.log(float(mantissa)) + float(exponent) * mpmath.log(2)
      # The error of one exponential, and half an ulp for each addition.
      assert abs(found - exact) < 16 * 2.0**-24


def test_the_sum_is_commutative_and_has_a_neutral_element():
  a = scaled_exp(jnp.array([3.0, -900.0, 7.0, -INF]))
  b = scaled_exp(jnp.array([3.5, 800.0, -INF, -INF]))
  for x, y in zip(add(a, b), add(b, a), strict=True):
    np.testing.assert_array_equal(x, y)
  for neutral in (-INF, 0.0, 1e6):
    zero = (jnp.zeros(4), jnp.full(4, neutral))
    for x, y in zip(add(a, zero), a, strict=True):
      np.testing.assert_array_equal(x, y)


def test_powers_of_2_are_exact():
  exponents = np.arange(-130, 1)
  found = np.float64(jit(scaled_sums.power_of_2)(jnp.float32(exponents)))
  true = np.where(exponents < -126, 0.0, 2.0**exponents)
  np.testing.assert_array_equal(found, true)


def test_derivatives_of_pairs():
  def lse(x):
    pairs = special.scaled_exp(x)
    mantissa, exponent = special.scaled_add(
      (pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1])
    )
    return jnp.log(mantissa) + exponent * jnp.log(2.0)

  x = jnp.array([100.0, 101.0])
  expected = 1 / (1 + np.exp([1.0, -1.0]))
  np.testing.assert_allclose(jit(jax.grad(lse))(x), expected, rtol=1e-5)


# Infinities, NaN and large numbers.


def test_infinities_and_nan():
  x = jnp.array(
    [
      [-INF, 1.0, 1.0],
      [-INF, -INF, -INF],
      [INF, 1.0, -INF],
      [INF, INF, 0.0],
      [NAN, 1.0, INF],
      [NAN, -INF, -INF],
      [2e4, -2e4, -INF],
    ]
  )
  softmax, lse = both(x)
  expected = [1.0 + np.log(2.0), -INF, INF, INF, NAN, NAN, 2e4]
  np.testing.assert_allclose(lse, expected, rtol=2e-7)
  expected = [[0.0, 0.5, 0.5], *[[NAN] * 3] * 5, [1.0, 0.0, 0.0]]
  np.testing.assert_allclose(softmax, expected, rtol=2.0**-23)
  mantissa, exponent = scaled_exp(x[:, 0])
  np.testing.assert_array_equal(mantissa[:5], [0, 0, INF, INF, NAN])
  assert exponent[0] == exponent[1] == -INF


def test_numbers_of_any_size():
  largest = float(np.finfo(np.float32).max)
  x = np.float32(
    [
      [1e8, 1e8 - 8],
      [3e7, 3e7 - 2],
      [2e9, 2e9 - 128],
      [-1e30, -1e30],
      [-1e30, 5.0],
      [-largest, -largest],
      [largest, 0.0],
    ]
  )
  softmax, lse = both(x)
  gap = x[:, 1].astype(np.float64) - x[:, 0]
  expected = 1 / (1 + np.exp(np.minimum(gap, 700)))
  np.testing.assert_allclose(softmax[:, 0], expected, rtol=1e-6, atol=1e-40)
  np.testing.assert_allclose(lse[:5], np.max(x[:5], 1), rtol=3e-7)


# Arguments.


def test_where_leaves_out_numbers_whatever_they_are():
  x = jnp.array([[1.0, NAN, 2.0], [INF, 3.0, -1.0], [NAN, INF, NAN]])
  keep = np.array([[True, False, True], [False, True, True], [False] * 3])

  def totals(x):
    softmax = special.two_pass_softmax(x, where=keep)
    lse = special.two_pass_logsumexp(x, where=keep)
    return (softmax**2).sum() + jnp.where(lse == -INF, 0.0, lse).sum(), (
      softmax,
      lse,
    )

  gradient, (softmax, lse) = jit(jax.grad(totals, has_aux=True))(x)
  kept = np.where(keep, x, -INF)
  expected = np.exp(kept[:2]) / np.exp(kept[:2]).sum(-1, keepdims=True)
  np.testing.assert_allclose(softmax[:2], expected, rtol=5e-7)
  np.testing.assert_array_equal(softmax[2], np.zeros(3))
  np.testing.assert_allclose(
    lse, [*np.log(np.exp(kept[:2]).sum(-1)), -INF], rtol=5e-7
  )
  np.testing.assert_array_equal(gradient[~keep], np.zeros(5))
  assert np.isfinite(gradient).all()
  assert (np.asarray(gradient)[keep] != 0).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_axis(axis):
  x = RNG.normal(size=(3, 4, 5)).astype(np.float32)
  softmax, lse = jit(
    lambda x: (
      special.two_pass_softmax(x, axis),
      special.two_pass_logsumexp(x, axis),
    )
  )(x)
  total = np.exp(x).sum(axis)
  expected = np.exp(x) / np.expand_dims(total, axis)
  np.testing.assert_allclose(softmax, expected, rtol=1e-6)
  np.testing.assert_allclose(lse, np.log(total), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  ("shape", "axis", "block"),
  [
    ((7, 50), 1, 16),  # Parts of a row.
    ((7, 50), 1, 100),  # Two rows, and one that is in two blocks.
    ((5, 33, 3), 1, 24),
    ((2, 3, 40), 2, 240),
  ],
)
def test_blocks_change_only_the_order_of_the_sum(shape, axis, block):
  x = RNG.uniform(-90.0, 90.0, shape).astype(np.float32)
  expected = np.log(np.exp(np.float64(x)).sum(axis, keepdims=True))
  np.testing.assert_allclose(in_blocks(x, axis, block), expected, rtol=3e-7)


def test_the_form_without_blocks_has_the_same_values():
  x = rows(np.float32)
  whole = jit(
    lambda x: scaled_sums.log(scaled_sums.sum_of(scaled_sums.exp(x), 1))
  )
  np.testing.assert_allclose(whole(x)[:, 0], both(x)[1], rtol=3e-7, atol=3e-7)


def test_empty_arrays():
  assert special.two_pass_softmax(jnp.zeros((0, 3))).shape == (0, 3)
  np.testing.assert_array_equal(
    special.two_pass_logsumexp(jnp.zeros((2, 0))), [-INF, -INF]
  )


def test_bfloat16_is_widened_and_its_gradient_is_not():
  x = jnp.array([3.0, -2.0, 200.0, 200.5], jnp.bfloat16)
  softmax, lse = both(x)
  assert softmax.dtype == lse.dtype == np.float32
  wide = both(x.astype(jnp.float32))
  np.testing.assert_array_equal(softmax, wide[0])
  np.testing.assert_array_equal(lse, wide[1])
  gradient = jax.eval_shape(jax.grad(special.two_pass_logsumexp), x)
  assert gradient.dtype == jnp.bfloat16
  assert jax.eval_shape(special.scaled_exp, x)[0].dtype == np.float32


# Transformations.


def test_derivatives_are_those_of_the_softmax():
  x, direction = RNG.normal(size=(2, 4, 5)).astype(np.float32) * 3
  lse, softmax, second = derivatives(x, direction)
  z = np.float64(x)
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  expected = p * (direction - (p * direction).sum(-1, keepdims=True))
  np.testing.assert_allclose(lse, p, rtol=2e-6)
  np.testing.assert_allclose(softmax, expected, rtol=2e-5, atol=1e-6)
  np.testing.assert_allclose(second, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.x64
def test_finite_differences():
  x, direction = RNG.normal(size=(2, 3, 5)) * 3
  step = 1e-6
  up, down = both(x + step * direction), both(x - step * direction)
  first, _, second = derivatives(x, direction)
  np.testing.assert_allclose(
    (first * direction).sum(-1), (up[1] - down[1]) / (2 * step), rtol=1e-7
  )
  np.testing.assert_allclose(
    second, (up[0] - down[0]) / (2 * step), rtol=1e-6, atol=1e-9
  )


def test_vmap_equals_rows():
  x = RNG.normal(size=(3, 5, 4)).astype(np.float32)
  mapped = jit(jax.vmap(softmax_and_lse))(x)
  for actual, expected in zip(mapped, both(x), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=5e-7, atol=2e-7)


def test_shards_of_the_classes_merge_without_a_maximum():
  mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  x = RNG.uniform(-500.0, 500.0, (2, 12)).astype(np.float32)

  def local(z):
    pair = special.scaled_exp(z)
    parts = [(pair[0][:, i], pair[1][:, i]) for i in range(z.shape[1])]
    pair = functools.reduce(special.scaled_add, parts)
    every = [lax.all_gather(part, "x") for part in pair]
    parts = [(every[0][i], every[1][i]) for i in range(4)]
    mantissa, exponent = functools.reduce(special.scaled_add, parts)
    return scaled_sums.log((mantissa, exponent)), special.two_pass_softmax(z)

  program = jit(
    jax.shard_map(
      local,
      mesh=mesh,
      in_specs=jax.P(None, "x"),
      out_specs=(jax.P(), jax.P(None, "x")),
      check_vma=False,
    )
  )
  lse, softmax = program(x)
  np.testing.assert_allclose(
    lse, np.log(np.exp(np.float64(x)).sum(-1)), rtol=3e-7
  )
  np.testing.assert_allclose(softmax.sum(-1), [4.0, 4.0], rtol=1e-6)
  text = program.lower(x).as_text()
  assert "all_gather" in text
  assert "all_reduce" not in text


def test_blocks_inside_shard_map(monkeypatch):
  monkeypatch.setattr(scaled_sums, "BLOCK", 8)
  mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  x = RNG.normal(size=(6, 20)).astype(np.float32)
  sharded = jit(
    jax.shard_map(
      lambda z: special.two_pass_logsumexp(z),
      mesh=mesh,
      in_specs=jax.P("x"),
      out_specs=jax.P("x"),
    )
  )
  np.testing.assert_allclose(
    sharded(x), np.log(np.exp(np.float64(x)).sum(-1)), rtol=3e-7
  )


# Errors.


def test_errors_name_the_argument():
  x = jnp.zeros((2, 3))
  for function in (special.two_pass_softmax, special.two_pass_logsumexp):
    with pytest.raises(TypeError, match="x must be floating"):
      function(jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match="x must have a class axis"):
      function(jnp.float32(1.0))
    with pytest.raises(ValueError, match="axis must be in"):
      function(x, 2)
    with pytest.raises(TypeError, match="where must be boolean"):
      function(x, where=jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"where must have the shape of x"):
      function(x, where=jnp.ones(3, bool))
  with pytest.raises(TypeError, match="x must be floating"):
    special.scaled_exp(jnp.arange(3))
  pair = special.scaled_exp(x)
  with pytest.raises(ValueError, match="b must be a pair"):
    special.scaled_add(pair, x)
  with pytest.raises(ValueError, match="one shape"):
    special.scaled_add(pair, (pair[0][0], pair[1][0]))
  with pytest.raises(TypeError, match=r"a\[1\] must be floating"):
    special.scaled_add((x, x.astype(jnp.int32)), pair)
