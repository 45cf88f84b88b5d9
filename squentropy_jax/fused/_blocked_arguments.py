# SPDX-License-Identifier: Apache-2.0
"""The arguments of `blocked_loss_sum`, checked."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks, varying
from squentropy_jax._core import labels as prelude
from squentropy_jax.fused import _targets
from squentropy_jax.fused._blocked_sums import Rows


def checked_labels(labels: Any) -> tuple[Any, tuple[int, ...]]:
  """The labels and the batch shape, which they define."""
  if isinstance(labels, tuple):
    pair = _targets.checked_pair(labels)
    return pair, pair[0].shape[:-1]
  array = checks.as_array(labels, "labels")
  if jnp.issubdtype(array.dtype, jnp.integer):
    return prelude.widen_ids(array), array.shape
  if jnp.issubdtype(array.dtype, jnp.floating) and array.ndim:
    return array, array.shape[:-1]
  raise TypeError(
    "labels must be class ids, integers of shape [...], or target "
    "distributions, floats of shape [..., V] or a pair (ids, probabilities), "
    f"got {array.dtype} of shape {array.shape}."
  )


def check_label_axes(
  labels: Any, batch: tuple[int, ...], features: Any
) -> None:
  """Raises for class ids that are floats, which would be one distribution."""
  if isinstance(labels, tuple) or jnp.issubdtype(labels.dtype, jnp.integer):
    return
  if batch == () and features.ndim > 1 and labels.shape == features.shape[:1]:
    raise TypeError(
      "labels must be class ids, integers of the batch shape "
      f"{labels.shape}, or target distributions with a class axis, got "
      f"{labels.dtype}. Pass labels.astype(jnp.int32)."
    )


class ConvertedHead(NamedTuple):
  """A head as a function of all arrays that may be differentiated.

  Attributes:
    jaxpr: The program of the head, a ``jax.extend.core.Jaxpr``.
    consts: Its constants. None stands for a traced one, passed as ``closure``.
  """

  jaxpr: Any
  consts: list[Any]

  def logits(
    self, params: Any, block: jax.Array, closure: list[jax.Array]
  ) -> jax.Array:
    """The logits ``[rows, V]`` of a block."""
    from jax.extend import core  # Slow to import.

    traced = iter(closure)
    consts = [next(traced) if c is None else c for c in self.consts]
    run = core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, consts))
    return run(*jax.tree.leaves((params, block)))[0]


def converted(
  head_fn: Any, params: Any, block: jax.Array
) -> tuple[ConvertedHead, list[jax.Array], jax.ShapeDtypeStruct]:
  """The head, the traced arrays that it closes over, and what it returns."""
  if not callable(head_fn):
    raise TypeError(
      "head_fn must be a function head_fn(params, block) that returns logits, "
      f"got {head_fn!r}."
    )
  # A function of its own: JAX keeps what it traced for each function.
  jaxpr, out = jax.make_jaxpr(
    lambda params, block: head_fn(params, block), return_shape=True
  )(params, block)
  rows = block.shape[0]
  if not hasattr(out, "dtype") or not jnp.issubdtype(out.dtype, jnp.floating):
    raise TypeError(
      "head_fn must return one array of floating-point logits, got "
      f"{jax.tree.map(lambda x: x.dtype, out)}."
    )
  if out.ndim != 2 or out.shape[0] != rows:
    raise ValueError(
      f"head_fn must return logits of shape ({rows}, V) for a block of shape "
      f"{block.shape}, got {out.shape}."
    )
  checks.check_num_classes(out.shape[1], "the logits of head_fn")
  prelude.refuse_one_class(out.shape[1], "the logits of head_fn")
  traced = [isinstance(c, jax.core.Tracer) for c in jaxpr.consts]
  pairs = list(zip(jaxpr.consts, traced, strict=True))
  head = ConvertedHead(jaxpr.jaxpr, [None if t else c for c, t in pairs])
  return head, [c for c, t in pairs if t], out


def check_axes(
  axes: frozenset[str], params: Any, closure: list[jax.Array]
) -> None:
  """Raises if the head has different parameters for the same rows."""
  more = sorted(varying.axes_of(params, closure) - axes)
  if more:
    raise ValueError(
      f"params must not vary over the mesh axes {more}, over which features "
      "and labels do not vary, because head_fn must return the logits of all "
      "classes. Gather params, or use fused.linear_loss_sum."
    )


def fitting_labels(
  labels: Any,
  batch: tuple[int, ...],
  num_classes: int,
  *,
  readable: bool,
  keep: np.ndarray | None,
) -> Any:
  """Checks labels for so many classes, and converts them to JAX arrays."""
  ids = labels[0] if isinstance(labels, tuple) else labels
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    if ids.shape != (*batch, num_classes):
      raise ValueError(
        "labels as target distributions must have the shape "
        f"{(*batch, num_classes)}, one probability for each class of the "
        f"logits, got {ids.shape}."
      )
    if readable:
      prelude.check_distributions(ids, keep, -1)
    return checks.as_jax(ids)
  return _targets.read(labels, num_classes, keep, readable)


def padded(rows: Rows, missing: int) -> Rows:
  """The rows, and ``missing`` more that are dropped."""
  if not missing:
    return rows
  if rows.keep is None:
    n = rows.features.shape[0]
    rows = rows._replace(keep=jnp.ones(n, bool))
  return jax.tree.map(
    lambda x: jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), rows
  )
