# SPDX-License-Identifier: Apache-2.0
"""The public heads: losses of ``features @ kernel``, computed in tiles."""

from collections.abc import Callable, Mapping
import functools

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from squentropy_jax._core.class_sums import RowStats
from squentropy_jax.fused import _arguments, _plan, _row_values, _rules
from squentropy_jax.fused._arguments import Call, HeadArguments, Ready
from squentropy_jax.fused._head import Arrays
from squentropy_jax.fused._metrics import LossSum
from squentropy_jax.fused._plan import Plan
from squentropy_jax.fused._row_values import (
  HeadLoss,
  Statistics,
  Totals,
  WeightedRows,
)
from squentropy_jax.fused._targets import asked_for

Labels = (
  jax.typing.ArrayLike | tuple[jax.typing.ArrayLike, jax.typing.ArrayLike]
)


def linear_row_stats(
  features: jax.typing.ArrayLike,
  kernel: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  bias: jax.typing.ArrayLike | None = None,
  class_axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
  soft_cap: float | None = None,
  mesh: Mesh | AbstractMesh | None = None,
  features_spec: PartitionSpec | None = None,
  kernel_spec: PartitionSpec | None = None,
  gather: str = "auto",
  compute_dtype: jax.typing.DTypeLike | None = None,
  reduce_dtype: jax.typing.DTypeLike | None = None,
  plan: Plan | None = None,
) -> RowStats:
  r"""Computes the row statistics of a linear head without its logits.

  Use it to compute a loss in your own code, or to get the accuracy and the
  log-normalizer from the same pass as the loss. Let :math:`z = h W + b` be the
  logits of a row of features :math:`h`. The statistics are the logit
  :math:`z_y` of the labelled class and, over the other classes,

  .. math::
    \log \sum_{k \ne y} e^{z_k}, \quad \sum_{k \ne y} z_k, \quad
    \sum_{k \ne y} z_k^2, \quad \max_{k \ne y} z_k, \quad
    \frac{\sum_{k \ne y} z_k e^{z_k}}{\sum_{k \ne y} e^{z_k}} .

  Args:
    features: Rows of features, shape ``[..., d]``.
    kernel: Shape ``[d, V]``, or ``[V, d]`` with ``class_axis=0``.
    labels: Class ids, integers of shape ``[...]``.
    bias: Shape ``[V]``. A bias of ``-inf`` makes a class impossible.
    class_axis: The class axis of ``kernel``.
    where: Which rows to keep, booleans of shape ``[...]``. Statistics and
      gradients of the other rows are 0.
    soft_cap: See `linear_loss`.
    mesh: See `linear_loss`.
    features_spec: See `linear_loss`.
    kernel_spec: See `linear_loss`.
    gather: See `linear_loss`.
    compute_dtype: See `linear_loss`.
    reduce_dtype: See `linear_loss`.
    plan: See :class:`fused.Plan`. The mode ``"grad_in_forward"`` needs
      `linear_loss_sum`.

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
    >>> print(stats.log_z)
    [1.4076 2.369 ]

  References:
    Milakov and Gimelshein, `Online normalizer calculation for softmax
    <https://arxiv.org/abs/1805.02867>`_, 2018.
  """
  _arguments.refuse_soft_labels("linear_row_stats", labels)
  call, arguments, _ = _arguments.checked(
    features,
    kernel,
    labels,
    bias=bias,
    class_axis=class_axis,
    where=where,
    soft_cap=soft_cap,
    mesh=mesh,
    features_spec=features_spec,
    kernel_spec=kernel_spec,
    gather=gather,
    compute_dtype=compute_dtype,
    reduce_dtype=reduce_dtype,
    plan=plan,
  )
  _plan.refuse_grad_in_forward(call.plan)
  return _stats(call, arguments)


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
  mesh: Mesh | AbstractMesh | None = None,
  features_spec: PartitionSpec | None = None,
  kernel_spec: PartitionSpec | None = None,
  gather: str = "auto",
  compute_dtype: jax.typing.DTypeLike | None = None,
  reduce_dtype: jax.typing.DTypeLike | None = None,
  plan: Plan | None = None,
  label_smoothing: jax.typing.ArrayLike = 0.0,
  tail: str = "ignore",
  row_keys: jax.typing.ArrayLike | None = None,
  class_keys: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the loss of each example of a linear head without its logits.

  .. math::
    \ell_n = L(h_n W + b, y_n)

  Use it if the logits of all rows do not fit into memory and the loss of each
  example is needed. For a sum or a mean, `linear_loss_sum` is faster.
  :math:`L` is a row loss, such as ``losses.squentropy``. The logits are
  computed in tiles, each for a block of rows and a block of classes. They are
  computed again for the gradient. The memory depends on the size of a tile, not
  on the number of rows times the number of classes.

  Args:
    loss: A row loss of this library, or one made with
      :func:`squentropy_jax.row_loss`. Bind its hyper-parameters with
      ``functools.partial``. Each is a scalar or an array of the batch shape
      ``[...]``, and may be traced and differentiated.
    features: Rows of features, shape ``[..., d]``, any floating dtype.
    kernel: Shape ``[d, V]``, or ``[V, d]`` with ``class_axis=0``, such as an
      embedding table.
    labels: Class ids, integers of shape ``[...]``. A target distribution is a
      pair ``(ids, probabilities)`` of shapes ``[..., K]`` that names the
      classes with probability above 0. An entry of probability 0 is ignored,
      and the probabilities of equal ids are added. Those of a row must sum to
      at most 1; `weights` of `linear_loss_sum` weights rows.
    bias: Shape ``[V]``. A bias of ``-inf`` makes a class impossible: it is left
      out of every sum and of the class count.
    class_axis: The class axis of ``kernel``.
    where: Which rows to keep, booleans of shape ``[...]``. The other rows have
      loss and gradient 0, even if their features, labels or hyper-parameters
      are NaN or out of range.
    soft_cap: A static number. The logits become
      ``soft_cap * tanh(logits / soft_cap)``.
    mesh: The mesh over which the arrays are sharded. The function makes a
      ``jax.shard_map`` on it. By default it is the mesh of ``jax.set_mesh``.
      Inside your own ``jax.shard_map``, omit it.
    features_spec: The mesh axes of each axis of ``features``. Labels,
      ``where``, weights and the result are sharded as the rows are. Required on
      ``Auto`` axes. ``Explicit`` axes are read from the type of the array.
      Inside your own ``jax.shard_map``, name its manual axes.
    kernel_spec: The mesh axes of each axis of ``kernel``. The bias is sharded
      as the classes are. Otherwise as ``features_spec``.
    gather: What is gathered where one mesh axis shards rows and classes both:
      ``"rows"`` or ``"kernel"``. ``"auto"`` chooses the smaller one. A kernel
      whose width is sharded is gathered once in each pass, with ``"tile"`` in
      tiles.
    compute_dtype: The dtype of features and kernel in the matrix products, and
      in which they are gathered. By default the wider one of their dtypes.
      Gradients have the dtypes of their arrays.
    reduce_dtype: The dtype in which gradients of several devices are added, by
      default float32 or wider.
    plan: The mode and the memory budget, see :class:`fused.Plan`.
    label_smoothing: Share of the target distribution that is spread over all
      possible classes. The result is exact. The loss must declare ``uniform``,
      as ``cross_entropy``, ``squentropy`` and ``rescaled_square`` do.
    tail: What the classes are that a pair of labels does not name, or names
      with probability 0. With ``"bucket"`` they are one class. Its predicted
      probability is the sum of theirs, and its target is what the named
      probabilities leave of 1. Use it to distill from the largest probabilities
      of a teacher. It needs ``losses.cross_entropy``. Under ``jit`` a row
      whose probabilities sum to more than 1.01 is NaN. ``"ignore"`` adds
      nothing to the losses of the named classes.
    row_keys: Integers of shape ``[...]``, with ``class_keys``. A class whose
      key equals the key of a row is impossible in this row, unless it is a
      label of the row. Use keys in retrieval if a document of the same source
      as the query must not be a negative.
    class_keys: Integers of shape ``[V]``, sharded as the classes are.

  Returns:
    The loss of each row, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If ``loss`` is not a row loss, if it does not have one of the
      bound hyper-parameters, or if an argument has the wrong dtype.
    ValueError: If an argument has the wrong shape or value, or if a concrete
      class id is out of range (a traced one gives NaN), or concrete
      probabilities are negative or sum to more than 1.

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
  call, arguments, keep = _arguments.checked(
    features,
    kernel,
    labels,
    bias=bias,
    class_axis=class_axis,
    where=where,
    soft_cap=soft_cap,
    mesh=mesh,
    features_spec=features_spec,
    kernel_spec=kernel_spec,
    gather=gather,
    compute_dtype=compute_dtype,
    reduce_dtype=reduce_dtype,
    plan=plan,
    row_keys=row_keys,
    class_keys=class_keys,
  )
  _plan.refuse_grad_in_forward(call.plan)
  chosen = _arguments.with_loss(
    loss, label_smoothing, call, arguments, keep, tail=tail
  )
  return _losses(call, *chosen)


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
  mesh: Mesh | AbstractMesh | None = None,
  features_spec: PartitionSpec | None = None,
  kernel_spec: PartitionSpec | None = None,
  gather: str = "auto",
  compute_dtype: jax.typing.DTypeLike | None = None,
  reduce_dtype: jax.typing.DTypeLike | None = None,
  plan: Plan | None = None,
  label_smoothing: jax.typing.ArrayLike = 0.0,
  metrics: Mapping[str, Callable[[RowStats], jax.Array]] | None = None,
  tail: str = "ignore",
  row_keys: jax.typing.ArrayLike | None = None,
  class_keys: jax.typing.ArrayLike | None = None,
) -> LossSum:
  r"""Computes the weighted sum of a linear head's losses, without its logits.

  .. math::
    \sum_n w_n L(h_n W + b, y_n), \quad \sum_n w_n, \quad
    \sum_n w_n M(h_n W + b, y_n)

  Use it to train on a sum or a mean. The mean is ``loss / weight`` of
  the result. If you accumulate batches or use several devices, add up the
  results and divide once at the end. The mean of batch means is not the mean
  over all rows.

  Because only the sum is differentiated, its gradient can be computed in the
  forward pass, while the logits of a block of rows are in memory. This takes
  three matrix products instead of the four of `linear_loss`. Metrics
  :math:`M`, such as the accuracy or a z-loss, come from the same pass.

  Args:
    loss: See `linear_loss`.
    features: Rows of features, shape ``[..., d]``, any floating dtype.
    kernel: Shape ``[d, V]``, or ``[V, d]`` with ``class_axis=0``.
    labels: Class ids ``[...]``, or a pair ``(ids, probabilities)`` of shapes
      ``[..., K]``.
    weights: Real numbers of shape ``[...]``, by default 1. A row of weight 0 is
      dropped as by ``where``, so its weight has gradient 0.
    bias: See `linear_loss`.
    class_axis: The class axis of ``kernel``.
    where: Which rows to keep, booleans of shape ``[...]``.
    soft_cap: See `linear_loss`.
    mesh: See `linear_loss`. With a mesh, the sums are over all rows. Inside
      your own ``jax.shard_map``, they are over the rows of the device.
    features_spec: See `linear_loss`.
    kernel_spec: See `linear_loss`.
    gather: See `linear_loss`.
    compute_dtype: See `linear_loss`.
    reduce_dtype: See `linear_loss`.
    plan: See :class:`fused.Plan`. By default the gradient is computed in the
      forward pass if the memory budget allows it.
    label_smoothing: See `linear_loss`.
    metrics: Row formulas by name, such as ``{"accuracy": rows.correct}``.
      Booleans count as 0 and 1. If the loss divides or multiplies the logits by
      a hyper-parameter, the formulas get the statistics of the result.
      For a target distribution, each metric is the expected value over its
      classes. Label smoothing does not change them.
    tail: See `linear_loss`.
    row_keys: See `linear_loss`.
    class_keys: See `linear_loss`.

  Returns:
    The sum of the weighted losses, the sum of the weights, and the weighted
    sums of the metrics, which have no gradient. They are scalars, float32 or
    wider, with the names ``loss``, ``weight`` and ``metrics``.

  Raises:
    TypeError: If ``loss`` is not a row loss, if it does not have one of the
      bound hyper-parameters, or if an argument has the wrong dtype.
    ValueError: If an argument has the wrong shape or value, or if a concrete
      class id is out of range (a traced one gives NaN), or concrete
      probabilities are negative or sum to more than 1.

  Examples:
    >>> features = jnp.array([[1.0, 0.0], [0.5, 2.0]])
    >>> kernel = jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    >>> sums = fused.linear_loss_sum(
    ...   losses.squentropy,
    ...   features,
    ...   kernel,
    ...   jnp.array([0, 2]),
    ...   metrics={"accuracy": squentropy_jax.rows.correct},
    ... )
    >>> print(f"{sums.loss / sums.weight:.4f}")
    2.4508
    >>> print(f"{sums.metrics['accuracy'] / sums.weight:.4f}")
    0.5000

  References:
    Hsu et al., `Liger Kernel: Efficient Triton Kernels for LLM Training
    <https://arxiv.org/abs/2410.10989>`_, 2024.
  """
  call, arguments, keep = _arguments.checked(
    features,
    kernel,
    labels,
    bias=bias,
    class_axis=class_axis,
    where=where,
    weights=weights,
    soft_cap=soft_cap,
    mesh=mesh,
    features_spec=features_spec,
    kernel_spec=kernel_spec,
    gather=gather,
    compute_dtype=compute_dtype,
    reduce_dtype=reduce_dtype,
    plan=plan,
    row_keys=row_keys,
    class_keys=class_keys,
  )
  chosen = _arguments.with_loss(
    loss, label_smoothing, call, arguments, keep, metrics=metrics, tail=tail
  )
  return _loss_sum(call, *chosen)


