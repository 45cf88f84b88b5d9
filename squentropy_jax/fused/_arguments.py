# SPDX-License-Identifier: Apache-2.0
"""The arguments of the heads, checked."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from squentropy_jax._core import checks as _checks
from squentropy_jax._core import varying
from squentropy_jax.fused import _plan
from squentropy_jax.fused._sharded import Layout


class Inputs(NamedTuple):
  """The arrays of a call.

  Attributes:
    features: ``[..., d]``.
    kernel: ``[d, V]`` or ``[V, d]``.
    bias: ``[V]`` or None.
    labels: Class ids ``[...]``, or a pair of ``[..., K]``, ids and
      probabilities.
    where: Which rows count, ``[...]``, or None.
    weights: Of the rows, ``[...]``, or None.
  """

  features: jax.Array
  kernel: jax.Array
  bias: jax.Array | None
  labels: Any
  where: jax.Array | None
  weights: jax.Array | None


class Settings(NamedTuple):
  """What is fixed while tracing, and no matter of the loss."""

  class_axis: int
  soft_cap: float | None
  layout: Layout
  way: str | None
  budget: int | None


def _ids_and_probabilities(
  labels: Any, batch: tuple[int, ...]
) -> tuple[Any, Any]:
  """Checks a pair of class ids and probabilities of shape ``[*batch, K]``."""
  if len(labels) != 2:
    raise TypeError(
      "labels as a tuple must be a pair (ids, probabilities), got "
      f"{len(labels)} elements."
    )
  ids, probabilities = (
    x if hasattr(x, "dtype") else np.asarray(x) for x in labels
  )
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(f"the ids of labels must be integers, got {ids.dtype}.")
  if not jnp.issubdtype(probabilities.dtype, jnp.floating):
    raise TypeError(
      "the probabilities of labels must be floating point, got "
      f"{probabilities.dtype}."
    )
  if (
    ids.shape != probabilities.shape or ids.shape[:-1] != batch or not ids.ndim
  ):
    raise ValueError(
      "the ids and probabilities of labels must both have the shape "
      f"(*{batch}, K), got {ids.shape} and {probabilities.shape}."
    )
  if not ids.shape[-1]:
    raise ValueError(
      f"labels must hold one class id per row or more, got {ids.shape}."
    )
  return _checks.of_bytes(ids), probabilities


def _class_ids(labels: Any, batch: tuple[int, ...]) -> Any:
  """Checks class ids of shape ``batch``."""
  labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
  if jnp.issubdtype(labels.dtype, jnp.floating):
    raise TypeError(
      f"labels must be class ids, integers of shape {batch}, or a pair (ids, "
      f"probabilities), got {labels.dtype} of shape {labels.shape}. A dense "
      "target distribution is as large as the logits: pass its classes with "
      "probability above 0 as such a pair."
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError(f"labels must be integers, got dtype {labels.dtype}.")
  if labels.shape != batch:
    raise ValueError(
      f"labels must have the batch shape {batch} of features, got "
      f"{labels.shape}."
    )
  return _checks.of_bytes(labels)


def _of_rows(
  name: str, array: jax.typing.ArrayLike, batch: tuple[int, ...]
) -> jax.Array:
  array = jnp.asarray(array)
  if array.shape != batch:
    raise ValueError(
      f"{name} must have the batch shape {batch} of features, got "
      f"{array.shape}; take classes out with bias=-inf."
    )
  return array


def _axis_names(name: str, axis: Any) -> tuple[str, ...]:
  names = () if axis is None else (axis,) if isinstance(axis, str) else axis
  if not all(isinstance(n, str) for n in names):
    raise TypeError(f"{name} must be a mesh axis or some, got {axis!r}.")
  return tuple(names)


def _layout(
  mesh: Mesh | None,
  batch_axis: Any,
  vocab_axis: Any,
  features: Any,
  kernel: Any,
) -> Layout:
  if not isinstance(mesh, Mesh | None):
    raise TypeError(f"mesh must be a jax.sharding.Mesh, got {mesh!r}.")
  layout = Layout(
    mesh,
    _axis_names("batch_axis", batch_axis),
    _axis_names("vocab_axis", vocab_axis),
  )
  both = layout.batch_axis + layout.vocab_axis
  if len(set(both)) < len(both):
    raise ValueError(
      f"batch_axis {batch_axis!r} and vocab_axis {vocab_axis!r} must be "
      "different axes."
    )
  if mesh is not None:
    unknown = [name for name in both if name not in mesh.axis_names]
    if unknown or not both:
      raise ValueError(
        "with a mesh, batch_axis or vocab_axis must name axes of it, which are "
        f"{mesh.axis_names}; got {batch_axis!r} and {vocab_axis!r}."
      )
    shards = layout.shards(layout.batch_axis)
    if layout.batch_axis and (features.ndim < 2 or features.shape[0] % shards):
      raise ValueError(
        f"features {features.shape} must have a first axis that {shards} "
        f"devices of batch_axis {batch_axis!r} can share; add rows and drop "
        "them with where=."
      )
    return layout
  bound = frozenset(jax.sharding.get_abstract_mesh().manual_axes)
  if not bound >= set(both):
    raise ValueError(
      f"batch_axis {batch_axis!r} and vocab_axis {vocab_axis!r} must be axes "
      "of a jax.shard_map around the call, or be given with mesh=."
    )
  for name, array in (("features", features), ("kernel", kernel)):
    if _checks.explicit_sharding(array) is not None:
      raise ValueError(
        f"{name} is sharded, {jax.typeof(array)}; say how with mesh=, "
        "batch_axis= and vocab_axis=, or each device would gather it."
      )
  vocab = set(layout.vocab_axis)
  if not vocab <= varying.axes_of(kernel) or vocab & varying.axes_of(features):
    raise ValueError(
      f"inside shard_map the kernel must be split over vocab_axis "
      f"{vocab_axis!r} and the features must not be, got kernel "
      f"{jax.typeof(kernel)} and features {jax.typeof(features)}. Leave "
      "check_vma on: without it this cannot be seen and gradients are wrong."
    )
  return layout


def _kept(where: Any, weights: Any) -> Any:
  """Which rows count, as a NumPy array or None, of concrete arguments."""
  keep = None if where is None else np.asarray(where)
  if weights is None:
    return keep
  used = np.asarray(weights) != 0
  return used if keep is None else keep & used


def _narrowed(ids: Any, num_classes: int) -> jax.Array:
  """Class ids as a JAX array; int32 would turn 2**32 into class 0, so -1."""
  if not isinstance(ids, jax.Array):
    good = (ids >= 0) & (ids <= num_classes - 1)
    ids = np.where(good, ids.astype(np.int32), np.int32(-1))
  return jnp.asarray(ids)


def _check_range(labels: Any, num_classes: int, keep: Any) -> None:
  if not isinstance(labels, tuple):
    _checks.check_label_range(labels, num_classes, keep)
    return
  ids, probabilities = labels
  used = np.asarray(probabilities) != 0
  if keep is not None:
    used &= keep[..., None]
  _checks.check_label_range(ids, num_classes, used)


def checked(
  features: jax.typing.ArrayLike,
  kernel: jax.typing.ArrayLike,
  labels: Any,
  *,
  bias: jax.typing.ArrayLike | None,
  class_axis: int,
  where: jax.typing.ArrayLike | None,
  weights: jax.typing.ArrayLike | None,
  soft_cap: float | None,
  mesh: Mesh | None,
  batch_axis: Any,
  vocab_axis: Any,
  way: str | None,
  memory_budget: int | None,
  implementation: str | None,
) -> tuple[Inputs, Settings]:
  """The arguments as arrays and settings, or an error that names one."""
  features = _checks.as_floats(features, "features")
  kernel = _checks.as_floats(kernel, "kernel")
  if features.ndim == 0:
    raise ValueError("features must have a feature axis, got a scalar.")
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
      f"kernel, got {kernel.shape}; for a kernel [V, d] pass class_axis=0."
    )
  num_classes = kernel.shape[axis]
  _checks.check_num_classes(num_classes, "kernel")
  if bias is not None:
    bias = _checks.as_floats(bias, "bias")
    if bias.shape != (num_classes,):
      raise ValueError(
        f"bias must have the shape ({num_classes},), one per class of kernel "
        f"{kernel.shape}, got {bias.shape}."
      )
  if where is not None:
    where = _of_rows("where", where, batch)
    if where.dtype != jnp.bool_:
      raise TypeError(
        f"where must be boolean, got dtype {where.dtype}; pass where != 0."
      )
  if weights is not None:
    weights = _of_rows("weights", weights, batch)
    if weights.dtype == jnp.bool_:
      raise TypeError("weights must be numbers, got booleans; pass where=.")
    _checks.check_real("weights", weights)
  if isinstance(labels, tuple):
    labels = _ids_and_probabilities(labels, batch)
  else:
    labels = _class_ids(labels, batch)
  layout = _layout(mesh, batch_axis, vocab_axis, features, kernel)
  if mesh is None and layout.vocab_axis:
    num_classes *= jax.lax.axis_size(layout.vocab_axis)
  if _checks.is_concrete(*jax.tree.leaves((labels, where, weights))):
    _check_range(labels, num_classes, _kept(where, weights))
  if isinstance(labels, tuple):
    labels = _narrowed(labels[0], num_classes), jnp.asarray(labels[1])
  else:
    labels = _narrowed(labels, num_classes)
  if soft_cap is not None:
    if isinstance(soft_cap, jax.core.Tracer):
      raise TypeError("soft_cap must be a number, not a traced array.")
    _checks.check_real("soft_cap", soft_cap)
    soft_cap = float(soft_cap)
    if not 0 < soft_cap < math.inf:
      raise ValueError(f"soft_cap must be above 0, got {soft_cap}.")
  if way is not None and way not in _plan.WAYS:
    raise ValueError(f"way must be one of {_plan.WAYS} or None, got {way!r}.")
  if memory_budget is not None:
    memory_budget = _checks.as_count("memory_budget", memory_budget)
  if implementation not in (None, "xla"):
    raise ValueError(
      f"implementation must be 'xla' or None, got {implementation!r}."
    )
  return (
    Inputs(features, kernel, bias, labels, where, weights),
    Settings(axis, soft_cap, layout, way, memory_budget),
  )
