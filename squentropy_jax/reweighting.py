# SPDX-License-Identifier: Apache-2.0
"""Weights of examples and classes, as arrays that a loss takes."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks, elementwise, entries
from squentropy_jax._core.hyperparameters import Hyperparameters

# Keeps every derivative below 0, which makes the loss calibrated.
_MARGIN_BELOW_ZERO = 1e-6
_HYPERPARAMETERS = Hyperparameters(
  {"box_cox": "(-inf, inf)", "clip": "(0, inf)", "tail": bool}, {}
)
_OF_LOSSES = Hyperparameters(
  {"temperature": "(0, inf)", "delta": "(0, inf)"}, {}
)
_STRATEGIES = ("linupper", "quadratic", "extremes", "upper")
_SCHEMES = ("inverse", "effective_number")
# Losses that differ by less are equal, as in the paper's code.
_SMALLEST_RANGE = 1e-6


def _inverse_box_cox(draws: jax.Array, box_cox: jax.Array) -> jax.Array:
  """``(1 + box_cox z)^(1 / box_cox)``, ``exp(z)`` at 0; of 0 its limit."""
  outside = 1.0 + box_cox * draws <= 0.0
  limit = jnp.where(box_cox < 0, jnp.inf, 0.0).astype(draws.dtype)
  inside = jnp.where(outside, jnp.zeros_like(draws), draws)
  scale = jnp.broadcast_to(box_cox, draws.shape)
  value = jnp.exp(elementwise.log1p_over(inside, scale))
  return jnp.where(outside, limit, value)


@functools.partial(jax.jit, static_argnums=5, inline=True)
def _assigned(
  draws: jax.Array,
  margins: jax.Array,
  keep: jax.Array | None,
  box_cox: jax.Array,
  clip: jax.Array,
  tail: bool,
) -> jax.Array:
  """Derivatives made of the draws, the largest for the smallest margin."""
  sizes = _inverse_box_cox(draws, box_cox).ravel()
  if keep is None:
    order = jnp.argsort(margins.ravel())
  else:
    # The dropped last, so that the kept entries share the kept draws.
    sizes = jnp.where(keep.ravel(), sizes, -jnp.inf)
    order = jnp.lexsort((margins.ravel(), ~keep.ravel()))
  sizes = -jnp.sort(-sizes)
  ranks = jnp.argsort(order)
  derivatives = -jnp.minimum(sizes[ranks].reshape(margins.shape), clip)
  if tail:
    beyond = margins > 1.0
    derivatives /= jnp.where(beyond, margins, jnp.ones_like(margins))
  derivatives -= _MARGIN_BELOW_ZERO
  return derivatives if keep is None else jnp.where(keep, derivatives, 0.0)


def calibrated_loss_derivatives(
  key: jax.Array,
  margins: jax.typing.ArrayLike,
  *,
  box_cox: jax.typing.ArrayLike = 0.0,
  clip: jax.typing.ArrayLike = 1.0,
  tail: bool = True,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Draws the derivatives of a random convex, calibrated loss for a batch.

  Use when you write a training step of your own around
  :func:`squentropy_jax.losses.ensloss`, which multiplies the margins by these
  derivatives.

  Draws :math:`g_i \sim N(0, 1)` are made positive and sorted. The largest goes
  to the smallest of the margins :math:`s_i`,

  .. math::
    d_i = -\min\bigl((1 + \lambda g)^{1 / \lambda}_{(i)}, \text{clip}\bigr)
          \cdot \min(1, 1 / s_i)^{[\text{tail}]} - 10^{-6} .

  Up to margin 1 the derivatives increase with the margin, as for a convex loss.
  All are negative, which makes the loss calibrated. Each depends on the order
  of all margins of the batch.

  Args:
    key: A key of :func:`jax.random.key`, a new one for every step.
    margins: Scores times the sign of the label, any shape, any floating dtype;
      all entries are one batch.
    box_cox: :math:`\lambda` of the inverse Box-Cox transformation; 0 is the
      exponential function.
    clip: Bound of the absolute derivatives, above 0.
    tail: Whether derivatives decrease as one over the margin beyond 1.
    where: Which entries to keep, booleans of the same shape. Dropped ones get 0
      and use no draw.

  Returns:
    The derivatives, of the margins' shape, float32 or wider. They have no
    gradient.

  Raises:
    TypeError: If ``key`` is not a key or ``margins`` not floating.
    ValueError: If the shape of ``where`` differs or a concrete ``clip`` is not
      above 0.

  Examples:
    >>> margins = jnp.array([-2.0, 0.5, 3.0, -1.0])
    >>> derivatives = reweighting.calibrated_loss_derivatives(
    ...   jax.random.key(0), margins
    ... )
    >>> print(jnp.argsort(derivatives))
    [0 3 1 2]

  References:
    Dai, `EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing
    Overfitting in Classification <https://arxiv.org/abs/2409.00908>`_, ICML
    2025.

  .. seealso:: :func:`squentropy_jax.losses.ensloss`
  """
  checks.check_key(key)
  (array,), keep = entries.checked_arrays({"margins": margins}, where)
  numbers, static = entries.checked_numbers(
    _HYPERPARAMETERS,
    {"box_cox": box_cox, "clip": clip, "tail": tail},
    array,
    keep,
  )
  array = jax.lax.stop_gradient(array)
  draws = jax.random.normal(key, array.shape, array.dtype)
  return jax.lax.stop_gradient(
    _assigned(
      draws,
      array,
      keep,
      numbers["box_cox"],
      numbers["clip"],
      dict(static)["tail"],
    )
  )


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise ValueError(f"{name} must be one of {choices}, got {value!r}.")


