# SPDX-License-Identifier: Apache-2.0
"""The logits of the labelled classes of a linear head, and their gradient."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from squentropy_jax.fused import _arguments, _mesh, _residuals, _rules, _tiles
from squentropy_jax.fused._arguments import Call, HeadArguments
from squentropy_jax.fused._head import Arrays, Gradient, Head
from squentropy_jax.fused._row_values import Statistics


def target_logits(
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
) -> jax.Array:
  r"""Computes the logit of each row's labelled class, without the others.

  Use it for margins that depend on the target's logit, such as
  :func:`squentropy_jax.margins.ranked`. It reads one column of the kernel for
  each row, so that there is no pass over the classes:

  .. math::
    z_{n y_n} = h_n \cdot w_{y_n} + b_{y_n}

  Args:
    features: Rows of features, shape ``[..., d]``.
    kernel: Shape ``[d, V]``, or ``[V, d]`` with ``class_axis=0``.
    labels: Class ids, integers of shape ``[...]``.
    bias: Shape ``[V]``.
    class_axis: The class axis of ``kernel``.
    where: Which rows to keep, booleans of shape ``[...]``. Logits and gradients
      of the other rows are 0.
    soft_cap: See `linear_loss`.
    mesh: See `linear_loss`.
    features_spec: See `linear_loss`.
    kernel_spec: See `linear_loss`. Where the classes are sharded, one number
      for each row is added up over the devices.
    gather: See `linear_loss`. It must not be ``"tile"``.
    compute_dtype: See `linear_loss`. The products are added up in float32 or
      wider.
    reduce_dtype: See `linear_loss`.

  Returns:
    The logits, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If an argument has the wrong dtype.
    ValueError: If an argument has the wrong shape or value, or if a concrete
      class id is out of range (a traced one gives NaN).

  Examples:
    >>> features = jnp.array([[1.0, 0.0], [0.5, 2.0]])
    >>> kernel = jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    >>> print(fused.target_logits(features, kernel, jnp.array([0, 2])))
    [1.  0.5]

  References:
    Boutros et al., `ElasticFace: Elastic Margin Loss for Deep Face Recognition
    <https://arxiv.org/abs/2109.09416>`_, 2022, for a margin that depends on it.

  .. seealso:: :func:`squentropy_jax.margins.target_logits`, from all logits
  """
  if gather == "tile":
    raise ValueError(
      "gather must be 'auto', 'kernel' or 'rows' for target_logits, which has "
      "no tiles, got 'tile'. Pass gather='kernel'."
    )
  _arguments.refuse_soft_labels("target_logits", labels)
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
    plan=None,
  )
  return _target_logits(call, arguments)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _target_logits(call: Call, arguments: HeadArguments) -> jax.Array:
  """`target_logits` on checked arguments."""
  ready = _arguments.prepared(call, Statistics(), arguments)
  z = _of_targets(ready.call, ready.arrays, ready.targets.ids)
  invalid = ready.targets.invalid[..., 0]
  z *= jnp.where(invalid, jnp.nan, 1.0).astype(z.dtype)
  if ready.keep is not None:
    z = jnp.where(ready.keep, z, jnp.zeros_like(z))
  return call.layout.result_rows(z, arguments.features.shape[:-1])


def _columns(
  head: Head, arrays: Arrays, ids: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Which targets are here, their places, and the kernel's ``[N, d]``."""
  ids = ids[:, 0]
  is_here = (ids >= 0) & (ids < arrays.kernel.shape[head.class_axis])
  place = jnp.where(is_here, ids, 0)
  found = jnp.take(arrays.kernel, place, axis=head.class_axis)
  found = found.T if head.class_axis else found
  return is_here, place, _in_sum_dtype(head, found)


def _in_sum_dtype(head: Head, x: jax.Array) -> jax.Array:
  """An operand of the products, as the tiles round it."""
  return x.astype(head.operand_dtype).astype(head.sum_dtype)


