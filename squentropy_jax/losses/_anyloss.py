# SPDX-License-Identifier: Apache-2.0
"""AnyLoss: metrics of a confusion matrix, made differentiable."""

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
  r"""Batch statistic: one less a metric of the soft confusion matrix.

  .. math::
    \ell = 1 - \text{metric}(\mathrm{TP}, \mathrm{FN}, \mathrm{FP},
                            \mathrm{TN})

  The counts are those of :func:`soft_confusion_matrix`. It is one number for
  the set, not a mean over examples: the losses of two batches do not average to
  that of both, and of a small batch the metric may be far from that of the
  data. The default amplification is the paper's, made so steep that an example
  far from the decision boundary has no slope: warm up with a loss of examples.

  Args:
    logits: Scores, any shape, any floating dtype; all entries are one set.
    labels: Labels of the same shape, the integers 0 and 1 or floats between.
    metric: A function of a ``SoftConfusionMatrix`` with values up to 1, of
      yours or of this package: ``accuracy``, ``f_beta``, ``balanced_accuracy``
      or ``geometric_mean``.
    amplification: Steepness of the soft step at probability 1/2, above 0.
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
