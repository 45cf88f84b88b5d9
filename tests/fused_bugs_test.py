# SPDX-License-Identifier: Apache-2.0
"""Faults of other linear heads, one test each."""

import functools

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest
from support import heads
from support.heads import CLASSES, COTANGENT, FEATURES, KERNEL, LABELS, ROWS

from squentropy_jax import fused, losses

U = 2.0**-24


def truth(name="squentropy", **arguments):
  return heads.truth(name, FEATURES, KERNEL, LABELS, **arguments)


@pytest.mark.parametrize("mode", ["recompute", "grad_in_forward"])
def test_cotangent_scales_both_gradients(mode):
  def head(h, w, factor):
    total, *_ = fused.linear_loss_sum(
      losses.squentropy, h, w, LABELS, plan=fused.Plan(mode)
    )
    return factor * total

  grad = heads.jit(jax.grad(head, (0, 1)))
  one, other = (grad(FEATURES, KERNEL, f) for f in (1.0, 1024.0))
  for a, b in zip(one, other, strict=True):
    np.testing.assert_array_equal(1024.0 * a, b)


@pytest.mark.parametrize("mode", ["recompute", "grad_in_forward"])
def test_cotangent_may_be_a_number_of_python(mode):
  _, pull = jax.vjp(
    lambda h: fused.linear_loss_sum(
      losses.squentropy, h, KERNEL, LABELS, plan=fused.Plan(mode)
    )[0],
    FEATURES,
  )
  np.testing.assert_array_equal(pull(-2.0)[0], pull(jnp.float32(-2))[0])
  exact = heads.gradients(truth(), FEATURES, KERNEL, np.full(ROWS, -2.0))
  heads.assert_close(pull(-2.0)[0], *exact["features"])


def test_cotangent_of_each_row_comes_before_rows_are_summed():
  _, pull = jax.vjp(
    lambda w: fused.linear_loss(losses.squentropy, FEATURES, w, LABELS), KERNEL
  )
  expected = heads.gradients(truth(), FEATURES, KERNEL, COTANGENT)
  heads.assert_close(pull(jnp.asarray(COTANGENT))[0], *expected["kernel"])


@pytest.mark.parametrize("classes", [100, 129, 300])
def test_no_column_of_padding_counts(classes):
  """With all logits near -100 a padded logit of 0 would be the largest."""
  features = np.ones((2, 1), np.float32)
  kernel = np.linspace(-100, -101, classes, dtype=np.float32)[None]
  labels = np.array([0, classes - 1])
  exact = heads.truth("squentropy", features, kernel, labels)
  for budget in (None, 1):
    loss = fused.linear_loss(
      losses.squentropy, features, kernel, labels, plan=fused.Plan(None, budget)
    )
    heads.assert_close(loss, exact.loss, exact.loss_error)


@pytest.mark.parametrize(
  "mode", ["frozen_kernel", "recompute", "grad_in_forward"]
)
def test_one_is_taken_off_the_probability_before_it_is_rounded(mode):
  """With p = 0.9966 in bfloat16, p - 1 would be -0.00390625, not -0.0034."""
  kernel = jnp.eye(2, dtype=jnp.bfloat16)
  features = jnp.array([[5.6875, 0.0]], jnp.bfloat16)
  found = heads.jit(
    jax.grad(
      lambda h: fused.linear_loss_sum(
        losses.cross_entropy, h, kernel, np.array([0]), plan=fused.Plan(mode)
      )[0]
    )
  )(features)
  miss = 1 / (1 + np.exp(5.6875))
  np.testing.assert_allclose(
    np.float64(found), [[-miss, miss]], rtol=2**-8 + 2**-16
  )


def test_confident_loss_is_positive_and_accurate():
  kernel = np.eye(3, dtype=np.float32)
  features = np.float32([[30.0, 0.25, -1.0], [60.0, 0.5, 0.0]])
  loss = fused.linear_loss(
    losses.cross_entropy, features, kernel, np.zeros(2, int)
  )
  exact = np.exp(np.float64(features[:, 1:])).sum(-1)
  exact *= np.exp(-np.float64(features[:, 0]))
  # Rounding the exponent, near 60, costs 60 half ulp; all else a few.
  np.testing.assert_allclose(loss, exact, rtol=70 * U)


def test_square_of_the_target_is_left_out_not_subtracted():
  """Trained heads: a target of 20, the others some thousandths."""
  others = np.float32(1e-3) * np.arange(1, 10, dtype=np.float32)
  kernel = np.concatenate([np.float32([20.0]), others])[None]
  stats = fused.linear_row_stats(
    np.ones((1, 1), np.float32), kernel, np.array([0])
  )
  exact = np.square(np.float64(others)).sum()
  np.testing.assert_allclose(stats.rest_sq, [exact], rtol=12 * U)


