# SPDX-License-Identifier: Apache-2.0
"""Comp-sum losses: functions of the probability of the labelled class."""

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks, elementwise
from squentropy_jax._core.class_sums import RowStats, uniform_cross_entropy
from squentropy_jax._core.distributions import (
  Target,
  distribution_loss,
  possible_logits,
)
from squentropy_jax._core.elementwise import sigmoid, softplus
from squentropy_jax._core.rows import Transform, row_loss


@row_loss(uniform=uniform_cross_entropy)
def _cross_entropy(stats: RowStats) -> jax.Array:
  return softplus(stats.log_odds)


@row_loss(domains={"tau": "[0, inf)"})
def _comp_sum(stats: RowStats, *, tau: jax.Array) -> jax.Array:
  return elementwise.expm1_over(softplus(stats.log_odds), 1.0 - tau)


@row_loss(domains={"q": "[0, 1]"})
def _generalized_cross_entropy(stats: RowStats, *, q: jax.Array) -> jax.Array:
  return elementwise.expm1_over(softplus(stats.log_odds), -q)


@row_loss
def _mean_absolute_error(stats: RowStats) -> jax.Array:
  return sigmoid(stats.log_odds)


@_cross_entropy.public
def cross_entropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Softmax cross-entropy, exact where the target dominates.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,

  .. math::
    \ell(z, y) = -\log \frac{\exp z_y}{\sum_j \exp z_j}
               = \log \Bigl(1 + \sum_{j \ne y} \exp (z_j - z_y)\Bigr) .

  It is computed in the second form: a confident example keeps its digits, in
  the loss and in the gradient, where the difference of a log-sum-exp and a
  logit rounds to 0. Soft labels :math:`p` give the expected loss
  :math:`-\sum_k p_k \log \mathrm{softmax}(z)_k`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0.

  Returns:
    The loss of each example in nats, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``logits`` is not floating, or if integer ``labels`` look like
      one-hot rows or float ``labels`` like class ids.
    ValueError: If the shapes of ``labels`` or ``where`` fit neither form above,
      or if a concrete class id is out of range (a traced one gives NaN).

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(losses.cross_entropy(logits, jnp.array([0, 2])))
    [0.1698 1.6803]

  References:
    Good, `Rational Decisions <https://www.jstor.org/stable/2984087>`_, 1952.

  .. seealso:: :func:`squentropy_jax.squentropy`
  """
  return _cross_entropy(logits, labels, axis=axis, where=where)


@_comp_sum.public
def comp_sum(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  tau: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""A power of the odds, from sum-exponential to one minus the probability.

  With :math:`u = \sum_{k \ne y} e^{z_k - z_y} = 1 / p_y - 1` the odds against
  the class :math:`y` of probability :math:`p_y` under the softmax,

  .. math::
    \ell_\tau(z, y) = \frac{(1 + u)^{1 - \tau} - 1}{1 - \tau},
    \qquad \ell_1(z, y) = \log (1 + u) .

  ``tau`` of 0 is the sum-exponential loss, 1 cross-entropy, between 1 and 2 the
  generalised cross-entropy of :math:`q = \tau - 1`, 2 the mean absolute error.
  A larger ``tau`` trusts a contradicted label less: the slope in :math:`z_y` is
  :math:`-p_y^{\tau - 1} (1 - p_y)`. From 1 downwards the loss has no upper
  bound, and below 1 it grows like a power of :math:`1 / p_y`: it overflows
  where that does. Soft labels :math:`p` give the expected loss
  :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    tau: Order of the family, not negative. The paper finds 1 best on clean
      data.
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
    >>> print(losses.comp_sum(logits, jnp.array([0, 2])))
    [0.1698 1.6803]

  References:
    Mao, Mohri and Zhong, `Cross-Entropy Loss Functions: Theoretical Analysis
    and Applications <https://arxiv.org/abs/2304.07288>`_, ICML 2023.

  .. seealso:: :func:`squentropy_jax.losses.cross_entropy`,
    :func:`squentropy_jax.losses.generalized_cross_entropy`
  """
  return _comp_sum(logits, labels, tau=tau, axis=axis, where=where)


