# SPDX-License-Identifier: Apache-2.0
"""Attention without softmax: values, limits, masks, gradients, Flax, memory."""

import functools
import itertools

from flax import linen, nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import contract

from squentropy_jax import attention

EPS = np.finfo(np.float32).eps
close = functools.partial(np.testing.assert_allclose, rtol=0)
softplus_attention = contract.jit(
  attention.softplus_attention, static_argnames="is_causal"
)
softmax_free_attention = contract.jit(
  attention.softmax_free_attention, static_argnames=("normalize", "num_iters")
)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def weights_of(q, k, *, seen, power=None, offset_start=3):
  """The weights of one head in float64, row by row, from the definition."""
  q, k = (np.float64(x) for x in (q, k))
  found = np.zeros((len(q), len(k)))
  for i, row in enumerate(q):
    keys = k[seen[i]]
    n = len(keys)
    if n == 0:
      continue
    cosines = keys @ row / np.linalg.norm(row) / np.linalg.norm(keys, axis=1)
    a = np.log1p(np.exp(np.log(q.shape[1]) * np.log(n) * cosines))
    a /= a.sum()
    if power is not None:
      a = np.maximum(n * a - (n > offset_start), 0) ** power
      a /= a.sum()
    found[i, seen[i]] = a
  return found


def kernel(x, y):
  square = ((np.float64(x)[:, None] - np.float64(y)) ** 2).sum(-1)
  return np.exp(-square / (2 * np.sqrt(x.shape[1])))


# Values.


@pytest.mark.x64
def test_worked_numbers_of_softplus_attention():
  q = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 1, 0], [1.0, 1, 1, 1]])
  k = q[:, ::-1] + 0.1 * np.arange(4)[:, None]
  q, k, eye = (x[:, None, :] for x in (q, k, np.eye(4)))
  of_row = [0.1875383867, 0.2560063237, 0.2560063237, 0.3004489658]
  weights = softplus_attention(q, k, eye, is_causal=True)[:, 0]
  close(weights[3], of_row, atol=1e-10)
  np.testing.assert_array_equal(weights[0], [1, 0, 0, 0])
  weights = softplus_attention(q, k, eye, is_causal=True, power=3.0)[:, 0]
  expected = [
    [0.0468391037, 0.2581568558, 0.6950040404, 0],
    [0, 0.0016819227, 0.0016819227, 0.9966361545],
  ]
  close(weights[2:], expected, atol=1e-10)


@pytest.mark.x64
def test_worked_numbers_of_softmax_free_attention():
  q = np.array([[0.0, 0], [1, 0], [0, 1]])[:, None]
  of = functools.partial(
    softmax_free_attention, q, np.eye(3)[:, None], landmarks=q[:2]
  )
  s, t = 0.7021885013, 0.4930686914
  found = np.asarray(of(normalize=False)[:, 0])
  close(found, [[1, s, s], [s, 1, t], [s, t, t]], atol=1e-10)
  found = np.asarray(of(normalize=True)[:, 0])
  close(found[0, :2], [0.5874790008, 0.4125209992], atol=1e-10)
  close(found[2, 2], 0.2896675022, atol=1e-10)


