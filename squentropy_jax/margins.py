# SPDX-License-Identifier: Apache-2.0
"""Margins, scales and temperatures that are chosen from the data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import (
  angles,
  checks,
  class_sums,
  dense_sums,
  entries,
  varying,
)
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.hyperparameters import Hyperparameters
from squentropy_jax._core.rows import row_loss
from squentropy_jax.losses._ldr import _aldr_kl_temperature

_ELASTIC = Hyperparameters({"mean": "(-inf, inf)", "stddev": "[0, inf)"}, {})
_ADAPTIVE = Hyperparameters({"alpha": "(0, 1)", "min_scale": "(0, inf)"}, {})
_BACKGROUNDS = ("median_row", "median", "mean")
# The odds of a cosine of 1, by which the adaptive scale is chosen.
_FULL_ODDS = 9999999.0


def elastic(
  key: jax.Array,
  shape: tuple[int, ...],
  *,
  mean: jax.typing.ArrayLike,
  stddev: jax.typing.ArrayLike,
) -> jax.Array:
  r"""Draws one margin for each example from a normal distribution.

  Use it as the ``margin`` of :func:`squentropy_jax.losses.arcface` or
  :func:`squentropy_jax.losses.cosface`, with a new key in every step, so that
  the margin is not the same for all examples.

  .. math::
    m_i \sim N(\text{mean}, \text{stddev}^2)

  The margins are not truncated: some may be negative. The paper uses 0.5 and
  0.05 for ArcFace, and 0.35 and 0.05 for CosFace. With `ranked`, its standard
  deviations are smaller: 0.0175 and 0.02.

  Args:
    key: A key of :func:`jax.random.key`, a new one for every step. On several
      devices, each device needs its own key.
    shape: The batch shape.
    mean: The mean margin: a scalar or an array of the batch shape.
    stddev: The standard deviation, 0 or more: a scalar or an array of the batch
      shape.

  Returns:
    The margins, of the batch shape. They have no gradient.

  Raises:
    TypeError: If ``key`` is not a key, or a number is not real.
    ValueError: If a shape does not fit, or if a concrete number is out of
      range.

  Examples:
    >>> drawn = margins.elastic(jax.random.key(0), (3,), mean=0.5, stddev=0.05)
    >>> print(drawn.shape, abs(drawn - 0.5).max() < 0.2)
    (3,) True

  References:
    Boutros et al., `ElasticFace: Elastic Margin Loss for Deep Face Recognition
    <https://arxiv.org/abs/2109.09416>`_, CVPR workshops 2022.

  .. seealso:: :func:`squentropy_jax.margins.ranked`
  """
  checks.check_key(key)
  if not isinstance(shape, tuple | list):
    raise TypeError(
      f"shape must be a tuple, the batch shape, got {shape!r}. Pass ({shape},)."
    )
  shape = tuple(shape)
  dtype = jnp.zeros(()).dtype
  numbers = _ELASTIC.as_arrays({"mean": mean, "stddev": stddev}, dtype, shape)
  draws = jax.random.normal(key, shape, dtype)
  return jax.lax.stop_gradient(numbers["mean"] + numbers["stddev"] * draws)


def _gathered(x: jax.Array, names: tuple[str, ...] | None) -> jax.Array:
  """The entries of all devices in one axis."""
  return x.ravel() if names is None else varying.gathered(x.ravel(), names)


def ranked(
  margins: jax.typing.ArrayLike,
  target_cosines: jax.typing.ArrayLike,
  *,
  where: jax.typing.ArrayLike | None = None,
  axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
  r"""Gives the largest margins of a batch to the smallest cosines.

  Use it between :func:`squentropy_jax.margins.elastic` and an angular loss, so
  that examples far from their class vector get the larger margins. All examples
  are one batch. For target cosines :math:`c_i`, and margins sorted as
  :math:`m_{(1)} \ge m_{(2)} \ge \dots`,

  .. math::
    m_i = m_{(r_i)}, \qquad r_i = \text{rank of } c_i \text{, smallest first} .

  This is the rule of the paper. The authors' code applies the inverse
  permutation, which gives other margins. Of equal cosines, the first one gets
  the larger margin.

  Args:
    margins: Drawn margins, any shape, any floating dtype.
    target_cosines: The labelled cosines, of the same shape, as
      :func:`squentropy_jax.margins.target_logits` returns them.
    where: Which examples to keep, booleans of the same shape. The kept examples
      share the margins of the kept examples. Others get 0.
    axis_name: An axis of ``jax.shard_map`` or ``jax.vmap``, or a tuple of them.
      The examples of all its devices are then one batch.

  Returns:
    The margins, of the shape of ``margins``, float32 or wider. They have no
    gradient.

  Raises:
    TypeError: If an argument has the wrong dtype.
    ValueError: If the shapes differ.

  Examples:
    >>> drawn = jnp.array([0.48, 0.50, 0.55])
    >>> print(margins.ranked(drawn, jnp.array([0.1, 0.9, 0.5])))
    [0.55 0.48 0.5 ]

  References:
    Boutros et al., `ElasticFace: Elastic Margin Loss for Deep Face Recognition
    <https://arxiv.org/abs/2109.09416>`_, CVPR workshops 2022.

  .. seealso:: :func:`squentropy_jax.margins.elastic`
  """
  arrays = {"margins": margins, "target_cosines": target_cosines}
  (draws, cosines), keep = entries.checked_arrays(arrays, where)
  draws, cosines = jax.lax.stop_gradient((draws, cosines))
  keep = jnp.ones(draws.shape, bool) if keep is None else keep
  names = checks.as_axis_names(axis_name)
  every, kept = _gathered(draws, names), _gathered(keep, names)
  # The kept first, so that they share the kept draws.
  order = jnp.lexsort((_gathered(cosines, names), ~kept))
  largest_first = -jnp.sort(-jnp.where(kept, every, -jnp.inf))
  found = largest_first[jnp.argsort(order)]
  if names is not None:
    start = jax.lax.axis_index(names) * draws.size
    found = jax.lax.dynamic_slice_in_dim(found, start, draws.size)
  # NaN ranks as the largest cosine, and must not pass for it.
  found = jnp.where(jnp.isnan(cosines), jnp.nan, found.reshape(draws.shape))
  return jnp.where(keep, found, jnp.zeros_like(found))


@row_loss
def _target_logits(stats: class_sums.RowStats) -> jax.Array:
  return stats.target


def target_logits(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Returns the logit of the labelled class of each example.

  Use it for the target cosines of :func:`squentropy_jax.margins.ranked`. For
  one example with logits :math:`z` and class :math:`y`,

  .. math::
    z_y, \qquad \text{or } \sum_k p_k z_k \text{ for soft labels } p .

  Args:
    logits: Logits or cosines, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the logits' shape.

  Returns:
    The labelled logits, shape ``[...]``, float32 or wider, 0 for dropped
    examples.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete class id is out of
      range.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(margins.target_logits(logits, jnp.array([0, 2])))
    [2. 0.]

  References:
    The labelled logit is the field ``target`` of
    :class:`squentropy_jax.RowStats`.

  .. seealso:: :func:`squentropy_jax.margins.ranked`
  """
  return _target_logits(logits, labels, axis=axis, where=where)


