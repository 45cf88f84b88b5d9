# SPDX-License-Identifier: Apache-2.0
"""Sigmoid losses: a model has one logit for each label, which is 0 or 1.

These losses are for binary classification with one logit, and for examples with
several labels, where each label has its own logit. There is no class axis.
"""

from collections.abc import Mapping
import functools

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks, entries
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.elementwise import power, softplus, weighted
from squentropy_jax._core.hyperparameters import Hyperparameters

_CROSS_ENTROPY = Hyperparameters(
  {"gamma": "[0, inf)", "positive_weight": "[0, inf)"}, {}
)
_SQUENTROPY = Hyperparameters(
  {"scale": "[0, inf)", "positive_weight": "[0, inf)"}, {}
)


def _expected(
  y: jax.Array,
  positive: jax.Array,
  negative: jax.Array,
  positive_weight: jax.Array,
) -> jax.Array:
  """The expected loss of labels; a label of probability 0 adds exactly 0."""
  return weighted(y * positive_weight, positive) + weighted(1.0 - y, negative)


@functools.partial(jax.jit, inline=True)
def _binary_cross_entropy(
  z: jax.Array,
  y: jax.Array,
  keep: jax.Array | None,
  numbers: Mapping[str, jax.Array],
) -> jax.Array:
  positive, negative = softplus(-z), softplus(z)
  if "gamma" in numbers:
    gamma = numbers["gamma"]
    # One minus the probability of the label is exp(-loss of the other label).
    positive, negative = (
      weighted(power(-negative, gamma), positive),
      weighted(power(-positive, gamma), negative),
    )
  loss = _expected(y, positive, negative, numbers["positive_weight"])
  return prelude.drop(loss, keep)


