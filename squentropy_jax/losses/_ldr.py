# SPDX-License-Identifier: Apache-2.0
"""Losses that take the worst case over distributions of the wrong class."""

from collections.abc import Callable
import functools

import jax
from jax import lax
import jax.numpy as jnp

from squentropy_jax._core import all_logits as _whole
from squentropy_jax._core import checks as _checks
from squentropy_jax._core import rows as _rows


def _scale(
  *,
  temperature: jax.typing.ArrayLike = 1.0,
  margin: jax.typing.ArrayLike = 0.0,
) -> jax.typing.ArrayLike:
  del margin
  return 1.0 / temperature


def over_temperature(
  logits: jax.Array,
  *,
  temperature: jax.typing.ArrayLike = 1.0,
  margin: jax.typing.ArrayLike = 0.0,
) -> jax.Array:
  """What the statistics are of, and the link where there is no margin."""
  del margin
  return _rows.divided(logits, temperature)


def _ldr_kl(
  stats: _rows.RowStats,
  *,
  temperature: jax.Array | float = 1.0,
  margin: jax.Array | float = 0.0,
) -> jax.Array:
  # The statistics are those of the logits over the temperature.
  soft_max = _rows.softplus(stats.log_odds + margin / temperature)
  return temperature * (soft_max - jnp.log(stats.num_classes))


