# SPDX-License-Identifier: Apache-2.0
"""Losses that take the worst case over distributions of the wrong class."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.distributions import (
  Target,
  distribution_loss,
  per_row,
  possible_logits,
)
from squentropy_jax._core.elementwise import HUGE, softplus
from squentropy_jax._core.rows import Transform, row_loss


def over_temperature(
  logits: jax.Array,
  *,
  temperature: jax.typing.ArrayLike = 1.0,
  margin: jax.typing.ArrayLike = 0.0,
) -> jax.Array:
  """What the statistics are of, and the link where there is no margin."""
  del margin
  top = lax.stop_gradient(logits.max(-1, keepdims=True))
  return (logits - top) / temperature


# Log-odds above which ``softplus`` is the identity in any dtype.
_FAR = 1e9


def _over(below: jax.Array, temperature: jax.Array) -> jax.Array:
  """``below / temperature``, at least -1e18, so that its square is finite."""
  far = below < -HUGE * temperature
  near = jnp.where(far, jnp.zeros_like(below), below) / temperature
  return jnp.where(far, -HUGE, near)


def _worst_case(
  z: jax.Array, others: jax.Array, margin: jax.Array
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
  """The worst-case distribution at a temperature: divergence and variance.

  The divergence is that from the uniform distribution, less the logarithm of
  the class count; the variance is that of the logits over the temperature.
  """
  possible, finite = possible_logits(z)
  zero = jnp.zeros_like(z)
  raised = finite + jnp.where(others, margin, zero)
  top = jnp.where(possible, raised, -jnp.inf).max(-1, keepdims=True)
  top = lax.stop_gradient(jnp.where(top == -jnp.inf, 0.0, top))
  below = jnp.where(possible, raised - top, zero)

  def at(temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = _over(below, temperature[..., None])
    exps = jnp.where(possible, jnp.exp(x), zero)
    total = exps.sum(-1, keepdims=True)
    q = exps / total
    mean = (q * x).sum(-1, keepdims=True)
    variance = (q * jnp.square(x - mean)).sum(-1)
    return (mean - jnp.log(total))[..., 0], variance

  return at


def _adaptive_temperature(
  z: jax.Array,
  stats: RowStats,
  others: jax.Array,
  num_iters: int,
  base_temperature: jax.Array,
  alpha: jax.Array,
  margin: jax.Array,
) -> jax.Array:
  base_temperature, alpha = per_row(base_temperature), per_row(alpha)
  log_classes = jnp.log(stats.num_classes)
  alone = log_classes == 0
  # Over alpha log(C) / base_temperature, the weight of the penalty.
  nat = base_temperature / (alpha * jnp.where(alone, 1.0, log_classes))

  def step(
    temperature: jax.Array,
    z: jax.Array,
    nat: jax.Array,
    base: jax.Array,
    margin: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    negative_entropy, variance = _worst_case(z, others, margin)(temperature)
    divergence = negative_entropy + log_classes
    divergence = jnp.where(alone, jnp.zeros_like(divergence), divergence)
    return base - nat * divergence, nat * variance / temperature

  fixed = lax.stop_gradient((z, nat, base_temperature, margin))
  start = jnp.zeros_like(stats.num_classes) + fixed[2]
  found = lax.fori_loop(0, num_iters, lambda _, t: step(t, *fixed)[0], start)
  # One step of Newton's, which also has the derivatives of the fixed point.
  moved, contraction = step(found, z, nat, base_temperature, margin)
  rate = jnp.maximum(1.0 - lax.stop_gradient(contraction), 1e-3)
  return found + (moved - found) / rate


def _aldr_at(
  z: jax.Array,
  stats: RowStats,
  others: jax.Array,
  temperature: jax.Array,
  base_temperature: jax.Array,
  alpha: jax.Array,
  margin: jax.Array,
) -> jax.Array:
  margin, alpha = per_row(margin), per_row(alpha)
  base_temperature = per_row(base_temperature)
  top = jnp.where(others, z, -jnp.inf).max(-1)
  alone = top == -jnp.inf
  top = lax.stop_gradient(jnp.where(alone, 0.0, top))
  below = jnp.where(others, z - top[..., None], jnp.zeros_like(z))
  exps = jnp.exp(_over(below, temperature[..., None]))
  exps = jnp.where(others, exps, jnp.zeros_like(z))
  log_sum = jnp.log(jnp.where(alone, 1.0, exps.sum(-1)))
  gap = top + margin - stats.target
  # There the loss is the limit for a target of -inf. The general form would
  # subtract large numbers in its derivative in the temperature.
  far = gap > _FAR * temperature
  log_odds = _over(jnp.where(far, jnp.zeros_like(gap), gap), temperature)
  log_odds = jnp.where(alone, -jnp.inf, log_odds + log_sum)
  limit = gap + temperature * log_sum
  soft_max = jnp.where(far, limit, temperature * softplus(log_odds))
  log_classes = jnp.log(stats.num_classes)
  change = temperature - base_temperature
  penalty = alpha * log_classes * jnp.square(change) / (2.0 * base_temperature)
  return soft_max - temperature * log_classes - penalty


@row_loss(
  domains={"temperature": "(0, inf)", "margin": "[0, inf)"},
  transform=Transform(divide_by="temperature", subtract="max"),
  log_probs=over_temperature,
)
def _ldr_kl(
  stats: RowStats,
  *,
  temperature: jax.Array,
  margin: jax.Array,
) -> jax.Array:
  # The statistics are those of the logits over the temperature.
  soft_max = softplus(stats.log_odds + margin / temperature)
  # The transform holds a target that overflows at the least finite number.
  overflow = stats.target <= float(jnp.finfo(soft_max.dtype).min)
  soft_max = jnp.where(overflow, jnp.inf, soft_max)
  return temperature * (soft_max - jnp.log(stats.num_classes))


@_ldr_kl.public
def ldr_kl(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  temperature: jax.typing.ArrayLike = 1.0,
  margin: jax.typing.ArrayLike = 0.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Worst case of the margins, held back by a Kullback-Leibler penalty.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,
  and :math:`\delta_k = z_k - z_y + \text{margin} \, [k \ne y]`,

  .. math::
    \ell(z, y) = \max_q \sum_k q_k \delta_k
      - \text{temperature} \, \mathrm{KL}(q \Vert u)
    = \text{temperature} \log \frac{1}{C}
      \sum_k \exp \frac{\delta_k}{\text{temperature}} ,

  :math:`q` being a distribution over the classes and :math:`u` the uniform one.
  At temperature 1 and margin 0 it is cross-entropy less :math:`\log C`. As the
  temperature goes to 0 it becomes :func:`squentropy_jax.losses.crammer_singer`
  with that margin, as it goes to infinity
  :func:`squentropy_jax.losses.unhinged` plus
  :math:`\text{margin} \, (1 - 1 / C)`: from sharp to robust. The gradient is
  :math:`q - e_y`: without a margin the class probabilities are the softmax of
  the logits over the temperature, of ``ldr_kl.link(logits)``, and with one
  these are too confident. A low temperature makes the loss stiff, a high
  one hardly bounded below. Soft labels :math:`p` give the expected loss
  :math:`\sum_k p_k\, \ell(z, k)`.

  The largest logit is subtracted first, and the error is some roundings of the
  loss and of :math:`\text{temperature} \log C`. The row form alone, as a fused
  head uses it, has one that grows with the common part of the logits: some
  roundings of :math:`\max_k |z_k|`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    temperature: Weight of the penalty, positive. The paper tunes it among 0.1,
      1 and 10.
    margin: Lead that the labelled class is to have, not negative.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0; masked classes do not count in :math:`C`.

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
    >>> print(losses.ldr_kl(logits, jnp.array([0, 2])))
    [-0.9288  0.5817]

  References:
    Zhu, Ying and Yang, `Label Distributionally Robust Losses for Multi-class
    Classification: Consistency, Robustness and Adaptivity
    <https://arxiv.org/abs/2112.14869>`_, ICML 2023.

  .. seealso:: :func:`squentropy_jax.losses.aldr_kl`,
    :func:`squentropy_jax.losses.crammer_singer`,
    :func:`squentropy_jax.losses.unhinged`
  """
  return _ldr_kl(
    logits,
    labels,
    temperature=temperature,
    margin=margin,
    axis=axis,
    where=where,
  )


