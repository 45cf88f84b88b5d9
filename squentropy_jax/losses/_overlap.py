# SPDX-License-Identifier: Apache-2.0
"""Overlap: one minus the overlap of predicted and labelled positives.

Labels are binary, one for each score: 0, 1 or a float between. ``axis`` says
which entries are one set: ``()`` each entry by itself, an axis or several, or
``None`` for all entries.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import checks, elementwise, entries
from squentropy_jax._core.elementwise import sigmoid, softplus
from squentropy_jax._core.hyperparameters import (
  Domain,
  Hyperparameters,
  Static,
)

# ``formula(z, y, **hyperparameters)`` gives two terms of each entry. The loss
# of a set is ``sum(first) / (sum(second) + smoothing)``.
_Formula = Callable[..., tuple[jax.Array, jax.Array]]


def _ratio_of_sums(
  **domains: Domain,
) -> Callable[[_Formula], Callable[..., jax.Array]]:
  """Makes a loss of sets of entries from a formula of one entry."""
  hyperparameters = Hyperparameters({**domains, "smoothing": "[0, inf)"}, {})

  def decorate(formula: _Formula) -> Callable[..., jax.Array]:
    def loss(
      logits: ArrayLike,
      labels: ArrayLike,
      *,
      axis: int | tuple[int, ...] | None,
      where: ArrayLike | None,
      **values: Any,
    ) -> jax.Array:
      z, y, keep = entries.checked_entries(logits, labels, where)
      axes = checks.as_axes(axis, z)
      numbers, static = entries.checked_numbers(
        hyperparameters, values, z, keep, axes
      )
      return _evaluate(formula, axes, static, z, y, keep, numbers)

    return loss

  return decorate


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _evaluate(
  formula: _Formula,
  axes: tuple[int, ...],
  static: Static,
  z: jax.Array,
  y: jax.Array,
  keep: jax.Array | None,
  numbers: Mapping[str, jax.Array],
) -> jax.Array:
  others = {n: x for n, x in numbers.items() if n != "smoothing"}
  terms = formula(z, y, **others, **dict(static))
  if keep is None:
    keep = jnp.ones_like(z, bool)
  above, below = (
    jnp.where(keep, x, jnp.zeros_like(x)).sum(axes, keepdims=True)
    for x in terms
  )
  below = below + numbers["smoothing"]
  # Without smoothing or positives the ratio is 1 for every logit, also for
  # those whose probabilities underflow.
  is_zero = below == 0
  ratio = elementwise.quotient(
    above, jnp.where(is_zero, jnp.ones_like(below), below)
  )
  some = keep.any(axes, keepdims=True).astype(ratio.dtype)
  return jnp.where(is_zero, some, ratio).squeeze(axes)


def _dice_terms(
  q: jax.Array, one_minus_q: jax.Array, y: jax.Array, squared: bool
) -> tuple[jax.Array, jax.Array]:
  """``q + y - 2 q y`` and ``q + y``, or the same with squares."""
  false, missed = q * (1.0 - y), one_minus_q * y
  if squared:
    return jnp.square(false - missed), q * q + y * y
  return false + missed, q + y


@_ratio_of_sums(squared=bool)
def _dice(
  z: jax.Array, y: jax.Array, *, squared: bool
) -> tuple[jax.Array, jax.Array]:
  return _dice_terms(sigmoid(z), sigmoid(-z), y, squared)


def dice(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  smoothing: jax.typing.ArrayLike = 1.0,
  squared: bool = False,
  axis: int | tuple[int, ...] | None = (),
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the Dice loss: one minus the smoothed Dice coefficient.

  Use when positives are few, as in segmentation and tagging, and overlap is
  what you measure.

  Avoid when you need probabilities: the loss is not proper. Avoid
  ``smoothing=0`` where a set may have no positive.

  With sums over ``axis``, for binary labels :math:`y` and :math:`p=\sigma(z)`,

  .. math::
    \ell = 1 - \frac{2 \sum p y + \text{smoothing}}
                    {\sum p + \sum y + \text{smoothing}}
    \quad \text{or} \quad
    \ell = 1 - \frac{2 \sum p y + \text{smoothing}}
                    {\sum p^2 + \sum y^2 + \text{smoothing}} .

  With ``smoothing=0`` and probabilities 0 and 1 it is one minus the F1 score.
  A set without positives then has loss 1 and gradient 0 for all logits. With
  smoothing, negatives have a gradient in such a set too.

  Args:
    logits: Scores, any shape, any floating dtype.
    labels: Labels of the same shape: booleans, the integers 0 and 1, or floats
      between.
    smoothing: Added to numerator and denominator, at least 0.
    squared: Whether the denominator sums squares, as in Milletari's paper.
    axis: What numerator and denominator are summed over: an axis or several,
      ``()`` for each entry by itself, ``None`` for all entries as one set.
    where: Which entries to keep, booleans of the same shape. Dropped ones have
      loss and gradient 0. A set without kept entries has loss 0.

  Returns:
    The loss of each set, of the logits' shape without ``axis``, float32 or
    wider.

  Raises:
    TypeError: If ``logits`` is not floating or ``labels`` not numbers.
    ValueError: If shapes or ``axis`` do not fit, if a concrete label is outside
      ``[0, 1]`` (a traced one gives NaN), or if a concrete ``smoothing`` is
      below 0.

  Examples:
    >>> logits = jnp.array([2.0, 0.4, -0.4, -1.4])
    >>> labels = jnp.array([1, 1, 0, 0])
    >>> print(losses.dice(logits, labels))
    [0.0414 0.1544 0.2864 0.1651]
    >>> print(losses.dice(logits, labels, axis=None))
    0.2204625

  References:
    Li, Sun, Meng, Liang, Wu and Li, `Dice Loss for Data-imbalanced NLP Tasks
    <https://arxiv.org/abs/1911.02855>`_, ACL 2020; Milletari, Navab and Ahmadi,
    `V-Net <https://arxiv.org/abs/1606.04797>`_, 3DV 2016.

  .. seealso:: :func:`squentropy_jax.losses.tversky`
  """
  return _dice(
    logits,
    labels,
    smoothing=smoothing,
    squared=squared,
    axis=axis,
    where=where,
  )