def _lower_median(x: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The lower median of the kept entries and its place; 0 without entries."""
  order = jnp.lexsort((x, ~kept))
  count = kept.sum(dtype=jnp.int32)
  place = order[jnp.maximum(count - 1, 0) // 2]
  return jnp.where(count > 0, x[place], jnp.zeros_like(x[place])), place


@functools.partial(jax.jit, static_argnums=(0, 1))
def _adaptive(
  background: str,
  names: tuple[str, ...] | None,
  arguments: prelude.Arguments,
) -> tuple[jax.Array, jax.Array]:
  ready = prelude.prepare(arguments, arguments.logits.ndim - 1, _ADAPTIVE)
  logits, ids = ready.logits, ready.ids
  assert ids is not None
  alpha, min_scale = ready.numbers["alpha"], ready.numbers["min_scale"]
  keep = ready.keep
  if keep is None:
    keep = jnp.ones(ids.shape, bool)
  kept = _gathered(keep, names)

  def at_scale(scale: jax.Array) -> class_sums.RowStats:
    sums = dense_sums.class_sums(
      scale * logits,
      ids,
      axis=logits.ndim - 1,
      keep=None,
      reads=class_sums.sums_for(frozenset({"rest_lse"})),
    )
    return class_sums.row_stats(sums)

  target = at_scale(jnp.ones_like(alpha)).target
  targets = _gathered(target, names)
  median, place = _lower_median(targets, kept)
  odds = jnp.log(alpha) - jnp.log1p(-alpha)
  # A rounded cosine may be 1 or more.
  distance = jnp.maximum(1.0 - median, float(jnp.finfo(median.dtype).eps))
  scale = jnp.maximum(min_scale, (np.log(_FULL_ODDS) - odds) / distance)
  rest = at_scale(scale).rest_lse
  every = _gathered(rest, names)
  every = jnp.where(kept, every, -jnp.inf)
  if background == "median_row":
    log_background = every[place]
  elif background == "median":
    log_background = _lower_median(every, kept)[0]
  else:
    count = jnp.maximum(kept.sum(dtype=jnp.int32), 1).astype(every.dtype)
    log_background = jax.nn.logsumexp(every) - jnp.log(count)
  # No margin is needed without examples, or without other classes.
  empty = ~kept.any() | (log_background == -jnp.inf)
  safe = jnp.where(empty, jnp.zeros_like(median), log_background)
  margin = jnp.maximum(median - (safe + odds) / scale, 0.0)
  margin = jnp.where(empty, jnp.zeros_like(margin), margin)
  scale = jnp.where(kept.any(), scale, min_scale)
  # A median passes over NaN.
  is_nan = keep & (jnp.isnan(rest) | ~angles.is_cosine(target))
  invalid = _gathered(ready.invalid | is_nan, names).any()
  factor = prelude.nan_factor(invalid, scale.dtype)
  return jax.lax.stop_gradient((scale * factor, margin * factor))


def adaptive(
  cosines: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  alpha: jax.typing.ArrayLike = 0.02,
  min_scale: jax.typing.ArrayLike = 32.0,
  background: str = "median_row",
  where: jax.typing.ArrayLike | None = None,
  axis_name: str | tuple[str, ...] | None = None,
) -> tuple[jax.Array, jax.Array]:
  r"""Computes the scale and the margin of a cosine softmax from a batch.

  Use it in every step for the ``scale`` and the ``margin`` of
  :func:`squentropy_jax.losses.cosface`, which then need no tuning. Evaluate
  without the margin. For the lower median :math:`c` of the labelled cosines of
  the batch,

  .. math::
    s = \max \Bigl(\text{min\_scale}, \;
      \frac{\log (9999999 \, (1 - \alpha) / \alpha)}{1 - c} \Bigr), \qquad
    m = \max \Bigl(0, \; c - \frac{1}{s} \log \frac{B \alpha}{1 - \alpha}
      \Bigr) ,

  where :math:`B_i = \sum_{k \ne y} e^{s c_{ik}}` and :math:`B` is the
  :math:`B_i` of the example with the median cosine. If the margin is above 0,
  that example predicts its class with probability :math:`\alpha`. If the scale
  is also above ``min_scale``, the probability would be 0.9999999 for a labelled
  cosine of 1. The computation uses logarithms, so a scale of 350 does not
  overflow. If the median is 1 or more, :math:`1 - c` is replaced by one ulp.

  Args:
    cosines: Cosines, shape ``[..., num_classes]``, any floating dtype. All
      examples are one batch.
    labels: Class ids, integers of shape ``[...]``.
    alpha: The probability of the median example, in (0, 1), a scalar.
    min_scale: The smallest scale, above 0, a scalar.
    background: Which :math:`B` to use, a static choice. ``"median_row"`` is
      that of the example with the median cosine, or of the first of them.
      ``"median"`` is the lower median of all :math:`B_i`, and ``"mean"`` their
      mean.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the cosines' shape. If no example is kept, the scale
      is ``min_scale`` and the margin 0.
    axis_name: An axis of ``jax.shard_map`` or ``jax.vmap``, or a tuple of them.
      The examples of all its devices are then one batch.

  Returns:
    The scale and the margin, scalars, float32 or wider. They have no gradient.
    Both are NaN if a traced class id or labelled cosine is out of range.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, if a number is not a scalar or out of
      range, or if a concrete class id or cosine is out of range.

  Examples:
    >>> cosines = jnp.array(
    ...   [[0.9, 0.1, 0.2], [0.3, 0.7, -0.1], [0.05, 0.0, 0.6], [0.5, 0.2, 0.1]]
    ... )
    >>> labels = jnp.array([0, 1, 2, 0])
    >>> scale, margin = margins.adaptive(cosines, labels, alpha=0.1)
    >>> print(f"{scale:.2f} {margin:.4f}")
    45.79 0.5959

  References:
    Zhu et al., `Coarse-to-Fine: Learning Compact Discriminative Representation
    for Single-Stage Image Retrieval <https://arxiv.org/abs/2308.04008>`_, ICCV
    2023.

  .. seealso:: :func:`squentropy_jax.losses.cosface`
  """
  background = checks.as_choice("background", background, _BACKGROUNDS)
  for name, value in (("alpha", alpha), ("min_scale", min_scale)):
    if np.ndim(value):
      raise ValueError(
        f"{name} must be a scalar, one number for the batch, got shape "
        f"{np.shape(value)}."
      )
  kind = checks.as_array(labels, "labels").dtype
  if jnp.issubdtype(kind, jnp.floating):
    raise TypeError(
      f"labels must be class ids, integers, got {kind}. Pass the most probable "
      "class, jnp.argmax(labels, axis=-1)."
    )
  arguments, _, _ = prelude.checked(
    cosines,
    labels,
    axis=-1,
    where=where,
    hyperparameters=_ADAPTIVE,
    values={"alpha": alpha, "min_scale": min_scale},
    name="cosines",
  )
  angles.check_cosines(arguments, arguments.logits.ndim - 1, "cosines")
  return _adaptive(background, checks.as_axis_names(axis_name), arguments)


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
  r"""Computes the temperature of each example in the ALDR-KL loss.

  Use it to see which examples :func:`squentropy_jax.losses.aldr_kl` treats as
  ambiguous.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,
  it is the :math:`\lambda` that solves

  .. math::
    \lambda = \text{base\_temperature} \, \Bigl(1 -
      \frac{\mathrm{KL}(q(\lambda) \Vert u)}{\text{alpha} \log C}\Bigr),
    \qquad q_k(\lambda) \propto
      \exp \frac{z_k + \text{margin} \, [k \ne y]}{\lambda} ,

  where :math:`u` is the uniform distribution. It lies between
  :math:`\text{base\_temperature} \, (1 - 1 / \text{alpha})`, for a confident
  prediction, and ``base_temperature``, for a uniform one. Soft labels give the
  expected temperature. Masked classes do not count in :math:`C`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    base_temperature: Temperature of an example without any preference,
      positive: a scalar or one value for each example, shape ``[...]``.
    alpha: Weight of the penalty on the temperature, in units of
      :math:`\log(C) / \text{base\_temperature}`, above 1: a scalar or one value
      for each example, shape ``[...]``. From 1.5 on, the default number of
      steps is enough. Close to 1 the solution need not be unique.
    margin: The lead that the labelled class should have, 0 or more: a scalar
      or one value for each example, shape ``[...]``.
    num_iters: Steps of the fixed-point iteration, a static int. One Newton step
      follows.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the logits' shape.

  Returns:
    The temperature of each example, shape ``[...]``, float32 or wider; 0 for
    dropped ones.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete class id or
      hyper-parameter is out of range.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(margins.aldr_kl_temperature(logits, jnp.array([0, 2])))
    [0.5763 0.9616]

  References:
    Zhu, Ying and Yang, `Label Distributionally Robust Losses for Multi-class
    Classification: Consistency, Robustness and Adaptivity
    <https://arxiv.org/abs/2112.14869>`_, ICML 2023.

  .. seealso:: :func:`squentropy_jax.losses.aldr_kl`
  """
  return _aldr_kl_temperature(
    logits,
    labels,
    base_temperature=base_temperature,
    alpha=alpha,
    margin=margin,
    num_iters=num_iters,
    axis=axis,
    where=where,
  )