_DOMAINS: dict[str, str | type] = {
  "base_temperature": "(0, inf)",
  "alpha": "(1, inf)",
  "margin": "[0, inf)",
  "num_iters": int,
}


@distribution_loss(domains=_DOMAINS)
def _aldr_kl_temperature(
  z: jax.Array,
  target: Target,
  *,
  base_temperature: jax.Array,
  alpha: jax.Array,
  margin: jax.Array,
  num_iters: int,
) -> jax.Array:
  numbers = (base_temperature, alpha, margin)

  def of_class(stats: RowStats, others: jax.Array) -> jax.Array:
    return _adaptive_temperature(z, stats, others, num_iters, *numbers)

  return target.expected(
    z, lambda stats: target.map_classes(z, stats, of_class)
  )


def _over_own_temperature(
  z: jax.Array,
  *,
  base_temperature: jax.Array,
  alpha: jax.Array,
  margin: jax.Array,
  num_iters: int,
) -> jax.Array:
  # Without a margin the temperature does not depend on the label.
  target = Target(jnp.argmax(z, axis=-1).astype(jnp.int32), None)
  temperature = _aldr_kl_temperature.formula(
    z,
    target,
    base_temperature=base_temperature,
    alpha=alpha,
    margin=jnp.zeros_like(margin),
    num_iters=num_iters,
  )
  top = lax.stop_gradient(z.max(-1, keepdims=True))
  return (z - top) / temperature[..., None]


