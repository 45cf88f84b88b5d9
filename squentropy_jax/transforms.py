# SPDX-License-Identifier: Apache-2.0
"""Transforms of gradients, for training loops with optax."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from squentropy_jax._core import checks
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.elementwise import sigmoid
from squentropy_jax._core.rows import row_loss


@row_loss
def _probability_of_error(stats: RowStats) -> jax.Array:
  # From the other classes: 1 - p_y would be 0 for a confident example.
  return sigmoid(stats.log_odds)


def error_mass(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
  axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
  r"""Computes the mean probability that the model gives to incorrect classes.

  Use it as the argument ``error_mass`` of :func:`scale_by_error_mass`.

  .. math::
    \beta^{-1} = \frac{1}{n} \sum_{i=1}^n (1 - p_{i, y_i}), \qquad
    p_i = \operatorname{softmax}(z_i)

  With two classes and the logits :math:`(0, a)` of a score :math:`a`, the terms
  are :math:`1 / (1 + e^a)` for examples of class 1. They are accurate for
  confident examples too. Soft labels give the expected value.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the logits' shape.
    axis_name: Mesh axes of a ``shard_map`` over which examples are divided.

  Returns:
    A scalar, float32 or wider; 0 if no example is kept.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label is out of
      range.

  Examples:
    >>> logits = jnp.array([[0.0, 0.0], [0.0, 3.0]])
    >>> print(transforms.error_mass(logits, jnp.array([0, 1])))
    0.27371293

  References:
    Tyurin, `From Logistic Regression to the Perceptron Algorithm: Exploring
    Gradient Descent with Large Step Sizes <https://arxiv.org/abs/2412.08424>`_,
    2024. The form for more than two classes is this library's.

  .. seealso:: :func:`scale_by_error_mass`
  """
  errors = _probability_of_error(logits, labels, axis=axis, where=where)
  count = jnp.asarray(errors.size, errors.dtype)
  if where is not None:
    keep = jnp.asarray(where)
    if keep.ndim > errors.ndim:  # A row without a class is a dropped example.
      keep = keep.any(axis)
    count = keep.sum(dtype=jnp.int32).astype(errors.dtype)
  total = errors.sum()
  names = checks.as_axis_names(axis_name)
  if names is not None:
    total, count = lax.psum((total, count), names)
  return total / jnp.maximum(count, 1.0)


def scale_by_error_mass() -> optax.GradientTransformationExtraArgs:
  r"""Divides the gradient of cross-entropy by the error mass of its batch.

  Use it in front of :func:`optax.sgd`, with batches as large as possible, where
  gradient descent on cross-entropy becomes slow because most examples are
  already correct. With large steps on separable data it is a batch perceptron.

  .. math::
    w \leftarrow w - \gamma \, \beta \, \nabla f(w), \qquad
    \beta = n \Big/ \sum_{i=1}^n (1 - p_{i, y_i}), \qquad
    f(w) = -\frac{1}{n} \sum_{i=1}^n \log p_{i, y_i}

  With two classes the step is a mean of the examples, weighted by the
  probability of an error, as in normalised logistic regression. Its length does
  not shrink while examples are incorrect. The value of the loss does not
  show progress, because it may be large in the step before the solution. Stop
  when all examples are correct.

  Returns:
    A transformation of gradients. Its ``update`` needs the keyword argument
    ``error_mass``, a scalar of 0 or more. An error mass of 0 gives updates of
    0.

  Raises:
    TypeError: By ``update``, without ``error_mass``, or if an update is not
      floating.
    ValueError: By ``update``, if ``error_mass`` is not a scalar.

  Examples:
    >>> import optax
    >>> scale = transforms.scale_by_error_mass()
    >>> optimizer = optax.chain(scale, optax.sgd(1.0))
    >>> w = jnp.zeros(2)
    >>> state = optimizer.init(w)
    >>> gradient = jnp.array([-0.1, 0.2])
    >>> updates, state = optimizer.update(gradient, state, error_mass=0.25)
    >>> print(updates)
    [ 0.4 -0.8]

  References:
    Tyurin, `From Logistic Regression to the Perceptron Algorithm: Exploring
    Gradient Descent with Large Step Sizes <https://arxiv.org/abs/2412.08424>`_,
    2024.

  .. seealso:: :func:`error_mass`
  """

  def init(params: Any) -> optax.EmptyState:
    del params
    return optax.EmptyState()

  def update(
    updates: Any,
    state: optax.EmptyState,
    params: Any = None,
    *,
    error_mass: jax.typing.ArrayLike | None = None,
    **extra: Any,
  ) -> tuple[Any, optax.EmptyState]:
    del params, extra
    if error_mass is None:
      raise TypeError(
        "error_mass must be passed to update. Pass error_mass="
        "transforms.error_mass(logits, labels) of the same batch."
      )

    def divide(x: jax.Array) -> jax.Array:
      x = checks.as_floats(x, "updates")
      wide = checks.compute_dtype(x.dtype)
      mass = checks.as_scalar("error_mass", error_mass, wide, "[0, inf)")
      positive = mass != 0
      quotient = x.astype(wide) / jnp.where(positive, mass, 1.0)
      return jnp.where(positive, quotient, 0.0).astype(x.dtype)

    return jax.tree.map(divide, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def _norm(tree: Any) -> jax.Array:
  """The Euclidean norm over all leaves; their squares do not underflow."""
  leaves = jax.tree.leaves(tree)
  wide = checks.compute_dtype(*(x.dtype for x in leaves))
  leaves = [x.astype(wide) for x in leaves if x.size]
  if not leaves:
    return jnp.zeros((), wide)
  largest = functools.reduce(jnp.maximum, [jnp.abs(x).max() for x in leaves])
  # A subnormal unit has no accurate reciprocal, and XLA may flush it to 0.
  unit = jnp.where(largest >= jnp.finfo(wide).tiny, largest, 1.0)
  return unit * jnp.sqrt(sum(((x / unit) ** 2).sum() for x in leaves))


def output_gradient_norm(
  apply_fn: Callable[[Any, Any], jax.Array],
  params: Any,
  batch: Any,
  *,
  rho: jax.typing.ArrayLike,
  radius: jax.typing.ArrayLike | None = None,
  axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Any, jax.Array]:
  r"""Computes how the norm of the gradient of a mean prediction changes.

  Use it to train a model whose *output* must not change abruptly with its
  parameters, such as the surrogate of an objective that is optimized offline.
  Add the result, times a multiplier, to the gradients of the loss. It is the
  penalty of IGNITE; :func:`constraint_multiplier` updates the multiplier.

  .. math::
    \rho \, \nabla_w \lVert g \rVert = \rho H \frac{g}{\lVert g \rVert}
    \approx \frac{\rho}{r} \Bigl(\nabla G \bigl(w + r
      \tfrac{g}{\lVert g \rVert}\bigr) - g\Bigr), \qquad
    g = \nabla G(w)

  :math:`G` is the mean prediction of the batch and :math:`H` its Hessian. The
  norm is over all parameters together. The exact form is the default, at the
  cost of about two more gradients; the finite difference needs one.

  Args:
    apply_fn: A function ``apply_fn(params, batch)`` that returns predictions of
      any shape.
    params: A tree of float arrays.
    batch: What ``apply_fn`` takes, such as an array of inputs.
    rho: Scale of the constraint, 0 or more. The gradients include it, the norm
      does not.
    radius: :math:`r` of the finite difference that is used in the paper, above
      0; None for the exact product with the Hessian.
    axis_name: Mesh axes of a ``shard_map`` over which the batch is divided
      into equal parts. ``params`` must be the same on every device.

  Returns:
    The gradients of the penalty, a tree like ``params``, and the norm, a
    scalar. A norm of 0 gives gradients of 0.

  Raises:
    TypeError: If a parameter is not floating.
    ValueError: If ``rho`` or ``radius`` is not a scalar or, concrete, out of
      range, or if the predictions are empty.

  Examples:
    >>> def apply_fn(w, x):
    ...   return jnp.tanh(x @ w)
    >>> x = jnp.array([[1.0, 2.0], [0.0, -1.0]])
    >>> gradients, norm = transforms.output_gradient_norm(
    ...   apply_fn, jnp.array([1.0, -2.0]), x, rho=1.0
    ... )
    >>> print(gradients, f"{norm:.4f}")
    [-0.0174  0.032 ] 0.0259

  References:
    Dao, Le Nguyen, Truong and Hoang, `Incorporating Surrogate Gradient Norm to
    Improve Offline Optimization Techniques
    <https://arxiv.org/abs/2503.04242>`_, NeurIPS 2024.

  .. seealso:: :func:`constraint_multiplier`
  """
  names = checks.as_axis_names(axis_name)
  for leaf in jax.tree.leaves(params):
    checks.as_floats(leaf, "params")
  params = jax.tree.map(jnp.asarray, params)
  wide = checks.compute_dtype(*(x.dtype for x in jax.tree.leaves(params)))
  scale = checks.as_scalar("rho", rho, wide, "[0, inf)")
  if radius is not None:
    radius = checks.as_scalar("radius", radius, wide, "(0, inf)")

  def mean(params: Any) -> jax.Array:
    out = apply_fn(params, batch)
    if jnp.size(out) == 0:
      raise ValueError(
        "apply_fn must return at least one prediction, got shape "
        f"{jnp.shape(out)}. Pass a batch that is not empty."
      )
    value = jnp.mean(out.astype(checks.compute_dtype(out.dtype)))
    return value if names is None else lax.pmean(value, names)

  gradient = jax.grad(mean)
  first = gradient(params)
  norm = _norm(first)
  divisor = jnp.where(norm == 0, 1.0, norm)
  direction = jax.tree.map(
    lambda x: (x.astype(norm.dtype) / divisor).astype(x.dtype), first
  )
  if radius is None:
    change = jax.jvp(gradient, (params,), (direction,))[1]
  else:
    moved = jax.tree.map(
      lambda w, d: (
        w.astype(norm.dtype) + radius * d.astype(norm.dtype)
      ).astype(w.dtype),
      params,
      direction,
    )
    change = jax.tree.map(jnp.subtract, gradient(moved), first)
    scale = scale / radius
  return jax.tree.map(
    lambda x: (scale * x.astype(norm.dtype)).astype(x.dtype), change
  ), norm


class ConstraintMultiplier(NamedTuple):
  """The functions of a Lagrange multiplier, see `constraint_multiplier`.

  Attributes:
    init: ``init()`` returns the first multiplier.
    update: ``update(norm, multiplier)`` returns the next one.
  """

  init: Callable[[], jax.Array]
  update: Callable[[jax.typing.ArrayLike, jax.typing.ArrayLike], jax.Array]


def constraint_multiplier(
  rho: jax.typing.ArrayLike,
  epsilon: jax.typing.ArrayLike,
  learning_rate: jax.typing.ArrayLike,
  *,
  initial: jax.typing.ArrayLike = 1e-3,
) -> ConstraintMultiplier:
  r"""Makes the multiplier of the constraint on a norm, by gradient ascent.

  Use it with :func:`output_gradient_norm`, whose gradients the multiplier
  weights. It grows while the constraint is violated, and decreases otherwise.

  .. math::
    \lambda \leftarrow \max\bigl(0, \lambda + \eta \,
      (\rho \lVert g \rVert - \epsilon)\bigr)

  Args:
    rho: Scale of the norm in the constraint, 0 or more.
    epsilon: Bound of the scaled norm, 0 or more.
    learning_rate: :math:`\eta`, 0 or more; 0 leaves the multiplier constant.
    initial: The first multiplier, 0 or more.

  Returns:
    A pair of functions: ``init()`` returns the first multiplier, and
    ``update(norm, multiplier)`` the next one, each a scalar, float32 or wider.

  Raises:
    ValueError: If an argument is not a scalar, or a concrete one is out of
      range.

  Examples:
    >>> multiplier = transforms.constraint_multiplier(0.05, 0.1, 1e-3)
    >>> value = multiplier.init()
    >>> print(f"{multiplier.update(3.0, value):.5f}")
    0.00105

  References:
    Dao, Le Nguyen, Truong and Hoang, `Incorporating Surrogate Gradient Norm to
    Improve Offline Optimization Techniques
    <https://arxiv.org/abs/2503.04242>`_, NeurIPS 2024. The bound at 0 is not
    in the authors' code.

  .. seealso:: :func:`output_gradient_norm`
  """
  numbers = {
    "rho": rho,
    "epsilon": epsilon,
    "learning_rate": learning_rate,
    "initial": initial,
  }
  default = np.dtype(jnp.result_type(float))
  for name, value in numbers.items():
    checks.as_scalar(name, value, default, "[0, inf)")

  def init() -> jax.Array:
    return jnp.asarray(initial, default)

  def update(
    norm: jax.typing.ArrayLike, multiplier: jax.typing.ArrayLike
  ) -> jax.Array:
    for name, x in (("norm", norm), ("multiplier", multiplier)):
      if jnp.ndim(x):
        raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(x)}.")
    # In an integer the step would be rounded to 0.
    dtype = checks.compute_dtype(jnp.asarray(multiplier).dtype)
    value, size = (jnp.asarray(x, dtype) for x in (multiplier, norm))
    scaled = jnp.asarray(rho, dtype) * size
    step = jnp.asarray(learning_rate, dtype) * (
      scaled - jnp.asarray(epsilon, dtype)
    )
    return jnp.maximum(value + step, 0.0)

  return ConstraintMultiplier(init, update)
