# SPDX-License-Identifier: Apache-2.0
"""The NNX metric adds batches exactly, in every transformation of NNX."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import calibration
from squentropy_jax.nn.nnx import CalibrationMetric


def _data():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(6, 10, 4)).astype(np.float32) * 2
  return logits, rng.integers(0, 4, (6, 10)).astype(np.int32)


@nnx.jit
def _step(metric, logits, labels, mask):
  metric.update(logits=logits, labels=labels, mask=mask)
  return metric.compute()


def test_batches_have_the_bits_of_one_batch_under_jit():
  z, y = _data()
  keep = np.arange(10) < 9
  metric = CalibrationMetric(num_bins=7)
  assert np.isnan(metric.compute())
  for logits, labels in zip(z, y, strict=True):
    last = _step(metric, logits, labels, keep)
  expected = calibration.bin_stats(
    jax.nn.softmax(z), y, num_bins=7, where=np.tile(keep, (6, 1))
  )
  jax.tree.map(np.testing.assert_array_equal, metric.stats, expected)
  want = calibration.expected_calibration_error(expected)
  np.testing.assert_array_equal(metric.compute(), want)
  np.testing.assert_allclose(last, want, rtol=1e-6)
  metric.reset()
  assert int(metric.stats.counts.sum()) == 0
  assert np.isnan(metric.compute())


def test_scan_and_multi_metric():
  z, y = _data()
  error = functools.partial(calibration.expected_calibration_error, norm=2)
  metrics = nnx.MultiMetric(
    accuracy=nnx.metrics.Accuracy(), calibration=CalibrationMetric(error)
  )

  @nnx.scan(in_axes=(nnx.Carry, 0, 0), out_axes=nnx.Carry)
  def epoch(metrics, logits, labels):
    metrics.update(logits=logits, labels=labels, values=0)
    return metrics

  # The accuracy of Flax adds integers to floats.
  with jax.numpy_dtype_promotion("standard"):
    values = epoch(metrics, z, y).compute()
  stats = calibration.bin_stats(jax.nn.softmax(z), y)
  np.testing.assert_allclose(values["calibration"], error(stats), rtol=1e-6)
  np.testing.assert_allclose(values["accuracy"], np.mean(z.argmax(-1) == y))


def test_invalid_rows_raise_or_give_nan():
  z, y = _data()
  metric = CalibrationMetric(calibration.maximum_calibration_error)
  with pytest.raises(ValueError, match=r"labels\[1\] = 4"):
    metric.update(logits=z[0, :2], labels=np.array([0, 4]))
  metric.update(logits=jnp.asarray(z[0], jnp.bfloat16), labels=y[0])
  assert metric.compute().dtype == jnp.float32
  assert np.isfinite(metric.compute())
  z[0, 0, 0] = np.nan
  metric.update(logits=z[0], labels=y[0])
  assert np.isnan(metric.compute())


def test_masked_examples_may_hold_nan():
  z, y = _data()
  keep = np.arange(10) % 3 > 0
  expected, metric = CalibrationMetric(), CalibrationMetric()
  expected.update(logits=z[0][keep], labels=y[0][keep])
  z[0][~keep], y[0][~keep] = np.nan, -100
  with jax.debug_nans(True):
    metric.update(logits=z[0], labels=y[0], mask=keep)
    np.testing.assert_array_equal(metric.compute(), expected.compute())
  with pytest.raises(ValueError, match="mask must have the batch shape"):
    metric.update(logits=z[0], labels=y[0], mask=keep[:3])
