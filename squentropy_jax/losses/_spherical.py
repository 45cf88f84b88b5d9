# SPDX-License-Identifier: Apache-2.0
"""The spherical family: losses of sums and sums of squares of the logits.

No exponential of a logit is taken. The two softmax alternatives predict
probabilities of their own, not those of the softmax.
"""

import jax
import jax.numpy as jnp

from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.distributions import possible_logits
from squentropy_jax._core.elementwise import nan_if_large, quotient, softplus
from squentropy_jax._core.rows import row_loss
from squentropy_jax._core.transform import Transform

# A variance below so many ulp of the square of the mean counts as 0.
_ULPS = 32
# Above this ratio its logarithm is taken by parts, so that it cannot overflow.
_FAR = 2.0**60


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
  rest_variance = nan_if_large(stats.rest_sq) / count - jnp.square(rest_mean)
  rest_variance = jnp.maximum(rest_variance, 0.0)
  impossible = stats.target == -jnp.inf
  target = jnp.where(impossible, jnp.zeros_like(rest_mean), stats.target)
  lead = target - rest_mean
  # The variance of all is num_incorrect / num_classes times this.
  variance = rest_variance + nan_if_large(jnp.square(lead)) / stats.num_classes
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
  r"""Computes a logistic loss of the z-score of the labelled logit.

  Use when the k best of very many classes count and no probabilities are
  needed.

  Avoid when probabilities are needed, because none can be inferred from the
  logits, or when classes are few. With two classes the z-score is 1 or -1 and
  its gradient is 0.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y`, their
  mean :math:`\mu` and standard deviation :math:`\sigma` (with divisor
  :math:`C`, not :math:`C - 1`),

  .. math::
    \ell(z, y) = \frac{1}{\text{sharpness}} \log \Bigl(1 + \exp \bigl(
      \text{sharpness} \, (\text{location} - \tfrac{z_y - \mu}{\sigma})
    \bigr)\Bigr) .

  This is the Z-loss of 2016. The penalty on the log-normaliser that language
  models call z-loss is a different function. Soft labels give the expected
  loss. The loss does not depend on the shift and the scale of the logits. A
  z-score is at most :math:`\sqrt{C - 1}`, so the loss never reaches 0. With few
  classes, choose a ``location`` well below that bound. As ``sharpness`` goes to
  infinity, the loss becomes the hinge of the z-score. If all logits are equal,
  their z-score is 0, and the gradient is that of a deviation of 1. Masked
  classes do not count in the mean and the deviation.

  The dense loss subtracts the mean first. A fused head does not. Its variance
  has a relative error of some ulp of :math:`1 + r^2 / \sigma^2`, where
  :math:`r` is the mean logit of the incorrect classes, and a variance of 32 ulp
  of :math:`r^2` or less counts as 0. In a fused head a sum of squares near the
  largest float makes the loss NaN, in float32 from a logit of 7e16 on.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    sharpness: Inverse width of the bend, positive: a scalar or one value for
      each example, shape ``[...]``. The division by it keeps the derivative in
      the z-score between -1 and 0.
    location: The z-score at the bend: a scalar or one value for each example,
      shape ``[...]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the logits' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label or
      hyper-parameter is out of range.

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
  rest, target = nan_if_large(rest), nan_if_large(target)
  far = rest > _FAR * target
  one = jnp.ones_like(rest)
  near = quotient(jnp.where(far, one, rest), jnp.where(far, one, target))
  log_rest = jnp.log(jnp.where(far, rest, one))
  log_target = 2.0 * (jnp.log(root) - jnp.log(unit))
  return jnp.where(far, log_rest - log_target, jnp.log1p(near))


def _log_taylor(logits: jax.Array) -> jax.Array:
  # Of 1 + z + z^2 / 2 = ((z + 1)^2 + 1) / 2, without overflow.
  _, finite = possible_logits(logits)
  return 2.0 * jnp.log(jnp.hypot(finite + 1.0, jnp.ones_like(finite)))


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
  r"""Computes cross-entropy of the softmax with exponentials of second order.

  Use when classes are few and the loss should grow like the logarithm of the
  logits, without a constant to tune.

  Avoid when the largest logit is taken as the prediction, when later code takes
  the softmax of the logits, or when classes are many. In its authors'
  experiments it was better than the softmax on few classes and worse on many.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = -\log \frac{1 + z_y + z_y^2 / 2}
                            {\sum_k (1 + z_k + z_k^2 / 2)} .

  Soft labels give the expected loss. Every numerator is at least one half. The
  numerator is least at :math:`z = -1` and grows again below: a very negative
  logit makes a class probable, and the largest logit need not be the most
  probable class. ``taylor_softmax.log_probs`` returns the log-probabilities. In
  a fused head a sum of squares near the largest float makes the loss NaN, in
  float32 from a logit of 1e17 on.

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
  _, finite = possible_logits(logits)
  return 2.0 * jnp.log(jnp.hypot(finite, jnp.sqrt(epsilon)))


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
  r"""Computes cross-entropy of probabilities proportional to squared logits.

  Use when an output layer is updated through sums of squares alone.

  Avoid when the largest logit is taken as the prediction, or when later code
  takes the softmax of the logits.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = -\log \frac{z_y^2 + \text{epsilon}}
                            {\sum_k (z_k^2 + \text{epsilon})} .

  Soft labels give the expected loss. The probabilities do not depend on the
  signs of the logits and, apart from ``epsilon``, not on their scale. The
  prediction is the class of the largest :math:`z_k^2`, and
  ``spherical_softmax.log_probs`` returns the log-probabilities. The derivative
  of the logarithm of a numerator is at most :math:`1 / \sqrt{\text{epsilon}}`.
  In a fused head a sum of squares near the largest float makes the loss NaN, in
  float32 from a logit of 7e16 on.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    epsilon: Added to every square, positive: a scalar or one value for each
      example, shape ``[...]``. It must be tuned to the size of the logits.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the logits' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label or
      hyper-parameter is out of range.

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
