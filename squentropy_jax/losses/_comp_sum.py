# SPDX-License-Identifier: Apache-2.0
"""Comp-sum losses: functions of the probability of the labelled class.

They form a family with one parameter. It contains the sum-exponential loss,
cross-entropy and the mean absolute error.
"""

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks, elementwise
from squentropy_jax._core.class_sums import RowStats, uniform_cross_entropy
from squentropy_jax._core.distributions import (
  Target,
  distribution_loss,
  possible_logits,
  row_unit,
)
from squentropy_jax._core.elementwise import sigmoid, softplus
from squentropy_jax._core.rows import row_loss
from squentropy_jax._core.transform import Transform


@row_loss(uniform=uniform_cross_entropy)
def _cross_entropy(stats: RowStats) -> jax.Array:
  return softplus(stats.log_odds)


@_cross_entropy.public
def cross_entropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the softmax cross-entropy of each example.

  Use when there is no reason for another loss. At its optimum the softmax is
  the distribution of the labels.

  Avoid when many labels are incorrect: the gradient of an example whose label
  contradicts the model does not vanish.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = -\log \frac{\exp z_y}{\sum_j \exp z_j}
               = \log \Bigl(1 + \sum_{j \ne y} \exp (z_j - z_y)\Bigr) .

  The implementation uses the second form. Its value and gradient are accurate
  for confident examples, where the difference of a log-sum-exp and a logit
  rounds to 0. Soft labels give the expected loss, which is the cross-entropy
  with the target distribution.

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
    >>> print(losses.cross_entropy(logits, jnp.array([0, 2])))
    [0.1698 1.6803]

  References:
    Good, `Rational Decisions <https://www.jstor.org/stable/2984087>`_, 1952.

  .. seealso:: :func:`squentropy_jax.losses.squentropy`,
    :func:`squentropy_jax.losses.comp_sum`
  """
  return _cross_entropy(logits, labels, axis=axis, where=where)


@row_loss(domains={"tau": "[0, inf)"})
def _comp_sum(stats: RowStats, *, tau: jax.Array) -> jax.Array:
  return elementwise.expm1_over(softplus(stats.log_odds), 1.0 - tau)


@_comp_sum.public
def comp_sum(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  tau: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes a loss of the comp-sum family for each example.

  Use when one hyper-parameter should balance fast training (``tau`` of 1) and
  robustness against incorrect labels (``tau`` close to 2).

  Avoid when ``tau`` would be below 1 and the data has outliers: the loss grows
  like a power of :math:`1 / p_y`, and overflows if that power does.

  Let :math:`p_y` be the softmax probability of the class :math:`y`, and
  :math:`u = \sum_{k \ne y} e^{z_k - z_y} = 1 / p_y - 1` the odds against it.
  Then

  .. math::
    \ell_\tau(z, y) = \frac{(1 + u)^{1 - \tau} - 1}{1 - \tau},
    \qquad \ell_1(z, y) = \log (1 + u) .

  A ``tau`` of 0 is the sum-exponential loss, 1 is cross-entropy and 2 is the
  mean absolute error. Between 1 and 2 it is the generalised cross-entropy with
  :math:`q = \tau - 1`. The derivative in :math:`z_y` is
  :math:`-p_y^{\tau - 1} (1 - p_y)`, so that a larger ``tau`` reduces the
  influence of labels that contradict the model. For ``tau`` of 1 or less the
  loss has no upper bound. Soft labels give the expected loss.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    tau: Order of the family, 0 or more: a scalar or one value for each example,
      shape ``[...]``. The paper finds 1 best on clean data.
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
    >>> print(losses.comp_sum(logits, jnp.array([0, 2]), tau=1.5))
    [0.1628 1.1367]

  References:
    Mao, Mohri and Zhong, `Cross-Entropy Loss Functions: Theoretical Analysis
    and Applications <https://arxiv.org/abs/2304.07288>`_, ICML 2023.

  .. seealso:: :func:`squentropy_jax.losses.cross_entropy`,
    :func:`squentropy_jax.losses.generalized_cross_entropy`
  """
  return _comp_sum(logits, labels, tau=tau, axis=axis, where=where)


@row_loss(domains={"q": "[0, 1]"})
def _generalized_cross_entropy(stats: RowStats, *, q: jax.Array) -> jax.Array:
  return elementwise.expm1_over(softplus(stats.log_odds), -q)


