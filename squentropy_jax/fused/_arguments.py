# SPDX-License-Identifier: Apache-2.0
"""The arguments of the heads, checked."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude
from squentropy_jax.fused import _loss, _plan
from squentropy_jax.fused._loss import HeadLoss, Numbers
from squentropy_jax.fused._mesh import Layout, checked_layout
from squentropy_jax.fused._rules import Call
from squentropy_jax.fused._tiles import Arrays, Head


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
  """

  features: jax.Array
  kernel: jax.Array
  bias: jax.Array | None
  labels: Any
  where: jax.Array | None
  weights: jax.Array | None
  numbers: Numbers = Numbers({}, None)


def _ids_and_probabilities(
  labels: Any, batch: tuple[int, ...]
) -> tuple[Any, Any]:
  """Checks a pair of class ids and probabilities of shape ``[*batch, K]``."""
  if len(labels) != 2:
    raise TypeError(
      "labels as a tuple must be a pair (ids, probabilities), got "
      f"{len(labels)} elements."
    )
  ids = checks.as_array(labels[0], "the ids of labels")
  probabilities = checks.as_array(labels[1], "the probabilities of labels")
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(
      f"the ids of labels must be integers, got {ids.dtype}. Pass labels as "
      "(ids, probabilities)."
    )
  if not jnp.issubdtype(probabilities.dtype, jnp.floating):
    raise TypeError(
      "the probabilities of labels must be floating point, got "
      f"{probabilities.dtype}. Pass labels as (ids, probabilities)."
    )
  if (
    ids.shape != probabilities.shape or ids.shape[:-1] != batch or not ids.ndim
  ):
    raise ValueError(
      "the ids and probabilities of labels must both have the shape "
      f"(*{batch}, K), K targets for each row, got {ids.shape} and "
      f"{probabilities.shape}."
    )
  if not ids.shape[-1]:
    raise ValueError(
      f"labels must hold one class id per row or more, got ids of shape "
      f"{ids.shape}. Drop rows without a target with where=."
    )
  return prelude.widen_ids(ids), probabilities


