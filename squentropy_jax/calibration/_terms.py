# SPDX-License-Identifier: Apache-2.0
"""Terms of a training loss that pull towards calibration.

Each is one number for a batch, of the confidences and hits of all its rows:
the terms of two batches do not add up to that of both.
"""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core.elementwise import quotient
from squentropy_jax.calibration import _inputs

_LEAST_SHARE = 1e-10


class _Batch(NamedTuple):
  """What the terms see of each row ``[n]``; 0 where it is dropped."""

  logp: Array  # Log-probabilities, [n, C].
  confidence: Array
  hit: Array  # 1 or 0. Constant: a label or an argmax has no slope.
  keep: Array  # 1 or 0.


def _read(rows: _inputs.Rows) -> _Batch:
  logits = _inputs.widen(jnp.where(rows.keep[:, None], rows.scores, 0))
  logp = jax.nn.log_softmax(logits, axis=-1)
  _, prediction = _inputs.largest(logits)
  keep = rows.keep.astype(logp.dtype)
  return _Batch(
    logp,
    jnp.exp(jnp.max(logp, axis=-1)) * keep,
    (prediction == rows.labels).astype(logp.dtype) * keep,
    keep,
  )


def _finish(rows: _inputs.Rows, term: Array) -> Array:
  """``term``, but NaN, with its slope, where a row has a bad label."""
  return term * jnp.where(jnp.any(rows.bad), jnp.nan, 1).astype(term.dtype)


def _over(a: Array, b: Array) -> Array:
  """``a / b``, and 0 with slope 0 where ``b`` is 0."""
  return jnp.where(b == 0, 0, quotient(a, jnp.where(b == 0, 1, b)))


@_inputs.compiled()
def _correctness_aware(rows: _inputs.Rows) -> Array:
  batch = _read(rows)
  error = jnp.square(batch.confidence - batch.hit)
  means = []
  for group in (batch.hit, batch.keep - batch.hit):
    count = jnp.sum(group)
    means.append((_over(jnp.sum(group * error), count), count > 0))
  (of_hits, any_hit), (of_misses, any_miss) = means
  groups = any_hit.astype(error.dtype) + any_miss.astype(error.dtype)
  return _finish(rows, _over(of_hits + of_misses, groups))


def correctness_aware(
  logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
  r"""Squared distance of the confidence from 1 on hits and 0 on misses.

  .. math::

    \frac{1}{2} \Bigl(\frac{1}{h} \sum_{i : a_i = 1} (1 - c_i)^2 +
    \frac{1}{n - h} \sum_{i : a_i = 0} c_i^2\Bigr)

  with :math:`c_i` the largest probability, :math:`a_i` whether its class is
  the label and :math:`h` the number of hits, so that hits and misses weigh the
  same; of a batch of hits or misses alone it is their mean. It is meant for
  fitting a recalibrator that keeps the predictions, such as a temperature for
  each example: with few misses, as of a network on its own training rows, it
  says little.

  Args:
    logits: Logits, recalibrated or not, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar in [0, 1]. 0 without any row, NaN with a label out of range under
    ``jit``.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> z = jnp.log(jnp.array([[0.9, 0.1], [0.6, 0.4]]))
    >>> print(f"{calibration.correctness_aware(z, jnp.array([0, 1])):.3f}")
    0.185

  References:
    Liu et al., `Optimizing Calibration by Gaining Aware of Prediction
    Correctness <https://arxiv.org/abs/2404.13016>`_, 2024.
  """
  return _correctness_aware(_inputs.read_rows("logits", logits, labels, where))


@_inputs.compiled()
def _mmce(rows: _inputs.Rows, *, bandwidth: Array) -> Array:
  batch = _read(rows)
  r = batch.confidence
  residual = batch.hit - r
  kernel = jnp.exp(-jnp.abs(r[:, None] - r[None]) / bandwidth)
  # At full precision: what is left is a small difference of large sums.
  smoothed = jnp.matmul(kernel, residual, precision=jax.lax.Precision.HIGHEST)
  count = jnp.sum(batch.keep)
  mean = _over(jnp.sum(residual * smoothed), jnp.square(count))
  return _finish(rows, mean)


def mmce(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  bandwidth: Any = 0.4,
  where: ArrayLike | None = None,
) -> Array:
  r"""Maximum mean calibration error, squared (MMCE).

  .. math::

    \frac{1}{n^2} \sum_{i,j} (a_i - c_i) (a_j - c_j)
    \exp\Bigl(-\frac{|c_i - c_j|}{w}\Bigr)

  with :math:`c_i` the largest probability, :math:`a_i` whether its class is
  the label and :math:`w` the ``bandwidth``. It is 0 only where hits make up
  for misses near every confidence. Without the root its slope is finite
  everywhere. Time and memory grow with :math:`n^2`.

  Args:
    logits: Logits, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    bandwidth: The width :math:`w` of the kernel, above 0.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar, at least 0 up to rounding. 0 without any row, NaN with a label
    out of range under ``jit``.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape or ``bandwidth`` does not fit, or a label known at
      call time is out of range.

  Examples:
    >>> z = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1]]))
    >>> print(f"{calibration.mmce(z, jnp.array([0, 1])):.3f}")
    0.160

  References:
    Kumar, Sarawagi and Jain, `Trainable Calibration Measures for Neural
    Networks from Kernel Mean Embeddings
    <https://proceedings.mlr.press/v80/kumar18a.html>`_, 2018.
  """
  rows = _inputs.read_rows("logits", logits, labels, where)
  width = _inputs.as_scalar("bandwidth", bandwidth, "(0, inf)", rows)
  return _mmce(rows, bandwidth=width)


@_inputs.compiled("num_bins")
def _soft_binned(
  rows: _inputs.Rows, *, num_bins: int, temperature: Array
) -> Array:
  batch = _read(rows)
  r = batch.confidence
  centre = ((np.arange(num_bins) + 0.5) / num_bins).astype(r.dtype)
  distance = jnp.square(r[:, None] - jnp.asarray(centre)[None])
  share = jax.nn.softmax(-distance / temperature, axis=-1)
  share = share * batch.keep[:, None]
  count = jnp.sum(batch.keep)
  mass = _over(jnp.sum(share, axis=0), count)
  # The gap of a bin times its mass.
  gap = jnp.sum(share * (r - batch.hit)[:, None], axis=0)
  gap = _over(gap, count)
  square = jnp.sum(gap * _over(gap, mass))
  flat = square == 0
  root = jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, square)))
  return _finish(rows, root)


