# SPDX-License-Identifier: Apache-2.0
"""AnyLoss: a metric as the loss.

The loss is one minus a metric of the soft confusion matrix of a batch, one
number for the batch.
"""

from collections.abc import Callable
from typing import Any

import jax

from squentropy_jax.confusion import soft_confusion_matrix


def anyloss(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  metric: Callable[..., jax.Array],
  amplification: jax.typing.ArrayLike = 73.0,
  where: jax.typing.ArrayLike | None = None,
  **hyperparameters: Any,
) -> jax.Array:
  r"""Computes one minus a metric of the soft confusion matrix of a batch.

  Use when a binary classifier is judged by one metric such as the F score, and
  batches are large enough for the metric to be close to that of the data.

  Avoid when batches are small, or at the start of training: the default
  amplification is so steep that examples far from the decision boundary have
  almost no gradient. Lower it, or warm up with a loss of single examples.

  With the counts of :func:`squentropy_jax.confusion.soft_confusion_matrix`,

  .. math::
    \ell = 1 - \text{metric}(\mathrm{TP}, \mathrm{FN}, \mathrm{FP},
                            \mathrm{TN}) .

  The mean of two batches' losses is not the loss of both. To accumulate over
  batches or devices, add up the counts and apply the metric once.

  Args:
    logits: Scores, any shape, any floating dtype; all entries are one batch.
    labels: Labels of the same shape: booleans, the integers 0 and 1, or floats
      between.
    metric: A function of a ``SoftConfusionMatrix`` with values up to 1, such as
      ``accuracy``, ``f_beta``, ``balanced_accuracy`` and ``geometric_mean`` of
      ``squentropy_jax.confusion``.
    amplification: Steepness of the soft step at probability 1/2, above 0. The
      default is the paper's.
    where: Which entries to keep, booleans of the same shape. Dropped ones have
      gradient 0.
    **hyperparameters: Passed to ``metric``, such as ``beta`` of ``f_beta``.

  Returns:
    A scalar, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating, ``labels`` not numbers, or
      ``metric`` does not take the hyper-parameters.
    ValueError: If shapes differ, if a concrete label is outside ``[0, 1]`` (a
      traced one gives NaN), or a hyper-parameter is outside its domain.

  Examples:
    >>> logits = jnp.array([2.0, 0.4, -0.4, -1.4, 0.2])
    >>> labels = jnp.array([1, 1, 0, 0, 0])
    >>> loss = losses.anyloss(logits, labels, metric=confusion.f_beta, beta=2.0)
    >>> print(f"{loss:.4f}")
    0.0891

  References:
    Han, Moniz and Chawla, `AnyLoss: Transforming Classification Metrics into
    Loss Functions <https://arxiv.org/abs/2405.14745>`_, KDD 2024.

  .. seealso:: :func:`squentropy_jax.losses.dice`
  """
  if not callable(metric):
    raise TypeError(
      "metric must be a function of a SoftConfusionMatrix, such as "
      f"confusion.f_beta, got {metric!r}."
    )
  matrix = soft_confusion_matrix(
    logits, labels, amplification=amplification, where=where
  )
  return 1.0 - metric(matrix, **hyperparameters)