def _class_ids(labels: Any, batch: tuple[int, ...]) -> Any:
  """Checks class ids of shape ``batch``."""
  labels = checks.as_array(labels, "labels")
  if jnp.issubdtype(labels.dtype, jnp.floating):
    raise TypeError(
      f"labels must be class ids, integers of shape {batch}, or a pair (ids, "
      f"probabilities), got {labels.dtype} of shape {labels.shape}. A dense "
      "target distribution is as large as the logits: pass its classes with "
      "probability above 0 as such a pair."
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError(
      f"labels must be integers, got dtype {labels.dtype}. Pass "
      "jnp.asarray(labels, jnp.int32)."
    )
  if labels.shape != batch:
    raise ValueError(
      f"labels must have the batch shape {batch} of features, one class id for "
      f"each row, got {labels.shape}."
    )
  return prelude.widen_ids(labels)


def _of_rows(name: str, values: Any, batch: tuple[int, ...]) -> Any:
  # NumPy arrays stay so: inside jit those of JAX are traced.
  array = checks.as_array(values, name)
  if array.shape != batch:
    raise ValueError(
      f"{name} must have the batch shape {batch} of features, one for each "
      f"row, got {array.shape}. Make classes impossible with bias=-inf."
    )
  return array


def _where(where: Any, batch: tuple[int, ...]) -> Any:
  array = _of_rows("where", where, batch)
  if array.dtype != jnp.bool_:
    raise TypeError(
      f"where must be boolean, got dtype {array.dtype}. Pass where != 0, or "
      "pass weights= to linear_loss_sum for a weight of each row."
    )
  return array


def _weights(weights: Any, batch: tuple[int, ...]) -> Any:
  array = _of_rows("weights", weights, batch)
  if array.dtype == jnp.bool_:
    raise TypeError(
      "weights must be real numbers, got booleans. Pass them as where=."
    )
  checks.check_real("weights", array)
  return array


def known_rows(
  arguments: HeadArguments, layout: Layout
) -> tuple[bool, np.ndarray | None]:
  """Whether labels can be read now, and which rows are known to count.

  What spans processes is not read: an error on one process would leave the
  others waiting. The rows are None for all, and none where nothing is known.
  """
  computed = (arguments.features, arguments.kernel, arguments.bias)
  masks = (arguments.where, arguments.weights)
  present = [x for x in masks if x is not None]
  if layout.spans_processes or not checks.is_concrete(
    *present, used_with=computed
  ):
    return False, np.zeros(arguments.features.shape[:-1], bool)
  keep = None if arguments.where is None else np.asarray(arguments.where)
  if arguments.weights is not None:
    used = np.asarray(arguments.weights) != 0
    keep = used if keep is None else keep & used
  return checks.is_concrete(*jax.tree.leaves(arguments.labels)), keep


def _check_range(
  labels: Any, num_classes: int, keep: np.ndarray | None
) -> None:
  if not isinstance(labels, tuple):
    prelude.check_label_range(labels, num_classes, keep)
    return
  ids, probabilities = labels
  used = np.asarray(probabilities) != 0
  if keep is not None:
    used &= keep[..., None]
  prelude.check_label_range(ids, num_classes, used)


def _as_jax(labels: Any, num_classes: int) -> Any:
  """Labels as JAX arrays, NumPy ids that int32 cannot hold as -1."""
  if isinstance(labels, tuple):
    ids = prelude.narrow_labels(labels[0], num_classes)
    return checks.as_jax(ids), checks.as_jax(labels[1])
  return checks.as_jax(prelude.narrow_labels(labels, num_classes))


def _soft_cap(soft_cap: Any) -> float | None:
  if soft_cap is None:
    return None
  if isinstance(soft_cap, jax.core.Tracer):
    raise TypeError(
      "soft_cap must be a number, got a traced array. It is static: pass a "
      "Python float."
    )
  checks.check_real("soft_cap", soft_cap)
  cap = float(soft_cap)
  if not 0 < cap < math.inf:
    raise ValueError(
      f"soft_cap must be in (0, inf), got {cap}. Pass None for no cap."
    )
  return cap


def checked(
  features: jax.typing.ArrayLike,
  kernel: jax.typing.ArrayLike,
  labels: Any,
  *,
  bias: jax.typing.ArrayLike | None,
  class_axis: int,
  where: jax.typing.ArrayLike | None,
  weights: jax.typing.ArrayLike | None = None,
  soft_cap: float | None,
  mesh: Mesh | None,
  batch_axis: Any,
  vocab_axis: Any,
  mode: str | None,
  memory_budget: int | None,
) -> tuple[Call, HeadArguments, np.ndarray | None]:
  """The static and the traced arguments, and which rows are known to count.

  Raises an error that names the argument that does not fit.
  """
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
  if class_axis not in (-2, -1, 0, 1):
    raise ValueError(
      f"class_axis must be 0 or 1, an axis of kernel, got {class_axis!r}."
    )
  axis = class_axis % 2
  batch, width = features.shape[:-1], features.shape[-1]
  if kernel.shape[1 - axis] != width:
    raise ValueError(
      f"features of shape {features.shape} need {width} in axis {1 - axis} of "
      f"kernel, got {kernel.shape}. For a kernel [V, d] pass class_axis=0."
    )
  num_classes = kernel.shape[axis]
  checks.check_num_classes(num_classes, "kernel")
  if bias is not None:
    bias = checks.as_floats(bias, "bias")
    if bias.shape != (num_classes,):
      raise ValueError(
        f"bias must have the shape ({num_classes},), one per class of kernel "
        f"{kernel.shape}, got {bias.shape}."
      )
  if isinstance(labels, tuple):
    labels = _ids_and_probabilities(labels, batch)
  else:
    labels = _class_ids(labels, batch)
  arguments = HeadArguments(
    features,
    kernel,
    bias,
    labels,
    None if where is None else _where(where, batch),
    None if weights is None else _weights(weights, batch),
  )
  layout = checked_layout(mesh, batch_axis, vocab_axis, features, kernel)
  if mesh is None and layout.vocab_axis:
    num_classes *= jax.lax.axis_size(layout.vocab_axis)
  readable, keep = known_rows(arguments, layout)
  if readable:
    _check_range(labels, num_classes, keep)
  if mode is not None and mode not in _plan.MODES:
    raise ValueError(
      f"mode must be one of {_plan.MODES} or None, got {mode!r}. None chooses "
      "by what is differentiated."
    )
  if memory_budget is not None:
    memory_budget = checks.as_count("memory_budget", memory_budget)
  call = Call(Head(axis, _soft_cap(soft_cap)), layout, mode, memory_budget)
  arguments = arguments._replace(
    labels=_as_jax(labels, num_classes),
    where=None if where is None else checks.as_jax(arguments.where),
    weights=None if weights is None else checks.as_jax(arguments.weights),
  )
  return call, arguments, keep


def with_loss(
  loss: Any,
  label_smoothing: Any,
  arguments: HeadArguments,
  keep: np.ndarray | None,
) -> tuple[HeadLoss, HeadArguments]:
  """The loss, and the arguments with its numbers in the dtype of sums."""
  row_loss, values = _loss.resolved(loss)
  known = row_loss.hyperparameters
  dtype = Arrays(arguments.features, arguments.kernel).sum_dtype
  numbers, static = known.split(values)
  batch = arguments.features.shape[:-1]
  arrays = known.as_arrays(numbers, dtype, batch, keep)
  smoothing = _loss.as_smoothing(label_smoothing, row_loss, dtype)
  return HeadLoss(row_loss, static), arguments._replace(
    numbers=Numbers(arrays, smoothing)
  )
