# SPDX-License-Identifier: Apache-2.0
"""What the evaluation of a classifier needs of a linear head."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from squentropy_jax._core.class_sums import shift_of
from squentropy_jax._core.elementwise import sigmoid, softplus
from squentropy_jax.fused import _arguments, _plan, _row_values, _rules
from squentropy_jax.fused._arguments import Call, HeadArguments
from squentropy_jax.fused._plan import Plan
from squentropy_jax.fused._row_values import Statistics
from squentropy_jax.fused._targets import asked_for


class Confidence(NamedTuple):
  """The prediction of a linear head for each row ``[...]``.

  Attributes:
    confidence: The largest probability of any class.
    correct: Whether the labelled class is predicted, booleans.
    log_prob: The log-probability of the labelled class.
  """

  confidence: jax.Array
  correct: jax.Array
  log_prob: jax.Array


def linear_confidence(
  features: jax.typing.ArrayLike,
  kernel: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
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
) -> Confidence:
  r"""Computes the confidence of a linear head, without its logits.

  .. math::
    \max_k p_k, \quad \bigl[ y = \arg\max_k p_k \bigr], \quad \log p_y, \qquad
    p = \operatorname{softmax}(z / T), \quad z = h W + b

  Use it to evaluate a model whose probabilities of all rows do not fit into
  memory. Pass the first two results to
  :func:`squentropy_jax.calibration.bin_stats_from_confidence` for the expected
  calibration error. The risk at each coverage is computed from them too. The
  third gives the negative log-likelihood. The logits are computed in tiles, as
  in `linear_loss`.

  Args:
    features: Rows of features, shape ``[..., d]``, any floating dtype.
    kernel: Shape ``[d, V]``, or ``[V, d]`` with ``class_axis=0``.
    labels: Class ids, integers of shape ``[...]``.
    temperature: A number above 0 that divides the logits, a scalar or of shape
      ``[...]``. It may be traced and differentiated.
    bias: Shape ``[V]``. A bias of ``-inf`` makes a class impossible.
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
    The largest probability, whether the label has it, and the log-probability
    of the label, each of shape ``[...]``, with the names ``confidence``,
    ``correct`` and ``log_prob``. Of equal largest logits, the first class is
    predicted. The first and the last result are differentiable.

  Raises:
    TypeError: If an argument has the wrong dtype.
    ValueError: If an argument has the wrong shape or value, or if a concrete
      class id is out of range (a traced one gives NaN).

  Examples:
    >>> features = jnp.array([[1.0, 0.0], [0.5, 2.0]])
    >>> kernel = jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    >>> found = fused.linear_confidence(features, kernel, jnp.array([0, 2]))
    >>> print(found.confidence)
    [0.6652 0.6914]
    >>> print(found.correct)
    [ True False]
    >>> stats = calibration.bin_stats_from_confidence(
    ...   found.confidence, found.correct
    ... )

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017.
  """
  _arguments.refuse_soft_labels("linear_confidence", labels)
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
  )
  _plan.refuse_grad_in_forward(call.plan)
  arguments = _arguments.with_temperature(temperature, call, arguments, keep)
  return _confidence(call, arguments)


_READ = Statistics(frozenset({"target", "log_odds", "rest_lse", "rest_max"}))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _confidence(call: Call, arguments: HeadArguments) -> Confidence:
  """`linear_confidence` on checked arguments."""
  ready = _arguments.prepared(call, _READ, arguments)
  targets = ready.targets
  sums, count = _rules.sums(ready.call, ready.arrays, targets.ids)
  stats = _row_values.row_stats(sums, count, targets)
  target, log_odds = stats.target, stats.log_odds
  largest, max_id, sum_exp = (
    x[..., None] for x in (sums.max, sums.max_id, sums.sum_exp)
  )
  # The softmax among the other classes. The numerator is 1, its derivative too.
  sum_exp = jnp.where(sum_exp == 0, jnp.ones_like(sum_exp), sum_exp)
  share = jnp.exp(largest - shift_of(largest)) / sum_exp
  confidence = jnp.where(
    target >= largest, sigmoid(-log_odds), share * sigmoid(log_odds)
  )
  # The first of equal logits is predicted, as from dense probabilities.
  is_first = (target == largest) & (targets.ids < max_id)
  correct = (target > largest) | is_first
  each = Confidence(confidence, correct, -softplus(log_odds))
  batch = arguments.features.shape[:-1]
  return Confidence(
    *(call.layout.result_rows(asked_for(targets, x), batch) for x in each)
  )
