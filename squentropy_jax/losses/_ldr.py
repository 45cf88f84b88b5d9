# SPDX-License-Identifier: Apache-2.0
"""Label-distributionally-robust losses: a worst case over incorrect classes.

A Kullback-Leibler penalty keeps the worst case close to the uniform
distribution. The weight of the penalty is the temperature. A low temperature
gives a hinge loss, a temperature of 1 cross-entropy, and a high one a linear
loss.
"""

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
from squentropy_jax._core.rows import row_loss
from squentropy_jax._core.transform import Transform

# Log-odds above which ``softplus`` is the identity in any dtype.
_FAR = 1e9


@row_loss(
  domains={"temperature": "(0, inf)", "margin": "[0, inf)"},
  transform=Transform(divide_by="temperature", subtract="max"),
)
def _ldr_kl(
  stats: RowStats, *, temperature: jax.Array, margin: jax.Array
) -> jax.Array:
  # The statistics are those of the logits divided by the temperature.
  soft_max = softplus(stats.log_odds + margin / temperature)
  # The transform sets a target that overflows to the least finite number.
  overflow = stats.target <= float(jnp.finfo(soft_max.dtype).min)
  soft_max += jnp.where(overflow, jnp.inf, 0.0).astype(soft_max.dtype)
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
  r"""Computes the LDR-KL loss: the worst-case margin with a penalty.

  Use when cross-entropy (temperature 1) should get a margin. A lower
  temperature makes the loss closer to a hinge loss, and a higher one makes it
  more robust to wrong labels. The paper tunes the temperature among 0.1, 1 and
  10.

  Avoid when the temperature is high and the logits are not bounded: the loss
  then has no useful lower bound. The authors' code normalises the logits first.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,
  and with :math:`\delta_k = z_k - z_y + \text{margin} \, [k \ne y]`,

  .. math::
    \ell(z, y) = \max_q \sum_k q_k \delta_k
      - \text{temperature} \, \mathrm{KL}(q \Vert u)
    = \text{temperature} \log \frac{1}{C}
      \sum_k \exp \frac{\delta_k}{\text{temperature}} ,

  where :math:`q` is a distribution over the classes and :math:`u` the uniform
  one. Soft labels give the expected loss. At temperature 1 and margin 0 the
  loss is cross-entropy minus :math:`\log C`. As the temperature goes to 0 it
  becomes :func:`squentropy_jax.losses.crammer_singer` with the same margin. As
  it goes to infinity it becomes :func:`squentropy_jax.losses.unhinged` plus
  :math:`\text{margin} \, (1 - 1 / C)`. The gradient is :math:`q - e_y`.
  ``ldr_kl.log_probs`` returns the log-softmax of the logits divided by the
  temperature. With a margin these probabilities are over-confident. Masked
  classes do not count in :math:`C`.

  The dense loss subtracts the largest logit first. Its error is a few ulp of
  the loss and of :math:`\text{temperature} \log C`. A fused head does not
  subtract the largest logit, and its error is a few ulp of
  :math:`\max_k |z_k|`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    temperature: Weight of the penalty, positive: a scalar or one value for each
      example, shape ``[...]``.
    margin: The lead that the labelled class should have, 0 or more: a scalar
      or one value for each example, shape ``[...]``.
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


def _over(x: jax.Array, temperature: jax.Array) -> jax.Array:
  """Divides by the temperature and clips at -1e18, where squares are finite."""
  far = x < -HUGE * temperature
  near = jnp.where(far, jnp.zeros_like(x), x) / temperature
  return jnp.where(far, -HUGE, near)


def _worst_case(
  z: jax.Array, others: jax.Array, margin: jax.Array
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
  """Returns a function that computes the divergence and the variance.

  Both are those of the worst-case distribution at a temperature. The divergence
  is that from the uniform distribution, minus the logarithm of the number of
  classes. The variance is that of the logits divided by the temperature.
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
  # The inverse of the weight of the penalty, alpha log(C) / base_temperature.
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
  # The Newton step also gives the derivatives of the fixed point.
  moved, contraction = step(found, z, nat, base_temperature, margin)
  rate = jnp.maximum(1.0 - lax.stop_gradient(contraction), 1e-3)
  return found + (moved - found) / rate


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


