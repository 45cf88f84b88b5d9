# SPDX-License-Identifier: Apache-2.0
"""The arguments of the heads: `checked`, then `prepared` inside the trace."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks, varying
from squentropy_jax._core import labels as prelude
from squentropy_jax.fused import (
  _head,
  _layout,
  _plan,
  _row_values,
  _tail,
  _targets,
)
from squentropy_jax.fused._head import Arrays, Head
from squentropy_jax.fused._mesh import Layout
from squentropy_jax.fused._metrics import as_metrics, refuse_traced
from squentropy_jax.fused._plan import Plan
from squentropy_jax.fused._row_arguments import (
  checked_keys,
  checked_weights,
  checked_where,
  kept_rows,
  known_rows,
)
from squentropy_jax.fused._row_values import HeadLoss, Numbers, Statistics
from squentropy_jax.fused._targets import Targets


class Call(NamedTuple):
  """What is static about a call.

  Attributes:
    head: The head and what its loss reads.
    layout: How it is sharded over devices.
    plan: The mode asked for, and the memory budget.
  """

  head: Head
  layout: Layout
  plan: Plan = Plan()


class HeadArguments(NamedTuple):
  """The arrays of a call.

  Attributes:
    features: ``[..., d]``.
    kernel: ``[d, V]`` or ``[V, d]``.
    bias: ``[V]`` or None.
    labels: Class ids ``[...]``, or a pair of ``[..., K]``, ids and
      probabilities.
    where: Which rows count, ``[...]``, or None.
    weights: Of the rows, ``[...]``, or None.
    numbers: Of the loss.
    row_keys: Integers ``[...]``, or None.
    class_keys: Integers ``[V]``, or None.
  """

  features: jax.Array
  kernel: jax.Array
  bias: jax.Array | None
  labels: Any
  where: jax.Array | None
  weights: jax.Array | None
  numbers: Numbers = Numbers({}, None)
  row_keys: jax.Array | None = None
  class_keys: jax.Array | None = None


def known_rows_of(
  arguments: HeadArguments, layout: Layout
) -> tuple[bool, np.ndarray | None]:
  return known_rows(
    arguments.where,
    arguments.weights,
    arguments.features.shape[:-1],
    labels=arguments.labels,
    used_with=arguments[:3],
    spans_processes=layout.spans_processes,
  )


def checked(
  features: jax.typing.ArrayLike,
  kernel: jax.typing.ArrayLike,
  labels: Any,
  *,
  bias: jax.typing.ArrayLike | None,
  class_axis: int,
  where: jax.typing.ArrayLike | None,
  weights: jax.typing.ArrayLike | None = None,
  row_keys: jax.typing.ArrayLike | None = None,
  class_keys: jax.typing.ArrayLike | None = None,
  soft_cap: float | None,
  mesh: Any,
  features_spec: Any,
  kernel_spec: Any,
  gather: str,
  compute_dtype: Any,
  reduce_dtype: Any,
  plan: Any,
  queries: bool = False,
) -> tuple[Call, HeadArguments, np.ndarray | None]:
  """The static and the traced arguments, and which rows are known to count.

  With ``queries`` the labels are the argument ``ids`` of `linear_log_probs`.
  Raises an error that names the argument that does not fit.
  """
  plan = _plan.checked_plan(plan)
  features = checks.as_floats(features, "features")
  kernel = checks.as_floats(kernel, "kernel")
  if features.ndim == 0:
    raise ValueError(
      "features must have a feature axis, shape [..., d], got a scalar."
    )
  if kernel.ndim != 2:
    raise ValueError(
      f"kernel must have the shape [d, V], or [V, d] with class_axis=0, got "
      f"{kernel.shape}."
    )
  is_int = isinstance(class_axis, int | np.integer)
  if (
    not is_int
    or isinstance(class_axis, bool)
    or class_axis not in (-2, -1, 0, 1)
  ):
    raise ValueError(
      f"class_axis must be 0 or 1, an axis of kernel, got {class_axis!r}."
    )
  axis = int(class_axis) % 2
  layout = _layout.resolved(
    mesh, features_spec, kernel_spec, gather, features, kernel, axis
  )
  batch, num_classes = features.shape[:-1], kernel.shape[axis]
  # What is local to a device may be a part.
  width, of_kernel, total = (
    n * jax.lax.axis_size(axes) if layout.mesh is None and axes else n
    for n, axes in (
      (features.shape[-1], layout.width),
      (kernel.shape[1 - axis], layout.kernel_width),
      (num_classes, layout.classes),
    )
  )
  if of_kernel != width:
    raise ValueError(
      f"features of shape {features.shape} need {width} in axis {1 - axis} of "
      f"kernel, got {kernel.shape}. For a kernel [V, d] pass class_axis=0."
      + (
        " Inside jax.shard_map, name the axes of the width in features_spec "
        "and kernel_spec."
        if varying.axes_of(features, kernel)
        else ""
      )
    )
  checks.check_num_classes(num_classes, "kernel")
  if bias is not None:
    bias = checks.as_floats(bias, "bias")
    if bias.shape != (num_classes,):
      raise ValueError(
        f"bias must have the shape ({num_classes},), one per class of kernel "
        f"{kernel.shape}, got {bias.shape}."
      )
  if queries:
    labels = _targets.checked_queries(labels, batch)
  else:
    labels = _targets.checked_labels(labels, batch)
  arguments = HeadArguments(
    features,
    kernel,
    bias,
    labels,
    checked_where(where, batch, num_classes),
    checked_weights(weights, batch, num_classes),
  )
  keys = checked_keys(row_keys, class_keys, batch, num_classes)
  readable, keep = known_rows_of(arguments, layout)
  name = "ids" if queries else "labels"
  labels = _targets.read(labels, total, keep, readable, name)
  operand = _head.checked_dtype("compute_dtype", compute_dtype)
  if operand is None:
    operand = _head.operand_dtype(features, kernel)
  head = Head(axis, _head.checked_cap(soft_cap), operand)
  head = head._replace(
    reduce_dtype=_head.checked_dtype("reduce_dtype", reduce_dtype),
    tile_axes=layout.kernel_width if gather == "tile" else (),
  )
  if gather == "tile" and plan.mode in ("frozen_kernel", "grad_in_forward"):
    raise ValueError(
      f"gather='tile' needs mode 'recompute', 'forward' or None of plan, got "
      f"{plan.mode!r}, which gathers the kernel once. Pass gather='kernel'."
    )
  if (
    plan.mode == "grad_in_forward"
    and layout.mesh is None
    and layout.gathered_rows
  ):
    raise ValueError(
      "gather='rows' inside jax.shard_map needs mode 'recompute' of plan, got "
      "'grad_in_forward': the sums of several devices may have different "
      "cotangents. Pass gather='kernel'."
    )
  arguments = arguments._replace(
    labels=labels,
    where=None if where is None else checks.as_jax(arguments.where),
    weights=None if weights is None else checks.as_jax(arguments.weights),
    row_keys=keys[0],
    class_keys=keys[1],
  )
  return Call(head, layout, plan), arguments, keep


def with_loss(
  loss: Any,
  label_smoothing: Any,
  call: Call,
  arguments: HeadArguments,
  keep: np.ndarray | None,
  *,
  metrics: Any = None,
  tail: Any = "ignore",
) -> tuple[HeadLoss, HeadArguments]:
  """The loss, and the arguments with its numbers in the dtype of sums."""
  row_loss, values = _row_values.resolved(loss)
  if not call.layout.classes and row_loss.scores_name != "similarities":
    prelude.refuse_one_class(
      arguments.kernel.shape[call.head.class_axis], "kernel"
    )
  known = row_loss.hyperparameters
  dtype = call.head.sum_dtype
  numbers, static = known.split(values)
  batch = arguments.features.shape[:-1]
  arrays = known.as_arrays(numbers, dtype, batch, keep)
  smoothing = _row_values.as_smoothing(label_smoothing, row_loss, dtype)
  bucket = _tail.checked(
    tail, row_loss, smoothing is not None, arguments.labels, metrics
  )
  chosen = HeadLoss(row_loss, static, as_metrics(metrics), bucket)
  refuse_traced(chosen.metrics, dtype)
  return chosen, arguments._replace(numbers=Numbers(arrays, smoothing))


def with_temperature(
  temperature: Any,
  call: Call,
  arguments: HeadArguments,
  keep: np.ndarray | None,
) -> HeadArguments:
  """The arguments with the temperature as a number, unless it is 1."""
  if (
    np.ndim(temperature) == 0
    and checks.is_concrete(temperature)
    and np.all(temperature == 1)
  ):
    return arguments
  arrays = _row_values.Statistics().hyperparameters.as_arrays(
    {"temperature": temperature},
    call.head.sum_dtype,
    arguments.features.shape[:-1],
    keep,
  )
  return arguments._replace(numbers=Numbers(arrays, None))


def refuse_soft_labels(head: str, labels: Any) -> None:
  """Raises for target distributions, which only losses have a use for."""
  if isinstance(labels, tuple):
    raise TypeError(
      f"labels must be class ids for {head}, one per row, got a pair. Pass the "
      "pair to linear_loss."
    )
  dtype = checks.as_array(labels, "labels").dtype
  if jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(
      f"labels must be class ids for {head}, integers, got {dtype}. Pass "
      "labels.argmax(-1) of a target distribution."
    )


class Ready(NamedTuple):
  """A call whose dropped rows hold placeholders, by `prepared`.

  Attributes:
    call: What is static, with what the loss reads.
    arrays: What is differentiated.
    targets: Of the rows.
    keep: Which rows are kept, or None for all.
    weights: Of the rows, 0 for dropped ones.
    numbers: Of the loss.
  """

  call: Call
  arrays: Arrays
  targets: Targets
  keep: jax.Array | None
  weights: jax.Array
  numbers: Numbers


def _arrays(
  call: Call,
  arguments: HeadArguments,
  keep: jax.Array | None,
  factor: jax.Array | None,
) -> Arrays:
  """The arrays of the head, 0 in dropped rows, classes divisible by devices."""
  features, kernel, bias = arguments.features, arguments.kernel, arguments.bias
  row_keys, class_keys = arguments.row_keys, arguments.class_keys
  axis, layout = call.head.class_axis, call.layout
  if keep is not None:
    # Before any product: 0 times NaN is NaN.
    column = keep[..., None]
    if layout.width and layout.is_explicit:
      column = jnp.broadcast_to(
        column, features.shape, out_sharding=jax.typeof(features).sharding
      )
    features = jnp.where(column, features, jnp.zeros_like(features))
  if call.plan.mode == "frozen_kernel":
    kernel, bias = jax.lax.stop_gradient((kernel, bias))
  # What the devices do not divide is padded.
  classes = -kernel.shape[axis] % layout.shards(layout.classes)
  sharded = (layout.width, layout.kernel_width)
  width = -features.shape[-1] % math.lcm(*map(layout.shards, sharded))
  if width:
    batch = [(0, 0)] * (features.ndim - 1)
    features = jnp.pad(features, [*batch, (0, width)])
  if classes:
    # Not every narrow type has an infinity.
    wide = call.head.sum_dtype
    if bias is None:
      bias = jnp.zeros(kernel.shape[axis], wide)
    bias = jnp.pad(bias.astype(wide), (0, classes), constant_values=-jnp.inf)
    if class_keys is not None:
      class_keys = jnp.pad(class_keys, (0, classes))
  if classes or width:
    widths = [(0, width), (0, classes)]
    kernel = jnp.pad(kernel, widths if axis else widths[::-1])
  arrays = Arrays(features, kernel, bias, factor, row_keys, class_keys)
  by_name = layout.by_name(axis)
  return Arrays._make(
    None if x is None else layout.place(x, by_name[name])
    for name, x in arrays._asdict().items()
  )


def prepared(
  call: Call, loss: HeadLoss | Statistics, arguments: HeadArguments
) -> Ready:
  """What the rules of differentiation take: the traced part."""
  layout, batch = call.layout, arguments.features.shape[:-1]
  where = arguments.where
  if where is None and any(
    n % layout.shards(axes) for n, axes in zip(batch, layout.rows, strict=False)
  ):
    where = jnp.ones(batch, bool)
  divides = arguments.features.shape[-1] % layout.shards(layout.width) == 0
  width = layout.width if layout.width and divides else None
  labels, where, weights, numbers, row_keys = jax.tree.map(
    lambda x: layout.padded_rows(x) if x.ndim else x,
    (
      arguments.labels,
      where,
      arguments.weights,
      arguments.numbers,
      arguments.row_keys,
    ),
  )
  features = layout.padded_rows(arguments.features, width)
  arguments = arguments._replace(features=features, row_keys=row_keys)
  keep = kept_rows(where, weights)
  if keep is not None:
    numbers = loss.placeholders(numbers, keep)
  differentiated, factor = loss.reads(numbers), loss.factor(numbers)
  reads = differentiated | loss.constant_reads()
  batch = features.shape[:-1]
  if factor is not None:
    # Varied before it is repeated: its gradient is summed, then sent.
    factor = varying.vary_like(factor, features)
    factor = layout.broadcast(factor, batch)
  arrays = _arrays(call, arguments, keep, factor)
  classes = arguments.kernel.shape[call.head.class_axis]
  if layout.mesh is None and layout.classes:
    classes *= jax.lax.axis_size(layout.classes)
  if isinstance(labels, tuple):
    labels = labels[0], labels[1].astype(call.head.sum_dtype)
  targets = _targets.targets_of(labels, len(batch), classes, keep)
  if weights is None:
    weights = layout.place(jnp.ones(batch), layout.row_spec)
  weights = weights.astype(call.head.sum_dtype)
  if keep is not None:
    weights = jnp.where(keep, weights, jnp.zeros_like(weights))
  head = call.head._replace(
    reads=reads, constant=reads - differentiated, scaled=factor is not None
  )
  call = call._replace(head=head)
  return Ready(call, arrays, targets, keep, weights, numbers)
