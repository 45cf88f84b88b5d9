# SPDX-License-Identifier: Apache-2.0
"""Linear layers on the unit sphere, for the angular losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.unit_vectors import unit

# A mean of unit vectors that is shorter than so many ulp is a rounding error.
_SHORTEST = 16.0


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _normalize(x: jax.Array, axis: int) -> jax.Array:
  wide = x.astype(checks.compute_dtype(x.dtype))
  return unit(wide, axis).astype(x.dtype)


def normalize(x: jax.typing.ArrayLike, axis: int = -1) -> jax.Array:
  r"""Divides vectors by their Euclidean norm.

  Use it for the features and the kernel of a fused angular head, where
  `cosine_logits` would build the logits of all examples.

  .. math::
    x / \lVert x \rVert, \qquad 0 \text{ for } x = 0 .

  No square overflows or underflows. A vector of zeros has gradient 0.

  Args:
    x: Vectors, any shape with at least one axis, any floating dtype.
    axis: The axis of each vector.

  Returns:
    Vectors of norm 1 or 0, in the shape and dtype of ``x``, computed in float32
    or wider.

  Raises:
    TypeError: If ``x`` is not floating point.
    ValueError: If ``x`` is a scalar or does not have the axis.

  Examples:
    >>> print(heads.normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
    [[0.6 0.8]
     [0.  0. ]]

  References:
    Wang et al., `NormFace: L2 Hypersphere Embedding for Face Verification
    <https://arxiv.org/abs/1704.06369>`_, ACM Multimedia 2017.

  .. seealso:: :func:`squentropy_jax.heads.cosine_logits`
  """
  array = checks.as_floats(x, "x")
  if array.ndim == 0:
    raise ValueError("x must have an axis of vectors, got a scalar.")
  axis = checks.as_axis(axis, array, "x")
  if array.shape[axis] == 0:
    raise ValueError(
      f"x must have vectors of length 1 or more, got shape {array.shape} and "
      f"axis {axis}."
    )
  return _normalize(array, axis)


def _as_kernel(
  kernel: jax.typing.ArrayLike, class_axis: int
) -> tuple[jax.Array, int]:
  """A kernel of two axes, and its class axis, 0 or 1."""
  array = checks.as_floats(kernel, "kernel")
  if array.ndim != 2:
    raise ValueError(
      "kernel must have the shape (d, C), or (C, d) with class_axis=0, got "
      f"{array.shape}."
    )
  if class_axis not in (-2, -1, 0, 1) or isinstance(class_axis, bool):
    raise ValueError(
      f"class_axis must be 0 or 1, the class axis of kernel, got "
      f"{class_axis!r}."
    )
  return array, int(class_axis) % 2


def _as_features(
  features: jax.typing.ArrayLike, kernel: jax.Array, class_axis: int
) -> jax.Array:
  """Features whose last axis is the width of the kernel."""
  array = checks.as_floats(features, "features")
  width = kernel.shape[1 - class_axis]
  if array.ndim == 0 or array.shape[-1] != width:
    raise ValueError(
      f"features must have the width {width} of kernel {kernel.shape} as their "
      f"last axis, got shape {array.shape}. For a kernel of shape (C, d) pass "
      "class_axis=0."
    )
  return array


def cosine_logits(
  features: jax.typing.ArrayLike,
  kernel: jax.typing.ArrayLike,
  *,
  class_axis: int = -1,
) -> jax.Array:
  r"""Computes the cosines between features and class vectors.

  Use it as the last layer of a model that is trained with
  :func:`squentropy_jax.losses.arcface` or another angular loss. For a feature
  vector :math:`h` and the class vectors :math:`w_k`,

  .. math::
    c_k = \frac{h \cdot w_k}{\lVert h \rVert \, \lVert w_k \rVert} .

  A vector of zeros has the cosine 0 with every vector. If the cosines of a
  batch take too much memory, pass the results of `normalize` and `unit_columns`
  to a fused head.

  Args:
    features: Rows of features, shape ``[..., d]``, any floating dtype.
    kernel: Class vectors, shape ``[d, C]``, or ``[C, d]`` with
      ``class_axis=0``.
    class_axis: The class axis of ``kernel``.

  Returns:
    Cosines, shape ``[..., C]``, float32 or wider.

  Raises:
    TypeError: If an argument is not floating point.
    ValueError: If the shapes do not fit.

  Examples:
    >>> features = jnp.array([[3.0, 4.0]])
    >>> kernel = jnp.array([[2.0, 0.0, -1.0], [0.0, 0.5, -1.0]])
    >>> print(heads.cosine_logits(features, kernel))
    [[ 0.6     0.8    -0.9899]]

  References:
    Luo et al., `Cosine Normalization: Using Cosine Similarity Instead of Dot
    Product in Neural Networks <https://arxiv.org/abs/1702.05870>`_, 2017.

  .. seealso:: :func:`squentropy_jax.losses.normalized_softmax`,
    :func:`squentropy_jax.heads.unit_columns`
  """
  weights, axis = _as_kernel(kernel, class_axis)
  rows = _as_features(features, weights, axis)
  dtype = checks.compute_dtype(rows.dtype, weights.dtype)
  with jax.numpy_dtype_promotion("standard"):
    operand = jnp.promote_types(rows.dtype, weights.dtype)
  return jax.lax.dot_general(
    _normalize(rows, rows.ndim - 1).astype(operand),
    _normalize(weights, 1 - axis).astype(operand),
    (((rows.ndim - 1,), (1 - axis,)), ((), ())),
    preferred_element_type=dtype,
  )


def unit_columns(
  kernel: jax.typing.ArrayLike, *, class_axis: int = -1
) -> jax.Array:
  r"""Divides every class vector of a kernel by its norm.

  Use it as a projection of the kernel after each step of the optimizer, or in
  the forward pass in front of a fused head. For the class vectors :math:`w_k`,

  .. math::
    w_k \leftarrow w_k / \lVert w_k \rVert .

  After a projection, the products of normalised features and the kernel are
  cosines. Under plain gradient descent, projecting after a step and normalising
  in the forward pass agree to first order in the step size. Under Adam they do
  not agree, because Adam averages the radial part of the gradient too.

  Args:
    kernel: Class vectors, shape ``[d, C]``, or ``[C, d]`` with
      ``class_axis=0``, any floating dtype.
    class_axis: The class axis of ``kernel``.

  Returns:
    The kernel with class vectors of norm 1, in the same shape and dtype. A
    class vector of zeros stays 0.

  Raises:
    TypeError: If ``kernel`` is not floating point.
    ValueError: If its shape does not fit.

  Examples:
    >>> kernel = jnp.array([[2.0, 0.0, 3.0], [0.0, 0.5, 4.0]])
    >>> print(heads.unit_columns(kernel))
    [[1.  0.  0.6]
     [0.  1.  0.8]]

  References:
    Pereira et al., `Hyperspherical embedding for novel class classification
    <https://arxiv.org/abs/2102.03243>`_, 2021.

  .. seealso:: :func:`squentropy_jax.heads.normalize`,
    :func:`squentropy_jax.heads.extend_classes`
  """
  weights, axis = _as_kernel(kernel, class_axis)
  return normalize(weights, axis=1 - axis)


@functools.partial(jax.jit, inline=True)
def _prototype(features: jax.Array, keep: jax.Array) -> jax.Array:
  """The normalised mean of unit vectors ``[n, d]``; NaN if it is 0."""
  wide = features.astype(checks.compute_dtype(features.dtype))
  # A dropped row may hold anything.
  wide = jnp.where(keep[:, None], wide, jnp.zeros_like(wide))
  total = _normalize(wide, 1).sum(0)
  count = jnp.maximum(keep.sum(dtype=jnp.int32), 1).astype(total.dtype)
  length = jnp.sqrt(jnp.square(total / count).sum())
  shortest = _SHORTEST * float(jnp.finfo(total.dtype).eps)
  mean = _normalize(total, 0)
  return mean * jnp.where(length > shortest, 1.0, jnp.nan).astype(total.dtype)


def extend_classes(
  kernel: jax.typing.ArrayLike,
  features: jax.typing.ArrayLike,
  *,
  where: jax.typing.ArrayLike | None = None,
  class_axis: int = -1,
) -> jax.Array:
  r"""Appends a class to a kernel, from features of examples of that class.

  Use it to predict a class that the model was not trained on. The existing
  classes do not change. For the features :math:`h_i` of the examples,

  .. math::
    w = \frac{\sum_i h_i / \lVert h_i \rVert}
             {\bigl\lVert \sum_i h_i / \lVert h_i \rVert \bigr\rVert} .

  The new class gets the next class id. Call it once for each new class.

  Args:
    kernel: Class vectors, shape ``[d, C]``, or ``[C, d]`` with
      ``class_axis=0``, any floating dtype. They should have norm 1.
    features: Features of examples of the new class, shape ``[..., d]``.
    where: Which examples to keep, booleans of shape ``[...]``.
    class_axis: The class axis of ``kernel``.

  Returns:
    The kernel with the new class as its last class, in the kernel's dtype.
    Under ``jax.jit`` the new class vector is NaN if no example is kept, or if
    the sum of the normalised features is 0.

  Raises:
    TypeError: If an argument has the wrong dtype.
    ValueError: If a shape does not fit, if no example is kept, or if the sum of
      the normalised features is 0.

  Examples:
    >>> kernel = jnp.array([[1.0], [0.0]])
    >>> features = jnp.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    >>> print(heads.extend_classes(kernel, features))
    [[1.     0.6644]
     [0.     0.7474]]

  References:
    Pereira et al., `Hyperspherical embedding for novel class classification
    <https://arxiv.org/abs/2102.03243>`_, 2021.

  .. seealso:: :func:`squentropy_jax.losses.normalized_softmax`,
    :func:`squentropy_jax.heads.unit_columns`
  """
  weights, axis = _as_kernel(kernel, class_axis)
  rows = _as_features(features, weights, axis)
  batch = rows.shape[:-1]
  keep = jnp.ones(batch, bool)
  if where is not None:
    keep = jnp.asarray(prelude.as_where(where, batch, batch))
  prototype = _prototype(rows.reshape(-1, rows.shape[-1]), keep.ravel())
  if checks.is_concrete(prototype) and not np.isfinite(prototype).all():
    raise ValueError(
      "features must have a mean direction, got none: no example is kept, the "
      "normalised features cancel, or some are not finite. Pass examples of "
      "one class."
    )
  column = jnp.expand_dims(prototype.astype(weights.dtype), axis)
  return jnp.concatenate([weights, column], axis=axis)