@_generalized_cross_entropy.public
def generalized_cross_entropy(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  q: jax.typing.ArrayLike = 0.7,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""One minus a power of the labelled class's probability, for noisy labels.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = \frac{1 - p_y^q}{q} .

  It is cross-entropy in the limit of ``q`` 0 and the mean absolute error at 1.
  In between, an example whose label contradicts the model weighs less, by the
  factor :math:`p_y^q` on its gradient, and its loss is at most :math:`1 / q`.
  For clean labels cross-entropy trains faster. The softmax at the optimum is
  more confident than the class probabilities :math:`\pi`, as
  :math:`p_k \propto \pi_k^{1/(1-q)}`. Soft labels :math:`p` give the expected
  loss :math:`\sum_k p_k\, \ell(z, k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    q: Exponent in [0, 1]. The paper uses 0.7.
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
    >>> print(losses.generalized_cross_entropy(logits, jnp.array([0, 2])))
    [0.1601 0.9879]

  References:
    Zhang and Sabuncu, `Generalized Cross Entropy Loss for Training Deep Neural
    Networks with Noisy Labels <https://arxiv.org/abs/1805.07836>`_, NeurIPS
    2018.

  .. seealso:: :func:`squentropy_jax.losses.comp_sum`
  """
  return _generalized_cross_entropy(logits, labels, q=q, axis=axis, where=where)


@_mean_absolute_error.public
def mean_absolute_error(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""One minus the probability of the labelled class.

  For one example with logits :math:`z \in \mathbb{R}^C`, class :math:`y` and
  :math:`p = \mathrm{softmax}(z)`,

  .. math::
    \ell(z, y) = 1 - p_y
               = \tfrac{1}{2} \sum_k \bigl| p_k - [k = y] \bigr| .

  That is half of the :math:`\ell_1` distance that the robustness literature
  often prints under this name. Its values over the labels add up to
  :math:`C - 1` whatever the logits are, which makes it robust to uniform label
  noise; its gradient vanishes where the model is confidently wrong, so that
  with many classes it hardly trains from scratch. Soft labels :math:`p` give
  the expected loss :math:`1 - \sum_k p_k\, \mathrm{softmax}(z)_k`, which is not
  a distance to :math:`p`.

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
    >>> print(losses.mean_absolute_error(logits, jnp.array([0, 2])))
    [0.1562 0.8137]

  References:
    Ghosh, Kumar and Sastry, `Robust Loss Functions under Label Noise for Deep
    Neural Networks <https://arxiv.org/abs/1712.09482>`_, AAAI 2017.

  .. seealso:: :func:`squentropy_jax.losses.generalized_cross_entropy`
  """
  return _mean_absolute_error(logits, labels, axis=axis, where=where)


@row_loss(
  domains={"tau": "[0, inf)", "rho": "(0, inf)"},
  transform=Transform(divide_by="rho", subtract="max"),
)
def _comp_sum_of_margins(
  stats: RowStats, *, tau: jax.Array, rho: jax.Array
) -> jax.Array:
  del rho  # The statistics are those of the logits over it.
  return elementwise.expm1_over(softplus(stats.log_odds), 1.0 - tau)


def _lowest(dtype: np.dtype) -> float:
  """In the place of ``-inf``: its square overflows, but not twice itself."""
  return float(jnp.finfo(dtype).min) / 8.0


@distribution_loss(domains={"nu": "[0, inf)"})
def _margin_shift(
  change: jax.Array, target: Target, *, nu: jax.Array
) -> jax.Array:
  """The norm of the change of the margins, from the change of the logits."""
  possible, z = possible_logits(change)
  count = possible.sum(-1, keepdims=True, dtype=jnp.int32)
  count = jnp.maximum(count, 1).astype(z.dtype)
  zero = jnp.zeros_like(z)

  def of_targets(stats: RowStats) -> jax.Array:
    others = z
    own = jnp.maximum(stats.target, _lowest(z.dtype))
    # The squares below sum to that of the margins for a mean of 0. A second
    # subtraction removes what rounding leaves of a large mean.
    for _ in range(2):
      mean = jnp.where(possible, others, zero).sum(-1, keepdims=True) / count
      others, own = others - mean, own - mean
    spread = jnp.where(possible, jnp.square(others), zero)
    square = count * jnp.square(own) + spread.sum(-1, keepdims=True)
    is_zero = square <= 0
    norm = jnp.sqrt(jnp.where(is_zero, jnp.ones_like(square), square))
    return nu * jnp.where(is_zero, jnp.zeros_like(norm), norm)

  return target.expected(change, of_targets)


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
  r"""A comp-sum loss, plus how far a perturbation moves the margins.

  With :math:`D_k = z_y - z_k` the margins at an example, :math:`D_k'` those at
  the perturbed one, both vectors over the wrong classes, and :math:`\Phi_\tau`
  the function of :func:`squentropy_jax.losses.comp_sum`,

  .. math::
    \ell(z, z', y) = \Phi_\tau \Bigl(\sum_{k \ne y} e^{-D_k / \text{rho}} \Bigr)
                     + \text{nu} \, \lVert D' - D \rVert_2 .

  The paper takes the supremum of the norm over a ball around the example:
  search for the perturbation that makes this loss largest, and pass its logits.
  If :math:`\text{nu} \ge \sqrt{C - 1} / \text{rho}` the loss is an upper bound
  of :math:`\Phi_\tau` of the ramp losses
  :math:`\min(\max(0, 1 - D_k' / \text{rho}), 1)`. A class that is impossible
  for the clean example is left out of both; one that is so for the perturbed
  example alone makes the loss infinite. Soft labels :math:`p` give the
  expected loss :math:`\sum_k p_k\, \ell(z, z', k)`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    adversarial_logits: Scores of the same shape at the perturbed inputs,
      differentiated too.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    tau: Order of the comp-sum loss, not negative.
    rho: Scale of the margins, positive.
    nu: Weight of the norm, not negative.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the logits are not floating, or if integer ``labels`` look
      like one-hot rows or float ``labels`` like class ids.
    ValueError: If the shapes of ``labels`` or ``where`` fit neither form above;
      if a concrete class id is out of range (a traced one gives NaN); if a
      hyper-parameter that can be read is outside its domain.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> attacked = jnp.array([[1.5, 0.4, -1.0], [0.5, 1.2, -0.2]])
    >>> labels = jnp.array([0, 2])
    >>> loss = losses.smooth_adversarial_comp_sum(logits, attacked, labels)
    >>> print(loss)
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
  dtype = jnp.promote_types(
    checks.compute_dtype(clean.dtype), checks.compute_dtype(attacked.dtype)
  )
  clean, attacked = clean.astype(dtype), attacked.astype(dtype)
  # A class that the attack makes impossible is infinitely far, not removed.
  change = jnp.maximum(attacked - clean, _lowest(dtype))
  moved = jnp.where(clean == -jnp.inf, -jnp.inf, change)
  loss = _comp_sum_of_margins(
    clean, labels, tau=tau, rho=rho, axis=axis, where=where
  )
  return loss + _margin_shift(moved, labels, nu=nu, axis=axis, where=where)