@functools.partial(jax.jit, static_argnums=(4, 5), inline=True)
def _softmax_of_scores(
  losses: jax.Array,
  keep: jax.Array | None,
  temperature: jax.Array,
  delta: jax.Array,
  strategy: str,
  axis_name: Any,
) -> jax.Array:
  """Weights of losses: a softmax of scores over the batch of all devices."""

  def over_devices(reduce: Any, x: jax.Array) -> jax.Array:
    return x if axis_name is None else reduce(x, axis_name)

  def largest(x: jax.Array) -> jax.Array:
    kept = x if keep is None else jnp.where(keep, x, -jnp.inf)
    return over_devices(jax.lax.pmax, jnp.max(kept, initial=-jnp.inf))

  # Halved, because the difference of two large losses could overflow.
  halves = losses / 2.0
  high, low = largest(halves), -largest(-halves)
  span = jnp.maximum(high - low, _SMALLEST_RANGE / 2.0)
  place = (halves - low) / span - (high - halves) / span  # In [-1, 1].
  if strategy == "linupper":
    scores = delta * jnp.minimum(place + 1.0, 1.0)
  elif strategy == "quadratic":
    scores = 1.0 - jnp.square(place)
  elif strategy == "extremes":
    scores = delta * jnp.abs(place)
  else:
    scores = delta * (place + 1.0) / 2.0
  sizes = jnp.exp((scores - largest(scores)) / temperature)
  if keep is not None:
    sizes = jnp.where(keep, sizes, 0.0)
  total = over_devices(jax.lax.psum, jnp.sum(sizes))
  if keep is not None:
    total = jnp.where(total == 0.0, 1.0, total)
  return sizes / total


