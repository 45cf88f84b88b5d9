# SPDX-License-Identifier: Apache-2.0
"""Metrics equal their definitions; their edges and arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.calibration_metrics import (
  ADAPTIVE,
  ECE,
  FUNCTIONS,
  METRICS,
  NUM_BINS,
  ONE_OF_EACH_KIND,
  assert_close,
  brier,
  classwise,
  compiled,
  data,
  evaluate,
  every_metric,
  jit,
  risk,
)

from squentropy_jax import calibration


@pytest.mark.parametrize("kind", ["random", "grid", "saturated", "few"])
def test_metrics_meet_their_definitions(kind):
  p, y = data(kind)
  got = evaluate(p, y)
  for name, (_, definition) in METRICS.items():
    # Some tens of ulp of numbers up to 1 (the NLL: up to 70). For the smooth
    # error see its docstring.
    atol = {"smooth": 1e-4, "nll": 7e-5}.get(name, 2e-6)
    np.testing.assert_allclose(
      got[name], definition(p, y), atol=atol, rtol=0, err_msg=name
    )


@pytest.mark.x64
def test_metrics_in_float64():
  p, y = data("random")
  # Also with more rows and classes than one block.
  wide = np.asarray(p[np.arange(1500) % 257], np.float64)
  wide = np.concatenate([wide, np.zeros((1500, 1100))], -1)
  labels = y[np.arange(1500) % 257]
  for x, ids in ((p.astype(np.float64), y), (wide, labels)):
    for name, value in compiled(x, ids).items():
      assert value.dtype == np.float64
      atol = {"smooth": 1e-4, "nll": 1e-6}.get(name, 1e-12)
      want = METRICS[name][1](x, ids)
      np.testing.assert_allclose(value, want, atol=atol, err_msg=name)


def test_dropped_rows_and_the_order_of_rows_change_nothing():
  p, y = data("random")
  assert_close(compiled(p, y), evaluate(p, y))
  p, y = data("grid")  # Full of ties.
  order = np.random.default_rng(0).permutation(len(p))
  assert_close(evaluate(p[order], y[order]), evaluate(p, y))


def test_without_a_row_the_value_is_nan():
  empty = np.zeros((0, 4), np.float32), np.zeros((0,), np.int32)
  for value in (evaluate(*empty), jit(every_metric)(*empty)):
    for name in METRICS:
      assert np.isnan(value[name]), name


def test_invalid_rows_raise_or_give_nan():
  p, y = data("few")
  for label in (4, -1):
    labels = np.array([0, 1, label, 0, 1], np.int32)
    for name, metric in FUNCTIONS.items():
      with pytest.raises(ValueError, match=r"labels\[2\]"):
        metric(p, labels)
      assert np.isnan(evaluate(p, labels)[name]), name
  for row in (
    [0.5, np.nan, 0.2, 0.3],
    [-3, 0.5, 0.2, 0.1],  # Logits, negative or not.
    [0.9, 0.1, 0.3, 0.5],
    [0.9, 0.9, 0, 0],
    [0, 0, 0, 0],
  ):
    invalid = p.copy()
    invalid[3] = row
    value = evaluate(invalid, y)
    for name in set(METRICS) - {"nll"}:  # The test clips its inputs.
      if name not in ("accuracy", "top2") or np.isnan(row[1]):
        assert np.isnan(value[name]), name
      else:  # These take any score.
        assert np.isfinite(value[name]), name


def test_labels_of_every_integer_type():
  z = np.zeros((3, 300), np.float32)
  z[:, 200] = 1
  for dtype in (np.int8, np.uint8, np.int16, np.uint32):
    labels = np.array([0, 100, 127], dtype)
    assert jit(calibration.accuracy)(z, labels) == 0
  # Wider ones are not narrowed before they are checked, whatever is traced.
  for label in (2**32 + 200, 2**32, -(2**32)):
    labels = np.array([label, 0, 0], np.int64)
    for where in (None, np.ones(3, bool)):
      if where is not None:
        traced = jit(
          lambda w, labels=labels: calibration.accuracy(z, labels, where=w)
        )
        assert np.isnan(traced(where))
      with pytest.raises(ValueError, match=r"labels\[0\]"):
        calibration.accuracy(z, labels, where=where)
  labels = np.array([200, 0, 200], np.uint8)
  np.testing.assert_allclose(calibration.accuracy(z, labels), 2 / 3)


def test_arguments_are_checked():
  p, y = data("few")
  bin_stats = calibration.bin_stats
  with pytest.raises(TypeError, match="labels must be integer"):
    bin_stats(p, y.astype(np.float32))
  with pytest.raises(ValueError, match="batch shape"):
    bin_stats(p, y[:3])
  with pytest.raises(ValueError, match="where must"):
    bin_stats(p, y, where=np.ones(p.shape, bool))
  with pytest.raises(TypeError, match="where must be boolean"):
    bin_stats(p, y, where=np.ones(y.shape, np.int32))
  with pytest.raises(TypeError, match="probabilities must be floating"):
    bin_stats(p > 0.5, y)
  with pytest.raises(ValueError, match="num_bins"):
    bin_stats(p, y, num_bins=0)
  with pytest.raises(TypeError, match="num_bins"):
    bin_stats(p, y, num_bins=10.0)
  with pytest.raises(ValueError, match="norm"):
    ADAPTIVE(p, y, norm=0.5)
  with pytest.raises(ValueError, match="k must"):
    calibration.top_k_accuracy(p, y, k=5)
  with pytest.raises(ValueError, match="as many bins"):
    calibration.merge(bin_stats(p, y), bin_stats(p, y, num_bins=3))
  stats = bin_stats(p, y)
  stacked = jax.tree.map(lambda x: jnp.stack([x, x]), stats)
  with pytest.raises(ValueError, match=r"\(2, 15\) and \(15,\)"):
    calibration.merge(stacked, stats)
  for f in (
    ECE,
    calibration.maximum_calibration_error,
    calibration.debiased_calibration_error,
    calibration.plots.reliability_diagram,
  ):
    with pytest.raises(TypeError, match="stats must be a BinStats"):
      f(p)
  with pytest.raises(TypeError, match="a must be a BinStats"):
    calibration.merge(p, p)
  with pytest.raises(TypeError, match="b must be a BinStats"):
    calibration.merge(stats, p)
  with pytest.raises(TypeError, match="curve must be a RiskCoverage"):
    calibration.plots.risk_coverage(p)


def test_only_hits_only_misses_and_one_class():
  p = np.zeros((3, 4), np.float32)
  p[:, 0], p[:, 1] = [0.9, 0.8, 0.7], [0.1, 0.2, 0.3]
  # The gap is 1 - c for hits and c for misses: means of .1 .2 .3, .9 .8 .7.
  value = evaluate(p, np.zeros(3, np.int32))
  for name in ("ece", "adaptive", "smooth"):
    np.testing.assert_allclose(value[name], 0.2, atol=1e-6)
  np.testing.assert_allclose(value["mce"], 0.3, atol=1e-6)
  assert value["aurc"] == 0
  assert value["accuracy"] == 1
  assert np.isnan(value["auroc"])
  value = evaluate(p, np.ones(3, np.int32))
  for name in ("ece", "adaptive", "smooth"):
    np.testing.assert_allclose(value[name], 0.8, atol=1e-6)
  assert value["aurc"] == 1
  assert value["e-aurc"] == 0
  assert np.isnan(value["auroc"])


def test_narrow_types_equal_their_widened_values():
  p, y = data("random")
  # Probabilities in bfloat16 sum to 1 only roughly, and are valid.
  narrow = jnp.asarray(p, jnp.bfloat16)
  want = compiled(np.asarray(narrow.astype(jnp.float32)), y)
  names = [
    name for name in ONE_OF_EACH_KIND if name != "nll"
  ]  # The test rounds its inputs.
  got = jit(functools.partial(every_metric, names=names))(narrow, y)
  for name in names:
    assert got[name].dtype == jnp.float32, name
    np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_rounded_probabilities_are_valid(dtype):
  # As a network gives them: exponentials, sum and quotient in a narrow type.
  for c, scale in ((3, 0.0), (3, 4.0), (1000, 0.1), (100_000, 1.0)):
    z = scale * jax.random.normal(jax.random.key(c), (4, c))
    z = (z - z.max(-1, keepdims=True)).astype(dtype)
    p = jnp.exp(z)
    p = p / jnp.sum(p, axis=-1, keepdims=True).astype(dtype)
    y = np.zeros(4, np.int32)
    assert int(calibration.bin_stats(p, y).invalid) == 0, (c, scale)
    assert int(calibration.bin_stats(jax.nn.softmax(z), y).invalid) == 0


def test_leading_axes_are_rows():
  p, y = data("random")
  stats = calibration.bin_stats(
    p[:256].reshape(8, 32, 4), y[:256].reshape(8, 32)
  )
  want = calibration.bin_stats(p[:256], y[:256])
  jax.tree.map(np.testing.assert_array_equal, stats, want)


def test_brier_decomposition_adds_up():
  for kind in ("random", "grid", "saturated", "few"):
    p, y = data(kind)
    parts = calibration.brier_decomposition(p, y, num_bins=NUM_BINS)
    np.testing.assert_allclose(parts.score, brier(p, y), atol=1e-6)
    # The reliability is the squared class-wise error, summed over classes.
    squares = [
      classwise(np.stack([1 - q, q], -1), (y == k) * 1, norm=2) ** 2
      for k, q in enumerate(p.T)
    ]
    if kind != "grid":  # There 1 - q may round to the other side of an edge.
      np.testing.assert_allclose(parts.reliability, np.sum(squares), atol=1e-6)
    frequency = np.bincount(y) / len(y)
    np.testing.assert_allclose(
      parts.uncertainty, 1 - np.square(frequency).sum(), atol=1e-6
    )


def test_curve_repeats_its_last_point_for_dropped_rows():
  p, y = data("random")
  keep = np.arange(len(p)) % 3 > 0
  curve = calibration.risk_coverage_curve(p, y, where=keep)
  k = keep.sum()
  np.testing.assert_allclose(curve.risk[:k], risk(p[keep], y[keep]), rtol=1e-6)
  np.testing.assert_array_equal(curve.risk[k:], curve.risk[k - 1])
  assert np.all(curve.coverage[k - 1 :] == 1)