def binary_cross_entropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  gamma: jax.typing.ArrayLike = 0.0,
  positive_weight: jax.typing.ArrayLike = 1.0,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the cross-entropy of the sigmoid of each logit.

  Use when a model has one logit for a binary label, or one logit for each of
  several labels that an example may have.

  Avoid when exactly one of several classes is right:
  :func:`squentropy_jax.losses.cross_entropy` normalises over the classes.

  For a logit :math:`z`, a label :math:`y` and :math:`p = \sigma(z)`,

  .. math::
    \ell(z, y) = - \text{positive\_weight} \, y \, (1 - p)^\text{gamma} \log p
                 - (1 - y) \, p^\text{gamma} \log(1 - p) .

  With the default ``gamma`` of 0 this is binary cross-entropy, which equals the
  cross-entropy of the logits :math:`[0, z]` of two classes. With a ``gamma``
  above 0 it is the focal loss, which lowers the weight of entries that the
  model already fits. The focal loss is not proper. A label between 0 and 1
  gives the expected loss.

  The loss has one number for each logit. For logits ``[batch, labels]``,
  ``loss.sum(-1)`` is the loss of each example. A ``positive_weight`` above 1
  raises recall, and one below 1 raises precision. If each label has a weight,
  pass ``jnp.broadcast_to(weights, logits.shape)`` for weights of shape
  ``[labels]``.

  Some focal losses weight positives by ``alpha`` and negatives by
  ``1 - alpha``. They are ``1 - alpha`` times this loss with
  ``positive_weight=alpha / (1 - alpha)``.

  For an infinite logit, the loss is its limit, 0 or infinity.

  Args:
    logits: Scores, any shape, any floating dtype.
    labels: Labels of the same shape: booleans, the integers 0 and 1, or floats
      between.
    gamma: Focusing exponent, 0 or more, a scalar or of the logits' shape.
    positive_weight: Weight of the loss of positives, 0 or more, a scalar or of
      the logits' shape. The number of negatives divided by that of positives
      gives both the same total weight.
    where: Which entries to keep, booleans of the same shape. Dropped ones have
      loss and gradient 0.

  Returns:
    The loss of each entry, of the logits' shape, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating or ``labels`` not numbers.
    ValueError: If shapes differ, if a concrete label is outside ``[0, 1]`` (a
      traced one gives NaN), or if a concrete hyper-parameter is below 0.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> labels = jnp.array([[True, False, False], [False, True, True]])
    >>> print(losses.binary_cross_entropy(logits, labels).sum(-1))
    [1.1333 1.9805]
    >>> print(losses.binary_cross_entropy(logits[0], labels[0], gamma=2.0))
    [0.0018 0.1733 0.0227]

  References:
    Cox, `The Regression Analysis of Binary Sequences
    <https://doi.org/10.1111/j.2517-6161.1958.tb00292.x>`_, 1958; Lin, Goyal,
    Girshick, He and Dollár, `Focal Loss for Dense Object Detection
    <https://arxiv.org/abs/1708.02002>`_, ICCV 2017.

  .. seealso:: :func:`squentropy_jax.losses.binary_squentropy`,
    :func:`squentropy_jax.losses.focal`
  """
  z, y, keep = entries.checked_entries(logits, labels, where)
  values = {"gamma": gamma, "positive_weight": positive_weight}
  numbers, _ = entries.checked_numbers(_CROSS_ENTROPY, values, z, keep, axes=())
  if checks.is_concrete(gamma) and not np.any(gamma):
    # The powers are 1. Each would take an exponential.
    del numbers["gamma"]
  return _binary_cross_entropy(z, y, keep, numbers)


@functools.partial(jax.jit, inline=True)
def _binary_squentropy(
  z: jax.Array,
  y: jax.Array,
  keep: jax.Array | None,
  numbers: Mapping[str, jax.Array],
) -> jax.Array:
  loss = _expected(y, softplus(-z), softplus(z), numbers["positive_weight"])
  # An impossible class has no square. At inf the loss is infinite without it.
  finite = jnp.where(jnp.isinf(z), jnp.zeros_like(z), z)
  # The factor comes first: 0 times a square that overflows would be NaN.
  square = (1.0 - y) * numbers["scale"] * finite * finite
  return prelude.drop(loss + square, keep)


def binary_squentropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  scale: jax.typing.ArrayLike = 1.0,
  positive_weight: jax.typing.ArrayLike = 1.0,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the squentropy loss of the logits 0 and z of two classes.

  Use when a model has one logit for each label and should be trained with
  squentropy of two classes.

  Avoid when positives and negatives should be treated alike: the square changes
  the loss of negatives only, because the logit of class 0 is always 0. To treat
  them alike, return two logits and use
  :func:`squentropy_jax.losses.squentropy`. Avoid when probabilities are
  needed without recalibration, because the loss is not proper.

  For a logit :math:`z` and a label :math:`y`,

  .. math::
    \ell(z, y) = \text{positive\_weight} \, y \, \log(1 + e^{-z})
      + (1 - y) \bigl( \log(1 + e^z) + \text{scale} \, z^2 \bigr) .

  With the default weight, this equals
  :func:`squentropy_jax.losses.squentropy` of the logits :math:`[0, z]`. A label
  between 0 and 1 gives the expected loss. For logits ``[batch, labels]``,
  ``loss.sum(-1)`` is the loss of each example.

  A logit of ``-inf`` makes the positive class impossible. The loss then leaves
  out the square of this logit. If a finite logit is beyond 1e19, its square
  overflows float32, and the loss of a negative is infinite.

  Args:
    logits: Scores, any shape, any floating dtype.
    labels: Labels of the same shape: booleans, the integers 0 and 1, or floats
      between.
    scale: Weight of the square, 0 or more, a scalar or of the logits' shape.
    positive_weight: Weight of the loss of positives, 0 or more, a scalar or of
      the logits' shape.
    where: Which entries to keep, booleans of the same shape. Dropped ones have
      loss and gradient 0.

  Returns:
    The loss of each entry, of the logits' shape, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating or ``labels`` not numbers.
    ValueError: If shapes differ, if a concrete label is outside ``[0, 1]`` (a
      traced one gives NaN), or if a concrete hyper-parameter is below 0.

  Examples:
    >>> logits = jnp.array([2.0, 0.5, -1.0])
    >>> print(losses.binary_squentropy(logits, jnp.array([1, 0, 0])))
    [0.1269 1.2241 1.3133]

  References:
    Hui, Belkin and Wright, `Cut your Losses with Squentropy
    <https://arxiv.org/abs/2302.03952>`_, ICML 2023, for classes with a logit
    each.

  .. seealso:: :func:`squentropy_jax.losses.binary_cross_entropy`,
    :func:`squentropy_jax.losses.squentropy`
  """
  z, y, keep = entries.checked_entries(logits, labels, where)
  values = {"scale": scale, "positive_weight": positive_weight}
  numbers, _ = entries.checked_numbers(_SQUENTROPY, values, z, keep, axes=())
  return _binary_squentropy(z, y, keep, numbers)
