# SPDX-License-Identifier: Apache-2.0
"""Losses that see the logits through their sum and sum of squares alone."""

import jax
import jax.numpy as jnp

from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.elementwise import quotient, softplus
from squentropy_jax._core.rows import Transform, row_loss

# A variance below so many ulp of the square of the mean counts as 0.
_ULPS = 32
# Above this ratio its logarithm is taken by parts, so that it cannot overflow.
_FAR = 2.0**60


def _nan_if_infinite(x: jax.Array) -> jax.Array:
  """Sets the value and the gradient to NaN where ``x`` has overflowed."""
  return x * jnp.where(jnp.isinf(x), jnp.nan, 1.0).astype(x.dtype)


@row_loss(
  domains={"sharpness": "(0, inf)", "location": "(-inf, inf)"},
  transform=Transform(subtract="mean", rescale=True),
)
def _zscore(
  stats: RowStats,
  unit: jax.typing.ArrayLike = 1.0,
  *,
  sharpness: jax.Array,
  location: jax.Array,
) -> jax.Array:
  del unit  # The z-score does not depend on it.
  num_incorrect = stats.num_classes - 1.0
  count = jnp.maximum(num_incorrect, 1.0)
  rest_mean = stats.rest_sum / count
  rest_variance = stats.rest_sq / count - jnp.square(rest_mean)
  rest_variance = jnp.maximum(rest_variance, 0.0)
  impossible = stats.target == -jnp.inf
  target = jnp.where(impossible, jnp.zeros_like(rest_mean), stats.target)
  lead = target - rest_mean
  # The variance of all is num_incorrect / num_classes times this.
  variance = rest_variance + jnp.square(lead) / stats.num_classes
  variance = _nan_if_infinite(variance)
  # What rounding of their squares leaves of equal logits.
  eps = jnp.finfo(variance.dtype).eps
  is_zero = variance <= _ULPS * eps * jnp.square(rest_mean)
  deviation = jnp.sqrt(jnp.where(is_zero, jnp.ones_like(variance), variance))
  share = jnp.sqrt(num_incorrect / stats.num_classes)
  z_score = quotient(share * lead, deviation)
  z_score = jnp.where(impossible, -jnp.sqrt(num_incorrect), z_score)
  return softplus(sharpness * (location - z_score)) / sharpness