@distribution_loss(domains=_DOMAINS, log_probs=_over_own_temperature)
def _aldr_kl(
  z: jax.Array,
  target: Target,
  *,
  base_temperature: jax.Array,
  alpha: jax.Array,
  margin: jax.Array,
  num_iters: int,
) -> jax.Array:
  numbers = (base_temperature, alpha, margin)

  def of_class(stats: RowStats, others: jax.Array) -> jax.Array:
    temperature = _adaptive_temperature(z, stats, others, num_iters, *numbers)
    return _aldr_at(z, stats, others, temperature, *numbers)

  return target.expected(
    z, lambda stats: target.map_classes(z, stats, of_class)
  )


@_aldr_kl.public
def aldr_kl(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  base_temperature: jax.typing.ArrayLike = 1.0,
  alpha: jax.typing.ArrayLike = 2.0,
  margin: jax.typing.ArrayLike = 0.0,
  num_iters: int = 30,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""The loss of `ldr_kl` with a temperature of each example's own.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,
  and :math:`\delta_k = z_k - z_y + \text{margin} \, [k \ne y]`,

  .. math::
    \ell(z, y) = \max_{q, \lambda} \sum_k q_k \delta_k
      - \lambda \, \mathrm{KL}(q \Vert u)
      - \frac{\text{alpha} \log C}{2 \, \text{base\_temperature}}
        (\lambda - \text{base\_temperature})^2 ,

  :math:`q` being a distribution over the classes and :math:`u` the uniform one.
  An example with one strong class gets a temperature below
  ``base_temperature``, an ambiguous one nearly all of it; the temperature is
  the fixed point that :func:`squentropy_jax.losses.aldr_kl_temperature`
  returns. It is computed afresh in every call and to its end: the authors' code
  keeps a temperature per training example and moves it one step per visit. As
  ``alpha`` goes to infinity it is :func:`squentropy_jax.losses.ldr_kl`. Without
  a margin the class probabilities are the softmax of ``aldr_kl.link(logits)``,
  the logits over their temperature. Soft
  labels :math:`p` give the expected loss :math:`\sum_k p_k\, \ell(z, k)`. They
  cost the iteration once for each class.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    base_temperature: Temperature of an example without any preference,
      positive.
    alpha: How strongly the temperature is held, in units of
      :math:`\log(C) / \text{base\_temperature}`; above 1. From 1.5 on the
      default number of steps is enough; close to 1 the solution may be one of
      several.
    margin: Lead that the labelled class is to have, not negative.
    num_iters: Steps of the fixed-point iteration, an int; one of Newton's
      method follows.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0; masked classes do not count in :math:`C`.

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
    >>> print(losses.aldr_kl(logits, jnp.array([0, 2])))
    [-0.8096  0.5832]

  References:
    Zhu, Ying and Yang, `Label Distributionally Robust Losses for Multi-class
    Classification: Consistency, Robustness and Adaptivity
    <https://arxiv.org/abs/2112.14869>`_, ICML 2023.

  .. seealso:: :func:`squentropy_jax.losses.ldr_kl`,
    :func:`squentropy_jax.losses.aldr_kl_temperature`
  """
  return _aldr_kl(
    logits,
    labels,
    base_temperature=base_temperature,
    alpha=alpha,
    margin=margin,
    num_iters=num_iters,
    axis=axis,
    where=where,
  )
