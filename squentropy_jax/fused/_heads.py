# SPDX-License-Identifier: Apache-2.0
"""The public heads: losses of ``features @ kernel`` without the logits."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from squentropy_jax._core import checks as _checks
from squentropy_jax._core import rows as _rows
from squentropy_jax.fused import _arguments, _evaluate, _formula, _tiles
from squentropy_jax.fused._arguments import Inputs

Labels = (
  jax.typing.ArrayLike | tuple[jax.typing.ArrayLike, jax.typing.ArrayLike]
)
Axes = str | tuple[str, ...] | None


def _loss_and_hyper(
  loss: Callable[..., jax.Array],
  hyperparameters: dict[str, Any],
  label_smoothing: jax.typing.ArrayLike,
  inputs: Inputs,
) -> tuple[_formula.RowLoss, _formula.Hyper]:
  """The loss and its numbers, in the dtype of sums."""
  _checks.check_real("label_smoothing", label_smoothing)
  off = (
    np.ndim(label_smoothing) == 0
    and _checks.is_concrete(label_smoothing)
    and not np.any(label_smoothing)
  )
  dtype = _tiles.Arrays(inputs.features, inputs.kernel).sum_dtype
  row_loss, given = _formula.as_row_loss(loss, hyperparameters, not off, dtype)
  scalars = {
    name: _checks.as_scalar(name, value, dtype) for name, value in given.items()
  }
  if off:
    return row_loss, _formula.Hyper(scalars, None)
  smoothing = _checks.as_scalar("label_smoothing", label_smoothing, dtype)
  in_range = (smoothing >= 0) & (smoothing <= 1)
  _checks.check_domain("label_smoothing", smoothing, in_range, "in [0, 1]")
  return row_loss, _formula.Hyper(scalars, smoothing)


def linear_row_stats(
  features: jax.typing.ArrayLike,
  kernel: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  bias: jax.typing.ArrayLike | None = None,
  class_axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
  soft_cap: float | None = None,
  mesh: Mesh | None = None,
  batch_axis: Axes = None,
  vocab_axis: Axes = None,
  way: str | None = None,
  memory_budget: int | None = None,
  implementation: str | None = None,
) -> _rows.RowStats:
  r"""Row statistics of the logits of a linear head, without the logits.

  With logits :math:`z = h W + b` of a row of features :math:`h`, these are the
  target's logit :math:`z_y` and, over the other classes,

  .. math::
    \log \sum_{k \ne y} e^{z_k}, \quad \sum_{k \ne y} z_k, \quad
    \sum_{k \ne y} z_k^2, \quad \max_{k \ne y} z_k .

  Any loss that is a formula over them can be written by hand, and the accuracy,
  the log-normaliser and the like come from the same pass. The arguments are
  those of `linear_loss`.

  Args:
    features: Rows of features, shape ``[..., d]``.
    kernel: Shape ``[d, V]``, or ``[V, d]`` with ``class_axis=0``.
    labels: Class ids, integers of shape ``[...]``.
    bias: Shape ``[V]``; ``-inf`` takes a class out.
    class_axis: The class axis of ``kernel``.
    where: Which rows to keep, booleans of shape ``[...]``. Statistics and
      gradients of the others are 0.
    soft_cap: See `linear_loss`.
    mesh: See `linear_loss`.
    batch_axis: See `linear_loss`.
    vocab_axis: See `linear_loss`.
    way: ``None``, ``"value"``, ``"frozen"`` or ``"stream"``, see `linear_loss`.
    memory_budget: See `linear_loss`.
    implementation: See `linear_loss`.

  Returns:
    Statistics of shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If an argument has the wrong dtype.
    ValueError: If an argument has the wrong shape or value, or if a concrete
      class id is out of range (a traced one gives NaN).

  Examples:
    >>> features = jnp.array([[1.0, 0.0], [0.5, 2.0]])
    >>> kernel = jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    >>> stats = fused.linear_row_stats(features, kernel, jnp.array([0, 2]))
    >>> print(stats.target > stats.rest_max)
    [ True False]
    >>> print(jnp.logaddexp(stats.target, stats.rest_lse))
    [1.4076 2.369 ]

  References:
    Milakov and Gimelshein, `Online normalizer calculation for softmax
    <https://arxiv.org/abs/1805.02867>`_, 2018.
  """
  inputs, settings = _arguments.checked(
    features,
    kernel,
    labels,
    bias=bias,
    class_axis=class_axis,
    where=where,
    weights=None,
    soft_cap=soft_cap,
    mesh=mesh,
    batch_axis=batch_axis,
    vocab_axis=vocab_axis,
    way=way,
    memory_budget=memory_budget,
    implementation=implementation,
  )
  if isinstance(inputs.labels, tuple):
    raise TypeError("labels must be class ids here, one per row, not a pair.")
  _refuse_keep(way)
  return _evaluate.stats(settings, _tiles.ALL_FIELDS, inputs)


def _refuse_keep(way: str | None) -> None:
  if way == "keep":
    raise ValueError(
      "way='keep' forms the gradient of a sum; use fused.linear_loss_sum."
    )


def linear_loss(
  loss: Callable[..., jax.Array],
  features: jax.typing.ArrayLike,
  kernel: jax.typing.ArrayLike,
  labels: Labels,
  *,
  bias: jax.typing.ArrayLike | None = None,
  class_axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
  soft_cap: float | None = None,
  mesh: Mesh | None = None,
  batch_axis: Axes = None,
  vocab_axis: Axes = None,
  way: str | None = None,
  memory_budget: int | None = None,
  implementation: str | None = None,
  label_smoothing: jax.typing.ArrayLike = 0.0,
  **hyperparameters: Any,
) -> jax.Array:
  r"""The per-example loss of a linear head, without its logits.

  .. math::
    \ell_n = L(h_n W + b, y_n)

  for a row loss :math:`L`, such as ``losses.squentropy``. Logits exist in
  tiles of some rows by some classes; they are summed up as they are made, and
  made again for the gradient. So the memory grows with the tile, not with the
  number of rows times the number of classes.

  Args:
    loss: A function of this library with a row form (``loss.row``), or a
      ``functools.partial`` of one.
    features: Rows of features, shape ``[..., d]``, any floating dtype.
    kernel: Shape ``[d, V]``, or ``[V, d]`` with ``class_axis=0``, such as an
      embedding table.
    labels: Class ids, integers of shape ``[...]``, or a pair ``(ids,
      probabilities)`` of shapes ``[..., K]``: target distributions by the
      classes that they hold. Probability 0 leaves an id out, whatever it is;
      those of equal ids add up.
    bias: Shape ``[V]``; ``-inf`` takes a class out, of every sum and of the
      class count.
    class_axis: The class axis of ``kernel``.
    where: Which rows to keep, booleans of shape ``[...]``. Dropped rows have
      loss and gradient 0, whatever their features and labels hold.
    soft_cap: Logits become ``soft_cap * tanh(logits / soft_cap)``. A number,
      not differentiated.
    mesh: The mesh over which rows and classes are spread. The function makes a
      ``jax.shard_map`` on it; the forward pass moves the sums of rows only.
      Inside a ``jax.shard_map`` of your own leave it out, and name the axes.
    batch_axis: The mesh axis, or axes, of the first axis of ``features``.
    vocab_axis: The mesh axis, or axes, of the class axis of ``kernel``.
    way: How to work. ``None`` chooses by what is differentiated; ``"value"``
      refuses to be differentiated; ``"frozen"`` takes kernel and bias as
      constants and forms the features' gradient in one pass; ``"stream"``
      computes the logits again for the gradient.
    memory_budget: Bytes of temporary memory on each device, which the size of
      the tiles is to stay within, down to a smallest tile. By default one and a
      half times what the two gradients take in float32, 16 MiB at least.
    implementation: ``"xla"`` or ``None``, at present the same.
    label_smoothing: Share of the target that is spread over all possible
      classes. Exact for ``cross_entropy``, ``squentropy`` and
      ``rescaled_square``; refused for other losses.
    **hyperparameters: Those of ``loss``.

  Returns:
    The loss of each row, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``loss`` has no row form or not such a hyper-parameter, or if
      an argument has the wrong dtype.
    ValueError: If an argument has the wrong shape or value, or if a concrete
      class id is out of range (a traced one gives NaN).

  Examples:
    >>> features = jnp.array([[1.0, 0.0], [0.5, 2.0]])
    >>> kernel = jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    >>> labels = jnp.array([0, 2])
    >>> print(fused.linear_loss(losses.squentropy, features, kernel, labels))
    [0.9076 3.994 ]
    >>> print(losses.squentropy(features @ kernel, labels))
    [0.9076 3.994 ]

  References:
    Wijmans et al., `Cut Your Losses in Large-Vocabulary Language Models
    <https://arxiv.org/abs/2411.09009>`_, ICLR 2025; Hsu et al., `Liger Kernel
    <https://arxiv.org/abs/2410.10989>`_, 2024.
  """
  inputs, settings = _arguments.checked(
    features,
    kernel,
    labels,
    bias=bias,
    class_axis=class_axis,
    where=where,
    weights=None,
    soft_cap=soft_cap,
    mesh=mesh,
    batch_axis=batch_axis,
    vocab_axis=vocab_axis,
    way=way,
    memory_budget=memory_budget,
    implementation=implementation,
  )
  _refuse_keep(way)
  chosen = _loss_and_hyper(loss, hyperparameters, label_smoothing, inputs)
  return _evaluate.losses(settings, chosen[0], inputs, chosen[1])


def linear_loss_sum(
  loss: Callable[..., jax.Array],
  features: jax.typing.ArrayLike,
  kernel: jax.typing.ArrayLike,
  labels: Labels,
  *,
  weights: jax.typing.ArrayLike | None = None,
  bias: jax.typing.ArrayLike | None = None,
  class_axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
  soft_cap: float | None = None,
  mesh: Mesh | None = None,
  batch_axis: Axes = None,
  vocab_axis: Axes = None,
  way: str | None = None,
  memory_budget: int | None = None,
  implementation: str | None = None,
  label_smoothing: jax.typing.ArrayLike = 0.0,
  **hyperparameters: Any,
) -> tuple[jax.Array, jax.Array]:
  r"""The weighted sum of a linear head's losses, and the sum of the weights.

  .. math::
    \Bigl( \sum_n w_n L(h_n W + b, y_n), \; \sum_n w_n \Bigr)

  Their quotient is the mean. Where batches are accumulated, or rows are padded,
  add up both and divide at the end: a mean of means is not the mean.

  Because only the sum is differentiated, the gradient can be formed in the
  forward pass, with the logits of a block of rows kept until their sums are
  known: three matrix products in place of the four of `linear_loss`.

  Args:
    loss: See `linear_loss`.
    features: Rows of features, shape ``[..., d]``, any floating dtype.
    kernel: Shape ``[d, V]``, or ``[V, d]`` with ``class_axis=0``.
    labels: Class ids ``[...]``, or a pair ``(ids, probabilities)`` of shapes
      ``[..., K]``.
    weights: Numbers of shape ``[...]``, by default 1. A row of weight 0 is
      dropped as by ``where``, so that its weight has gradient 0 too.
    bias: See `linear_loss`.
    class_axis: The class axis of ``kernel``.
    where: Which rows to keep, booleans of shape ``[...]``.
    soft_cap: See `linear_loss`.
    mesh: See `linear_loss`. On a mesh the sums are over all rows; inside a
      ``jax.shard_map`` of your own they are over the rows of the device.
    batch_axis: See `linear_loss`.
    vocab_axis: See `linear_loss`.
    way: See `linear_loss`; beside these there is ``"keep"``, which forms the
      gradient in the forward pass. ``None`` keeps if the budget allows it.
    memory_budget: See `linear_loss`.
    implementation: See `linear_loss`.
    label_smoothing: See `linear_loss`.
    **hyperparameters: Those of ``loss``.

  Returns:
    The two sums, float32 or wider.

  Raises:
    TypeError: If ``loss`` has no row form or not such a hyper-parameter, or if
      an argument has the wrong dtype.
    ValueError: If an argument has the wrong shape or value, or if a concrete
      class id is out of range (a traced one gives NaN).

  Examples:
    >>> features = jnp.array([[1.0, 0.0], [0.5, 2.0]])
    >>> kernel = jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    >>> total, count = fused.linear_loss_sum(
    ...   losses.squentropy, features, kernel, jnp.array([0, 2])
    ... )
    >>> print(f"{total / count:.4f}")
    2.4508

  References:
    Hsu et al., `Liger Kernel: Efficient Triton Kernels for LLM Training
    <https://arxiv.org/abs/2410.10989>`_, 2024.
  """
  inputs, settings = _arguments.checked(
    features,
    kernel,
    labels,
    bias=bias,
    class_axis=class_axis,
    where=where,
    weights=weights,
    soft_cap=soft_cap,
    mesh=mesh,
    batch_axis=batch_axis,
    vocab_axis=vocab_axis,
    way=way,
    memory_budget=memory_budget,
    implementation=implementation,
  )
  chosen = _loss_and_hyper(loss, hyperparameters, label_smoothing, inputs)
  return _evaluate.loss_sum(settings, chosen[0], inputs, chosen[1])
