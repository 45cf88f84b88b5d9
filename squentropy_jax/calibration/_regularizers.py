# SPDX-License-Identifier: Apache-2.0
"""Calibration regularizers: terms that are added to a training loss.

Each is one number for a batch, computed from the confidences and hits of all
its rows. The terms of two batches do not add up to that of both.
"""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core.elementwise import quotient
from squentropy_jax.calibration._equal_width_bins import centres
from squentropy_jax.calibration._row_functions import largest
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  as_scalar,
  check_int,
  compiled_on_rows,
  read_examples,
  widen,
)

_MIN_SHARE = 1e-10


class _BatchPredictions(NamedTuple):
  """What a regularizer reads of each row ``[n]``; 0 in dropped rows."""

  logp: Array  # Log-probabilities, [n, C].
  confidence: Array
  hit: Array  # 1 or 0, with derivative 0.
  keep: Array  # 1 or 0.


def _predict(rows: ScoredRows) -> _BatchPredictions:
  logits = widen(rows.fill_dropped(rows.scores))
  logp = jax.nn.log_softmax(logits, axis=-1)
  _, prediction = largest(logits)
  keep = rows.keep.astype(logp.dtype)
  return _BatchPredictions(
    logp,
    jnp.exp(jnp.max(logp, axis=-1)) * keep,
    (prediction == rows.labels).astype(logp.dtype) * keep,
    keep,
  )


def _nan_if_invalid(rows: ScoredRows, term: Array) -> Array:
  """``term``; NaN with NaN gradient if a label is invalid."""
  invalid = jnp.any(rows.label_invalid)
  return term * jnp.where(invalid, jnp.nan, 1).astype(term.dtype)


def _over(a: Array, b: Array) -> Array:
  """``a / b``, and 0 with derivative 0 where ``b`` is 0."""
  return jnp.where(b == 0, 0, quotient(a, jnp.where(b == 0, 1, b)))


@compiled_on_rows()
def _correctness_aware(rows: ScoredRows) -> Array:
  batch = _predict(rows)
  error = jnp.square(batch.confidence - batch.hit)
  means = []
  for group in (batch.hit, batch.keep - batch.hit):
    count = jnp.sum(group)
    means.append((_over(jnp.sum(group * error), count), count > 0))
  (of_hits, any_hit), (of_misses, any_miss) = means
  groups = any_hit.astype(error.dtype) + any_miss.astype(error.dtype)
  return _nan_if_invalid(rows, _over(of_hits + of_misses, groups))


def correctness_aware(
  logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
  r"""Computes the squared distance of confidence from 1 on hits, 0 on misses.

  Use it to fit a recalibrator that keeps the predicted classes, such as a
  temperature for each example. It is of little use for training a network on
  the same rows, which soon has few misses.

  .. math::

    \frac{1}{2} \Bigl(\frac{1}{h} \sum_{i : a_i = 1} (1 - c_i)^2 +
    \frac{1}{n - h} \sum_{i : a_i = 0} c_i^2\Bigr)

  with :math:`c_i` the largest probability, :math:`a_i` whether its class is the
  label and :math:`h` the number of hits. Hits and misses have the same total
  weight. In a batch of hits or misses only, it is their mean.

  Args:
    logits: Logits, recalibrated or not, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar in [0, 1]. 0 without any example, NaN if a traced label is out of
    range.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape does not match, or a concrete label is out of range.

  Examples:
    >>> z = jnp.log(jnp.array([[0.9, 0.1], [0.6, 0.4]]))
    >>> print(f"{calibration.correctness_aware(z, jnp.array([0, 1])):.3f}")
    0.185

  References:
    Liu et al., `Optimizing Calibration by Gaining Aware of Prediction
    Correctness <https://arxiv.org/abs/2404.13016>`_, 2024.
  """
  return _correctness_aware(read_examples("logits", logits, labels, where))


@compiled_on_rows()
def _mmce(rows: ScoredRows, *, bandwidth: Array) -> Array:
  batch = _predict(rows)
  r = batch.confidence
  residual = batch.hit - r
  kernel = jnp.exp(-jnp.abs(r[:, None] - r[None]) / bandwidth)
  # At full precision, because large terms of both signs cancel.
  smoothed = jnp.matmul(kernel, residual, precision=jax.lax.Precision.HIGHEST)
  count = jnp.sum(batch.keep)
  mean = _over(jnp.sum(residual * smoothed), jnp.square(count))
  return _nan_if_invalid(rows, mean)


def mmce(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  bandwidth: Any = 0.4,
  where: ArrayLike | None = None,
) -> Array:
  r"""Computes the squared maximum mean calibration error (MMCE).

  Use it as a training term without bins: its gradient is finite everywhere.
  Batches of a few hundred examples suit it, because time and memory grow with
  the square of the batch.

  .. math::

    \frac{1}{n^2} \sum_{i,j} (a_i - c_i) (a_j - c_j)
    \exp\Bigl(-\frac{|c_i - c_j|}{w}\Bigr)

  with :math:`c_i` the largest probability, :math:`a_i` whether its class is
  the label and :math:`w` the ``bandwidth``. Some papers report its square root.

  Args:
    logits: Logits, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    bandwidth: The width :math:`w` of the kernel, above 0.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar, at least 0 up to rounding. 0 without any example, NaN if a
    traced label is out of range.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape or ``bandwidth`` is wrong, or a concrete label is
      out of range.

  Examples:
    >>> z = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1]]))
    >>> print(f"{calibration.mmce(z, jnp.array([0, 1])):.3f}")
    0.160

  References:
    Kumar, Sarawagi and Jain, `Trainable Calibration Measures for Neural
    Networks from Kernel Mean Embeddings
    <https://proceedings.mlr.press/v80/kumar18a.html>`_, 2018.
  """
  examples = read_examples("logits", logits, labels, where)
  width = as_scalar("bandwidth", bandwidth, "(0, inf)", examples)
  return _mmce(examples, bandwidth=width)


@compiled_on_rows("num_bins")
def _soft_binned(
  rows: ScoredRows, *, num_bins: int, temperature: Array
) -> Array:
  batch = _predict(rows)
  r = batch.confidence
  centre = jnp.asarray(centres(num_bins, r.dtype))
  distance = jnp.square(r[:, None] - centre[None])
  share = jax.nn.softmax(-distance / temperature, axis=-1)
  share = share * batch.keep[:, None]
  count = jnp.sum(batch.keep)
  bin_share = _over(jnp.sum(share, axis=0), count)
  # The gap of a bin times its share of the rows.
  gap = jnp.sum(share * (r - batch.hit)[:, None], axis=0)
  gap = _over(gap, count)
  square = jnp.sum(gap * _over(gap, bin_share))
  flat = square == 0
  root = jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, square)))
  return _nan_if_invalid(rows, root)