def _forward(call: Call, arrays: Arrays, ids: jax.Array) -> jax.Array:
  head, layout = call.head, call.layout

  def on_device(arrays: Arrays, ids: jax.Array) -> jax.Array:
    some, ids, _, batch = _mesh.local(layout, head, arrays, ids)
    is_here, place, column = _columns(head, some, ids)
    z = (_in_sum_dtype(head, some.features) * column).sum(-1)
    bias = None if some.bias is None else some.bias[place]
    z = _tiles.of_products(head, z, bias)
    z = jnp.where(is_here, z, jnp.zeros_like(z))
    if layout.class_axes:
      z = lax.psum(z, layout.class_axes)
    return _mesh.own_rows(layout, _mesh.shaped(z, batch))

  rows = layout.row_spec
  specs = (_rules.specs_of(call, arrays), rows)
  return layout.map(on_device, specs, rows)(arrays, ids)


def _backward(
  call: Call,
  wanted: frozenset[str],
  arrays: Arrays,
  ids: jax.Array,
  z: jax.Array,
  cotangent: jax.Array,
) -> Gradient:
  head, layout = call.head, call.layout

  def on_device(
    arrays: Arrays, ids: jax.Array, z: jax.Array, cotangent: jax.Array
  ) -> Gradient:
    some, ids, _, batch = _mesh.local(layout, head, arrays, ids)
    of_rows = _mesh.gather_rows(layout, (z, cotangent))
    z, cotangent = _mesh.flat(of_rows, len(batch))
    is_here, place, column = _columns(head, some, ids)
    g = cotangent * _tiles.logit_derivative(head, None, z)
    # Times 0, so that the NaN of an invalid label reaches its features.
    g = jnp.where(is_here & (z != -jnp.inf), g, 0.0 * g)
    found: Gradient = {}
    if "features" in wanted:
      found |= _mesh.shaped({"features": g[:, None] * column}, batch)
    # Another device has the other targets, or none for an invalid label.
    of_classes = jnp.where(is_here, g, jnp.zeros_like(g))
    # Added up in the dtype of sums, also where a label occurs often.
    if "kernel" in wanted:
      products = g[:, None] * _in_sum_dtype(head, some.features)
      products = jnp.where(is_here[:, None], products, jnp.zeros_like(products))
      zero = jnp.zeros(some.kernel.shape, head.sum_dtype)
      at: Any = (slice(None), place) if head.class_axis else place
      found["kernel"] = zero.at[at].add(
        products.T if head.class_axis else products
      )
    if some.bias is not None and "bias" in wanted:
      zero = jnp.zeros(some.bias.shape, head.sum_dtype)
      found["bias"] = zero.at[place].add(of_classes)
    found = _mesh.reduced(layout, head, found, arrays, False)
    return _rules.like_primals(call, found, arrays)

  rows = layout.row_spec
  return layout.map(
    on_device,
    (_rules.specs_of(call, arrays), rows, rows, rows),
    _rules.gradient_specs(call, wanted),
  )(arrays, ids, z, cotangent)


@_residuals.with_symbolic_zeros
def _of_targets(symbolic: bool) -> Callable[..., jax.Array]:
  """The logits of the targets of the rows ``[...]``."""

  @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
  def of_targets(call, arrays, ids):
    return _forward(call, arrays, ids)

  def forward(call, arrays, ids):
    wanted = _residuals.names_wanted(arrays, symbolic)
    if symbolic:
      arrays, ids = _residuals.values_of((arrays, ids))
    z = _forward(call, arrays, ids)
    notes = _residuals.as_notes(wanted, Arrays._fields)
    return z, (arrays, ids, z, notes)

  def backward(call, residuals, cotangent):
    arrays, ids, z, notes = residuals
    wanted = _residuals.read_notes(notes)
    gradient = _backward(call, wanted, arrays, ids, z, cotangent)
    return _residuals.as_cotangent(gradient), None

  of_targets.defvjp(forward, backward, symbolic_zeros=symbolic)
  return of_targets