# The same on checked arguments. Compiled here, so that a call outside jit is
# one dispatch; inlined in a trace.


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _stats(call: Call, arguments: HeadArguments) -> RowStats:
  """`linear_row_stats` on checked arguments."""
  ready = _arguments.prepared(call, Statistics(), arguments)
  targets = ready.targets
  sums, count = _rules.sums(ready.call, ready.arrays, targets.ids)
  batch = arguments.features.shape[:-1]
  return RowStats(
    *(
      call.layout.result_rows(asked_for(targets, field), batch)
      for field in _row_values.row_stats(sums, count, targets)
    )
  )


def _row_values_of(loss: HeadLoss, ready: Ready) -> Totals:
  targets = ready.targets
  sums, count = _rules.sums(ready.call, ready.arrays, targets.ids)
  return _row_values.row_values(loss, ready.numbers, sums, count, targets)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _losses(call: Call, loss: HeadLoss, arguments: HeadArguments) -> jax.Array:
  """`linear_loss` on checked arguments."""
  each, _ = _row_values_of(loss, _arguments.prepared(call, loss, arguments))
  return call.layout.result_rows(each, arguments.features.shape[:-1])


def _grad_in_forward_fits(call: Call, arrays: Arrays) -> bool:
  """Whether the gradient of a sum is best formed in the forward pass."""
  layout = call.layout
  if call.head.tile_axes or (layout.mesh is None and layout.gathered_rows):
    return False
  size = _plan.size_of(call.head, layout, arrays)
  return _plan.grad_in_forward_fits(size, call.plan.memory_budget)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _loss_sum(call: Call, loss: HeadLoss, arguments: HeadArguments) -> LossSum:
  """`linear_loss_sum` on checked arguments."""
  ready = _arguments.prepared(call, loss, arguments)
  call, weights = ready.call, ready.weights
  mode = call.plan.mode
  if mode == "grad_in_forward" or (
    mode is None and _grad_in_forward_fits(call, ready.arrays)
  ):
    rows = WeightedRows(ready.targets, weights, ready.numbers)
    # Local to a device of a shard_map of the user.
    rows = _rules.vary_rows(call.layout, ready.arrays, rows)
    numbers = jax.tree.map(
      lambda x: call.layout.broadcast(x, weights.shape), rows.numbers
    )
    total, metrics = _rules.total(
      call, loss, ready.arrays, rows._replace(numbers=numbers)
    )
  else:
    each = _row_values_of(loss, ready)
    total, metrics = _row_values.weighted_sums(*each, weights)
  return LossSum(total, weights.sum(), jax.lax.stop_gradient(metrics))