def soft_binned_ece(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  num_bins: int = 15,
  temperature: Any = 0.01,
  where: ArrayLike | None = None,
) -> Array:
  r"""Computes the root mean square calibration error over soft bins (SB-ECE).

  Use it as a training term that is close to the expected calibration error.
  Each example is shared between bins, so that the error has a gradient.

  .. math::

    \sqrt{\sum_b m_b \Bigl(\frac{\sum_i s_{ib} (c_i - a_i)}{n\, m_b}
    \Bigr)^2}, \qquad
    s_{ib} = \mathrm{softmax}_b \Bigl(-\frac{(c_i - t_b)^2}{T}\Bigr), \quad
    m_b = \frac{1}{n} \sum_i s_{ib}

  with :math:`c_i` the largest probability, :math:`a_i` whether its class is
  the label, :math:`t_b` the centres of bins of equal width and :math:`T` the
  ``temperature``. As it falls to 0, the result becomes
  :func:`expected_calibration_error` with ``norm=2``. At an error of 0, where
  the square root has no derivative, the gradient is 0.

  Args:
    logits: Logits, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    num_bins: Number of bins, a Python int.
    temperature: The softness :math:`T` of the bins, above 0.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar in [0, 1]. 0 without any example, NaN if a traced label is out of
    range.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape or ``temperature`` is wrong, or a concrete label is
      out of range.

  Examples:
    >>> z = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1]]))
    >>> print(f"{calibration.soft_binned_ece(z, jnp.array([0, 1])):.3f}")
    0.400

  References:
    Karandikar et al., `Soft Calibration Objectives for Neural Networks
    <https://arxiv.org/abs/2108.00106>`_, 2021.
  """
  check_int("num_bins", num_bins, 1)
  examples = read_examples("logits", logits, labels, where)
  softness = as_scalar("temperature", temperature, "(0, inf)", examples)
  return _soft_binned(examples, num_bins=num_bins, temperature=softness)


@compiled_on_rows()
def _avuc(rows: ScoredRows, *, threshold: Array) -> Array:
  batch = _predict(rows)
  impossible = batch.logp == -jnp.inf
  logp = jnp.where(impossible, 0, batch.logp)
  p = jnp.where(impossible, 0, jnp.exp(batch.logp))
  entropy = -jnp.sum(p * logp, axis=-1)
  uncertainty = jnp.tanh(entropy)
  certain = entropy <= threshold
  hit = batch.hit > 0
  # Hits are weighted by confidence and misses by 1 - confidence; certain rows
  # by 1 - uncertainty and uncertain ones by uncertainty.
  weight = jnp.where(hit, batch.confidence, 1 - batch.confidence)
  weight = (
    weight * jnp.where(certain, 1 - uncertainty, uncertainty) * batch.keep
  )
  desired = jnp.sum(jnp.where(hit == certain, weight, 0))
  sum_ = jnp.sum(weight)
  share = jnp.where(sum_ == 0, 1, _over(desired, sum_))
  share = jnp.where(share < _MIN_SHARE, _MIN_SHARE, share)
  return _nan_if_invalid(rows, 0 - jnp.log(share))


def avuc(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  threshold: Any = 1.0,
  where: ArrayLike | None = None,
) -> Array:
  r"""Computes the accuracy-versus-uncertainty loss (AvUC).

  Use it as a training term if predictions should be certain when they are right
  and uncertain when they are wrong, such as for rejecting uncertain ones.

  .. math::

    -\log \frac{n_{AC} + n_{IU}}{n_{AC} + n_{AU} + n_{IC} + n_{IU}}

  The four numbers are the summed weights of accurate (A) or inaccurate (I) and
  certain (C) or uncertain (U) examples. An example is certain if the entropy
  :math:`u_i` of its probabilities is at most the ``threshold``. The weight of
  an accurate example is :math:`c_i`, its largest probability, and of an
  inaccurate one :math:`1 - c_i`. It is multiplied by :math:`1 - \tanh u_i` if
  the example is certain, else by :math:`\tanh u_i`. Only these weights have
  gradients. The share in the logarithm is at least 1e-10.

  The authors set the threshold midway between the mean entropies of the right
  and of the wrong validation predictions, after some epochs of training.

  Args:
    logits: Logits, shape ``[..., C]``.
    labels: Class ids, integers of shape ``[...]``.
    threshold: The largest entropy of a certain example, in nats, at least 0.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A scalar, at least 0. 0 without any example, NaN if a traced label is out
    of range.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape or ``threshold`` is wrong, or a concrete label is
      out of range.

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
  examples = read_examples("logits", logits, labels, where)
  limit = as_scalar("threshold", threshold, "[0, inf)", examples)
  return _avuc(examples, threshold=limit)
