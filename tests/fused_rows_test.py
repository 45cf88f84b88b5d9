# SPDX-License-Identifier: Apache-2.0
"""Labels, shapes and statistics of linear heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import fused_settings, heads
from support.heads import (
  CLASSES,
  COTANGENT,
  FEATURES,
  KERNEL,
  LABELS,
  ROWS,
  WIDTH,
)

from squentropy_jax import fused, losses


def truth(name="squentropy", **arguments):
  return heads.truth(name, FEATURES, KERNEL, LABELS, **arguments)


@pytest.mark.parametrize(
  "dtype", ["int8", "uint8", "uint16", "int64", "int4", "uint4"]
)
def test_labels_of_any_integer_dtype(dtype):
  """Also of four bits, which cannot count as many classes as there are."""
  bias = np.where(np.arange(300) < CLASSES, 0, -np.inf).astype(np.float32)
  kernel = np.resize(KERNEL, (WIDTH, 300))
  kernel[:, :CLASSES] = KERNEL
  head = functools.partial(
    fused.linear_loss, losses.squentropy, FEATURES, kernel, bias=bias
  )
  narrow = LABELS.astype(jnp.dtype(dtype))
  pair = narrow[:, None], np.ones((ROWS, 1), np.float32)
  for labels in (narrow, jnp.asarray(narrow), pair):
    heads.assert_close(head(labels), truth().loss, truth().loss_error)


def test_invalid_label_is_nan_where_it_cannot_be_read():
  labels = np.where(np.arange(ROWS) == 2, -1, LABELS)
  where = np.ones(ROWS, bool)

  @jax.jit
  def traced(h, labels, where):
    return fused.linear_loss(losses.squentropy, h, KERNEL, labels, where=where)

  invalid = np.isnan(traced(FEATURES, labels, where))
  np.testing.assert_array_equal(invalid, np.arange(ROWS) == 2)
  gradient = jax.grad(lambda h: traced(h, labels, where).sum())(FEATURES)
  np.testing.assert_array_equal(np.isnan(gradient).all(-1), invalid)
  # Too large for int32, and not class 0 for that.
  wide = np.where(np.arange(ROWS) == 2, 2**32, LABELS)
  loss = losses.squentropy
  invalid = jax.jit(
    lambda k: fused.linear_loss(loss, FEATURES, KERNEL, wide, where=k)
  )(where)
  invalid = np.isnan(invalid)
  np.testing.assert_array_equal(invalid, np.arange(ROWS) == 2)


@pytest.mark.parametrize("invalid", [-1, CLASSES])
def test_invalid_id_of_a_pair_is_nan_where_it_cannot_be_read(invalid):
  """Also next to a valid id that it is clipped to, and with little weight."""
  ids = np.stack([LABELS, (LABELS + 3) % CLASSES, LABELS], -1)
  ids[2] = invalid, int(np.clip(invalid, 0, CLASSES - 1)), 4
  ids[3] = 1, invalid, 1
  ids[4, 1] = invalid
  probabilities = np.float32([[0.25, 0.5, 0.25]] * ROWS)
  probabilities[2, 0] = 1e-30
  probabilities[4] = 0.5, 0, 0.5

  @heads.jit
  def traced(h, ids, probabilities):
    def head(h, mode):
      loss, *_ = fused.linear_loss_sum(
        losses.squentropy,
        h,
        KERNEL,
        (ids, probabilities),
        plan=fused.Plan(mode),
      )
      return loss

    each = fused.linear_loss(losses.squentropy, h, KERNEL, (ids, probabilities))
    return each, [
      jax.grad(head)(h, mode) for mode in ("recompute", "grad_in_forward")
    ]

  each, gradients = traced(FEATURES, ids, probabilities)
  expected = np.isin(np.arange(ROWS), (2, 3))
  np.testing.assert_array_equal(np.isnan(each), expected)
  for gradient in gradients:
    np.testing.assert_array_equal(np.isnan(gradient).all(-1), expected)
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), expected)


def test_sparse_targets_are_expected_losses():
  ids = np.array([[k, (k + 3) % CLASSES, k, -7] for k in LABELS])
  probabilities = np.float32([[0.25, 0.5, 0.25, 0.0]] * ROWS)

  def head(h, w, probabilities, mode):
    return fused.linear_loss_sum(
      losses.squentropy,
      h,
      w,
      (ids, probabilities),
      weights=COTANGENT,
      plan=fused.Plan(mode),
    )[0]

  one, other = (
    heads.truth("squentropy", FEATURES, KERNEL, ids[:, k]) for k in (0, 1)
  )
  mixed = heads.Truth(*(0.5 * (a + b) for a, b in zip(one, other, strict=True)))
  exact = heads.gradients(mixed, FEATURES, KERNEL, COTANGENT)
  for mode in ("recompute", "grad_in_forward"):
    total, found = heads.jit(
      jax.value_and_grad(functools.partial(head, mode=mode), (0, 1, 2))
    )(FEATURES, KERNEL, probabilities)
    error = np.abs(COTANGENT) @ mixed.loss_error
    heads.assert_close(total, COTANGENT @ mixed.loss, error + 1e-6)
    heads.assert_close(found[0], *exact["features"])
    heads.assert_close(found[1], *exact["kernel"])
    each = np.stack([one.loss, other.loss, one.loss, 0 * one.loss], -1)
    np.testing.assert_allclose(
      found[2], COTANGENT[:, None] * each, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", fused_settings.HYPER)
def test_label_smoothing_is_a_mixture_with_all_possible_classes(name):
  bias = np.where(np.arange(CLASSES) == 7, -np.inf, 0.25).astype(np.float32)
  hyper = fused_settings.HYPER[name]

  def exact(labels):
    return heads.truth(name, FEATURES, KERNEL, labels, bias=bias, hyper=hyper)

  every = [exact(np.full(ROWS, k)) for k in range(CLASSES) if k != 7]
  mean = [sum(x) / len(every) for x in zip(*every, strict=True)]
  mixed = heads.Truth(
    *(0.9 * a + 0.1 * b for a, b in zip(exact(LABELS), mean, strict=True))
  )
  gradients = heads.gradients(mixed, FEATURES, KERNEL, np.ones(ROWS))

  def head(h, w):
    return fused.linear_loss(
      functools.partial(getattr(losses, name), **hyper),
      h,
      w,
      LABELS,
      bias=bias,
      label_smoothing=0.1,
    )

  heads.assert_close(head(FEATURES, KERNEL), mixed.loss, 2 * mixed.loss_error)
  grad = heads.jit(jax.grad(lambda *a: head(*a).sum(), (0, 1)))
  for found, array in zip(grad(FEATURES, KERNEL), gradients, strict=False):
    heads.assert_close(found, gradients[array][0], 2 * gradients[array][1])


# Shapes.


@pytest.mark.parametrize(
  "mode", ["recompute", "grad_in_forward", "frozen_kernel"]
)
def test_no_row_and_no_kept_row(mode):
  def head(h, w, labels, where):
    total, count, _ = fused.linear_loss_sum(
      losses.squentropy, h, w, labels, where=where, plan=fused.Plan(mode)
    )
    return total, count

  run = heads.jit(jax.value_and_grad(head, (0, 1), has_aux=True))
  empty = FEATURES[:0], KERNEL, LABELS[:0], None
  for arguments in (empty, (FEATURES, KERNEL, LABELS, np.zeros(ROWS, bool))):
    (total, count), found = run(*arguments)
    assert total == count == 0
    assert not any(np.any(g) for g in found)
    assert found[0].shape == arguments[0].shape


def test_leading_batch_dimensions():
  expected = truth().loss, truth().loss_error
  for batch in ((2, 3), (3, 1, 2), (6,)):
    loss = fused.linear_loss(
      losses.squentropy,
      FEATURES.reshape(*batch, WIDTH),
      KERNEL,
      LABELS.reshape(batch),
    )
    heads.assert_close(loss, *(x.reshape(batch) for x in expected))
  one = fused.linear_loss(losses.squentropy, FEATURES[0], KERNEL, 0)
  heads.assert_close(one, *(x[0] for x in expected))
  mapped = jax.vmap(fused.linear_loss, (None, 0, None, 0))(
    losses.squentropy, FEATURES, KERNEL, LABELS
  )
  heads.assert_close(mapped, *expected)


@pytest.mark.parametrize("rows", [1, 2])
def test_one_possible_class(rows):
  @jax.jit
  def head(h):
    return fused.linear_loss(
      losses.squentropy,
      h,
      KERNEL[:, :2],
      np.zeros(rows, int),
      bias=np.float32([0, -np.inf]),
    ).sum()

  loss, gradient = jax.value_and_grad(head)(FEATURES[:rows])
  assert loss == 0
  assert not np.any(gradient)


# Statistics.


def test_row_stats_and_their_gradients():
  """Classes 3 and 6 are equal, and often the largest; the lower id counts."""
  kernel = KERNEL.copy()
  kernel[:, 6] = kernel[:, 3]
  bias = np.float32([0, 0, 0, 1, 0, 0, 1, -np.inf, 0])
  z = np.float64(FEATURES) @ np.float64(kernel) + bias
  is_target = np.arange(CLASSES) == LABELS[:, None]
  rest = np.where(is_target, -np.inf, z)
  possible = rest > -np.inf
  size = np.where(possible, rest, 0.0)
  target = np.where(is_target, z, 0.0).sum(-1)
  lse = np.log(np.exp(rest).sum(-1))
  p = np.exp(rest - lse[:, None])
  largest = np.arange(CLASSES) == rest.argmax(-1)[:, None]
  mean = (p * size).sum(-1)
  expected = {
    "target": (target, is_target * 1.0),
    "log_odds": (lse - target, p - is_target),
    "rest_lse": (lse, p),
    "rest_sum": (size.sum(-1), possible * 1.0),
    "rest_sq": (np.square(size).sum(-1), 2 * size),
    "rest_max": (rest.max(-1), largest * 1.0),
    "rest_expected": (mean, p * (1 + size - mean[:, None])),
    "num_classes": (np.full(ROWS, CLASSES - 1.0), np.zeros_like(z)),
  }
  assert np.any((rest == rest.max(-1, keepdims=True)).sum(-1) > 1)

  @heads.jit
  def both(h, w):
    def of(mode):
      stats, pull = jax.vjp(
        lambda *a: fused.linear_row_stats(
          *a, LABELS, bias=bias, plan=fused.Plan(mode)
        ),
        h,
        w,
      )
      each = np.eye(len(stats), dtype=h.dtype)[..., None] * COTANGENT
      return stats, jax.vmap(lambda c: pull(type(stats)(*c)))(each)

    return {mode: of(mode) for mode in ("recompute", "frozen_kernel")}

  for mode, (stats, (by_features, by_kernel)) in both(FEATURES, kernel).items():
    for i, (name, (value, gradient)) in enumerate(expected.items()):
      np.testing.assert_allclose(getattr(stats, name), value, 1e-5, 1e-6)
      g = COTANGENT[:, None] * gradient
      np.testing.assert_allclose(by_features[i], g @ kernel.T, 1e-5, 1e-5)
      g = g if mode == "recompute" else 0 * g
      np.testing.assert_allclose(by_kernel[i], FEATURES.T @ g, 1e-5, 1e-5)


def test_formula_of_a_user():
  """A margin loss and a z-loss from one pass."""

  def loss(h):
    stats = fused.linear_row_stats(h, KERNEL, LABELS)
    margin = jnp.maximum(0.0, 1.0 + stats.rest_max - stats.target)
    return (margin + jnp.logaddexp(stats.target, stats.rest_lse) ** 2).sum()

  z = np.float64(FEATURES) @ KERNEL
  is_target = np.arange(CLASSES) == LABELS[:, None]
  margin = (
    1
    + np.where(is_target, -np.inf, z).max(-1)
    - np.where(is_target, z, 0).sum(-1)
  )
  exact = np.maximum(0, margin) + np.square(np.log(np.exp(z).sum(-1)))
  np.testing.assert_allclose(loss(FEATURES), exact.sum(), rtol=1e-6)


# Modes.


def mode_run(caplog, f, *arguments):
  """The mode in the last line; a trace may log another one first."""
  jax.clear_caches()
  caplog.clear()
  with caplog.at_level("DEBUG", logger="squentropy_jax"):
    jax.eval_shape(f, *arguments)
  return caplog.records[-1].args[1]


def test_mode_is_chosen_by_what_is_differentiated(caplog):
  def each(loss, h, w):
    return fused.linear_loss(loss, h, w, LABELS).sum()

  def total(h, w):
    return fused.linear_loss_sum(losses.squentropy, h, w, LABELS)[0]

  def tight(h, w, labels):
    return fused.linear_loss_sum(
      losses.squentropy, h, w, labels, plan=fused.Plan(None, 1)
    )[0]

  for loss in (losses.squentropy, losses.cross_entropy):
    f = functools.partial(each, loss)
    assert mode_run(caplog, f, FEATURES, KERNEL) == "forward"
    assert mode_run(caplog, jax.grad(f), FEATURES, KERNEL) == "frozen_kernel"
    assert mode_run(caplog, jax.grad(f, 1), FEATURES, KERNEL) == "recompute"
    assert (
      mode_run(caplog, jax.grad(f, (0, 1)), FEATURES, KERNEL) == "recompute"
    )
  assert mode_run(caplog, total, FEATURES, KERNEL) == "forward"
  assert (
    mode_run(caplog, jax.grad(total), FEATURES, KERNEL) == "grad_in_forward"
  )
  # Few rows kept at a time would make every product small.
  many = np.tile(FEATURES, (200, 1)), KERNEL, np.tile(LABELS, 200)
  assert mode_run(caplog, jax.grad(tight, (0, 1)), *many) == "recompute"


def test_log_says_which_mode_and_how_much_memory(caplog):
  loss = losses.squentropy
  head = functools.partial(fused.linear_loss, loss, labels=LABELS)
  assert mode_run(caplog, head, FEATURES, KERNEL) == "forward"
  (record,) = caplog.records
  assert record.message == (
    "without a gradient: mode forward, 6 rows by 9 classes in tiles of 6 by 9, "
    "about 0.0 MiB"
  )


def test_forward_mode_refuses_a_gradient():
  def head(h):
    loss = losses.squentropy
    plan = fused.Plan("forward")
    return fused.linear_loss(loss, h, KERNEL, LABELS, plan=plan).sum()

  head(FEATURES)
  with pytest.raises(ValueError, match="mode='forward' computes no gradient"):
    jax.grad(head)(FEATURES)


def test_sums_of_micro_batches_add_up():
  def head(w, rows):
    total, count, _ = fused.linear_loss_sum(
      losses.squentropy,
      FEATURES[rows],
      w,
      LABELS[rows],
      weights=np.abs(COTANGENT)[rows],
    )
    return total, count

  @heads.jit
  def every(w):
    run = jax.value_and_grad(head, has_aux=True)
    return [run(w, slice(*ends)) for ends in ((None,), (0, 2), (2, None))]

  at_once, *parts = every(KERNEL)
  added = jax.tree.map(jnp.add, *parts)
  for one, other in zip(
    jax.tree.leaves(at_once), jax.tree.leaves(added), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
