# SPDX-License-Identifier: Apache-2.0
"""Row formulas to build losses and metrics from, and transforms of logits.

A row formula computes one number for each row from its `RowStats`. Use one
inside the formula of a `row_loss`, on the result of `fused.linear_row_stats`,
or as a metric of a fused head. If ``stats`` are those of an invalid row, all
formulas except `correct` give NaN.
"""

import jax
import jax.numpy as jnp

from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.elementwise import sigmoid
from squentropy_jax._core.transform import Transform as Transform


def log_z(stats: RowStats) -> jax.Array:
  r"""Computes the log-normalizer of the softmax of each row.

  Use it to monitor the scale of the logits during training. If it drifts away
  from 0, a z-loss keeps it there.

  .. math:: \log Z = \log \sum_k e^{z_k}

  Args:
    stats: Row statistics, each of shape ``[...]``.

  Returns:
    The log-normalizer, shape ``[...]``.

  Examples:
    >>> logits, labels = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([0])
    >>> log_z = squentropy_jax.row_loss(squentropy_jax.rows.log_z)
    >>> print(log_z(logits, labels))
    [2.1698]

  References:
    Bridle, `Probabilistic Interpretation of Feedforward Classification Network
    Outputs <https://doi.org/10.1007/978-3-642-76153-9_28>`_, 1990.
  """
  return stats.log_z


def z_loss(stats: RowStats) -> jax.Array:
  r"""Computes the square of the log-normalizer of each row.

  Use it as a penalty in addition to cross-entropy, so that the logits of a
  large model do not drift. The usual factor is 1e-4. The formula has no factor.

  .. math:: \Bigl( \log \sum_k e^{z_k} \Bigr)^2

  Args:
    stats: Row statistics, each of shape ``[...]``.

  Returns:
    The square, shape ``[...]``.

  Examples:
    >>> @squentropy_jax.row_loss
    ... def with_z_loss(stats):
    ...   z_loss = squentropy_jax.rows.z_loss(stats)
    ...   return losses.cross_entropy.row(stats) + 1e-4 * z_loss
    >>> print(with_z_loss(jnp.array([[2.0, 0.0, -1.0]]), jnp.array([0])))
    [0.1703]

  References:
    Chowdhery et al., `PaLM: Scaling Language Modeling with Pathways
    <https://arxiv.org/abs/2204.02311>`_, section 5, 2022.
  """
  return jnp.square(stats.log_z)


def mean_logit_sq(stats: RowStats) -> jax.Array:
  r"""Computes the mean square of all logits of each row.

  Use it to monitor the size of the logits, or as a penalty on it. Unlike
  :func:`z_loss`, it also limits the differences between logits.

  .. math:: \frac{1}{C} \sum_k z_k^2

  where :math:`C` is the number of possible classes.

  Args:
    stats: Row statistics, each of shape ``[...]``.

  Returns:
    The mean square, shape ``[...]``.

  Examples:
    >>> logits, labels = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([0])
    >>> mean_sq = squentropy_jax.row_loss(squentropy_jax.rows.mean_logit_sq)
    >>> print(mean_sq(logits, labels))
    [1.6667]

  References:
    Hui, Belkin and Wright, `Cut your Losses with Squentropy
    <https://arxiv.org/abs/2302.03952>`_, ICML 2023, which takes the mean over
    the incorrect classes.
  """
  target, possible = _possible_target(stats)
  # The number of possible classes includes the target, even if that is not.
  count = stats.num_classes - jnp.where(possible, 0.0, 1.0).astype(target.dtype)
  return (jnp.square(target) + stats.rest_sq) / count


def max_logit_sq(stats: RowStats) -> jax.Array:
  r"""Computes the square of the largest logit of each row.

  Use it as a penalty with a small factor such as 2e-4, so that the largest
  logit does not grow during training, or to monitor it.

  .. math:: \bigl( \max_k z_k \bigr)^2

  Args:
    stats: Row statistics, each of shape ``[...]``.

  Returns:
    The square, shape ``[...]``.

  Examples:
    >>> logits, labels = jnp.array([[2.0, 0.0, -3.0]]), jnp.array([0])
    >>> max_sq = squentropy_jax.row_loss(squentropy_jax.rows.max_logit_sq)
    >>> print(max_sq(logits, labels))
    [4.]

  References:
    Yang et al., `Baichuan 2: Open Large-scale Language Models
    <https://arxiv.org/abs/2309.10305>`_, section 2, 2023.
  """
  return jnp.square(jnp.maximum(stats.target, stats.rest_max))