def _over_adaptive_temperature(
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
  by_temperature = Transform(divide_by="temperature", subtract="max")
  return by_temperature(z, {"temperature": temperature[..., None]})


def _aldr_kl_at(
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
  # For a far target the loss is the limit for a target of -inf. The derivative
  # of the general form in the temperature would subtract large numbers.
  far = ~alone & (gap > _FAR * temperature)
  log_odds = _over(jnp.where(far, jnp.zeros_like(gap), gap), temperature)
  log_odds = jnp.where(alone, -jnp.inf, log_odds + log_sum)
  limit = gap + temperature * log_sum
  soft_max = jnp.where(far, limit, temperature * softplus(log_odds))
  log_classes = jnp.log(stats.num_classes)
  change = temperature - base_temperature
  penalty = alpha * log_classes * jnp.square(change) / (2.0 * base_temperature)
  return soft_max - temperature * log_classes - penalty


@distribution_loss(domains=_DOMAINS, log_probs=_over_adaptive_temperature)
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
    return _aldr_kl_at(z, stats, others, temperature, *numbers)

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
  r"""Computes the ALDR-KL loss: LDR-KL with an adaptive temperature.

  Use when the amount of label noise differs between examples, so that one
  temperature does not fit all of them.

  Avoid when there are very many classes: the loss takes about thirty passes
  over each row. With soft labels it takes as many passes for each class. Avoid
  an ``alpha`` below 1.5, because the solution need not be unique.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,
  and with :math:`\delta_k = z_k - z_y + \text{margin} \, [k \ne y]`,

  .. math::
    \ell(z, y) = \max_{q, \lambda} \sum_k q_k \delta_k
      - \lambda \, \mathrm{KL}(q \Vert u)
      - \frac{\text{alpha} \log C}{2 \, \text{base\_temperature}}
        (\lambda - \text{base\_temperature})^2 ,

  where :math:`q` is a distribution over the classes and :math:`u` the uniform
  one. Soft labels give the expected loss. The temperature :math:`\lambda` is
  the fixed point that :func:`squentropy_jax.margins.aldr_kl_temperature`
  returns. It is low for an example with one dominant class, and close to
  ``base_temperature`` for an ambiguous example. Each call computes the
  temperature to convergence. The authors' code stores a temperature for each
  training example, and updates it by one step whenever the example is used. As
  ``alpha`` goes to infinity, the loss becomes
  :func:`squentropy_jax.losses.ldr_kl`. ``aldr_kl.log_probs`` returns the
  log-softmax of the logits divided by the temperature that they have without a
  margin. Masked classes do not count in :math:`C`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    base_temperature: Temperature of an example whose logits are all equal,
      positive: a scalar or one value for each example, shape ``[...]``.
    alpha: Weight of the penalty on the temperature, in units of
      :math:`\log(C) / \text{base\_temperature}`, above 1: a scalar or one value
      for each example, shape ``[...]``. For 1.5 or more, the default number of
      steps is enough.
    margin: The lead that the labelled class should have, 0 or more: a scalar
      or one value for each example, shape ``[...]``.
    num_iters: Steps of the fixed-point iteration, a static int. One Newton step
      follows.
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
    >>> print(losses.aldr_kl(logits, jnp.array([0, 2])))
    [-0.8096  0.5832]

  References:
    Zhu, Ying and Yang, `Label Distributionally Robust Losses for Multi-class
    Classification: Consistency, Robustness and Adaptivity
    <https://arxiv.org/abs/2112.14869>`_, ICML 2023.

  .. seealso:: :func:`squentropy_jax.losses.ldr_kl`
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