def test_backward_products_have_narrow_operands():
  """A float32 cotangent would widen the kernel, and make products slow."""
  h, w = jnp.bfloat16(FEATURES), jnp.bfloat16(KERNEL)

  def dots(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == "dot_general":
        yield tuple(v.aval.dtype.name for v in eqn.invars)
      for inner in core.jaxprs_in_params(eqn.params):
        yield from dots(inner)

  for mode, count in {
    "recompute": 4,
    "grad_in_forward": 3,
    "frozen_kernel": 2,
  }.items():

    def head(h, w, mode=mode):
      loss = losses.cross_entropy
      return fused.linear_loss_sum(loss, h, w, LABELS, plan=fused.Plan(mode))[0]

    wanted = 0 if mode == "frozen_kernel" else (0, 1)
    found = list(dots(jax.make_jaxpr(jax.grad(head, wanted))(h, w).jaxpr))
    assert found == [("bfloat16", "bfloat16")] * count


def test_mean_of_narrow_inputs_is_as_accurate_as_float32():
  rng = np.random.default_rng(2)
  h = jnp.bfloat16(rng.normal(size=(256, 64)))
  w = jnp.bfloat16(rng.normal(size=(64, 1000)) / 8)
  labels = rng.integers(0, 1000, 256)
  exact = heads.truth("squentropy", h, w, labels).loss.mean()
  total, count, _ = fused.linear_loss_sum(losses.squentropy, h, w, labels)
  assert total.dtype == count.dtype == jnp.float32
  np.testing.assert_allclose(total / count, exact, rtol=1e-6)


def test_dropped_rows_give_exactly_nothing():
  """Whatever they hold: NaN features, no label, an infinite weight."""
  features, labels = FEATURES.copy(), LABELS.copy()
  features[1], labels[1] = np.nan, -100
  features[3], labels[3] = np.inf, CLASSES
  where = np.arange(ROWS) != 1
  weights = np.where(np.arange(ROWS) == 3, 0, 1).astype(np.float32)
  weights[1] = np.inf

  def head(h, w, weights, mode):
    total, count, _ = fused.linear_loss_sum(
      losses.squentropy,
      h,
      w,
      labels,
      where=where,
      weights=weights,
      plan=fused.Plan(mode),
    )
    return total, count

  kept = where & (weights != 0)
  exact = heads.gradients(truth(), FEATURES, KERNEL, kept.astype(float))
  for mode in ("recompute", "grad_in_forward"):
    run = heads.jit(
      jax.value_and_grad(functools.partial(head, mode=mode), (0, 1, 2), True)
    )
    (total, count), found = run(features, KERNEL, weights)
    assert float(count) == kept.sum()
    np.testing.assert_allclose(total, truth().loss[kept].sum(), rtol=1e-5)
    heads.assert_close(found[0], *exact["features"])
    heads.assert_close(found[1], *exact["kernel"])
    assert not np.any(found[0][~kept])
    by_weight = np.where(kept, truth().loss, 0.0)
    heads.assert_close(found[2], by_weight, truth().loss_error * kept)


@pytest.mark.parametrize("mode", ["recompute", "grad_in_forward"])
def test_many_blocks_of_rows_add_up_in_full_precision(mode):
  """In bfloat16 a sum no longer grows after 256 equal terms."""
  rows = 512 * 128  # The smallest block has 128 rows.
  features = jnp.ones((rows, 1), jnp.bfloat16)
  kernel = jnp.zeros((1, 3), jnp.bfloat16)

  @heads.jit
  def gradient_of(w):
    return jax.grad(
      lambda w: fused.linear_loss_sum(
        losses.cross_entropy,
        features,
        w,
        np.zeros(rows, int),
        plan=fused.Plan(mode, 1),
      )[0]
    )(w)

  gradient = gradient_of(kernel)
  exact = rows * np.array([[-2, 1, 1]]) / 3
  np.testing.assert_allclose(np.float64(gradient), exact, rtol=2**-8 + 2**-16)


def test_largest_class_is_the_lowest_of_equal_ones_of_all_tiles():
  def largest(w):
    stats = fused.linear_row_stats(
      np.ones((2, 1), np.float32), w, np.array([0, 1]), plan=fused.Plan(None, 1)
    )
    return stats.rest_max.sum()

  gradient = heads.jit(jax.grad(largest))(np.ones((1, 300), np.float32))
  np.testing.assert_array_equal(gradient[0, :3], [1, 1, 0])
  assert gradient.sum() == 2


def test_smoothed_loss_of_an_impossible_target_is_infinite():
  bias = np.where(np.arange(CLASSES) == LABELS[0], -np.inf, 0)

  def head(name, h, smoothing):
    loss = getattr(losses, name)
    return fused.linear_loss(
      loss,
      h,
      KERNEL,
      LABELS,
      bias=bias.astype(np.float32),
      label_smoothing=smoothing,
    )

  for name in ("cross_entropy", "squentropy", "rescaled_square"):
    plain, smoothed = (head(name, FEATURES, s) for s in (0.0, 0.1))
    assert plain[0] == smoothed[0] == np.inf
    assert np.isfinite(smoothed[1:]).all()
    _, pull = jax.vjp(functools.partial(head, name), FEATURES, 0.1)
    by_features, by_smoothing = pull(jnp.ones(ROWS).at[0].set(0.0))
    assert np.isfinite(by_features[1:]).all()
    assert np.isfinite(by_smoothing)


def test_kernel_of_eight_bits_is_kept_in_full_precision():
  """Gradients of a mean over many rows are below what eight bits can hold."""
  rows = 100 * ROWS
  features, labels = np.tile(FEATURES, (100, 1)), np.tile(LABELS, 100)
  kernel = jnp.asarray(KERNEL, jnp.float8_e4m3fn)

  def mean(w, mode):
    total, count, _ = fused.linear_loss_sum(
      losses.squentropy, features, w, labels, plan=fused.Plan(mode)
    )
    return total / count

  found = heads.jit(jax.grad(functools.partial(mean, mode="grad_in_forward")))(
    kernel
  )
  weights = np.full(rows, 1 / rows)
  exact = heads.truth("squentropy", features, np.float64(kernel), labels)
  value, error = heads.gradients(exact, features, kernel, weights)["kernel"]
  error += float(jnp.finfo(kernel.dtype).smallest_subnormal)
  heads.assert_close(found, value, error)


# Logits that are not finite, and finite ones that are huge, as a dense loss
# takes them.

WIDE = np.resize(KERNEL, (KERNEL.shape[0], 300))


def assert_as_dense(
  loss, kernel=WIDE, bias=0.0, modes=("recompute", "grad_in_forward")
):
  """Value and gradient by the features, in three tiles of classes."""
  bias = np.broadcast_to(np.float32(bias), (300,))

  def dense(h):
    return loss(h @ kernel + bias[None], LABELS).sum()

  def head(h, mode):
    return fused.linear_loss_sum(
      loss, h, kernel, LABELS, bias=bias, plan=fused.Plan(mode, 1)
    )[0]

  @heads.jit
  def every(h):
    return jax.value_and_grad(dense)(h), [
      jax.value_and_grad(functools.partial(head, mode=mode))(h)
      for mode in modes
    ]

  (total, gradient), others = every(FEATURES)
  for found in others:
    np.testing.assert_allclose(found[0], total, rtol=1e-5)
    if not np.isnan(total):
      np.testing.assert_allclose(found[1], gradient, rtol=1e-4, atol=1e-5)
  return others[0]


@pytest.mark.parametrize("at", [20, 290])
def test_nan_of_any_tile_stays(at):
  kernel = WIDE.copy()
  kernel[:, at] = np.nan
  total, gradient = assert_as_dense(losses.crammer_singer, kernel)
  assert np.isnan(total)
  assert np.isnan(gradient).all()


@pytest.mark.parametrize("size", [-1e9, -1e30, np.finfo(np.float32).min])
def test_huge_finite_bias_is_no_mask(size):
  bias = np.where(np.arange(300) == 150, np.float32(size), 0)
  for loss in (losses.squentropy, losses.rescaled_square):
    assert_as_dense(loss, bias=bias, modes=("recompute", "frozen_kernel"))


@pytest.mark.parametrize(
  "loss",
  [
    losses.rescaled_square,
    losses.unhinged,
    losses.taylor_softmax,
    losses.spherical_softmax,
    losses.cross_entropy,
  ],
  ids=lambda loss: loss.__name__,
)
def test_infinite_logit_has_no_loss(loss):
  bias = np.where(np.arange(300) == 150, np.inf, 0)
  total, gradient = assert_as_dense(loss, bias=bias)
  assert np.isnan(total)
  assert np.isnan(gradient).all()


@pytest.mark.parametrize("mode", ["recompute", "grad_in_forward"])
def test_gradient_of_float32_weights_from_bfloat16_products(mode):
  """Fault 14: a cast outside of the head rounds the gradient to bfloat16."""
  kernel = KERNEL * np.float32(1.1)

  def head(h, w, **settings):
    return fused.linear_loss_sum(
      losses.squentropy, h, w, LABELS, plan=fused.Plan(mode), **settings
    )[0]

  narrow = jnp.bfloat16(FEATURES), jnp.bfloat16(kernel)
  total, found = heads.jit(
    jax.value_and_grad(
      functools.partial(head, compute_dtype=jnp.bfloat16), (0, 1)
    )
  )(FEATURES, kernel)
  exact = heads.truth("squentropy", *narrow, LABELS)
  expected = heads.gradients(exact, *narrow, np.ones(ROWS), cast=2.0**-8)
  np.testing.assert_allclose(total, exact.loss.sum(), rtol=1e-5)
  for name, gradient in zip(("features", "kernel"), found, strict=True):
    assert gradient.dtype == jnp.float32
    heads.assert_close(gradient, *expected[name])
    # Not rounded to bfloat16 at the end.
    assert np.any(gradient != jnp.bfloat16(gradient).astype(jnp.float32))