def correct(stats: RowStats) -> jax.Array:
  r"""Computes whether the labelled class has the largest logit of each row.

  Use it for the accuracy.

  .. math:: \bigl[ z_y > \max_{k \ne y} z_k \bigr]

  A tie counts as incorrect, so a model whose logits are all equal has accuracy
  0. :func:`squentropy_jax.calibration.accuracy` predicts the first of tied
  classes, and is never lower. An invalid row is incorrect.

  Args:
    stats: Row statistics, each of shape ``[...]``.

  Returns:
    Booleans of shape ``[...]``.

  Examples:
    >>> features = jnp.array([[1.0, 0.0], [0.5, 2.0]])
    >>> kernel = jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    >>> stats = fused.linear_row_stats(features, kernel, jnp.array([0, 2]))
    >>> print(squentropy_jax.rows.correct(stats))
    [ True False]

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017.
  """
  return stats.target > stats.rest_max


def entropy(stats: RowStats) -> jax.Array:
  r"""Computes the entropy of the softmax of each row, in nats.

  Use it as a bonus or a penalty, or to monitor how certain the predictions are.
  The label does not change the entropy, only its rounding errors.

  .. math::
    H(p) = -\sum_k p_k \log p_k
         = H_2(p_y) + (1 - p_y) H(r), \qquad p = \operatorname{softmax}(z)

  where :math:`H_2` is the entropy of the two events that the class is
  :math:`y` or another one, and :math:`r` is the softmax of the other logits.
  Both terms are computed from ``log_odds``, so the entropy of a row that is
  confident of its label is as accurate as its cross-entropy. In other rows,
  :math:`H(r)` has an absolute error of a few ulp of the largest logit.

  Args:
    stats: Row statistics, each of shape ``[...]``.

  Returns:
    The entropy, shape ``[...]``, at least 0.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [50.0, 0.0, 0.0]])
    >>> entropy = squentropy_jax.row_loss(squentropy_jax.rows.entropy)
    >>> print(entropy(logits, jnp.array([0, 0])))
    [5.2427e-01 1.9673e-20]

  References:
    Shannon, `A Mathematical Theory of Communication
    <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, section 6, 1948.
  """
  empty = stats.rest_lse == -jnp.inf
  zero = jnp.zeros_like(stats.target)
  lse = jnp.where(empty, zero, stats.rest_lse)
  of_rest = lse - jnp.where(empty, zero, stats.rest_expected)
  # Rounding errors must not lead out of the range. The gradient is not changed.
  most = jnp.log(jnp.maximum(stats.num_classes - 1.0, jnp.ones_like(zero)))
  constant = jax.lax.stop_gradient(of_rest)
  of_rest = jnp.clip(constant, zero, most) + (of_rest - constant)
  # Without an infinity: its products with 0 would be NaN.
  infinite = jnp.isinf(stats.log_odds)
  value = _entropy(jnp.where(infinite, zero, stats.log_odds), of_rest)
  certain = jnp.where(stats.log_odds > 0, of_rest, zero)
  return jnp.where(infinite, certain, value)


def _possible_target(stats: RowStats) -> tuple[jax.Array, jax.Array]:
  """Returns the target, 0 if it is impossible, and whether it is possible."""
  possible = stats.target != -jnp.inf
  return jnp.where(possible, stats.target, jnp.zeros_like(stats.target)), (
    possible
  )


@jax.custom_jvp
def _entropy(log_odds: jax.Array, of_rest: jax.Array) -> jax.Array:
  """The entropy from the log-odds and the entropy of the other classes."""
  size = jnp.abs(log_odds)
  # exp(-size) in two factors: it may be subnormal where the product is not.
  half = jnp.exp(-size / 2.0)
  odds = half * half
  tiny = odds < float(jnp.finfo(odds.dtype).eps) / 4.0
  log1p = jnp.log1p(odds) / jnp.where(tiny, jnp.ones_like(odds), odds)
  log1p = jnp.where(tiny, jnp.ones_like(odds), log1p)
  few = log_odds < 0.0
  zero = jnp.zeros_like(odds)
  inner = jnp.where(few, size + of_rest, size) / (1.0 + odds)
  outer = jnp.where(few, zero, of_rest) / (1.0 + odds)
  return half * (half * (log1p + inner)) + outer


@_entropy.defjvp
def _entropy_jvp(
  primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  log_odds, of_rest = primals
  by_rest = sigmoid(log_odds)
  by_odds = (of_rest - log_odds) * by_rest * sigmoid(-log_odds)
  return _entropy(log_odds, of_rest), by_odds * tangents[0] + (
    by_rest * tangents[1]
  )