def loss_based_weights(
  losses: jax.typing.ArrayLike,
  *,
  strategy: Literal["linupper", "quadratic", "extremes", "upper"] = "linupper",
  temperature: jax.typing.ArrayLike = 1.0,
  delta: jax.typing.ArrayLike = 1.0,
  where: jax.typing.ArrayLike | None = None,
  axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
  r"""Computes weights of the examples of a batch from their losses.

  Use when easy examples dominate a long training run. ``"linupper"`` gives easy
  examples less weight, and the same weight to all losses above the middle of
  the range. Start the training with equal weights, because the first losses do
  not show which examples are easy. Avoid with wrong labels, which have high
  losses, or use ``"quadratic"``, which gives high losses less weight.

  With the smallest loss :math:`a` and the largest :math:`b` of the batch,

  .. math::
    h_i = \delta \, \frac{2 \ell_i - (a + b)}{\max(b - a, 10^{-6})}, \qquad
    w_i = \frac{e^{s(h_i) / \tau}}{\sum_j e^{s(h_j) / \tau}}

  with the temperature :math:`\tau` and the score of a strategy,

  ================  ============================  ===========================
  strategy          :math:`s(h)`                  large weights
  ================  ============================  ===========================
  ``"linupper"``    :math:`\min(h + \delta,       all but the smallest losses
                    \delta)`
  ``"quadratic"``   :math:`1 - h^2 / \delta^2`    losses in the middle
  ``"extremes"``    :math:`|h|`                   smallest and largest losses
  ``"upper"``       :math:`(h + \delta) / 2`      largest losses
  ================  ============================  ===========================

  The weights maximise :math:`\sum_i w_i s_i - \tau \, \mathrm{KL}(w \Vert u)`
  with the uniform weights :math:`u`. They become uniform as
  :math:`\tau \to \infty`, and are uniform if all losses are equal. Scaling or
  shifting all losses does not change the weights. The loss of the batch is
  ``(weights * losses).sum()``, or on several devices the ``psum`` of that.

  Args:
    losses: The loss of each example, any shape, any floating dtype; all entries
      are one batch.
    strategy: Which losses get large weights, a static string.
    temperature: :math:`\tau`, above 0. The paper uses 0.4 to 1.
    delta: :math:`\delta`, above 0, the largest score.
    where: Which entries to keep, booleans of the same shape. Dropped ones get 0
      and are not part of the batch.
    axis_name: Axes of ``jax.shard_map`` or ``jax.vmap`` over which the batch is
      spread, or None.

  Returns:
    The weights, of the losses' shape, float32 or wider. They add up to 1 over
    the batch of all devices, and to 0 if every entry is dropped. They have no
    gradient. They are NaN if a kept loss is NaN or infinite.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If the shape of ``where`` differs, ``strategy`` is unknown, or a
      concrete ``temperature`` or ``delta`` is not above 0.

  Examples:
    >>> each = jnp.array([0.5, 1.0, 2.0, 3.5])
    >>> print(reweighting.loss_based_weights(each))
    [0.1277 0.1782 0.3471 0.3471]

  References:
    Sow et al., `Dynamic Loss-Based Sample Reweighting for Improved Large
    Language Model Pretraining <https://arxiv.org/abs/2502.06733>`_, ICLR 2025.
    ``"upper"`` is in their code only.
  """
  _check_choice("strategy", strategy, _STRATEGIES)
  axis_name = checks.as_axis_names(axis_name)
  (array,), keep = entries.checked_arrays({"losses": losses}, where)
  numbers, _ = entries.checked_numbers(
    _OF_LOSSES, {"temperature": temperature, "delta": delta}, array, keep
  )
  weights = _softmax_of_scores(
    jax.lax.stop_gradient(array),
    keep,
    numbers["temperature"],
    numbers["delta"],
    strategy,
    axis_name,
  )
  return jax.lax.stop_gradient(weights)


def _as_counts(counts: jax.typing.ArrayLike) -> jax.Array:
  """Checks examples of each class; traced counts below 0 become NaN."""
  values = checks.as_array(counts, "counts")
  checks.check_real("counts", values)
  shape = tuple(np.shape(values))
  if len(shape) != 1 or shape[0] == 0:
    raise ValueError(
      "counts must have the shape [C], one number for each class, got "
      f"{shape}. Pass jnp.bincount(labels, length=C)."
    )
  if checks.is_concrete(values, used_with=(values,)):
    found = np.asarray(values)
    good = np.isfinite(found) & (found >= 0)
    if not good.all():
      first = int(np.argmin(good))
      raise ValueError(
        f"counts must be finite and 0 or more, got counts[{first}] = "
        f"{found[first]}."
      )
    if not found.any():
      raise ValueError(
        "counts must be above 0 for at least one class, got only zeros. Pass "
        "the number of training examples of each class."
      )
  dtype = checks.compute_dtype(values.dtype)
  if not isinstance(values, jax.Array):
    # JAX would first narrow int64, and lose large counts.
    values = np.asarray(values).astype(dtype)
  array = jax.lax.stop_gradient(checks.as_jax(values, dtype))
  usable = jnp.all((array >= 0) & (array < jnp.inf)) & jnp.any(array > 0)
  return jnp.where(usable, array, jnp.nan)


def class_weights(
  counts: jax.typing.ArrayLike,
  *,
  scheme: Literal["inverse", "effective_number"] = "inverse",
  beta: jax.typing.ArrayLike = 0.999,
) -> jax.Array:
  r"""Computes weights of classes from their numbers of examples.

  Use when rare classes matter as much as frequent ones: multiply the loss of
  each example by ``weights[labels]``, or pass this array as ``weights=`` to
  :func:`squentropy_jax.fused.linear_loss_sum`. For a network that fits its
  training set, :func:`logit_adjustment` has more effect than weights.

  .. math::
    w_c \propto \frac{1}{n_c} \;\text{(inverse)}, \qquad
    w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}} \;\text{(effective number)}

  for a class with :math:`n_c > 0` examples. The mean over these classes is 1.
  The effective number is uniform at :math:`\beta = 0` and the inverse as
  :math:`\beta \to 1`.

  Args:
    counts: The number of examples of each class, integers or floats of shape
      ``[C]``. Counts of several devices must be added up first.
    scheme: The formula, a static string.
    beta: :math:`\beta` of the effective number, in [0, 1).

  Returns:
    The weights ``[C]``, float32 or wider; 0 for classes without examples. They
    have no gradient. They are NaN if a traced count is below 0 or all are 0.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If the shape does not fit, ``scheme`` is unknown, or a concrete
      value is out of range.

  Examples:
    >>> print(reweighting.class_weights(jnp.array([900, 90, 10, 0])))
    [0.0297 0.297  2.6733 0.    ]

  References:
    Cui et al., `Class-Balanced Loss Based on Effective Number of Samples
    <https://arxiv.org/abs/1901.05555>`_, CVPR 2019.
  """
  _check_choice("scheme", scheme, _SCHEMES)
  array = _as_counts(counts)
  if np.ndim(beta) != 0:
    raise ValueError(f"beta must be a scalar, got shape {np.shape(beta)}.")
  checks.check_interval("beta", beta, "[0, 1)")
  occurs = ~(array <= 0)
  sizes = jnp.where(occurs, array, jnp.ones_like(array))
  if scheme == "effective_number":
    if checks.is_concrete(beta):
      # In float32 the distance of beta from 1 would be inaccurate.
      with np.errstate(divide="ignore"):
        wide = np.log(np.asarray(beta, np.float64))
        log_beta = checks.as_jax(wide, array.dtype)
    else:
      log_beta = jnp.log(jnp.asarray(beta).astype(array.dtype))
    sizes = -jnp.expm1(sizes * log_beta)
  weights = jnp.where(occurs, 1.0 / sizes, 0.0)
  mean = jnp.sum(weights) / jnp.sum(occurs, dtype=weights.dtype)
  return jax.lax.stop_gradient(weights / mean)


def logit_adjustment(
  counts: jax.typing.ArrayLike, *, tau: jax.typing.ArrayLike = 1.0
) -> jax.Array:
  r"""Computes a bias of the logits that corrects for rare classes.

  Use for training on classes of very different frequency, to predict all of
  them equally well: for imbalanced or long-tailed data, and in place of class
  weights. Add it to the logits in the loss, or pass it as ``bias=`` to a fused
  head, and leave it out for predictions. Avoid when the frequencies are those
  of the test data and accuracy is what counts.

  .. math:: b_c = \tau \log \frac{n_c}{\sum_k n_k}

  With :math:`\tau = 1`, the logits that minimise the cross-entropy of the
  biased logits are those of a problem in which all classes are equally
  frequent. A class without examples gets ``-inf``, also at :math:`\tau = 0`,
  which removes it from the loss.

  Args:
    counts: The number of examples of each class, integers or floats of shape
      ``[C]``. Counts of several devices must be added up first.
    tau: :math:`\tau`, 0 or more.

  Returns:
    The bias ``[C]``, float32 or wider. It has no gradient. It is NaN if a
    traced count is below 0 or all are 0.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If the shape does not fit or a concrete value is out of range.

  Examples:
    >>> print(reweighting.logit_adjustment(jnp.array([900, 90, 10, 0])))
    [-0.1054 -2.4079 -4.6052    -inf]

  References:
    Menon et al., `Long-tail Learning via Logit Adjustment
    <https://arxiv.org/abs/2007.07314>`_, ICLR 2021.

  .. seealso:: :func:`squentropy_jax.fused.linear_loss`, which takes ``bias=``
  """
  array = _as_counts(counts)
  factor = checks.as_scalar("tau", tau, array.dtype, "[0, inf)")
  occurs = ~(array <= 0)
  share = jnp.where(occurs, array, jnp.ones_like(array)) / jnp.sum(array)
  bias = jnp.where(occurs, factor * jnp.log(share), -jnp.inf)
  return jax.lax.stop_gradient(bias)