@_generalized_cross_entropy.public
def generalized_cross_entropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  q: jax.typing.ArrayLike = 0.7,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the generalised cross-entropy of each example.

  Use when labels have symmetric noise, which means that every class is confused
  with every other one equally often.

  Avoid when labels are clean, where cross-entropy trains faster, or when
  probabilities are needed: the softmax at the optimum is more confident than
  the class probabilities.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = \frac{1 - p_y^q}{q} .

  As ``q`` goes to 0, the loss becomes cross-entropy. At 1 it is the mean
  absolute error. Its gradient is that of cross-entropy times :math:`p_y^q`, so
  that an example whose label contradicts the model has less weight. The loss
  is at most :math:`1 / q`. For class probabilities :math:`\pi`, the optimum is
  :math:`p_k \propto \pi_k^{1/(1-q)}`. Soft labels give the expected loss.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    q: Exponent in [0, 1]: a scalar or one value for each example, shape
      ``[...]``. The paper uses 0.7.
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
    >>> print(losses.generalized_cross_entropy(logits, jnp.array([0, 2])))
    [0.1601 0.9879]

  References:
    Zhang and Sabuncu, `Generalized Cross Entropy Loss for Training Deep Neural
    Networks with Noisy Labels <https://arxiv.org/abs/1805.07836>`_, NeurIPS
    2018.

  .. seealso:: :func:`squentropy_jax.losses.comp_sum`
  """
  return _generalized_cross_entropy(logits, labels, q=q, axis=axis, where=where)


@row_loss
def _mean_absolute_error(stats: RowStats) -> jax.Array:
  return sigmoid(stats.log_odds)


@_mean_absolute_error.public
def mean_absolute_error(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the mean absolute error of each example.

  Use when labels have uniform noise, in a sum with another loss. It is also the
  most robust member of the family, for comparison.

  Avoid when a model with many classes is trained from scratch: the gradient
  vanishes where the model is confident in an incorrect class.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = 1 - p_y
               = \tfrac{1}{2} \sum_k \bigl| p_k - [k = y] \bigr| .

  This is half of the :math:`\ell_1` distance that some papers call the mean
  absolute error. The losses of all possible labels add up to :math:`C - 1` for
  any logits, which makes the loss robust to uniform label noise. For a target
  distribution :math:`t`, soft labels give the expected loss
  :math:`1 - \sum_k t_k p_k`, which is not a distance between :math:`p` and
  :math:`t`.

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
    >>> print(losses.mean_absolute_error(logits, jnp.array([0, 2])))
    [0.1562 0.8137]

  References:
    Ghosh, Kumar and Sastry, `Robust Loss Functions under Label Noise for Deep
    Neural Networks <https://arxiv.org/abs/1712.09482>`_, AAAI 2017.

  .. seealso:: :func:`squentropy_jax.losses.generalized_cross_entropy`
  """
  return _mean_absolute_error(logits, labels, axis=axis, where=where)


def _lowest(dtype: np.dtype) -> float:
  """Returns a finite replacement for ``-inf``.

  Its square overflows, and twice its value does not.
  """
  return float(jnp.finfo(dtype).min) / 8.0


def _margin_shift(
  change: jax.Array, target: Target, weight: jax.Array
) -> jax.Array:
  """Computes the weighted norm of the change of the margins."""
  possible, z = possible_logits(change)
  count = possible.sum(-1, keepdims=True, dtype=jnp.int32)
  count = jnp.maximum(count, 1).astype(z.dtype)
  zero = jnp.zeros_like(z)
  lowest = _lowest(z.dtype)
  finite = change > lowest
  unit = row_unit(jnp.where(finite, change, -jnp.inf))
  z = jnp.where(finite, z / unit, jnp.where(possible, lowest, zero))

  def of_targets(stats: RowStats) -> jax.Array:
    centred = z
    of_target = stats.target
    of_target = jnp.where(of_target > lowest, of_target / unit, lowest)
    # If the changes have a mean of 0, sum_sq below is the squared norm. The
    # second subtraction removes the rounding error of a large mean.
    for _ in range(2):
      mean = jnp.where(possible, centred, zero).sum(-1, keepdims=True) / count
      centred, of_target = centred - mean, of_target - mean
    spread = jnp.where(possible, jnp.square(centred), zero)
    sum_sq = count * jnp.square(of_target) + spread.sum(-1, keepdims=True)
    is_zero = sum_sq <= 0
    norm = jnp.sqrt(jnp.where(is_zero, jnp.ones_like(sum_sq), sum_sq))
    return weight * (unit * jnp.where(is_zero, jnp.zeros_like(norm), norm))

  return target.expected(change, of_targets)