def soft_binned_ece(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  num_bins: int = 15,
  temperature: Any = 0.01,
  where: ArrayLike | None = None,
) -> Array:
  r"""Calibration error over soft bins, of power 2 (SB-ECE).

  .. math::

    \sqrt{\sum_b m_b \Bigl(\frac{\sum_i s_{ib} (c_i - a_i)}{n\, m_b}
    \Bigr)^2}, \qquad
    s_{ib} = \mathrm{softmax}_b \Bigl(-\frac{(c_i - t_b)^2}{T}\Bigr), \quad
    m_b = \frac{1}{n} \sum_i s_{ib}

  with :math:`c_i` the largest probability, :math:`a_i` whether its class is
  the label, :math:`t_b` the centres of bins of equal width and :math:`T` the
  ``temperature``. As that falls to 0 it becomes
  :func:`expected_calibration_error` with ``norm=2``. The slope at 0, where
  there is none, is taken to be 0.

  Args:
    logits: Logits, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    num_bins: Number of bins, a Python int.
    temperature: How soft the bins are, :math:`T`, above 0.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar in [0, 1]. 0 without any row, NaN with a label out of range under
    ``jit``.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape or ``temperature`` does not fit, or a label known at
      call time is out of range.

  Examples:
    >>> z = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1]]))
    >>> print(f"{calibration.soft_binned_ece(z, jnp.array([0, 1])):.3f}")
    0.400

  References:
    Karandikar et al., `Soft Calibration Objectives for Neural Networks
    <https://arxiv.org/abs/2108.00106>`_, 2021.
  """
  _inputs.check_int("num_bins", num_bins, 1)
  rows = _inputs.read_rows("logits", logits, labels, where)
  softness = _inputs.as_scalar("temperature", temperature, "(0, inf)", rows)
  return _soft_binned(rows, num_bins=num_bins, temperature=softness)


@_inputs.compiled()
def _avuc(rows: _inputs.Rows, *, threshold: Array) -> Array:
  batch = _read(rows)
  impossible = batch.logp == -jnp.inf
  logp = jnp.where(impossible, 0, batch.logp)
  p = jnp.where(impossible, 0, jnp.exp(batch.logp))
  entropy = -jnp.sum(p * logp, axis=-1)
  doubt = jnp.tanh(entropy)
  certain = entropy <= threshold
  right = batch.hit > 0
  # Right rows count by their confidence, wrong ones by what it lacks; certain
  # rows by their lack of doubt.
  weight = jnp.where(right, batch.confidence, 1 - batch.confidence)
  weight = weight * jnp.where(certain, 1 - doubt, doubt) * batch.keep
  wanted = jnp.sum(jnp.where(right == certain, weight, 0))
  total = jnp.sum(weight)
  share = jnp.where(total == 0, 1, _over(wanted, total))
  share = jnp.where(share < _LEAST_SHARE, _LEAST_SHARE, share)
  return _finish(rows, 0 - jnp.log(share))


def avuc(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  threshold: Any = 1.0,
  where: ArrayLike | None = None,
) -> Array:
  r"""Accuracy versus uncertainty: right rows certain, wrong ones not (AvUC).

  .. math::

    -\log \frac{n_{AC} + n_{IU}}{n_{AC} + n_{AU} + n_{IC} + n_{IU}}

  The four numbers count the rows that are accurate or inaccurate and certain
  or uncertain, where certain is an entropy :math:`u_i` of the probabilities of
  at most the ``threshold``. An accurate row has the weight :math:`c_i`, an
  inaccurate one :math:`1 - c_i`, with :math:`c_i` the largest probability;
  times :math:`1 - \tanh u_i` if certain, else :math:`\tanh u_i`. These weights
  alone have slopes. A share of 0 counts as 1e-10.

  The authors set the threshold midway between the mean entropies of right and
  of wrong validation rows, after some epochs of training.

  Args:
    logits: Logits, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    threshold: The largest entropy of a certain row, in nats, at least 0.
    where: Which examples count, booleans of shape ``[...]``.

  Returns:
    A scalar, at least 0. 0 without any row, NaN with a label out of range
    under ``jit``.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape or ``threshold`` does not fit, or a label known at
      call time is out of range.

  Examples:
    >>> z = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5]]))
    >>> y = jnp.array([0, 1])
    >>> print(f"{calibration.avuc(z, y, threshold=0.5):.3f}")
    0.000
    >>> print(f"{calibration.avuc(z, y, threshold=0.8):.3f}")
    0.281

  References:
    Krishnan and Tickoo, `Improving Model Calibration with Accuracy versus
    Uncertainty Optimization <https://arxiv.org/abs/2012.07923>`_, 2020.
  """
  rows = _inputs.read_rows("logits", logits, labels, where)
  limit = _inputs.as_scalar("threshold", threshold, "[0, inf)", rows)
  return _avuc(rows, threshold=limit)
