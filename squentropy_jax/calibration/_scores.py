# SPDX-License-Identifier: Apache-2.0
"""Means over rows: likelihood and accuracy."""

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax.calibration._rows import Rows, read_rows, widen


def mean_of_rows(rows: Rows, value: Array) -> Array:
  """The mean over kept rows; NaN without any, or with a bad label."""
  count = jnp.sum(rows.keep, dtype=value.dtype)
  total = jnp.sum(jnp.where(rows.keep, value, 0))
  return jnp.where(jnp.any(rows.bad), jnp.nan, total / count)


@jax.jit
def _negative_log_likelihood(rows: Rows) -> Array:
  logits = widen(jnp.where(rows.keep[:, None], rows.scores, 0))
  target = jnp.take_along_axis(logits, rows.labels[:, None], -1)
  loss = jax.nn.logsumexp(logits - target, axis=-1)
  return mean_of_rows(rows, loss)


def negative_log_likelihood(
  logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
  r"""Mean cross-entropy of the labels, from logits and never clipped.

  .. math::

    \mathrm{NLL} = -\frac{1}{n} \sum_i \log \mathrm{softmax}(z_i)_{y_i}

  Args:
    logits: Logits (log-probabilities are logits) ``[..., C]``.
    labels: Integer class ids ``[...]``.
    where: Boolean ``[...]``, which examples count.

  Returns:
    A scalar. NaN without any row or with a label out of range under ``jit``.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from squentropy_jax import calibration
    >>> z = jnp.zeros((3, 4))
    >>> nll = calibration.negative_log_likelihood(z, jnp.array([0, 1, 3]))
    >>> print(f"{nll:.3f}")
    1.386

  References:
    Gneiting and Raftery, `Strictly Proper Scoring Rules, Prediction, and
    Estimation <https://doi.org/10.1198/016214506000001437>`_, 2007
  """
  return _negative_log_likelihood(read_rows("logits", logits, labels, where))


@jax.jit
def _accuracy(rows: Rows) -> Array:
  hit = jnp.argmax(rows.scores, axis=-1).astype(jnp.int32) == rows.labels
  bad = jnp.isnan(jnp.max(rows.scores, axis=-1)) & rows.keep
  return mean_of_rows(
    rows._replace(bad=rows.bad | bad), hit.astype(jnp.result_type(float))
  )


def accuracy(
  scores: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
  r"""Share of rows whose largest score is the label's.

  .. math:: \frac{1}{n} \sum_i [\arg\max_k p_{ik} = y_i]

  The first of tied classes is the prediction.

  Args:
    scores: Probabilities or logits ``[..., C]``.
    labels: Integer class ids ``[...]``.
    where: Boolean ``[...]``, which examples count.

  Returns:
    A scalar. NaN without any row, with a kept NaN score, or with a label out
    of range under ``jit``.

  Raises:
    TypeError: If a dtype does not fit.
    ValueError: If a shape does not fit, or a label known at call time is out
      of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from squentropy_jax import calibration
    >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> float(calibration.accuracy(p, jnp.array([0, 1, 1, 1])))
    0.75

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017
  """
  return _accuracy(read_rows("scores", scores, labels, where))