@distribution_loss(
  domains={"tau": "[0, inf)", "rho": "(0, inf)", "nu": "[0, inf)"}
)
def _smooth_adversarial_comp_sum(
  z: jax.Array,
  target: Target,
  adversarial: jax.Array,
  *,
  tau: jax.Array,
  rho: jax.Array,
  nu: jax.Array,
) -> jax.Array:
  scaled = Transform(divide_by="rho", subtract="max")(z, {"rho": rho})
  of_clean = target.expected(
    scaled,
    lambda stats: elementwise.expm1_over(softplus(stats.log_odds), 1.0 - tau),
  )
  # A class that only the attack makes impossible changes by an infinite amount.
  possible, clean = possible_logits(z)
  attacked = jnp.where(possible, adversarial, jnp.zeros_like(z))
  change = jnp.maximum(attacked - clean, _lowest(z.dtype))
  change = jnp.where(possible, change, -jnp.inf)
  return of_clean + _margin_shift(change, target, nu)


def smooth_adversarial_comp_sum(
  logits: jax.typing.ArrayLike,
  adversarial_logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  tau: jax.typing.ArrayLike = 1.0,
  rho: jax.typing.ArrayLike = 1.0,
  nu: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the smooth adversarial comp-sum loss of each example.

  Use when a model is trained against adversarial perturbations. Search for the
  perturbation of the input that maximises this loss, and pass the logits of the
  perturbed input.

  Avoid when no robustness against perturbations is needed: the loss needs that
  search and a second pass of the network.

  The margins of an example are :math:`D_k = z_y - z_k`, and those of the
  perturbed example are :math:`D_k'`. Both are vectors over the incorrect
  classes. With :math:`\Phi_\tau(u)` the loss of
  :func:`squentropy_jax.losses.comp_sum`,

  .. math::
    \ell(z, z', y) = \Phi_\tau \Bigl(\sum_{k \ne y} e^{-D_k / \text{rho}} \Bigr)
                     + \text{nu} \, \lVert D' - D \rVert_2 .

  The paper takes the supremum of the norm over a ball around the example. If
  :math:`\text{nu} \ge \sqrt{C - 1} / \text{rho}`, the loss is an upper bound
  of :math:`\Phi_\tau` of the ramp losses
  :math:`\min(\max(0, 1 - D_k' / \text{rho}), 1)`. A class that is impossible
  for the clean example is left out of both terms. A class that is impossible
  for the perturbed example alone makes the loss infinite. Soft labels give the
  expected loss.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    adversarial_logits: Scores at the perturbed inputs, of the logits' shape.
      The loss is differentiable in them too.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    tau: Order of the comp-sum loss, 0 or more: a scalar or one value for each
      example, shape ``[...]``.
    rho: Scale of the margins, above 0: a scalar or one value for each example,
      shape ``[...]``.
    nu: Weight of the norm, 0 or more: a scalar or one value for each example,
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
    >>> attacked = jnp.array([[1.5, 0.4, -1.0], [0.5, 1.2, -0.2]])
    >>> labels = jnp.array([0, 2])
    >>> print(losses.smooth_adversarial_comp_sum(logits, attacked, labels))
    [1.1994 2.1275]

  References:
    Mao, Mohri and Zhong, `Cross-Entropy Loss Functions: Theoretical Analysis
    and Applications <https://arxiv.org/abs/2304.07288>`_, ICML 2023.

  .. seealso:: :func:`squentropy_jax.losses.comp_sum`
  """
  clean = checks.as_logits(logits)
  attacked = checks.as_logits(adversarial_logits, "adversarial_logits")
  if attacked.shape != clean.shape:
    raise ValueError(
      f"adversarial_logits must have the logits' shape {clean.shape}, got "
      f"{attacked.shape}."
    )
  return _smooth_adversarial_comp_sum.evaluate(
    clean,
    labels,
    axis=axis,
    where=where,
    more={"adversarial_logits": attacked},
    tau=tau,
    rho=rho,
    nu=nu,
  )