@pytest.mark.parametrize("power", [None, 1.0, 3.0])
def test_heads_groups_and_masks_agree_with_the_definition(power):
  q, k, v = normal(2, 5, 4, 3), normal(2, 6, 2, 3, seed=1), normal(2, 6, 2, 7)
  mask = np.random.default_rng(3).random((2, 4, 5, 6)) < 0.7
  mask[1, 2, 3] = False  # A row that sees no key.
  for seen, is_causal in ((mask, False), (mask, True), (mask[:, :1], False)):
    hyper = {} if power is None else {"power": power}
    actual = softplus_attention(
      q, k, v, mask=seen, is_causal=is_causal, offset_start=2, **hyper
    )
    if is_causal:
      seen = np.tril(seen)
    seen = np.broadcast_to(seen, mask.shape)
    for b, h in np.ndindex(2, 4):
      weights = weights_of(
        q[b, :, h],
        k[b, :, h // 2],
        seen=seen[b, h],
        power=power,
        offset_start=2,
      )
      close(actual[b, :, h], weights @ v[b, :, h // 2], atol=40 * EPS)
  np.testing.assert_array_equal(
    softplus_attention(q, k, v, mask=mask, **hyper)[1, 3, 2], 0
  )


# Limits of softplus attention.


def test_power_from_one_to_large():
  q, k = normal(6, 1, 4), normal(8, 1, 4, seed=1)
  eye = np.eye(8, dtype=np.float32)[:, None]
  plain = softplus_attention(q, k, eye)[:, 0]
  # Without an offset, a power of 1 changes nothing.
  identity = softplus_attention(q, k, eye, power=1.0, offset_start=8)[:, 0]
  close(identity, plain, atol=4 * EPS)
  hard = np.asarray(softplus_attention(q, k, eye, power=1e5)[:, 0])
  np.testing.assert_array_equal(
    hard, np.eye(8)[np.asarray(plain).argmax(axis=-1)]
  )


def test_uniform_rows_stay_uniform():
  # Of one direction: the cosines are equal up to rounding errors.
  k = normal(1, 1, 33) * np.linspace(1, 3, 65, dtype=np.float32)[:, None, None]
  q = np.concatenate([normal(5, 1, 33, seed=1), np.zeros((1, 1, 33))])
  q = q.astype(np.float32)
  eye = np.eye(65, dtype=np.float32)[:, None]
  for hyper in ({}, {"power": 15.0}):
    close(softplus_attention(q, k, eye, **hyper), 1 / 65, atol=20 * EPS / 65)

  def total(k):
    return (attention.softplus_attention(q, k, eye, power=15.0) ** 2).sum()

  grads = contract.jit(jax.grad(total))
  assert np.isfinite(grads(np.zeros_like(k))).all()


def test_size_of_queries_and_keys_does_not_matter():
  q, k, v = normal(4, 1, 3), normal(5, 1, 3, seed=1), normal(5, 1, 3, seed=2)
  expected = softplus_attention(q, k, v, power=2.0)
  for size in (2.0**-60, 2.0**60):
    actual = softplus_attention(q * np.float32(size), k, v, power=2.0)
    np.testing.assert_array_equal(actual, expected)


# Limits of softmax-free attention, and the inverse.


def test_queries_as_landmarks_give_the_exact_kernel():
  q, v = normal(6, 1, 4) * 2, normal(6, 1, 3, seed=1)
  actual = softmax_free_attention(q, v, landmarks=q, normalize=False)
  # The inverse amplifies rounding errors by its condition.
  close(actual[:, 0], kernel(q[:, 0], q[:, 0]) @ v[:, 0], atol=200 * EPS)
  same = np.repeat(q[:1], 5, axis=0)
  actual = softmax_free_attention(same, v[:5], landmarks=q[:1])
  close(actual, np.broadcast_to(v[:5].sum(0), actual.shape), atol=20 * EPS)


def test_close_points_far_from_the_origin_have_accurate_distances():
  q = normal(6, 1, 4)
  far = q + np.float32(2.0**12)
  q = far - np.float32(2.0**12)
  v = normal(6, 1, 3, seed=1)
  near, moved = (
    softmax_free_attention(x, v, landmarks=x[:2]) for x in (q, far)
  )
  np.testing.assert_array_equal(near, moved)


def test_equal_landmarks_act_as_one():
  q, v = normal(6, 1, 4), normal(6, 1, 3, seed=1)
  once, twice = (
    softmax_free_attention(q, v, landmarks=x, normalize=False)
    for x in (q[:3], np.repeat(q[:3], 2, axis=0))
  )
  close(twice, once, atol=100 * EPS)


@pytest.mark.x64
def test_inverse_converges_at_the_condition_of_the_card():
  basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
  a = (basis * np.geomspace(1, 1 / 239, 8)) @ basis.T
  # The 1-norm exceeds the largest eigenvalue, which costs up to two iterations.
  found = attention.newton_schulz_inverse(a, num_iters=22)
  close(found @ a, np.eye(8), atol=1e-11)
  # Neither symmetric nor of an ordinary size, and of a batch.
  batch = np.stack([a @ np.triu(np.ones((8, 8))), a * 1e200, a * 1e-200])
  found = attention.newton_schulz_inverse(batch, num_iters=40)
  close(found @ batch, np.broadcast_to(np.eye(8), batch.shape), atol=1e-9)
  # A matrix with equal row sums, for which the bound itself does not do.
  s = np.array([[1, 0.7], [0.7, 1]])
  found = attention.newton_schulz_inverse(s)
  close(found, np.linalg.inv(s), atol=1e-14)
  np.testing.assert_array_equal(attention.newton_schulz_inverse(0 * s), 0)


# Masks.


def test_padding_changes_nothing():
  q, k, v = (normal(1, 6, 2, 3, seed=i) for i in range(3))
  keep = np.arange(6)[None] < 4

  def padded(x, fill):
    return np.where(keep[..., None, None], x, np.float32(fill))

  @contract.jit
  def grads(q, k, v):
    def total(q, k, v):
      out = attention.softplus_attention(
        q, k, v, mask=jnp.asarray(keep)[:, None, None], power=3.0
      )
      free = attention.softmax_free_attention(
        q,
        v,
        landmarks=attention.average_landmarks(q, 3, where=keep),
        where=keep,
      )
      # Padded queries of softplus attention read keys as others do.
      return (out[:, :4] ** 2).sum() + (free**2).sum(), (out[:, :4], free)

    return jax.grad(total, (0, 1, 2), has_aux=True)(q, k, v)

  results = [
    grads(padded(q, 0), padded(k, fill), padded(v, fill))
    for fill in (0.0, np.nan, np.inf, 1e30)
  ]
  for result in results[1:]:
    jax.tree.map(np.testing.assert_array_equal, result, results[0])
  by_array, (out, free) = results[0]
  for grad in by_array[1:]:
    np.testing.assert_array_equal(grad[:, 4:], 0)
  np.testing.assert_array_equal(free[:, 4:], 0)
  short = [x[:, :4] for x in (q, k, v)]
  close(out, softplus_attention(*short, power=3.0), atol=10 * EPS)
  landmarks = attention.average_landmarks(short[0], 3)
  expected = softmax_free_attention(short[0], short[2], landmarks=landmarks)
  close(free[:, :4], expected, atol=100 * EPS)


def test_dropped_tokens_of_softmax_free_attention_may_be_nan():
  q, v = normal(6, 1, 3), normal(6, 1, 2, seed=1)
  keep = np.array([True, False, True, True, False, True])
  landmarks = attention.average_landmarks(q, 2, where=keep)
  kept = q[keep]
  close(landmarks[:, 0], [kept[:2, 0].mean(0), kept[2:, 0].mean(0)], atol=EPS)
  expected = softmax_free_attention(q[keep], v[keep], landmarks=landmarks)
  q[~keep], v[~keep] = np.nan, np.inf
  np.testing.assert_array_equal(
    attention.average_landmarks(q, 2, where=keep), landmarks
  )
  out = softmax_free_attention(q, v, landmarks=landmarks, where=keep)
  close(out[keep], expected, atol=20 * EPS)
  np.testing.assert_array_equal(out[~keep], 0)
  # No token at all.
  none = np.zeros(6, bool)
  landmarks = attention.average_landmarks(q, 2, where=none)
  np.testing.assert_array_equal(landmarks, 0)
  out = softmax_free_attention(q, v, landmarks=landmarks, where=none)
  np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize(("tokens", "num"), [(7, 3), (12, 4), (5, 5), (9, 1)])
def test_landmarks_are_means_of_segments(tokens, num):
  q = normal(tokens, 2, 3)
  borders = np.arange(num + 1) * tokens // num
  expected = [q[a:b].mean(0) for a, b in itertools.pairwise(borders)]
  close(attention.average_landmarks(q, num), expected, atol=4 * EPS)


def test_numbers_that_are_no_mask():
  q = normal(1, 3, 1, 2)
  bias = np.where(np.tri(3), 0, -np.inf)[None, None].astype(np.float32)
  with pytest.raises(ValueError, match="mask must be True or 1 where"):
    attention.softplus_attention(q, q, q, mask=bias)
  out = softplus_attention(q, q, q, mask=bias)
  np.testing.assert_array_equal(np.isnan(out[0, :, 0, 0]), [True, True, False])
  ones = np.tri(3)[None, None]
  expected = softplus_attention(q, q, q, is_causal=True)
  for dtype in (np.float32, np.int32, bool):
    actual = softplus_attention(q, q, q, mask=ones.astype(dtype))
    np.testing.assert_array_equal(actual, expected)


def test_nan_reaches_the_output():
  q, v = normal(4, 1, 3), normal(4, 1, 3, seed=1)
  q[2] = np.nan
  for hyper in ({}, {"power": 3.0}):
    out = softplus_attention(q, v, v, **hyper)
    np.testing.assert_array_equal(
      np.isnan(out[:, 0, 0]), [False, False, True, False]
    )
    assert np.isnan(softplus_attention(v, q, v, **hyper)).all()
  assert np.isnan(softmax_free_attention(q, v, landmarks=v[:2])[2]).all()


# Gradients, dtypes and transformations.


def check_derivatives(function, *arguments):
  """First and second derivatives in one direction, against differences."""
  rng = np.random.default_rng(9)
  direction = [rng.normal(size=np.shape(x)) for x in arguments]
  of_output = rng.normal(size=jax.eval_shape(function, *arguments).shape)

  def total(*arguments):
    return (function(*arguments) * of_output).sum()

  numbers = tuple(range(len(arguments)))
  value = contract.jit(total)
  both = contract.jit(
    lambda *a: jax.jvp(jax.grad(total, numbers), a, tuple(direction))
  )
  step = 1e-5
  up, down = (
    [x + sign * step * d for x, d in zip(arguments, direction, strict=True)]
    for sign in (1, -1)
  )
  first, second = both(*arguments)
  along = sum(np.sum(x * d) for x, d in zip(first, direction, strict=True))
  close((value(*up) - value(*down)) / (2 * step), along, atol=1e-7, rtol=1e-7)
  for after, before, found in zip(
    both(*up)[0], both(*down)[0], second, strict=True
  ):
    close((after - before) / (2 * step), found, atol=1e-6, rtol=1e-6)


@pytest.mark.x64
def test_derivatives_are_those_of_differences():
  q, k, v = (np.float64(normal(5, 2, 3, seed=i)) for i in range(3))
  check_derivatives(
    functools.partial(attention.softplus_attention, is_causal=True), q, k, v
  )
  check_derivatives(
    lambda q, k, v, power: attention.softplus_attention(q, k, v, power=power),
    q,
    k,
    v,
    np.float64(2.5),
  )
  # Enough iterations: the derivative is that of the inverse.
  check_derivatives(
    lambda q, v, ridge: attention.softmax_free_attention(
      q, v, landmarks=attention.average_landmarks(q, 2), ridge=ridge
    ),
    q,
    v,
    np.float64(0.1),
  )
  a = np.eye(3) + 0.1 * np.float64(normal(3, 3))
  check_derivatives(attention.newton_schulz_inverse, a)


def test_bfloat16_with_power_15():
  shape = (1, 256, 1, 64)
  q, k, v = (
    jnp.asarray(normal(*shape, seed=i), jnp.bfloat16) for i in range(3)
  )

  def total(q, k, v):
    out = attention.softplus_attention(q, k, v, is_causal=True, power=15.0)
    return out.astype(jnp.float32).sum(), out

  both = contract.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))
  (_, out), grads = both(q, k, v)
  assert out.dtype == jnp.bfloat16
  wide = [np.asarray(x, np.float32)[0, :, 0] for x in (q, k, v)]
  seen = np.tri(256, dtype=bool)
  expected = weights_of(*wide[:2], seen=seen, power=15.0) @ np.float64(wide[2])
  close(np.float64(out[0, :, 0]), expected, atol=2e-4, rtol=2.0**-8)
  for grad in grads:
    assert grad.dtype == jnp.bfloat16
    assert jnp.isfinite(grad).all()
  free = softmax_free_attention(q, v, landmarks=k[:, :2])
  assert free.dtype == jnp.bfloat16


def test_vmap_is_the_batch():
  q, k, v = (normal(3, 4, 2, 5, seed=i) for i in range(3))
  np.testing.assert_array_equal(
    jax.vmap(softplus_attention)(q, k, v), softplus_attention(q, k, v)
  )
  landmarks = attention.average_landmarks(q, 2)
  close(
    jax.vmap(lambda *x: softmax_free_attention(*x[:2], landmarks=x[2]))(
      q, v, landmarks
    ),
    softmax_free_attention(q, v, landmarks=landmarks),
    atol=10 * EPS,
  )


# Flax.

lssar = functools.partial(attention.softplus_attention, power=3.0)


def test_attention_fn_of_nnx():
  x = normal(2, 5, 6)
  layer = nnx.MultiHeadAttention(
    num_heads=2,
    in_features=6,
    decode=False,
    attention_fn=lssar,
    rngs=nnx.Rngs(0),
  )
  mask = nnx.make_causal_mask(x[..., 0])

  @contract.jit
  def both(x):
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    expected = layer.out(lssar(q, k, v, is_causal=True))
    return layer(x, mask=mask), layer(x, is_causal=True), expected

  out, causal, expected = both(x)
  close(out, expected, atol=10 * EPS)
  close(causal, expected, atol=10 * EPS)

  @nnx.capture(nnx.Intermediate)
  def recorded(layer):
    return layer(x, mask=mask, sow_weights=True)

  _, found = recorded(layer)
  (weights,) = found["attention_weights"]
  assert weights.shape == (2, 2, 5, 5)
  close(weights.sum(-1), 1.0, atol=4 * EPS)
  layer.dropout_rate = 0.1
  close(layer(x, mask=mask, deterministic=True), out, atol=10 * EPS)
  with pytest.raises(ValueError, match="dropout_rate must be 0 in training"):
    layer(x, mask=mask, deterministic=False, rngs=nnx.Rngs(0))


def test_attention_fn_of_linen():
  x = normal(2, 5, 6)
  layer = linen.MultiHeadDotProductAttention(2, attention_fn=lssar)
  mask = linen.make_causal_mask(x[..., 0])
  params = layer.init(jax.random.key(0), x, mask=mask)
  out, found = layer.apply(
    params, x, mask=mask, sow_weights=True, mutable=["intermediates"]
  )
  assert out.shape == x.shape
  (weights,) = found["intermediates"]["attention_weights"]
  close(weights.sum(-1), 1.0, atol=4 * EPS)
  np.testing.assert_array_equal(np.triu(weights, 1), 0)
  active = layer.copy(dropout_rate=0.1)
  with pytest.raises(ValueError, match="dropout_rate must be 0 in training"):
    active.apply(
      params,
      x,
      mask=mask,
      deterministic=False,
      rngs={"dropout": jax.random.key(1)},
    )


# Memory.


def test_memory_of_softmax_free_attention_is_linear():
  def total(q, v, where):
    landmarks = attention.average_landmarks(q, 64, where=where)
    out = attention.softmax_free_attention(
      q, v, landmarks=landmarks, where=where
    )
    return (out**2).sum()

  tokens = 16384
  shape = jax.ShapeDtypeStruct((tokens, 1, 64), np.float32)
  where = jax.ShapeDtypeStruct((tokens,), bool)
  gradients = jax.jit(jax.grad(total, (0, 1)))
  compiled = gradients.lower(shape, shape, where).compile()
  used = compiled.memory_analysis().temp_size_in_bytes
  # Eight arrays of T x m numbers, 32 MiB; the kernel itself would take 1 GiB.
  assert used <= 8 * 4 * tokens * 64


# Arguments.


def test_bad_arguments_are_named():
  q = jnp.zeros((2, 4, 2, 3))

  def raises(kind, match, function, *args, **kwargs):
    with pytest.raises(kind, match=match):
      function(*args, **kwargs)

  of = functools.partial(raises, ValueError)
  softplus = attention.softplus_attention
  raises(TypeError, "key must be floating", softplus, q, q.astype(int), q)
  of(r"query must have the shape \[..., T, N, H\]", softplus, q[0, 0], q, q)
  of(r"key must have the shape \[2, S, K, 3\]", softplus, q, q[..., :2], q)
  of(r"value must have the shape \[2, 4, 2, D\]", softplus, q, q, q[:, :3])
  three = jnp.zeros((2, 4, 3, 3))
  of("key must have a number of heads that", softplus, q, three, three)
  of("mask must broadcast to", softplus, q, q, q, mask=jnp.ones((4, 4)))
  of("mask must broadcast to", softplus, q, q, q, mask=q[:, :3] > 0)
  of(r"power must be in \[1, inf\)", softplus, q, q, q, power=0.5)
  of("offset_start must be in", softplus, q, q, q, offset_start=-1)
  of("dropout_rate must be 0", softplus, q, q, q, dropout_rate=0.5)
  raises(TypeError, "is_causal must be", softplus, q, q, q, is_causal=None)
  free = functools.partial(attention.softmax_free_attention, q)
  few = q[:, :2]
  of(r"value must have the shape \[2, 4, 2, D\]", free, few, landmarks=few)
  of(r"landmarks must have the shape \[2, m", free, q, landmarks=few[..., :2])
  of("ridge must be in", free, q, landmarks=few, ridge=-1.0)
  of("num_iters must be in", free, q, landmarks=few, num_iters=0)
  raises(TypeError, "normalize must be", free, q, landmarks=few, normalize=1)
  keep = np.ones((2, 4))
  raises(TypeError, "where must be", free, q, landmarks=few, where=keep)
  of("where must have", free, q, landmarks=few, where=np.ones(4, bool))
  means = attention.average_landmarks
  of("num must be at most the number of tokens 4", means, q, 5)
  of("num must be in", means, q, 0)
  raises(TypeError, "num must be one int", means, q, 1.5)
  of("landmarks must be one point or more", free, q, landmarks=q[:, :0])
  of("a must have the shape", attention.newton_schulz_inverse, q[..., :0, :0])
  raises(TypeError, "dtype must be", softplus, q, q, q, dtype=jnp.int32)
  of("a must have the shape", attention.newton_schulz_inverse, jnp.ones((2, 3)))
