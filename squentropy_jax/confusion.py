# SPDX-License-Identifier: Apache-2.0
"""The soft confusion matrix of a binary classifier, and metrics of it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.elementwise import sigmoid


class SoftConfusionMatrix(NamedTuple):
  """Counts of a binary classifier in which an example counts by shares.

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
  """``sigmoid(z) - 1/2``; its slope keeps its digits on both sides."""
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
  r"""The confusion matrix of a set, with smooth predictions; differentiable.

  .. math::
    \hat y = \sigma(L (\sigma(z) - 1/2)), \quad
    \mathrm{TP} = \sum y \hat y, \quad
    \mathrm{FN} = \sum y (1 - \hat y), \quad
    \mathrm{FP} = \sum (1 - y) \hat y, \quad
    \mathrm{TN} = \sum (1 - y) (1 - \hat y)

  Args:
    logits: Scores, any shape, any floating dtype.
    labels: Labels of the same shape, the integers 0 and 1 or floats between.
    amplification: :math:`L` above 0, the steepness of the step at 1/2.
    where: Which entries count, booleans of the same shape.

  Returns:
    Four scalars, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating or ``labels`` not numbers.
    ValueError: If shapes differ, if a concrete label is outside ``[0, 1]`` (a
      traced one gives NaN), or ``amplification`` not above 0.

  Examples:
    >>> logits = jnp.array([2.0, 0.4, -0.4, -1.4])
    >>> counts = soft_confusion_matrix(logits, jnp.array([1, 0, 0, 0]))
    >>> print(f"{counts.true_positive:.3f} {counts.false_positive:.3f}")
    1.000 1.000

  References:
    Han, Moniz and Chawla, `AnyLoss: Transforming Classification Metrics into
    Loss Functions <https://arxiv.org/abs/2405.14745>`_, KDD 2024.

  .. seealso:: :func:`squentropy_jax.losses.anyloss`
  """
  z, y, keep = prelude.checked_entries(logits, labels, where)
  steepness = checks.as_scalar(
    "amplification", amplification, z.dtype, "(0, inf)"
  )
  return _soft_confusion_matrix(z, y, keep, steepness)


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
  """``part / whole``; 1 of nothing, where there is nothing to get wrong."""
  nothing = whole == 0
  one = jnp.ones_like(whole)
  return jnp.where(nothing, one, part / jnp.where(nothing, one, whole))


def _floats(confusion: SoftConfusionMatrix) -> SoftConfusionMatrix:
  """The counts in float32 or wider; whole numbers are counts too."""
  if not isinstance(confusion, SoftConfusionMatrix):
    raise TypeError(
      f"confusion must be a SoftConfusionMatrix, got {confusion!r}; "
      "soft_confusion_matrix(logits, labels) returns one."
    )
  counts = map(jnp.asarray, confusion)
  return SoftConfusionMatrix(
    *(x.astype(checks.compute_dtype(x.dtype)) for x in counts)
  )


def _recalls(confusion: SoftConfusionMatrix) -> tuple[jax.Array, jax.Array]:
  """The shares of positives and of negatives that are predicted right."""
  tp, fn, fp, tn = _floats(confusion)
  return _ratio(tp, tp + fn), _ratio(tn, tn + fp)


def accuracy(confusion: SoftConfusionMatrix) -> jax.Array:
  r"""Share of right predictions in a soft confusion matrix.

  .. math::
    \frac{\mathrm{TP} + \mathrm{TN}}
         {\mathrm{TP} + \mathrm{FN} + \mathrm{FP} + \mathrm{TN}}

  Args:
    confusion: What :func:`soft_confusion_matrix` returns.

  Returns:
    A scalar in [0, 1]; 1 for an empty set.

  Raises:
    TypeError: If ``confusion`` is not a ``SoftConfusionMatrix``.

  Examples:
    >>> print(losses.accuracy(SoftConfusionMatrix(*jnp.array([3.0, 1, 2, 4]))))
    0.7

  References:
    Han, Moniz and Chawla, `AnyLoss <https://arxiv.org/abs/2405.14745>`_, 2024.
  """
  confusion = _floats(confusion)
  right = confusion.true_positive + confusion.true_negative
  wrong = confusion.false_positive + confusion.false_negative
  return _ratio(right, right + wrong)


def f_beta(
  confusion: SoftConfusionMatrix, *, beta: jax.typing.ArrayLike = 1.0
) -> jax.Array:
  r"""F score: weighted harmonic mean of precision and recall.

  .. math::
    \frac{(1 + \beta^2) \mathrm{TP}}
         {(1 + \beta^2) \mathrm{TP} + \beta^2 \mathrm{FN} + \mathrm{FP}}

  Args:
    confusion: What :func:`soft_confusion_matrix` returns.
    beta: How much recall counts against precision, above 0.

  Returns:
    A scalar in [0, 1]; 1 for an empty set, 0 for one without positives.

  Raises:
    TypeError: If ``confusion`` is not a ``SoftConfusionMatrix``.
    ValueError: If ``beta`` is not above 0.

  Examples:
    >>> print(losses.f_beta(SoftConfusionMatrix(*jnp.array([3.0, 1, 2, 4]))))
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
  r"""Mean of the recalls of positives and of negatives.

  .. math::
    \frac{1}{2} \Bigl( \frac{\mathrm{TP}}{\mathrm{TP} + \mathrm{FN}}
      + \frac{\mathrm{TN}}{\mathrm{TN} + \mathrm{FP}} \Bigr)

  Args:
    confusion: What :func:`soft_confusion_matrix` returns.

  Returns:
    A scalar in [0, 1]. The recall of a class without examples is 1.

  Raises:
    TypeError: If ``confusion`` is not a ``SoftConfusionMatrix``.

  Examples:
    >>> counts = SoftConfusionMatrix(*jnp.array([3.0, 1, 2, 4]))
    >>> print(f"{losses.balanced_accuracy(counts):.4f}")
    0.7083

  References:
    Han, Moniz and Chawla, `AnyLoss <https://arxiv.org/abs/2405.14745>`_, 2024.
  """
  positives, negatives = _recalls(confusion)
  return (positives + negatives) / 2.0


def geometric_mean(confusion: SoftConfusionMatrix) -> jax.Array:
  r"""Geometric mean of the recalls of positives and of negatives.

  .. math::
    \sqrt{\frac{\mathrm{TP}}{\mathrm{TP} + \mathrm{FN}} \cdot
          \frac{\mathrm{TN}}{\mathrm{TN} + \mathrm{FP}}}

  Args:
    confusion: What :func:`soft_confusion_matrix` returns.

  Returns:
    A scalar in [0, 1], with slope 0 at 0. The recall of a class without
    examples is 1.

  Raises:
    TypeError: If ``confusion`` is not a ``SoftConfusionMatrix``.

  Examples:
    >>> counts = SoftConfusionMatrix(*jnp.array([3.0, 1, 2, 4]))
    >>> print(f"{losses.geometric_mean(counts):.4f}")
    0.7071

  References:
    Han, Moniz and Chawla, `AnyLoss <https://arxiv.org/abs/2405.14745>`_, 2024.
  """

  def root(x: jax.Array) -> jax.Array:
    # A recall near 0 has next to no slope in the logits, which the root's
    # infinite one does not outweigh.
    zero = x == 0
    return jnp.where(zero, x, jnp.sqrt(jnp.where(zero, jnp.ones_like(x), x)))

  positives, negatives = _recalls(confusion)
  return root(positives) * root(negatives)
