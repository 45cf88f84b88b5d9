# SPDX-License-Identifier: Apache-2.0
"""Parts for Flax NNX."""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax import calibration
from squentropy_jax._core import checks as _checks


class CalibrationMetric(nnx.Metric):
  r"""Calibration error of all batches seen, as an ``nnx.Metric``.

  .. math:: \mathrm{error} \Bigl(\sum_t \mathrm{stats}(z_t, y_t)\Bigr)

  It adds up :func:`squentropy_jax.calibration.bin_stats` batch by batch: the
  value is that of one large batch to the last bit, which a mean of errors of
  batches is not. It works inside ``nnx.jit``, ``nnx.scan`` and
  ``nnx.MultiMetric``.

  Args:
    error: What to compute of the statistics, such as
      :func:`squentropy_jax.calibration.expected_calibration_error` or a
      ``functools.partial`` of it.
    num_bins: Number of bins of equal width, a Python int.

  Examples:
    >>> from squentropy_jax.nn.nnx import CalibrationMetric
    >>> metric = CalibrationMetric()
    >>> z = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]))
    >>> metric.update(logits=z[:2], labels=jnp.array([0, 1]))
    >>> metric.update(logits=z[2:], labels=jnp.array([1]))
    >>> print(f"{metric.compute():.3f}")
    0.300
  """

  def __init__(
    self,
    error: Callable[
      [calibration.BinStats], Array
    ] = calibration.expected_calibration_error,
    *,
    num_bins: int = 15,
  ) -> None:
    self.error = error
    self.num_bins = num_bins
    nothing = self._stats_of(jnp.zeros((0, 1)), jnp.zeros((0,), jnp.int32))
    self.counts = nnx.metrics.MetricState(nothing.counts)
    self.hits = nnx.metrics.MetricState(nothing.hits)
    self.confidence_digits = nnx.metrics.MetricState(nothing.confidence_digits)
    self.invalid = nnx.metrics.MetricState(nothing.invalid)

  def _stats_of(
    self,
    logits: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
  ) -> calibration.BinStats:
    logits = _checks.as_logits(logits)
    logits = logits.astype(_checks.compute_dtype(logits.dtype))
    p = jax.nn.softmax(logits, axis=-1)
    return calibration.bin_stats(p, labels, num_bins=self.num_bins, where=mask)

  def _set(self, stats: calibration.BinStats) -> None:
    for name, value in stats._asdict().items():
      getattr(self, name)[...] = value

  @property
  def stats(self) -> calibration.BinStats:
    """The statistics so far, as for a reliability diagram."""
    return calibration.BinStats(
      *(getattr(self, name)[...] for name in calibration.BinStats._fields)
    )

  def reset(self) -> None:
    """Forgets all batches."""
    self._set(jax.tree.map(jnp.zeros_like, self.stats))

  def update(  # type: ignore[override]
    self,
    *,
    logits: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    **_: Any,
  ) -> None:
    """Adds a batch.

    Args:
      logits: Logits, shape ``[..., C]``.
      labels: Class ids, integers of shape ``[...]``.
      mask: Which examples count, booleans of shape ``[...]``.
      **_: Arguments of other metrics of an ``nnx.MultiMetric``.
    """
    new = self._stats_of(logits, labels, mask)
    self._set(calibration.merge(self.stats, new))

  def compute(self) -> Array:
    """Computes the error of all batches; NaN without any row."""
    return self.error(self.stats)
