# SPDX-License-Identifier: Apache-2.0
"""Overlap of predicted and labelled positives: dice and its kin."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks, elementwise
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.elementwise import sigmoid, softplus


def _not_negative(
  dtype: Any, **values: jax.typing.ArrayLike
) -> list[jax.Array]:
  """Hyper-parameters as scalars, which must be at least 0."""
  return [
    checks.as_scalar(name, value, dtype, "[0, inf)")
    for name, value in values.items()
  ]


def _ratio_of_sums(
  miss: jax.Array,
  mass: jax.Array,
  smoothing: jax.Array,
  axes: tuple[int, ...],
  keep: jax.Array | None,
) -> jax.Array:
  """``sum(miss) / (sum(mass) + smoothing)``; 0 for a set without entries."""
  if keep is None:
    keep = jnp.ones_like(miss, bool)
  zero = jnp.zeros_like(miss)
  miss = jnp.where(keep, miss, zero).sum(axes)
  mass = jnp.where(keep, mass, zero).sum(axes) + smoothing
  # Without smoothing or positives the ratio is 1 for every logit, also for
  # those whose probabilities underflow.
  no_mass = mass == 0
  ratio = elementwise.quotient(
    miss, jnp.where(no_mass, jnp.ones_like(mass), mass)
  )
  return jnp.where(no_mass, keep.any(axes).astype(ratio.dtype), ratio)


def _terms(
  q: jax.Array, rest: jax.Array, y: jax.Array, squared: bool
) -> tuple[jax.Array, jax.Array]:
  """``q + y - 2 q y`` and ``q + y``, or of squares; ``rest`` is ``1 - q``."""
  false, missed = q * (1.0 - y), rest * y
  if squared:
    return jnp.square(false - missed), q * q + y * y
  return false + missed, q + y


@functools.partial(jax.jit, static_argnums=(3, 4), inline=True)
def _dice(
  z: jax.Array,
  y: jax.Array,
  keep: jax.Array | None,
  axes: tuple[int, ...],
  squared: bool,
  smoothing: jax.Array,
) -> jax.Array:
  miss, mass = _terms(sigmoid(z), sigmoid(-z), y, squared)
  return _ratio_of_sums(miss, mass, smoothing, axes, keep)


def dice(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  smoothing: jax.typing.ArrayLike = 1.0,
  squared: bool = False,
  axis: int | tuple[int, ...] | None = (),
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Dice loss: one less the share of predicted and labelled mass in common.

  With sums over ``axis``, for binary labels :math:`y` and :math:`p=\sigma(z)`,

  .. math::
    \ell = 1 - \frac{2 \sum p y + \text{smoothing}}
                    {\sum p + \sum y + \text{smoothing}}
    \quad \text{or} \quad
    \ell = 1 - \frac{2 \sum p y + \text{smoothing}}
                    {\sum p^2 + \sum y^2 + \text{smoothing}} .

  With ``smoothing=0`` and probabilities 0 and 1 it is one less the F1 score.
  Then a set without positives has loss 1 and slope 0 whatever its logits are;
  smoothing is what makes negatives matter. Not a proper loss: do not read
  probabilities off the logits.

  Args:
    logits: Scores, any shape, any floating dtype.
    labels: Labels of the same shape, the integers 0 and 1 or floats between.
    smoothing: Added to numerator and denominator, at least 0.
    squared: Whether the denominator sums squares, as in the paper of Milletari.
    axis: What numerator and denominator are summed over: an axis or several,
      ``()`` for each entry by itself, ``None`` for the whole set.
    where: Which entries to keep, booleans of the same shape. Dropped ones have
      loss and gradient 0; a set of none has loss 0.

  Returns:
    The loss of each entry or set, the logits' shape less ``axis``, float32 or
    wider.

  Raises:
    TypeError: If ``logits`` is not floating or ``labels`` not numbers.
    ValueError: If shapes or ``axis`` do not fit, or if a concrete label is
      outside ``[0, 1]`` (a traced one gives NaN) or ``smoothing`` below 0.

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
  z, y, keep = prelude.checked_entries(logits, labels, where)
  scalars = _not_negative(z.dtype, smoothing=smoothing)
  axes, squared = checks.as_axes(axis, z), checks.as_flag("squared", squared)
  return _dice(z, y, keep, axes, squared, *scalars)


@functools.partial(jax.jit, static_argnums=3, inline=True)
def _tversky(
  z: jax.Array,
  y: jax.Array,
  keep: jax.Array | None,
  axes: tuple[int, ...],
  alpha: jax.Array,
  beta: jax.Array,
  smoothing: jax.Array,
) -> jax.Array:
  p, rest = sigmoid(z), sigmoid(-z)
  miss = alpha * p * (1.0 - y) + beta * rest * y
  return _ratio_of_sums(miss, p * y + miss, smoothing, axes, keep)


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
  r"""Tversky loss: dice with weights on false positives and false negatives.

  With sums over ``axis``, for binary labels :math:`y` and :math:`p=\sigma(z)`,

  .. math::
    \ell = 1 - \frac{\sum p y + \text{smoothing}}
      {\sum p y + \alpha \sum p (1 - y) + \beta \sum (1 - p) y
       + \text{smoothing}} .

  Both weights at 1/2 give :func:`dice` with twice the smoothing. More weight on
  ``beta`` finds more positives, more on ``alpha`` raises fewer false alarms.

  Args:
    logits: Scores, any shape, any floating dtype.
    labels: Labels of the same shape, the integers 0 and 1 or floats between.
    alpha: Weight of false positives, at least 0.
    beta: Weight of false negatives, at least 0.
    smoothing: Added to numerator and denominator, at least 0.
    axis: What numerator and denominator are summed over: an axis or several,
      ``()`` for each entry by itself, ``None`` for the whole set.
    where: Which entries to keep, booleans of the same shape. Dropped ones have
      loss and gradient 0; a set of none has loss 0.

  Returns:
    The loss of each entry or set, the logits' shape less ``axis``, float32 or
    wider.

  Raises:
    TypeError: If ``logits`` is not floating or ``labels`` not numbers.
    ValueError: If shapes or ``axis`` do not fit, or if a concrete label is
      outside ``[0, 1]`` (a traced one gives NaN) or a weight below 0.

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
  z, y, keep = prelude.checked_entries(logits, labels, where)
  scalars = _not_negative(z.dtype, alpha=alpha, beta=beta, smoothing=smoothing)
  return _tversky(z, y, keep, checks.as_axes(axis, z), *scalars)