@_ratio_of_sums(alpha="[0, inf)", beta="[0, inf)")
def _tversky(
  z: jax.Array, y: jax.Array, *, alpha: jax.Array, beta: jax.Array
) -> tuple[jax.Array, jax.Array]:
  p, one_minus_p = sigmoid(z), sigmoid(-z)
  errors = alpha * p * (1.0 - y) + beta * one_minus_p * y
  return errors, p * y + errors


def tversky(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  alpha: jax.typing.ArrayLike = 0.5,
  beta: jax.typing.ArrayLike = 0.5,
  smoothing: jax.typing.ArrayLike = 1.0,
  axis: int | tuple[int, ...] | None = (),
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the Tversky loss: Dice with weights on the two kinds of error.

  Use when positives are few and false positives and false negatives do not
  cost the same.

  Avoid when you have no validation metric to choose the weights by: with a
  weight near 0 the loss is minimal if all or no entries are predicted positive.

  With sums over ``axis``, for binary labels :math:`y` and :math:`p=\sigma(z)`,

  .. math::
    \ell = 1 - \frac{\sum p y + \text{smoothing}}
      {\sum p y + \alpha \sum p (1 - y) + \beta \sum (1 - p) y
       + \text{smoothing}} .

  With both weights at 1/2 it is :func:`dice` with twice the smoothing. A larger
  ``beta`` raises recall, a larger ``alpha`` raises precision.

  Args:
    logits: Scores, any shape, any floating dtype.
    labels: Labels of the same shape: booleans, the integers 0 and 1, or floats
      between.
    alpha: Weight of false positives, at least 0.
    beta: Weight of false negatives, at least 0.
    smoothing: Added to numerator and denominator, at least 0.
    axis: What numerator and denominator are summed over: an axis or several,
      ``()`` for each entry by itself, ``None`` for all entries as one set.
    where: Which entries to keep, booleans of the same shape. Dropped ones have
      loss and gradient 0. A set without kept entries has loss 0.

  Returns:
    The loss of each set, of the logits' shape without ``axis``, float32 or
    wider.

  Raises:
    TypeError: If ``logits`` is not floating or ``labels`` not numbers.
    ValueError: If shapes or ``axis`` do not fit, if a concrete label is outside
      ``[0, 1]`` (a traced one gives NaN), or if a concrete hyper-parameter is
      below 0.

  Examples:
    >>> logits = jnp.array([2.0, 0.4, -0.4, -1.4])
    >>> labels = jnp.array([1, 1, 0, 0])
    >>> print(losses.tversky(logits, labels, alpha=0.3, beta=0.7, axis=None))
    0.17995176

  References:
    Salehi, Erdogmus and Gholipour, `Tversky Loss Function for Image
    Segmentation Using 3D Fully Convolutional Deep Networks
    <https://arxiv.org/abs/1706.05721>`_, MLMI 2017.

  .. seealso:: :func:`squentropy_jax.losses.dice`
  """
  return _tversky(
    logits,
    labels,
    alpha=alpha,
    beta=beta,
    smoothing=smoothing,
    axis=axis,
    where=where,
  )


@_ratio_of_sums(alpha="[0, inf)", squared=bool)
def _self_adjusting_dice(
  z: jax.Array, y: jax.Array, *, alpha: jax.Array, squared: bool
) -> tuple[jax.Array, jax.Array]:
  p, one_minus_p = sigmoid(z), sigmoid(-z)
  log_factor = -alpha * softplus(z)
  q = p * jnp.exp(log_factor)
  # 1 - q without cancellation: what p lacks, and what the factor takes.
  one_minus_q = one_minus_p - p * jnp.expm1(log_factor)
  return _dice_terms(q, one_minus_q, y, squared)


def self_adjusting_dice(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  alpha: jax.typing.ArrayLike = 1.0,
  smoothing: jax.typing.ArrayLike = 1.0,
  squared: bool = False,
  axis: int | tuple[int, ...] | None = (),
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the Dice loss with a factor that lowers easy examples' weight.

  Use when most entries are easy negatives, with a small ``alpha``.

  Avoid when you keep the default ``alpha`` without a validation metric, or need
  probabilities: the loss is not proper.

  With sums over ``axis``, for binary labels :math:`y` and :math:`p=\sigma(z)`,

  .. math::
    \ell = 1 - \frac{2 \sum q y + \text{smoothing}}
                    {\sum q + \sum y + \text{smoothing}},
    \qquad q = (1 - p)^\alpha p .

  :math:`q` is largest at :math:`p = 1 / (1 + \alpha)`. Beyond it the loss of a
  positive *rises* with confidence: with ``alpha=1``, the paper's value,
  training pulls positives towards probability 1/2. The authors' scripts use
  0.01.

  Args:
    logits: Scores, any shape, any floating dtype.
    labels: Labels of the same shape: booleans, the integers 0 and 1, or floats
      between.
    alpha: Power of the factor, at least 0; 0 is :func:`dice`.
    smoothing: Added to numerator and denominator, at least 0.
    squared: Whether the denominator sums squares.
    axis: What numerator and denominator are summed over: an axis or several,
      ``()`` for each entry by itself, ``None`` for all entries as one set.
    where: Which entries to keep, booleans of the same shape. Dropped ones have
      loss and gradient 0. A set without kept entries has loss 0.

  Returns:
    The loss of each set, of the logits' shape without ``axis``, float32 or
    wider.

  Raises:
    TypeError: If ``logits`` is not floating or ``labels`` not numbers.
    ValueError: If shapes or ``axis`` do not fit, if a concrete label is outside
      ``[0, 1]`` (a traced one gives NaN), or if a concrete hyper-parameter is
      below 0.

  Examples:
    >>> logits = jnp.array([2.0, 0.4, -0.4, -1.4])
    >>> labels = jnp.array([1, 1, 0, 0])
    >>> print(losses.self_adjusting_dice(logits, labels))
    [0.4252 0.3391 0.1937 0.137 ]

  References:
    Li, Sun, Meng, Liang, Wu and Li, `Dice Loss for Data-imbalanced NLP Tasks
    <https://arxiv.org/abs/1911.02855>`_, ACL 2020.

  .. seealso:: :func:`squentropy_jax.losses.dice`
  """
  return _self_adjusting_dice(
    logits,
    labels,
    alpha=alpha,
    smoothing=smoothing,
    squared=squared,
    axis=axis,
    where=where,
  )