@_zscore.public
def zscore(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  sharpness: jax.typing.ArrayLike = 1.0,
  location: jax.typing.ArrayLike = 0.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Logistic loss of the labelled logit's z-score (not the LLM penalty).

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y`, their
  mean :math:`\mu` and standard deviation :math:`\sigma` (over :math:`C`, not
  :math:`C - 1`),

  .. math::
    \ell(z, y) = \frac{1}{\text{sharpness}} \log \Bigl(1 + \exp \bigl(
      \text{sharpness} \, (\text{location} - \tfrac{z_y - \mu}{\sigma})
    \bigr)\Bigr) .

  The Z-loss of 2016, which is not the square of the log-normaliser that
  language models are regularised with under the same name. It does not see the
  shift and the scale of the logits and works on ranks: use it where the k best
  classes count and no probabilities are needed: none can be read off it. A
  z-score is at most :math:`\sqrt{C - 1}`, so the loss never reaches 0; with two
  classes the z-score is 1 or -1, without slope, and with few every example
  looks wrong for a ``location`` near that bound. As ``sharpness`` goes to
  infinity it is the hinge of the z-score. Logits that are all equal have the
  z-score 0, with the slope of a deviation of 1. Soft labels :math:`p` give the
  expected loss :math:`\sum_k p_k\, \ell(z, k)`.

  The logits are centred first. The row form alone, as a fused head uses it, has
  a relative error in the variance of some roundings of
  :math:`1 + r^2 / \sigma^2`, :math:`r` being the mean of the wrong classes, and
  takes a variance of 32 roundings of :math:`r^2` or less for 0.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    sharpness: Inverse width of the bend, positive. The division by it keeps the
      slope in the z-score between -1 and 0.
    location: The z-score at the bend.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0; masked classes do not count in the mean and deviation.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating, or if integer ``labels`` look like
      one-hot rows or float ``labels`` like class ids.
    ValueError: If the shapes of ``labels`` or ``where`` fit neither form above;
      if a concrete class id is out of range (a traced one gives NaN); if a
      hyper-parameter that can be read is outside its domain.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(losses.zscore(logits, jnp.array([0, 2])))
    [0.2333 1.4824]

  References:
    de Brebisson and Vincent, `The Z-loss: a shift and scale invariant
    classification loss belonging to the Spherical Family
    <https://arxiv.org/abs/1604.08859>`_, 2016.

  .. seealso:: :func:`squentropy_jax.losses.spherical_softmax`,
    :func:`squentropy_jax.losses.taylor_softmax`
  """
  return _zscore(
    logits,
    labels,
    sharpness=sharpness,
    location=location,
    axis=axis,
    where=where,
  )


def _log_ratio(
  rest: jax.Array,
  target: jax.Array,
  root: jax.Array,
  unit: jax.typing.ArrayLike,
) -> jax.Array:
  """``log(1 + rest / target)`` of numerators in squared units of the row.

  ``root`` is the root of the target's numerator, which does not underflow.
  """
  rest, target = _nan_if_infinite(rest), _nan_if_infinite(target)
  far = (unit > jnp.ones_like(rest)) & (rest > _FAR * target)
  one = jnp.ones_like(rest)
  near = quotient(jnp.where(far, one, rest), jnp.where(far, one, target))
  log_rest = jnp.log(jnp.where(far, rest, one))
  log_target = 2.0 * (jnp.log(root) - jnp.log(unit))
  return jnp.where(far, log_rest - log_target, jnp.log1p(near))


def _log_taylor(logits: jax.Array) -> jax.Array:
  # Of 1 + z + z^2 / 2 = ((z + 1)^2 + 1) / 2, without overflow.
  return 2.0 * jnp.log(jnp.hypot(logits + 1.0, jnp.ones_like(logits)))


@row_loss(log_probs=_log_taylor, transform=Transform(rescale=True))
def _taylor_softmax(
  stats: RowStats, unit: jax.typing.ArrayLike = 1.0
) -> jax.Array:
  # All numerators are over the square of the unit.
  one = jnp.ones_like(stats.target) / unit
  num_incorrect = stats.num_classes - 1.0
  rest = num_incorrect * jnp.square(one)
  rest = rest + stats.rest_sum * one + 0.5 * stats.rest_sq
  impossible = stats.target == -jnp.inf
  zero = jnp.zeros_like(rest)
  z = jnp.where(impossible, zero, stats.target)
  target = 0.5 * (jnp.square(z + one) + jnp.square(one))
  root = jnp.sqrt(0.5) * jnp.hypot(z * unit + 1.0, jnp.ones_like(z))
  return jnp.where(impossible, zero, _log_ratio(rest, target, root, unit))


@_taylor_softmax.public
def taylor_softmax(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Cross-entropy of the softmax with exponentials of second order.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = -\log \frac{1 + z_y + z_y^2 / 2}
                            {\sum_k (1 + z_k + z_k^2 / 2)} .

  Every numerator is at least one half, so that no constant is needed, and the
  loss grows like a logarithm of the logits. The numerator is least at
  :math:`z = -1` and grows again below: a very negative logit makes a class
  likely, and the largest logit need not be the most probable class: read the
  probabilities off ``taylor_softmax.link(logits)``. In its authors' experiments
  it beat the softmax on few classes and lost on many. Soft labels :math:`p`
  give the expected loss :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating, or if integer ``labels`` look like
      one-hot rows or float ``labels`` like class ids.
    ValueError: If the shapes of ``labels`` or ``where`` fit neither form above;
      if a concrete class id is out of range (a traced one gives NaN).

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(losses.taylor_softmax(logits, jnp.array([0, 2])))
    [0.2624 1.6341]

  References:
    de Brebisson and Vincent, `An Exploration of Softmax Alternatives Belonging
    to the Spherical Loss Family <https://arxiv.org/abs/1511.05042>`_, ICLR
    2016.

  .. seealso:: :func:`squentropy_jax.losses.spherical_softmax`,
    :func:`squentropy_jax.losses.zscore`
  """
  return _taylor_softmax(logits, labels, axis=axis, where=where)


def _log_spherical(logits: jax.Array, *, epsilon: jax.Array) -> jax.Array:
  return 2.0 * jnp.log(jnp.hypot(logits, jnp.sqrt(epsilon)))


@row_loss(
  domains={"epsilon": "(0, inf)"},
  log_probs=_log_spherical,
  transform=Transform(rescale=True),
)
def _spherical_softmax(
  stats: RowStats,
  unit: jax.typing.ArrayLike = 1.0,
  *,
  epsilon: jax.Array,
) -> jax.Array:
  # All numerators are over the square of the unit.
  small = epsilon / unit / unit
  rest = stats.rest_sq + (stats.num_classes - 1.0) * small
  impossible = stats.target == -jnp.inf
  zero = jnp.zeros_like(rest)
  z = jnp.where(impossible, zero, stats.target)
  target = jnp.square(z) + small
  root = jnp.hypot(z * unit, jnp.sqrt(epsilon) * jnp.ones_like(z))
  return jnp.where(impossible, zero, _log_ratio(rest, target, root, unit))


@_spherical_softmax.public
def spherical_softmax(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  epsilon: jax.typing.ArrayLike = 1e-2,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Cross-entropy of squares in the place of exponentials.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = -\log \frac{z_y^2 + \text{epsilon}}
                            {\sum_k (z_k^2 + \text{epsilon})} .

  The probabilities do not see the signs of the logits, nor, but for
  ``epsilon``, their scale: read the class off :math:`z_k^2` and the
  probabilities off ``spherical_softmax.link(logits)``. The slope of the
  logarithm of a numerator is at most :math:`1 / \sqrt{\text{epsilon}}`. Soft
  labels :math:`p` give the expected loss :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    epsilon: Added to every square, positive. It needs tuning to the size of the
      logits.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating, or if integer ``labels`` look like
      one-hot rows or float ``labels`` like class ids.
    ValueError: If the shapes of ``labels`` or ``where`` fit neither form above;
      if a concrete class id is out of range (a traced one gives NaN); if a
      hyper-parameter that can be read is outside its domain.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(losses.spherical_softmax(logits, jnp.array([0, 2])))
    [0.2266 4.852 ]

  References:
    de Brebisson and Vincent, `An Exploration of Softmax Alternatives Belonging
    to the Spherical Loss Family <https://arxiv.org/abs/1511.05042>`_, ICLR
    2016.

  .. seealso:: :func:`squentropy_jax.losses.taylor_softmax`,
    :func:`squentropy_jax.losses.zscore`
  """
  return _spherical_softmax(
    logits, labels, epsilon=epsilon, axis=axis, where=where
  )
