# SPDX-License-Identifier: Apache-2.0
"""Modules and metrics for Flax NNX."""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax import calibration, heads
from squentropy_jax._core import checks
from squentropy_jax.calibration import _scored_rows
from squentropy_jax.heads._fourier import num_outputs


class CalibrationMetric(nnx.Metric):
  r"""Computes the calibration error of all batches, as an ``nnx.Metric``.

  Use it in a Flax NNX training or evaluation loop. It merges
  :func:`squentropy_jax.calibration.bin_stats` batch by batch, so the result has
  the bits of one large batch, which a mean of the errors of batches does not.

  .. math:: \mathrm{error} \Bigl(\sum_t \mathrm{stats}(z_t, y_t)\Bigr)

  It works inside ``nnx.jit``, ``nnx.scan`` and ``nnx.MultiMetric``.

  Args:
    error: The function of the statistics to compute, such as
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
    empty = self._stats_of(jnp.zeros((0, 2)), jnp.zeros((0,), jnp.int32))
    self.counts = nnx.metrics.MetricState(empty.counts)
    self.hits = nnx.metrics.MetricState(empty.hits)
    self.confidence_digits = nnx.metrics.MetricState(empty.confidence_digits)
    self.size_digits = nnx.metrics.MetricState(empty.size_digits)
    self.invalid = nnx.metrics.MetricState(empty.invalid)

  def _stats_of(
    self,
    logits: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
  ) -> calibration.BinStats:
    logits = _scored_rows.widen(_scored_rows.as_scores("logits", logits))
    if mask is not None:
      mask = _scored_rows.as_mask(mask, logits.shape[:-1], "mask")
      # Dropped examples may hold NaN, whose softmax is NaN.
      logits = jnp.where(mask[..., None], logits, 0)
    p = jax.nn.softmax(logits, axis=-1)
    return calibration.bin_stats(p, labels, num_bins=self.num_bins, where=mask)

  def _set(self, stats: calibration.BinStats) -> None:
    for name, value in stats._asdict().items():
      getattr(self, name)[...] = value

  @property
  def stats(self) -> calibration.BinStats:
    """The statistics of all batches, such as for a reliability diagram."""
    return calibration.BinStats(
      *(getattr(self, name)[...] for name in calibration.BinStats._fields)
    )

  def reset(self) -> None:
    """Sets the statistics to those of no batch."""
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
      mask: Which examples to include, booleans of shape ``[...]``.
      **_: Arguments of other metrics in an ``nnx.MultiMetric``; ignored.
    """
    new = self._stats_of(logits, labels, mask)
    self._set(calibration.merge(self.stats, new))

  def compute(self) -> Array:
    """Returns the error of all batches; NaN without any example."""
    return self.error(self.stats)


class CosineHead(nnx.Module):
  r"""Computes the cosines of features and learned class vectors, times a scale.

  Use it as the last layer of a classifier whose features are compared by their
  angles. For the margin losses, use a scale of 1, because they have a scale of
  their own.

  .. math::
    z_k = \text{scale} \, \frac{h \cdot w_k}{\lVert h \rVert \, \lVert w_k
      \rVert}

  Args:
    in_features: The width :math:`d` of the features.
    num_classes: The number of classes :math:`C`.
    scale: Multiplies the cosines.
    rngs: The random streams, of which ``params`` is used.

  Examples:
    >>> from flax import nnx
    >>> from squentropy_jax.nn.nnx import CosineHead
    >>> head = CosineHead(4, 3, rngs=nnx.Rngs(0))
    >>> head(jnp.ones((2, 4))).shape
    (2, 3)
  """

  def __init__(
    self,
    in_features: int,
    num_classes: int,
    *,
    scale: float = 10.0,
    rngs: nnx.Rngs,
  ) -> None:
    init = nnx.initializers.normal(1.0)
    self.kernel = nnx.Param(init(rngs.params(), (in_features, num_classes)))
    self.scale = scale

  def __call__(self, features: ArrayLike) -> Array:
    """Returns the logits ``[..., C]`` of features ``[..., d]``."""
    return self.scale * heads.cosine_logits(features, self.kernel[...])


class FourierHead(nnx.Module):
  r"""Computes logits of ordered bins whose probabilities form a smooth density.

  Use it where the classes are the bins of a number. It is a linear layer with
  :math:`2 (N + 1)` outputs, followed by
  :func:`squentropy_jax.heads.fourier_coefficients` and
  :func:`squentropy_jax.heads.fourier_logits`. Its parameters start at a
  hundredth of the usual size, so that the initial density hardly depends on the
  features.

  Args:
    in_features: The width of the features.
    num_bins: The number of bins.
    num_frequencies: The number of frequencies :math:`N`, below half of
      ``num_bins``.
    epsilon: Added to the probability of each bin.
    rngs: The random streams, of which ``params`` is used.

  Examples:
    >>> from flax import nnx
    >>> from squentropy_jax.nn.nnx import FourierHead
    >>> head = FourierHead(4, 10, num_frequencies=3, rngs=nnx.Rngs(0))
    >>> head(jnp.ones((2, 4))).shape
    (2, 10)
  """

  def __init__(
    self,
    in_features: int,
    num_bins: int,
    *,
    num_frequencies: int,
    epsilon: float = 1e-5,
    rngs: nnx.Rngs,
  ) -> None:
    size = num_outputs(num_frequencies)
    init = nnx.initializers.lecun_normal()
    self.kernel = nnx.Param(0.01 * init(rngs.params(), (in_features, size)))
    # Not 0, where the density of features of 0 would have no gradient.
    first = nnx.initializers.normal(1.0)
    self.bias = nnx.Param(0.01 * first(rngs.params(), (size,)))
    self.num_bins = num_bins
    self.epsilon = epsilon

  def coefficients(self, features: ArrayLike) -> Array:
    """Returns the coefficients, for `heads.fourier_smoothness`."""
    kernel, bias = self.kernel[...], self.bias[...]
    x = checks.as_floats(features, "features")
    if x.ndim == 0 or x.shape[-1] != kernel.shape[0]:
      raise ValueError(
        f"features must have the shape [..., {kernel.shape[0]}], got {x.shape}."
      )
    with jax.numpy_dtype_promotion("standard"):
      a = jnp.matmul(x, kernel)
      a = a + jnp.broadcast_to(bias, a.shape)
    real, imag = jnp.split(a, 2, axis=-1)
    return heads.fourier_coefficients(jax.lax.complex(real, imag))

  def __call__(self, features: ArrayLike) -> Array:
    """Returns the logits ``[..., num_bins]`` of features ``[..., d]``."""
    return heads.fourier_logits(
      self.coefficients(features), self.num_bins, epsilon=self.epsilon
    )
