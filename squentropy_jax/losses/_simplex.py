# SPDX-License-Identifier: Apache-2.0
"""Targets on the simplex: likelihoods and square distances.

The target of these losses is a distribution as it is, such as shares or the
probabilities of a teacher, not an expectation over class ids.
"""

import functools
import math

import jax
import jax.numpy as jnp

from squentropy_jax._core import entries, partition
from squentropy_jax._core.class_sums import row_stats
from squentropy_jax._core.distributions import (
  Target,
  all_class_sums,
  distribution_loss,
)
from squentropy_jax._core.elementwise import sigmoid

# Of (sinh(u) / u - 1) / u^2 in powers of u^2; exact in float64 for |u| < 2.
_SINHC = tuple(1.0 / math.factorial(2 * n + 3) for n in range(12))


def _residual(z: jax.Array, t: jax.Array) -> jax.Array:
  """Softmax minus target; neither 1 - p nor a product is rounded off."""
  log_odds = row_stats(all_class_sums(z)).log_odds
  return sigmoid(-log_odds) * (1.0 - t) - sigmoid(log_odds) * t


@distribution_loss()
def _brier(z: jax.Array, target: Target) -> jax.Array:
  return jnp.square(_residual(z, target.distribution(z))).sum(-1)


@_brier.public
def brier(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the Brier score: the squared distance of softmax and target.

  Use when a bounded proper loss is needed, or as a score of the predicted
  probabilities.

  Avoid when training starts from confident mistakes, where the gradient is
  close to 0.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = \sum_k (\mathrm{softmax}(z)_k - [k = y])^2 .

  Soft labels :math:`t` replace the indicator, as in
  :func:`squentropy_jax.losses.softmax_regression`: the loss is
  :math:`\lVert \mathrm{softmax}(z) - t \rVert^2`. It is smaller than the
  expected loss by :math:`1 - \lVert t \rVert^2`, a constant of the logits. The
  loss lies between 0 and 2, so that one outlier has little effect.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the logits' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label is out of
      range.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(losses.brier(logits, jnp.array([0, 2])))
    [0.0392 1.013 ]

  References:
    Brier, `Verification of Forecasts Expressed in Terms of Probability
    <https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2>`_,
    1950.

  .. seealso:: :func:`squentropy_jax.losses.softmax_regression`
  """
  return _brier(logits, labels, axis=axis, where=where)


@distribution_loss(domains={"squared": bool})
def _softmax_regression(
  z: jax.Array, target: Target, *, squared: bool
) -> jax.Array:
  residual = _residual(z, target.distribution(z))
  if squared:
    return jnp.square(residual).sum(-1)
  # Scaled, so that no square underflows; the gradient at distance 0 is 0.
  size = jax.lax.stop_gradient(jnp.abs(residual).max(-1, keepdims=True))
  size = jnp.where(size == 0, jnp.ones_like(size), size)
  square = jnp.square(residual / size).sum(-1)
  zero = square == 0
  root = jnp.sqrt(jnp.where(zero, jnp.ones_like(square), square))
  return jnp.where(zero, square, size[..., 0] * root)


@_softmax_regression.public
def softmax_regression(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  squared: bool = True,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the Euclidean distance of softmax and target, squared or not.

  Use when probabilities should be fitted to any target by least squares.

  Avoid when training starts from confident mistakes, where the gradient is
  close to 0. Avoid ``squared=False`` when calibrated probabilities are needed,
  because the distance itself is not proper.

  For one example with logits :math:`z \in \mathbb{R}^C` and target :math:`t`,

  .. math::
    \ell(z, t) = \lVert \mathrm{softmax}(z) - t \rVert_2^2
    \quad \text{or} \quad
    \ell(z, t) = \lVert \mathrm{softmax}(z) - t \rVert_2 .

  Soft labels are the target :math:`t` itself, not an expectation over classes.
  The paper states the problem with the second form and analyses half of the
  first. Both forms are bounded and not convex in the logits.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    squared: Whether the distance is squared, a static bool. Without the square,
      the gradient at distance 0 is defined as 0.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the logits' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label is out of
      range.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.4, 0.4, 0.2]])
    >>> print(losses.softmax_regression(logits, labels, squared=False))
    [0.198  0.1419]

  References:
    Li, Song, Xia, Yu and Zhou, `The Closeness of In-Context Learning and Weight
    Shifting for Softmax Regression <https://arxiv.org/abs/2304.13276>`_, 2023.

  .. seealso:: :func:`squentropy_jax.losses.brier`
  """
  return _softmax_regression(
    logits, labels, squared=squared, axis=axis, where=where
  )


def _log_mean(logits: jax.Array) -> jax.Array:
  return jnp.log(partition.mean(logits))


@distribution_loss(log_probs=_log_mean)
def _continuous_categorical(z: jax.Array, target: Target) -> jax.Array:
  x = target.distribution(z)
  # Both normalisers follow a shift of all logits, so that it has no effect.
  shifted = z - jax.lax.stop_gradient(z.max(-1, keepdims=True))
  lse = jnp.log(jnp.exp(shifted).sum(-1, keepdims=True))
  skip = (shifted == -jnp.inf) & (x == 0)
  zero = jnp.zeros_like(z)
  terms = x * (lse - jnp.where(skip, zero, shifted))
  soft = jnp.where(skip, zero, terms).sum(-1)
  return soft + (partition.log_partition(z) - lse[..., 0])


@_continuous_categorical.public
def continuous_categorical(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the negative log-density of the continuous categorical.

  Use when shares, proportions or the probabilities of a teacher are the data.
  The loss is their likelihood; cross-entropy leaves out its normaliser.

  Avoid when later code takes the softmax of the logits as the mean, or when the
  targets are class ids, for which the loss has no lower bound.

  For one example with logits :math:`z \in \mathbb{R}^C` and a target
  :math:`x` in the simplex :math:`\Delta`,

  .. math::
    \ell(z, x) = \log \int_\Delta e^{\langle z, t \rangle} \, dt
                 - \langle z, x \rangle ,

  with the integral over the first :math:`C - 1` coordinates. With
  :math:`K(z)`, the normaliser of the density on the simplex, it is
  cross-entropy of soft labels minus :math:`\log K(z)`,

  .. math::
    \ell(z, x) = -\sum_k x_k \log \mathrm{softmax}(z)_k - \log K(z) ,

  and it is computed in that form. The integral is accurate for equal, close and
  distant logits and for any number of classes. A density may exceed 1, so that
  the loss may be negative. The predicted mean is
  ``jnp.exp(continuous_categorical.log_probs(logits))``, which is not the
  softmax. Masked classes make the simplex smaller.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Points of the simplex, floats of shape ``[..., num_classes]`` with
      sum 1, or corners of it as class ids, integers of shape ``[...]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the logits' shape.

  Returns:
    The loss of each example in nats, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label is out of
      range.

  Examples:
    >>> logits = jnp.array([[0.7, -0.3, 0.0], [1.0, 1.0, 1.0]])
    >>> labels = jnp.array([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])
    >>> print(losses.continuous_categorical(logits, labels))
    [-0.8274 -0.6931]

  References:
    Gordon-Rodriguez, Loaiza-Ganem and Cunningham, `The Continuous Categorical:
    A Novel Simplex-Valued Exponential Family
    <https://arxiv.org/abs/2002.08563>`_, ICML 2020.

  .. seealso:: :func:`squentropy_jax.losses.continuous_bernoulli`
  """
  return _continuous_categorical(logits, labels, axis=axis, where=where)


@functools.partial(jax.jit, inline=True)
def _continuous_bernoulli(
  z: jax.Array, x: jax.Array, keep: jax.Array | None
) -> jax.Array:
  # log((e^z - 1) / z) is z / 2 plus an even function: a series near 0, where
  # the quotient cancels, and the largest term in front elsewhere.
  near = jnp.abs(z) < 4.0
  half = jnp.where(near, z, jnp.zeros_like(z)) / 2.0
  square = half * half
  series = jnp.full_like(z, _SINHC[-1])
  for c in _SINHC[-2::-1]:
    series = series * square + c
  even = jnp.log1p(square * series)
  size = jnp.abs(jnp.where(near, jnp.full_like(z, 4.0), z))
  tail = jnp.log1p(-jnp.exp(-size)) - jnp.log(size)
  one = jnp.ones_like(x)
  offset = jnp.where(near, one / 2.0, jnp.where(z > 0, one, jnp.zeros_like(x)))
  loss = (offset - x) * z + jnp.where(near, even, tail)
  return loss if keep is None else jnp.where(keep, loss, jnp.zeros_like(loss))


def continuous_bernoulli(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the negative log-density of the continuous Bernoulli.

  Use when values in the unit interval are modelled, with one logit for each:
  for example the grey levels in an autoencoder.

  Avoid when all labels are 0 or 1: binary cross-entropy is their likelihood.

  For a logit :math:`z` and a target :math:`x \in [0, 1]`,

  .. math::
    \ell(z, x) = \log \int_0^1 e^{z t} \, dt - z x
               = \log \frac{e^z - 1}{z} - z x .

  Binary cross-entropy of such values leaves out the normaliser. The mean of the
  distribution is not the logistic function of the logit. It is the first entry
  of ``jnp.exp(continuous_categorical.log_probs(jnp.array([logit, 0.0])))``.

  Args:
    logits: Scores, shape ``[...]``, any floating dtype.
    labels: Values in ``[0, 1]``, shape ``[...]``: floats, the integers 0 and 1,
      or booleans.
    where: Which entries to keep, booleans of shape ``[...]``.

  Returns:
    The loss of each entry in nats, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If shapes differ, or if a concrete target is outside ``[0, 1]``.

  Examples:
    >>> logits = jnp.array([0.5, -2.0, 0.0])
    >>> labels = jnp.array([0.8, 0.1, 0.3])
    >>> print(losses.continuous_bernoulli(logits, labels))
    [-0.1396 -0.6386  0.    ]

  References:
    Loaiza-Ganem and Cunningham, `The Continuous Bernoulli: Fixing a Pervasive
    Error in Variational Autoencoders <https://arxiv.org/abs/1907.06845>`_,
    NeurIPS 2019.

  .. seealso:: :func:`squentropy_jax.losses.continuous_categorical`
  """
  z, x, keep = entries.checked_entries(logits, labels, where)
  return _continuous_bernoulli(z, x, keep)
