# SPDX-License-Identifier: Apache-2.0
"""An output layer whose exact SGD step does not pass over all classes."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.varying import without_explicit_axes
from squentropy_jax.heads._factored_step import (
  FactoredOutput,
  forward,
  product,
  update,
)


def factored_init(kernel: jax.typing.ArrayLike) -> FactoredOutput:
  r"""Factors a kernel for SGD steps that do not pass over all classes.

  Use it with a loss of the spherical family. Such a loss depends only on the
  target's output, and on the sum and the sum of squares of the outputs of an
  example with the features :math:`h`,

  .. math:: o = W h ,

  where :math:`W` is the transposed kernel. The losses are
  :func:`squentropy_jax.losses.zscore`,
  :func:`squentropy_jax.losses.taylor_softmax`,
  :func:`squentropy_jax.losses.spherical_softmax`,
  :func:`squentropy_jax.losses.rescaled_square` and
  :func:`squentropy_jax.losses.unhinged`. A step for :math:`m` examples takes
  about :math:`8 m d^2` multiplications. Plain SGD on the kernel takes
  :math:`3 m d D`. Momentum and Adam are not possible.

  Args:
    kernel: Shape ``[d, D]``, any floating dtype.

  Returns:
    The factors, float32 or wider. Donate them to the compiled step, so that
    they are updated in place.

  Raises:
    TypeError: If the kernel is not of a floating dtype.
    ValueError: If the kernel does not have two axes.

  Examples:
    >>> kernel = jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    >>> state = heads.factored_init(kernel)
    >>> print(heads.factored_kernel(state))
    [[1. 0. 2.]
     [0. 1. 1.]]

  References:
    Vincent, de Brebisson and Bouthillier, `Efficient Exact Gradient Update for
    Training Deep Networks with Very Large Sparse Targets
    <https://arxiv.org/abs/1412.7091>`_, NeurIPS 2015.
  """
  w = checks.as_jax(checks.as_floats(kernel, "kernel"))
  if w.ndim != 2:
    raise ValueError(f"kernel must have the shape [d, D], got {w.shape}.")
  checks.check_num_classes(w.shape[1], "kernel")
  w = w.astype(checks.compute_dtype(w.dtype))
  return FactoredOutput(
    rows=w.T,
    # Two arrays, because one buffer cannot be donated twice.
    mix=jnp.eye(w.shape[0], dtype=w.dtype),
    mix_inverse=jnp.eye(w.shape[0], dtype=w.dtype),
    gram=product(w, w.T),
    shift=jnp.zeros(w.shape[0], w.dtype),
    row_sum=w.sum(1),
  )


def factored_kernel(state: FactoredOutput) -> jax.Array:
  r"""Computes the kernel from its factors.

  Use it to evaluate or to store a model. It takes a pass over all classes.

  .. math:: W^T = (V U + 1 \omega^T)^T

  Args:
    state: The factors.

  Returns:
    The kernel, shape ``[d, D]``.

  Raises:
    TypeError: If ``state`` is not a `FactoredOutput`.
    ValueError: If its shapes do not fit.

  Examples:
    >>> state = heads.factored_init(jnp.eye(2))
    >>> print(heads.factored_kernel(state))
    [[1. 0.]
     [0. 1.]]

  References:
    Vincent, de Brebisson and Bouthillier, `Efficient Exact Gradient Update for
    Training Deep Networks with Very Large Sparse Targets
    <https://arxiv.org/abs/1412.7091>`_, NeurIPS 2015.
  """
  state = _checked(state)
  return (product(state.rows, state.mix) + state.shift[None]).T


def factored_stabilize(state: FactoredOutput) -> FactoredOutput:
  r"""Recomputes the factors, to remove their rounding errors.

  Use it every few hundred steps, because rounding errors accumulate in the
  factors. They accumulate faster if ``2 * learning_rate * grad_total_sq *
  |h|**2`` is close to 1 in a step, where :math:`U` becomes singular. The
  function sets :math:`U` to the identity, and takes a pass over all classes.

  .. math:: V \leftarrow V U + 1 \omega^T, \quad U \leftarrow I, \quad
    \omega \leftarrow 0

  Args:
    state: The factors.

  Returns:
    Factors of the same kernel.

  Raises:
    TypeError: If ``state`` is not a `FactoredOutput`.
    ValueError: If its shapes do not fit.

  Examples:
    >>> state = heads.factored_stabilize(heads.factored_init(jnp.eye(2)))
    >>> print(state.mix)
    [[1. 0.]
     [0. 1.]]

  References:
    Vincent, de Brebisson and Bouthillier, `Efficient Exact Gradient Update for
    Training Deep Networks with Very Large Sparse Targets
    <https://arxiv.org/abs/1412.7091>`_, NeurIPS 2015.
  """
  return factored_init(factored_kernel(state))


def factored_forward(
  state: FactoredOutput,
  features: jax.typing.ArrayLike,
  ids: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  r"""Computes outputs of some classes, and sums over all classes.

  Use it as the forward pass of a step. The loss of an example with target
  output ``outputs[i, 0]`` is
  ``loss.spherical(outputs[i, 0], total[i], total_sq[i], D)``. Pass its
  derivatives with respect to the first three arguments to `factored_update`.
  With the outputs :math:`o = W h` of an example, :math:`\bar w` the field
  ``row_sum`` and :math:`Q` the field ``gram``,

  .. math::
    o_{k} \text{ for } k \text{ in ids}, \quad \sum_k o_k = h \cdot \bar w,
    \quad \sum_k o_k^2 = h^T Q h .

  Args:
    state: The factors of a kernel of ``D`` classes.
    features: Shape ``[m, d]``.
    ids: Class ids, integers of shape ``[m, K]``.

  Returns:
    ``(outputs, total, total_sq)`` of the shapes ``[m, K]``, ``[m]`` and
    ``[m]``.

  Raises:
    TypeError: If an argument has the wrong type.
    ValueError: If a shape does not fit, or if a concrete id is out of range (a
      traced one gives NaN in its row).

  Examples:
    >>> kernel = jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    >>> state = heads.factored_init(kernel)
    >>> h, ids = jnp.array([[1.0, 3.0]]), jnp.array([[2]])
    >>> outputs, total, total_sq = heads.factored_forward(state, h, ids)
    >>> print(outputs, total, total_sq)
    [[5.]] [9.] [35.]

  References:
    Vincent, de Brebisson and Bouthillier, `Efficient Exact Gradient Update for
    Training Deep Networks with Very Large Sparse Targets
    <https://arxiv.org/abs/1412.7091>`_, NeurIPS 2015.
  """
  state = _checked(state)
  h, ids, invalid = _examples(state, features, ids)
  spec = P(*jax.typeof(h).sharding.spec[:1])
  return without_explicit_axes(forward, spec, state, h, ids, invalid)


def factored_update(
  state: FactoredOutput,
  features: jax.typing.ArrayLike,
  ids: jax.typing.ArrayLike,
  grad_outputs: jax.typing.ArrayLike,
  grad_total: jax.typing.ArrayLike,
  grad_total_sq: jax.typing.ArrayLike,
  learning_rate: jax.typing.ArrayLike,
) -> tuple[jax.Array, FactoredOutput]:
  r"""Takes a step of SGD, and computes the gradient of the features.

  Use it after `factored_forward`. For the loss :math:`L` whose derivatives are
  given, the transposed kernel becomes exactly

  .. math:: W - \eta \, \frac{\partial L}{\partial W} .

  Only the rows of ``ids`` and the small factors change, so that the cost does
  not depend on the number of classes. To drop a padded example, set its
  features and its derivatives to 0, and its ids to any valid class.

  Args:
    state: The factors. Donate them to the compiled step.
    features: Shape ``[m, d]``, as in `factored_forward`.
    ids: Class ids, integers of shape ``[m, K]``.
    grad_outputs: The derivatives of the loss by ``outputs``, shape ``[m, K]``.
    grad_total: The derivatives of the loss by ``total``, shape ``[m]``.
    grad_total_sq: The derivatives of the loss by ``total_sq``, shape ``[m]``.
    learning_rate: The step size :math:`\eta`, a number.

  Returns:
    ``(grad_features, state)``: the gradient of the features before the step,
    shape ``[m, d]``, and the factors after it. If the step makes :math:`U`
    singular, see `factored_stabilize`, factors are infinite or NaN.

  Raises:
    TypeError: If an argument has the wrong type.
    ValueError: If a shape does not fit, or if a concrete id is out of range (a
      traced one sets the factors to NaN).

  Examples:
    >>> kernel = jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    >>> state = heads.factored_init(kernel)
    >>> h, ids = jnp.array([[1.0, 3.0]]), jnp.array([[2]])
    >>> one, zero = jnp.ones((1, 1)), jnp.zeros(1)
    >>> grad, state = heads.factored_update(state, h, ids, one, zero, zero, 0.1)
    >>> print(grad)
    [[2. 1.]]
    >>> print(heads.factored_kernel(state))
    [[1.  0.  1.9]
     [0.  1.  0.7]]

  References:
    Vincent, de Brebisson and Bouthillier, `Efficient Exact Gradient Update for
    Training Deep Networks with Very Large Sparse Targets
    <https://arxiv.org/abs/1412.7091>`_, NeurIPS 2015.
  """
  state = _checked(state)
  h, ids, invalid = _examples(state, features, ids)
  by_output, by_total, by_total_sq = (
    _of_shape(name, x, shape, h.dtype)
    for name, x, shape in (
      ("grad_outputs", grad_outputs, ids.shape),
      ("grad_total", grad_total, h.shape[:1]),
      ("grad_total_sq", grad_total_sq, h.shape[:1]),
    )
  )
  rate = checks.as_scalar("learning_rate", learning_rate, h.dtype, "[0, inf)")
  specs = jax.tree.map(lambda x: P(*jax.typeof(x).sharding.spec), (h, state))
  return without_explicit_axes(
    update,
    specs,
    state,
    h,
    ids,
    jnp.where(invalid, jnp.nan, by_output),
    by_total,
    by_total_sq,
    rate,
  )


def _checked(state: FactoredOutput) -> FactoredOutput:
  if not isinstance(state, FactoredOutput):
    raise TypeError(
      f"state must be a FactoredOutput, got {type(state).__name__}. Make it "
      "with factored_init."
    )
  state = FactoredOutput(*map(checks.as_jax, state))
  shapes = [x.shape for x in state]
  d = shapes[0][1:]
  if len(shapes[0]) != 2 or shapes[1:] != [d * 2, d * 2, d * 2, d, d]:
    raise ValueError(
      "state must have arrays of the shapes [D, d], three times [d, d] and "
      f"twice [d], got {shapes}. Make it with factored_init."
    )
  return state


def _examples(
  state: FactoredOutput,
  features: jax.typing.ArrayLike,
  ids: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The features, the ids in range, and which of them are invalid."""
  num_classes, d = state.rows.shape
  h = checks.as_jax(checks.as_floats(features, "features"))
  if h.ndim != 2 or h.shape[1] != d:
    raise ValueError(
      f"features must have the shape [m, {d}] for these factors, got {h.shape}."
    )
  array = checks.as_array(ids, "ids")
  if not jnp.issubdtype(array.dtype, jnp.integer):
    raise TypeError(
      f"ids must be integers, got dtype {array.dtype}. Pass "
      "ids.astype(jnp.int32)."
    )
  if array.ndim != 2 or array.shape[0] != h.shape[0]:
    raise ValueError(
      f"ids must have the shape [{h.shape[0]}, K], K classes for each row of "
      f"features, got {array.shape}. Pass ids[:, None] for one class each."
    )
  array = prelude.widen_ids(array)
  readable = checks.is_concrete(array, used_with=(h,))
  array = prelude.read_ids(array, num_classes, None, readable, "ids")
  found, invalid = prelude.split_ids(checks.as_jax(array), num_classes)
  found = jnp.where(invalid, jnp.zeros_like(found), found)
  return h.astype(state.rows.dtype), found, invalid


def _of_shape(
  name: str,
  value: jax.typing.ArrayLike,
  shape: tuple[int, ...],
  dtype: jnp.dtype,
) -> jax.Array:
  array = checks.as_jax(checks.as_floats(value, name))
  if array.shape != shape:
    raise ValueError(f"{name} must have the shape {shape}, got {array.shape}.")
  return array.astype(dtype)