@functools.partial(jax.jit, static_argnums=(3, 4), inline=True)
def _self_adjusting_dice(
  z: jax.Array,
  y: jax.Array,
  keep: jax.Array | None,
  axes: tuple[int, ...],
  squared: bool,
  alpha: jax.Array,
  smoothing: jax.Array,
) -> jax.Array:
  p, rest = sigmoid(z), sigmoid(-z)
  log_damping = -alpha * softplus(z)
  q = p * jnp.exp(log_damping)
  # Of what q is less than 1, first p and then the damping.
  miss, mass = _terms(q, rest - p * jnp.expm1(log_damping), y, squared)
  return _ratio_of_sums(miss, mass, smoothing, axes, keep)


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
  r"""Dice loss with a factor that silences easy examples.

  With sums over ``axis``, for binary labels :math:`y` and :math:`p=\sigma(z)`,

  .. math::
    \ell = 1 - \frac{2 \sum q y + \text{smoothing}}
                    {\sum q + \sum y + \text{smoothing}},
    \qquad q = (1 - p)^\alpha p .

  :math:`q` is largest at :math:`p = 1 / (1 + \alpha)`: the loss of a positive
  *rises* again with more confidence: with ``alpha=1`` training pulls positives
  towards a probability of 1/2. The authors' scripts use 0.01.

  Args:
    logits: Scores, any shape, any floating dtype.
    labels: Labels of the same shape, the integers 0 and 1 or floats between.
    alpha: Power of the factor, at least 0; 0 is :func:`dice`.
    smoothing: Added to numerator and denominator, at least 0.
    squared: Whether the denominator sums squares.
    axis: What numerator and denominator are summed over: an axis or several,
      ``()`` for each entry by itself, ``None`` for the whole set.
    where: Which entries to keep, booleans of the same shape. Dropped ones have
      loss and gradient 0; a set of none has loss 0.

  Returns:
    The loss of each entry or set, the logits' shape less ``axis``, float32 or
    wider.

  Raises:
    TypeError: If ``logits`` is not floating or ``labels`` not numbers.
    ValueError: If shapes or ``axis`` do not fit, or if a concrete label is
      outside ``[0, 1]`` (a traced one gives NaN) or a hyper-parameter below 0.

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
  z, y, keep = prelude.checked_entries(logits, labels, where)
  scalars = _not_negative(z.dtype, alpha=alpha, smoothing=smoothing)
  axes = checks.as_axes(axis, z)
  squared = checks.as_flag("squared", squared)
  return _self_adjusting_dice(z, y, keep, axes, squared, *scalars)