def _tilted(
  whole: _whole.Whole, others: jax.Array, margin: jax.Array
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
  """Of the worst-case distribution at a temperature: divergence and spread.

  The divergence is that from the uniform distribution; the spread is the
  variance of the logits over the temperature.
  """
  zero = jnp.zeros_like(whole.logits)
  raised = whole.logits + jnp.where(others, margin, zero)
  top = jnp.where(whole.possible, raised, -jnp.inf).max(-1, keepdims=True)
  top = lax.stop_gradient(jnp.where(top == -jnp.inf, 0.0, top))
  below = jnp.where(whole.possible, raised - top, zero)

  def at(temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = below / temperature[..., None]
    mass = jnp.where(whole.possible, jnp.exp(x), zero)
    total = mass.sum(-1, keepdims=True)
    share = mass / total
    mean = (share * x).sum(-1, keepdims=True)
    spread = (share * jnp.square(x - mean)).sum(-1)
    return (mean - jnp.log(total))[..., 0], spread

  return at


def _adaptive_temperature(
  whole: _whole.Whole,
  stats: _rows.RowStats,
  others: jax.Array,
  num_iters: int,
  base_temperature: jax.Array,
  alpha: jax.Array,
  margin: jax.Array,
) -> jax.Array:
  log_classes = jnp.log(stats.num_classes)
  alone = log_classes == 0
  # Over alpha log(C) / base_temperature, the weight of the penalty.
  nat = base_temperature / (alpha * jnp.where(alone, 1.0, log_classes))

  def step(
    temperature: jax.Array,
    whole: _whole.Whole,
    nat: jax.Array,
    base: jax.Array,
    margin: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    negative_entropy, spread = _tilted(whole, others, margin)(temperature)
    divergence = negative_entropy + log_classes
    divergence = jnp.where(alone, jnp.zeros_like(divergence), divergence)
    return base - nat * divergence, nat * spread / temperature

  fixed = lax.stop_gradient((whole, nat, base_temperature, margin))
  start = jnp.zeros_like(stats.num_classes) + fixed[2]
  found = lax.fori_loop(0, num_iters, lambda _, t: step(t, *fixed)[0], start)
  # One step of Newton's, which also has the derivatives of the fixed point.
  moved, contraction = step(found, whole, nat, base_temperature, margin)
  rate = jnp.maximum(1.0 - lax.stop_gradient(contraction), 1e-3)
  return found + (moved - found) / rate


def _aldr_at(
  whole: _whole.Whole,
  stats: _rows.RowStats,
  others: jax.Array,
  temperature: jax.Array,
  base_temperature: jax.Array,
  alpha: jax.Array,
  margin: jax.Array,
) -> jax.Array:
  zero = jnp.zeros_like(whole.logits)
  top = jnp.where(others, whole.logits, -jnp.inf).max(-1)
  alone = top == -jnp.inf
  impossible = stats.target == -jnp.inf
  target = jnp.where(impossible, zero[..., 0], stats.target)
  top = lax.stop_gradient(jnp.where(alone, 0.0, top))
  below = jnp.where(others, whole.logits - top[..., None], zero)
  mass = jnp.where(others, jnp.exp(below / temperature[..., None]), zero)
  log_mass = jnp.log(jnp.where(alone, 1.0, mass.sum(-1)))
  log_odds = (top + margin - target) / temperature + log_mass
  log_odds = jnp.where(alone, -jnp.inf, log_odds)
  soft_max = temperature * _rows.softplus(log_odds)
  # The limit, whose slopes are those of the temperature times the log-odds.
  limit = (top + margin - stats.target) + temperature * log_mass
  soft_max = jnp.where(impossible, limit, soft_max)
  log_classes = jnp.log(stats.num_classes)
  gap = temperature - base_temperature
  penalty = alpha * log_classes * jnp.square(gap) / (2.0 * base_temperature)
  return soft_max - temperature * log_classes - penalty


@functools.cache
def _aldr_kl(
  num_iters: int, temperature_only: bool
) -> Callable[..., jax.Array]:
  def formula(whole: _whole.Whole, **hyper: jax.Array) -> jax.Array:
    def of_target(stats: _rows.RowStats, others: jax.Array) -> jax.Array:
      temperature = _adaptive_temperature(
        whole, stats, others, num_iters, **hyper
      )
      if temperature_only:
        return temperature
      return _aldr_at(whole, stats, others, temperature, **hyper)

    return whole.map_targets(of_target)

  return formula


@_rows.with_link(over_temperature)
@_rows.with_row(_ldr_kl, logit_scale=_scale)
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
  return _rows.evaluate(
    _ldr_kl,
    logits,
    labels,
    axis=axis,
    where=where,
    prepare=over_temperature,
    temperature=(temperature, "(0, inf)"),
    margin=(margin, "[0, inf)"),
  )


def over_own_temperature(
  logits: jax.Array,
  *,
  base_temperature: jax.typing.ArrayLike = 1.0,
  alpha: jax.typing.ArrayLike = 2.0,
  margin: jax.typing.ArrayLike = 0.0,
  num_iters: int = 30,
) -> jax.Array:
  """The link where there is no margin, whose temperature needs no label."""
  del margin
  temperature = aldr_kl_temperature(
    logits,
    jnp.argmax(logits, axis=-1),
    base_temperature=base_temperature,
    alpha=alpha,
    num_iters=num_iters,
  )
  return _rows.divided(logits, temperature[..., None])


@_rows.with_link(over_own_temperature)
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
  return _whole.evaluate(
    _aldr_kl(_checks.as_count("num_iters", num_iters), False),
    logits,
    labels,
    axis=axis,
    where=where,
    base_temperature=(base_temperature, "(0, inf)"),
    alpha=(alpha, "(1, inf)"),
    margin=(margin, "[0, inf)"),
  )


def aldr_kl_temperature(
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
  r"""The temperature of each example in :func:`squentropy_jax.losses.aldr_kl`.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,
  the :math:`\lambda` that solves

  .. math::
    \lambda = \text{base\_temperature} \, \Bigl(1 -
      \frac{\mathrm{KL}(q(\lambda) \Vert u)}{\text{alpha} \log C}\Bigr),
    \qquad q_k(\lambda) \propto
      \exp \frac{z_k + \text{margin} \, [k \ne y]}{\lambda} .

  It lies between :math:`\text{base\_temperature} \, (1 - 1 / \text{alpha})`,
  for a sure model, and ``base_temperature``, for one without preference. Soft
  labels give the expected temperature.

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
    The temperature of each example, shape ``[...]``, float32 or wider; 0 for
    dropped ones.

  Raises:
    TypeError: If ``logits`` is not floating, or if integer ``labels`` look like
      one-hot rows or float ``labels`` like class ids.
    ValueError: If the shapes of ``labels`` or ``where`` fit neither form above;
      if a concrete class id is out of range (a traced one gives NaN); if a
      hyper-parameter that can be read is outside its domain.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(losses.aldr_kl_temperature(logits, jnp.array([0, 2])))
    [0.5763 0.9616]

  References:
    Zhu, Ying and Yang, `Label Distributionally Robust Losses for Multi-class
    Classification: Consistency, Robustness and Adaptivity
    <https://arxiv.org/abs/2112.14869>`_, ICML 2023.

  .. seealso:: :func:`squentropy_jax.losses.aldr_kl`
  """
  return _whole.evaluate(
    _aldr_kl(_checks.as_count("num_iters", num_iters), True),
    logits,
    labels,
    axis=axis,
    where=where,
    base_temperature=(base_temperature, "(0, inf)"),
    alpha=(alpha, "(1, inf)"),
    margin=(margin, "[0, inf)"),
  )
