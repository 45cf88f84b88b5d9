# SPDX-License-Identifier: Apache-2.0
"""Losses of any head, one block of rows at a time."""

from collections.abc import Callable, Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks, varying
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.rows import row_loss
from squentropy_jax.fused import _blocked_arguments as _arguments
from squentropy_jax.fused._blocked_sums import (
  Block,
  Rows,
  Shared,
  sums_over_blocks,
)
from squentropy_jax.fused._metrics import LossSum, as_metrics
from squentropy_jax.fused._row_arguments import (
  checked_weights,
  checked_where,
  kept_rows,
  known_rows,
)
from squentropy_jax.fused._row_values import resolved

Labels = (
  jax.typing.ArrayLike | tuple[jax.typing.ArrayLike, jax.typing.ArrayLike]
)


def blocked_loss_sum(
  loss: Callable[..., jax.Array],
  head_fn: Callable[[Any, jax.Array], jax.Array],
  params: Any,
  features: jax.typing.ArrayLike,
  labels: Labels,
  *,
  block_rows: int,
  weights: jax.typing.ArrayLike | None = None,
  where: jax.typing.ArrayLike | None = None,
  metrics: Mapping[str, Callable[[RowStats], jax.Array]] | None = None,
) -> LossSum:
  r"""Computes the weighted sum of the losses of any head, block by block.

  .. math::
    \sum_n w_n L(f_\theta(h_n), y_n), \quad \sum_n w_n, \quad
    \sum_n w_n M(f_\theta(h_n), y_n)

  Use it if the logits of all rows do not fit into memory and the head
  :math:`f_\theta` is not one matrix product: with a norm before the head, with
  LoRA, or with quantized products. For one matrix product,
  :func:`linear_loss_sum` needs less memory, because it also divides the
  classes into blocks. The logits of ``block_rows`` rows are in memory at a
  time. Their gradient is formed in the forward pass, so each matrix product of
  the head is computed three times in all, as without blocks.

  Call it inside ``jax.jit``. On a mesh, call it inside ``jax.shard_map``, with
  the rows sharded and the parameters replicated.

  Args:
    loss: A row loss, as in :func:`linear_loss`. Bind its hyper-parameters with
      ``functools.partial``. Each is a scalar or has the batch shape ``[...]``.
    head_fn: A function ``head_fn(params, block)`` that computes the logits
      ``[rows, V]`` of a block of features. It must treat each row by itself.
    params: The parameters of the head, any pytree of arrays. Their gradients
      are added up in float32 or wider. Integers have no gradient.
    features: An array whose first axes are the batch shape ``[...]``, such as
      ``[..., d]``. A block of it has the shape ``[rows, d]``.
    labels: Class ids ``[...]``, or target distributions: floats ``[..., V]``,
      or a pair ``(ids, probabilities)`` of shapes ``[..., K]``.
    block_rows: Number of rows in a block, a Python int. A shorter last block
      is padded.
    weights: Real numbers of shape ``[...]``, by default 1. A row of weight 0 is
      dropped as by ``where``, so its weight has gradient 0.
    where: Which rows to keep, booleans of shape ``[...]``. The other rows have
      loss and gradient 0, even if their features, labels or hyper-parameters
      are NaN or out of range.
    metrics: Row formulas by name, such as ``{"accuracy": rows.correct}``.
      Booleans count as 0 and 1. If the loss divides or multiplies the logits by
      a hyper-parameter, the formulas get the statistics of the result.

  Returns:
    The sum of the weighted losses, the sum of the weights, and the weighted
    sums of the metrics, which have no gradient. They are scalars, float32 or
    wider, with the names ``loss``, ``weight`` and ``metrics``.

  Raises:
    TypeError: If ``loss`` is not a row loss, if it does not have one of the
      bound hyper-parameters, or if an argument has the wrong type.
    ValueError: If an argument or the result of ``head_fn`` has the wrong shape
      or value, or if a concrete class id is out of range (a traced one gives
      NaN), or concrete probabilities do not sum to 1 (a pair's to at most 1).

  Examples:
    >>> def head(params, block):  # A norm before the head.
    ...   norm = jnp.sqrt(jnp.mean(block**2, axis=-1, keepdims=True) + 1e-6)
    ...   return (block / norm * params["scale"]) @ params["kernel"]
    >>> params = {
    ...   "scale": jnp.array([[1.0, 2.0]]),
    ...   "kernel": jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]]),
    ... }
    >>> features = jnp.array([[1.0, 0.0], [0.5, 2.0], [3.0, 1.0]])
    >>> sums = fused.blocked_loss_sum(
    ...   losses.cross_entropy,
    ...   head,
    ...   params,
    ...   features,
    ...   jnp.array([0, 2, 0]),
    ...   block_rows=2,
    ...   metrics={"accuracy": squentropy_jax.rows.correct},
    ... )
    >>> print(f"{sums.loss / sums.weight:.4f}")
    0.9253
    >>> print(f"{sums.metrics['accuracy'] / sums.weight:.4f}")
    0.6667

  References:
    Hsu et al., `Liger Kernel: Efficient Triton Kernels for LLM Training
    <https://arxiv.org/abs/2410.10989>`_, 2024.
  """
  chosen, values = resolved(loss)
  features = checks.as_jax(checks.as_array(features, "features"))
  given, batch = _arguments.checked_labels(labels)
  _arguments.check_label_axes(given, batch, features)
  if features.shape[: len(batch)] != batch:
    raise ValueError(
      f"the first axes of features must be the batch shape {batch} of labels, "
      f"got {features.shape}."
    )
  if checks.explicit_sharding(features) is not None:
    raise ValueError(
      "features must not be sharded over an explicit mesh axis. Call "
      "blocked_loss_sum inside jax.shard_map."
    )
  n = math.prod(batch)
  size = min(checks.as_count("block_rows", block_rows), max(n, 1))
  num_blocks = max(1, -(-n // size))
  where = checked_where(where, batch)
  weights = checked_weights(weights, batch)
  formulas = {m.name: row_loss(m.values) for m in as_metrics(metrics)}
  params = jax.tree.map(checks.as_jax, params)
  readable, known = known_rows(
    where, weights, batch, labels=given, used_with=(features, params)
  )

  numbers, static = chosen.hyperparameters.split(values)
  axes = varying.axes_of(
    features, *jax.tree.leaves((given, where, weights, numbers))
  )
  # Of the shape and type of a block. Its values are not read.
  example = jnp.zeros((size, *features.shape[len(batch) :]), features.dtype)
  head, closure, out = _arguments.converted(
    head_fn, *varying.vary((params, example), axes)
  )
  _arguments.check_axes(axes, params, closure)
  num_classes = out.shape[1]
  given = _arguments.fitting_labels(
    given, batch, num_classes, readable=readable, keep=known
  )
  dtype = checks.compute_dtype(out.dtype)
  arrays = chosen.hyperparameters.as_arrays(numbers, dtype, batch, known)

  def flat(x: Any) -> jax.Array:
    x = checks.as_jax(x)
    return x.reshape(n, *x.shape[len(batch) :])

  mask, of_rows = jax.tree.map(flat, (where, weights))
  keep = kept_rows(mask, of_rows)
  if of_rows is not None:
    of_rows = of_rows.astype(dtype)
    of_rows = jnp.where(keep, of_rows, jnp.zeros_like(of_rows))
    weight = of_rows.sum()
  elif keep is not None:
    weight = keep.sum(dtype=dtype)
  else:
    weight = jnp.asarray(n, dtype)
  rows = Rows(
    flat(features),
    jax.tree.map(flat, given),
    {name: flat(x) for name, x in arrays.items() if x.ndim},
    of_rows,
    keep,
  )
  shared = Shared(
    params, closure, {name: x for name, x in arrays.items() if not x.ndim}
  )
  total, sums = sums_over_blocks(
    Block(head.logits, dtype, chosen, static, formulas),
    shared,
    _arguments.padded(rows, num_blocks * size - n),
    num_blocks,
  )
  return LossSum(total, varying.vary_like(weight, total), sums)
