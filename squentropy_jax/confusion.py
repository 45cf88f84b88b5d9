# SPDX-License-Identifier: Apache-2.0
"""Soft confusion matrices of binary classifiers, and their metrics."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks, entries
from squentropy_jax._core.elementwise import sigmoid
from squentropy_jax._core.hyperparameters import Hyperparameters

_HYPERPARAMETERS = Hyperparameters({"amplification": "(0, inf)"}, {})


class SoftConfusionMatrix(NamedTuple):
  """Counts of a binary classifier; an example may count in parts.

  Attributes:
    true_positive: Labelled 1, predicted 1.
    false_negative: Labelled 1, predicted 0.
    false_positive: Labelled 0, predicted 1.
    true_negative: Labelled 0, predicted 0.
  """

  true_positive: jax.Array
  false_negative: jax.Array
  false_positive: jax.Array
  true_negative: jax.Array


@jax.custom_jvp
def _above_half(z: jax.Array) -> jax.Array:
  """``sigmoid(z) - 1/2``; the derivative is accurate on both sides of 0."""
  return 0.5 * jnp.tanh(0.5 * z)


_above_half.defjvps(lambda dz, _, z: dz * sigmoid(z) * sigmoid(-z))


@functools.partial(jax.jit, inline=True)
def _soft_confusion_matrix(
  z: jax.Array, y: jax.Array, keep: jax.Array | None, amplification: jax.Array
) -> SoftConfusionMatrix:
  score = amplification * _above_half(z)
  one, zero = sigmoid(score), sigmoid(-score)
  if keep is not None:
    one, zero = (jnp.where(keep, x, jnp.zeros_like(x)) for x in (one, zero))
  return SoftConfusionMatrix(
    true_positive=(y * one).sum(),
    false_negative=(y * zero).sum(),
    false_positive=((1.0 - y) * one).sum(),
    true_negative=((1.0 - y) * zero).sum(),
  )


def soft_confusion_matrix(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  amplification: jax.typing.ArrayLike = 73.0,
  where: jax.typing.ArrayLike | None = None,
) -> SoftConfusionMatrix:
  r"""Computes a differentiable confusion matrix of a binary classifier.

  Use when a metric of the confusion matrix is to be trained on or reported
  with a gradient. The matrices of two batches add up to that of both.

  .. math::
    \hat y = \sigma(L (\sigma(z) - 1/2)), \quad
    \mathrm{TP} = \sum y \hat y, \quad
    \mathrm{FN} = \sum y (1 - \hat y), \quad
    \mathrm{FP} = \sum (1 - y) \hat y, \quad
    \mathrm{TN} = \sum (1 - y) (1 - \hat y)

  Args:
    logits: Scores, any shape, any floating dtype.
    labels: Labels of the same shape: booleans, the integers 0 and 1, or floats
      between.
    amplification: :math:`L` above 0, the steepness of the step at 1/2.
    where: Which entries to keep, booleans of the same shape.

  Returns:
    The four counts, scalars, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating or ``labels`` not numbers.
    ValueError: If shapes differ, if a concrete label is outside ``[0, 1]`` (a
      traced one gives NaN), or if a concrete ``amplification`` is not above 0.

  Examples:
    >>> logits = jnp.array([2.0, 0.4, -0.4, -1.4])
    >>> labels = jnp.array([1, 0, 0, 0])
    >>> counts = confusion.soft_confusion_matrix(logits, labels)
    >>> print(f"{counts.true_positive:.3f} {counts.false_positive:.3f}")
    1.000 1.000

  References:
    Han, Moniz and Chawla, `AnyLoss: Transforming Classification Metrics into
    Loss Functions <https://arxiv.org/abs/2405.14745>`_, KDD 2024.

  .. seealso:: :func:`squentropy_jax.losses.anyloss`
  """
  z, y, keep = entries.checked_entries(logits, labels, where)
  numbers, _ = entries.checked_numbers(
    _HYPERPARAMETERS, {"amplification": amplification}, z, keep
  )
  return _soft_confusion_matrix(z, y, keep, **numbers)


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
  """``part / whole``, and 1 for a whole of 0, which holds no error."""
  is_empty = whole == 0
  one = jnp.ones_like(whole)
  return jnp.where(is_empty, one, part / jnp.where(is_empty, one, whole))


def _floats(confusion: SoftConfusionMatrix) -> SoftConfusionMatrix:
  """The counts in float32 or wider, also those given as integers."""
  if not isinstance(confusion, SoftConfusionMatrix):
    raise TypeError(
      f"confusion must be a SoftConfusionMatrix, got {confusion!r}. Pass what "
      "soft_confusion_matrix(logits, labels) returns."
    )
  counts = map(jnp.asarray, confusion)
  return SoftConfusionMatrix(
    *(x.astype(checks.compute_dtype(x.dtype)) for x in counts)
  )


def _recalls(confusion: SoftConfusionMatrix) -> tuple[jax.Array, jax.Array]:
  """The recall of the positives and that of the negatives."""
  tp, fn, fp, tn = _floats(confusion)
  return _ratio(tp, tp + fn), _ratio(tn, tn + fp)


def accuracy(confusion: SoftConfusionMatrix) -> jax.Array:
  r"""Computes the accuracy from a soft confusion matrix.

  .. math::
    \frac{\mathrm{TP} + \mathrm{TN}}
         {\mathrm{TP} + \mathrm{FN} + \mathrm{FP} + \mathrm{TN}}

  Args:
    confusion: The matrix, as :func:`soft_confusion_matrix` returns it.

  Returns:
    A scalar in [0, 1]; 1 for an empty matrix.

  Raises:
    TypeError: If ``confusion`` is not a ``SoftConfusionMatrix``.

  Examples:
    >>> matrix = confusion.SoftConfusionMatrix(*jnp.array([3.0, 1, 2, 4]))
    >>> print(confusion.accuracy(matrix))
    0.7

  References:
    Han, Moniz and Chawla, `AnyLoss <https://arxiv.org/abs/2405.14745>`_, 2024.
  """
  confusion = _floats(confusion)
  correct = confusion.true_positive + confusion.true_negative
  errors = confusion.false_positive + confusion.false_negative
  return _ratio(correct, correct + errors)


def f_beta(
  confusion: SoftConfusionMatrix, *, beta: jax.typing.ArrayLike = 1.0
) -> jax.Array:
  r"""Computes the F score, a weighted harmonic mean of precision and recall.

  .. math::
    \frac{(1 + \beta^2) \mathrm{TP}}
         {(1 + \beta^2) \mathrm{TP} + \beta^2 \mathrm{FN} + \mathrm{FP}}

  Args:
    confusion: The matrix, as :func:`soft_confusion_matrix` returns it.
    beta: Weight of recall relative to precision, above 0.

  Returns:
    A scalar in [0, 1]; 1 for an empty matrix, 0 for one without positives.

  Raises:
    TypeError: If ``confusion`` is not a ``SoftConfusionMatrix``.
    ValueError: If ``beta`` is not above 0.

  Examples:
    >>> matrix = confusion.SoftConfusionMatrix(*jnp.array([3.0, 1, 2, 4]))
    >>> print(confusion.f_beta(matrix))
    0.6666667

  References:
    Han, Moniz and Chawla, `AnyLoss <https://arxiv.org/abs/2405.14745>`_, 2024.
  """
  confusion = _floats(confusion)
  found = confusion.true_positive
  scale = checks.as_scalar("beta", beta, found.dtype, "(0, inf)")
  weight = scale * scale
  missed = weight * confusion.false_negative + confusion.false_positive
  return _ratio((1.0 + weight) * found, (1.0 + weight) * found + missed)


def balanced_accuracy(confusion: SoftConfusionMatrix) -> jax.Array:
  r"""Computes the mean of the recalls of positives and of negatives.

  .. math::
    \frac{1}{2} \Bigl( \frac{\mathrm{TP}}{\mathrm{TP} + \mathrm{FN}}
      + \frac{\mathrm{TN}}{\mathrm{TN} + \mathrm{FP}} \Bigr)

  Args:
    confusion: The matrix, as :func:`soft_confusion_matrix` returns it.

  Returns:
    A scalar in [0, 1]. The recall of a class without examples is 1.

  Raises:
    TypeError: If ``confusion`` is not a ``SoftConfusionMatrix``.

  Examples:
    >>> matrix = confusion.SoftConfusionMatrix(*jnp.array([3.0, 1, 2, 4]))
    >>> print(f"{confusion.balanced_accuracy(matrix):.4f}")
    0.7083

  References:
    Han, Moniz and Chawla, `AnyLoss <https://arxiv.org/abs/2405.14745>`_, 2024.
  """
  positives, negatives = _recalls(confusion)
  return (positives + negatives) / 2.0


def geometric_mean(confusion: SoftConfusionMatrix) -> jax.Array:
  r"""Computes the geometric mean of the recalls of both classes.

  .. math::
    \sqrt{\frac{\mathrm{TP}}{\mathrm{TP} + \mathrm{FN}} \cdot
          \frac{\mathrm{TN}}{\mathrm{TN} + \mathrm{FP}}}

  Args:
    confusion: The matrix, as :func:`soft_confusion_matrix` returns it.

  Returns:
    A scalar in [0, 1], with gradient 0 at 0. The recall of a class without
    examples is 1.

  Raises:
    TypeError: If ``confusion`` is not a ``SoftConfusionMatrix``.

  Examples:
    >>> matrix = confusion.SoftConfusionMatrix(*jnp.array([3.0, 1, 2, 4]))
    >>> print(f"{confusion.geometric_mean(matrix):.4f}")
    0.7071

  References:
    Han, Moniz and Chawla, `AnyLoss <https://arxiv.org/abs/2405.14745>`_, 2024.
  """

  def root(x: jax.Array) -> jax.Array:
    # The root's infinite derivative at 0 would make the gradient NaN where the
    # recall underflows.
    is_zero = x == 0
    safe = jnp.where(is_zero, jnp.ones_like(x), x)
    return jnp.where(is_zero, x, jnp.sqrt(safe))

  positives, negatives = _recalls(confusion)
  return root(positives) * root(negatives)
