# SPDX-License-Identifier: Apache-2.0
"""Metrics that are summed in the same pass as the loss of a linear head."""

import functools

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support import heads, programs
from support.heads import CLASSES, COTANGENT, FEATURES, KERNEL, LABELS, ROWS
from support.sharded import IN_SPECS, SPECS, mesh_of

import squentropy_jax
from squentropy_jax import fused, losses, rows

FORMULAS = {
  "log_z": rows.log_z,
  "z_loss": rows.z_loss,
  "mean_logit_sq": rows.mean_logit_sq,
  "max_logit_sq": rows.max_logit_sq,
  "accuracy": rows.correct,
  "entropy": rows.entropy,
}
BIAS = np.where(np.arange(CLASSES) == 7, -np.inf, 0.25).astype(np.float32)
KEEP = np.arange(ROWS) != 2


@squentropy_jax.row_loss
def with_z_loss(stats):
  return losses.cross_entropy.row(stats) + 1e-4 * stats.log_z**2


def expected(z, labels):
  """Every formula of logits ``[N, V]`` in float64; -inf is impossible."""
  z = np.asarray(z, np.float64)
  possible = z > -np.inf
  finite = np.where(possible, z, 0.0)
  log_z = np.log(np.exp(z).sum(-1))
  p = np.exp(z - log_z[:, None])
  target = np.take_along_axis(z, labels[:, None], -1)[:, 0]
  others = np.where(np.arange(z.shape[1]) == labels[:, None], -np.inf, z)
  return {
    "log_z": log_z,
    "z_loss": log_z**2,
    "mean_logit_sq": np.square(finite).sum(-1) / possible.sum(-1),
    "max_logit_sq": z.max(-1) ** 2,
    "accuracy": target > others.max(-1),
    "entropy": log_z - (p * finite).sum(-1),
  }


def logits(features=FEATURES, kernel=KERNEL, bias=0.0, cap=None):
  z = np.asarray(features, np.float64) @ np.asarray(kernel, np.float64) + bias
  return z if cap is None else np.where(z > -np.inf, cap * np.tanh(z / cap), z)


def assert_metrics(found, exact, weights):
  assert found.keys() == FORMULAS.keys()
  for name, x in found.items():
    assert x.dtype == np.float32
    np.testing.assert_allclose(
      x, weights @ exact[name], rtol=2e-6, atol=2e-6, err_msg=name
    )


