# SPDX-License-Identifier: Apache-2.0
"""Sums over blocks of rows against the dense losses of all logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.blocked import (
  FEATURES,
  KEEP,
  LABELS,
  PARAMS,
  RNG,
  WEIGHTS,
  D,
  N,
  V,
  assert_close,
  blocked,
  dense_logits,
  floats,
  gradients,
  head,
  loss_sum,
  matmul,
)
from support.heads import jit

from squentropy_jax import fused, losses, rows


@jit
def _compare(params, features, weights, temperature):
  """Sum and gradients in blocks of 3 and of the dense loss."""
  labels = LABELS.reshape(1, N)

  def in_blocks(params, features, weights, temperature):
    loss = functools.partial(losses.ldr_kl, temperature=temperature)
    found = blocked(
      loss, params, features, labels, weights=weights, where=KEEP[None]
    )
    # The sums are scaled by a cotangent other than 1.
    return 0.5 * found.loss

  def dense(params, features, weights, temperature):
    features = jnp.where(KEEP[None, :, None], features, FEATURES[None])
    each = losses.ldr_kl(
      head(params, features[0]),
      LABELS,
      temperature=temperature[0] if temperature.ndim else temperature,
      where=KEEP,
    )
    return 0.5 * (each * jnp.where(KEEP, weights[0], 0.0)).sum()

  arguments = params, features, weights, temperature
  return [gradients(f, *arguments) for f in (in_blocks, dense)]


@pytest.mark.parametrize("of_rows", [False, True])
def test_value_and_gradients_equal_those_of_the_dense_loss(of_rows):
  temperature = np.float32(1.5)
  if of_rows:
    temperature = np.where(KEEP, np.linspace(0.5, 2, N), np.nan)[None]
    temperature = temperature.astype(np.float32)
  features = np.where(KEEP[:, None], FEATURES, np.nan)[None]
  found, want = _compare(PARAMS, features, WEIGHTS[None], temperature)
  assert_close(found, want)
  by_features, by_weights = found[1][1:3]
  for gradient in (by_features, by_weights):
    np.testing.assert_array_equal(gradient[0, ~KEEP], 0)


def test_no_kept_row():
  def total(params, features):
    nowhere = np.zeros(N, bool)
    found = blocked(
      losses.squentropy,
      params,
      features,
      LABELS,
      where=nowhere,
      metrics={"z": rows.z_loss},
    )
    return found.loss + found.weight + found.metrics["z"]

  found = jit(functools.partial(gradients, total))(PARAMS, FEATURES * np.nan)
  for x in jax.tree.leaves(found):
    assert x.dtype == jax.dtypes.float0 or not np.any(x)
  # No row at all.
  none = functools.partial(
    gradients, lambda p, f: blocked(losses.squentropy, p, f, LABELS[:0]).loss
  )
  value, (_, by_features) = jit(none)(PARAMS, FEATURES[:0])
  assert value == 0
  assert by_features.shape == (0, D)


def test_target_distributions_and_pairs():
  ids = np.stack([LABELS, (LABELS + 2) % V, np.full(N, -7)], -1)
  p = np.float32([[0.75, 0.25, 0.0]] * N)
  whole = np.zeros((N, V), np.float32)
  np.put_along_axis(whole, ids[:, :2], p[:, :2], -1)

  @jit
  def compare(params, p, whole):
    def of_pairs(params, p):
      return blocked(losses.squentropy, params, FEATURES, (ids, p)).loss

    def of_distributions(params, whole):
      return blocked(losses.squentropy, params, FEATURES, whole).loss

    def dense(params, whole):
      return losses.squentropy(head(params, FEATURES), whole).sum()

    return (
      gradients(of_pairs, params, p),
      gradients(of_distributions, params, whole),
      gradients(dense, params, whole),
    )

  of_pairs, in_blocks, dense = compare(PARAMS, p, whole)
  assert_close(in_blocks, dense)
  assert_close((of_pairs[0], of_pairs[1][0]), (dense[0], dense[1][0]))
  # An entry of probability 0 is ignored.
  want = np.take_along_axis(np.asarray(dense[1][1]), ids[:, :2], -1)
  assert_close(of_pairs[1][1], np.pad(want, [(0, 0), (0, 1)]))


def test_metrics_are_weighted_sums_without_gradient():
  metrics = {
    "accuracy": rows.correct,
    "z": rows.z_loss,
    "scaled": lambda stats: 2 * stats.log_z,
  }

  def found(params):
    return blocked(
      losses.squentropy,
      params,
      FEATURES,
      LABELS,
      weights=WEIGHTS,
      where=KEEP,
      metrics=metrics,
    )

  @jit
  def sums_and_gradient(params):
    by_metric = jax.grad(lambda p: found(p).metrics["z"], allow_int=True)
    return found(params), by_metric(params)["kernel"]

  sums, gradient = sums_and_gradient(PARAMS)
  assert not gradient.any()
  z = dense_logits()
  log_z = np.log(np.exp(z).sum(-1))
  weights = np.where(KEEP, WEIGHTS, 0)
  assert sums._fields == ("loss", "weight", "metrics")
  np.testing.assert_allclose(sums.weight, weights.sum(), rtol=1e-6)
  want = {
    "accuracy": weights @ (z.argmax(-1) == LABELS),
    "z": weights @ log_z**2,
    "scaled": weights @ (2 * log_z),
  }
  for name, value in sums.metrics.items():
    np.testing.assert_allclose(value, want[name], rtol=1e-5, err_msg=name)


def test_metrics_see_the_logits_that_the_loss_divides():
  loss = functools.partial(losses.ldr_kl, temperature=2.0)
  found = blocked(loss, PARAMS, FEATURES, LABELS, metrics={"log_z": rows.log_z})
  z = dense_logits() / 2
  want = np.log(np.exp(z).sum(-1)).sum()
  np.testing.assert_allclose(found.metrics["log_z"], want, rtol=1e-5)
  # Or multiplies, here in a loss with a static choice.
  pairs = np.zeros(2, np.float32), np.ones(2, bool)
  loss = functools.partial(losses.unpg, negatives=pairs, scale=0.5)
  found = blocked(loss, PARAMS, FEATURES, LABELS, metrics={"log_z": rows.log_z})
  np.testing.assert_allclose(found.metrics["log_z"], want, rtol=1e-5)
  without = jax.eval_shape(lambda: blocked(loss, PARAMS, FEATURES, LABELS))
  assert without.metrics == {}


def test_head_may_close_over_traced_arrays():
  """Of floats the gradient is right, of integers there is none."""
  kernel = PARAMS["kernel"]

  def total(kernel, order, features):
    def closed(scale, block):
      return (block * scale) @ kernel[order]

    return fused.blocked_loss_sum(
      losses.squentropy, closed, jnp.float32(2), features, LABELS, block_rows=3
    ).loss

  def dense(kernel, order, features):
    return losses.squentropy(features * 2.0 @ kernel[order], LABELS).sum()

  order = np.arange(D)[::-1].copy()

  @jit
  def every(*arguments):
    # The inner jit ends before the rule of the derivative runs.
    each = (dense, total, jax.jit(total))
    return [jax.value_and_grad(f)(*arguments) for f in each]

  want, *found = every(kernel, order, FEATURES)
  for one in found:
    assert_close(one, want)


def test_features_of_any_shape_and_kind():
  tokens = RNG.integers(0, 5, (2, 3, 4))
  labels = RNG.integers(0, V, (2, 3))
  table = floats(5, V)

  def bag(table, block):
    assert block.shape == (4, 4)
    return table[block].sum(1)

  def total(table, tokens):
    return fused.blocked_loss_sum(
      losses.squentropy, bag, table, tokens, labels, block_rows=4
    ).loss

  def dense(table, tokens):
    return losses.squentropy(table[tokens].sum(2), labels).sum()

  found, want = jit(
    lambda *arguments: [gradients(f, *arguments) for f in (total, dense)]
  )(table, tokens)
  assert_close(found, want)


def test_gradients_of_narrow_parameters_are_added_in_float32():
  # 1 + 2^-8 rounds to 1 in bfloat16: a narrow sum would stall at 256.
  n = 512
  params = jnp.zeros((1, 2), jnp.bfloat16)
  features = jnp.ones((n, 1), jnp.bfloat16)
  labels = np.zeros(n, np.int32)
  gradient, by_features = jit(
    jax.grad(
      lambda p, f: (
        fused.blocked_loss_sum(
          losses.cross_entropy, matmul, p, f, labels, block_rows=1
        ).loss
      ),
      (0, 1),
    )
  )(params, features)
  assert gradient.dtype == by_features.dtype == jnp.bfloat16
  np.testing.assert_array_equal(gradient.astype(np.float32), [[-n / 2, n / 2]])


# Programs.


@functools.cache
def test_an_invalid_label_raises_or_is_nan():
  labels = np.where(np.arange(N) == 5, V, LABELS)
  with pytest.raises(ValueError, match=rf"labels\[5\] = {V} .* \[0, {V}\)"):
    blocked(losses.squentropy, PARAMS, FEATURES, labels)

  @jit
  def traced(labels, features):
    return gradients(
      lambda f: blocked(losses.squentropy, PARAMS, f, labels).loss, features
    )

  pair = np.stack([LABELS, labels], -1), np.full((N, 2), 0.5, np.float32)
  for y in (labels, pair):
    value, (by_features,) = traced(y, FEATURES)
    assert np.isnan(value)
    np.testing.assert_array_equal(
      np.isnan(by_features).all(-1), np.arange(N) == 5
    )


@pytest.mark.x64
def test_float64_stays_and_products_with_the_hessian():
  def total(kernel, features):
    return loss_sum(kernel, features, LABELS, 3)

  def dense(kernel, features):
    return losses.cross_entropy(features @ kernel, LABELS).sum()

  at = np.float64(PARAMS["kernel"]), np.float64(FEATURES)
  towards = tuple(np.cos(np.arange(x.size)).reshape(x.shape) for x in at)
  found, want = (
    jax.jvp(jax.grad(f, (0, 1)), at, towards) for f in (total, dense)
  )
  assert_close(found, want, 1e-12)


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"block_rows": 0}, ValueError, r"block_rows must be in \[1, inf\), got 0"),
    ({"block_rows": 2.0}, TypeError, "block_rows must be one int"),
    (
      {"loss": losses.dice},
      TypeError,
      "loss must be a row loss",
    ),
    (
      {"loss": functools.partial(losses.squentropy, gamma=1.0)},
      TypeError,
      "has no hyper-parameter gamma",
    ),
    ({"head_fn": None}, TypeError, "head_fn must be a function"),
    (
      {"head_fn": lambda p, x: x[None]},
      ValueError,
      r"head_fn must return logits of shape \(3, V\) .*got \(1, 3, 4\)",
    ),
    (
      {"head_fn": lambda p, x: x[:1]},
      ValueError,
      r"head_fn must return logits of shape \(3, V\)",
    ),
    (
      {"head_fn": lambda p, x: (x, x)},
      TypeError,
      "head_fn must return one array",
    ),
    (
      {"head_fn": lambda p, x: jnp.argmax(x, -1)},
      TypeError,
      "floating-point logits, got int32",
    ),
    ({"where": np.ones(N, np.float32)}, TypeError, "return sums have weights="),
    ({"where": np.ones(4, bool)}, ValueError, r"where .*batch shape \(7,\)"),
    ({"weights": KEEP}, TypeError, "Pass them as where="),
    ({"weights": np.ones((N, 1))}, ValueError, "weights must have the batch"),
    (
      {"labels": LABELS[:3]},
      ValueError,
      r"first axes of features .*\(3,\) of labels, got \(7, 4\)",
    ),
    (
      {"labels": np.ones((N, V + 1), np.float32)},
      ValueError,
      r"labels as target distributions must have the shape \(7, 6\)",
    ),
    ({"labels": KEEP}, TypeError, "labels must be class ids"),
    ({"labels": (LABELS,)}, TypeError, "pair .ids, probabilities.*1 elements"),
    (
      {"labels": (LABELS, LABELS)},
      TypeError,
      "probabilities of labels must be floating",
    ),
    (
      {"labels": (LABELS, WEIGHTS[:3])},
      ValueError,
      r"must both have the shape \(..., K\)",
    ),
    ({"metrics": [rows.z_loss]}, TypeError, "metrics must be a dict"),
    ({"metrics": {"z": "z_loss"}}, TypeError, r"metrics\['z'\] must be a row"),
    (
      {"metrics": {"z": lambda stats: stats.log_z.sum()}},
      TypeError,
      r"metrics\['z'\] must return one number for each row",
    ),
  ],
)
def test_arguments_that_do_not_fit(changes, error, message):
  arguments = {
    "loss": losses.squentropy,
    "head_fn": matmul,
    "params": PARAMS["kernel"],
    "features": FEATURES,
    "labels": LABELS,
    "block_rows": 3,
  }
  with pytest.raises(error, match=message):
    jax.eval_shape(lambda: fused.blocked_loss_sum(**(arguments | changes)).loss)


def test_class_ids_that_are_floats_raise():
  with pytest.raises(TypeError, match="integers of the batch shape"):
    fused.blocked_loss_sum(
      losses.cross_entropy,
      lambda w, h: h @ w,
      np.ones((2, 3), np.float32),
      np.ones((4, 2), np.float32),
      np.zeros(4, np.float32),
      block_rows=2,
    )


def test_gradient_by_a_number_of_python_that_the_head_closes_over():
  h, w = np.ones((4, 2), np.float32), np.eye(2, 3, dtype=np.float32)

  def total(scale):
    return fused.blocked_loss_sum(
      losses.cross_entropy,
      lambda w, h: (h @ w) * scale,
      w,
      h,
      np.zeros(4, np.int32),
      block_rows=2,
    ).loss

  dense = jax.grad(
    lambda s: losses.cross_entropy(h @ w * s, np.zeros(4, np.int32)).sum()
  )
  np.testing.assert_allclose(jax.grad(total)(2.0), dense(2.0), rtol=1e-6)
