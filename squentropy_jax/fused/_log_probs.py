# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of a linear head for given classes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from squentropy_jax import rows
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.elementwise import softplus
from squentropy_jax.fused import _arguments, _plan, _row_values, _rules
from squentropy_jax.fused._arguments import Call, HeadArguments
from squentropy_jax.fused._plan import Plan
from squentropy_jax.fused._row_values import Statistics
from squentropy_jax.fused._targets import Targets, asked_for


class LogProbs(NamedTuple):
  """What a linear head predicts for given classes of each row.

  Attributes:
    log_prob: The log-probability of each given class, of the shape of ``ids``.
    entropy: The entropy of the softmax in nats, shape ``[...]``.
    is_argmax: Whether no class has a larger logit than the given one, booleans
      of the shape of ``ids``.
  """

  log_prob: jax.Array
  entropy: jax.Array
  is_argmax: jax.Array


def linear_log_probs(
  features: jax.typing.ArrayLike,
  kernel: jax.typing.ArrayLike,
  ids: jax.typing.ArrayLike,
  *,
  temperature: jax.typing.ArrayLike = 1.0,
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
) -> LogProbs:
  r"""Computes log-probabilities of given classes, without the logits.

  .. math::
    \log p_y, \quad H(p) = -\sum_k p_k \log p_k, \quad
    \bigl[ z_y \ge \max_k z_k \bigr], \qquad
    p = \operatorname{softmax}(z / T), \quad z = h W + b

  Use it for the ratios and the entropy bonus of policy gradients, for the
  perplexity, or for the log-probabilities of the top classes of a teacher. The
  logits are computed in tiles, as in `linear_loss`. Log-probabilities and
  entropies are differentiable. All gradients take four matrix products.

  Args:
    features: Rows of features, shape ``[..., d]``, any floating dtype.
    kernel: Shape ``[d, V]``, or ``[V, d]`` with ``class_axis=0``.
    ids: Class ids, integers of shape ``[...]``, or ``[..., K]`` for K classes
      of each row, which may be equal.
    temperature: A number above 0 that divides the logits, a scalar or of shape
      ``[...]``. It may be traced and differentiated.
    bias: Shape ``[V]``. A bias of ``-inf`` makes a class impossible. The
      log-probability of that class is ``-inf``.
    class_axis: The class axis of ``kernel``.
    where: Which rows to keep, booleans of shape ``[...]``. Results and
      gradients of the other rows are 0.
    soft_cap: See `linear_loss`. The logits are capped before they are divided.
    mesh: See `linear_loss`.
    features_spec: See `linear_loss`.
    kernel_spec: See `linear_loss`.
    gather: See `linear_loss`.
    compute_dtype: See `linear_loss`.
    reduce_dtype: See `linear_loss`.
    plan: See :class:`fused.Plan`. The mode ``"grad_in_forward"`` needs
      `linear_loss_sum`.

  Returns:
    The log-probabilities, the entropies and whether each class has the largest
    logit, with the names ``log_prob``, ``entropy`` and ``is_argmax``. The
    entropy has the shape ``[...]``, the others that of ``ids``.

  Raises:
    TypeError: If an argument has the wrong dtype.
    ValueError: If an argument has the wrong shape or value, or if a concrete
      class id is out of range (a traced one gives NaN in its row).

  Examples:
    >>> features = jnp.array([[1.0, 0.0], [0.5, 2.0]])
    >>> kernel = jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    >>> found = fused.linear_log_probs(features, kernel, jnp.array([0, 2]))
    >>> print(found.log_prob)
    [-0.4076 -1.869 ]
    >>> print(found.entropy)
    [0.8324 0.8318]
    >>> print(found.is_argmax)
    [ True False]

  References:
    Schulman et al., `Proximal Policy Optimization Algorithms
    <https://arxiv.org/abs/1707.06347>`_, 2017.
  """
  call, arguments, keep = _arguments.checked(
    features,
    kernel,
    ids,
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
    queries=True,
  )
  _plan.refuse_grad_in_forward(call.plan)
  arguments = _arguments.with_temperature(temperature, call, arguments, keep)
  return _log_probs(call, arguments)


_READ = Statistics(
  frozenset({"target", "log_odds", "rest_lse", "rest_expected"}),
  constant=frozenset({"rest_max"}),
)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _log_probs(call: Call, arguments: HeadArguments) -> LogProbs:
  """`linear_log_probs` on checked arguments."""
  ready = _arguments.prepared(call, _READ, arguments)
  targets = ready.targets
  sums, count = _rules.sums(ready.call, ready.arrays, targets.ids)
  stats = _row_values.row_stats(sums, count, targets)
  found = LogProbs(
    asked_for(targets, -softplus(stats.log_odds)),
    _entropy(targets, stats),
    asked_for(targets, stats.target >= stats.rest_max),
  )
  batch = arguments.features.shape[:-1]
  return LogProbs(*(call.layout.result_rows(x, batch) for x in found))


def _entropy(targets: Targets, stats: RowStats) -> jax.Array:
  """The entropy of each row ``[...]``, from the likeliest of its targets."""
  used = targets.ids >= 0
  largest = jnp.where(used, stats.target, -jnp.inf).argmax(-1, keepdims=True)
  place = jax.lax.broadcasted_iota(largest.dtype, used.shape, used.ndim - 1)
  each = rows.entropy(stats)
  one = used & (place == largest)
  return jnp.where(one, each, jnp.zeros_like(each)).sum(-1)