def test_metrics_are_weighted_sums_and_change_no_gradient():
  """Of kept rows, of possible classes, of capped logits, in every mode."""
  hole = np.where(KEEP[:, None], FEATURES, np.nan)
  labels = np.where(KEEP, LABELS, -100)

  def head(mode, metrics, h, w):
    sums = fused.linear_loss_sum(
      losses.squentropy,
      h,
      w,
      labels,
      weights=COTANGENT,
      where=KEEP,
      bias=BIAS,
      soft_cap=3.0,
      plan=fused.Plan(mode, 1),
      metrics=metrics,
    )
    return sums.loss, sums

  @heads.jit
  def every(h, w):
    plain = head("forward", FORMULAS, h, w)[1]
    return plain, [
      jax.value_and_grad(functools.partial(head, mode, metrics), (0, 1), True)(
        h, w
      )
      for mode in ("grad_in_forward", "recompute")
      for metrics in (FORMULAS, None)
    ]

  weights = np.where(KEEP, COTANGENT, 0.0).astype(np.float64)
  exact = expected(logits(bias=BIAS, cap=3.0), LABELS)
  plain, found = every(hole, KERNEL)
  assert isinstance(plain, fused.LossSum)
  assert_metrics(plain.metrics, exact, weights)
  for (_, other), gradients in found:
    np.testing.assert_allclose(other.weight, weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(other.loss, plain.loss, rtol=1e-5)
    for one, two in zip(gradients, found[1][1], strict=True):
      np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
  for (_, other), _ in found[::2]:
    assert_metrics(other.metrics, exact, weights)
  for (_, other), _ in found[1::2]:
    assert other.metrics == {}


def test_metrics_have_no_gradient():
  def metric(mode, h, weights):
    return fused.linear_loss_sum(
      losses.squentropy,
      h,
      KERNEL,
      LABELS,
      weights=weights,
      metrics={"z": rows.z_loss},
      plan=fused.Plan(mode),
    ).metrics["z"]

  for mode in ("grad_in_forward", "recompute"):
    run = jax.grad(functools.partial(metric, mode), (0, 1))
    assert not any(map(np.any, run(FEATURES, np.abs(COTANGENT))))


def test_metrics_of_distributions_are_expected_values():
  ids = np.array([[k, (k + 3) % CLASSES, k, -7] for k in LABELS])
  probabilities = np.float32([[0.25, 0.5, 0.25, 0.0]] * ROWS)

  @heads.jit
  def every(h):
    return [
      fused.linear_loss_sum(
        losses.squentropy,
        h,
        KERNEL,
        (ids, probabilities),
        label_smoothing=0.1,
        metrics=FORMULAS,
        plan=fused.Plan(mode),
      ).metrics
      for mode in ("grad_in_forward", "recompute")
    ]

  one, other = (expected(logits(), ids[:, k]) for k in (0, 1))
  mean = {name: 0.5 * one[name] + 0.5 * other[name] for name in one}
  for found in every(FEATURES):
    assert_metrics(found, mean, np.ones(ROWS))


def test_a_loss_that_divides_the_logits_gives_statistics_of_divided_logits():
  """As in `blocked_loss_sum`."""
  temperature = np.float32(np.linspace(0.5, 2.0, ROWS))
  loss = functools.partial(losses.ldr_kl, temperature=temperature)

  @heads.jit
  def both(h):
    return (
      fused.linear_loss_sum(loss, h, KERNEL, LABELS, metrics=FORMULAS),
      fused.blocked_loss_sum(
        loss,
        lambda w, block: block @ w,
        KERNEL,
        h,
        LABELS,
        block_rows=4,
        metrics=FORMULAS,
      ),
    )

  exact = expected(logits() / temperature[:, None], LABELS)
  for found in both(FEATURES):
    assert isinstance(found, fused.LossSum)
    assert_metrics(found.metrics, exact, np.ones(ROWS))


# Work.


def composed(formula):
  return squentropy_jax.row_loss(
    lambda stats: (
      losses.cross_entropy.row(stats) + formula(stats).astype("float32")
    )
  )


COMPOSED = {name: composed(formula) for name, formula in FORMULAS.items()}
COMPOSED["z-loss"] = with_z_loss


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_losses_and_metrics_take_three_products(name):
  """Also all metrics at once, next to a loss that reads little of a row."""

  def head(h, w, mode, loss, metrics):
    return fused.linear_loss_sum(
      loss, h, w, LABELS, metrics=metrics, plan=fused.Plan(mode)
    )[0]

  def count(wanted, *arguments):
    f = jax.grad(lambda h, w: head(h, w, *arguments), wanted)
    return programs.products(f, FEATURES, KERNEL) / (FEATURES @ KERNEL).size

  width = FEATURES.shape[1]
  mode = "grad_in_forward"
  assert count((0, 1), mode, COMPOSED[name], None) == 3 * width
  metrics = {name: FORMULAS[name]} if name in FORMULAS else FORMULAS
  for loss in (losses.cross_entropy, losses.rescaled_square):
    assert count((0, 1), mode, loss, metrics) == 3 * width
    assert count((0, 1), "recompute", loss, metrics) == 4 * width
  # What only metrics read is not differentiated, so no product is added up.
  for chosen in ("frozen_kernel", "recompute"):
    one, other = (
      count(0, chosen, losses.cross_entropy, m) for m in (metrics, None)
    )
    assert one == other


# Meshes.

RNG = np.random.default_rng(5)
WIDE = RNG.normal(size=(16, 7)).astype(np.float32)
WIDE_KERNEL = RNG.normal(size=(7, 30)).astype(np.float32)  # Is padded.
WIDE_LABELS = RNG.integers(0, 30, 16)
WIDE_WEIGHTS = RNG.uniform(0.1, 2, 16).astype(np.float32)


def of_mode(mode, h, w, labels, weights, **settings):
  sums = fused.linear_loss_sum(
    with_z_loss,
    h,
    w,
    labels,
    weights=weights,
    metrics=FORMULAS,
    plan=fused.Plan(mode),
    **settings,
  )
  return sums.loss, sums.metrics


@pytest.mark.parametrize("mode", ["grad_in_forward", "recompute"])
def test_on_a_mesh_metrics_are_over_all_rows(mode):
  @heads.jit
  def both(h, w, labels, weights):
    run = jax.value_and_grad(of_mode, (1, 2), has_aux=True)
    on_mesh = functools.partial(of_mode, mesh=mesh_of((2, 4)), **SPECS)
    return run(mode, h, w, labels, weights), jax.value_and_grad(
      on_mesh, (1, 2), has_aux=True
    )(mode, h, w, labels, weights)

  exact = expected(logits(WIDE, WIDE_KERNEL), WIDE_LABELS)
  one, other = both(WIDE, WIDE_KERNEL, WIDE_LABELS, WIDE_WEIGHTS)
  for (_, metrics), _ in (one, other):
    assert_metrics(metrics, exact, np.float64(WIDE_WEIGHTS))
  for a, b in zip(one[1], other[1], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["grad_in_forward", "recompute"])
def test_in_an_own_shard_map_metrics_are_over_the_rows_of_the_device(mode):
  kernel, labels = WIDE_KERNEL[:, :28], WIDE_LABELS % 28

  def local(*arguments):
    run = jax.value_and_grad(
      functools.partial(of_mode, mode, **SPECS), (0, 1), has_aux=True
    )
    (_, metrics), gradients = run(*arguments)
    return jax.tree.map(lambda x: x[None], metrics), gradients

  metrics, gradients = heads.jit(
    jax.shard_map(
      local,
      mesh=mesh_of((2, 4)),
      in_specs=IN_SPECS,
      out_specs=(P("data"), (P("data"), P(None, "vocab"))),
    )
  )(WIDE, kernel, labels, WIDE_WEIGHTS)
  exact = expected(logits(WIDE, kernel), labels)
  for i in range(2):
    some = slice(8 * i, 8 * i + 8)
    assert_metrics(
      {name: x[i] for name, x in metrics.items()},
      {name: x[some] for name, x in exact.items()},
      np.float64(WIDE_WEIGHTS[some]),
    )
  assert [g.shape for g in gradients] == [WIDE.shape, kernel.shape]


# Arguments.


def test_metrics_that_do_not_fit():
  head = functools.partial(
    fused.linear_loss_sum, losses.cross_entropy, FEATURES, KERNEL, LABELS
  )
  with pytest.raises(TypeError, match="metrics must be a dict of row formulas"):
    head(metrics=rows.correct)
  with pytest.raises(TypeError, match=r"metrics\['a'\] must be a row formula"):
    head(metrics={"a": 1.0})
  with pytest.raises(TypeError, match=r"Pass its formula, squentropy\.row"):
    head(metrics={"a": losses.squentropy})
  with pytest.raises(TypeError, match=r"metrics\['a'\] must return one number"):
    head(metrics={"a": lambda stats: stats.target.sum()})
  partial = functools.partial(losses.squentropy, scale=2.0)
  with pytest.raises(TypeError, match=r"Pass its formula, squentropy\.row"):
    head(metrics={"a": partial})
  with pytest.raises(TypeError, match=r"metrics\['a'\] must return real"):
    head(metrics={"a": lambda s: jax.lax.complex(s.target, s.target)})
  with pytest.raises(TypeError, match="names that are strings, got 1"):
    head(metrics={1: rows.correct, "1": rows.z_loss})
  assert head().metrics == {}

  @jax.jit
  def step(kernel, threshold):
    def total(kernel):
      confident = {"a": lambda stats: stats.log_z > threshold}
      return head.func(*head.args[:2], kernel, LABELS, metrics=confident).loss

    return jax.grad(total)(kernel)

  with pytest.raises(TypeError, match=r"metrics\['a'\] closes over a traced"):
    step(KERNEL, 1.0)
